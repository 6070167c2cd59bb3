"""Answers to the exercises of chapter 08; the names of the chapter are there."""
# ruff: noqa: F821


class block_parameters:
    def right_five_terms(d, conv_width, expand):
        convolution = d * conv_width
        attention = 3 * d**2
        ffn = 2 * d * (expand * d)
        router, norm = 3 * d, d + d
        return convolution + attention + ffn + router + norm

    def right_tensor(d, conv_width, expand):
        return torch.tensor([conv_width, 3 * d, 2 * expand * d, 3, 2]).sum() * d

    def right_makes_one(d, conv_width, expand):
        changes = {"d_model": d, "conv_width": conv_width, "ffn_expand": expand}
        if d < 8:  # too narrow for the heads of nano
            return d * (conv_width + 3 * d + 2 * expand * d + 5)
        made = RoutedBlock(load_config("nano").with_model(**changes).model)
        return sum(weight.numel() for weight in made.parameters())

    def right_float(d, conv_width, expand):
        return float(d * (5 + conv_width + d * (3 + 2 * expand)))

    def wrong_no_norm(d, conv_width, expand):
        return d * conv_width + 3 * d * d + 2 * expand * d * d + 3 * d

    def wrong_norm_without_bias(d, conv_width, expand):
        return d * conv_width + 3 * d * d + 2 * expand * d * d + 3 * d + d

    def wrong_one_matrix_in_the_ffn(d, conv_width, expand):
        return d * conv_width + 3 * d * d + expand * d * d + 3 * d + 2 * d

    def wrong_dense_convolution(d, conv_width, expand):
        return d * d * conv_width + 3 * d * d + 2 * expand * d * d + 3 * d + 2 * d

    def wrong_output_matrix_of_attention(d, conv_width, expand):
        return d * conv_width + 4 * d * d + 2 * expand * d * d + 3 * d + 2 * d

    def wrong_sizes_of_nano(d, conv_width, expand):
        return 5 * d + 3 * d * d + 8 * d * d + 3 * d + 2 * d


class is_causal:
    def right_numpy_truth(model, T):
        probe = torch.randint(256, (1, T))
        moved = poke(model, probe).numpy()
        import numpy as np

        return np.tril(moved, -1).max() < 1e-4

    def right_tensor_truth(model, T):
        moved = poke(model, torch.arange(T)[None] * 7 % 256)
        return (moved.tril(-1) < 1e-4).all()

    def right_own_loop(model, T):
        text = torch.arange(T)[None]
        with torch.no_grad():
            before = model(text)
            for t in range(1, T):
                other = text.clone()
                other[0, t] = 200
                moved = (model(other) - before)[0, :t].abs().max()
                if moved > 1e-4:
                    return False
        return True

    def right_cuts_the_future_off(model, T):
        text = torch.arange(T)[None] + 40
        other = torch.arange(T)[None] + 120
        with torch.no_grad():
            full = model(text)
            for t in range(1, T):
                mixed = torch.cat((text[:, :t], other[:, t:]), 1)
                one = text.clone()
                one[0, t] = other[0, t]
                for changed in (mixed, one):
                    if not torch.allclose(
                        model(changed)[:, :t], full[:, :t], atol=1e-4
                    ):
                        return False
        return True

    def wrong_nearest_place_only(model, T):
        probe = torch.randint(256, (1, T))
        return bool(poke(model, probe).diagonal(-1).max() < 1e-4)

    def wrong_pokes_the_last_byte_only(model, T):
        moved = poke(model, torch.randint(256, (1, T)))
        return bool(moved[-1, :-1].max() < 1e-4)

    def wrong_looks_at_the_first_place_only(model, T):
        moved = poke(model, torch.randint(256, (1, T)))
        return bool(moved[1:, 0].max() < 1e-4)

    def wrong_looks_at_the_second_half_only(model, T):
        moved = poke(model, torch.randint(256, (1, T))).tril(-1)
        return bool(moved[:, T // 2 :].max() < 1e-4)

    def wrong_no_rounding_allowed_and_itself(model, T):
        return bool(poke(model, torch.randint(256, (1, T))).tril().max() < 1e-4)

    def wrong_the_other_triangle(model, T):
        return bool(poke(model, torch.randint(256, (1, T))).triu(1).max() < 1e-4)

    def wrong_everything_is_fair(model, T):
        return True

    def wrong_only_who_wins(model, T):
        text = torch.arange(T)[None]
        for t in range(1, T):
            other = text.clone()
            other[0, t] = 200
            with torch.no_grad():
                before, after = model(text).argmax(-1), model(other).argmax(-1)
            if (before != after)[0, :t].any():
                return False
        return True


class widest:
    def right_all_that_fit(blocks, budget):
        fits = [
            d for d in range(32, 4096, 32) if sum(by_hand(d, blocks).values()) <= budget
        ]
        return max(fits)

    def right_tensor(blocks, budget):
        widths = torch.arange(32, 4096, 32)
        sizes = [sum(by_hand(int(d), blocks).values()) for d in widths]
        return widths[torch.tensor(sizes) <= budget][-1]

    def right_halving(blocks, budget):
        low, high = 1, 200  # in units of 32
        while high - low > 1:
            middle = (low + high) // 2
            if sum(by_hand(32 * middle, blocks).values()) <= budget:
                low = middle
            else:
                high = middle
        return 32.0 * low

    def wrong_first_too_large(blocks, budget):
        d = 32
        while sum(by_hand(d, blocks).values()) <= budget:
            d += 32
        return d

    def wrong_strictly_below(blocks, budget):
        d = 32
        while sum(by_hand(d + 32, blocks).values()) < budget:
            d += 32
        return d

    def wrong_any_number(blocks, budget):
        d = 32
        while sum(by_hand(d + 1, blocks).values()) <= budget:
            d += 1
        return d

    def wrong_steps_of_64(blocks, budget):
        d = 64
        while sum(by_hand(d + 64, blocks).values()) <= budget:
            d += 64
        return d

    def wrong_never_wider_than_512(blocks, budget):
        fits = [
            d for d in range(32, 513, 32) if sum(by_hand(d, blocks).values()) <= budget
        ]
        return max(fits)

    def wrong_six_blocks_always(blocks, budget):
        d = 32
        while sum(by_hand(d + 32, 6).values()) <= budget:
            d += 32
        return d


class hours:
    def right_in_steps(training_flops, total_bytes, peak, share):
        operations = training_flops * total_bytes
        seconds = operations / (share * peak)
        return seconds / 60 / 60

    def right_tensor(training_flops, total_bytes, peak, share):
        needed = torch.tensor(float(training_flops)) * total_bytes
        return needed / peak / share / 3600

    def right_timedelta(training_flops, total_bytes, peak, share):
        from datetime import timedelta

        taken = timedelta(seconds=training_flops * total_bytes / (peak * share))
        return taken / timedelta(hours=1)

    def wrong_seconds(training_flops, total_bytes, peak, share):
        return training_flops * total_bytes / (peak * share)

    def wrong_share_makes_it_faster(training_flops, total_bytes, peak, share):
        return training_flops * total_bytes / peak * share / 3600

    def wrong_no_share(training_flops, total_bytes, peak, share):
        return training_flops * total_bytes / peak / 3600

    def wrong_whole_hours(training_flops, total_bytes, peak, share):
        return math.ceil(training_flops * total_bytes / (peak * share) / 3600)

    def wrong_three_times_more(training_flops, total_bytes, peak, share):
        return 3 * training_flops * total_bytes / (peak * share) / 3600
