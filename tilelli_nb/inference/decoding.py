"""Inference: from logits to bytes, one at a time, with states instead of re-reading the
window for each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..errors import TokenError
from .sampling import Sampling, draw, window_start
from .scoring import log_probs, score


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
