"""Short stories from a small generated world: a corpus that is there at once.

No model writes them. stories.yaml holds tables of people, places and things, lists of
words, rules (one way or another to say something) and forty plots. A plot is compiled
once, into pieces of text and choices between them. Telling a story is then a walk
through its plot, in which random numbers make the choices, and a second step that
fills in the slots: who it is about, where, and with which things.
"""

import csv
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from itertools import count

import yaml

# the slots are named by the words for a boy
PRONOUNS = {
    "f": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "m": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}

# What every story draws, and from what; the `needs` of a plot may narrow it.
ALWAYS = {
    "place": "any",
    "food": "any",
    "snack": "any",
    "world": "child,child,animal",  # two of three heroes are children
    "weather": "sunny,cloudy,windy,rainy,snowy",
}


def stories(seed: int = 0) -> Iterator[str]:
    """Yields endless short stories, of about 320 to 560 bytes each.

    Story i depends on (seed, i) alone, so the same seed gives the same stories on every
    machine.
    """
    world = load_world()
    for i in count():
        yield world.tell(random.Random(f"{seed}-{i}").random)


def with_article(noun: str, article: str = "a") -> str:
    """Puts "a" or "an" before a noun; give "A" to begin a sentence."""
    if noun[0] in "aeiou":
        article += "n"
    return f"{article} {noun}"


class Slots(dict):
    """What the slots of one story stand for: {"food": "apple"}.

    Four spellings are made from a plain one when they are asked for: `{a_food}` and
    `{A_food}` are "an apple" and "An apple", `{food_cap}` and `{Food}` are "Apple".
    """

    def __missing__(self, name: str) -> str:
        if name.startswith(("a_", "A_")):
            return with_article(self[name[2:]], article=name[0])
        text = self[name.removesuffix("_cap").lower()]
        return text[0].upper() + text[1:]


def append_text(parts: list, random_number: Callable[[], float], out: list) -> None:
    """Appends a compiled text to `out`, piece by piece, and makes its choices.

    A part that is a str stands for itself. A part that is a tuple is a choice: each of
    its entries is a compiled text of its own.
    """
    for part in parts:
        if type(part) is str:
            out.append(part)
        else:
            chosen = part[int(random_number() * len(part))]
            append_text(chosen, random_number, out)


@cache
def load_world() -> "World":
    """Reads the world once; from then on it is the same object."""
    return World()


