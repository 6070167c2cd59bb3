"""The facts, read from the files in facts/.

A file holds domains, and a domain has phrasings and facts ("France | Paris"). The head
of facts/countries.yaml explains the parts. What is known, what is real but never
taught, and what does not exist at all are asked about in the same words.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import NamedTuple

import yaml

from ..data.stories import with_article

# in another order the same seed would draw other pairs
FACT_FILES = (
    "countries",
    "animals",
    "words",
    "more_words",
    "things",
    "people",
    "time_and_numbers",
    "story_world",
    "talk",
)


class Topic(NamedTuple):
    """Something that can be asked about, in all its wordings.

    `answer` is None where there is none to give. `follow` are short questions that lean
    on the turn before.
    """

    domain: str
    key: str
    answer: str | None
    ask: tuple[str, ...]
    check: tuple[str, ...]
    held: tuple[str, ...]
    follow: tuple[str, ...] = ()


class Domain(NamedTuple):
    """A domain: its facts, the real things that nobody taught, and patterns for what
    does not exist.
    """

    name: str
    phrasings: Mapping[str, tuple[str, ...]]
    facts: tuple[Topic, ...]
    taught: tuple[Topic, ...]
    unseen: tuple[Topic, ...]
    invented: tuple[str, ...]

    def topic(self, key: str, answer: str | None = None) -> Topic:
        """The key in all phrasings of the domain."""
        wordings = {
            use: tuple(fill(phrasing, key) for phrasing in phrasings)
            for use, phrasings in self.phrasings.items()
        }
        return Topic(self.name, key, answer, **wordings)


class FirstQuestion(NamedTuple):
    """A question that a child would ask first, and the answers that are right."""

    question: str
    accepted: tuple[str, ...]


def read_file(name: str) -> str:
    """The text of a file in facts/."""
    file = resources.files(__package__) / "facts" / name
    return file.read_text(encoding="utf-8")


def read_yaml(name: str) -> dict:
    """A file of facts/ as a dictionary."""
    return yaml.safe_load(read_file(f"{name}.yaml"))


def lines(text: str | None) -> tuple[str, ...]:
    """The lines of a block of a file."""
    # None is a part that the domain lacks
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def items(text: str | None) -> tuple[str, ...]:
    """The entries of a list whose entries are separated by commas or line ends."""
    return tuple(
        item.strip() for item in re.split(r"[,\n]", text or "") if item.strip()
    )


def possessive(name: str) -> str:
    """Whose it is: "France's", "the Netherlands'"."""
    return name + ("'" if name.endswith("s") else "'s")


def article_and(noun: str) -> str:
    """ "a cow", "an owl", "a unicorn": the sound decides."""
    # "uni" begins with the sound of "you"
    return f"a {noun}" if noun.startswith("uni") else with_article(noun)


def fill(phrasing: str, key: str) -> str:
    """Puts a key into a phrasing: {a} as it is, {a's} as an owner, {a_a} with "a" or
    "an"; {c} and {a_c} are what stands after ">" in the key.
    """
    a, _, c = key.partition(" > ")
    slots = {"a": a, "A": a, "a's": possessive(a), "c": c}
    slots["a_a"] = slots["A_a"] = article_and(a)
    if c:
        slots["a_c"] = slots["A_c"] = article_and(c)
    text = re.sub(r"\{(.+?)\}", lambda slot: slots[slot[1]], phrasing)
    return text[0].upper() + text[1:]  # a slot may stand in front


def as_answer(text: str) -> str:
    """An answer ends with a full stop, unless it ends a sentence already."""
    return text if text[-1] in ".!?" else text + "."


def read_domain(name: str, parts: Mapping[str, str]) -> Domain:
    """A domain from its part of a file."""
    phrasings = {
        use: lines(parts.get(use)) for use in ("ask", "check", "held", "follow")
    }
    empty = Domain(name, phrasings, (), (), (), ())  # topic() needs no more of it
    facts = []
    for line in lines(parts["facts"]):
        keys, _, answer = line.partition(" | ")
        facts += [empty.topic(key, as_answer(answer)) for key in items(keys)]
    return empty._replace(
        facts=tuple(facts),
        # real, and without an answer: questions about these are refused
        taught=tuple(empty.topic(key) for key in items(parts.get("taught"))),
        unseen=tuple(empty.topic(key) for key in items(parts.get("unseen"))),
        invented=lines(parts.get("invented")),
    )


def read_talk(name: str, text: str) -> Domain:
    """A domain whose facts have their own wordings: `a | b check: c held: d => x`."""
    facts = []
    for line in lines(text):
        wordings, _, answer = line.partition(" => ")
        ask, check, held = (
            tuple(part.strip().split(" | "))
            # both words stand in every line, in this order
            for part in re.split("check:|held:", wordings)
        )
        facts.append(Topic(name, ask[0], answer, ask, check, held))
    return Domain(name, {}, tuple(facts), (), (), ())


@cache
def load_domains() -> tuple[Domain, ...]:
    """All domains, in the order of the files. They are read once."""
    domains = []
    for file in FACT_FILES:
        for name, parts in read_yaml(file).items():
            # a domain of talk is a block of lines, any other a mapping of parts
            read = read_talk if isinstance(parts, str) else read_domain
            domains.append(read(name, parts))
    return tuple(domains)


def first_questions() -> list[FirstQuestion]:
    """A hundred plain questions whose answers are among the facts."""
    found = []
    for line in lines(read_file("first_questions.tsv")):
        question, *accepted = line.split("\t")
        found.append(FirstQuestion(question, tuple(accepted)))
    return found
