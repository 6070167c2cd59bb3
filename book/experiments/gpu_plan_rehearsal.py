"""Rehearses the GPU plan on the CPU at tiny size, with accidents. Each rehearsal has to
end with a trained model at home.

    python book/experiments/gpu_plan_rehearsal.py [--out book/runs/gpu-plan-rehearsal]
        [--only NAME ...] [--compiler inductor]

The calls run as they would on a lent machine: outside the checkout, in a Python that
finds neither the package nor the libraries that only the book needs. What happens:

    undisturbed     the kernels are interpreted, a compiled step is held against an
                    eager one; the model is trained, brought home, joined and loaded
    kernel raises   as if the card had too little shared memory: the modes with kernels
                    fail, the reference trains
    compile hangs   forever: the trainer is killed for its silence three times, and the
                    fourth trains without compiling
    killed          the trainer with SIGKILL between calls A and B, and again between B
                    and C: the next call starts another, which goes on where it was

Some minutes, most of them imports. Exits 1 if anything is not as it should be. With
--out it leaves a run record, and what happened in results.json beside it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import gpu_carry
from tilelli_nb import TilelliLM, prepare_shards
from tilelli_nb.data.documents import documents
from tilelli_nb.files import write_atomic
from tilelli_nb.storage.records import new_record, now, write_run

PLAN = Path(__file__).with_name("gpu_plan.py")
TINY = """
name: tiny
model: {d_model: 32, n_blocks: 1, n_heads: 1, keep: 8, context: 32}
train: {steps: 100000, batch: 2, eval_bytes: 2000, precision: fp32}
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
    "typer",
)
# Python runs this at its start. It hides libraries, and breaks what a fault needs.
STOCK_IMAGE = f"""
import os, sys, time
from importlib.machinery import PathFinder

FAULT = os.environ.get("REHEARSED_FAULT", "")

class TooLarge:
    def __getitem__(self, grid):
        from triton.runtime.errors import OutOfResources
        raise OutOfResources(300_000, 232_448, "shared memory")

def break_it(module):
    if FAULT == "kernel raises" and module.__name__ == "tilelli_nb.model.kernels":
        module.forward_kernel = TooLarge()
    if FAULT == "compile hangs" and hasattr(module, "LossTermsOf"):
        module.LossTermsOf.compile = lambda self, **_: time.sleep(10_000)

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}:
            return None
        spec = super().find_spec(name, path, target)
        if spec and spec.loader and name.startswith("tilelli_nb."):
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (run(module), break_it(module))
        return spec

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if not getattr(finder, "__name__", "").startswith("_Editable")
]
"""


class Rehearsal:
    """A folder that stands for the lent machine, and one plan in it."""

    def __init__(self, root: Path, packed: Path, fault: str = "") -> None:
        self.root, self.packed, self.fault = root, packed, fault
        self.seconds: dict[str, float] = {}
        write_atomic(root / "tiny.yaml", TINY.encode())
        write_atomic(root / "image" / "sitecustomize.py", STOCK_IMAGE.encode())
        self.environment = os.environ | {
            "PYTHONPATH": str(root / "image"),
            "OMP_NUM_THREADS": "1",
            "TRITON_INTERPRET": "1",
            "REHEARSED_FAULT": fault,
        }
        self.environment.pop("TILELLI_ATTENTION", None)

    def call(self, *arguments: object, limit: float, status: int = 0) -> str:
        """One call to its end: what it printed. Fails on another exit status."""
        start = time.perf_counter()
        done = subprocess.run(
            [
                sys.executable,
                str(PLAN),
                *("--out", "plan", "--limit", str(limit)),
                *map(str, arguments),
            ],
            cwd=self.root,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit + 30,
        )
        self.seconds[str(arguments[0])] = round(time.perf_counter() - start, 1)
        seconds = self.seconds[str(arguments[0])]
        print(f"--- {arguments[0]}, {seconds} s: {done.stdout}", end="", flush=True)
        if done.returncode != status:
            log = self.root / "plan" / "train.log"
            words = log.read_text()[-3000:] if log.is_file() else ""
            raise SystemExit(f"{arguments[0]} ended with {done.returncode}\n{words}")
        return done.stdout

    def start(self, *options: object, limit: float = 60, **expected: int) -> str:
        return self.call(
            "start",
            *("--shards", self.packed, "--config", "tiny.yaml", "--device", "cpu"),
            *("--log-every", 2, "--eval-every", 20, "--checkpoint-seconds", 0.5),
            *("--timing-seconds", 0.5, "--margin", 3, "--commit", "rehearsal"),
            *options,
            limit=limit,
            **expected,
        )

    def go(self, seconds: float, limit: float, insure: float = 5) -> str:
        """Trains until so many seconds from now."""
        return self.call(
            *("go", "--left", seconds, "--reserve", 0, "--back", "insured"),
            *("--insure", insure),
            limit=limit,
        )

    def finish(self, limit: float = 60) -> str:
        return self.call("finish", "--back", "back", "--no-profile", limit=limit)

    def job(self) -> dict:
        return json.loads((self.root / "plan" / "job.json").read_text())

    def state(self) -> dict:
        return json.loads((self.root / "plan" / "state.json").read_text())

    def pace(self) -> float:
        """Seconds that a trainer takes to begin here: other work shares the machine."""
        return min(self.seconds["start"], 60)

    def kill_trainer(self) -> None:
        """Nothing is left of it, and nobody is told."""
        os.killpg(self.job()["pid"], signal.SIGKILL)

    def model_at_home(self, back: str) -> dict:
        """What came back, joined and loaded, and what its record says."""
        home = self.root / back
        gpu_carry.join(home / "tiny-seed0.json", self.root / "joined")
        lm = TilelliLM.from_pretrained(self.root / "joined" / "tiny-seed0")
        listed = json.loads((home / "tiny-seed0.json").read_text())
        record = json.loads((home / "run.json").read_text())
        plan = json.loads((home / "plan.json").read_text())
        return {
            "files": len(list(home.iterdir())),
            "finite": all(p.isfinite().all().item() for p in lm.parameters()),
            "finished": bool(record["finished"]),
            "step": listed.get("step", record["steps"]),
            "planned_steps": record["config"]["train"]["steps"],
            "val_bpb": record["val_bpb"],
            "mode": plan["state"]["mode"],
            "step_ms": plan["state"]["step_ms"],
            "gradients": plan["state"].get("gradients"),
            "attempts": plan["attempts"],
            "notes": record["notes"],
        }


