"""Answers to the exercises of chapter 12; the names of the chapter are there."""
# ruff: noqa: F821


class floor:
    def right_tensor(pathways, dead):
        left = torch.tensor(float(pathways - dead))
        return 1 - left.log() / torch.tensor(float(pathways)).log()

    def right_base_two(pathways, dead):
        return 1 - math.log2(pathways - dead) / math.log2(pathways)

    def right_from_even_shares(pathways, dead):
        left = pathways - dead
        entropy = -sum(1 / left * math.log(1 / left) for _ in range(left))
        return 1 - entropy / math.log(pathways)

    def wrong_the_entropy_itself(pathways, dead):
        return math.log(pathways - dead) / math.log(pathways)

    def wrong_share_of_the_dead(pathways, dead):
        return dead / pathways

    def wrong_scaled_by_what_is_left(pathways, dead):
        left = pathways - dead
        return 1 - math.log(left) / math.log(left) if left > 1 else 1

    def wrong_always_three(pathways, dead):
        return 1 - math.log(3 - dead) / math.log(3)


class holds:
    def right_loop(leads):
        count, is_hard = 0, False
        for regime in leads:
            if leads[regime] is None:
                continue
            lead, low = leads[regime]
            if lead >= 0.02 and low > 0:
                count += 1
                is_hard = is_hard or regime in ("neo", "misleading", "gibberish")
        return count >= 4 and is_hard

    def right_of_the_package(leads):
        won = [r for r, f in leads.items() if f and f[0] >= rule.MARGIN and f[1] > 0]
        return rule.is_enough(won)

    def right_numpy_like(leads):
        won = {
            r for r, f in leads.items() if f is not None and min(f[0] - 0.02, 0) == 0
        }
        won = {r for r in won if leads[r][1] > 0}
        return torch.tensor(len(won) > 3 and len(won & set(rule.HARD)) > 0)

    def wrong_any_four(leads):
        won = [r for r, f in leads.items() if f and f[0] >= 0.02 and f[1] > 0]
        return len(won) >= 4

    def wrong_only_near_misses_are_hard(leads):
        won = [r for r, f in leads.items() if f and f[0] >= 0.02 and f[1] > 0]
        return len(won) >= 4 and "neo" in won

    def wrong_no_interval(leads):
        won = [r for r, f in leads.items() if f and f[0] >= 0.02]
        return len(won) >= 4 and bool(set(won) & set(rule.HARD))

    def wrong_no_margin(leads):
        won = [r for r, f in leads.items() if f and f[1] > 0]
        return len(won) >= 4 and bool(set(won) & set(rule.HARD))

    def wrong_three(leads):
        won = [r for r, f in leads.items() if f and f[0] >= 0.02 and f[1] > 0]
        return len(won) >= 3 and bool(set(won) & set(rule.HARD))

    def wrong_undefined_breaks(leads):
        won = [r for r, (lead, low) in leads.items() if lead >= 0.02 and low > 0]
        return len(won) >= 4 and bool(set(won) & set(rule.HARD))


class fair_auroc:
    def right_by_strata(scores, positive, lengths):
        wins = count = 0
        for length in set(lengths):
            rows = [i for i, other in enumerate(lengths) if other == length]
            ups = [scores[i] for i in rows if positive[i]]
            downs = [scores[i] for i in rows if not positive[i]]
            pairs = len(ups) * len(downs)
            if pairs:
                own = [scores[i] for i in rows]
                wins += pairs * auroc(own, [positive[i] for i in rows])
                count += pairs
        return wins / count

    def right_tensor(scores, positive, lengths):
        s, of = torch.tensor(scores).double(), torch.tensor(lengths)
        good = torch.tensor(positive)
        pairs = good[:, None] & ~good[None] & (of[:, None] == of[None])
        lead = s[:, None] - s[None]
        return ((lead[pairs].sign() + 1) / 2).mean()

    def right_counting(scores, positive, lengths):
        wins, count = 0.0, 0
        n = len(scores)
        for i in range(n):
            for j in range(n):
                if positive[i] and not positive[j] and lengths[i] == lengths[j]:
                    count += 1
                    wins += (
                        1 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j])
                    )
        return wins / count

    def wrong_plain(scores, positive, lengths):
        return auroc(scores, positive)

    def wrong_mean_of_strata(scores, positive, lengths):
        found = []
        for length in set(lengths):
            rows = [i for i, other in enumerate(lengths) if other == length]
            found.append(auroc([scores[i] for i in rows], [positive[i] for i in rows]))
        return sum(found) / len(found)

    def wrong_ties_lose(scores, positive, lengths):
        cases = list(zip(scores, positive, lengths, strict=False))
        wins = [
            up > down
            for up, good, length in cases
            for down, bad, other in cases
            if good and not bad and length == other
        ]
        return sum(wins) / len(wins)

    def wrong_other_lengths(scores, positive, lengths):
        cases = list(zip(scores, positive, lengths, strict=False))
        wins = [
            (up > down) + (up == down) / 2
            for up, good, length in cases
            for down, bad, other in cases
            if good and not bad and length != other
        ]
        return sum(wins) / max(len(wins), 1)


