"""Answers to the exercises of chapter 11; the names of the chapter are there."""
# ruff: noqa: F821


class mistakes:
    def right_loop(has_answer, right, refused):
        counts = {True: [0, 0], False: [0, 0]}
        for known, said_no in zip(has_answer, refused, strict=True):
            counts[bool(known)][0] += 1
            counts[bool(known)][1] += bool(said_no) == bool(known)
        return [counts[side][1] / counts[side][0] for side in (True, False)]

    def right_tensors(has_answer, right, refused):
        known, said_no = torch.tensor(has_answer), torch.tensor(refused)
        inability = said_no[known].double().mean()
        invention = (~said_no[~known]).double().mean()
        return torch.stack([inability, invention])

    def right_tuple_of_scalars(has_answer, right, refused):
        known = sum(has_answer)
        inability = (
            sum(a and r for a, r in zip(has_answer, refused, strict=True)) / known
        )
        unknown = len(has_answer) - known
        answered = sum(
            not a and not r for a, r in zip(has_answer, refused, strict=True)
        )
        return torch.tensor(inability), torch.tensor(answered / unknown)

    def wrong_of_all_questions(has_answer, right, refused):
        n = len(has_answer)
        inability = sum(a and r for a, r in zip(has_answer, refused, strict=True)) / n
        invention = (
            sum(not a and not r for a, r in zip(has_answer, refused, strict=True)) / n
        )
        return inability, invention

    def wrong_counts_wrong_answers(has_answer, right, refused):
        inability = [not g for a, g in zip(has_answer, right, strict=True) if a]
        invention = [not g for a, g in zip(has_answer, right, strict=True) if not a]
        return sum(inability) / len(inability), sum(invention) / len(invention)

    def wrong_way_round(has_answer, right, refused):
        inability = [r for a, r in zip(has_answer, refused, strict=True) if a]
        invention = [not r for a, r in zip(has_answer, refused, strict=True) if not a]
        return sum(invention) / len(invention), sum(inability) / len(inability)

    def wrong_refusals_of_both(has_answer, right, refused):
        inability = [r for a, r in zip(has_answer, refused, strict=True) if a]
        invention = [r for a, r in zip(has_answer, refused, strict=True) if not a]
        return sum(inability) / len(inability), sum(invention) / len(invention)


class row:
    def right_tensors(turns):
        return encode_row(turns)

    def right_by_marks(turns):
        data, marks = b"", []
        for question, answer in turns:
            asked = f"USER: {question}\nTILELLI: ".encode()
            said = answer.encode() + b"\0"
            data += asked + said
            marks += [False] * len(asked) + [True] * len(said)
        wanted = [b if m else -100 for b, m in zip(data, marks, strict=True)]
        return tuple(data[:-1]), tuple(wanted[1:])

    def right_arrays(turns):
        ids, targets = encode_row(turns)
        return ids.numpy(), targets.numpy()

    def wrong_last_answer_only(turns):
        ids, targets = encode_row(turns)
        last = targets.clone()
        end = len(f"{turns[-1][1]}\0".encode())
        last[:-end] = -100
        return ids, last

    def wrong_without_the_end(turns):
        ids, targets = encode_row(turns)
        return ids, targets.masked_fill(targets == 0, -100)

    def wrong_not_shifted(turns):
        ids, targets = encode_row(turns)
        return ids, [-100, *targets.tolist()[:-1]]

    def wrong_learns_everything(turns):
        ids, targets = encode_row(turns)
        return ids, [*ids.tolist()[1:], 0]

    def wrong_counts_characters(turns):
        ids, targets = [], []
        for question, answer in turns:
            asked = f"USER: {question}\nTILELLI: "
            said = f"{answer}\0"
            ids += list((asked + said).encode())
            targets += [-100] * len(asked) + list(said.encode())
        return ids[:-1], targets[1:]


