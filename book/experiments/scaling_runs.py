"""Trains four-block models of several widths on the same bytes and keeps their run
records for chapter 9.

    python book/experiments/scaling_runs.py [--widths 32 48 64 96] [--steps 1500]
        [--out book/runs]

About ten minutes on two cores; the book's records were made with --steps 400. Each run
leaves OUT/scaling-dNNN/run.json and metrics.jsonl.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 48, 64, 96])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("book/runs"))
    args = parser.parse_args()
    shards = prepare_corpus("stories")
    for width in args.widths:
        name = f"scaling-d{width:03d}"
        config = (
            load_config("nano")
            .with_model(d_model=width)
            .with_train(steps=args.steps, log_every=50)
        )
        with tempfile.TemporaryDirectory() as folder:
            record = train(
                TilelliLM(config),
                shards,
                Path(folder) / name,
                notes="One point of the scaling curve.",
            )
            if not record["finished"]:
                raise SystemExit(f"{name}: stopped, and not kept")
            (args.out / name).mkdir(parents=True, exist_ok=True)
            for file in ("run.json", "metrics.jsonl"):
                shutil.copy(Path(folder) / name / file, args.out / name / file)
        print(
            f"{name}: {record['val_bpb']:.4f} bits per byte, {record['wall_s']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
