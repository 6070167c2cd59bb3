"""Answers to the exercises of chapter 07; the names of the chapter are there."""
# ruff: noqa: F821


class logits_for:
    def right_numpy(target):
        logs = np.log(target)
        return logs - logs.mean()

    def right_tensor(target):
        logs = torch.tensor(target).log()
        return logs - logs.mean()

    def right_tuple(target):
        middle = math.prod(target) ** (1 / len(target))  # the geometric mean
        return tuple(math.log(part / middle) for part in target)

    def right_list_of_tensors(target):
        logs = torch.tensor(target, dtype=torch.float64).log()
        return list(logs - logs.mean())

    def wrong_not_centred(target):
        return [math.log(part) for part in target]

    def wrong_largest_is_zero(target):
        return [math.log(part / max(target)) for part in target]

    def wrong_base_two(target):
        logs = [math.log2(part) for part in target]
        return [log - sum(logs) / 3 for log in logs]

    def wrong_shares_less_a_third(target):
        return [part - 1 / 3 for part in target]

    def wrong_log_odds(target):
        odds = [math.log(part / (1 - part)) for part in target]
        return [log - sum(odds) / 3 for log in odds]


class balance_of:
    def right_loop(given):
        T, N = given.shape
        total = 0.0
        for i in range(N):
            total += float(given[:, i].sum() / T) ** 2
        return N * total - 1

    def right_numpy(given):
        use = given.numpy().mean(0)
        return len(use) * (use @ use) - 1

    def right_distance_from_even(given):
        N = given.shape[1]
        return N * (given.mean(0) - 1 / N).square().sum()

    def right_variance(given):
        return given.shape[1] ** 2 * given.mean(0).var(unbiased=False)

    def wrong_three(given):
        return 3 * given.mean(0).square().sum() - 1

    def wrong_each_byte_alone(given):
        return given.shape[-1] * given.square().sum(-1).mean() - 1

    def wrong_sum_over_bytes(given):
        return given.shape[-1] * given.sum(0).square().sum() - 1

    def wrong_nothing_taken_off(given):
        return given.shape[-1] * given.mean(0).square().sum()

    def wrong_over_the_other_side(given):
        return given.shape[-1] * given.mean(-1).square().sum() - 1

    def wrong_no_squares(given):
        return given.shape[-1] * given.mean(0).sum() - 1

    def wrong_largest_use(given):
        return given.shape[-1] * given.mean(0).max() - 1


class switch_loss:
    def right_one_hot(given):
        T, N = given.shape
        won = torch.nn.functional.one_hot(given.argmax(-1), N).float().mean(0)
        return N * won @ given.mean(0)

    def right_numpy(given):
        shares = given.numpy()
        T, N = shares.shape
        won = np.bincount(shares.argmax(1), minlength=N) / T
        return N * np.dot(won, shares.mean(0))

    def right_python_number(given):
        rows = given.tolist()
        T, N = len(rows), len(rows[0])
        total = 0.0
        for i in range(N):
            f = sum(row.index(max(row)) == i for row in rows) / T
            total += f * sum(row[i] for row in rows) / T
        return N * total

    def wrong_without_n(given):
        won = torch.bincount(given.argmax(-1), minlength=given.shape[1]) / len(given)
        return (won * given.mean(0)).sum()

    def wrong_three(given):
        won = torch.bincount(given.argmax(-1), minlength=given.shape[1]) / len(given)
        return 3 * (won * given.mean(0)).sum()

    def wrong_shares_squared(given):
        return given.shape[1] * given.mean(0).square().sum()

    def wrong_fractions_squared(given):
        won = torch.bincount(given.argmax(-1), minlength=given.shape[1]) / len(given)
        return given.shape[1] * won.square().sum()

    def wrong_counts_instead_of_fractions(given):
        won = torch.bincount(given.argmax(-1), minlength=given.shape[1])
        return given.shape[1] * (won * given.mean(0)).sum()

    def wrong_winner_of_the_average(given):
        return given.shape[1] * given.mean(0).max()

    def wrong_mean_of_the_largest_shares(given):
        return given.shape[1] * given.max(-1).values.mean()

    def wrong_takes_one_off(given):
        won = torch.bincount(given.argmax(-1), minlength=given.shape[1]) / len(given)
        return given.shape[1] * (won * given.mean(0)).sum() - 1


class arrives:
    def right_einsum(given, outputs):
        squares = torch.einsum("ptd,ptd->tp", outputs, outputs)
        lengths = given * squares.sqrt()
        return lengths / lengths.sum(1)[:, None]

    def right_numpy(given, outputs):
        lengths = given.numpy() * np.linalg.norm(outputs.numpy(), axis=-1).T
        return lengths / lengths.sum(-1, keepdims=True)

    def right_weighs_the_outputs(given, outputs):
        weighted = given.T[:, :, None] * outputs
        lengths = weighted.norm(dim=-1)
        return (lengths / lengths.sum(0)).T

    def right_lists(given, outputs):
        rows = []
        for t, shares in enumerate(given.tolist()):
            lengths = [
                share * math.hypot(*outputs[p, t].tolist())
                for p, share in enumerate(shares)
            ]
            rows.append([length / sum(lengths) for length in lengths])
        return rows

    def wrong_what_was_given(given, outputs):
        return given

    def wrong_squares_of_lengths(given, outputs):
        lengths = given * outputs.square().sum(-1).T
        return lengths / lengths.sum(-1, keepdim=True)

    def wrong_rows_do_not_sum_to_one(given, outputs):
        return given * outputs.norm(dim=-1).T

    def wrong_over_all_bytes(given, outputs):
        lengths = given * outputs.norm(dim=-1).T
        return lengths / lengths.sum(0, keepdim=True)

    def wrong_without_the_shares(given, outputs):
        lengths = outputs.norm(dim=-1).T
        return lengths / lengths.sum(-1, keepdim=True)

    def wrong_sums_of_sizes(given, outputs):
        lengths = given * outputs.abs().sum(-1).T
        return lengths / lengths.sum(-1, keepdim=True)

    def wrong_one_length_for_all_bytes(given, outputs):
        lengths = given * outputs.norm(dim=-1).mean(-1)
        return lengths / lengths.sum(-1, keepdim=True)
