"""Trains lite_10m by thirteen recipes, or those of --names, for the same time each, on
one thread, and keeps their run records for chapter 14.

    python book/experiments/fast_recipe.py --corpus FOLDER [--seconds 240]
        [--names muon-16-0.02 adamw-16-2e-3 ...] [--out book/runs]

First a few steps of every recipe are timed by turns, in processor seconds, so that what
else the machine does matters little; the medians go into OUT/recipe-timing. From them
follows how many steps each recipe has. A run that is there already is passed over: the
same command goes on where it was stopped.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.config import Config
from tilelli_nb.data import corpus
from tilelli_nb.data.shards import Shards
from tilelli_nb.storage import records
from tilelli_nb.training.cpu_tuning import keep_freed_memory
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import make_optimizer, update
from tilelli_nb.training.precision import choose_precision

ROUNDS = 5  # of timing, the first of which warms up
TO_ZERO = {"schedule": "wsd", "min_lr_ratio": 0.0}
LINEAR = {**TO_ZERO, "decay_ratio": 0.98}  # down from the end of the warm-up
STABLE = {**TO_ZERO, "decay_ratio": 0.4}


def adamw(lr: float, batch: int = 16, **more) -> dict:
    """Settings of a recipe with AdamW alone."""
    return {"optimizer": "adamw", "lr": lr, "batch": batch, **LINEAR, **more}


def muon(muon_lr: float, lr: float, batch: int = 16, **more) -> dict:
    """Settings of a recipe with Muon for the matrices."""
    both = {"optimizer": "muon", "muon_lr": muon_lr, "lr": lr}
    return {**both, "batch": batch, **LINEAR, **more}


RECIPES = {
    "adamw-16-1e-3": adamw(1e-3),
    "adamw-16-2e-3": adamw(2e-3),
    "adamw-16-4e-3": adamw(4e-3),
    "adamw-16-8e-3": adamw(8e-3),
    "adamw-8-4e-3": adamw(4e-3, batch=8),
    "muon-16-0.01": muon(0.01, 1e-3),
    "muon-16-0.02": muon(0.02, 2e-3),
    "muon-16-0.04": muon(0.04, 4e-3),
    "muon-8-0.02": muon(0.02, 2e-3, batch=8),
    "muon-32-0.02": muon(0.02, 2e-3, batch=32),
    "muon-64-0.02": muon(0.02, 2e-3, batch=64),
    "muon-16-0.02-stable": muon(0.02, 2e-3, **STABLE),
    "muon-16-0.02-cosine": muon(0.02, 2e-3, schedule="cosine", min_lr_ratio=0.1),
}


def config_of(name: str, steps: int) -> Config:
    """lite_10m with the settings of a recipe."""
    settings = {"steps": steps, "micro_batch": 16, "eval_bytes": 131_072}
    settings |= {"eval_every": steps, "checkpoint_every": steps, "log_every": 5}
    settings |= RECIPES[name]
    settings["micro_batch"] = min(settings["micro_batch"], settings["batch"])
    return load_config("lite_10m").with_train(**settings)


def step_seconds(names: list[str], shards: Shards, precision: str) -> dict[str, float]:
    """Processor seconds of a step of each recipe: the median over rounds, by turns."""
    measured: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            settings = config_of(name, 100).train
            lm = TilelliLM(config_of(name, 100)).train()
            optimizer = make_optimizer(lm, settings, precision)
            batch = shards.batch(settings.batch, lm.context, torch.Generator())
            update(lm, optimizer, batch, settings, lr=0.0, precision=precision)
            start = time.process_time()
            update(lm, optimizer, batch, settings, lr=0.0, precision=precision)
            measured[name].append(time.process_time() - start)
    return {name: statistics.median(times[1:]) for name, times in measured.items()}


def timing(args: argparse.Namespace, shards: Shards, precision: str) -> dict:
    """The measured seconds of a step, from the record if it was made already."""
    folder = args.out / "recipe-timing"
    if (folder / "results.json").is_file():
        return json.loads((folder / "results.json").read_text())["step_seconds"]
    started, begun = records.now(), time.perf_counter()
    seconds = step_seconds(list(RECIPES), shards, precision)
    record = records.new_record(
        "recipe-timing",
        "bench",
        config=config_of("muon-16-0.02", 100).to_dict(),
        data=shards.describe(),
        precision=precision,
        started=started,
        finished=records.now(),
        wall_s=round(time.perf_counter() - begun, 3),
        notes="Processor seconds of a step on one thread: results.json.",
    )
    records.write_run(folder, record, {"step_seconds": seconds, "threads": 1})
    return seconds


def run(name: str, steps: int, shards: Shards, out: Path) -> None:
    """Trains one recipe and keeps its record and curve."""
    target = out / f"recipe-{name}"
    if (target / "run.json").is_file():
        record = records.load_record(target)
        kept = record["config"]["train"]["steps"]
        if kept != steps:
            raise SystemExit(
                f"{target} has {kept} steps, and these --seconds make {steps}\n"
                "  What to do: choose another --out, or the --seconds of before"
            )
        if record["data"]["sha256"] != shards.describe()["sha256"]:
            raise SystemExit(
                f"{target} was trained on other text than this corpus\n"
                "  What to do: choose another --out, or the --corpus of before"
            )
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / target.name
        lm = TilelliLM(config_of(name, steps))
        record = train(
            lm, shards, folder, notes="One recipe of the same time as others."
        )
        if not record["finished"]:
            raise SystemExit(f"{name}: stopped, and not kept")
        target.mkdir(parents=True, exist_ok=True)
        for file in ("metrics.jsonl", "run.json"):
            shutil.copy(folder / file, target / file)
    print(f"{name}: {record['val_bpb']:.4f} bits per byte, {steps} steps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--seconds", type=float, default=240.0, help="of each recipe")
    parser.add_argument("--names", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path("book/runs"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    shards = corpus.prepare_corpus(args.corpus)
    precision = choose_precision("auto", torch.device("cpu"))
    seconds = timing(args, shards, precision)
    for name in args.names:
        run(name, round(args.seconds / seconds[name]), shards, args.out)


if __name__ == "__main__":
    main()
