"""Bytes in, bytes out."""

import random

import pytest

from tilelli_nb import ByteTokenizer, TilelliError
from tilelli_nb.model.network import VOCAB

tok = ByteTokenizer()


def test_hello_is_its_five_bytes():
    assert tok.encode("hello") == [104, 101, 108, 108, 111]
    assert tok.decode([104, 101, 108, 108, 111]) == "hello"
    # the network knows no tokenizer, and has a number of its own
    assert tok.vocab_size == VOCAB == 256


def test_two_three_and_four_byte_characters():
    assert tok.encode("é") == [0xC3, 0xA9]
    assert tok.encode("€") == [0xE2, 0x82, 0xAC]
    assert tok.encode("🙂") == [0xF0, 0x9F, 0x99, 0x82]


def test_bytes_pass_through_and_every_byte_is_a_token():
    assert tok.encode(bytes(range(256))) == list(range(256))
    assert tok.to_bytes(range(256)) == bytes(range(256))


def test_invalid_utf8_becomes_replacement_characters():
    assert tok.decode([65, 0xFF, 66]) == "A\ufffdB"
    assert tok.decode([0xE2, 0x82]) == "\ufffd"


@pytest.mark.parametrize("bad", [256, -1, 10**9])
def test_a_token_outside_the_bytes_is_named_with_its_place(bad):
    with pytest.raises(TilelliError, match=f"token {bad} at position 2"):
        tok.decode([1, 2, bad])


def test_the_stream_holds_half_a_character_back():
    pieces = list(tok.stream(tok.encode("a€🙂")))
    assert pieces == ["a", "€", "🙂"]


def test_streams_of_random_bytes_join_to_the_decoded_text():
    rng = random.Random(0)
    for _ in range(300):
        # any byte, the first of a character, one of the others
        kinds = (0, 256), (0xC0, 0xF8), (0x80, 0xC0)
        ids = [rng.randrange(*rng.choice(kinds)) for _ in range(20)]
        assert "".join(tok.stream(ids)) == bytes(ids).decode("utf-8", errors="replace")
