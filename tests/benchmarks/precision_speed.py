"""What do 16-bit products buy in training, and what do they cost?

    python tests/benchmarks/precision_speed.py --corpus FOLDER [--config lite_10m_fast]
        [--rounds 9] [--megabytes 1] [--threads 1] [--out book/runs/NAME]

First both precisions make a step by turns, each first in every other round; the ratio
of bytes per second is taken round by round. Then a model is trained in each for some
megabytes, from the same weights and on the same batches, with a rate that falls to
zero, and its held-out bits per byte are measured in fp32. With --out the figures become
a run record, with results.json beside it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tilelli_nb.training.cpu_tuning import keep_freed_memory, wait_briefly

# ruff: noqa: E402
wait_briefly()

import torch

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.config import Config
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.data.shards import Shards
from tilelli_nb.storage.records import new_record, now, write_run
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import make_optimizer, update

PRECISIONS = ("fp32", "bf16")
WARM_UP = 2


def by_turns(config: Config, shards: Shards, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, in either precision."""
    models = {name: TilelliLM(config).train() for name in PRECISIONS}
    optimizers = {
        name: make_optimizer(lm, config.train, name) for name, lm in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    dice = torch.Generator().manual_seed(0)
    for turn in range(WARM_UP + rounds):
        batch = shards.batch(config.train.batch, config.model.context, dice)
        for name in PRECISIONS if turn % 2 else reversed(PRECISIONS):
            start = time.perf_counter()
            update(
                models[name],
                optimizers[name],
                batch,
                config.train,
                lr=0.0,
                precision=name,
            )
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def trained(config: Config, shards: Shards, precision: str) -> dict[str, Any]:
    """The record of a short run in this precision."""
    config = config.with_train(precision=precision)
    with tempfile.TemporaryDirectory() as scratch:
        return train(TilelliLM(config), shards, Path(scratch) / precision)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--config", default="lite_10m_fast")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    start, began = time.perf_counter(), now()
    shards = prepare_corpus(args.corpus)
    config = load_config(args.config)
    step_bytes = config.train.batch * config.model.context
    steps = round(args.megabytes * 1e6 / step_bytes)
    config = config.with_train(
        steps=steps,
        decay_ratio=0.9,
        eval_every=steps,
        checkpoint_every=steps,
        eval_bytes=262_144,
    )
    seconds = by_turns(config, shards, args.rounds)
    ratios = [
        slow / fast
        for slow, fast in zip(*(seconds[p] for p in PRECISIONS), strict=True)
    ]
    print(
        f"bf16 reads {statistics.median(ratios):.2f} times as many bytes a second",
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
    val_bpb = {}
    for name in PRECISIONS:
        val_bpb[name] = trained(config, shards, name)["val_bpb"]
        print(f"{name}: {val_bpb[name]:.4f} bits per byte", flush=True)
    if args.out:
        record = new_record(
            args.out.name,
            "bench",
            config=config.to_dict(),
            data=shards.describe(),
            device="cpu",
            threads=args.threads,
            started=began,
            finished=now(),
            wall_s=round(time.perf_counter() - start, 1),
            notes=f"{args.config} in fp32 and in bf16, from the same weights on the "
            f"same batches: {steps} steps each, held-out bits in fp32.",
        )
        results = {
            "bytes_per_s": {
                name: round(step_bytes / statistics.median(times), 1)
                for name, times in seconds.items()
            },
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "bytes_seen": steps * step_bytes,
            "val_bpb": val_bpb,
            "difference": round(val_bpb["bf16"] - val_bpb["fp32"], 5),
        }
        write_run(args.out, record, results)


if __name__ == "__main__":
    main()
