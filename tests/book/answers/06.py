"""Answers to the exercises of chapter 06; the names of the chapter are there."""
# ruff: noqa: F821


class add_up:
    def right_two_sums(inputs, trits):
        pairs = list(zip(inputs, trits, strict=True))
        return sum(x for x, t in pairs if t == 1) - sum(x for x, t in pairs if t == -1)

    def right_signs(inputs, trits):
        return sum(
            x if trit > 0 else -x
            for x, trit in zip(inputs, trits, strict=True)
            if trit != 0
        )

    def right_tensor_masks(inputs, trits):
        x, t = torch.tensor(inputs), torch.tensor(trits)
        return x[t == 1].sum() - x[t == -1].sum()

    def right_numpy_masks(inputs, trits):
        import numpy as np

        x, t = np.array(inputs, dtype=float), np.array(trits)
        return x[t == 1].sum() - x[t == -1].sum()

    def wrong_multiplies(inputs, trits):
        return sum(x * trit for x, trit in zip(inputs, trits, strict=True))

    def wrong_multiplies_from_the_left(inputs, trits):
        return sum(trit * x for x, trit in zip(inputs, trits, strict=True))

    def wrong_divides(inputs, trits):
        pairs = zip(inputs, trits, strict=True)
        return sum(x / trit for x, trit in pairs if trit)

    def wrong_whole_division(inputs, trits):
        pairs = zip(inputs, trits, strict=True)
        return sum(x // trit for x, trit in pairs if trit)

    def wrong_dot_product(inputs, trits):
        import numpy as np

        return np.dot(inputs, trits)

    def wrong_tensor_product(inputs, trits):
        return (torch.tensor(inputs) * torch.tensor(trits)).sum()

    def wrong_never_takes_away(inputs, trits):
        return sum(x for x, trit in zip(inputs, trits, strict=True) if trit)

    def wrong_adds_what_is_not_one(inputs, trits):
        total = 0
        for x, trit in zip(inputs, trits, strict=True):
            total = total + x if trit == 1 else total - x
        return total

    def wrong_signs_of_the_trits_alone(inputs, trits):
        pairs = zip(inputs, trits, strict=True)
        return sum(math.copysign(x, trit) for x, trit in pairs if trit)


class best_scale:
    def right_mean_of_the_kept(weights, trits):
        return weights[trits != 0].abs().mean()

    def right_python_number(weights, trits):
        pairs = zip(weights.flatten().tolist(), trits.flatten().tolist(), strict=True)
        kept = [abs(w) for w, trit in pairs if trit]
        return sum(kept) / len(kept)

    def right_least_squares(weights, trits):
        w, t = weights.reshape(-1, 1), trits.reshape(-1, 1).float()
        return torch.linalg.lstsq(t, w).solution[0, 0]

    def right_numpy(weights, trits):
        w, t = weights.numpy().ravel(), trits.numpy().ravel()
        return (w @ t) / (t @ t)

    def wrong_mean_of_all(weights, trits):
        return weights.abs().mean()

    def wrong_largest(weights, trits):
        return weights.abs().max()

    def wrong_product_over_all(weights, trits):
        return (weights * trits).mean()

    def wrong_root_of_the_mean_square(weights, trits):
        return weights[trits != 0].square().mean().sqrt()

    def wrong_signs_cancel(weights, trits):
        return weights[trits != 0].mean()

    def wrong_number_of_the_paper(weights, trits):
        return 0.8

    def wrong_codes_of_its_own(weights, trits):
        sizes = weights.abs()
        return sizes[sizes > sizes.mean() / 2].mean()


class careful:
    def right_where(weights, upstream):
        inside = weights.abs() <= weights.abs().mean()
        return torch.where(inside, upstream, 0.0)

    def right_lists(weights, upstream):
        edge = float(ternarize(weights)[1])
        return [
            [g if abs(w) <= edge else 0 for w, g in zip(row, grads, strict=True)]
            for row, grads in zip(weights.tolist(), upstream.tolist(), strict=True)
        ]

    def right_numpy(weights, upstream):
        _, edge = ternarize(weights)
        return upstream.numpy() * (abs(weights.numpy()) < float(edge))

    def right_sets_zeros(weights, upstream):
        gradient = upstream.clone()
        gradient[weights.abs() > ternarize(weights)[1]] = 0
        return gradient

    def wrong_straight_through(weights, upstream):
        return upstream

    def wrong_fixed_edge(weights, upstream):
        return upstream * (weights.abs() <= 0.44)

    def wrong_edge_of_one(weights, upstream):
        return upstream * (weights.abs() <= 1)

    def wrong_only_the_mask(weights, upstream):
        return (weights.abs() <= ternarize(weights)[1]).float()

    def wrong_beyond_instead_of_within(weights, upstream):
        return upstream * (weights.abs() > ternarize(weights)[1])

    def wrong_clips_the_gradient(weights, upstream):
        edge = ternarize(weights)[1]
        return upstream.clamp(-edge, edge)

    def wrong_half_the_scale(weights, upstream):
        return upstream * (weights.abs() <= ternarize(weights)[1] / 2)

    def wrong_negative_weights_are_within(weights, upstream):
        return upstream * (weights <= ternarize(weights)[1])

    def wrong_a_scale_for_each_row(weights, upstream):
        return upstream * (weights.abs() <= weights.abs().mean(1, keepdim=True))


class survivor:
    def right_share_of_the_kept(trits, loudness):
        kept = (trits != 0).float().mean()
        return trits * (loudness / kept)

    def right_numpy(trits, loudness):
        import numpy as np

        t = trits.numpy()
        return t * float(loudness) * t.size / np.abs(t).sum()

    def right_lists(trits, loudness):
        share = float(trits.abs().mean())
        return [[float(loudness) * t / share for t in row] for row in trits.tolist()]

    def right_measures_it(trits, loudness):
        made = loudness * trits
        return made * (loudness / ternarize(made)[1])

    def wrong_loudness_times_trits(trits, loudness):
        return loudness * trits

    def wrong_divides_by_the_count(trits, loudness):
        return trits * loudness / trits.abs().sum()

    def wrong_smaller_instead_of_larger(trits, loudness):
        return trits * loudness * trits.abs().mean()

    def wrong_factor_of_one_matrix(trits, loudness):
        return 2 * loudness * trits

    def wrong_only_the_codes(trits, loudness):
        return trits / trits.abs().mean()

    def wrong_no_signs(trits, loudness):
        return trits.abs() * loudness / trits.abs().mean()

    def wrong_a_mean_for_each_row(trits, loudness):
        return trits * loudness / trits.abs().mean(1, keepdim=True)
