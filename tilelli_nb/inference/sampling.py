"""From logits to the next byte: the window that the model sees, the settings, and the
draw.
"""

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GenerationError


def window_stride(context: int) -> int:
    """How many bytes a full window drops at once: half of them. Of an odd number, the
    larger half.

    >>> [window_stride(context) for context in (256, 7, 1)]
    [128, 4, 1]
    """
    return context - context // 2


def window_start(n: int, context: int = 256) -> int:
    """Where the window starts when n bytes have been read: when it is full, its first
    half is dropped.

    >>> [window_start(n) for n in (256, 257, 384, 385, 513)]
    [0, 128, 128, 256, 384]
    """
    if n <= context:
        return 0
    stride = window_stride(context)
    return stride * math.ceil((n - context) / stride)


class Range(NamedTuple):
    """What a setting may be."""

    kind: type  # a number of this kind, from smallest to largest
    smallest: float
    largest: float
    meaning: str  # the range in words
    may_be_none: bool = False

    def holds(self, value: object) -> bool:
        """Whether the value is allowed. No range holds NaN."""
        if value is None:
            return self.may_be_none
        if not isinstance(value, self.kind):
            return False
        return self.smallest <= value <= self.largest


LARGEST_FLOAT = sys.float_info.max
SMALLEST_FLOAT = sys.float_info.min  # above 0
RANGES = {
    "max_new": Range(Integral, 0, math.inf, "0 or more bytes"),
    "temperature": Range(
        Real, 0, LARGEST_FLOAT, "0 (greedy) or more; 0.8 is a good start"
    ),
    "top_k": Range(Integral, 1, 256, "1 to 256, or None", may_be_none=True),
    "top_p": Range(
        Real, SMALLEST_FLOAT, 1, "more than 0 and at most 1, or None", may_be_none=True
    ),
    "seed": Range(Integral, 0, 2**62, "0 to 2**62, or None", may_be_none=True),
}


@dataclass(frozen=True)
class Sampling:
    """How the next byte is drawn. Raises GenerationError for a setting outside its
    range.
    """

    max_new: int = 128  # bytes at most
    temperature: float = 0.8  # 0 is greedy
    top_k: int | None = None  # only the k most probable bytes
    # only the most probable bytes that together reach p
    top_p: float | None = None
    seed: int | None = None  # None: a new one every time
    stop: Collection[int] = (0,)  # bytes that end the text; they are not part of it

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            value = getattr(self, name)
            if not allowed.holds(value):
                raise GenerationError(
                    f"{name} = {value!r}", f"{name} is {allowed.meaning}"
                )
        is_collection = isinstance(self.stop, Collection)
        if not is_collection or not all(byte in range(256) for byte in self.stop):
            raise GenerationError(
                f"stop = {self.stop!r}", "stop is a list of bytes between 0 and 255"
            )

    def generator(self, row: int) -> torch.Generator:
        """Makes the random numbers of one row. Each row of a batch has its own, so that
        it does not depend on its neighbours.
        """
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            # a large prime factor keeps the rows of neighbouring seeds apart
            generator.manual_seed((int(self.seed) * 1_000_003 + row) % 2**63)
        return generator


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (256,) of the next byte -> probabilities (256,) after temperature, top-k
    and top-p, in that order. At temperature 0 the largest has all.
    """
    if sampling.temperature == 0:
        return F.one_hot(logits.argmax(), len(logits)).double()
    logits = logits.detach().cpu().double()  # in this order: see in_float64
    # with none above 0, no temperature is too low
    logits = (logits - logits.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        kth = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < kth, -math.inf)
    p = logits.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = p.sort(descending=True, stable=True)
        # a byte stays while those before it have not reached top_p
        before = ordered.cumsum(-1) - ordered
        kept = ordered.masked_fill(before >= sampling.top_p, 0)
        p = torch.zeros_like(p).scatter(0, order, kept)  # back at their places
        p = p / p.sum()
    return p


def sample_next(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draws the next byte from logits (256,). Raises GenerationError when the largest
    is not a finite number.
    """
    if not math.isfinite(logits.max()):
        raise GenerationError(
            "the model's logits are not finite",
            "its weights hold NaN or infinity: load another one",
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits, sampling)
    # A race: with rate p, each byte is the first to arrive as often as p says. It is
    # the draw of torch.multinomial, without its checks.
    race = torch.empty_like(p).exponential_(generator=generator)
    return int((p / race).argmax())
