"""Inference: from logits to bytes, one at a time, with states instead of re-reading the
window for each.
"""

import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .errors import GenerationError, TokenError
from .tokenizer import ByteTokenizer


def window_start(n: int, context: int = 256) -> int:
    """Where the window starts when n bytes have been read: when it is full, its last
    half is kept.

    >>> [window_start(n) for n in (256, 257, 384, 385, 513)]
    [0, 128, 128, 256, 384]
    """
    half = context // 2
    return 0 if n <= context else half * math.ceil((n - context) / half)


@dataclass
class State:
    """Between two bytes: the blocks' memories and the bytes of the window, from which
    they can be built again.
    """

    blocks: Any
    window: Tensor  # (B, context) long
    length: int = field(default=0)


def step(lm, x_t: Tensor, state: State) -> Tensor:
    """One more byte of each row, (B,) -> logits (B, 256). A full window keeps its last
    half, renumbered from 0.
    """
    context = state.window.shape[1]
    if state.length == context:
        return prefill(
            lm,
            torch.cat([state.window[:, context - context // 2 :], x_t[:, None]], dim=1),
            state,
        )
    state.window.select(1, state.length).copy_(x_t)
    state.length += 1
    return lm.step_blocks(x_t, state.length - 1, state.blocks)


def prefill(lm, ids: Tensor, state: State) -> Tensor:
    """Reads (B, n) bytes at once, from position 0: logits of the next (B, 256), and
    `state` as n steps leave it.
    """
    h, _ = lm.hidden(ids, state.blocks)
    state.length = ids.shape[1]
    state.window[:, : state.length] = ids
    return lm.logits(h[:, -1])


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


@torch.no_grad()
def read(lm, ids: Sequence[int], rows: int) -> tuple[State, Tensor]:
    """Reads prompts of equal length, (rows * n ids), as the context rule has it: the
    state and logits (rows, 256).
    """
    context = lm.config.model.context
    state = lm.new_state(rows)
    prompt = torch.tensor(list(ids), dtype=torch.long, device=state.window.device).view(
        rows, -1
    )
    if prompt.shape[1] == 0:
        prompt = prompt.new_zeros(rows, 1)  # an empty prompt is an implied byte 0
    return state, prefill(
        lm, prompt[:, window_start(prompt.shape[1], context) :], state
    )


@torch.inference_mode()
def stream(lm, ids: Sequence[int], sampling: Sampling, row: int = 0) -> Iterator[int]:
    """Yields the new bytes of one prompt as they are drawn, without the stop byte."""
    if isinstance(ids, str):
        raise TokenError(
            "a prompt is bytes, and this one is text",
            "encode it first: ByteTokenizer().encode(text)",
        )
    ByteTokenizer().to_bytes(ids)  # a clear error for anything that is not a byte
    generator = sampling.generator(row)
    state, byte = None, 0
    for _ in range(sampling.max_new):
        if state is None:
            state, logits = read(lm, ids, 1)
            x = state.window.new_empty(1)
        else:
            logits = lm.step(x.fill_(byte), state)
        byte = draw(logits[0], sampling, generator)
        if byte in sampling.stop:
            return
        yield byte


def generate(lm, ids: Sequence, sampling: Sampling) -> list:
    """One prompt (ids) -> prompt + new bytes. A list of prompts -> a list of those;
    equal lengths share their steps.
    """
    if len(ids) == 0 or not isinstance(ids[0], (list, tuple, bytes)):
        return [*ids, *stream(lm, ids, sampling)]
    by_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(ids):
        ByteTokenizer().to_bytes(prompt)
        by_length.setdefault(len(prompt), []).append(row)
    out = [list(prompt) for prompt in ids]
    for rows in by_length.values():
        generate_rows(lm, out, rows, sampling)
    return out


@torch.inference_mode()
def generate_rows(
    lm, out: list[list[int]], rows: list[int], sampling: Sampling
) -> None:
    """Appends new bytes to out[row] for the given rows, whose prompts have equal
    length.
    """
    if sampling.max_new == 0:
        return
    generators = [sampling.generator(row) for row in rows]
    running = [True] * len(rows)
    state, logits = read(lm, [byte for row in rows for byte in out[row]], len(rows))
    for i in range(sampling.max_new):
        drawn = [
            draw(logits[j], sampling, generators[j]) if running[j] else 0
            for j in range(len(rows))
        ]
        running = [
            alive and byte not in sampling.stop
            for alive, byte in zip(running, drawn, strict=True)
        ]
        for row, byte, alive in zip(rows, drawn, running, strict=True):
            if alive:
                out[row].append(byte)
        if not any(running):
            return
        if i + 1 < sampling.max_new:
            logits = lm.step(torch.tensor(drawn, device=state.window.device), state)


@torch.no_grad()
def score(lm, text: str | bytes, sliding: bool = False) -> float:
    """Bits per byte of byte 0 + text: in chunks whose context begins with the chunk, or
    by the sliding context rule.

    Raises TokenError for an empty text.
    """
    ids = ByteTokenizer().encode(text)
    if not ids:
        raise TokenError(
            "an empty text has no bytes to score", "pass at least one byte"
        )
    nats = (
        log_probs(lm, torch.tensor([0, *ids], dtype=torch.long), sliding).sum().item()
    )
    return -nats / math.log(2) / len(ids)


@torch.no_grad()
def log_probs(lm, stream: Tensor, sliding: bool = True, batch: int = 64) -> Tensor:
    """Log-probabilities in nats, float64 (n,), of stream[1:] given what comes before:
    stream (n+1,) long.

    sliding: by the context rule, each byte sees 129 to 256 before it (once there are
    that many). Otherwise in chunks.
    """
    context = lm.config.model.context
    stride = context // 2 if sliding else context
    n = len(stream) - 1
    starts = (
        list(range(0, max(n - context, 0) + stride, stride))
        if sliding
        else list(range(0, n, stride))
    )
    out = torch.empty(n, dtype=torch.float64)
    for first in range(0, len(starts), batch):
        group = starts[first : first + batch]
        windows = torch.zeros(len(group), context, dtype=torch.long)
        for row, start in zip(windows, group, strict=True):
            piece = stream[start : min(start + context, n)]
            # what follows the end is never read: the model is causal
            row[: len(piece)] = piece
        logits = lm(windows.to(lm.device))
        all_logp = (
            logits.log_softmax(
                -1, dtype=torch.promote_types(logits.dtype, torch.float32)
            )
            .double()
            .cpu()
        )
        for logp, start in zip(all_logp, group, strict=True):
            # a later window predicts only what the one before it did not
            skip = context - stride if start else 0
            targets = stream[start + skip + 1 : min(start + context, n) + 1]
            found = logp[skip : skip + len(targets)].gather(1, targets[:, None])[:, 0]
            out[start + skip : start + skip + len(targets)] = found
    return out


class Decoder:
    """What a model does with its logits. It has `config`, `device`, its own
    `sampling_defaults`, and one byte at a time: `new_state`, `step_blocks`; many bytes:
    `hidden`, `logits`, and itself called on (B, T).
    """

    def writer(self) -> "Decoder":
        """What `generate` and `stream` write with: this, unless there is a faster form
        that says the same.
        """
        return self

    @torch.inference_mode()
    def step(self, x_t: Tensor, state: State) -> Tensor:
        """The next byte of each row, (B,) long -> logits (B, 256). Updates `state` in
        place, and re-reads when full.
        """
        return step(self, x_t, state)

    def sampling(
        self,
        max_new: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[int] = (0,),
    ) -> Sampling:
        """The settings as given, and the model's own for those that are None: what
        `sampling_defaults` says, else 128 bytes, temperature 0.8 and no limits.

        To draw from all bytes with a model that has a limit, give top_k=256 or top_p=1.
        """
        given = {
            "max_new": max_new,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        return Sampling(**{**self.sampling_defaults, **chosen}, seed=seed, stop=stop)

    def generate(
        self,
        ids: Sequence[int],
        max_new: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[int] = (0,),
    ) -> list[int]:
        """The prompt and up to `max_new` bytes after it. A list of prompts gives a list
        of outputs. None stands for the model's own setting: see `sampling`.

        A model on a CPU first makes a form of itself that is faster, and keeps it: as
        much memory again as its weights have. See `TilelliLM.writer`.
        """
        sampling = self.sampling(max_new, temperature, top_k, top_p, seed, stop)
        return generate(self.writer(), ids, sampling)

    def stream(
        self,
        ids: Sequence[int],
        max_new: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[int] = (0,),
    ) -> Iterator[int]:
        """The same for one prompt, yielding each new byte as soon as it is drawn."""
        sampling = self.sampling(max_new, temperature, top_k, top_p, seed, stop)
        return stream(self.writer(), ids, sampling)

    def score(self, text: str | bytes, sliding: bool = False) -> float:
        """Bits per byte of a text after an implied byte 0: in chunks of the context, or
        with a sliding window.
        """
        return score(self, text, sliding)

    def log_probs(self, stream: Tensor, sliding: bool = True) -> Tensor:
        """Log-probabilities in nats, float64 (n,), of stream[1:], given what comes
        before: stream (n+1,) long.
        """
        return log_probs(self, stream, sliding)
