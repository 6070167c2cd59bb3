"""Where text comes from: generated stories, the documentation that is installed here,
any file or folder.

Every source is an iterator of documents (strings). Nothing is downloaded, nothing large
is read into memory whole.
"""

import ast
import csv
import difflib
import json
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import resources
from itertools import count, groupby, islice
from math import inf
from pathlib import Path
import yaml
from ..errors import DataError
from ..errors import MissingDependency


PRONOUNS = {
    "f": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "m": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}


ALWAYS = {
    "place": "any",
    "food": "any",
    "snack": "any",
    "world": "child,child,animal",
    "weather": "sunny,cloudy,windy,rainy,snowy",
}  # what a plot may narrow


class _Slots(dict):
    """What the slots of one story stand for. `{a_x}`, `{A_x}`, `{x_cap}` and `{X}` are
    made from `{x}`.
    """

    def __missing__(self, name: str) -> str:
        if name[:2] in ("a_", "A_"):
            return _article(self[name[2:]], name[0])
        text = self[name.removesuffix("_cap").lower()]
        return text[0].upper() + text[1:]


def _article(noun: str, a: str = "a") -> str:
    return f"{a}n {noun}" if noun[0] in "aeiou" else f"{a} {noun}"


def _write(parts: list, rnd: Callable[[], float], out: list[str]) -> None:
    """Appends compiled text to `out`: a list of parts, a str written as it is, a tuple
    a choice between such lists.
    """
    for part in parts:
        if type(part) is str:
            out.append(part)
        else:
            _write(part[int(rnd() * len(part))], rnd, out)


@lru_cache(maxsize=1)
class _World:
    """The tables, word lists, rules and plots of stories.yaml: read once, compiled
    when first used.
    """

    def __init__(self) -> None:
        text = (
            resources.files(__package__)
            .joinpath("stories.yaml")
            .read_text(encoding="utf-8")
        )
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.rules, self.plots = data["rules"], data["plots"]
        self.words = {
            name: text.split() for name, text in data.items() if isinstance(text, str)
        }
        self.rows = {
            name: list(
                csv.DictReader(text.splitlines(), delimiter="|", quoting=csv.QUOTE_NONE)
            )
            for name, text in data.items()
            if isinstance(text, str) and "|" in text
        }
        self.compiled: dict[tuple, list | tuple] = {}

    def lines(self, name: str, weather: str) -> list[str]:
        """The alternatives of a rule. `a_`/`A_` put an article before each."""
        if name[:2] in ("a_", "A_"):
            return [_article(line, name[0]) for line in self.lines(name[2:], weather)]
        text = self.rules.get(f"{name}_{weather}") or self.rules[name]
        return (
            text.strip().splitlines()
            if "\n" in text
            else [word.replace("_", " ") for word in text.split()]
        )

    def compile(self, text: str, weather: str) -> list:
        parts: list = []
        for piece in re.split(r"(<\w+>)", text):
            if piece[:1] == "<":
                if (key := (piece, weather)) not in self.compiled:
                    self.compiled[key] = tuple(
                        self.compile(line, weather)
                        for line in self.lines(piece[1:-1], weather)
                    )
                parts.append(self.compiled[key])
            elif piece:
                parts.append(piece)
        return parts

    def plot(self, number: int, weather: str) -> list:
        """A plot's sentences: "- " begins one, "/ " is another wording, "=" a new
        paragraph.
        """
        if (number, weather) not in self.compiled:
            sentences: list = []
            for sentence in re.split(r"\n(?!/)", self.plots[number]["story"].strip()):
                ways = tuple(
                    self.compile(way[2:] + " ", weather) for way in sentence.split("\n")
                )
                sentences.append("\n" if sentence == "=" else ways)
            self.compiled[number, weather] = sentences
        return self.compiled[number, weather]

    def cast(
        self, table: str, allowed: str, weather: str, pick: Callable
    ) -> dict[str, str]:
        """A row that has one of the `allowed` tags, as slots; an `x0` with `looks` also
        gives x, "red kite".
        """
        if (key := (table, allowed, weather == "snowy")) not in self.compiled:
            self.compiled[key] = [
                row
                for row in self.rows[table]
                if allowed == "any"
                or (
                    set(allowed.split(",")) & set(row["tags"].split())
                    and not (
                        # no boats in the snow
                        table == "thing"
                        and weather == "snowy"
                        and "water" in row["tags"]
                    )
                )
            ]
        row = pick(self.compiled[key])
        return (
            row | {table: f"{pick(row['looks'].split())} {row[table + '0']}"}
            if "looks" in row
            else row
        )

    def people(self, world: str, weather: str, pick: Callable) -> dict[str, str]:
        """A house: the names of hero, friend, elder and helper, their pronouns, and
        what and where the hero is.
        """
        slots = self.cast("people", world, weather, pick)
        return slots | {
            who + slot: word
            for who in ("", "f", "e", "h")
            for slot, word in PRONOUNS[slots[who + "sex"]].items()
        }

    def tell(self, rnd: Callable[[], float]) -> str:
        """One story."""

        def pick(options):
            return options[int(rnd() * len(options))]

        number = int(rnd() * len(self.plots))
        needs = ALWAYS | dict(
            need.split("=") for need in self.plots[number]["needs"].split()
        )
        weather = pick(needs["weather"].split(","))
        slots = _Slots(self.people(pick(needs["world"].split(",")), weather, pick))
        for table in filter(self.rows.__contains__, needs):
            slots |= self.cast(table, needs[table], weather, pick)
        slots |= {
            "at": f"{slots['at']} {slots['place']}",
            "to": f"to {slots['place']}",
            "season": needs.get("season") or pick(self.words[f"season_{weather}"]),
            "trait": pick(self.words["trait"]),
        }
        out: list[str] = []
        _write(self.plot(number, weather), rnd, out)
        # twice: what a slot stands for may hold slots
        text = "".join(out).format_map(slots).format_map(slots)
        return text.replace(" \n", "\n").rstrip()


def stories(seed: int = 0) -> Iterator[str]:
    """Endless short stories (about 320 to 560 bytes each) from a small generated world.

    Story i depends on (seed, i) alone, so the same seed gives the same stories on every
    machine.
    """
    for i in count():
        yield _World().tell(random.Random(f"{seed}-{i}").random)
