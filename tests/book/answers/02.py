"""Answers to the exercises of chapter 02; the names of the chapter are there."""
# ruff: noqa: F821


class documents_of:
    def right_tuple(stream):
        *pieces, _ = stream.split(b"\0")
        return tuple(piece.decode(errors="replace") for piece in pieces)

    def right_decodes_first(stream):
        return stream.decode("utf-8", errors="replace").split("\0")[:-1]

    def right_generator(stream):
        while stream:
            piece, _, stream = stream.partition(b"\0")
            yield piece.decode("utf-8", "replace")

    def right_array(stream):
        pieces = stream.split(b"\0")[:-1]
        return np.array([piece.decode("utf-8", "replace") for piece in pieces])

    def wrong_strict(stream):
        return [piece.decode("utf-8") for piece in stream.split(b"\0")[:-1]]

    def wrong_ignores_what_is_broken(stream):
        pieces = stream.split(b"\0")[:-1]
        return [piece.decode("utf-8", errors="ignore") for piece in pieces]

    def wrong_drops_empty_documents(stream):
        pieces = stream.split(b"\0")
        return [piece.decode(errors="replace") for piece in pieces if piece]

    def wrong_loses_an_empty_end(stream):
        pieces = stream.rstrip(b"\0").split(b"\0") if stream else []
        return [piece.decode(errors="replace") for piece in pieces]

    def wrong_one_too_many(stream):
        return [piece.decode(errors="replace") for piece in stream.split(b"\0")]

    def wrong_latin(stream):
        return [piece.decode("latin-1") for piece in stream.split(b"\0")[:-1]]

    def wrong_bytes(stream):
        return stream.split(b"\0")[:-1]


class windows:
    def right_lists(stream, starts, context):
        x = [list(stream[s : s + context]) for s in starts]
        targets = [list(stream[s + 1 : s + context + 1]) for s in starts]
        return [x, targets]

    def right_tensors(stream, starts, context):
        places = torch.tensor(starts)[:, None] + torch.arange(context)
        stream = torch.tensor(stream)
        return stream[places], stream[places + 1]

    def right_sliding_view(stream, starts, context):
        rows = np.lib.stride_tricks.sliding_window_view(stream, context + 1)[starts]
        return rows[:, :-1], rows[:, 1:]

    def right_one_array_of_both(stream, starts, context):
        places = np.array(starts)[:, None] + np.arange(context)
        return np.stack([stream[places], stream[places + 1]])

    def wrong_one_start_for_all_rows(stream, starts, context):
        row = stream[starts[0] : starts[0] + context + 1]
        rows = np.stack([row for _ in starts])
        return rows[:, :-1], rows[:, 1:]

    def wrong_one_start_for_the_targets(stream, starts, context):
        x = np.stack([stream[s : s + context] for s in starts])
        target = stream[starts[0] + 1 : starts[0] + context + 1]
        return x, np.stack([target] * len(starts))

    def wrong_targets_are_x(stream, starts, context):
        rows = np.stack([stream[s : s + context] for s in starts])
        return rows, rows

    def wrong_targets_behind(stream, starts, context):
        rows = np.stack([stream[s : s + context + 1] for s in starts])
        return rows[:, 1:], rows[:, :-1]

    def wrong_sorted_starts(stream, starts, context):
        rows = np.stack([stream[s : s + context + 1] for s in sorted(starts)])
        return rows[:, :-1], rows[:, 1:]

    def wrong_one_byte_short(stream, starts, context):
        rows = np.stack([stream[s : s + context] for s in starts])
        return rows[:, :-1], rows[:, 1:]

    def wrong_four_bytes_always(stream, starts, context):
        rows = np.stack([stream[s : s + 5] for s in starts])
        return rows[:, :-1], rows[:, 1:]


class primed:
    def right_in_steps(press, study, text):
        before, after = len(press(study)), len(press(study + text))
        return (after - before) / len(text) * 8

    def right_numpy(press, study, text):
        sizes = np.array([len(press(study)), len(press(study + text))])
        return 8 * np.diff(sizes)[0] / len(text)

    def right_tensor(press, study, text):
        added = torch.tensor(len(press(study + text))) - len(press(study))
        return 8 * added / len(text)

    def right_fraction(press, study, text):
        from fractions import Fraction

        return Fraction(8 * (len(press(study + text)) - len(press(study))), len(text))

    def wrong_counts_the_study_text(press, study, text):
        return 8 * len(press(study + text)) / len(study + text)

    def wrong_all_over_the_text(press, study, text):
        return 8 * len(press(study + text)) / len(text)

    def wrong_difference_over_both(press, study, text):
        added = len(press(study + text)) - len(press(study))
        return 8 * added / len(study + text)

    def wrong_did_not_study(press, study, text):
        return 8 * len(press(text)) / len(text)

    def wrong_takes_study_as_it_is(press, study, text):
        return 8 * (len(press(study + text)) - len(study)) / len(text)

    def wrong_bytes(press, study, text):
        return (len(press(study + text)) - len(press(study))) / len(text)

    def wrong_order(press, study, text):
        return 8 * (len(press(text + study)) - len(press(study))) / len(text)


class blended:
    def right_from_the_short_end(piece, counts):
        p = 1 / 256
        for n in range(1, len(piece) + 1):
            end = piece[-n:]
            p = (counts[n][end] + 2 * p) / (counts[n - 1][end[:-1]] + 2)
        return p

    def right_numpy(piece, counts):
        if not piece:
            return np.float64(1 / 256)
        seen = np.float64(counts[len(piece)][piece])
        context = counts[len(piece) - 1][piece[:-1]]
        return (seen + 2 * blended(piece[1:], counts)) / (context + 2)

    def right_tensor(piece, counts):
        p = torch.tensor(1 / 256, dtype=torch.float64)
        for n in range(1, len(piece) + 1):
            end = piece[-n:]
            p = (counts[n][end] + 2 * p) / (counts[n - 1][end[:-1]] + 2)
        return p

    def wrong_does_not_ask_further(piece, counts):
        n = len(piece)
        if n == 0:
            return 1 / 256
        return (counts[n][piece] + 2 / 256) / (counts[n - 1][piece[:-1]] + 2)

    def wrong_drops_the_last_byte(piece, counts):
        n = len(piece)
        if n == 0:
            return 1 / 256
        shorter = blended(piece[:-1], counts)
        return (counts[n][piece] + 2 * shorter) / (counts[n - 1][piece[:-1]] + 2)

    def wrong_context_is_the_end(piece, counts):
        n = len(piece)
        if n == 0:
            return 1 / 256
        shorter = blended(piece[1:], counts)
        return (counts[n][piece] + 2 * shorter) / (counts[n - 1][piece[1:]] + 2)

    def wrong_asks_once(piece, counts):
        n = len(piece)
        if n == 0:
            return 1 / 256
        shorter = probability(piece[1:], counts) if n > 1 else 1 / 256
        return (counts[n][piece] + 2 * shorter) / (counts[n - 1][piece[:-1]] + 2)

    def wrong_one_instead_of_two(piece, counts):
        n = len(piece)
        if n == 0:
            return 1 / 256
        shorter = blended(piece[1:], counts)
        return (counts[n][piece] + shorter) / (counts[n - 1][piece[:-1]] + 1)
