"""What the experiments of chapter 12 are trained on: rows from inside the domain, and
rows from outside of it. None of it is among the probes.
"""

import random
import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..chat.pairs import Pair, PairSets, make_pairs
from ..chat.rows import POOL
from ..chat.template import encode_prompt, encode_row
from ..errors import DataError
from ..model.network import IGNORE

ROWS = 5_000  # of each side, as published
LONGEST = 64  # bytes of a question: padding costs as much time as text
WINDOW = 80  # bytes of a row of raw text


class Lesson(NamedTuple):
    """One row to learn from."""

    ids: Tensor  # (T,) long
    targets: Tensor  # (T,) long: the next byte, or -100 where it is not learned
    asked: int  # bytes of the prompt: those that the router is trained on


class Lessons(NamedTuple):
    """Rows from inside the domain, and from outside of it (or none)."""

    inside: list[Lesson]
    outside: list[Lesson]


@cache
def taught() -> PairSets:
    """The pairs that the bundled chat models were taught with. They are made once."""
    return make_pairs(0)


@cache
def questions() -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Training pairs without earlier turns: those with an answer, those without."""
    pairs = [
        pair
        for pair in taught().train
        if not pair.history and len(pair.question.encode()) <= LONGEST
    ]
    answerable = tuple(pair for pair in pairs if pair.answerable)
    return answerable, tuple(pair for pair in pairs if not pair.answerable)


def with_answer(pair: Pair) -> Lesson:
    """A question whose answer is learned."""
    asked = len(encode_prompt(pair.question))
    return Lesson(*encode_row([(pair.question, pair.answer)]), asked)


def without_answer(question: str) -> Lesson:
    """A question in the chat template; no byte of it is a target."""
    ids = encode_prompt(question)
    return Lesson(ids, torch.full_like(ids, IGNORE), len(ids))


def raw(window: bytes, is_learned: bool) -> Lesson:
    """A window of text without any template."""
    ids = torch.tensor(list(window))
    targets = ids[1:] if is_learned else torch.full_like(ids[1:], IGNORE)
    return Lesson(ids[:-1], targets, len(ids) - 1)


def scramble(text: str, dice: random.Random) -> str:
    """The text with the letters of each word in another order."""

    def mixed(word: re.Match) -> str:
        return "".join(dice.sample(word[0], len(word[0])))

    return re.sub(r"\w+", mixed, text)


# ---- the kinds


def chat(text: bytes, dice: random.Random, rows: int) -> Lessons:
    """Questions with and without an answer, as in the fine-tuning; one side."""
    known, unknown = questions()
    return Lessons([with_answer(p) for p in dice.sample([*known, *unknown], rows)], [])


def in_domain(text: bytes, dice: random.Random, rows: int) -> Lessons:
    """Questions with an answer alone; one side."""
    return Lessons([with_answer(p) for p in dice.sample(questions()[0], rows)], [])


def semantic(text: bytes, dice: random.Random, rows: int) -> Lessons:
    """Inside: questions with an answer. Outside: questions without, in the same words
    and the same format.
    """
    outside = [without_answer(p.question) for p in dice.sample(questions()[1], rows)]
    return Lessons(in_domain(text, dice, rows).inside, outside)


def scrambled(text: bytes, dice: random.Random, rows: int) -> Lessons:
    """Inside: questions with an answer. Outside: such questions with the letters of
    each word mixed up, in the same format.
    """
    others = dice.sample(questions()[0], rows)
    outside = [without_answer(scramble(p.question, dice)) for p in others]
    return Lessons(in_domain(text, dice, rows).inside, outside)


def raw_text(text: bytes, dice: random.Random, rows: int) -> Lessons:
    """Inside: windows of plain text, without the chat's format. Outside: other windows
    with the letters of each word mixed up.
    """

    def window() -> bytes:
        start = dice.randrange(len(text) - WINDOW)
        return text[start : start + WINDOW + 1]

    inside = [raw(window(), is_learned=True) for _ in range(rows)]
    outside = []
    for _ in range(rows):
        mixed = scramble(window().decode("utf-8", "replace"), dice).encode()
        outside.append(raw(mixed[: WINDOW + 1], is_learned=False))
    return Lessons(inside, outside)


ONE_SIDED: dict[str, Callable] = {"chat": chat, "in_domain": in_domain}
TWO_SIDED: dict[str, Callable] = {
    "semantic": semantic,
    "scrambled": scrambled,
    "raw_text": raw_text,
}
LESSONS = ONE_SIDED | TWO_SIDED


def make_lessons(kind: str, text: bytes, seed: int, rows: int = ROWS) -> Lessons:
    """The rows of a kind, `rows` of each side it has; `text` is what the model was
    pretrained on. The same seed gives the same rows. Raises DataError for a text that
    is too short.
    """
    if len(text) <= WINDOW + 1:
        raise DataError(
            f"a text of {len(text)} bytes", f"give more than {WINDOW + 1}: a long one"
        )
    return LESSONS[kind](text, random.Random(f"{kind}-{seed}"), rows)


def draw(
    rows: list[Lesson], count: int, part: int, dice: torch.Generator
) -> list[Lesson]:
    """Some rows at random, of nearly equal length: of POOL times as many, sorted by
    length, one part of POOL (0 is the shortest). None of none.
    """
    if not rows:
        return []
    numbers = torch.randint(len(rows), (POOL * count,), generator=dice)
    pool = [rows[number] for number in numbers.tolist()]
    pool.sort(key=lambda row: len(row.ids))
    return pool[part * count : (part + 1) * count]
