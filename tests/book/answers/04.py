"""Answers to the exercises of chapter 04; the names of the chapter are there."""
# ruff: noqa: F821


class kept_places:
    def right_tuple(seen, limit):
        threshold = sorted(seen)[-limit:][0]
        return tuple(i for i in range(len(seen)) if seen[i] >= threshold)

    def right_counts_who_is_larger(seen, limit):
        kept = []
        for place, score in enumerate(seen):
            if sum(other > score for other in seen) < limit:
                kept.append(place)
        return kept

    def right_tensor(seen, limit):
        scores = torch.tensor(seen)
        threshold = scores.topk(min(limit, len(seen))).values[-1]
        return torch.nonzero(scores >= threshold).flatten()

    def right_numpy(seen, limit):
        import numpy as np

        threshold = np.sort(seen)[-min(limit, len(seen))]
        return np.flatnonzero(np.array(seen) >= threshold)

    def wrong_exactly_limit(seen, limit):
        order = sorted(range(len(seen)), key=lambda i: -seen[i])
        return sorted(order[:limit])

    def wrong_in_the_order_of_scores(seen, limit):
        threshold = sorted(seen, reverse=True)[:limit][-1]
        kept = [i for i, score in enumerate(seen) if score >= threshold]
        return sorted(kept, key=lambda i: -seen[i])

    def wrong_strictly_above(seen, limit):
        threshold = sorted(seen, reverse=True)[:limit][-1]
        return [i for i, score in enumerate(seen) if score > threshold]

    def wrong_the_smallest(seen, limit):
        threshold = sorted(seen)[:limit][-1]
        return [i for i, score in enumerate(seen) if score <= threshold]

    def wrong_scores_instead_of_places(seen, limit):
        threshold = sorted(seen, reverse=True)[:limit][-1]
        return [score for score in seen if score >= threshold]

    def wrong_needs_limit_in_sight(seen, limit):
        threshold = sorted(seen, reverse=True)[limit - 1]
        return [i for i, score in enumerate(seen) if score >= threshold]

    def wrong_equal_scores_are_one_place(seen, limit):
        threshold = sorted(set(seen), reverse=True)[:limit][-1]
        return [place for place, score in enumerate(seen) if score >= threshold]


class kept_share:
    def right_fraction(length, limit):
        from fractions import Fraction

        pairs = length * (length + 1) // 2
        return Fraction(sum(min(n + 1, limit) for n in range(length)), pairs)

    def right_tensor(length, limit):
        sees = torch.arange(1, length + 1)
        return sees.clamp(max=limit).sum() / sees.sum()

    def right_closed_form(length, limit):
        k = min(limit, length)
        return (k * (k + 1) / 2 + k * (length - k)) / (length * (length + 1) / 2)

    def right_numpy(length, limit):
        import numpy as np

        sees = np.arange(length) + 1
        return np.minimum(sees, limit).sum() / sees.sum()

    def wrong_limit_over_length(length, limit):
        return min(1, limit / length)

    def wrong_whole_square(length, limit):
        return sum(min(n + 1, limit) for n in range(length)) / length**2

    def wrong_does_not_see_itself(length, limit):
        seen = range(length)
        return sum(min(sees, limit) for sees in seen) / max(1, sum(seen))

    def wrong_mean_of_shares(length, limit):
        return sum(min(n, limit) / n for n in range(1, length + 1)) / length

    def wrong_the_dropped_share(length, limit):
        seen = range(1, length + 1)
        return 1 - sum(min(sees, limit) for sees in seen) / sum(seen)


class score_gradient:
    def right_list(weight, d):
        p, d = weight.tolist(), d.tolist()
        mean = sum(a * b for a, b in zip(p, d, strict=True))
        return [a * (b - mean) for a, b in zip(p, d, strict=True)]

    def right_numpy(weight, d):
        p, d = weight.numpy(), d.numpy()
        return p * d - p * (p @ d)

    def right_jacobian(weight, d):
        jacobian = torch.diag(weight) - torch.outer(weight, weight)
        return jacobian @ d

    def right_autograd(weight, d):
        scores = weight.log().requires_grad_()
        return torch.autograd.grad(scores.softmax(0), scores, d)[0]

    def wrong_plain_mean(weight, d):
        return weight * (d - d.mean())

    def wrong_mean_of_the_kept(weight, d):
        return weight * (d - d[weight > 0].mean())

    def wrong_no_mean(weight, d):
        return weight * d

    def wrong_not_weighted(weight, d):
        return d - (weight * d).sum()

    def wrong_sign(weight, d):
        return weight * ((weight * d).sum() - d)


class near_ties:
    def right_sorted(queries, limit, gap):
        count = 0
        for seen in queries:
            ranked = sorted(seen, reverse=True)
            threshold = ranked[min(limit, len(ranked)) - 1]
            dropped = [score for score in ranked if score < threshold]
            if dropped and threshold - dropped[0] < gap:
                count += 1
        return count

    def right_tensor(queries, limit, gap):
        count = torch.tensor(0)
        for seen in queries:
            scores = torch.tensor(seen, dtype=torch.float64)
            threshold = scores.topk(min(limit, len(seen))).values[-1]
            below = threshold - scores
            count += ((below > 0) & (below < gap)).any()
        return count

    def right_numpy(queries, limit, gap):
        import numpy as np

        close_ones = []
        for seen in queries:
            below = np.sort(seen)[-limit:][0] - np.array(seen)
            close_ones.append(np.any((below > 0) & (below < gap)))
        return np.sum(close_ones)

    def wrong_scores_instead_of_queries(queries, limit, gap):
        count = 0
        for seen in queries:
            threshold = sorted(seen, reverse=True)[:limit][-1]
            count += sum(0 < threshold - score < gap for score in seen)
        return count

    def wrong_from_the_largest(queries, limit, gap):
        count = 0
        for seen in queries:
            threshold = sorted(seen, reverse=True)[:limit][-1]
            below = [score for score in seen if score < threshold]
            count += bool(below) and max(seen) - max(below) < gap
        return count

    def wrong_up_to_the_gap(queries, limit, gap):
        count = 0
        for seen in queries:
            threshold = sorted(seen, reverse=True)[:limit][-1]
            below = [score for score in seen if score < threshold]
            count += bool(below) and threshold - max(below) <= gap
        return count

    def wrong_ties_count(queries, limit, gap):
        count = 0
        for seen in queries:
            ranked = sorted(seen, reverse=True)
            count += len(ranked) > limit and ranked[limit - 1] - ranked[limit] < gap
        return count

    def wrong_any_two(queries, limit, gap):
        count = 0
        for seen in queries:
            ranked = sorted(seen, reverse=True)
            pairs = zip(ranked, ranked[1:], strict=False)
            count += any(0 < a - b < gap for a, b in pairs)
        return count

    def wrong_all_queries(queries, limit, gap):
        return len(queries)

    def wrong_neighbours_in_the_list(queries, limit, gap):
        count = 0
        for seen in queries:
            ranked = sorted(seen, reverse=True)
            if len(ranked) > limit:
                count += 0 < ranked[limit - 1] - ranked[limit] < gap
        return count

    def wrong_equal_scores_are_one(queries, limit, gap):
        count = 0
        for seen in queries:
            ranked = sorted(set(seen), reverse=True)
            if len(ranked) > limit:
                count += ranked[limit - 1] - ranked[limit] < gap
        return count
