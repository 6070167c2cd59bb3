"""Answers to the exercises of chapter 01; the names of the chapter are there."""
# ruff: noqa: F821


class byte_length:
    def right_from_the_smallest_up(code_point):
        if code_point <= 0x7F:
            return 1
        if code_point <= 0x7FF:
            return 2
        if code_point < 0x10000:
            return 3
        return 4

    def right_bisect(code_point):
        from bisect import bisect_left

        return 1 + bisect_left([0x7F, 0x7FF, 0xFFFF], code_point)

    def right_numpy(code_point):
        import numpy as np

        return 1 + (np.array([0x7F, 0x7FF, 0xFFFF]) < code_point).sum()

    def right_tensor(code_point):
        import torch

        return (torch.tensor([0x0, 0x80, 0x800, 0x10000]) <= code_point).sum()

    def wrong_limits_belong_to_the_next(code_point):
        return 1 + (code_point >= 0x7F) + (code_point >= 0x7FF) + (code_point >= 0xFFFF)

    def wrong_never_four(code_point):
        return 1 + (code_point > 0x7F) + (code_point > 0x7FF)

    def wrong_bits_over_eight(code_point):
        return max(1, (code_point.bit_length() + 7) // 8)

    def wrong_limit_of_two(code_point):
        return 1 + (code_point > 0x7F) + (code_point > 0xFFF) + (code_point > 0xFFFF)

    def wrong_latin_is_one(code_point):
        return 1 + (code_point > 0xFF) + (code_point > 0x7FF) + (code_point > 0xFFFF)


class unfinished:
    def right_asks_python_where_it_stops(data):
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            return len(data) - error.start
        return 0

    def right_incremental_decoder(data):
        import codecs

        decoder = codecs.getincrementaldecoder("utf-8")()
        decoder.decode(data)
        return len(decoder.getstate()[0])

    def right_what_is_lost(data):
        kept = data.decode("utf-8", errors="ignore")
        return len(data) - len(kept.encode("utf-8"))

    def right_numpy_number(data):
        import numpy as np

        for have in range(1, min(4, len(data)) + 1):
            lead = data[-have]
            if lead >> 6 != 0b10:
                wants = 1 if lead < 128 else f"{lead:08b}".index("0")
                return np.int64(have if have < wants else 0)
        return np.int64(0)

    def wrong_nothing_waits(data):
        return 0

    def wrong_only_yes_or_no(data):
        return data != data.decode("utf-8", errors="ignore").encode()

    def wrong_counts_complete_ones_too(data):
        for have in range(1, min(4, len(data)) + 1):
            if data[-have] < 128:
                return have - 1
            if data[-have] >= 0b11000000:
                return have
        return 0

    def wrong_every_character_is_two_or_four(data):
        for have in range(1, min(3, len(data)) + 1):
            byte = data[-have]
            if byte >= 0b11000000:
                wants = 4 if byte >= 0b11100000 else 2
                return have if wants > have else 0
            if byte < 128:
                return 0
        return 0

    def wrong_how_many_are_missing(data):
        for have in range(1, min(3, len(data)) + 1):
            byte = data[-have]
            if byte >= 0b11000000:
                wants = 2 + (byte >= 0b11100000) + (byte >= 0b11110000)
                return max(0, wants - have)
            if byte < 128:
                return 0
        return 0

    def wrong_looks_at_the_first_character(data):
        for place, byte in enumerate(data):
            if byte >= 0b11000000:
                wants = 2 + (byte >= 0b11100000) + (byte >= 0b11110000)
                have = len(data) - place
                return have if have < wants else 0
        return 0


class last_bytes:
    def right_ignores_what_is_broken(text, limit):
        return text.encode()[-limit:].decode(errors="ignore")

    def right_drops_characters(text, limit):
        while len(text.encode()) > limit:
            text = text[1:]
        return text

    def right_numpy_text(text, limit):
        import numpy as np

        kept = ""
        for character in reversed(text):
            if len((character + kept).encode()) > limit:
                break
            kept = character + kept
        return np.str_(kept)

    def wrong_counts_characters(text, limit):
        return text[-limit:]

    def wrong_replaces(text, limit):
        return text.encode()[-limit:].decode(errors="replace")

    def wrong_the_beginning(text, limit):
        return text.encode()[:limit].decode(errors="ignore")

    def wrong_drops_one_continuation(text, limit):
        data = text.encode()[-limit:]
        if data and data[0] >> 6 == 0b10:
            data = data[1:]
        return data.decode(errors="replace")

    def wrong_drops_a_whole_character_always(text, limit):
        return text.encode()[-limit:].decode(errors="ignore")[1:]

    def wrong_gives_bytes(text, limit):
        return text.encode()[-limit:]

    def wrong_only_short_texts(text, limit):
        while len(text.encode()) >= limit:
            text = text[1:]
        return text

    def wrong_drops_a_replacement_of_the_text(text, limit):
        end = text.encode()[-limit:].decode(errors="replace")
        return end.lstrip("\ufffd")
