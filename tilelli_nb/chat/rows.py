"""Conversations as batches to learn from, with text of the pretraining beside them, so
that it is not forgotten. They stand where Shards stand in the training loop.
"""

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.shards import Shards, Split
from ..errors import DataError
from ..model.network import IGNORE
from .template import encode_row

POOL = 8  # batches that are drawn at once, to find rows of nearly equal length
TEXT_SHARE = 1 / 16  # rows of text for each conversation: a fifth of the bytes


def text_rows(rows: int) -> int:
    """How many rows of text go with this many conversations."""
    return max(1, round(TEXT_SHARE * rows))


class ChatRows:
    """Conversations, and the text whose memory they would overwrite.

    A batch is two rectangles: conversations, one a row, filled up with padding whose
    target is -100, and windows of the text.
    """

    kind = "sft"  # of a run on it

    def __init__(
        self,
        conversations: Sequence[Sequence[tuple[str, str]]],
        text: Shards,
        source: str,
    ) -> None:
        """`conversations` hold their turns, (question, answer) each; `source` says in a
        few words where they come from. A long question is cut to its last 160 bytes, as
        when it is asked. Raises DataError for none at all, or for one of more than 256
        bytes.
        """
        if not conversations:
            raise DataError("there are no conversations", "give at least one")
        self.rows = [encode_row(turns) for turns in conversations]
        self.text, self.source = text, source

    # What the loop asks of shards: the text is what it evaluates on.

    @property
    def train(self) -> Split:
        """The side of the text that is learned from."""
        return self.text.train

    @property
    def val(self) -> Split:
        """The side of the text that is measured on."""
        return self.text.val

    @property
    def folder(self) -> Path:
        """Where the text lies."""
        return self.text.folder

    def batch(
        self, rows: int, context: int, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Random conversations, x and targets (rows, T), and random windows of the
        text, x and targets (a sixteenth as many, context).

        Rows of nearly equal length come together, because padding costs as much time as
        text: of eight times as many, sorted by length, one eighth is taken.
        """
        # on the CPU, where the generator is, whatever PyTorch's default device may be
        drawn = torch.randint(
            len(self.rows), (POOL * rows,), generator=generator, device="cpu"
        )
        pool = sorted(drawn.tolist(), key=lambda number: len(self.rows[number][0]))
        # any of the eight, so that short and long rows are met equally often
        part = int(torch.randint(POOL, (), generator=generator, device="cpu"))
        chosen = [self.rows[number] for number in pool[part * rows : (part + 1) * rows]]
        # of all, not of these: the first batch says it, before anything is trained
        if self.longest > context:
            raise DataError(
                f"a conversation of {self.longest} bytes, and a context of {context}",
                "train a model of a longer context, such as nano",
            )
        length = max(len(ids) for ids, _ in chosen)
        # behind its end a row is byte 0, and no place there has a target
        x = [F.pad(ids, (0, length - len(ids))) for ids, _ in chosen]
        targets = [
            F.pad(wanted, (0, length - len(wanted)), value=IGNORE)
            for _, wanted in chosen
        ]
        text = self.text.batch(text_rows(rows), context, generator)
        return torch.stack(x), torch.stack(targets), *text  # (rows, T), and the text's

    def step_bytes(self, rows: int, context: int) -> int:
        """How many bytes a batch has, on average and without its padding."""
        return round(rows * self.mean_length) + text_rows(rows) * context

    @cached_property
    def mean_length(self) -> float:
        """Bytes of a conversation, on average: asked for with each step."""
        return sum(len(ids) for ids, _ in self.rows) / len(self.rows)

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest conversation."""
        return max(len(ids) for ids, _ in self.rows)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all rows: asked for with each checkpoint."""
        digest = hashlib.sha256()
        for ids, targets in self.rows:  # targets say where a question ends
            digest.update(ids.numpy().tobytes() + targets.numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a run record says about its data: of the text, and of the rows."""
        return self.text.describe() | {
            "source": f"{self.source}, and {self.text.describe()['source']}",
            "conversations": len(self.rows),
            "conversations_sha256": self.fingerprint,
        }

    def as_described(self, data: dict[str, Any]) -> "ChatRows":
        """These rows, with the text that `data`, a `describe()` of before, was about.

        Raises DataError when either is not the same any more.
        """
        text = self.text.as_described(data)
        if self.fingerprint != data["conversations_sha256"]:
            raise DataError(
                "these are not the conversations that the run was started on",
                "resume with the same ones: the same --pairs and --pairs-seed",
            )
        described = copy.copy(self)  # the rows are shared: nobody changes them
        described.text = text
        return described

    def grown(self, train: int | None = None) -> None:
        """Nothing is added while a model learns to chat."""
