"""Questions whose answers are worked out: arithmetic, counting and spelling.

The phrasings, the words and what stands in for an unknown word or number are data
(facts/generated.yaml). An answer holds digits and letters alone.
"""

import random
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from .facts import items, lines, read_yaml

Slots = dict[str, str]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Worked(NamedTuple):
    """What fills the slots of a phrasing, and the answer that follows from it."""

    slots: Slots
    answer: str


class Phrasings(NamedTuple):
    """The file: phrasings of each kind and use, words, and what is unknown."""

    kinds: Mapping[str, Mapping[str, tuple[str, ...]]]
    words: tuple[str, ...]
    unknown: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


@cache
def load_phrasings() -> Phrasings:
    """Reads generated.yaml once."""
    data = read_yaml("generated")
    # these two are taken out: what remains are the kinds of questions
    words = tuple(data.pop("words").split())
    unknown = {name: split_at_bar(text) for name, text in data.pop("unknown").items()}
    kinds = {
        kind: {use: lines(text) for use, text in uses.items()}
        for kind, uses in data.items()
    }
    return Phrasings(kinds, words, unknown)


def split_at_bar(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What may occur in training, and what may not: "a, b | c"."""
    shown, _, hidden = text.partition("|")
    return items(shown), items(hidden)


def adding(rng: random.Random) -> Worked:
    """Sums up to 20, and one in five of whole tens up to 100."""
    if rng.random() < 0.2:
        x = 10 * rng.randint(1, 9)
        y = 10 * rng.randint(1, 10 - x // 10)  # the sum is 100 at most
    else:
        x = rng.randint(0, 20)
        y = rng.randint(0, 20 - x)
    return Worked({"x": str(x), "y": str(y)}, f"{x + y}.")


def subtracting(rng: random.Random) -> Worked:
    """Differences that are not negative, of numbers up to 20 or of whole tens."""
    if rng.random() < 0.2:
        x = 10 * rng.randint(1, 10)
        y = 10 * rng.randint(1, x // 10)
    else:
        x = rng.randint(0, 20)
        y = rng.randint(0, x)
    return Worked({"x": str(x), "y": str(y)}, f"{x - y}.")


def doubling(rng: random.Random) -> Worked:
    """Twice a number up to 20, or a whole ten up to 50."""
    # from 30 on, since 10 and 20 come as numbers up to 20
    x = 10 * rng.randint(3, 5) if rng.random() < 0.1 else rng.randint(0, 20)
    return Worked({"x": str(x)}, f"{2 * x}.")


def comparing(rng: random.Random) -> Worked:
    """The larger of two numbers up to 100."""
    top = 20 if rng.random() < 0.6 else 100
    x, y = rng.sample(range(top + 1), 2)  # two different ones
    return Worked({"x": str(x), "y": str(y)}, f"{max(x, y)}.")


def next_number(rng: random.Random) -> Worked:
    """The number after one up to 99."""
    x = rng.randint(0, 99)
    return Worked({"x": str(x)}, f"{x + 1}.")


def number_before(rng: random.Random) -> Worked:
    """The number before one up to 100."""
    x = rng.randint(1, 100)
    return Worked({"x": str(x)}, f"{x - 1}.")


def counting(rng: random.Random) -> Worked:
    """All numbers from one to another, up to 20: three to eight of them."""
    x = rng.randint(0, 18)
    y = rng.randint(x + 2, min(x + 7, 20))
    numbers = ", ".join(str(number) for number in range(x, y + 1))
    return Worked({"x": str(x), "y": str(y)}, f"{numbers}.")


def any_word(rng: random.Random) -> str:
    """One of the words of the file."""
    return rng.choice(load_phrasings().words)


def spelling(rng: random.Random) -> Worked:
    """A word, letter by letter: "c-a-t."."""
    word = any_word(rng)
    return Worked({"w": word}, "-".join(word) + ".")


def first_letter(rng: random.Random) -> Worked:
    """The letter a word begins with."""
    word = any_word(rng)
    return Worked({"w": word}, f"{word[0]}.")


def last_letter(rng: random.Random) -> Worked:
    """The letter a word ends with."""
    word = any_word(rng)
    return Worked({"w": word}, f"{word[-1]}.")


def how_many_letters(rng: random.Random) -> Worked:
    """The length of a word."""
    word = any_word(rng)
    return Worked({"w": word}, f"{len(word)}.")


def has_the_letter(rng: random.Random) -> Worked:
    """Whether a letter is in a word: yes as often as no."""
    word = any_word(rng)
    if rng.random() < 0.5:
        return Worked({"w": word, "l": rng.choice(word)}, "Yes.")
    missing = [letter for letter in LETTERS if letter not in word]
    return Worked({"w": word, "l": rng.choice(missing)}, "No.")


WORKERS: dict[str, Callable[[random.Random], Worked]] = {
    "adding": adding,
    "subtracting": subtracting,
    "doubling": doubling,
    "comparing": comparing,
    "next number": next_number,
    "number before": number_before,
    "counting": counting,
    "spelling": spelling,
    "first letter": first_letter,
    "last letter": last_letter,
    "how many letters": how_many_letters,
    "has the letter": has_the_letter,
}


def put(phrasing: str, slots: Slots) -> str:
    """Fills the slots, and begins with a capital."""
    text = phrasing.format_map(slots)
    return text[0].upper() + text[1:]


def hide(phrasing: str, slots: Slots, rng: random.Random, *, held: bool) -> str:
    """The same question about something that nobody told: "How do you spell my name?".

    One number, or the word, is replaced. `held` picks a stand-in that training never
    shows.
    """
    slots = dict(slots)
    is_word = "w" in slots
    # as an index False is 0, what training shows, and True is 1, what it does not
    stand_ins = load_phrasings().unknown["word" if is_word else "number"][held]
    numbers = [slot for slot in ("x", "y") if slot in slots]
    slots["w" if is_word else rng.choice(numbers)] = rng.choice(stand_ins)
    # "the word my name" is no English
    return put(re.sub(r"the word \{w\}", "{w}", phrasing), slots)