class calibration_error:
    def right_numpy_like(confidence, right, bins):
        sure = torch.tensor(confidence).double()
        good = torch.tensor([float(r) for r in right]).double()
        which = (sure * bins).long().clamp(max=bins - 1)
        total = 0
        for number in range(bins):
            here = which == number
            if here.any():
                total += here.sum() * (sure[here].mean() - good[here].mean()).abs()
        return total / len(sure)

    def right_weighted(confidence, right, bins):
        total = 0.0
        for number in range(bins):
            low, high = number / bins, (number + 1) / bins
            is_last = number == bins - 1
            rows = [
                i
                for i, c in enumerate(confidence)
                if low <= c < high or (is_last and c == 1)
            ]
            if rows:
                mean = sum(confidence[i] for i in rows) / len(rows)
                share = sum(right[i] for i in rows) / len(rows)
                total += len(rows) / len(confidence) * abs(mean - share)
        return total

    def right_per_case(confidence, right, bins):
        which = [min(int(c * bins), bins - 1) for c in confidence]
        found = []
        for number in which:
            rows = [i for i, other in enumerate(which) if other == number]
            sure = sum(confidence[i] for i in rows) / len(rows)
            found.append(abs(sure - sum(right[i] for i in rows) / len(rows)))
        return sum(found) / len(found)

    def wrong_equal_cases_alone(confidence, right, bins):
        groups = {}
        for c, r in zip(confidence, right, strict=True):
            groups.setdefault(c, []).append(r)
        gaps = [abs(c * len(g) - sum(g)) for c, g in groups.items()]
        return sum(gaps) / len(confidence)

    def wrong_always_two_bins(confidence, right, bins):
        groups = {}
        for c, r in zip(confidence, right, strict=True):
            groups.setdefault(c >= 0.5, []).append(c - r)
        return sum(abs(sum(g)) for g in groups.values()) / len(confidence)

    def wrong_mean_of_bins(confidence, right, bins):
        groups = {}
        for c, r in zip(confidence, right, strict=False):
            groups.setdefault(min(int(c * bins), bins - 1), []).append((c, r))
        gaps = [
            abs(sum(c for c, _ in g) - sum(r for _, r in g)) / len(g)
            for g in groups.values()
        ]
        return sum(gaps) / len(gaps)

    def wrong_each_case_alone(confidence, right, bins):
        gaps = [abs(c - r) for c, r in zip(confidence, right, strict=False)]
        return sum(gaps) / len(gaps)

    def wrong_one_bin(confidence, right, bins):
        return abs(sum(confidence) - sum(right)) / len(confidence)

    def wrong_no_last_bin(confidence, right, bins):
        total = 0
        for b in range(bins):
            rows = [
                (c, r)
                for c, r in zip(confidence, right, strict=False)
                if b / bins <= c < (b + 1) / bins
            ]
            total += abs(sum(c for c, _ in rows) - sum(r for _, r in rows))
        return total / len(confidence)

    def wrong_signed(confidence, right, bins):
        return (sum(confidence) - sum(right)) / len(confidence)
