"""Answers to the exercises of chapter 13; the names of the chapter are there."""
# ruff: noqa: F821


class state_bytes:
    def right_in_steps(c, rows):
        heard = (c.conv_width - 1) * c.d_model
        keys = values = c.context * c.d_model
        return 4 * rows * c.n_blocks * (heard + keys + values)

    def right_makes_it(c, rows):
        heard = torch.empty(c.n_blocks, rows, c.conv_width - 1, c.d_model)
        pairs = torch.empty(c.n_blocks, rows, 2, c.context, c.d_model)
        return heard.nbytes + pairs.nbytes

    def right_tensor(c, rows):
        numbers = torch.tensor([c.conv_width - 1, c.context, c.context]).sum()
        return numbers * c.d_model * c.n_blocks * rows * 4

    def right_numpy(c, rows):
        import numpy as np

        vectors = c.conv_width + 2 * c.context - 1
        return np.prod([vectors, c.d_model, c.n_blocks, rows, 4])

    def wrong_whole_kernel(c, rows):
        vectors = c.conv_width + 2 * c.context
        return rows * c.n_blocks * vectors * c.d_model * 4

    def wrong_keys_only(c, rows):
        vectors = c.conv_width - 1 + c.context
        return rows * c.n_blocks * vectors * c.d_model * 4

    def wrong_half_precision(c, rows):
        vectors = c.conv_width - 1 + 2 * c.context
        return rows * c.n_blocks * vectors * c.d_model * 2

    def wrong_numbers_not_bytes(c, rows):
        return rows * c.n_blocks * (c.conv_width - 1 + 2 * c.context) * c.d_model

    def wrong_one_block(c, rows):
        return rows * (c.conv_width - 1 + 2 * c.context) * c.d_model * 4

    def wrong_one_row(c, rows):
        return c.n_blocks * (c.conv_width - 1 + 2 * c.context) * c.d_model * 4

    def wrong_every_kernel_is_five_wide(c, rows):
        return rows * c.n_blocks * (4 + 2 * c.context) * c.d_model * 4

    def wrong_every_window_is_256(c, rows):
        return rows * c.n_blocks * (c.conv_width - 1 + 512) * c.d_model * 4


class min_p_sampled:
    def right_tensor(p, min_p):
        p = torch.tensor(p)
        kept = torch.where(p >= min_p * p.max(), p, 0)
        return kept / kept.sum()

    def right_array(p, min_p):
        import numpy as np

        p = np.array(p)
        p[p < min_p * p.max()] = 0
        return p / p.sum()

    def right_tuple(p, min_p):
        bar = max(p) * min_p
        total = sum(x for x in p if x >= bar)
        return tuple(x / total if x >= bar else 0.0 for x in p)

    def right_list_of_tensors(p, min_p):
        p = torch.tensor(p, dtype=torch.float64)
        kept = p * (p / p.max() >= min_p)
        return list(kept / kept.sum())

    def wrong_absolute_bar(p, min_p):
        kept = [x if x >= min_p else 0 for x in p]
        return [x / (sum(kept) or 1) for x in kept]

    def wrong_does_not_sum_to_one(p, min_p):
        return [x if x >= min_p * max(p) else 0 for x in p]

    def wrong_strictly_above(p, min_p):
        kept = [x if x > min_p * max(p) else 0 for x in p]
        return [x / (sum(kept) or 1) for x in kept]

    def wrong_leaves_places_out(p, min_p):
        kept = [x for x in p if x >= min_p * max(p)]
        return [x / sum(kept) for x in kept]

    def wrong_top_p(p, min_p):
        kept, total = [], 0
        for x in p:
            kept.append(x if total < min_p else 0)
            total += x
        return [x / (sum(kept) or 1) for x in kept]

    def wrong_the_first_is_the_best(p, min_p):
        kept = [x if x >= min_p * p[0] else 0 for x in p]
        return [x / sum(kept) for x in kept]

    def wrong_sorted(p, min_p):
        kept = [x if x >= min_p * max(p) else 0 for x in sorted(p, reverse=True)]
        return [x / sum(kept) for x in kept]


class rereading:
    def right_closed_form(keep, context):
        return context / (context - keep)

    def right_simulated(keep, context):
        read, written, held = 0, 0, context
        while written == 0 or held < context:
            if held == context:
                held = keep
                read += keep
            held += 1
            read += 1
            written += 1
        return read / written

    def right_fraction(keep, context):
        from fractions import Fraction

        return Fraction(context, context - keep)

    def right_tensor(keep, context):
        written = torch.tensor(context - keep)
        return (keep + 1 + (written - 1)) / written

    def wrong_kept_over_context(keep, context):
        return 1 + keep / context

    def wrong_half_is_kept(keep, context):
        return 2 if keep else 1

    def wrong_only_the_crossing(keep, context):
        return (keep + 1) / (context - keep)

    def wrong_one_fewer_written(keep, context):
        return context / max(1, context - keep - 1)

    def wrong_upside_down(keep, context):
        return (context - keep) / context

    def wrong_window_of_256(keep, context):
        return 256 / (256 - keep)


class roof:
    def right_seconds_of_a_step(weights, memory, speed, rows):
        step = (weights + rows * memory) / speed
        return rows / step

    def right_tensor(weights, memory, speed, rows):
        read = torch.tensor(weights) + rows * torch.tensor(memory)
        return rows * (speed / read)

    def right_numpy(weights, memory, speed, rows):
        import numpy as np

        return np.float64(speed) / (weights / rows + memory)

    def wrong_weights_for_each_row(weights, memory, speed, rows):
        return speed / (weights + memory)

    def wrong_one_byte_a_step(weights, memory, speed, rows):
        return speed / (weights + rows * memory)

    def wrong_no_memory(weights, memory, speed, rows):
        return rows * speed / weights

    def wrong_memory_read_once(weights, memory, speed, rows):
        return rows * speed / (weights + memory)

    def wrong_seconds(weights, memory, speed, rows):
        return (weights + rows * memory) / speed / rows
