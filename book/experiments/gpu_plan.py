"""A trained model in fifteen minutes on a lent GPU: three calls, one after the other.

    python book/experiments/gpu_plan.py --out DIR [--limit SECONDS] COMMAND ...

    start   call A, 90 s: begins to unpack, check and compile in the background, and
            returns when steps have been timed, or at its limit.
    go      call B, at once, with the device seconds that are left: tells the trainer
            when it has to be done, and watches. In its last 20 seconds it brings home
            the weights of the newest checkpoint, in case nothing comes after it.
    finish  call C, at once: watches to the end, brings home the final weights and the
            record, then profiles steps and times kernels in what is left.

    pack    before: a folder of shards as one FOLDER.tar.xz, to be carried in call A
    join    after: the parts of the weights, verified, as a folder that
            TilelliLM.from_pretrained loads

On the machine, with $OUT as the folder that comes back:

    cd book/experiments
    python gpu_plan.py --out plan start --shards text.tar.xz
    python gpu_plan.py --out plan --limit L go --left S --back $OUT
    python gpu_plan.py --out plan finish --back $OUT

S is what is left of the device time and L is at most S - 60. A trainer that fails, that
says nothing for 90 s or that is gone is replaced by one that computes in a more careful
way (MODES), from its newest checkpoint. It needs PyTorch, NumPy, safetensors, PyYAML
and tqdm; no network, and the package need not be installed.
"""

import argparse
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

START = time.monotonic()
HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from tilelli_nb.config import Config, load_config  # noqa: E402
from tilelli_nb.errors import (  # noqa: E402
    ConfigError,
    DataError,
    TilelliError,
    TrainingError,
)
from tilelli_nb.files import write_atomic  # noqa: E402
from tilelli_nb.storage import records  # noqa: E402
from tilelli_nb.training.clock import steady_bytes_per_s  # noqa: E402
from tilelli_nb.training.cost import mfu  # noqa: E402

# Ways of computing, each more careful than the one before.
REFERENCE = {"TILELLI_ATTENTION": "reference"}
MODES = [
    {
        "name": "kernels, compiled, CUDA graphs",
        "compiled": True,
        "kernel": True,
        "environment": {"TORCHINDUCTOR_CUDAGRAPHS": "1"},
    },
    {
        "name": "kernels, compiled",
        "compiled": True,
        "kernel": True,
        "environment": {},
    },
    {
        "name": "reference, compiled",
        "compiled": True,
        "kernel": False,
        "environment": REFERENCE,
    },
    {
        "name": "reference, eager",
        "compiled": False,
        "kernel": False,
        "environment": REFERENCE,
    },
]
# Limits of the calls, in seconds; with the start of the machine under 15 minutes.
LIMITS = {"start": 90, "go": 600, "finish": 90}
INSURE = 20  # before its limit, `go` brings home what there is
FINISH = 75  # of the device time are kept for `finish`


