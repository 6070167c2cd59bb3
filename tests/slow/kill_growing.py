"""Training on FineWeb-Edu while it is being written: trainer and writer killed
together, or told to stop, and resumed.

    python tests/slow/kill_growing.py [--documents 40000] [--kills 6] [--out
    book/runs/kill-growing]

Every second time SIGKILL goes to both at once, the first time before a step is done;
otherwise SIGTERM goes to the trainer alone, which must exit with 143 and take its writer
along. In the end the run is finished, its metrics have every step once, and the shards
are byte for byte those that a writer alone would have made.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kill_fineweb import arguments, digests, report, write_files

from tilelli_nb.data.fineweb import prepare_fineweb
from tilelli_nb.storage.records import load_metrics, load_record, new_record

CONFIG = (
    "model: {d_model: 16, n_blocks: 1, n_heads: 2, keep: 4, context: 32}\n"
    "train: {steps: 6000, batch: 4, micro_batch: 4, log_every: 5, eval_every: 2000, checkpoint_every: 50}\n"
)
TRAIN = [
    "train",
    "--config",
    "small.yaml",
    "--corpus",
    "fineweb-edu",
    "--files",
    "files",
    "--gigabytes",
    "1",
    "--out",
    "run",
    "--resume",
    "--device",
    "cpu",
]


def start(folder: Path) -> subprocess.Popen:
    """The trainer, in a process group of its own; its writer keeps the same standard
    output open.
    """
    return subprocess.Popen(
        [sys.executable, "-c", "from tilelli_nb.cli.app import main; main()", *TRAIN],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def last_step(run: Path) -> int:
    return (
        load_metrics(run)[-1]["step"]
        if (run / "metrics.jsonl").is_file() and load_metrics(run)
        else 0
    )


def written(folder: Path) -> int:
    return len(list(folder.glob("data/fineweb-edu-1000mb/train-*.bin")))


def main() -> None:
    args = arguments(__doc__, documents=40_000, kills=6)
    record = new_record(
        "kill-growing",
        "eval",
        seed=args.seed,
        notes="A run on shards that were still being written, killed with its writer: results.json.",
    )
    begun, rnd, ends = time.perf_counter(), random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as root:
        folder, run = Path(root), Path(root) / "run"
        (folder / "small.yaml").write_text(CONFIG)
        write_files(folder / "files", args.documents, args.seed)
        for number in range(args.kills):
            kill, step = (
                number % 2 == 0,
                last_step(run) + rnd.randint(1, 150) * (number > 0),
            )
            shards = min(written(folder) + rnd.randint(1, 3), args.documents // 1600)
            process = start(folder)
            while process.poll() is None and not (
                last_step(run) >= step and written(folder) >= shards
            ):
                time.sleep(0.01)
            if kill:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.send_signal(signal.SIGTERM)
            # comes back when the writer, too, has closed its standard output
            process.communicate(timeout=60)
            ends.append(
                {
                    "step": last_step(run),
                    "exit_code": process.returncode,
                    "shards": written(folder),
                }
            )
            print(ends[-1], flush=True)
        finished = start(folder)
        finished.communicate(timeout=600)
        lines, data = load_metrics(run), load_record(run)["data"]
        joined = [line["train_shards"] for line in lines if "train_shards" in line]
        prepare_fineweb(folder / "alone", files=folder / "files", limit_bytes=10**9)
        checks = {
            "finished": finished.returncode == 0
            and load_record(run)["finished"] is not None,
            "stopped_cleanly": all(
                end["exit_code"] == (143 if i % 2 else -9) for i, end in enumerate(ends)
            ),
            "every_step_once": sorted(
                {*range(5, 6001, 5), 1} - {line["step"] for line in lines}
            )
            == []
            and len(lines) == len({line["step"] for line in lines}),
            "shards_only_join": joined == sorted(set(joined))
            and joined[-1] == data["train_shards"],
            "identical_shards": digests(folder / "alone")
            == digests(folder / "data" / "fineweb-edu-1000mb"),
        }
    results = {
        "documents": args.documents,
        "ends": ends,
        "train_shards_joined": joined,
        **checks,
    }
    report(args.out, record, results, begun)
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
