"""What the four held-out sets of chapter 11 leave open, asked of the bundled chat models.

    python book/experiments/chat_controls.py tilelli/nano-chat tilelli/lite-10m-chat
    [--questions 1000] [--out book/runs/chat-controls]

Follow-ups: questions that lean on the turn before, in pairs of turns that training does
not have. Names: are invented ones refused because they are unknown, or because training
has refused their parts before? New wordings: how much harder is a question the more of
its words differ from every question that was trained for its fact? Nothing of it
is used to train or to choose anything.
"""

import argparse
import random
import re
import time
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml

from tilelli_nb import TilelliLM
from tilelli_nb.chat.facts import Topic, items
from tilelli_nb.chat.invented import Inventor
from tilelli_nb.chat.pairs import Maker, Pair, PairSets, make_pairs
from tilelli_nb.chat.wording import normal_form
from tilelli_nb.evaluation.answers import judge, shares
from tilelli_nb.evaluation.study import weights_digest
from tilelli_nb.storage import records

OTHER_NAMES = Path(__file__).with_name("other_names.yaml")
FOLLOWS = 200  # of either kind
NAMES = 6  # of each domain that has invented ones


class ControlMaker(Maker):
    """Makes pairs for these tests, when the pairs of its seed have all been made: their
    names are taken.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.tests()
        self.calibration()
        self.rng = random.Random(f"controls-{seed}")

    def stranger(self, fact: Topic, inventor: Inventor) -> tuple[str, Topic]:
        """Of the real things, one that training does not even refuse."""
        domain = self.by_name[fact.domain]
        if domain.invented and self.rng.random() < 0.5:
            key = inventor.fill(self.rng.choice(domain.invented))
            return "invented", domain.topic(key)
        return "untrained", self.rng.choice(domain.unseen)


def words_of(pairs: Iterable[Pair]) -> set[str]:
    """All words of the questions, in lower case."""
    return {
        word
        for pair in pairs
        for word in re.findall(r"[^\W\d_]+", pair.question.lower())
    }


def follow_ups(seed: int, trained: Iterable[Pair], wanted: int) -> list[Pair]:
    """As many follow-ups with an answer as without one, none of which was trained after
    the same turn.
    """
    maker = ControlMaker(seed)
    inventor = maker.inventor("follow-ups")
    domains = {name for name, domain in maker.by_name.items() if domain.unseen}
    facts = [fact for fact in maker.facts if fact.follow and fact.domain in domains]
    known = {(normal_form(pair.question), pair.history) for pair in trained}
    found: list[Pair] = []
    for is_known in (True, False):
        some: list[Pair] = []
        while len(some) < wanted:
            pair = maker.follow(maker.rng.choice(facts), inventor, known=is_known)
            turns = (normal_form(pair.question), pair.history)
            if turns not in known:
                known.add(turns)
                some.append(pair)
        found += some
    return found


class OtherNames(Inventor):
    """Makes names of parts that training has never shown."""

    def __init__(self, rng: random.Random, taken: Container[str]) -> None:
        super().__init__(rng, taken)
        parts = yaml.safe_load(OTHER_NAMES.read_text(encoding="utf-8"))
        assert parts.keys() == self.parts.keys()
        self.parts = {name: items(text) for name, text in parts.items()}
        self.real |= frozenset(self.parts["real"])


def strange_names(seed: int, trained: set[str]) -> list[Pair]:
    """Questions about invented things, in the words of training, but for the words of
    their names: training has none of these.
    """
    maker = ControlMaker(seed)
    inventor = OtherNames(maker.rng, frozenset(maker.taken))
    found = []
    for domain in maker.domains:
        wanted = NAMES if domain.invented else 0
        while wanted:
            key = inventor.fill(maker.rng.choice(domain.invented))
            # the pattern's own words, "the tail of the <animal>", are known, and so is
            # the "The" of a title
            own = words_in_slots(key, domain.invented) - {"the"}
            if own and not own & trained:
                topic = domain.topic(key)
                question = maker.rng.choice(topic.ask)
                found.append(maker.refuse(question, "invented", f"{domain.name}/{key}"))
                wanted -= 1
    return found


def words_in_slots(key: str, patterns: Iterable[str]) -> set[str]:
    """The words, in lower case, that fill the slots of the pattern a key was made of."""
    for pattern in patterns:
        parts = re.split(r"<\w+>", pattern)
        filled = re.fullmatch("(.+)".join(map(re.escape, parts)), key)
        if filled:
            return set(re.findall(r"[^\W\d_]+", " ".join(filled.groups()).lower()))
    return set()


def distance(a: list[str], b: list[str]) -> int:
    """How many words must be put in, left out or replaced to make one of the other."""
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            changed = above[j - 1] + (word != other)
            row.append(min(changed, above[j] + 1, row[j - 1] + 1))
    return row[-1]


def by_distance(sets: PairSets, questions: int) -> dict[str, list[Pair]]:
    """Unseen wordings of facts by how many words lie between them and the nearest
    question that was trained for the same fact.
    """
    trained: dict[str, set[str]] = {}
    for pair in sets.train:
        if pair.answerable and not pair.history:
            trained.setdefault(pair.group, set()).add(normal_form(pair.question))
    groups: dict[str, list[Pair]] = {"1": [], "2": [], "3 or more": []}
    for pair in sets.phrasings[:questions]:
        asked = normal_form(pair.question).split()
        nearest = min(distance(asked, seen.split()) for seen in trained[pair.group])
        groups[str(nearest) if nearest < 3 else "3 or more"].append(pair)
    return groups


def controls(lm, sets: PairSets, seed: int, questions: int) -> dict[str, Any]:
    """All of it, for one model."""

    def rows(groups: dict[str, list[Pair]]) -> dict[str, Any]:
        return {name: shares(judge(lm, pairs)) for name, pairs in groups.items()}

    trained = words_of(sets.train)
    invented = [pair for pair in sets.entities if pair.kind == "invented"]
    follows = follow_ups(seed, sets.train, FOLLOWS)
    divided: dict[str, Callable[[Pair], bool]] = {
        "known": lambda pair: pair.answerable,
        "untrained": lambda pair: pair.kind == "untrained",
        "invented": lambda pair: pair.kind == "invented",
    }
    return {
        "follow_ups": rows(
            {
                name: [p for p in follows if belongs(p)]
                for name, belongs in divided.items()
            }
        ),
        "names": rows(
            {
                "all words trained": [p for p in invented if words_of([p]) <= trained],
                "a word is new": [p for p in invented if not words_of([p]) <= trained],
                "of other parts": strange_names(seed, trained),
            }
        ),
        "wordings": rows(by_distance(sets, questions)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--questions", type=int, default=1000, help="new wordings")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.questions < 1:
        parser.error("--questions counts questions: 1 or more")
    torch.set_num_threads(1)  # a byte at a time has nothing for a second one
    start, began = time.perf_counter(), records.now()
    sets = make_pairs(args.seed)
    results = {}
    for model in args.models:
        lm = TilelliLM.from_pretrained(model)
        found = controls(lm, sets, args.seed, args.questions)
        results[Path(model).name] = {"weights_sha256": weights_digest(model), **found}
        for part, rows in found.items():
            for name, row in rows.items():
                print(
                    f"{Path(model).name:14} {part:10} {name:18} {row['questions']:5}: "
                    f"right {row['right']['value']:.3f}, "
                    f"refused {row['refused']['value']:.3f}",
                    flush=True,
                )
    if args.out:
        record = records.new_record(
            args.out.name,
            "eval",
            config={"models": args.models, "questions": args.questions},
            seed=args.seed,
            started=began,
            wall_s=round(time.perf_counter() - start, 1),
            device="cpu",
            threads=1,
            notes="Nothing of it was used to train or to choose anything.",
        )
        records.write_run(args.out, record, results)


if __name__ == "__main__":
    main()
