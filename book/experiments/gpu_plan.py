"""The plan for a rented GPU: pieces that each end within --limit seconds and leave
records and weights in --out.

    python book/experiments/gpu_plan.py --out DIR [--limit 540] COMMAND ...

    check      kernel tests and kernel benchmark on the device, then bytes/s of both
    models at several micro-batches and
               a profile: some minutes, of which the tests get 40% of the limit (most of
               it compiling). DIR/check/
    pretrain   one training run, in a process of its own that outlives this command:
    DIR/CONFIG-seedN/. The command only
               watches. Given again it goes on watching, or resumes from the newest good
               checkpoint if the process is gone, or says that the run is finished.
               Whatever is killed, the steps since that checkpoint are lost.
    several    the same for a list of runs, one after another: `several lite_10m:0
    vanilla_10m:0 lite_10m:1` weights    master weights of a run in bf16, in parts of at
    most --part-mib: seconds. DIR/NAME.json, DIR/NAME.part00 join       the parts,
    verified, as a folder that TilelliLM.from_pretrained loads: seconds. DIR/NAME/ pack
    a folder of shards as DIR/FOLDER.tar.xz, about a second a megabyte unpack     that
    file as a folder again, verified: DIR/FOLDER/

It needs PyTorch, Triton, NumPy, safetensors, PyYAML, tqdm and, for the tests, pytest;
no network, and the package need not be installed. Only the process that trains is left
running; with no command watching it, `kill $(cat DIR/pid)` makes it save and end. If
the kernel should fail on some card, TILELLI_ATTENTION=reference in the environment
trains without.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

START = time.monotonic()
HERE = Path(__file__).resolve()
TESTS, ROOT = HERE.parents[1:3]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from tilelli_nb.config import Config, load_config  # noqa: E402
from tilelli_nb.errors import ConfigError, DataError, TilelliError, TrainingError  # noqa: E402
from tilelli_nb.files import load_lines, write_atomic  # noqa: E402
from tilelli_nb.storage.records import dumps, load_record, new_record, now  # noqa: E402

# torch, and what imports it, is imported where it is used: a command that only watches
# starts at once


# check


def check(args: argparse.Namespace) -> None:
    out, start, found = args.out / "check", time.perf_counter(), {}
    record = new_record(
        "check",
        "bench",
        notes="Kernel tests, kernel benchmark, bytes/s with a profile: results.json.",
    )
    out.mkdir(parents=True, exist_ok=True)
    found["kernel tests"] = child(
        test_command(out, args.select), out / "tests.log", 0.4 * seconds_left(args)
    )
    if (benchmark := TESTS / "benchmarks" / "attention_speed.py").is_file():
        quick = ["--quick"] if args.quick else []
        found["kernel benchmark"] = child(
            [benchmark, "--out", out / "kernel", *quick],
            out / "kernel.log",
            0.5 * seconds_left(args),
        )
    for number, config in enumerate(args.configs):
        share = (seconds_left(args) - 5) / (len(args.configs) - number)
        found[f"training {load_config(config).name}"] = throughput(args, config, share)
        write_json(out / "results.json", found)
    models = [piece for piece in found.values() if piece.get("best")] or [{"best": {}}]
    record |= {
        "config": load_config(args.configs[0]).to_dict(),
        "device": models[0].get("device", "cpu"),
        "gpu_name": models[0].get("gpu_name"),
        "bytes_per_s": models[0]["best"].get("bytes_per_s"),
        "finished": now(),
        "wall_s": round(time.perf_counter() - start, 1),
        "git": record["git"] or args.commit,
    }
    write_atomic(out / "run.json", dumps(record))
    for name, piece in found.items():
        ending = {0: "ok", None: "OUT OF TIME"}.get(
            piece["exit"], f"FAILED, exit status {piece['exit']}"
        )
        print(f"{name}: {ending}, {piece['seconds']} s", piece.get("bytes_per_s", ""))
    raise SystemExit(any(piece["exit"] != 0 for piece in found.values()))


def test_command(out: Path, select: str | None) -> list:
    """pytest without plugins and without the project's options for them: in parallel
    where that is installed.
    """
    parallel = (
        ["-p", "xdist", "-n", "8"]
        if find_spec("xdist") and (os.cpu_count() or 1) >= 8
        else []
    )
    return [
        "-m",
        "pytest",
        TESTS / "test_kernels.py",
        "-v",
        "-o",
        "addopts=",
        "-p",
        "no:cacheprovider",
        f"--junitxml={out / 'tests.xml'}",
        "--durations=10",
        *parallel,
        *(["-k", select] if select else []),
    ]


def throughput(args: argparse.Namespace, config: str, seconds: float) -> dict:
    """gpu_throughput.py on one configuration; if it measures nothing with the kernel,
    once more without.
    """
    name, out = load_config(config).name, args.out / "check"
    options = {
        "--config": config,
        "--out": out,
        "--seconds": args.seconds,
        "--batch": args.batch,
        "--device": args.device,
    }
    command = [
        HERE.with_name("gpu_throughput.py"),
        *(
            part
            for option, value in options.items()
            if value is not None
            for part in (option, value)
        ),
        "--micro",
        *args.micro,
    ]
    measured, end = out / f"throughput-{name}.json", time.monotonic() + seconds
    measured.unlink(missing_ok=True)
    for attention, share in (
        (os.environ.get("TILELLI_ATTENTION", ""), 0.8),
        ("reference", 1),
    ):
        done = child(
            command,
            out / f"throughput-{name}.log",
            share * (end - time.monotonic()),
            TILELLI_ATTENTION=attention,
        )
        done["attention"] = attention or "auto"
        if measured.is_file():  # else it failed before it measured anything
            return done | json.loads(measured.read_text())
    return done


def child(command: list, log: Path, seconds: float, **environment: str) -> dict:
    """Python with these arguments, its output in a file; it and all it started are
    killed when the time is up.
    """
    start, paths = (
        time.perf_counter(),
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])],
    )
    environment = (
        os.environ
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONUNBUFFERED": "1",
        }
        | environment
    )
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
            code = process.wait(max(1, seconds))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {"exit": code, "seconds": round(time.perf_counter() - start, 1)}


# pretrain, several


def watch(args: argparse.Namespace) -> None:
    """Until all runs are finished or the time is up; a trainer that is not there is
    started.
    """
    job, saved, fruitless, shown = make_job(args), None, 0, time.monotonic()
    while True:
        if is_running(args.out):
            running = json.loads((args.out / "job.json").read_text())["runs"]
            if running != job["runs"]:
                raise TrainingError(
                    f"another training is at work in {args.out.name}, or the same with other options: "
                    + ", ".join(running),
                    "watch it as it was started, or choose another --out",
                )
        elif all(is_finished(args.out / name) for name in job["runs"]):
            break
        else:
            before, saved = (
                saved,
                sorted(
                    path.name for path in args.out.glob("*/checkpoints/*.safetensors")
                ),
            )
            fruitless = fruitless + 1 if saved == before else 0
            if fruitless == 2:
                last = " ".join(
                    (args.out / "train.log")
                    .read_text(errors="replace")
                    .strip()
                    .splitlines()[-2:]
                )
                raise TrainingError(
                    f"the training ended twice without a new checkpoint. Its last words: {last}",
                    "see train.log, mend it, and give the same command again",
                )
            print(
                f"{'resuming' if saved else 'starting'}: {describe(args.out, job)}",
                flush=True,
            )
            start_trainer(args.out, job)
        if seconds_left(args) < 2:
            print(
                f"time is up, the training goes on: {describe(args.out, job)}; the same command watches again"
            )
            return
        if time.monotonic() - shown > args.every:
            print(describe(args.out, job), flush=True)
            shown = time.monotonic()
        time.sleep(0.3)
    for name in job["runs"]:
        record = load_record(args.out / name)
        print(
            f"{name}: finished, {record['steps']:,} steps, {record['val_bpb']:.4f} bits per byte held out"
        )


def make_job(args: argparse.Namespace) -> dict:
    """All that the trainer must know. Raises ConfigError, DataError."""
    if not (args.shards / "manifest.json").is_file():
        raise DataError(
            f"{args.shards.name} is no folder of shards",
            "unpack one with `unpack FILE`, or make one with `tilelli data NAME --out FOLDER`",
        )
    changes = {
        key: getattr(args, key)
        for key in ("steps", "batch", "micro_batch")
        if getattr(args, key) is not None
    }
    runs = {}
    for item in args.runs:
        name, _, seed = item.rpartition(":")
        if not (name and seed.isdigit()):
            raise ConfigError(
                f"{item!r} is not a run", "write CONFIG:SEED, for example lite_10m:0"
            )
        config = load_config(name).with_train(seed=int(seed), **changes)
        runs[f"{config.name}-seed{seed}"] = config.to_dict()
    return {
        "runs": runs,
        "shards": str(args.shards.resolve()),
        "checkpoint_seconds": args.checkpoint_seconds,
        "minutes": args.minutes,
        "device": args.device,
        "commit": args.commit,
    }


def start_trainer(out: Path, job: dict) -> None:
    """Starts it in a session of its own. It inherits a lock, which the system lets go
    when the process ends.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (
        open(out / "lock", "a") as lock,
        open(out / "train.log", "ab") as log,
        suppress(BlockingIOError),
    ):
        # BlockingIOError: another command was quicker
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_json(out / "job.json", job)
        subprocess.Popen(
            [sys.executable, HERE, "--out", out, "trainer"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )


def is_running(out: Path) -> bool:
    """Whether a process holds the lock: there is no number to mistake and nothing to
    clean up after a kill.
    """
    if not (out / "lock").is_file():
        return False
    with open(out / "lock", "a") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    return True


def is_finished(run: Path) -> bool:
    return (run / "run.json").is_file() and load_record(run)["finished"] is not None


def describe(out: Path, job: dict) -> str:
    """One line about the run that is being trained."""
    name = next(
        (name for name in job["runs"] if not is_finished(out / name)),
        list(job["runs"])[-1],
    )
    try:
        steps, last = (
            load_record(out / name)["config"]["train"]["steps"],
            load_lines(out / name / "metrics.jsonl")[-1],
        )
    except (OSError, ValueError, IndexError, TilelliError):
        return f"{name}, the first steps"  # or a line that is being written
    speed = last["bytes_seen"] / last["wall_s"]
    minutes = (steps - last["step"]) * last["wall_s"] / last["step"] / 60
    return (
        f"{name}, step {last['step']:,} of {steps:,}, loss {last['loss']:.3f}, {speed:,.0f} bytes/s, "
        f"{minutes:.1f} min left"
    )


def trainer(args: argparse.Namespace) -> None:
    """The process in the background: trains the runs of job.json in turn, and skips
    what is finished.
    """
    write_atomic(args.out / "pid", str(os.getpid()).encode())
    job = json.loads((args.out / "job.json").read_text())
    from gpu_throughput import measure
    from tilelli_nb.data.shards import open_shards
    from tilelli_nb.language_model import TilelliLM
    from tilelli_nb.training.distributed import best_device
    from tilelli_nb.training.loop import train

    shards, device = open_shards(job["shards"]), job["device"] or best_device()
    for name, values in job["runs"].items():
        run, config = args.out / name, Config.from_dict(values)
        if is_finished(run):
            continue
        if (run / "run.json").is_file():
            every = load_record(run)["config"]["train"]["checkpoint_every"]
        else:  # given in seconds, needed in steps
            speed, _ = measure(
                config, shards, min(2, job["checkpoint_seconds"]), device
            )
            every = max(
                1,
                round(
                    job["checkpoint_seconds"]
                    * speed
                    / (config.train.batch * config.model.context)
                ),
            )
        print(
            f"{now()} {name} on {device}, a checkpoint every {every} steps", flush=True
        )
        record = train(
            TilelliLM(config.with_train(checkpoint_every=every)),
            shards,
            run,
            resume=True,
            device=device,
            minutes=job["minutes"],
            progress=False,
        )
        if record["git"] is None:
            write_atomic(run / "run.json", dumps(record | {"git": job["commit"]}))
        print(
            f"{now()} {name}: {record['steps']:,} steps, {record['val_bpb']} bits per byte",
            flush=True,
        )
        if not record["finished"]:
            break  # asked to stop


def carry(args: argparse.Namespace) -> None:
    import gpu_carry

    given = (args.part_mib,) if args.command == "weights" else ()
    print(getattr(gpu_carry, args.command)(args.source, args.out, *given))


def write_json(path: Path, values: object) -> None:
    write_atomic(path, json.dumps(values, indent=2).encode() + b"\n")


# the command line


def seconds_left(args: argparse.Namespace) -> float:
    return args.limit - (time.monotonic() - START)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--limit",
        type=float,
        default=540,
        help="seconds within which this command ends",
    )
    parser.add_argument("--device", help="cpu or cuda; the best one here unless given")
    parser.add_argument(
        "--commit", help="of the code, for the records, where there is no git to ask"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("trainer").set_defaults(run=trainer, limit=1e9)

    p = commands.add_parser("check")
    p.set_defaults(run=check)
    p.add_argument("--configs", nargs="+", default=["lite_10m", "vanilla_10m"])
    p.add_argument(
        "--micro",
        type=int,
        nargs="+",
        default=[16, 32, 64, 128],
        help="micro-batches to try",
    )
    p.add_argument("--batch", type=int, help="sequences per step")
    p.add_argument("--seconds", type=float, default=5, help="for each micro-batch")
    p.add_argument("--select", help="kernel tests whose names match, as pytest's -k")
    p.add_argument(
        "--quick", action="store_true", help="the kernel benchmark at small size"
    )

    for name in ("pretrain", "several"):
        p = commands.add_parser(name)
        p.set_defaults(run=watch)
        if name == "several":
            p.add_argument("runs", nargs="+", metavar="CONFIG:SEED")
        else:
            p.add_argument("--config", default="lite_10m")
            p.add_argument("--seed", type=int, default=0)
        p.add_argument("--shards", type=Path, required=True, help="a folder of shards")
        p.add_argument(
            "--steps",
            type=int,
            help="length of the schedule; the configuration's unless given",
        )
        p.add_argument(
            "--minutes", type=float, help="or time some steps and fix it: for each run"
        )
        p.add_argument(
            "--batch",
            type=int,
            help="sequences per step; the configuration's unless given",
        )
        p.add_argument(
            "--micro-batch",
            type=int,
            help="sequences at once; the configuration's unless given",
        )
        p.add_argument("--checkpoint-seconds", type=float, default=60)
        p.add_argument(
            "--every",
            type=float,
            default=30,
            help="seconds between two lines of progress",
        )

    for name, what in (
        ("weights", "the folder of a run"),
        ("join", "the .json that `weights` wrote"),
        ("pack", "a folder of shards"),
        ("unpack", "the .tar.xz that `pack` wrote"),
    ):
        p = commands.add_parser(name)
        p.set_defaults(run=carry, command=name)
        p.add_argument("source", type=Path, help=what)
        if name == "weights":
            p.add_argument("--part-mib", type=float, default=15)
    args = parser.parse_args()
    if args.run is watch and "runs" not in args:
        args.runs = [f"{args.config}:{args.seed}"]
    return args


def time_is_up(*_) -> None:
    raise TrainingError(
        "not done within --limit seconds", "give it more time, or less to do"
    )


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
