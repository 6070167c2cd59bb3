"""Asks a chat model everything that was held out, and keeps what came out as a record.

    python book/experiments/judge_chat.py --model runs/sft_nano --text stories
    [--before tilelli/nano] [--outside FOLDER] [--out book/runs/nano-chat-judged]
    [--gate] [--questions N]

Asked at temperature 0: the held-out sets of the pairs, all of them; the hundred first
questions; what gates make of it, whose thresholds are chosen on the calibration set;
how well confidence tells right answers from wrong ones, with a control of shuffled
outcomes; held-out text before and after. --outside names a folder with the public
question sets of FILES: what they hold is not kept, only counts are. --gate writes the
first of the gates, the cheapest, beside the model. --questions asks the first N of
each set alone.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from tilelli_nb import TilelliLM, pretrained
from tilelli_nb.chat.facts import first_questions
from tilelli_nb.chat.pairs import Pair, PairSets, accepts, make_pairs
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import EvaluationError
from tilelli_nb.evaluation.answers import (
    GIVE_UP,
    Judged,
    by_kind,
    calibrate,
    curve,
    judge,
    knows_when_it_is_right,
    shares,
    shares_of_set,
    through,
)
from tilelli_nb.evaluation.statistics import auroc, bootstrap
from tilelli_nb.evaluation.study import weights_digest
from tilelli_nb.inference.chatting import SIGNALS, Gate, write_gate
from tilelli_nb.storage import records
from tilelli_nb.training.planning import FINAL_EVAL_BYTES

HELD_OUT = ("phrasings", "entities", "templates", "unanswerable")
ASKED = ("calibration", *HELD_OUT)
OUTSIDE = 400  # questions of each public set and side
PRICES = (GIVE_UP, 0.05, 0.2)  # shares of the right answers that a gate may cost
SHOWN = 20  # conversations that are kept, unpicked


def questions_in(path: Path) -> list[str]:
    """The questions of a public set, one JSON object a line or in a list."""
    text = path.read_text(encoding="utf-8")
    if path.name.startswith("Unknown"):
        return [json.loads(line)["prompt"] for line in text.splitlines() if line]
    return [entry["qText"] for entry in json.loads(text)]


def outside_sets(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Public sets by name: the questions with an answer, and those without one."""
    entries = json.loads((folder / "SelfAware.json").read_text(encoding="utf-8"))
    aware: dict[bool, list[str]] = {True: [], False: []}
    for entry in entries["example"]:
        aware[bool(entry["answerable"])].append(entry["question"])
    sets = {"SelfAware": (aware[True], aware[False])}
    for name in ("FalseQA", "RefuNQ"):
        sides = (
            questions_in(folder / f"UnknownBench_{name}_{side}.json")
            for side in ("answerable", "unanswerable")
        )
        sets[name] = tuple(sides)
    sets["WebQuestions"] = (questions_in(folder / "webquestions_test.json"), [])
    return sets


def ask_outside(lm, folder: Path) -> dict[str, Any]:
    """How often each side of each public set is refused, and whether confidence tells
    the sides apart.
    """
    found = {}
    dice = random.Random(0)
    for name, sides in outside_sets(folder).items():
        judged: list[list[Judged]] = []
        for answerable, questions in zip((True, False), sides, strict=True):
            some = dice.sample(questions, min(OUTSIDE, len(questions)))
            pairs = [Pair(q, "", name, answerable, name) for q in some]
            judged.append(judge(lm, pairs))
        answered, hopeless = judged
        row = {"refused_answerable": shares(answered)["refused"]}
        row["answerable"] = len(answered)
        row["unanswerable"] = len(hopeless)
        if hopeless:
            row["refused_unanswerable"] = shares(hopeless)["refused"]
            both = [*answered, *hopeless]
            # a refusal is the least confident answer of all
            sure = [-1.0 if one.refused else one.margin for one in both]
            has_answer = [one.pair.answerable for one in both]
            row["auroc"] = bootstrap(auroc, sure, has_answer)._asdict()
        found[name] = row
    return found


def ask_first(lm) -> dict[str, Any]:
    """The hundred questions that a child would ask first."""
    answers, right = [], []
    for question in first_questions():
        said = lm.chat(question.question).text
        right.append(any(accepts(answer, said) for answer in question.accepted))
        answers.append(
            {"question": question.question, "said": said, "right": right[-1]}
        )
    return {"right": sum(right), "questions": len(right), "answers": answers}


def ask_held_out(lm, pairs: PairSets) -> tuple[dict[str, Any], dict[str, list[Judged]]]:
    """Every held-out set, as a whole and by kind; the answers too."""
    judged = {name: judge(lm, getattr(pairs, name)) for name in HELD_OUT}
    rows = {
        name: {"all": shares_of_set(found), "kinds": by_kind(found)}
        for name, found in judged.items()
    }
    return rows, judged


