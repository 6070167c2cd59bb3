"""How a conversation becomes bytes.

    USER: What is the capital of France?
    TILELLI: Paris.<byte 0>

A turn is a prompt, an answer and byte 0; turns follow each other without a gap. The two
role tags and byte 0 are all the structure there is, so whatever a reader types must not
be able to add any: clean_question sees to that.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..errors import DataError
from ..model.network import IGNORE

# The context has 256 bytes: 80 are left for the answer.
MAX_QUESTION = 160
MAX_PROMPT = 176  # and 16 bytes of "USER: " and "\nTILELLI: "
MAX_ROW = 256
END = b"\0"

# Also where blanks stand between the letters: they may have been line breaks.
ROLE_TAG = re.compile(r"(u\s*s\s*e\s*r|t\s*i\s*l\s*e\s*l\s*l\s*i)(\s*):", re.IGNORECASE)


class Cleaned(NamedTuple):
    """A question that is safe to put into the template, and what was done to it."""

    text: str
    notes: tuple[str, ...]


def is_break(character: str) -> bool:
    """Whether a character could end a line, or is none that one sees."""
    # Cc: line breaks, tabs, byte 0 and their like; Zl and Zp: U+2028 and U+2029
    return unicodedata.category(character) in ("Cc", "Zl", "Zp")


def defuse(text: str) -> tuple[str, tuple[str, ...]]:
    """Takes from `text` all that could be mistaken for structure: control characters
    and line breaks become spaces, as all other blanks do, one for several; half a
    surrogate pair becomes U+FFFD, and the colon of a role tag becomes a comma. Returns
    the text, and a note for each of these.
    """
    notes = []
    whole = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    if whole != text:
        notes.append("characters that are not valid were replaced")
    trimmed = whole.strip()  # blanks at the ends are not worth a note
    in_line = "".join(" " if is_break(c) else c for c in trimmed)
    plain = " ".join(in_line.split())
    if in_line != trimmed:
        notes.append("line breaks and control characters became spaces")
    elif plain != trimmed:
        notes.append("several blanks, or unusual ones, became a space")
    safe = ROLE_TAG.sub(r"\1\2,", plain)
    if safe != plain:
        notes.append("role tags lost their colon")
    return safe, tuple(notes)


def clean_question(text: str) -> Cleaned:
    """Makes a question fit for the template, whatever it holds.

    It has no byte 0, no control character, no line break and no role tag, and at most
    160 bytes: of a longer one the last 160 are kept, from the first whole character on.
    `notes` says what was changed, in words for the reader; it is empty where only
    blanks at the ends were.
    """
    safe, notes = defuse(text)
    data = safe.encode("utf-8")
    if len(data) > MAX_QUESTION:
        # "ignore" drops the rest of a character that the cut went through
        safe = data[-MAX_QUESTION:].decode("utf-8", errors="ignore").lstrip()
        notes += (f"only the last {MAX_QUESTION} bytes of the question were kept",)
    if not safe:
        notes += ("the question is empty",)
    return Cleaned(safe, notes)


def prompt_bytes(question: str) -> bytes:
    """The bytes before an answer, with the question cleaned: at most 176."""
    return f"USER: {clean_question(question).text}\nTILELLI: ".encode()


def answer_bytes(answer: str) -> bytes:
    """The bytes of an answer, defused as a question is, and its byte 0."""
    return defuse(answer)[0].encode() + END


def encode_prompt(
    question: str, history: Sequence[tuple[str, str]] = (), context: int = MAX_ROW
) -> Tensor:
    """What the model reads before it answers: byte ids, shape (T,), T at most 176.

    `history` holds earlier turns as (question, answer), the oldest first. The oldest
    whole turns are dropped until the rest and the prompt fit, also where a model sees
    fewer bytes at once, its `context`. Answers are cleaned too: they may come from
    anywhere.
    """
    kept = prompt_bytes(question)
    for earlier, answer in reversed(history):
        longer = prompt_bytes(earlier) + answer_bytes(answer) + kept
        if len(longer) > min(MAX_PROMPT, context):
            break  # an older one that fits would stand before the wrong turn
        kept = longer
    return torch.tensor(ByteTokenizer().encode(kept), dtype=torch.long, device="cpu")


def row_length(turns: Sequence[tuple[str, str]]) -> int:
    """How many bytes a conversation has in the template."""
    return sum(len(prompt_bytes(q)) + len(answer_bytes(a)) for q, a in turns)


def encode_row(turns: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """One conversation to learn from: (ids, targets), both of shape (bytes - 1,).

    The target at position i is byte i + 1, where that byte belongs to an answer or is
    the byte 0 that ends one, and -100 elsewhere: the model learns to answer, not to
    ask. The last byte 0 is a target and never an input. A long question is cut to its
    last 160 bytes, as when it is asked.

    Raises DataError for no turns at all, and for more than 256 bytes.
    """
    if not turns:
        raise DataError("a conversation without turns", "give at least one turn")
    data = b""
    is_answer: list[bool] = []
    for question, answer in turns:
        prompt, reply = prompt_bytes(question), answer_bytes(answer)
        data += prompt + reply
        is_answer += [False] * len(prompt) + [True] * len(reply)
    if len(data) > MAX_ROW:
        raise DataError(
            f"a conversation of {len(data)} bytes does not fit the {MAX_ROW} of a row",
            "shorten it, or leave out its first turns",
        )
    ids = ByteTokenizer().encode(data)
    everything = torch.tensor(ids, dtype=torch.long, device="cpu")
    counts = torch.tensor(is_answer, device="cpu")
    targets = everything.masked_fill(~counts, IGNORE)
    return everything[:-1], targets[1:]
