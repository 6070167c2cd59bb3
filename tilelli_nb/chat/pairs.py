"""Fifty thousand questions and answers to fine-tune on, and questions to test with.

Two thirds can be answered: facts, arithmetic, spelling, small talk. To the rest the
right reply is "I don't know": what does not exist, what was never taught, what nobody
can know from here. Both are asked in the same words, so that the wording does not
decide. All depends on the seed alone.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle, islice
from typing import NamedTuple

from ..errors import DataError
from .facts import Topic, fill, load_domains, read_yaml
from .generated import WORKERS, hide, load_phrasings, put, split_at_bar
from .invented import Inventor
from .template import MAX_ROW, row_length
from .wording import normal_form, restyle

MIN_COUNT = 6_000  # every fact once
ANSWERABLE_SHARE = 0.65
FACT_SHARE = 0.76  # of what can be answered; the rest is worked out
TWIN_SHARE = 0.56  # of what cannot: the same words about what is not known
HIDDEN_SHARE = 0.05  # of what cannot: arithmetic and spelling of unknown things
FOLLOW_SHARE = 0.055  # of facts and twins: "And of Spain?" after another question
HISTORY_SHARE = 0.07  # of the rest: an earlier turn that does not matter
BARE_FOLLOW_SHARE = 0.004  # of all: "And of Spain?" with nothing before it
UNANSWERABLE = (
    "private",
    "future",
    "missing context",
    "false premise",
    "invented word",
)
# each with its share. All begin alike, which is what is_refusal looks for
REFUSALS = (
    ("I don't know.", 0.6),
    ("I don't know that.", 0.16),
    ("I don't know, sorry.", 0.12),
    ("I don't know that one.", 0.06),
    ("I don't know about that.", 0.04),
    ("I don't know, I am afraid.", 0.02),
)
BARE = (
    "And {a}?",
    "And {a_a}?",
    "And of {a}?",
    "And in {a}?",
    "What about {a}?",
    "What about {a_a}?",
)
CARD_END = """\
**Source.** The facts, phrasings and word lists were written for this book; the pairs
are made from them by a program and a seed. No text of others is in them.

**Licence.** The book's own (Apache-2.0, like the code).

