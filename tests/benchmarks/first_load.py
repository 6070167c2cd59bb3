"""How long a reader waits at first, in processes that have done nothing yet:
`python tests/benchmarks/first_load.py [MODEL ...] [--out book/runs/bench-first-load]`.

For each model the seconds of `from_pretrained` after the imports, and those of `tilelli
generate hi --max-new 1` beyond `python -c "import torch"`, taken in turns. The bounds
that we set ourselves, on an idle machine, are 0.3 and 0.8 s.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tilelli_nb.storage import records

LOAD = """
import sys, time
import torch
from tilelli_nb import TilelliLM
start = time.perf_counter()
TilelliLM.from_pretrained(sys.argv[1])
print(time.perf_counter() - start)
"""
PROCESSES = 9


def run(*arguments: str) -> tuple[float, str]:
    """Seconds that a Python process takes, and what it prints."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - start, done.stdout


def waits(model: str) -> dict[str, float]:
    """The median of some fresh processes each, in seconds."""
    generate = ("-m", "tilelli_nb.cli", "generate", "hi", "--max-new", "1")
    load, first_byte, torch_alone = [], [], []
    for _ in range(PROCESSES):
        load.append(float(run("-c", LOAD, model)[1]))
        torch_alone.append(run("-c", "import torch")[0])
        first_byte.append(run(*generate, "--model", model)[0])
    pairs = zip(first_byte, torch_alone, strict=True)
    return {
        "load_s": statistics.median(load),
        "import_torch_s": statistics.median(torch_alone),
        "generate_s": statistics.median(first_byte),
        "generate_beyond_s": statistics.median(one - other for one, other in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=["tilelli/lite-10m"])
    parser.add_argument("--out", type=Path, help="a folder for the record")
    args = parser.parse_args()
    start, began = time.perf_counter(), records.now()
    results = {}
    for model in args.models:
        results[Path(model).name] = found = waits(model)
        print(model, ", ".join(f"{name} {s:.3f}" for name, s in found.items()))
    if args.out:
        record = records.new_record(
            args.out.name,
            "bench",
            config={"processes": PROCESSES},
            started=began,
            wall_s=round(time.perf_counter() - start, 1),
            notes="Medians of fresh processes, one after the other.",
        )
        records.write_run(args.out, record, results)


if __name__ == "__main__":
    main()
