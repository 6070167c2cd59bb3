"""Rehearses the GPU plan on the CPU at tiny size, with kills, and compares with a run
that nothing disturbed.

    python book/experiments/gpu_plan_rehearsal.py [--out book/runs/gpu-plan-rehearsal]

Every command runs as it would on a rented machine: outside the checkout, in a Python
that finds neither the package nor the libraries that only the book needs. Shards are
packed and unpacked; `check` runs on a few kernel tests; a training is started, and
SIGKILL ends the watching command, then the trainer, then both; continued to the end it
must leave the same weights, metrics and samples as an uninterrupted run; two more runs
follow one another; weights are split, joined and loaded, and a flipped byte is refused.
Two to five minutes. Exits 1 if anything differs. With --out it leaves a run record, and
what happened in results.json beside it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tilelli_nb import TilelliLM, prepare_shards
from tilelli_nb.data.documents import documents
from tilelli_nb.files import write_atomic
from tilelli_nb.storage.checkpoint import MODEL_FILE, read_tensors
from tilelli_nb.storage.records import dumps, load_metrics, new_record, now

PLAN = Path(__file__).with_name("gpu_plan.py")
TINY = """
model: {d_model: 32, n_blocks: 1, n_heads: 2, keep: 8, context: 64%s}
train: {steps: 240, batch: 4, micro_batch: 4, log_every: 1, eval_every: 60, eval_bytes: 2000, eps: 1.0e-8}
"""
MISSING = (
    "datasets",
    "huggingface_hub",
    "pyarrow",
    "matplotlib",
    "IPython",
    "ipywidgets",
    "ipykernel",
    "nbformat",
    "nbval",
    "jupytext",
    "jupyterlab",
    "playwright",
    "sklearn",
)
STOCK_IMAGE = f"""
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {MISSING}:
            return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__name__", "").startswith("_Editable")]
"""


def stock_image(folder: Path) -> dict[str, str]:
    """The environment of a Python that does not find what a plain PyTorch image does
    not have.
    """
    write_atomic(folder / "image" / "sitecustomize.py", STOCK_IMAGE.encode())
    given = {
        key: value
        for key, value in os.environ.items()
        if key not in ("TRITON_INTERPRET", "TILELLI_ATTENTION")
    }
    return given | {"PYTHONPATH": str(folder / "image"), "OMP_NUM_THREADS": "1"}


class Rehearsal:
    """A folder that stands for the rented machine, and what happened in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.environment = root, stock_image(root)
        self.seconds: dict[str, float] = {}
        write_atomic(root / "tiny.yaml", (TINY % "").encode())
        write_atomic(root / "plain.yaml", (TINY % ", block: vanilla").encode())

    def command(self, *arguments: object, limit: float = 300) -> list[str]:
        return [
            sys.executable,
            str(PLAN),
            "--device",
            "cpu",
            "--limit",
            str(limit),
            *map(str, arguments),
        ]

    def run(
        self, name: str, *arguments: object, limit: float = 300, status: int = 0
    ) -> str:
        """One command of the plan to its end: what it printed. Fails on another exit
        status.
        """
        start = time.perf_counter()
        done = subprocess.run(
            self.command(*arguments, limit=limit),
            cwd=self.root,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit + 10,
        )
        self.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"--- {name}, {self.seconds[name]} s\n{done.stdout}", end="", flush=True)
        if done.returncode != status:
            logs = "".join(
                path.read_text(errors="replace")[-3000:]
                for path in self.root.glob("*/**/*.log")
            )
            raise SystemExit(
                f"{name} ended with {done.returncode}, not {status}\n{logs}"
            )
        return done.stdout

    def saved(self, run: str) -> int:
        """The step of the newest checkpoint, 0 without one."""
        return max(
            (
                int(path.stem[5:])
                for path in (self.root / run / "checkpoints").glob("step-*.safetensors")
            ),
            default=0,
        )


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.02)


def check(r: Rehearsal) -> dict:
    """The kernel tests of a golden value, and throughput; the kernel benchmark is only
    reported.
    """
    options = [
        "--configs",
        "tiny.yaml",
        "plain.yaml",
        "--micro",
        2,
        4,
        "--seconds",
        1,
        "--select",
        "golden",
        "--quick",
    ]
    subprocess.run(
        r.command("--out", "plan", "check", *options, limit=150),
        cwd=r.root,
        env=r.environment,
        timeout=160,
    )
    found = json.loads((r.root / "plan" / "check" / "results.json").read_text())
    for name, piece in found.items():
        log = r.root / "plan" / "check" / "tests.log"
        if name != "kernel benchmark" and piece["exit"] != 0:
            raise SystemExit(f"{name} failed: {piece}\n{log.read_text()[-3000:]}")
    return {
        name: {key: piece[key] for key in ("exit", "seconds", "best") if key in piece}
        for name, piece in found.items()
    }


class Victims:
    """A watching command and the trainer behind it: both can be killed."""

    def __init__(self, r: Rehearsal, run: str, options: list) -> None:
        self.r, self.run, self.options, self.lost = r, run, options, []
        self.watch()

    def watch(self) -> None:
        with open(self.r.root / "watch.log", "ab") as log:
            self.watcher = subprocess.Popen(
                self.r.command("--out", "plan", "pretrain", *self.options),
                stdout=log,
                stderr=log,
                cwd=self.r.root,
                env=self.r.environment,
            )

    def trainer(self) -> int:
        return int((self.r.root / "plan" / "pid").read_text())

    def steps_since_checkpoint(self) -> int:
        # a line a step
        lines = (self.r.root / self.run / "metrics.jsonl").read_bytes().count(b"\n")
        return lines - self.r.saved(self.run)

    def kill_watcher(self) -> None:
        self.watcher.kill()
        self.watcher.wait()

    def kill_trainer(self) -> None:
        os.kill(self.trainer(), signal.SIGKILL)
        self.lost.append(self.steps_since_checkpoint())