**Limits.** English only, answers of at most 40 bytes, facts at the level of a child's
picture book, simplified where such books simplify (seven continents, one main language
a country). "Untrained" things have true answers, which the model is taught not to
guess. Some made-up words follow rules that a person would apply (the plural of
"blib"): here they are refused. The invented titles and names may exist by chance."""


class Pair(NamedTuple):
    """A question and the reply to learn. `group` is shared by all wordings of a fact
    and by its twins that cannot be answered; `history` holds earlier turns.
    """

    question: str
    answer: str
    kind: str  # a domain of facts, a kind of worked question, or why it is refused
    answerable: bool
    group: str
    history: tuple[tuple[str, str], ...] = ()


class PairSets(NamedTuple):
    """What is trained on, what the threshold is chosen on, and four tests."""

    train: list[Pair]
    calibration: list[Pair]
    phrasings: list[Pair]
    entities: list[Pair]
    templates: list[Pair]
    unanswerable: list[Pair]


def accepts(answer: str, said: str) -> bool:
    """Whether `said` is the answer, but for blanks around it, capitals, and the
    punctuation at its end.
    """

    def bare(text: str) -> str:
        return text.strip().rstrip(".!?… ").casefold()

    return bare(answer) == bare(said)


def is_refusal(said: str) -> bool:
    """Whether it begins with "I don't know", with any apostrophe or none."""
    return bool(re.match(r"\s*i don['\u2019\u2018\u02bc`\u00b4]?t know\b", said, re.I))


def group_of(fact: Topic) -> str:
    """What all wordings of a fact and its twins share."""
    return f"{fact.domain}/{fact.key}"


def bare_wordings(fact: Topic) -> list[str]:
    """The short questions that mean nothing without the turn before. "And who wrote
    Emma?" says all there is to know.
    """
    bare = {fill(phrasing, fact.key) for phrasing in BARE}
    return [question for question in fact.follow if question in bare]


def names_of(fact: Topic) -> list[str]:
    """The names that a fact speaks of: what it asks about, and its answer."""
    return [*fact.key.split(" > "), fact.answer or ""]


class Maker:
    """Makes the pairs of one seed. The tests come first, so that training can keep
    clear of them.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.domains = load_domains()
        self.facts = [fact for domain in self.domains for fact in domain.facts]
        self.by_name = {domain.name: domain for domain in self.domains}
        # a text as the seed goes through SHA-512: no machine makes other numbers of it
        self.rng = random.Random(f"pairs-{seed}")
        # Names that no other split may use; those of real things are there at once.
        self.taken = {normal_form(part) for f in self.facts for part in names_of(f)}
        self.for_calibration = self.calibration_names()
        self.forbidden: set[str] = set()  # questions of the tests and the calibration
        data = read_yaml("unanswerable")
        self.slots = {k: split_at_bar(text) for k, text in data.pop("slots").items()}
        self.unanswerable = data  # by kind and use, once the slots are taken out

    def inventor(self, split: str) -> Inventor:
        """One that keeps clear of all names that were made before."""
        rng = random.Random(f"names-{split}-{self.seed}")
        # a copy of now: within its split, the same name may come again
        return Inventor(rng, frozenset(self.taken))

    def refusal(self) -> str:
        """One of the refusals, the shortest most often."""
        texts, weights = zip(*REFUSALS, strict=True)
        return self.rng.choices(texts, weights)[0]

    def refuse(self, question: str, kind: str, group: str) -> Pair:
        """A question that is to be refused."""
        return Pair(question, self.refusal(), kind, False, group)

    def free(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The pairs whose questions are new, each once. From here on they are taken."""
        kept = []
        for pair in pairs:
            key = normal_form(pair.question)
            if key not in self.forbidden:
                self.forbidden.add(key)
                kept.append(pair)
        self.rng.shuffle(kept)
        return kept

    # ---- questions about facts, and their twins

    def fact_pair(self, fact: Topic, use: str = "ask") -> Pair:
        """A fact in one of its wordings of a use."""
        question = self.rng.choice(getattr(fact, use))
        return Pair(question, fact.answer, fact.domain, True, group_of(fact))

    def calibration_names(self) -> set[str]:
        """The names of real things that are never taught and that are for the
        calibration, in whichever domain they occur: the last two of each.
        """
        last = [topic for domain in self.domains for topic in domain.unseen[-2:]]
        return set().union(*(self.unknown_names(topic) for topic in last))

    def unknown_names(self, topic: Topic) -> set[str]:
        """Of "tapir > bird" the tapir; without an article and the s of a plural."""
        parts = {normal_form(part) for part in topic.key.split(" > ")}
        # a fact speaks of "bird", too, so it is not unknown
        return {re.sub(r"^(a|an|the) |s$", "", part) for part in parts - self.taken}

    def entity_pairs(self, split: str, invented: int) -> list[Pair]:
        """Refused in the words of training: things that do not exist, and the real
        ones of a split that are never taught.
        """
        is_calibration = split == "calibration"
        inventor = self.inventor(split)
        pairs = []
        for domain in self.domains:
            topics = [
                ("untrained", topic)
                for topic in domain.unseen
                if bool(self.unknown_names(topic) & self.for_calibration)
                == is_calibration
            ]
            # in some domains there is nothing that could be made up
            for _ in range(invented if domain.invented else 0):
                key = inventor.fill(self.rng.choice(domain.invented))
                topics.append(("invented", domain.topic(key)))
            for kind, topic in topics:
                # the real ones are few: each in two wordings
                wordings = 2 if kind == "untrained" else 1
                group = f"{topic.domain}/?{topic.key}"
                for question in self.rng.sample(topic.ask, wordings):
                    pairs.append(self.refuse(question, kind, group))
        self.taken |= inventor.made
        return self.free(pairs)

    def stranger(self, fact: Topic, inventor: Inventor) -> tuple[str, Topic]:
        """What cannot be answered in the domain of a fact: ("invented" or "untrained",
        topic).
        """
        domain = self.by_name[fact.domain]
        if domain.invented and self.rng.random() < 0.5:
            key = inventor.fill(self.rng.choice(domain.invented))
            return "invented", domain.topic(key)
        return "untrained", self.rng.choice(domain.taught)

    def twin(self, fact: Topic, inventor: Inventor) -> Pair:
        """What cannot be answered, in words that a fact of the domain is asked in."""
        kind, topic = self.stranger(fact, inventor)
        return self.refuse(self.rng.choice(topic.ask), kind, group_of(fact))

    def follow(self, fact: Topic, inventor: Inventor, *, known: bool) -> Pair:
        """A short question that leans on the turn before it: "And of Spain?"."""
        others = [f for f in self.by_name[fact.domain].facts if f.key != fact.key]
        before = self.rng.choice(others)
        # of something known in either case, so that it does not give the reply away
        turn = (restyle(self.rng.choice(before.ask), self.rng), before.answer)
        if known:
            question = self.rng.choice(fact.follow)
            pair = Pair(question, fact.answer, fact.domain, True, group_of(fact))
        else:
            kind, topic = self.stranger(fact, inventor)
            pair = self.refuse(self.rng.choice(topic.follow), kind, group_of(fact))
        return pair._replace(history=(turn,))

    # ---- worked questions, and questions nobody could answer

    def worked_pair(self, use: str, kind: str, held: bool | None = None) -> Pair:
        """Arithmetic or spelling. With `held` given it is about something unknown, of
        training (False) or not (True).
        """
        worked = WORKERS[kind](self.rng)
        phrasing = self.rng.choice(load_phrasings().kinds[kind][use])
        filled = "/".join(worked.slots.values())  # the group, in all its wordings
        if held is None:
            question = put(phrasing, worked.slots)
            return Pair(question, worked.answer, kind, True, f"{kind}/{filled}")
        question = hide(phrasing, worked.slots, self.rng, held=held)
        return self.refuse(question, "unknown operand", f"unknown/{question}")

    def hopeless_pair(self, use: str, inventor: Inventor, kind: str) -> Pair:
        """A private question, or one of its like."""
        phrasing = self.rng.choice(self.unanswerable[kind][use].splitlines())

        def word(slot: re.Match) -> str:
            name = slot[1]
            # a name of its own for each question: "What is a blorf?"
            if name == "blorf":
                return inventor.make(self.rng.choice(("noun", "thing", "animal")))
            # {relative's} has the words of {relative}
            shown, hidden = self.slots[name.removesuffix("'s")]
            options = shown if use == "ask" else shown + hidden
            return self.rng.choice(options) + ("'s" if name.endswith("'s") else "")

        question = re.sub(r"\{(.+?)\}", word, phrasing)
        return self.refuse(question, kind, f"{kind}/{phrasing}")

    def many(self, wanted: int, make: Callable[[], Pair]) -> list[Pair]:
        """Up to `wanted` different questions; fewer where there are no more."""
        found: list[Pair] = []
        for _ in range(5):  # rounds, since free() drops what was asked before
            found += self.free(make() for _ in range(wanted - len(found)))
        return found

    # ---- the splits

    def tests(self) -> dict[str, list[Pair]]:
        """The four tests."""
        # whichever set asks a question first has it: free() gives it to no other
        inventor = self.inventor("hopeless")
        hopeless: list[Pair] = []
        for kind in UNANSWERABLE:
            hopeless += self.many(
                110, partial(self.hopeless_pair, "held", inventor, kind)
            )
        worked: list[Pair] = []
        for kind in WORKERS:
            worked += self.many(45, partial(self.worked_pair, "held", kind))
            hopeless += self.many(6, partial(self.worked_pair, "held", kind, held=True))
        self.taken |= inventor.made
        self.rng.shuffle(worked)
        self.rng.shuffle(hopeless)
        return {
            "phrasings": self.free(self.fact_pair(fact, "held") for fact in self.facts),
            "entities": self.entity_pairs("entities", 8),
            "templates": worked,
            "unanswerable": hopeless,
        }

    def calibration(self) -> list[Pair]:
        """Questions of all kinds, in wordings and of names that are in no other set."""
        # free() has shuffled them, so that 900 are a fair sample
        facts = self.free(self.fact_pair(fact, "check") for fact in self.facts)[:900]
        refused = self.entity_pairs("calibration", 3)
        inventor = self.inventor("calibration words")
        for kind in UNANSWERABLE:
            refused += self.many(
                40, partial(self.hopeless_pair, "check", inventor, kind)
            )
        self.taken |= inventor.made
        worked: list[Pair] = []
        for kind in WORKERS:
            worked += self.many(20, partial(self.worked_pair, "check", kind))
            hidden = partial(self.worked_pair, "check", kind, held=False)
            refused += self.many(4, hidden)
        pairs = facts + worked + refused
        self.rng.shuffle(pairs)
        return pairs

    def train(self, count: int) -> list[Pair]:
        """The training pairs, in a random order."""
        inventor = self.inventor("train")
        refused = round(count * (1 - ANSWERABLE_SHARE))
        facts = round((count - refused) * FACT_SHARE)
        worked = count - refused - facts
        twins = round(refused * TWIN_SHARE)
        hidden = round(refused * HIDDEN_SHARE)
        bare = round(count * BARE_FOLLOW_SHARE)
        hopeless = refused - twins - hidden - bare  # for UNANSWERABLE: the rest
        follows = round(facts * FOLLOW_SHARE), round(twins * FOLLOW_SHARE)
        # where nothing is `taught`, stranger() might find nothing to ask about
        with_twins = [f for f in self.facts if self.by_name[f.domain].taught]
        can_follow = [fact for fact in with_twins if fact.follow]
        can_be_bare = [fact for fact in can_follow if bare_wordings(fact)]

        # calls instead of pairs: allowed() may need several tries for one
        makers: list[Callable[[], Pair]] = []
        makers += self.in_turn(self.fact_pair, self.facts, facts - follows[0])
        makers += self.in_turn(partial(self.worked_pair, "ask"), WORKERS, worked)
        twin = partial(self.twin, inventor=inventor)
        makers += self.in_turn(twin, with_twins, twins - follows[1])
        for wanted, known in zip(follows, (True, False), strict=True):
            follow = partial(self.follow, inventor=inventor, known=known)
            makers += self.in_turn(follow, can_follow, wanted)
        hide_one = partial(self.worked_pair, "ask", held=False)
        makers += self.in_turn(hide_one, WORKERS, hidden)
        hopeless_pair = partial(self.hopeless_pair, "ask", inventor)
        makers += self.in_turn(hopeless_pair, UNANSWERABLE, hopeless)
        makers += self.in_turn(self.bare_follow, can_be_bare, bare)

        seen: set[tuple] = set()
        pairs = [self.allowed(make, seen) for make in makers]
        self.rng.shuffle(pairs)
        return [self.with_history(pair, pairs) for pair in pairs]

    def in_turn(
        self, make: Callable, subjects: Iterable, wanted: int
    ) -> list[Callable[[], Pair]]:
        """`wanted` calls of `make`, with one subject after the other, over and over, so
        that each has its share.
        """
        subjects = list(subjects)
        self.rng.shuffle(subjects)
        return [partial(make, subject) for subject in islice(cycle(subjects), wanted)]

    def bare_follow(self, fact: Topic) -> Pair:
        """ "And of Spain?", with nothing before it."""
        question = self.rng.choice(bare_wordings(fact))
        return self.refuse(question, "missing context", f"bare/{question}")

    def allowed(self, make: Callable[[], Pair], seen: set[tuple]) -> Pair:
        """A pair, restyled, whose question is in no other split, and new where one of
        twelve tries is.
        """
        usable = None
        for _ in range(12):
            pair = make()
            openings = pair.kind not in ("persona", "small talk")
            question = restyle(pair.question, self.rng, openings=openings)
            if normal_form(question) in self.forbidden:
                continue
            usable = pair._replace(question=question)
            if (question, pair.history) not in seen:
                break
        if usable is None:
            raise DataError(
                f"every wording of {pair.question!r} is held out of training",
                "give its domain in chat/facts a phrasing of its own",
            )
        seen.add((usable.question, usable.history))
        return usable

    def with_history(self, pair: Pair, pairs: list[Pair]) -> Pair:
        """Some pairs get another one as an earlier turn, which does not matter to the
        answer.
        """
        # a question that lacks its context would have one
        keep = pair.history or pair.kind == "missing context"
        if keep or self.rng.random() >= HISTORY_SHARE:
            return pair
        earlier = self.rng.choice(pairs)
        turns = ((earlier.question, earlier.answer), (pair.question, pair.answer))
        is_alone = not earlier.history
        fits = is_alone and row_length(turns) <= MAX_ROW
        return pair._replace(history=turns[:1]) if fits else pair


def make_pairs(seed: int = 0, count: int = 50_000) -> PairSets:
    """Makes `count` pairs to train on, and the calibration and test sets, whose sizes
    do not depend on `count`. The same seed and count give the same pairs everywhere.

    Each set is in a random order: a part of it is a fair sample. Raises DataError for
    fewer than 6,000, which would leave facts out.
    """
    if count < MIN_COUNT:
        raise DataError(
            f"{count} pairs are too few for all the facts",
            f"ask for at least {MIN_COUNT}",
        )
    maker = Maker(seed)
    # what they ask, training may not: they come first
    tests = maker.tests()
    calibration = maker.calibration()
    return PairSets(maker.train(count), calibration, **tests)


def card(sets: PairSets) -> str:
    """The data card, in Markdown: what is in the sets, where it is from, its limits."""
    kinds = sorted({(not p.answerable, p.kind) for pairs in sets for p in pairs})
    counts = [Counter(pair.kind for pair in pairs) for pairs in sets]
    names = PairSets._fields
    rows = [
        f"| {kind} | {'no' if refused else 'yes'} | "
        + " | ".join(str(count[kind]) for count in counts)
        + " |"
        for refused, kind in kinds
    ]
    totals = " | ".join(f"{len(pairs):,}" for pairs in sets)
    refused = sum(not pair.answerable for pair in sets.train) / len(sets.train)
    follow = sum(bool(pair.history) for pair in sets.train) / len(sets.train)
    return "\n".join(
        [
            "# Chat pairs",
            "",
            f"{len(sets.train):,} pairs of a question and a short answer to train on; "
            f"{refused:.1%} of them are to be refused, {follow:.1%} have an earlier "
            "turn. The other sets hold wordings, names or templates that training "
            "never shows.",
            "",
            "| kind | has an answer | " + " | ".join(names) + " |",
            "|---|---|" + "---:|" * len(names),
            *rows,
            f"| all | | {totals} |",
            "",
            CARD_END,
        ]
    )
