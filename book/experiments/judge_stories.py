"""Lets a model write stories and holds each against the plots they are made from: is it
one story from end to end?

    python book/experiments/judge_stories.py [--model tilelli/nano] [--stories 200]
    [--temperatures 0.3 0.5] [--out FOLDER]

A story is *whole* when every sentence is one of the same plot, in order, up to the end,
and every name, pronoun and thing in it is the one that the story began with (the red
kite stays red, Lily stays Lily). It *slips* when the plot is whole but something in it
is exchanged; otherwise it has *lost the plot*. With --out the verdicts are kept as a
record, with the text where it is not whole.
"""

import argparse
import re
import time
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

from tilelli_nb import TilelliLM
from tilelli_nb.data.stories import ALWAYS, PRONOUNS, Slots, load_world
from tilelli_nb.storage import records

WORLD = load_world()
BEGIN = "Once upon a time"


def casts() -> dict[str, list[Slots]]:
    """Every row of every table as the slots that it fills; a thing once for each of its
    looks.
    """
    found = defaultdict(list)
    for table, rows in WORLD.rows.items():
        for row in rows:
            for looks in row.get("looks", "-").split():
                slots = Slots(row)
                if "looks" in row:
                    slots[table] = f"{looks} {row[table + '0']}"
                if table == "place":
                    slots |= {
                        "at": f"{row['at']} {row['place']}",
                        "to": f"to {row['place']}",
                    }
                if table == "people":
                    for who in ("", "f", "e", "h"):
                        slots |= {
                            who + slot: word
                            for slot, word in PRONOUNS[row[who + "sex"]].items()
                        }
                found[table].append(Slots(slots))
    return dict(found)


CASTS = casts()


@cache
def values(slot: str) -> tuple[str, dict[str, set[int]]]:
    """The table that a slot belongs to, and for each text it can stand for, the rows
    that say so.
    """
    plain = slot.removesuffix("_cap").removeprefix("a_").removeprefix("A_").lower()
    for table, rows in CASTS.items():
        if plain in rows[0]:
            texts = defaultdict(set)
            for number, row in enumerate(rows):
                for his in ("his", "her"):  # what a slot stands for may hold {his}
                    texts[row[slot].replace("{his}", his)].add(number)
            return table, texts
    words = [
        word
        for name, listed in WORLD.words.items()
        if name.split("_")[0] == plain
        for word in listed
    ]
    return "", {word: set() for word in words}


class Sentence:
    """One sentence of a plot as a pattern, with the slots that it captures."""

    def __init__(self, ways: list[str], weather: str) -> None:
        self.slots: list[str] = []
        self.pattern = re.compile("|".join(self.read(way, weather) for way in ways))

    def read(self, text: str, weather: str) -> str:
        parts = []
        for piece in re.split(r"(<\w+>|\{\w+\})", text):
            if piece[:1] == "<":
                lines = WORLD.lines(piece[1:-1], weather)
                parts.append(
                    "(?:" + "|".join(self.read(line, weather) for line in lines) + ")"
                )
            elif piece[:1] == "{":
                self.slots.append(piece[1:-1])
                texts = sorted(values(piece[1:-1])[1], key=len, reverse=True)
                parts.append("(" + "|".join(map(re.escape, texts)) + ")")
            else:
                parts.append(re.escape(piece))
        return "".join(parts)


def plots() -> list[tuple[int, list]]:
    """Every plot in every weather that it may have: its number and its sentences."""
    found = []
    for number, plot in enumerate(WORLD.plots):
        needs = ALWAYS | dict(need.split("=") for need in plot["needs"].split())
        for weather in needs["weather"].split(","):
            lines = [
                line
                for line in re.split(r"\n(?!/)", plot["story"].strip())
                if line != "="
            ]
            found.append(
                (
                    number,
                    [
                        Sentence([way[2:] for way in line.split("\n")], weather)
                        for line in lines
                    ],
                )
            )
    return found


def judge(story: str, known: list[tuple[int, list]]) -> tuple[str, str]:
    """("whole" | "slip" | "lost", what went wrong)."""
    text, best = " ".join(story.split()), (0.0, "")
    for number, sentences in known:
        at, held = 0, defaultdict(list)
        for done, sentence in enumerate(sentences):
            if not (match := sentence.pattern.match(text, at)):
                best = max(
                    best,
                    (
                        done / len(sentences),
                        f"plot {number} up to: {text[max(at - 30, 0) : at + 50]!r}",
                    ),
                )
                break
            for slot, said in zip(sentence.slots, match.groups(), strict=True):
                if said is not None:
                    table, texts = values(slot)
                    held[table].append((said, texts[said]))
            at = match.end() + 1
        else:
            if at < len(text):
                best = max(
                    best, (1.0, f"plot {number} goes on: {text[at : at + 50]!r}")
                )
                continue
            mixed = {
                table: list(dict.fromkeys(said for said, _ in seen))
                for table, seen in held.items()
                if table and not set.intersection(*(rows for _, rows in seen))
            }
            return (
                ("slip", f"plot {number}: {mixed}")
                if mixed
                else ("whole", f"plot {number}")
            )
    return "lost", best[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tilelli/nano")
    parser.add_argument("--stories", type=int, default=200)
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.3, 0.5, 0.8]
    )
    parser.add_argument(
        "--show", action="store_true", help="print every story with its verdict"
    )
    parser.add_argument("--out", type=Path, help="the folder of the record")
    args = parser.parse_args()
    started, begun = records.now(), time.perf_counter()
    lm, known = TilelliLM.from_pretrained(args.model).prepare(), plots()
    results = {"counts": {}, "stories": []}
    for temperature in args.temperatures:
        verdicts = []
        for seed in range(args.stories):
            ids = lm.generate(
                list(BEGIN.encode()), max_new=900, temperature=temperature, seed=seed
            )
            story = bytes(ids).decode(errors="replace")
            verdict, why = judge(story, known)
            verdicts.append(
                {
                    "temperature": temperature,
                    "seed": seed,
                    "verdict": verdict,
                    "why": why,
                }
                | ({} if verdict == "whole" else {"story": story})
            )
            if args.show:
                print(f"{seed:4} {verdict:6} {why}\n{story}\n", flush=True)
        results["counts"][str(temperature)] = counts = Counter(
            v["verdict"] for v in verdicts
        )
        results["stories"] += verdicts
        print(
            f"{dict(counts)} of {args.stories} stories of {args.model} at temperature {temperature}",
            flush=True,
        )
    if args.out:
        record = records.new_record(
            args.out.name,
            "eval",
            config={"name": lm.config.name},
            device="cpu",
            started=started,
            wall_s=round(time.perf_counter() - begun, 3),
            notes=(
                f"{args.stories} stories of {args.model} at each temperature, each begun with "
                f"{BEGIN!r} and a seed of its own."
            ),
        )
        records.write_run(args.out, record, results)


if __name__ == "__main__":
    main()
