"""What a chat model knows along its training: the held-out questions, asked of its
checkpoints.

    python book/experiments/chat_curve.py FOLDER [FOLDER ...] [--questions 200]
    [--earlier book/runs/RECORD] [--out book/runs/nano-chat-curve]

Each FOLDER holds a run, or a copy of one of its checkpoints under checkpoints/. Of each
held-out set the first --questions are asked, the same of every checkpoint; "each" has
a 1 for every right answer. Where a run went on from the weights of another, --earlier
is the curve of that one: its points come first, and its last step is counted on from.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from tilelli_nb import TilelliLM, pretrained
from tilelli_nb.chat.pairs import PairSets, make_pairs
from tilelli_nb.evaluation.answers import judge, shares
from tilelli_nb.storage import records

HELD_OUT = ("phrasings", "entities", "templates", "unanswerable")


def ask(folder: Path, pairs: PairSets, questions: int) -> dict[str, Any]:
    """The step of a checkpoint, and what it made of some questions of each set."""
    tensors, metadata = pretrained.load_model(folder)
    lm = TilelliLM.from_tensors(tensors, metadata)
    sets = {}
    for name in HELD_OUT:
        judged = judge(lm, getattr(pairs, name)[:questions])
        # question by question, so that two curves can be compared in pairs
        each = "".join("1" if one.right else "0" for one in judged)
        sets[name] = shares(judged) | {"each": each}
    # a finished model has no step of its own: it stands behind the last one
    step = metadata.get("step", metadata["config"]["train"]["steps"])
    return {"step": step, "sets": sets}


def points_of(record: Path) -> list[dict[str, Any]]:
    """The points of a curve that was recorded, in the order of their steps."""
    return json.loads((record / "results.json").read_text())["points"]


def check_same_questions(args: argparse.Namespace) -> None:
    """Ends the program where the earlier curve was drawn with others."""
    record = records.load_record(args.earlier)
    number = f"{args.questions} questions of each held-out set"
    if record["seed"] != args.seed or not record["notes"].startswith(number):
        raise SystemExit(
            f"{args.earlier.name} was drawn with another --seed or --questions: "
            f"{record['notes']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the pairs")
    parser.add_argument("--earlier", type=Path, help="the curve of the run before")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.questions is not None and args.questions < 1:
        parser.error("--questions counts questions: 1 or more")
    torch.set_num_threads(1)  # a byte at a time has nothing for a second one
    start, began = time.perf_counter(), records.now()
    earlier = points_of(args.earlier) if args.earlier else []
    if earlier:
        check_same_questions(args)
    steps_before = earlier[-1]["step"] if earlier else 0
    pairs = make_pairs(args.seed)
    points = [ask(folder, pairs, args.questions) for folder in args.folders]
    points.sort(key=lambda point: point["step"])
    for point in points:
        point["step"] += steps_before
    points = earlier + points
    for point in points:
        row = [
            f"{name} {point['sets'][name]['right']['value']:.2f}" for name in HELD_OUT
        ]
        print(f"step {point['step']:6,}: {', '.join(row)}")
    notes = (
        f"{args.questions} questions of each held-out set a checkpoint; the "
        "learning rate has not fallen to its end before a schedule's last step."
    )
    if args.earlier:
        notes += f" Up to step {steps_before:,} as in {args.earlier.name}."
    if args.out:
        record = records.new_record(
            args.out.name,
            "eval",
            config=pretrained.load_model(args.folders[0])[1]["config"],
            seed=args.seed,
            started=began,
            wall_s=round(time.perf_counter() - start, 1),
            device="cpu",
            threads=1,
            notes=notes,
        )
        records.write_run(args.out, record, {"points": points})


if __name__ == "__main__":
    main()