def is_trained(found: dict) -> bool:
    """Finished, in eight files at most, and far from the eight bits of a fresh one."""
    at_home = found["finished"] and found["files"] <= 8 and found["finite"]
    return at_home and found["val_bpb"] < 6


def undisturbed(r: Rehearsal, options: list) -> dict:
    r.start(*options, limit=300)
    r.go(r.pace() + 15, limit=300)
    r.finish()
    found = r.model_at_home("back")
    found["good"] = is_trained(found) and found["attempts"] == []
    return found


def failing(r: Rehearsal, options: list) -> dict:
    """Whatever fails, fails before anything is trained: another mode does it all."""
    patience = 25 if r.fault == "compile hangs" else 120
    r.start(*options, "--patience", patience, limit=300)
    r.go(r.pace() + 10, limit=300)
    r.finish()
    found = r.model_at_home("back")
    why = {"kernel raises": "OutOfResources", "compile hangs": "silent for"}[r.fault]
    found["good"] = (
        is_trained(found)
        and found["mode"].startswith("reference")
        and found["attempts"] != []
        and all(why in attempt["why"] for attempt in found["attempts"])
    )
    return found


def killed(r: Rehearsal, options: list) -> dict:
    r.start(*options, limit=300)
    r.kill_trainer()
    # it stops watching long before the end of the training
    watched = 1.5 * r.pace() + 5
    r.go(2.5 * watched, limit=300, insure=300 - watched)
    if not (r.root / "insured" / "tiny-seed0.json").is_file():
        r.go(0, limit=300, insure=300 - watched)  # the machine is slower than before
    insured, before = r.model_at_home("insured"), r.state()["step"]
    r.kill_trainer()
    r.finish(limit=300)
    found = r.model_at_home("back")
    found["insured_at_step"], found["killed_at_step"] = insured["step"], before
    found["good"] = (
        is_trained(found)
        and [attempt["why"] for attempt in found["attempts"]] == ["gone", "gone"]
        and 0 < insured["step"] <= before <= found["step"]
        and not insured["finished"]
    )
    return found


REHEARSALS = {
    "undisturbed": undisturbed,
    "kernel raises": failing,
    "compile hangs": failing,
    "killed": killed,
}


def rehearse(name: str, root: Path, packed: Path, options: list) -> dict:
    """One rehearsal in a folder of its own."""
    r = Rehearsal(root, packed, fault=name)
    try:
        found = REHEARSALS[name](r, options)
    finally:
        if (root / "plan" / "job.json").is_file() and (pid := r.job()["pid"]):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    return found | {"seconds": r.seconds}


def packed_stories(root: Path) -> Path:
    """A small text as it is carried."""
    text = documents("stories", limit_bytes=300_000)
    prepare_shards(text, root / "made" / "stories", "stories")
    command = [sys.executable, PLAN, "--out", root, "pack", root / "made" / "stories"]
    subprocess.run(command, check=True)
    return root / "stories.tar.xz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=REHEARSALS, default=[*REHEARSALS])
    parser.add_argument("--compiler", default="aot_eager")
    args = parser.parse_args()
    record = new_record(
        args.out.name if args.out else "gpu-plan-rehearsal",
        "eval",
        seed=0,
        notes="The GPU plan at tiny size on a CPU, with accidents: results.json.",
    )
    start, found = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        packed = packed_stories(Path(folder))
        for name in args.only:
            root = Path(folder) / name.replace(" ", "-")
            found[name] = rehearse(name, root, packed, ["--compiler", args.compiler])
            print(json.dumps({name: found[name]}, indent=2), flush=True)
    if args.out:
        record |= {"finished": now(), "wall_s": round(time.perf_counter() - start, 1)}
        write_run(args.out, record, found)
    raise SystemExit(not all(one["good"] for one in found.values()))


if __name__ == "__main__":
    main()