def disturbed(r: Rehearsal, options: list) -> dict:
    """Watching command, trainer, and both are killed; then the command is given again
    until it is done.
    """
    run = "plan/tiny-seed0"
    v = Victims(r, run, options)
    wait_until(lambda: r.saved(run) > 0, "the first checkpoint")
    first = v.trainer()
    v.kill_watcher()
    v.watch()
    wait_until(lambda: v.steps_since_checkpoint() > 4, "a few steps more")
    same_trainer = v.trainer() == first
    v.kill_trainer()  # the command that watches starts another
    saved = r.saved(run)
    wait_until(
        lambda: v.trainer() != first and r.saved(run) > saved,
        "a checkpoint after the first kill",
    )
    wait_until(lambda: v.steps_since_checkpoint() > 4, "a few steps more")
    v.kill_watcher()
    v.kill_trainer()
    if (r.root / run / MODEL_FILE).is_file():
        raise SystemExit(
            "the run was finished before it could be killed: give it more steps"
        )
    print(f"--- pretrain, killed\n{(r.root / 'watch.log').read_text()}", end="")
    said = r.run(
        "a watch that its limit ends", "--out", "plan", "pretrain", *options, limit=3
    )
    last = r.run("continued to the end", "--out", "plan", "pretrain", *options)
    again = r.run("given once more", "--out", "plan", "pretrain", *options)
    if (
        "resuming" not in said
        or "time is up" not in said
        or "finished" not in last
        or "resuming" in again
    ):
        raise SystemExit("the commands did not say what they should")
    train = read_tensors(r.root / run / MODEL_FILE)[1]["config"]["train"]
    return {
        "kills": ["command", "trainer", "command and trainer"],
        "trainer_outlived_command": same_trainer,
        "steps": train["steps"],
        "checkpoint_every": train["checkpoint_every"],
        "steps_lost": v.lost,
    }


def result(run: Path) -> dict[str, object]:
    """What must not differ: weights, metrics without times, samples."""
    metrics = [
        {key: value for key, value in line.items() if key != "wall_s"}
        for line in load_metrics(run)
    ]
    weights = {
        name: tensor.numpy().tobytes()
        for name, tensor in read_tensors(run / MODEL_FILE)[0].items()
    }
    return {
        "metrics": metrics,
        "samples": (run / "samples.jsonl").read_bytes(),
        **weights,
    }


def carry(r: Rehearsal) -> dict:
    """Split, joined, loaded: every weight is the bf16 of the final one. A flipped byte
    is refused.
    """
    r.run("weights", "--out", "back", "weights", "plan/tiny-seed0", "--part-mib", 0.03)
    r.run("join", "--out", "joined", "join", "back/tiny-seed0.json")
    final = TilelliLM.from_pretrained(r.root / "plan" / "tiny-seed0").state_dict()
    joined = TilelliLM.from_pretrained(r.root / "joined" / "tiny-seed0").state_dict()
    parts = sorted((r.root / "back").glob("*.part*"))
    damaged = bytearray(parts[1].read_bytes())
    damaged[100] ^= 1
    parts[1].write_bytes(damaged)
    said = r.run(
        "join with a flipped byte",
        "--out",
        "refused",
        "join",
        "back/tiny-seed0.json",
        status=1,
    )
    return {
        "parts": len(parts),
        "refused": said.strip().splitlines()[0],
        "loaded": all(
            torch.equal(final[name].bfloat16().float(), joined[name]) for name in final
        ),
    }


def rehearse(root: Path) -> dict:
    r, found = Rehearsal(root), {}
    prepare_shards(
        documents("stories", limit_bytes=300_000), root / "made" / "stories", "stories"
    )
    r.run("pack", "--out", "packed", "pack", "made/stories")
    r.run("unpack", "--out", "unpacked", "unpack", "packed/stories.tar.xz")
    options = [
        "--config",
        "tiny.yaml",
        "--shards",
        "unpacked/stories",
        "--checkpoint-seconds",
        0.4,
        "--every",
        5,
    ]
    found["check"] = check(r)
    found["pretrain"] = disturbed(r, options)
    r.run("undisturbed", "--out", "whole", "pretrain", *options)
    found["identical"] = result(root / "plan" / "tiny-seed0") == result(
        root / "whole" / "tiny-seed0"
    )
    said = r.run(
        "several",
        "--out",
        "several",
        "several",
        "tiny.yaml:1",
        "plain.yaml:1",
        *options[2:],
        "--steps",
        20,
    )
    found["several"] = said.count(": finished, 20 steps")
    found["weights"] = carry(r)
    return found | {"seconds": r.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record = new_record(
        args.out.name if args.out else "gpu-plan-rehearsal",
        "eval",
        seed=0,
        notes="The GPU plan at tiny size on a CPU, killed and continued: results.json.",
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as root:
        found = rehearse(Path(root))
    good = (
        found["identical"]
        and found["several"] == 2
        and found["weights"]["loaded"]
        and found["pretrain"]["trainer_outlived_command"]
    )
    print(json.dumps(found, indent=2))
    if args.out:
        record |= {"finished": now(), "wall_s": round(time.perf_counter() - start, 1)}
        write_atomic(args.out / "run.json", dumps(record))
        write_atomic(args.out / "results.json", dumps(found))
    raise SystemExit(not good)


if __name__ == "__main__":
    main()
