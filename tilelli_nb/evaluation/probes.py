"""The prompts of chapter 12: thirty in each of seven regimes, with the replies that are
right. They were written for this book and are in no set of the chat pairs.

They are read from the files in probes/, whose heads explain the regimes. Inside a
regime some prompts have an answer, which is among the facts of training, and the others
ought to be refused: so right replies and wrong ones can be told apart in each.
"""

from functools import cache
from importlib import resources
from typing import NamedTuple

import yaml

from ..chat.facts import lines
from ..chat.pairs import accepts, is_refusal
from ..chat.template import prompt_bytes
from .rule import REGIMES


class Probe(NamedTuple):
    """One prompt. Without accepted answers the right reply is a refusal.

    `fact` is the trained fact that answers it, "domain/key" as in the `group` of a
    pair; of a near miss to be refused it is the fact that was just missed. `preamble`
    is what stands before the question of a long input.
    """

    regime: str
    prompt: str
    accepted: tuple[str, ...] = ()
    fact: str = ""
    preamble: str = ""

    @property
    def answerable(self) -> bool:
        """Whether there is an answer to give."""
        return bool(self.accepted)

    @property
    def raw(self) -> bytes:
        """The bare text, without the framing of a chat. No reply can be asked for with
        it; it is for signals, to see what the framing alone does to them.
        """
        return self.prompt.encode()

    @property
    def in_chat(self) -> bytes:
        """The same in the chat template, as the model reads it before it replies: in
        format no regime differs from another.
        """
        return prompt_bytes(self.prompt)

    def is_right(self, said: str) -> bool:
        """Whether a reply is one of the accepted answers, or a refusal where there are
        none.
        """
        if not self.answerable:
            return is_refusal(said)
        return any(accepts(answer, said) for answer in self.accepted)


def read_line(regime: str, line: str, answerable: bool) -> Probe:
    """A probe from its line: `fact => prompt => answer; answer`, or for one that is to
    be refused `prompt`, maybe with a fact before it. A ` || ` ends the preamble.
    """
    parts = line.split(" => ")
    answers = tuple(parts.pop().split("; ")) if answerable else ()
    text = parts.pop()
    fact = parts.pop() if parts else ""
    preamble, bar, _ = text.rpartition(" || ")
    prompt = text.replace(bar, " ") if bar else text
    return Probe(regime, prompt, answers, fact, preamble)


@cache
def load_probes() -> tuple[Probe, ...]:
    """All 210, regime by regime in the order of the rule's REGIMES; those with an
    answer come first. They are read once.
    """
    found = []
    for regime in REGIMES:
        file = resources.files(__package__) / "probes" / f"{regime}.yaml"
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        for part in ("answerable", "refused"):
            found += [
                read_line(regime, line, part == "answerable")
                for line in lines(data[part])
            ]
    return tuple(found)