def gate_results(
    lm, pairs: PairSets, judged: dict[str, list[Judged]]
) -> dict[str, Any]:
    """For each signal: the thresholds from the calibration set, one for each price, and
    what they change in the held-out sets; how well the signal knows, and the control.
    """
    calibration = judge(lm, pairs.calibration)
    everything = [one for found in judged.values() for one in found]
    rows: dict[str, Any] = {}
    for signal in SIGNALS:
        try:
            gates = {price: calibrate(calibration, signal, price) for price in PRICES}
            knows = knows_when_it_is_right(everything, signal)
        except EvaluationError as error:  # all answers right, or all wrong
            print(f"no gate by {signal}: {error.problem}")
            rows[signal] = None
            continue
        rows[signal] = {
            "gates": [
                {
                    "give_up": price,
                    "threshold": gate.threshold,
                    "through": {
                        name: shares(through(gate, found))
                        for name, found in judged.items()
                    },
                }
                for price, gate in gates.items()
            ],
            "auroc": knows._asdict(),
            "shuffled": knows_when_it_is_right(everything, signal, 0)._asdict(),
            "curve": curve(everything, signal),
        }
    return rows


def text_results(lm, before: str, text: str) -> dict[str, Any]:
    """Bits per byte of held-out text, of the model and of the one it came from."""
    shards = prepare_corpus(text)
    held_out = shards.val.read(FINAL_EVAL_BYTES)
    return {
        "text": shards.describe(),
        "before_model": Path(before).name,
        "before_sha256": weights_digest(before),
        "before": TilelliLM.from_pretrained(before).score(held_out),
        "after": lm.score(held_out),
    }


def conversations(judged: dict[str, list[Judged]]) -> list[dict[str, Any]]:
    """Some answers of each set, drawn by a seed and not picked."""
    dice = random.Random(11)
    each = SHOWN // len(judged)
    shown = []
    for name, found in judged.items():
        for one in dice.sample(found, min(each, len(found))):
            shown.append(
                {
                    "set": name,
                    "history": one.pair.history,
                    "question": one.pair.question,
                    "answer": one.pair.answer,
                    "said": one.said,
                    "right": one.right,
                    "margin": round(one.margin, 3),
                }
            )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--before", default="tilelli/nano")
    parser.add_argument("--outside", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--gate", action="store_true")
    parser.add_argument("--questions", type=int, help="of each set, at most")
    args = parser.parse_args()
    if args.questions is not None and args.questions < 1:
        parser.error("--questions counts questions: 1 or more")
    torch.set_num_threads(1)  # a byte at a time has nothing for a second one
    start, began = time.perf_counter(), records.now()
    # what is not there should say so now, and not after all the questions
    prepare_corpus(args.text)
    pretrained.resolve(args.before)
    if args.outside:
        outside_sets(args.outside)
    lm, pairs = TilelliLM.from_pretrained(args.model), make_pairs(args.seed)
    # each set is in a random order: its beginning is a fair sample
    asked = {name: getattr(pairs, name)[: args.questions] for name in ASKED}
    pairs = pairs._replace(**asked)
    held_out, judged = ask_held_out(lm, pairs)
    results = {
        "model": Path(args.model).name,
        "weights_sha256": weights_digest(args.model),
        "pairs": {name: len(getattr(pairs, name)) for name in ASKED},
        "held_out": held_out,
        "first": ask_first(lm),
        "gate": gate_results(lm, pairs, judged),
        "text": text_results(lm, args.before, args.text),
        "conversations": conversations(judged),
    }
    if args.outside:
        results["outside"] = ask_outside(lm, args.outside)
    for name, row in held_out.items():
        right, refused = row["all"]["right"], row["all"]["refused"]
        print(f"{name:13} right {right['value']:.3f}, refused {refused['value']:.3f}")
    print(
        f"first questions: {results['first']['right']} of {results['first']['questions']}"
    )
    print(f"text: {results['text']['before']:.4f} -> {results['text']['after']:.4f}")
    gate_row = results["gate"]["margin"]
    if gate_row:
        print(f"AUROC {gate_row['auroc']}, shuffled {gate_row['shuffled']}")
    if args.gate and gate_row:
        folder = pretrained.resolve(args.model)  # also of a bundled one
        cheapest = gate_row["gates"][0]
        write_gate(folder, Gate("margin", cheapest["threshold"]))
    if args.out:
        record = records.new_record(
            args.out.name,
            "eval",
            config=lm.config.to_dict(),
            seed=args.seed,
            started=began,
            wall_s=round(time.perf_counter() - start, 1),
            val_bpb=results["text"]["after"],
            device="cpu",
            threads=1,
            notes=f"{sum(map(len, judged.values())):,} held-out questions.",
        )
        records.write_run(args.out, record, results)


if __name__ == "__main__":
    main()
