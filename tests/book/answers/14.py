"""Answers to the exercises of chapter 14; the names of the chapter are there."""
# ruff: noqa: F821


class flips:
    def right_product(differences):
        from itertools import product

        ways = list(product([1, -1], repeat=len(differences)))
        sums = [
            sum(s * d for s, d in zip(way, differences, strict=True)) for way in ways
        ]
        return np.mean([abs(s) >= abs(sum(differences)) - 1e-9 for s in sums])

    def right_matrix(differences):
        n = len(differences)
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        sums = np.abs(signs @ np.array(differences, float))
        return (sums > abs(sum(differences)) - 1e-9).mean()

    def right_package(differences):
        return paired.sign_flips(differences)

    def wrong_one_sided(differences):
        from itertools import product

        ways = list(product([1, -1], repeat=len(differences)))
        sums = [
            sum(s * d for s, d in zip(way, differences, strict=True)) for way in ways
        ]
        return sum(s >= sum(differences) - 1e-9 for s in sums) / len(ways)

    def wrong_strictly_further(differences):
        from itertools import product

        ways = list(product([1, -1], repeat=len(differences)))
        sums = [
            sum(s * d for s, d in zip(way, differences, strict=True)) for way in ways
        ]
        return sum(abs(s) > abs(sum(differences)) + 1e-9 for s in sums) / len(ways)

    def wrong_counts_signs(differences):
        return 2 / 2 ** len(differences)

    def wrong_t_test(differences):
        return paired.paired_t(differences)

    def wrong_the_real_sum_has_a_sign(differences):
        sums = [0.0]
        for d in differences:
            sums = [s + d for s in sums] + [s - d for s in sums]
        real = sum(differences) - 1e-9
        return sum(abs(s) >= real for s in sums) / len(sums)


class seeds_needed:
    def right_search(difference, spread):
        n = 1
        while abs(difference) < 2.8 * spread / math.sqrt(n):
            n += 1
        return n

    def right_numpy(difference, spread):
        return np.ceil(np.square(2.8 * spread / difference))

    def right_whole_division(difference, spread):
        n = 7.84 * spread**2 / difference**2
        return int(n) + (n > int(n))

    def wrong_rounds_down(difference, spread):
        return int((2.8 * spread / difference) ** 2)

    def wrong_not_squared(difference, spread):
        return math.ceil(2.8 * spread / abs(difference))

    def wrong_half_the_power(difference, spread):
        return math.ceil((1.96 * spread / difference) ** 2)

    def wrong_upside_down(difference, spread):
        return math.ceil((2.8 * difference / spread) ** 2)


class luck:
    def right_loop(n):
        import random

        dice = random.Random(1)
        best = [min(dice.gauss(0, 1) for _ in range(n)) for _ in range(10_000)]
        return statistics.mean(best)

    def right_sorted(n):
        draws = np.sort(np.random.default_rng(3).normal(size=(20_000, n)), axis=1)
        return draws[:, 0].mean()

    def right_mirrored(n):
        draws = np.random.default_rng(2).normal(size=(20_000, n))
        return -draws.max(1).mean()

    def wrong_largest(n):
        return np.random.default_rng(0).normal(size=(20_000, n)).max(1).mean()

    def wrong_average(n):
        return np.random.default_rng(0).normal(size=(20_000, n)).mean()

    def wrong_best_of_all(n):
        return np.random.default_rng(0).normal(size=(20_000, n)).min()

    def wrong_other_axis(n):
        return np.random.default_rng(0).normal(size=(20_000, n)).min(0).mean()
