"""Inference: from logits to bytes, one at a time, with states instead of re-reading the
window for each.
"""

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from ..errors import GenerationError


def window_start(n: int, context: int = 256) -> int:
    """Where the window starts when n bytes have been read: when it is full, its last
    half is kept.

    >>> [window_start(n) for n in (256, 257, 384, 385, 513)]
    [0, 128, 128, 256, 384]
    """
    half = context // 2
    return 0 if n <= context else half * math.ceil((n - context) / half)


RANGES = {  # kind, smallest, largest, and what to say
    "max_new": (Integral, 0, math.inf, "0 or more bytes"),
    "temperature": (
        Real,
        0,
        sys.float_info.max,
        "0 (greedy) or more; 0.8 is a good start",
    ),
    "top_k": (Integral, 1, 256, "1 to 256, or None"),
    "top_p": (Real, sys.float_info.min, 1, "more than 0 and at most 1, or None"),
    "seed": (Integral, 0, 2**62, "0 or more, or None"),
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
        for name, (kind, low, high, meaning) in RANGES.items():
            value = getattr(self, name)
            if not (
                isinstance(value, kind)
                and low <= value <= high
                or value is None
                and "or None" in meaning
            ):
                raise GenerationError(f"{name} = {value!r}", f"{name} is {meaning}")
        if not isinstance(self.stop, Collection) or not all(
            byte in range(256) for byte in self.stop
        ):
            raise GenerationError(
                f"stop = {self.stop!r}", "stop is a list of bytes between 0 and 255"
            )

    def generator(self, row: int) -> torch.Generator:
        """Row i of a batch has its own generator, so that it does not depend on its
        neighbours.
        """
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed((self.seed * 1_000_003 + row) % 2**63)
        return generator


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (256,) of the next byte -> probabilities (256,) after temperature, top-k
    and top-p, in that order.
    """
    logits = logits.detach().to("cpu", torch.float64)
    # none above 0: no temperature is too low
    logits = (logits - logits.max()) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        logits = logits.masked_fill(
            logits < logits.topk(sampling.top_k).values[-1], -math.inf
        )
    p = logits.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = p.sort(descending=True, stable=True)
        # a byte stays while those before it have not reached top_p
        before = ordered.cumsum(-1) - ordered
        p = torch.zeros_like(p).scatter(
            0, order, ordered.masked_fill(before >= sampling.top_p, 0)
        )
        p = p / p.sum()
    return p


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next byte from logits (256,). Raises GenerationError when the largest is not
    a finite number.
    """
    if not math.isfinite(logits.max()):
        raise GenerationError(
            "the model's logits are not finite",
            "its weights hold NaN or infinity: load another one",
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits, sampling)
    # with rate p, each byte wins as often as p says
    race = torch.empty_like(p).exponential_(generator=generator)
    return int((p / race).argmax())  # the draw of torch.multinomial, without its checks