class Plan:
    """A folder, the job in it, and the trainer that works on it, if there is one."""

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def job(self) -> dict:
        try:
            return json.loads((self.out / "job.json").read_text())
        except OSError:
            raise DataError(
                f"{self.out.name} holds no plan", "begin with the command `start`"
            ) from None

    @property
    def run(self) -> Path:
        return self.out / self.job["run"]

    def state(self) -> dict:
        """What the trainer said last; that of an earlier one does not count."""
        with suppress(OSError, ValueError):
            state = json.loads((self.out / "state.json").read_text())
            if state["pid"] == self.job["pid"]:
                return state
        return {"phase": "begun", "at": self.job["begun"]}

    def is_running(self) -> bool:
        """Whether a process holds the lock: there is no number to mistake and nothing
        to clean up after a kill.
        """
        with open(self.out / "lock", "a") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        return True

    def is_finished(self) -> bool:
        record = self.run / "run.json"
        return record.is_file() and records.load_record(self.run)["finished"]

    def begin(self, job: dict) -> None:
        """Starts a trainer in a session of its own, which outlives this command. It
        inherits a lock, which the system lets go when it ends.
        """
        with open(self.out / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            job |= {"begun": time.time(), "pid": None, "mode": MODES[job["modes"][0]]}
            write_json(self.out / "job.json", job)
            with open(self.out / "train.log", "ab") as log:
                trainer = subprocess.Popen(
                    [sys.executable, code(self.out) / "gpu_trainer.py", self.out],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | job["mode"]["environment"],
                    start_new_session=True,
                    pass_fds=[lock.fileno()],
                )
            job["pid"] = trainer.pid
            write_json(self.out / "job.json", job)

    def kill(self) -> None:
        """Ends the trainer and all that it started."""
        with suppress(ProcessLookupError, TypeError):
            os.killpg(self.job["pid"], signal.SIGKILL)
        while self.is_running():
            time.sleep(0.05)

    def replace(self, why: str) -> None:
        """Another trainer for one that is gone: in the next mode if this one failed,
        in the same if somebody else ended it while it was at work.
        """
        job, state = self.job, self.state()
        accident = why == "gone" and state["phase"] in ("ready", "training")
        job["attempts"].append(
            {"mode": job["mode"]["name"], "why": why, "phase": state["phase"]}
        )
        # what has been checked and timed once is not again
        facts = ("step_ms", "kernels", "gradients")
        known = {name: state[name] for name in facts if name in state}
        job["known"] = known if accident else {}
        if not accident or job["accidents"] == 2:
            job["accidents"] = 0
            job["failures"] += 1
            job["modes"] = job["modes"][1:] or job["modes"]  # the last one stays
        job["accidents"] += accident
        if job["failures"] > len(MODES) + 2:
            raise TrainingError(
                f"no way of computing works here; the last one: {why}",
                f"see train.log and state.json in {self.out.name}",
            )
        print(f"{job['attempts'][-1]}: going on as {MODES[job['modes'][0]]['name']}")
        self.begin(job)

    def look(self) -> str:
        """Replaces a trainer that is gone, has failed or is stuck; returns the phase
        that it is in.
        """
        if self.is_finished() and not self.is_running():
            return "finished"
        state, running = self.state(), self.is_running()
        if not running:
            self.replace(state.get("error", "gone"))
        elif state["phase"] not in ("ready", "failed"):
            silent = time.time() - state["at"]
            if silent > self.job["patience"]:
                self.kill()
                self.replace(f"silent for {silent:.0f} s")
        return self.state()["phase"]

    def describe(self) -> str:
        """One line about where it stands."""
        state = self.state()
        words = f"{self.job['mode']['name']}: {state['phase']}"
        if "step_ms" in state:
            words += f", {state['step_ms']} ms a step"
        if "steps" in state:
            words += f", step {state['step']:,} of {state['steps']:,}"
        return words


def code(out: Path) -> Path:
    """The folder of the programs that the trainer runs: a copy, since the next call
    may write over the files of this one.
    """
    target = out / "code" / "book" / "experiments"
    if not target.exists():
        skip = shutil.ignore_patterns("__pycache__", "weights")
        shutil.copytree(ROOT / "tilelli_nb", out / "code" / "tilelli_nb", ignore=skip)
        shutil.copytree(HERE.parent, target, ignore=skip)
    return target


# The three calls


def start(args: argparse.Namespace) -> None:
    """Call A."""
    plan, job = Plan(args.out), make_job(args)
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "job.json").is_file():
        raise ConfigError(
            f"{args.out.name} holds a plan already",
            "go on with `go` or `finish`, or choose another --out",
        )
    plan.begin(job)
    while plan.look() not in ("ready", "training", "finished") and left(args) > 3:
        time.sleep(0.2)
    print(plan.describe(), json.dumps(plan.state()))


