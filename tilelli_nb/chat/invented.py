"""Names of things that do not exist.

Half of them are made of syllables ("Brovonia"), half of plain words ("river hound",
"The Brass Lagoon"), so that the spelling alone does not give them away.
"""

import random
import re
from collections.abc import Callable, Container

from .facts import items, read_yaml


class Inventor:
    """Makes names, from a random generator.

    `taken` holds names, in lower case, that it must not use: those that exist, and
    those of another split. All it made is in `made`.
    """

    def __init__(self, rng: random.Random, taken: Container[str] = ()) -> None:
        self.rng = rng
        self.taken = taken
        self.made: set[str] = set()
        self.parts = {name: items(text) for name, text in read_yaml("names").items()}
        self.real = frozenset(self.parts["real"])
        # children's names are real ones that no story uses
        self.makers: dict[str, Callable[[], str]] = {
            "country": self.country,
            "city": self.city,
            "title": lambda: (
                f"The {self.a('adjectives').title()} {self.a('title_nouns')}"
            ),
            "animal": lambda: self.thing_or_word("animal"),
            "thing": lambda: self.thing_or_word("thing"),
            "noun": self.word,
            "word": self.word,
            "verb": self.word,
            "surname": lambda: self.a("surnames") if self.coin() else self.name(),
            "child": lambda: self.a("children") if self.coin() else self.name(),
            "landmark": lambda: f"{self.a('adjectives').title()} {self.a('buildings')}",
            "month": lambda: self.stem().title() + self.a("month_ends"),
            "weekday": lambda: self.stem().title() + self.a("weekday_ends"),
            "shape": lambda: self.stem() + self.a("shape_ends"),
            "language": lambda: self.stem().title() + self.a("language_ends"),
        }

    def a(self, part: str) -> str:
        """One of the parts of a kind."""
        return self.rng.choice(self.parts[part])

    def coin(self) -> bool:
        """True half of the time."""
        return self.rng.random() < 0.5

    def stem(self) -> str:
        """The beginning of a word: "brov", "splomb"."""
        return self.a("onsets") + self.a("vowels") + self.a("joins")

    def word(self) -> str:
        """A word in lower case: "drindorf"."""
        return self.stem() + self.a("vowels") + self.a("codas")

    def name(self) -> str:
        """A word with a capital."""
        return self.word().title()

    def thing_or_word(self, kind: str) -> str:
        """A word, or two plain ones: "soup hammer"."""
        if self.coin():
            return self.word()
        return f"{self.a(kind + '_first')} {self.a(kind + '_last')}"

    def country(self) -> str:
        """A country or a planet: "Zorvania", "Lower Fenland"."""
        if self.coin():
            return self.stem().title() + self.a("country_ends")
        return f"{self.a('country_words')} {self.a('country_roots')}"

    def city(self) -> str:
        """A town: "Trebburg", "Port Cinder"."""
        if self.coin():
            return self.stem().title() + self.a("city_ends")
        return f"{self.a('city_words')} {self.a('city_roots')}"

    def make(self, kind: str) -> str:
        """A name of one of the kinds that is not taken."""
        while True:
            name = self.makers[kind]()
            if name.lower() not in self.taken and name.lower() not in self.real:
                self.made.add(name.lower())
                return name

    def fill(self, pattern: str) -> str:
        """Fills a pattern of a domain: "the tail of the <animal>"."""
        return re.sub(r"<(\w+)>", lambda slot: self.make(slot[1]), pattern)