class cheapest:
    def right_sorted_once(confidence, right, cost_wrong, cost_refused):
        best = None
        for threshold in [*sorted(confidence), float("inf")]:
            total = 0
            for sure, good in zip(confidence, right, strict=True):
                total += cost_refused if sure < threshold else cost_wrong * (not good)
            if best is None or total < best[0]:
                best = total, threshold
        return best[1]

    def right_tensor(confidence, right, cost_wrong, cost_refused):
        sure = torch.tensor(confidence, dtype=torch.float64)
        wrong = ~torch.tensor(right)
        cuts = torch.cat([sure.sort().values, torch.tensor([float("inf")])])
        answered = sure >= cuts[:, None]
        costs = (answered & wrong).sum(1) * cost_wrong + (~answered).sum(
            1
        ) * cost_refused
        return cuts[costs.argmin()]

    def right_numpy(confidence, right, cost_wrong, cost_refused):
        import numpy

        cuts = numpy.append(numpy.sort(confidence), numpy.inf)
        costs = [
            sum(
                cost_refused if c < cut else cost_wrong * (not good)
                for c, good in zip(confidence, right, strict=True)
            )
            for cut in cuts
        ]
        return cuts[int(numpy.argmin(costs))]

    def wrong_never_refuses_all(confidence, right, cost_wrong, cost_refused):
        def cost(cut):
            return sum(
                cost_refused if c < cut else cost_wrong * (not good)
                for c, good in zip(confidence, right, strict=True)
            )

        return min(sorted(confidence), key=cost)

    def wrong_ignores_the_costs(confidence, right, cost_wrong, cost_refused):
        return sorted(confidence)[len(confidence) // 2]

    def wrong_answers_above_only(confidence, right, cost_wrong, cost_refused):
        def cost(cut):
            return sum(
                cost_refused if c <= cut else cost_wrong * (not good)
                for c, good in zip(confidence, right, strict=True)
            )

        return min(sorted([*confidence, float("inf")]), key=cost)

    def wrong_highest_of_equals(confidence, right, cost_wrong, cost_refused):
        def cost(cut):
            return sum(
                cost_refused if c < cut else cost_wrong * (not good)
                for c, good in zip(confidence, right, strict=True)
            )

        return min(sorted([*confidence, float("inf")], reverse=True), key=cost)

    def wrong_costs_swapped(confidence, right, cost_wrong, cost_refused):
        def cost(cut):
            return sum(
                cost_wrong if c < cut else cost_refused * (not good)
                for c, good in zip(confidence, right, strict=True)
            )

        return min(sorted([*confidence, float("inf")]), key=cost)


class p_value:
    def right_numpy(scores, positive, times=1000):
        import numpy

        dice = numpy.random.default_rng(0)
        measured = auroc(scores, positive)
        found = [auroc(scores, dice.permutation(positive)) for _ in range(times)]
        return (1 + sum(f >= measured for f in found)) / (1 + times)

    def right_torch(scores, positive, times=1000):
        positive = torch.tensor(positive)
        measured, reached = auroc(scores, positive), 1
        for _ in range(times):
            order = torch.randperm(len(positive))
            reached += auroc(scores, positive[order]) >= measured
        return torch.tensor(reached, dtype=torch.float64) / (1 + times)

    def right_shuffles_the_scores(scores, positive, times=1000):
        measured, reached = auroc(scores, positive), 1
        for _ in range(times):
            dealt = random.sample(list(scores), len(scores))
            reached += auroc(dealt, positive) >= measured
        return reached / (1 + times)

    def wrong_may_be_zero(scores, positive, times=1000):
        measured, reached = auroc(scores, positive), 0
        for _ in range(times):
            reached += auroc(scores, random.sample(positive, len(positive))) >= measured
        return reached / times

    def wrong_strictly_higher(scores, positive, times=1000):
        measured, reached = auroc(scores, positive), 1
        for _ in range(times):
            reached += auroc(scores, random.sample(positive, len(positive))) > measured
        return reached / (1 + times)

    def wrong_share_below(scores, positive, times=1000):
        measured, below = auroc(scores, positive), 1
        for _ in range(times):
            below += auroc(scores, random.sample(positive, len(positive))) < measured
        return below / (1 + times)

    def wrong_always_five_hundredths(scores, positive, times=1000):
        return 0.05
