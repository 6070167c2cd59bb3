"""Text from a model, one byte at a time: a state remembers what has been read, so that
nothing is read twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..errors import GenerationError, TokenError
from .sampling import Sampling, sample_next, window_start, window_stride
from .scoring import log_probs, score


@dataclass
class DecodeState:
    """What is kept between two bytes: what the blocks remember, and the bytes of the
    window, from which that can be built again.
    """

    blocks: Any  # a state for each block, or the FastCache of a prepared model
    window: Tensor  # (B, context) long
    length: int = 0  # how many bytes of the window have been read


def step(lm, x_t: Tensor, state: DecodeState) -> Tensor:
    """Reads one more byte of each row: (B,) long -> logits (B, 256).

    Drops the first half of a full window, and reads the rest again from position 0.
    """
    context = state.window.shape[1]
    if state.length == context:
        kept = state.window[:, window_stride(context) :]  # (B, context // 2)
        return prefill(lm, torch.cat([kept, x_t[:, None]], dim=1), state)
    position = state.length
    state.window.select(1, position).copy_(x_t)
    state.length += 1
    return lm.step_blocks(x_t, position, state.blocks)


def prefill(lm, ids: Tensor, state: DecodeState) -> Tensor:
    """Reads (B, n) bytes at once, from position 0: logits of the next (B, 256), and
    `state` as n steps leave it.
    """
    h, _ = lm.hidden(ids, state.blocks)  # (B, n, D)
    state.length = ids.shape[1]
    state.window[:, : state.length] = ids
    return lm.logits(h[:, -1])  # of the last byte alone, (B, D) -> (B, 256)


@torch.no_grad()
def prefill_prompt(lm, ids: Sequence[int], rows: int) -> tuple[DecodeState, Tensor]:
    """Reads prompts of equal length, one behind the other (rows * n ids), as far as the
    window still holds them: the state and the logits (rows, 256).
    """
    state = lm.new_state(rows)
    prompt = torch.tensor(list(ids), dtype=torch.long, device=state.window.device)
    prompt = prompt.view(rows, -1)  # (rows, n)
    length = prompt.shape[1]
    if length == 0:
        prompt = prompt.new_zeros(rows, 1)  # an empty prompt is an implied byte 0
    start = window_start(length, lm.config.model.context)
    return state, prefill(lm, prompt[:, start:], state)


@torch.inference_mode()
def stream(lm, ids: Sequence[int], sampling: Sampling, row: int = 0) -> Iterator[int]:
    """Yields the new bytes of one prompt as they are drawn, without the stop byte.

    Raises TokenError for a prompt that is text, or holds anything but bytes.
    """
    if isinstance(ids, str):
        raise TokenError(
            "a prompt is bytes, and this one is text",
            "encode it first: ByteTokenizer().encode(text)",
        )
    # a clear error for anything that is not a byte; an iterator can be read only once
    ids = ByteTokenizer().to_bytes(ids)
    if sampling.max_new == 0:
        return
    generator = sampling.generator(row)
    state, logits = prefill_prompt(lm, ids, rows=1)
    byte = sample_next(logits[0], sampling, generator)
    x_t = state.window.new_empty(1)  # (1,), filled again for each byte
    for count in range(1, sampling.max_new + 1):
        if byte in sampling.stop:
            return
        yield byte
        # the last byte need not be read: nothing follows it
        if count < sampling.max_new:
            logits = lm.step(x_t.fill_(byte), state)
            byte = sample_next(logits[0], sampling, generator)


def generate(lm, ids: Sequence, sampling: Sampling) -> list:
    """One prompt (ids) -> prompt + new bytes. A list of prompts -> a list of those;
    equal lengths share their steps.
    """
    # numbers are one prompt, and nothing at all is an empty one
    if len(ids) == 0 or not isinstance(ids[0], (list, tuple, bytes)):
        new = list(stream(lm, ids, sampling))  # raises for what is no prompt
        return [*ByteTokenizer().to_bytes(ids), *new]
    # prompts of one length lie side by side without any padding
    rows_of_length: dict[int, list[int]] = {}
    texts = [list(ByteTokenizer().to_bytes(prompt)) for prompt in ids]
    for row, prompt in enumerate(texts):
        rows_of_length.setdefault(len(prompt), []).append(row)
    for rows in rows_of_length.values():
        generate_rows(lm, texts, rows, sampling)
    return texts


@torch.inference_mode()
def generate_rows(
    lm, texts: list[list[int]], rows: list[int], sampling: Sampling
) -> None:
    """Appends the new bytes to texts[row] for each of the given rows, whose prompts
    have equal length.
    """
    if sampling.max_new == 0:
        return
    generators = [sampling.generator(row) for row in rows]
    has_ended = [False for _ in rows]
    # behind each other, as prefill_prompt takes them
    prompts = []
    for row in rows:
        prompts.extend(texts[row])
    state, logits = prefill_prompt(lm, prompts, len(rows))
    for count in range(1, sampling.max_new + 1):
        drawn = []
        for i, row in enumerate(rows):
            # a row that has ended reads zeros beside the others, and draws nothing
            byte = 0
            if not has_ended[i]:
                byte = sample_next(logits[i], sampling, generators[i])
                has_ended[i] = byte in sampling.stop
            if not has_ended[i]:
                texts[row].append(byte)
            drawn.append(byte)
        if all(has_ended) or count == sampling.max_new:
            return
        x_t = torch.tensor(drawn, device=state.window.device)  # (rows,)
        logits = lm.step(x_t, state)


class Decoder:
    """Generates and scores, for any model that can read.

    A subclass has `config`, `device` and `sampling_defaults`; for one byte at a time
    `new_state` and `step_blocks`; for many `hidden`, `logits`, and itself called on
    (B, T).
    """

    def fast_form(self) -> "Decoder":
        """Returns what `generate` and `stream` compute with: this, unless there is a
        faster form that writes the same.
        """
        return self

    @torch.inference_mode()
    def step(self, x_t: Tensor, state: DecodeState) -> Tensor:
        """Reads one more byte of each row: (B,) long -> logits (B, 256). Updates
        `state` in place; a full window is halved and read again.
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
        """Takes the settings as given, and the model's own where they are None: what
        `sampling_defaults` says, else 128 bytes, temperature 0.8 and no limits.

        To draw from all bytes with a model that has a limit, give top_k=256 or top_p=1.
        """
        given = {
            "max_new": max_new,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
        }
        for name in self.sampling_defaults:
            if name not in given:
                raise GenerationError(
                    f"sampling_defaults holds {name!r}",
                    f"its keys are {', '.join(given)}",
                )
        chosen = {name: value for name, value in given.items() if value is not None}
        settings = {**self.sampling_defaults, **chosen}  # the latter win
        return Sampling(**settings, seed=seed, stop=stop)

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
        """Writes up to `max_new` bytes after the prompt, and returns both. A list of
        prompts gives a list of outputs. None stands for the model's own setting: see
        `sampling`.

        A model on a CPU first makes a form of itself that is faster, and keeps it: see
        `TilelliLM.fast_form`. Raises TokenError for a prompt that is not bytes,
        GenerationError for settings that cannot be.
        """
        sampling = self.sampling(max_new, temperature, top_k, top_p, seed, stop)
        return generate(self.fast_form(), ids, sampling)

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
        """Yields each new byte of one prompt as soon as it is drawn. Raises as
        `generate` does.
        """
        sampling = self.sampling(max_new, temperature, top_k, top_p, seed, stop)
        return stream(self.fast_form(), ids, sampling)

    def score(self, text: str | bytes, sliding: bool = False) -> float:
        """Measures bits per byte of a text after an implied byte 0: in chunks of the
        context, or with a sliding window.
        """
        return score(self, text, sliding)

    def log_probs(self, stream: Tensor, sliding: bool = True) -> Tensor:
        """Computes the log-probabilities in nats, float64 (n,), of stream[1:], given
        what comes before: stream (n+1,) long.
        """
        return log_probs(self, stream, sliding)
