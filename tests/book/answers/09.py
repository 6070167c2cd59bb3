"""Answers to the exercises of chapter 09; the names of the chapter are there."""
# ruff: noqa: F821


class clip:
    def right_numpy(gradients, limit):
        import numpy as np

        arrays = [g.numpy() for g in gradients]
        norm = np.sqrt(sum((a**2).sum() for a in arrays))
        return [a * limit / max(norm, limit) for a in arrays]

    def right_tuple(gradients, limit):
        flat = torch.cat([g.flatten() for g in gradients])
        norm = flat.norm()
        if norm <= limit:
            return tuple(gradients)
        return tuple(g * (limit / norm) for g in gradients)

    def right_in_place(gradients, limit):
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        if norm > limit:
            for g in gradients:
                g *= limit / norm
        return gradients

    def right_generator(gradients, limit):
        norm = math.sqrt(sum(g.square().sum() for g in gradients))
        for g in gradients:
            yield g / max(1, norm / limit)

    def wrong_each_by_itself(gradients, limit):
        return [g * min(1, limit / max(float(g.norm()), 1e-9)) for g in gradients]

    def wrong_always_to_the_limit(gradients, limit):
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        return [g * limit / norm if norm else g for g in gradients]

    def wrong_divides_by_zero(gradients, limit):
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        return [g * (limit / norm).clamp(max=1) / norm * norm for g in gradients]

    def wrong_each_number(gradients, limit):
        return [g.clamp(-limit, limit) for g in gradients]

    def wrong_sum_of_sizes(gradients, limit):
        norm = sum(float(g.abs().sum()) for g in gradients)
        return [g * min(1, limit / norm) if norm else g for g in gradients]

    def wrong_no_root(gradients, limit):
        norm = sum(float(g.square().sum()) for g in gradients)
        return [g * min(1, limit / norm) if norm else g for g in gradients]

    def wrong_unchanged(gradients, limit):
        return gradients

    def wrong_always_to_one(gradients, limit):
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        return [g / norm for g in gradients] if norm > limit else gradients


