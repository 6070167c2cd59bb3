"""A conversation: a question in, an answer out byte by byte, and how sure the model was
of it.
"""

import codecs
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..chat.template import clean_question, encode_prompt
from ..data.tokenizer import ByteTokenizer
from ..errors import CheckpointError, GenerationError
from ..files import write_atomic
from .decoding import Decoder, prefill_prompt
from .sampling import Sampling, sample_next
from .scoring import in_float64

END = 0  # the byte that ends an answer
MAX_ANSWER = 80  # bytes: what a prompt of 176 leaves of the context
FIRST = 4  # bytes of an answer that decide: what comes after follows from them
REFUSAL = "I don't know."
GATE_FILE = "gate.json"


class Spoken(NamedTuple):
    """One byte of an answer, and the two largest probabilities that the model gave when
    it was drawn, before any temperature.
    """

    byte: int
    top: float
    second: float


class Reply(NamedTuple):
    """An answer, and what is known about it."""

    text: str
    spoken: list[Spoken]  # its bytes, with the one that ends it
    notes: tuple[str, ...] = ()  # what was changed in the question
    held_back: str | None = None  # how its answer began, where the gate did not let it

    @property
    def margin(self) -> float:
        """By how much the likeliest byte led, averaged over the first bytes: 0 to 1."""
        return margin(self.spoken)

    @property
    def max_softmax(self) -> float:
        """How probable the likeliest byte was, averaged over the first bytes."""
        return max_softmax(self.spoken)


def margin(spoken: Sequence[Spoken]) -> float:
    """The mean lead of the likeliest byte over the second, in the first bytes."""
    first = spoken[:FIRST]
    return sum(byte.top - byte.second for byte in first) / max(len(first), 1)


def max_softmax(spoken: Sequence[Spoken]) -> float:
    """The mean of the largest probability in the first bytes."""
    first = spoken[:FIRST]
    return sum(byte.top for byte in first) / max(len(first), 1)


SIGNALS = {"margin": margin, "max_softmax": max_softmax}


class Gate(NamedTuple):
    """Answers that the model is less sure of than this are not given."""

    signal: str  # one of SIGNALS
    threshold: float

    def opens(self, spoken: Sequence[Spoken]) -> bool:
        """Whether an answer that begins with these bytes may be given."""
        return SIGNALS[self.signal](spoken) >= self.threshold


def read_gate(folder: str | Path) -> Gate | None:
    """The gate that lies beside a model, if there is one. Raises CheckpointError for a
    file that holds something else.
    """
    path = Path(folder) / GATE_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        gate = Gate(values["signal"], float(values["threshold"]))
    except (OSError, ValueError, KeyError, TypeError):
        gate = None
    is_gate = gate is not None and gate.signal in tuple(SIGNALS)
    if not is_gate or not math.isfinite(gate.threshold):
        raise CheckpointError(
            f"{path.parent.name}/{GATE_FILE} is no gate",
            'write it like {"signal": "margin", "threshold": 0.6}, or delete it',
        )
    return gate


def write_gate(folder: str | Path, gate: Gate | None) -> None:
    """Puts a gate beside a model; for None, an older model's is removed."""
    if gate is None:
        (Path(folder) / GATE_FILE).unlink(missing_ok=True)
        return
    text = json.dumps(gate._asdict(), indent=2)
    write_atomic(Path(folder) / GATE_FILE, text.encode() + b"\n")


@torch.inference_mode()
def speak(lm, prompt: Tensor, sampling: Sampling, turn: int = 0) -> Iterator[Spoken]:
    """Yields the bytes of an answer as they are drawn, the one that ends it included:
    prompt (T,) long. Each turn of a conversation has random numbers of its own.

    Raises GenerationError where the prompt is longer than what the model sees at once.
    """
    context = lm.config.model.context
    if len(prompt) > context:  # the window would lose what was asked
        raise GenerationError(
            f"a prompt of {len(prompt)} bytes, and a model that sees {context}",
            "ask less at once, or take a model of a longer context",
        )
    form = lm.fast_form()
    generator = sampling.generator(row=turn)
    state, logits = prefill_prompt(form, prompt.tolist(), rows=1)
    for count in range(1, sampling.max_new + 1):
        byte = sample_next(logits[0], sampling, generator)
        top, second = in_float64(logits[0]).softmax(-1).topk(2).values.tolist()
        yield Spoken(byte, top, second)
        if byte == END:
            return
        if count < sampling.max_new:  # after the last byte there is nothing to foresee
            x_t = torch.tensor([byte], device=state.window.device)
            logits = form.step(x_t, state)