class World:
    """The tables, word lists, rules and plots of stories.yaml."""

    def __init__(self) -> None:
        file = resources.files(__package__).joinpath("stories.yaml")
        # the parser in C where there is one: it is ten times as fast
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load(file.read_text(encoding="utf-8"), loader)
        self.rules, self.plots = data.pop("rules"), data.pop("plots")
        self.words: dict[str, list[str]] = {}
        self.rows: dict[str, list[dict[str, str]]] = {}
        for name, text in data.items():
            self.words[name] = text.split()
            if "|" in text:  # a table, whose first line names the columns
                lines = text.splitlines()
                table = csv.DictReader(lines, delimiter="|", quoting=csv.QUOTE_NONE)
                self.rows[name] = list(table)
        # What has been worked out once is kept; the weather changes some of it.
        self.choices: dict[tuple, tuple] = {}
        self.sentences: dict[tuple, list] = {}
        self.candidates: dict[tuple, list] = {}

    def lines(self, name: str, weather: str) -> list[str]:
        """The alternatives of a rule: its lines, or its words where it is one line.

        `a_` and `A_` before the name put an article before each.
        """
        if name.startswith(("a_", "A_")):
            lines = self.lines(name[2:], weather)
            return [with_article(line, article=name[0]) for line in lines]
        text = self.rules.get(f"{name}_{weather}") or self.rules[name]
        if "\n" in text:
            return text.strip().splitlines()
        return [word.replace("_", " ") for word in text.split()]

    def compile(self, text: str, weather: str) -> list:
        """Turns text into a list of parts for append_text: `<rule>` into a choice, the
        rest into plain pieces. Slots stay as they are.
        """
        parts: list = []
        # the brackets keep the rules among the pieces
        for piece in re.split(r"(<\w+>)", text):
            if piece.startswith("<"):
                parts.append(self.choice(piece[1:-1], weather))
            elif piece:
                parts.append(piece)
        return parts

    def choice(self, rule: str, weather: str) -> tuple:
        """The alternatives of a rule, compiled: they may hold rules themselves."""
        if (rule, weather) not in self.choices:
            lines = self.lines(rule, weather)
            compiled = tuple(self.compile(line, weather) for line in lines)
            self.choices[rule, weather] = compiled
        return self.choices[rule, weather]

    def plot(self, number: int, weather: str) -> list:
        """A plot, compiled. "- " begins a sentence, "/ " another wording of it, and "="
        is a new paragraph.
        """
        if (number, weather) not in self.sentences:
            story = self.plots[number]["story"].strip()
            parts: list = []
            # a line that begins with "/" belongs to the sentence before it
            for sentence in re.split(r"\n(?!/)", story):
                if sentence == "=":
                    parts.append("\n")
                    continue
                wordings = [line[2:] + " " for line in sentence.split("\n")]
                parts.append(tuple(self.compile(text, weather) for text in wordings))
            self.sentences[number, weather] = parts
        return self.sentences[number, weather]

    def rows_with(self, table: str, allowed: str, weather: str) -> list:
        """The rows of a table that have one of the tags in `allowed` ("water,open"), or
        all of them for "any".
        """
        if allowed == "any":
            return self.rows[table]
        is_snowy = weather == "snowy"
        key = (table, allowed, is_snowy)
        if key not in self.candidates:
            found = []
            for row in self.rows[table]:
                tags = set(row["tags"].split())
                has_a_tag = not tags.isdisjoint(allowed.split(","))
                # no boats in the snow
                is_frozen = table == "thing" and is_snowy and "water" in tags
                if has_a_tag and not is_frozen:
                    found.append(row)
            self.candidates[key] = found
        return self.candidates[key]

    def cast(
        self, table: str, allowed: str, weather: str, pick: Callable
    ) -> dict[str, str]:
        """Picks a row of a table: its columns are slots.

        A row with `looks` gets one of them: thing0 "kite" makes thing "red kite".
        """
        row = pick(self.rows_with(table, allowed, weather))
        if "looks" not in row:
            return row
        looks = pick(row["looks"].split())
        return row | {table: f"{looks} {row[table + '0']}"}

    def people(self, world: str, weather: str, pick: Callable) -> dict[str, str]:
        """Picks a house: the names of hero, friend, elder and helper, what and where
        the hero is, and the pronouns of all four.
        """
        slots = dict(self.cast("people", world, weather, pick))
        # {he} is the hero, {fhe} the friend, {ehe} the elder and {hhe} the helper
        for who in ("", "f", "e", "h"):
            for slot, word in PRONOUNS[slots[who + "sex"]].items():
                slots[who + slot] = word
        return slots

    def tell(self, random_number: Callable[[], float]) -> str:
        """Tells one story. `random_number` gives numbers from 0 to 1, 1 excluded."""

        def pick(options):
            return options[int(random_number() * len(options))]

        # a draw more or less, or in another place, changes every story of a seed
        number = int(random_number() * len(self.plots))
        needs = dict(ALWAYS)
        for need in self.plots[number]["needs"].split():
            name, allowed = need.split("=")
            needs[name] = allowed
        weather = pick(needs["weather"].split(","))
        slots = Slots(self.people(pick(needs["world"].split(",")), weather, pick))
        for table, allowed in needs.items():
            if table in self.rows:
                slots |= self.cast(table, allowed, weather, pick)
        slots["at"] = f"{slots['at']} {slots['place']}"  # "by the pond"
        slots["to"] = f"to {slots['place']}"
        slots["season"] = needs.get("season") or pick(self.words[f"season_{weather}"])
        slots["trait"] = pick(self.words["trait"])

        out: list[str] = []
        append_text(self.plot(number, weather), random_number, out)
        # twice: what a slot stands for may hold slots
        text = "".join(out).format_map(slots).format_map(slots)
        return text.replace(" \n", "\n").rstrip()  # each sentence brought a blank