def make_job(args: argparse.Namespace) -> dict:
    """All that the trainer must know. Raises ConfigError, DataError."""
    if not args.shards.exists():
        raise DataError(
            f"there is no {args.shards.name}",
            "make it with `pack FOLDER` and carry it along",
        )
    config = load_config(args.config)
    changes = {
        "seed": args.seed,
        "log_every": args.log_every,
        "eval_every": args.eval_every,
        "micro_batch": args.micro_batch or config.train.batch,
        "checkpoint_every": 10**9,  # by the clock alone
        "checkpoint_minutes": args.checkpoint_seconds / 60,
    }
    config = config.with_train(**changes)
    return {
        "config": config.to_dict(),
        "run": f"{config.name}-seed{args.seed}",
        "shards": str(args.shards.resolve()),
        "device": args.device,
        "commit": args.commit,
        "modes": args.modes,
        "margin": args.margin,
        "patience": args.patience,
        "timing_s": args.timing_seconds,
        "compiler": args.compiler,
        "known": {},
        "attempts": [],
        "accidents": 0,
        "failures": 0,
    }


def go(args: argparse.Namespace) -> None:
    """Call B."""
    if not (args.out / "go.json").is_file():  # given again, the first word counts
        deadline = time.time() + args.left - args.reserve
        write_json(args.out / "go.json", {"deadline": deadline})
    watch(Plan(args.out), args, until=args.insure, every=args.every)


def finish(args: argparse.Namespace) -> None:
    """Call C."""
    plan = Plan(args.out)
    watch(plan, args, until=12)
    if plan.is_finished() and not args.no_profile:
        measure(plan, args)


def watch(
    plan: Plan, args: argparse.Namespace, until: float, every: float = math.inf
) -> None:
    """Looks after the training until it is finished or the call has so many seconds
    left, and brings home what there is: also where nothing works any more.
    """
    shown = 0.0
    try:
        while plan.look() != "finished" and left(args) > until:
            if time.monotonic() - shown > every:
                print(plan.describe(), flush=True)
                shown = time.monotonic()
            time.sleep(0.1)
    except TrainingError:
        bring_home(plan, args.back)
        raise
    bring_home(plan, args.back)


def bring_home(plan: Plan, back: Path) -> None:
    """What there is, in at most eight files: weights in two parts and their listing,
    the record, metrics, samples, how it went, and the end of the log.
    """
    back.mkdir(parents=True, exist_ok=True)
    run = plan.run
    if (run / "run.json").is_file():
        record = records.load_record(run)
        record["git"] = record["git"] or plan.job["commit"]
        write_atomic(back / "run.json", records.dumps(record))
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (run / name).is_file():
            shutil.copyfile(run / name, back / name)
    log = (plan.out / "train.log").read_bytes()[-200_000:]
    write_atomic(back / "train.log", log)
    write_json(back / "plan.json", summary(plan))
    if any(run.glob("*.safetensors")) or any(run.glob("checkpoints/*.safetensors")):
        import gpu_carry  # imports torch

        print(gpu_carry.weights(run, back, part_mib=15))
    print(plan.describe(), flush=True)


def summary(plan: Plan) -> dict:
    """How it went: what was tried, what the smoke test saw, and how fast it is when
    nothing else is done.
    """
    job = plan.job
    facts = {"state": plan.state(), "attempts": job["attempts"]}
    facts["deadline"] = None
    if (plan.out / "go.json").is_file():
        facts |= json.loads((plan.out / "go.json").read_text())
    run = plan.run
    if (run / "run.json").is_file() and (speed := steady_rate(run)):
        record = records.load_record(run)
        model = Config.from_dict(record["config"]).model
        facts["steady_bytes_per_s"] = round(speed, 1)
        facts["steady_mfu"] = mfu(speed, model, record["gpu_name"])
    return facts


def steady_rate(run: Path) -> float | None:
    """Bytes/s where nothing else is done, over all parts of a run: results.json has it
    of the last part, at the end.
    """
    return steady_bytes_per_s(records.load_metrics(run))


