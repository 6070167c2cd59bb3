"""Answers to the exercises of chapter 10; the names of the chapter are there."""
# ruff: noqa: F821


class steps_for:
    def right_floor(dollars, usd_per_hour, bytes_per_s, step_bytes):
        all_bytes = dollars / usd_per_hour * 3600 * bytes_per_s
        return all_bytes // step_bytes

    def right_tensor(dollars, usd_per_hour, bytes_per_s, step_bytes):
        seconds = torch.tensor(3600 * dollars / usd_per_hour, dtype=torch.float64)
        return (seconds * bytes_per_s / step_bytes).long()

    def right_numpy(dollars, usd_per_hour, bytes_per_s, step_bytes):
        import numpy as np

        return np.floor(3600 * dollars / usd_per_hour * bytes_per_s / step_bytes)

    def wrong_rounds(dollars, usd_per_hour, bytes_per_s, step_bytes):
        return round(3600 * dollars / usd_per_hour * bytes_per_s / step_bytes)

    def wrong_not_whole(dollars, usd_per_hour, bytes_per_s, step_bytes):
        return 3600 * dollars / usd_per_hour * bytes_per_s / step_bytes

    def wrong_seconds_are_steps(dollars, usd_per_hour, bytes_per_s, step_bytes):
        return int(3600 * dollars / usd_per_hour)

    def wrong_speed_upside_down(dollars, usd_per_hour, bytes_per_s, step_bytes):
        return int(3600 * dollars / usd_per_hour * step_bytes / bytes_per_s)

    def wrong_whole_hours(dollars, usd_per_hour, bytes_per_s, step_bytes):
        return round(dollars / usd_per_hour) * 3600 * bytes_per_s / step_bytes + 1

    def wrong_price_multiplied(dollars, usd_per_hour, bytes_per_s, step_bytes):
        return int(3600 * dollars * usd_per_hour * bytes_per_s / step_bytes)

    def wrong_hours_are_rounded_first(dollars, usd_per_hour, bytes_per_s, step_bytes):
        hours = int(dollars / usd_per_hour)
        return int(3600 * hours * bytes_per_s / step_bytes)

    def wrong_rate_is_rounded_first(dollars, usd_per_hour, bytes_per_s, step_bytes):
        seconds = 3600 * dollars / usd_per_hour
        return int(seconds) * (bytes_per_s // step_bytes)


class spot_bill:
    def right_in_minutes(hours, usd_per_hour, times, checkpoint_minutes, start_minutes):
        minutes = 60 * hours + times * start_minutes + times * checkpoint_minutes / 2
        return minutes * usd_per_hour / 60

    def right_tensor(hours, usd_per_hour, times, checkpoint_minutes, start_minutes):
        lost = torch.tensor([checkpoint_minutes / 2, start_minutes]).sum() * times / 60
        return (hours + lost) * usd_per_hour

    def right_numpy(hours, usd_per_hour, times, checkpoint_minutes, start_minutes):
        import numpy as np

        lost = np.repeat(checkpoint_minutes / 2 + start_minutes, times) / 60
        return usd_per_hour * np.append(lost, hours).sum()

    def wrong_whole_interval(
        hours, usd_per_hour, times, checkpoint_minutes, start_minutes
    ):
        lost = times * (checkpoint_minutes + start_minutes) / 60
        return (hours + lost) * usd_per_hour

    def wrong_half_of_both(
        hours, usd_per_hour, times, checkpoint_minutes, start_minutes
    ):
        lost = times * (checkpoint_minutes + start_minutes) / 2 / 60
        return (hours + lost) * usd_per_hour

    def wrong_waiting_is_free(
        hours, usd_per_hour, times, checkpoint_minutes, start_minutes
    ):
        return (hours + times * checkpoint_minutes / 2 / 60) * usd_per_hour

    def wrong_minutes_are_hours(
        hours, usd_per_hour, times, checkpoint_minutes, start_minutes
    ):
        lost = times * (checkpoint_minutes / 2 + start_minutes)
        return (hours + lost) * usd_per_hour

    def wrong_once(hours, usd_per_hour, times, checkpoint_minutes, start_minutes):
        lost = bool(times) * (checkpoint_minutes / 2 + start_minutes) / 60
        return (hours + lost) * usd_per_hour

    def wrong_half_of_the_waiting(
        hours, usd_per_hour, times, checkpoint_minutes, start_minutes
    ):
        lost = times * (checkpoint_minutes / 2 + checkpoint_minutes / 2) / 60
        return (hours + lost) * usd_per_hour


class on_cards:
    def right_list(hours, usd_per_hour, n, efficiency):
        together = hours / n / efficiency
        return [together, hours / efficiency * usd_per_hour]

    def right_array(hours, usd_per_hour, n, efficiency):
        import numpy as np

        return hours / (n * efficiency) * np.array([1, n * usd_per_hour])

    def right_tensor(hours, usd_per_hour, n, efficiency):
        return torch.tensor([1, n * usd_per_hour]) * (hours / (n * efficiency))

    def right_named_pair(hours, usd_per_hour, n, efficiency):
        from collections import namedtuple

        Bill = namedtuple("Bill", "hours dollars")
        together = hours / (n * efficiency)
        return Bill(together, n * together * usd_per_hour)

    def wrong_one_card_is_paid(hours, usd_per_hour, n, efficiency):
        together = hours / (n * efficiency)
        return together, together * usd_per_hour

    def wrong_perfect(hours, usd_per_hour, n, efficiency):
        return hours / n, hours * usd_per_hour

    def wrong_dollars_first(hours, usd_per_hour, n, efficiency):
        together = hours / (n * efficiency)
        return together * n * usd_per_hour, together

    def wrong_only_dollars(hours, usd_per_hour, n, efficiency):
        return hours / efficiency * usd_per_hour

    def wrong_efficiency_upside_down(hours, usd_per_hour, n, efficiency):
        together = hours * efficiency / n
        return together, together * n * usd_per_hour

    def wrong_price_of_one_card_run(hours, usd_per_hour, n, efficiency):
        return hours / (n * efficiency), hours * usd_per_hour


class verdict:
    def right_means(rates, peak):
        quarter = len(rates) // 4
        first = sum(rates[:quarter]) / quarter
        last = sum(rates[-quarter:]) / quarter
        if max(rates) < 0.5 * peak:
            return "slow"
        if last < 4 / 5 * first:
            return "hot"
        return "fine"

    def right_numpy_text(rates, peak):
        import numpy as np

        r = np.array(rates)
        quarter = len(r) // 4
        hot = r[-quarter:].mean() < 0.8 * r[:quarter].mean()
        return np.where(r.max() < peak / 2, "slow", np.where(hot, "hot", "fine"))

    def right_tensor(rates, peak):
        r = torch.tensor(rates, dtype=torch.float64)
        quarter = len(r) // 4
        slow = r.max() * 2 < peak
        hot = r[-quarter:].mean() / r[:quarter].mean() < 0.8
        return "slow" if slow else "hot" if hot else "fine"

    def wrong_mean_for_slow(rates, peak):
        if sum(rates) / len(rates) < peak / 2:
            return "slow"
        quarter = len(rates) // 4
        hot = sum(rates[-quarter:]) < 0.8 * sum(rates[:quarter])
        return "hot" if hot else "fine"

    def wrong_worst_for_slow(rates, peak):
        if min(rates) < peak / 2:
            return "slow"
        quarter = len(rates) // 4
        hot = sum(rates[-quarter:]) < 0.8 * sum(rates[:quarter])
        return "hot" if hot else "fine"

    def wrong_halves(rates, peak):
        if max(rates) < peak / 2:
            return "slow"
        half = len(rates) // 2
        hot = sum(rates[half:]) < 0.8 * sum(rates[:half])
        return "hot" if hot else "fine"

    def wrong_first_and_last_rate(rates, peak):
        if max(rates) < peak / 2:
            return "slow"
        return "hot" if rates[-1] < 0.8 * rates[0] else "fine"

    def wrong_hot_comes_first(rates, peak):
        quarter = len(rates) // 4
        if sum(rates[-quarter:]) < 0.8 * sum(rates[:quarter]):
            return "hot"
        return "slow" if max(rates) < peak / 2 else "fine"

    def wrong_never_hot(rates, peak):
        return "slow" if max(rates) < peak / 2 else "fine"

    def wrong_any_fall_is_hot(rates, peak):
        if max(rates) < peak / 2:
            return "slow"
        quarter = len(rates) // 4
        return "hot" if sum(rates[-quarter:]) < sum(rates[:quarter]) else "fine"

    def wrong_best_of_the_quarters(rates, peak):
        if max(rates) < peak / 2:
            return "slow"
        quarter = len(rates) // 4
        is_hot = max(rates[-quarter:]) < 0.8 * max(rates[:quarter])
        return "hot" if is_hot else "fine"

    def wrong_three_quarters_are_allowed(rates, peak):
        if max(rates) < peak / 2:
            return "slow"
        quarter = len(rates) // 4
        first, last = sum(rates[:quarter]) / quarter, sum(rates[-quarter:]) / quarter
        return "hot" if last < 0.75 * first else "fine"
