"""Going on with a run: what may have changed meanwhile, and runs that finish
another.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from ..config import Config, TrainConfig
from ..errors import ConfigError, DataError, TrainingError
from ..files import is_file, keep_lines, load_lines, write_atomic
from ..storage import checkpoint, records
from .clock import steady_bytes_per_s
from .optimizer import learning_rate, moments_of

# Settings that change no result but for rounding, so that a resumed run may have
# others.
MAY_CHANGE = ("micro_batch", "checkpoint_minutes", "keep_checkpoints")
JSONL_FILES = ("metrics.jsonl", "samples.jsonl")


def settings_to_resume(record: dict[str, Any], given: Config) -> tuple[Config, str]:
    """The configuration and the precision with which a run goes on: its own.

    Its number of steps counts, which --minutes may have fixed. Everything else must be
    as it is `given` now, except for what changes no result. Raises ConfigError, which
    names what differs.
    """
    stored = Config.from_dict(record["config"])
    # Both are made the same in what may differ; then they must be equal.
    same = {name: getattr(given.train, name) for name in MAY_CHANGE}
    config = stored.with_train(**same)
    expected = given.with_train(steps=stored.train.steps)
    precision = recorded_precision(record)
    differing = differences(config, expected)
    if given.train.precision not in ("auto", stored.train.precision, precision):
        differing.append(f"precision {precision}, not {given.train.precision}")
    if differing:
        raise ConfigError(
            f"the run in {record['name']} was started with {', '.join(differing)}",
            "resume with the same --config and options, or choose another --out",
        )
    return config, precision


def add_notes(record: dict[str, Any], notes: str) -> None:
    """Adds the notes of a command that resumes to the record of its run, unless they
    are there. A record that is finished is left as it is.
    """
    is_there = f" {notes} " in f" {record['notes']} "  # as whole words
    if notes and not is_there and not record["finished"]:
        record["notes"] = f"{record['notes']} {notes}".strip()


def check_limits(**limits: float | None) -> None:
    """Raises ConfigError for a limit that is zero, negative, endless or no number."""
    for name, value in limits.items():
        # NaN is not above 0 either
        if value is not None and not 0 < value < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} {value}", "give more than 0, or leave it out")


def check_stop(stop_at: int | None, steps: int) -> None:
    """Raises ConfigError for a stop that the schedule does not reach."""
    if stop_at is not None and stop_at > steps:
        raise ConfigError(
            f"--stop-at {stop_at:,} lies behind the last of {steps:,} steps",
            "leave it out, or choose a longer schedule with --steps",
        )


def check_same_run(record: dict[str, Any], state: dict[str, Any], folder: Path) -> None:
    """Raises TrainingError when a checkpoint was not written by this run.

    The first records and checkpoints had no id; they are taken as they are.
    """
    if state.get("run_id") != record.get("run_id"):
        raise TrainingError(
            f"the checkpoint of step {state['step']:,} in {folder.name} belongs to "
            "another run than its run.json",
            "choose another --out; or, to give that run up, remove checkpoints/",
        )


@contextmanager
def sole_writer(out: Path, is_first: bool) -> Iterator[None]:
    """Keeps a second process from training in the same folder. Raises TrainingError."""
    # under torchrun the first process writes, and has the lock
    if not is_first:
        yield
        return
    lock = FileLock(out / ".lock", blocking=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:  # an OSError too, so it comes first
        raise TrainingError(
            f"another process is training in {out.name}",
            "wait for it, stop it, or choose another --out",
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot write into {out}: {error.strerror}", "choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def recorded_precision(record: dict[str, Any]) -> str:
    """What a run computed in; the first records did not say, and had no choice."""
    if record.get("precision"):
        return record["precision"]
    return "bf16" if record["device"] == "cuda" else "fp32"


def refuse_leftovers(out: Path) -> None:
    """Raises TrainingError where a new run would overwrite what another one left."""
    if any((out / "checkpoints").glob("step-*")):
        raise TrainingError(
            f"{out.name} holds checkpoints of a run whose run.json is gone",
            "choose another --out; or, to give that run up, remove checkpoints/",
        )
    if (out / checkpoint.MODEL_FILE).is_file():
        raise TrainingError(
            f"{out.name} holds a model already, which this run would replace",
            "choose another --out",
        )


def refuse_damaged(out: Path) -> None:
    """Raises TrainingError where there are checkpoints, of which none could be read: to
    begin again would overwrite what the run has written.
    """
    if checkpoint.written_in(out / "checkpoints"):
        raise TrainingError(
            f"all checkpoints of {out.name} are damaged",
            "begin another run with another --out; or remove this one's folder, to "
            "begin it again",
        )


def check_kind(record: dict[str, Any], kind: str, out: Path) -> None:
    """Raises TrainingError where a run on conversations ("sft") is to go on with text
    ("train"), or the other way round.
    """
    if record["kind"] != kind:
        raise TrainingError(
            f"{out.name} holds a run of kind {record['kind']}, not {kind}",
            "go on with the command that began it (tilelli train for text, tilelli sft "
            "for conversations), or choose another folder",
        )


def differences(stored: Config, given: Config) -> list[str]:
    """What two configurations differ in, in words; precision is compared elsewhere."""
    found = []
    for section in ("model", "train"):
        others = given.to_dict()[section]
        for name, value in stored.to_dict()[section].items():
            if value != others[name] and name != "precision":
                found.append(f"{name} {value}, not {others[name]}")
    return found


def branch(source: Path, out: Path, steps: int) -> Config:
    """Prepares `out` for a run that begins where the one in `source` stands now and
    finishes it: the learning rate falls to its end over `steps` more steps.

    The run in `source` is not disturbed and may go on. Returns the configuration of the
    new run, which is then resumed. Raises ConfigError for fewer than one step,
    TrainingError where the rate of `source` is not at its peak, from which it would
    fall, CheckpointError, DataError.
    """
    if steps < 1:
        raise ConfigError(
            f"--steps {steps}", "give 1 or more: the rate falls to its end over them"
        )
    if is_file(out / "run.json"):
        raise TrainingError(
            f"{out.name} already holds a run", "choose another --out for the branch"
        )
    record = records.load_record(source)
    found = checkpoint.latest_valid(source / "checkpoints")
    if found is None:
        raise TrainingError(
            f"{source.name} has no checkpoint to go on from", "wait for its first one"
        )
    tensors, state = found
    config = Config.from_dict(record["config"])
    _check_at_peak(source.name, state["step"], config.train)
    # The branch has the steps behind it too: its decay begins at its next one.
    total = state["step"] + steps
    config = config.with_train(
        schedule="wsd",
        decay_ratio=steps / total,
        # the warm-up is over, also where a longer schedule would have a longer one
        warmup_ratio=min(config.train.warmup_ratio, state["step"] / total),
        steps=total,
    )
    came_from = f"Decays from step {state['step']:,} of {record['name']}."
    record["name"] = out.resolve().name
    record["config"] = config.to_dict()
    record["notes"] = f"{came_from} {record['notes']}".strip()
    record["finished"] = None
    record["run_id"] = state["run_id"] = uuid4().hex  # a run of its own from here
    name = f"step-{state['step']:08d}.safetensors"
    state["config"] = config.to_dict()
    if "guard" in state:
        # the branch may go back once, too, and has nothing to note
        state["guard"] |= {"setbacks": [], "is_noted": True}
    checkpoint.write_tensors(out / "checkpoints" / name, tensors, state)
    # The curve of the branch begins with that of the run it came from.
    for name in JSONL_FILES:
        if is_file(source / name):
            write_atomic(out / name, (source / name).read_bytes())
        keep_lines(out / name, state["step"])  # makes a missing one
    write_atomic(out / "run.json", records.dumps(record))  # last: now it is a run
    return config


def _check_at_peak(name: str, step: int, settings: TrainConfig) -> None:
    """Raises TrainingError unless the last of the `step` steps of a run was at the peak
    of its rate. A decay begins there, so it would raise the rate of any other run.
    """
    rate = learning_rate(step - 1, settings)
    if rate < settings.lr:
        raise TrainingError(
            f"at step {step:,} the rate of {name} is {rate:.4g}, not at its peak of "
            f"{settings.lr:g}, from which a decay begins",
            "let it go on: its own command with --resume. --decay-from is for a run of "
            "schedule wsd, such as lite_10m_fast, between its warm-up and its decay",
        )


def facts_of_part(run: Any) -> dict[str, Any]:
    """Returns what results.json says of the part of a run that ends here.

    processes: how many trained together. stopped_by: a signal's name, "budget", or None
    where nobody stopped it. went_back: from which step, to which and why, each time.
    data_wait_share: the share of the time of training, 0 to 1, in which the model
    waited for a batch. steady_bytes_per_s: what all processes together read in a second
    while they neither compiled nor evaluated; None where the part was too short.
    """
    training_s = run.clock.part_training_seconds()
    # the lines of the parts before this one were written before its clock began
    lines = []
    for line in load_lines(run.out / JSONL_FILES[0]):
        if line["wall_s"] > run.clock.before_s:
            lines.append(line)
    speed = steady_bytes_per_s(lines)
    return {
        "processes": run.processes.world,
        "stopped_by": run.stopped_by,
        "went_back": run.guard.setbacks,
        "data_wait_share": run.batches.waited_s / training_s,
        "steady_bytes_per_s": None if speed is None else round(speed, 1),
    }


def write_checkpoint(run: Any) -> None:
    """Writes everything that a resumed run needs, and drops older checkpoints."""
    tensors = {f"model.{name}": t for name, t in run.lm.state_dict().items()}
    tensors |= moments_of(run.optimizer)
    tensors["generator"] = run.batches.state  # so that the next batch is the same
    folder = run.out / "checkpoints"
    with run.clock.aside():  # what writing takes is no time of training
        state = {
            "config": run.config.to_dict(),
            "step": run.step,
            "run_id": run.record.get("run_id"),
            "wall_s": run.clock.seconds(),
            "train_s": run.clock.training_seconds(),
            "usd": run.bill.spent(run.gpu_seconds()),
            "data": run.shards.describe(),
            "guard": run.guard.state(),
        }
        name = f"step-{run.step:08d}.safetensors"
        checkpoint.write_tensors(folder / name, tensors, state)
    if run.guard.row:
        return  # the loss is too high: an older one may be needed
    # Two stay by default: should the newest be damaged, there is another.
    written = checkpoint.written_in(folder)
    # A newer one was damaged, or the run would have gone on from there: it counts not.
    good = [path for path in written if checkpoint.step_of(path) <= run.step]
    # By the clock, several may be written between two logged losses. Should the next
    # ones be too high, the run goes back to the newest from before the last good one.
    needed = [path for path in good if checkpoint.step_of(path) <= run.guard.good_step]
    for old in good[: -run.settings.keep_checkpoints]:
        if old not in needed[-1:]:
            old.unlink()