class Conversation:
    """Questions and answers with one model, which sees the latest of them again with
    each question.

    `temperature` 0 gives the likeliest answer. With a `gate`, answers that the model is
    not sure of become "I don't know.": their first bytes are held back until it is
    known. `history` may hold earlier turns, (question, answer) each.
    """

    def __init__(
        self,
        lm,
        gate: Gate | None = None,
        temperature: float = 0.0,
        seed: int | None = None,
        max_new: int = MAX_ANSWER,
        history: Sequence[tuple[str, str]] = (),
    ) -> None:
        if not 1 <= max_new <= MAX_ANSWER:
            raise GenerationError(
                f"max_new = {max_new!r}",
                f"an answer has 1 to {MAX_ANSWER} bytes: the question needs the rest",
            )
        if gate is not None and getattr(gate, "signal", None) not in SIGNALS:
            raise GenerationError(
                f"gate = {gate!r}",
                f"give a Gate with one of the signals {', '.join(SIGNALS)}, or None",
            )
        self.lm, self.gate = lm, gate
        self.sampling = Sampling(max_new, temperature, seed=seed)
        self.history = list(history)
        self.reply: Reply | None = None  # to the latest question

    def ask(self, question: str) -> Reply:
        """Returns the whole answer, and adds the turn to the history."""
        for _ in self.stream(question):
            pass
        return self.reply

    def stream(self, question: str) -> Iterator[str]:
        """Yields the answer in pieces, never half a character. At the end `reply` has
        the whole; whoever stops early leaves there what had been said.
        """
        self.reply = Reply("", [])  # whoever stops us must not find the one before
        cleaned = clean_question(question)
        prompt = encode_prompt(question, self.history, self.lm.config.model.context)
        self.reply = Reply("", [], cleaned.notes)  # in case that nothing is said
        said: list[str] = []
        spoken: list[Spoken] = []
        held_back = None
        is_whole = False
        try:
            source = speak(self.lm, prompt, self.sampling, turn=len(self.history))
            for piece in ByteTokenizer().stream(self.passed(source, spoken)):
                said.append(piece)
                yield piece
            if self.gate and not self.gate.opens(spoken):
                held_back = beginning_of(spoken)
                said.append(REFUSAL)
                yield REFUSAL
            is_whole = True
        finally:  # also when nobody wants to hear the rest
            text = "".join(said)
            self.reply = Reply(text, spoken, cleaned.notes, held_back)
            # stopped before anything was shown, it is no turn: training has no answer
            # that breaks off at its first byte
            if text or (is_whole and spoken):
                # what was shown, the refusal included, and not what was held back
                self.history.append((question, text))

    def passed(self, source: Iterator[Spoken], spoken: list[Spoken]) -> Iterator[int]:
        """The bytes of `source` that may be shown, as soon as that is known; all that
        were drawn are noted in `spoken`.
        """
        waiting: list[int] = []  # drawn and not shown yet
        is_open = self.gate is None
        for one in source:
            spoken.append(one)
            if one.byte != END:
                waiting.append(one.byte)
            if not is_open and len(spoken) == FIRST:
                is_open = self.gate.opens(spoken)
                if not is_open:
                    return
            if is_open:
                yield from waiting
                waiting.clear()
        if not is_open and self.gate.opens(spoken):  # fewer than FIRST
            yield from waiting

    def reset(self) -> None:
        """Forgets all turns."""
        self.history.clear()


def beginning_of(spoken: Sequence[Spoken]) -> str:
    """What the first bytes of an answer say, without the one that ends it, and without
    a character of which the last bytes are not there yet.
    """
    data = bytes(one.byte for one in spoken if one.byte != END)
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(data)


def chat(
    lm,
    history: str | Sequence[str],
    temperature: float = 0.0,
    seed: int | None = None,
    max_new: int = MAX_ANSWER,
    gate: Gate | None = None,
) -> Reply:
    """The model's answer to a question, or to a conversation: texts by turns, the
    reader's first and last. Raises GenerationError for another number of them, or for
    other things than texts.
    """
    texts = [history] if isinstance(history, str) else list(history)
    if not all(isinstance(text, str) for text in texts):
        raise GenerationError(
            "a conversation with something that is no text",
            "give strings, turn by turn",
        )
    if len(texts) % 2 == 0:
        raise GenerationError(
            f"a conversation of {len(texts)} texts",
            "give the reader's and the model's by turns, a question at the end",
        )
    turns = list(zip(texts[:-1:2], texts[1::2], strict=True))
    conversation = Conversation(lm, gate, temperature, seed, max_new, turns)
    return conversation.ask(texts[-1])


class Talker(Decoder):
    """A Decoder that also answers questions. It takes a model that was taught to."""

    def chat(self, history: str | Sequence[str], **settings: Any) -> Reply:
        """Answers a question, or a conversation: a list of texts, the reader's and the
        model's by turns. The reply's `text` is the answer.

        `settings` are temperature (0 unless given), seed, max_new and gate, as in a
        Conversation. Raises GenerationError for a list that does not end with the
        reader.
        """
        return chat(self, history, **settings)