def measure(plan: Plan, args: argparse.Namespace) -> None:
    """A profile of some steps, then the kernel's benchmark, each for as long as there
    is time. They may fail: what matters is at home already.
    """
    job, out = plan.job, plan.out / "measured"
    out.mkdir(exist_ok=True)
    write_json(out / "config.yaml", job["config"])  # JSON is YAML, too
    micro = str(job["config"]["train"]["micro_batch"])
    commands = {
        "profile": [
            HERE.with_name("gpu_throughput.py"),
            *("--config", out / "config.yaml"),
            *("--out", out, "--seconds", "2", "--micro", micro),
            *(("--device", job["device"]) if job["device"] else ()),
        ],
        "kernel": [
            ROOT / "tests" / "benchmarks" / "attention_speed.py",
            *("--quick", "--out", out / "kernel"),
        ],
    }
    found = json.loads((args.back / "plan.json").read_text())
    for name, command in commands.items():
        if left(args) > 8:
            found[f"{name}_exit"] = child(
                command, out / f"{name}.log", left(args) - 4, job["mode"]["environment"]
            )
        for result in [*out.glob("throughput-*.json"), out / "kernel" / "results.json"]:
            if result.is_file():
                found[result.stem] = json.loads(result.read_text())
        write_json(args.back / "plan.json", found)


def child(command: list, log: Path, seconds: float, environment: dict) -> int | None:
    """Python with these arguments, its output in a file; it and all it started are
    killed when the time is up. Returns its exit status, None if there was none.
    """
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT)}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def carry(args: argparse.Namespace) -> None:
    """pack, join."""
    import gpu_carry

    print(getattr(gpu_carry, args.command)(args.source, args.out))


def write_json(path: Path, values: object) -> None:
    write_atomic(path, json.dumps(values, indent=2).encode() + b"\n")


# The command line


def left(args: argparse.Namespace) -> float:
    """Seconds until this command has to be over."""
    return args.limit - (time.monotonic() - START)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, help="seconds of this call")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    p = commands.add_parser("start")
    p.set_defaults(run=start)
    p.add_argument("--shards", type=Path, required=True, help="from `pack`")
    p.add_argument("--config", default="lite_10m")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", help="cpu or cuda; the best one here unless given")
    p.add_argument("--commit", help="of the code, where there is no git to ask")
    p.add_argument("--micro-batch", type=int, help="the whole batch unless given")
    p.add_argument("--log-every", type=int, default=50)
    p.add_argument("--eval-every", type=int, default=2500)
    p.add_argument("--checkpoint-seconds", type=float, default=30)
    p.add_argument("--timing-seconds", type=float, default=3)
    p.add_argument("--margin", type=float, default=40, help="for all but steps, in s")
    p.add_argument("--patience", type=float, default=90, help="with a silent trainer")
    p.add_argument("--modes", type=int, nargs="+", default=[*range(len(MODES))])
    p.add_argument("--compiler", help="instead of Inductor, for a rehearsal")

    p = commands.add_parser("go")
    p.set_defaults(run=go)
    p.add_argument("--left", type=float, required=True, help="device seconds left")
    p.add_argument("--reserve", type=float, default=FINISH, help="of them for `finish`")
    p.add_argument("--back", type=Path, required=True, help="what comes back")
    p.add_argument("--insure", type=float, default=INSURE)
    p.add_argument("--every", type=float, default=30, help="seconds between lines")

    p = commands.add_parser("finish")
    p.set_defaults(run=finish)
    p.add_argument("--back", type=Path, required=True)
    p.add_argument("--no-profile", action="store_true")

    for name, what in (
        ("pack", "a folder of shards"),
        ("join", "the .json beside the parts of the weights"),
    ):
        p = commands.add_parser(name)
        p.set_defaults(run=carry)
        p.add_argument("source", type=Path, help=what)
    args = parser.parse_args()
    args.limit = args.limit or LIMITS.get(args.command, 3600)
    return args


def time_is_up(*_) -> None:
    raise TrainingError("not done within --limit seconds", "give it more time")


def main() -> None:
    args = parse()
    signal.signal(signal.SIGALRM, time_is_up)
    signal.alarm(max(1, int(args.limit)))
    try:
        args.run(args)
    except TilelliError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
