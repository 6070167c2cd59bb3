"""Where text comes from: generated stories, the documentation that is installed here, any file or folder.

Every source is an iterator of documents (strings). Nothing is downloaded and nothing is read into memory whole.
"""

import ast
import codecs
import difflib
import hashlib
import inspect
import json
import random
import re
import shlex
import sysconfig
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import resources
from itertools import count
from pathlib import Path

import yaml

from .errors import DataError, MissingDependency

SEPARATOR = "<|endoftext|>"
SUFFIXES = (".txt", ".jsonl", ".parquet")
STORY_BYTES = 10_000_000
PRONOUNS = {"f": ("girl", "she", "her", "her"), "m": ("boy", "he", "him", "his")}

# --- stories ---------------------------------------------------------------------------------------------------
# Compiled text is a sequence (list) of parts: a str is written as it is, a tuple is a choice between sequences.


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _table(text: str) -> list[dict[str, str]]:
    """Rows of `a | b | c` lines under a header line of the same form."""
    header, *rows = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def _write(parts: list, rnd: Callable[[], float], out: list[str]) -> None:
    """Appends the text of a compiled sequence to `out`, choosing with `rnd`."""
    for part in parts:
        if type(part) is str:
            out.append(part)
        else:
            _write(part[int(rnd() * len(part))], rnd, out)


