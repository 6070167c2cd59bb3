"""Answers to the exercises of chapter 00; the names of the chapter are there."""
# ruff: noqa: F821


class continue_story:
    def right_cut_characters_of_the_text(prompt, n):
        out = lm.generate(tok.encode(prompt), max_new=n, temperature=0)
        return tok.decode(out).removeprefix(prompt)

    def right_asks_byte_by_byte(prompt, n):
        ids = torch.tensor([tok.encode(prompt)])
        for _ in range(n):
            with torch.no_grad():
                best = lm(ids)[0, -1].argmax()
            ids = torch.cat((ids, best[None, None]), 1)
        return tok.decode(ids[0, -n:].tolist())

    def right_bytes_of_python(prompt, n):
        out = lm.generate(list(prompt.encode()), max_new=n, temperature=0)
        return bytes(out[len(prompt.encode()) :]).decode(errors="replace")

    def wrong_always_e(prompt, n):
        return "e"

    def wrong_ignores_n(prompt, n):
        ids = tok.encode(prompt)
        return tok.decode(lm.generate(ids, max_new=20, temperature=0)[len(ids) :])

    def wrong_one_byte_only(prompt, n):
        ids = tok.encode(prompt)
        return tok.decode(lm.generate(ids, max_new=1, temperature=0)[len(ids) :])

    def wrong_samples(prompt, n):
        ids = tok.encode(prompt)
        return tok.decode(lm.generate(ids, max_new=n, temperature=1)[len(ids) :])

    def wrong_samples_carefully(prompt, n):
        ids = tok.encode(prompt)
        return tok.decode(lm.generate(ids, max_new=n, temperature=0.5)[len(ids) :])

    def wrong_with_the_prompt(prompt, n):
        return tok.decode(lm.generate(tok.encode(prompt), max_new=n, temperature=0))

    def wrong_counts_characters_of_the_prompt(prompt, n):
        out = lm.generate(tok.encode(prompt), max_new=n, temperature=0)
        return tok.decode(out[len(prompt) :])

    def wrong_prompt_counts_too(prompt, n):
        ids = tok.encode(prompt)
        new = max(1, n - len(ids))
        return tok.decode(lm.generate(ids, max_new=new, temperature=0)[len(ids) :])

    def wrong_counts_from_the_end(prompt, n):
        out = lm.generate(tok.encode(prompt), max_new=n, temperature=0)
        return tok.decode(out[-n:])


class bits:
    def right_numpy(probabilities):
        import numpy as np

        return -np.log2(probabilities).mean()

    def right_tensor(probabilities):
        return -torch.tensor(probabilities).log2().mean()

    def right_logarithm_of_the_product(probabilities):
        return -math.log2(math.prod(probabilities)) / len(probabilities)

    def right_loop_with_natural_logarithms(probabilities):
        total = 0
        for p in probabilities:
            total += math.log(1 / p) / math.log(2)
        return total / len(probabilities)

    def wrong_sum(probabilities):
        return sum(-math.log2(p) for p in probabilities)

    def wrong_nats(probabilities):
        return sum(-math.log(p) for p in probabilities) / len(probabilities)

    def wrong_logarithm_of_the_mean(probabilities):
        return -math.log2(sum(probabilities) / len(probabilities))

    def wrong_sign(probabilities):
        return sum(math.log2(p) for p in probabilities) / len(probabilities)

    def wrong_weighted_like_an_entropy(probabilities):
        return sum(-p * math.log2(p) for p in probabilities)


class dollars:
    def right_in_steps(total_bytes, bytes_per_s, usd_per_hour):
        seconds = total_bytes / bytes_per_s
        return usd_per_hour * (seconds / 3600)

    def right_tensor(total_bytes, bytes_per_s, usd_per_hour):
        return torch.tensor(total_bytes / bytes_per_s / 3600) * usd_per_hour

    def right_fraction(total_bytes, bytes_per_s, usd_per_hour):
        from fractions import Fraction

        return Fraction(total_bytes, bytes_per_s * 3600) * Fraction(usd_per_hour)

    def right_numpy(total_bytes, bytes_per_s, usd_per_hour):
        import numpy as np

        return np.float64(total_bytes) / (bytes_per_s * 3600) * usd_per_hour

    def wrong_only_the_price(total_bytes, bytes_per_s, usd_per_hour):
        return usd_per_hour

    def wrong_minutes(total_bytes, bytes_per_s, usd_per_hour):
        return total_bytes / bytes_per_s / 60 * usd_per_hour

    def wrong_rounded(total_bytes, bytes_per_s, usd_per_hour):
        return round(total_bytes / bytes_per_s / 3600 * usd_per_hour)

    def wrong_whole_hours(total_bytes, bytes_per_s, usd_per_hour):
        return math.ceil(total_bytes / bytes_per_s / 3600) * usd_per_hour

    def wrong_times_the_speed(total_bytes, bytes_per_s, usd_per_hour):
        return total_bytes * bytes_per_s / 3600 * usd_per_hour

    def wrong_whole_seconds(total_bytes, bytes_per_s, usd_per_hour):
        return total_bytes // bytes_per_s / 3600 * usd_per_hour

    def wrong_whole_cents(total_bytes, bytes_per_s, usd_per_hour):
        return round(total_bytes / bytes_per_s / 3600 * usd_per_hour, 2)
