"""Going on with a run: what may have changed meanwhile, and runs that finish
another.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import Config
from ..errors import ConfigError, TrainingError
from ..files import keep_lines, write_atomic
from ..storage import checkpoint, records

# Settings that change no result, so that a resumed run may have others.
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


def weights_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Picks the model's own tensors out of those of a checkpoint."""
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("model."):
            weights[name.removeprefix("model.")] = tensor
    return weights


def recorded_precision(record: dict[str, Any]) -> str:
    """What a run computed in; the first records did not say, and had no choice."""
    if record.get("precision"):
        return record["precision"]
    return "bf16" if record["device"] == "cuda" else "fp32"


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
    new run, which is then resumed. Raises TrainingError, CheckpointError, DataError.
    """
    if (out / "run.json").is_file():
        raise TrainingError(
            f"{out.name} already holds a run", "choose another --out for the branch"
        )
    record = records.load_record(source)
    found = checkpoint.latest_valid(source / "checkpoints")
    if found is None:
        raise TrainingError(
            f"{source.name} has no checkpoint to go on from", "wait for its first one"
        )
    # The branch has the steps behind it too: its decay begins at its next one.
    tensors, state = found
    total = state["step"] + steps
    config = Config.from_dict(record["config"]).with_train(
        schedule="wsd", decay_ratio=steps / total, steps=total
    )
    came_from = f"Decays from step {state['step']:,} of {record['name']}."
    record["name"] = out.resolve().name
    record["config"] = config.to_dict()
    record["notes"] = f"{came_from} {record['notes']}".strip()
    record["finished"] = None
    name = f"step-{state['step']:08d}.safetensors"
    state["config"] = config.to_dict()
    checkpoint.write_tensors(out / "checkpoints" / name, tensors, state)
    # The curve of the branch begins with that of the run it came from.
    for name in JSONL_FILES:
        write_atomic(out / name, (source / name).read_bytes())
        keep_lines(out / name, state["step"])
    write_atomic(out / "run.json", records.dumps(record))  # last: now it is a run
    return config