class _World:
    """The word lists, rules and plots of data/stories.yaml, compiled on first use."""

    def __init__(self, text: str) -> None:
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.rules, self.servings = data["rules"], data["servings"]
        self.seasons = {weather: names.split() for weather, names in data["seasons"].items()}
        tables = ("kinds", "helpers", "places", "things", "foods", "pets", "hurt", "skills", "builds", "contests", "seeds")
        self.rows = {name: _table(data[name]) for name in tables}
        lists = ("girls", "boys", "animal_girls", "animal_boys", "child_looks", "traits", "petnames")
        self.words = {name: data[name].split() for name in lists}
        self.elders = [entry.split(":") for entry in shlex.split(data["elders"])]
        self.snacks = [entry.split("/") for entry in data["snacks"].split()]
        self.homes = data["child_homes"].strip().splitlines()
        self.plots = [(dict(need.split("=") for need in plot["needs"].split()), plot["story"]) for plot in data["plots"]]
        self.synonyms = {phrase: tuple([way] for way in ways.split("|")) for phrase, ways in data["synonyms"].items()}
        phrases = "|".join(re.escape(phrase) for phrase in sorted(self.synonyms, key=lambda p: (-len(p), p)))
        self.phrase = re.compile(rf"(?<!\w)({phrases})(?![a-z])")
        self.compiled: dict[tuple, list | tuple] = {}

    # compiling

    def lines(self, name: str, weather: str) -> list[str]:
        """The alternatives of a rule. `a_`/`A_` put an article before each, `_cap`/`_low` change the first letter."""
        if name[:2] in ("a_", "A_"):
            lines = [_article(line) for line in self.lines(name[2:], weather)]
            return lines if name[0] == "a" else [_capital(line) for line in lines]
        if name.endswith("_cap"):
            return [_capital(line) for line in self.lines(name[:-4], weather)]
        if name.endswith("_low"):
            return [line[0].lower() + line[1:] for line in self.lines(name[:-4], weather)]
        text = self.rules.get(f"{name}_{weather}") or self.rules[name]
        return text.strip().splitlines() if "\n" in text else [word.replace("_", " ") for word in text.split()]

    def rule(self, name: str, weather: str) -> tuple:
        key = (name, weather)
        if key not in self.compiled:
            self.compiled[key] = tuple(self.sequence(line, weather) for line in self.lines(name, weather))
        return self.compiled[key]

    def sequence(self, text: str, weather: str) -> list:
        parts, end = [], 0
        for match in re.finditer(r"\[([^\]]*)\]|<(\w+)>", text):
            parts += self.literal(text[end:match.start()])
            choice, name = match.groups()
            parts.append(self.rule(name, weather) if name else
                         tuple(self.sequence(piece, weather) for piece in choice.split("|")))
            end = match.end()
        return parts + self.literal(text[end:])

    def literal(self, text: str) -> list:
        """Text without rules: its synonyms become choices."""
        return [self.synonyms.get(piece, piece) for piece in self.phrase.split(text) if piece]

    def plot(self, number: int, weather: str) -> list:
        """The compiled sentences of a plot: "- " begins one, "/ " is another wording, "? " may be left out."""
        key = (number, weather)
        if key not in self.compiled:
            parts: list = []
            for line in self.plots[number][1].strip().splitlines():
                sign, sentence = line[0], self.sequence(line[2:] + " ", weather)
                if sign == "=":
                    parts.append("\n")
                elif sign == "/":
                    parts[-1][1].append(sentence)
                else:
                    parts.append((sign, [sentence]))
            absent = {"-": (), "?": ([],), "~": ([], [], [])}  # "-" is always there
            self.compiled[key] = [part if part == "\n" else (*absent[part[0]], [tuple(part[1])]) for part in parts]
        return self.compiled[key]

    # casting

    def fitting(self, table: str, column: str, allowed: str, weather: str) -> list[dict[str, str]]:
        """Rows whose `column` shares a word with `allowed` ("any" fits all); no boats are sailed in the snow."""
        key = (table, column, allowed, weather == "snowy")
        if key not in self.compiled:
            self.compiled[key] = [row for row in self.rows[table]
                                  if (allowed == "any" or set(row[column].split()) & set(allowed.split(",")))
                                  and not (table == "things" and weather == "snowy" and "water" in row["tags"])]
        return self.compiled[key]

    def people(self, pick: Callable, world: str) -> dict[str, str]:
        """Names, kinds, looks and pronouns of the hero, the friend, the elder and the helper."""
        slots: dict[str, str] = {}
        sex = pick("fm")
        for who, prefix in (("hero", ""), ("friend", "f")):
            noun, he, him, his = PRONOUNS[sex]
            names = self.words[("girls" if sex == "f" else "boys") if world == "child" else
                               ("animal_girls" if sex == "f" else "animal_boys")]
            name = pick(names)
            while name == slots.get("hero"):
                name = pick(names)
            kind = {"kind": noun, "looks": "", "homes": ""} if world == "child" else pick(self.rows["kinds"])
            look = pick(self.words["child_looks"] if world == "child" else kind["looks"].split())
            slots |= {who: name, f"{prefix}kind": kind["kind"], f"a_{prefix}kind": _article(f"{look} {kind['kind']}")}
            slots |= _pronouns(prefix, sex)
            if who == "hero":
                home = pick(self.homes if world == "child" else kind["homes"].split("; "))
                slots |= {"home": home, "home_cap": _capital(home), "himself": "herself" if sex == "f" else "himself"}
                sex = pick("fm") if pick("12345") < "3" else "m" if sex == "f" else "f"
        slots["friend_intro"] = pick((f"{slots['his']} friend {slots['friend']}", slots["friend"] + (
            " from next door" if world == "child" else f" the {slots['fkind']}")))
        slots["elder"], sex = pick(self.elders)
        slots |= _pronouns("e", sex)
        helper = pick(self.fitting("helpers", "world", world, ""))
        slots |= {"helper": helper["helper"], "helper_intro": f"{helper['helper']}, {helper['job']}"}
        return slots | _pronouns("h", helper["h"])

    def objects(self, pick: Callable, needs: dict[str, str], weather: str, slots: dict[str, str]) -> None:
        """Adds place, food and snack, and what the plot asks for, each with the properties that make it fit."""
        place = pick(self.fitting("places", "tags", needs.get("place", "any"), weather))
        slots |= {"place": place["place"], "at": f"{place['at']} {place['place']}", "to": f"to {place['place']}"}
        slots["At_cap"] = _capital(slots["at"])
        food = pick(self.fitting("foods", "food0", needs.get("food", "any"), weather))
        slots |= food | dict(zip(("cook", "cooked", "cooking"), food["cooks"].split("/"), strict=True))
        serving = self.servings.get(food["food0"])
        slots["a_food"] = f"{serving} {food['food']}" if serving else _article(food["food"])
        slots["food_cap"] = _capital(food["food"])
        slots["snack"], slots["snacks"] = pick(self.snacks)
        slots["a_snack"] = _article(slots["snack"])
        slots["season"] = needs.get("season") or pick(self.seasons[weather])
        if "thing" in needs:
            row = pick(self.fitting("things", "tags", needs["thing"], weather))
            thing = f"{pick(row['looks'].split())} {row['thing0']}"
            slots |= row | {"thing": thing, "a_thing": _article(thing), "A_thing": _capital(_article(thing))}
            slots |= dict(zip(("play", "played", "playing"), row["plays"].split("/"), strict=True))
        if "pet" in needs:
            row = pick(self.rows["pets"])
            slots |= row | {"a_pet": _article(f"{pick(row['looks'].split())} {row['pet0']}"),
                            "petname": pick(self.words["petnames"])}
        for table in ("hurt", "skills", "builds", "contests", "seeds"):
            if table.removesuffix("s") in needs or table in needs:
                slots |= {key: cell.format_map(slots) for key, cell in pick(self.rows[table]).items()}
        if "build" in slots:
            slots["a_build"] = _article(slots["build"])

    def tell(self, rnd: Callable[[], float]) -> str:
        """One story."""
        def pick(options):
            return options[int(rnd() * len(options))]
        number = int(rnd() * len(self.plots))
        needs = self.plots[number][0]
        weather = pick(needs["weather"].split(",") if "weather" in needs else list(self.seasons))
        slots = self.people(pick, needs.get("world") or pick(("child", "child", "animal")))
        slots["trait"] = pick(self.words["traits"])
        self.objects(pick, needs, weather, slots)
        out: list[str] = []
        _write(self.plot(number, weather), rnd, out)
        return "".join(out).format_map(slots).replace(" \n", "\n").rstrip()


def _pronouns(prefix: str, sex: str) -> dict[str, str]:
    _, he, him, his = PRONOUNS[sex]
    lower = {f"{prefix}he": he, f"{prefix}him": him, f"{prefix}his": his}
    return lower | {_capital(slot): _capital(word) for slot, word in lower.items()}


@lru_cache(maxsize=1)
def _world() -> _World:
    return _World(resources.files(__package__).joinpath("data/stories.yaml").read_text(encoding="utf-8"))


def stories(seed: int = 0) -> Iterator[str]:
    """Endless short stories (about 400 to 1,200 bytes each) from a small generated world.

    Story i depends on (seed, i) alone, so the same seed gives the same stories on every machine.
    """
    world = _world()
    for i in count():
        yield world.tell(random.Random(f"{seed}-{i}").random)