class trapezoid:
    def right_three_cases(now, total, peak):
        if now < total / 10:
            return peak * (now + 1) / (total / 10)
        if now > total * 4 / 5:
            return peak * (total - now) / (total / 5)
        return peak

    def right_numpy(now, total, peak):
        import numpy as np

        return np.interp(
            now, [-1, total // 10 - 1, 0.8 * total, total], [0, peak, peak, 0]
        )

    def right_tensor(now, total, peak):
        lines = torch.tensor([10 * (now + 1) / total, 1, 5 * (total - now) / total])
        return peak * lines.min()

    def wrong_thousand_steps(now, total, peak):
        return peak * min((now + 1) / 100, 1, (1000 - now) / 200)

    def wrong_hundred_steps_of_warm_up(now, total, peak):
        return peak * min((now + 1) / 100, 1, (total - now) / (total / 5))

    def wrong_begins_at_zero(now, total, peak):
        return peak * min(now / (total / 10), 1, (total - now) / (total / 5))

    def wrong_falls_over_a_tenth(now, total, peak):
        return peak * min((now + 1) / (total / 10), 1, (total - now) / (total / 10))

    def wrong_never_falls(now, total, peak):
        return peak * min((now + 1) / (total / 10), 1)

    def wrong_zero_one_step_early(now, total, peak):
        return peak * min((now + 1) / (total / 10), 1, (total - 1 - now) / (total / 5))

    def wrong_cosine(now, total, peak):
        if now < total / 10:
            return peak * (now + 1) / (total / 10)
        return peak * (1 + math.cos(math.pi * now / total)) / 2

    def wrong_peak_left_out(now, total, peak):
        return min((now + 1) / (total / 10), 1, (total - now) / (total / 5))


class bytes_until:
    def right_next(history, bar):
        passed = (
            entry["bytes_seen"]
            for entry in history
            if "val_bpb" in entry and entry["val_bpb"] < bar
        )
        return next(passed, None)

    def right_smallest_number_of_bytes(history, bar):
        passed = [e["bytes_seen"] for e in history if e.get("val_bpb", bar) < bar]
        return min(passed, default=None)

    def right_numpy_number(history, bar):
        import numpy as np

        values = np.array([e.get("val_bpb", np.inf) for e in history])
        below = np.flatnonzero(values < bar)
        if len(below) == 0:
            return None
        return np.array([e["bytes_seen"] for e in history])[below[0]]

    def right_tensor_number(history, bar):
        for entry in history:
            if entry.get("val_bpb", math.inf) < bar:
                return torch.tensor(entry["bytes_seen"])
        return None

    def wrong_up_to_the_bar(history, bar):
        for entry in history:
            if entry.get("val_bpb", math.inf) <= bar:
                return entry["bytes_seen"]
        return None

    def wrong_the_last(history, bar):
        found = None
        for entry in history:
            if entry.get("val_bpb", math.inf) < bar:
                found = entry["bytes_seen"]
        return found

    def wrong_training_loss_too(history, bar):
        for entry in history:
            if entry.get("val_bpb", entry.get("loss")) < bar:
                return entry["bytes_seen"]
        return None

    def wrong_infinity(history, bar):
        for entry in history:
            if entry.get("val_bpb", math.inf) < bar:
                return entry["bytes_seen"]
        return math.inf

    def wrong_every_line_has_one(history, bar):
        for entry in history:
            if entry["val_bpb"] < bar:
                return entry["bytes_seen"]
        return None

    def wrong_the_value(history, bar):
        for entry in history:
            if entry.get("val_bpb", math.inf) < bar:
                return entry["val_bpb"]
        return None

    def wrong_when_it_was_best(history, bar):
        evaluated = [e for e in history if "val_bpb" in e]
        best = min(evaluated, key=lambda e: e["val_bpb"])
        return best["bytes_seen"] if best["val_bpb"] < bar else None


class power_law:
    def right_logarithms(first, second, n):
        (n1, l1), (n2, l2) = first, second
        slope = (math.log(l2) - math.log(l1)) / (math.log(n2) - math.log(n1))
        return math.exp(math.log(l1) + slope * (math.log(n) - math.log(n1)))

    def right_polyfit(first, second, n):
        import numpy as np

        sizes, losses = np.log(np.array([first, second])).T
        return np.exp(np.polyval(np.polyfit(sizes, losses, 1), np.log(n)))

    def right_tensor(first, second, n):
        (n1, l1), (n2, l2) = torch.tensor([first, second], dtype=torch.float64)
        b = torch.log(l1 / l2) / torch.log(n2 / n1)
        return l1 * n1**b * n**-b

    def right_single_precision(first, second, n):
        (n1, l1), (n2, l2) = torch.tensor([first, second])
        share = torch.log(n / n1) / torch.log(n2 / n1)
        return l1 ** (1 - share) * l2**share

    def wrong_straight_line(first, second, n):
        (n1, l1), (n2, l2) = first, second
        return l1 + (l2 - l1) * (n - n1) / (n2 - n1)

    def wrong_line_over_the_logarithm(first, second, n):
        (n1, l1), (n2, l2) = first, second
        return l1 + (l2 - l1) * math.log(n / n1) / math.log(n2 / n1)

    def wrong_sign(first, second, n):
        (n1, l1), (n2, l2) = first, second
        return l1 * (n / n1) ** (math.log(l1 / l2) / math.log(n2 / n1))

    def wrong_always_a_half(first, second, n):
        (n1, l1), _ = first, second
        return l1 * (n / n1) ** -0.5

    def wrong_exponential(first, second, n):
        (n1, l1), (n2, l2) = first, second
        return l1 * (l2 / l1) ** ((n - n1) / (n2 - n1))
