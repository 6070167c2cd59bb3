"""A run watched from elsewhere: its metrics sent to TensorBoard or to Weights & Biases,
where these are installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import MissingDependency
from ..model.router import PATHWAYS
from ..storage.records import load_record

OnLog = Callable[[dict[str, Any]], None]  # gets a line of metrics.jsonl


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """Returns a line of metrics.jsonl as named numbers: lists become
    router_use/block1/conv, zero_share/block1 and so on.
    """
    found = {}
    # the step is the horizontal axis, not a curve
    for name, value in line.items():
        if isinstance(value, (int, float)) and name != "step":
            found[name] = value
    # router_use (blocks, 3), zero_share (blocks,)
    for block, shares in enumerate(line["router_use"], 1):
        for pathway, share in zip(PATHWAYS, shares, strict=True):
            found[f"router_use/block{block}/{pathway}"] = share
    for block, share in enumerate(line["zero_share"], 1):
        found[f"zero_share/block{block}"] = share
    return found


def tensorboard(folder: Path) -> OnLog:
    """Returns an `on_log` for train() that writes event files: watch them with
    `tensorboard --logdir FOLDER`. Raises MissingDependency.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependency(
            "--tensorboard needs the library tensorboard", "pip install tensorboard"
        ) from error
    writer = None

    def on_log(line: dict[str, Any]) -> None:
        nonlocal writer
        if writer is None:  # not before the folder is known to be this run's
            # a run that goes on from a checkpoint makes some steps again: they replace
            # those that an older file has
            writer = SummaryWriter(str(folder), purge_step=line["step"])
        for name, value in scalars(line).items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()  # so that a page that is open shows it now

    return on_log


def weights_and_biases(project: str, folder: Path) -> OnLog:
    """Returns an `on_log` for train() that logs the run in a folder to a project; the
    key comes from WANDB_API_KEY or `wandb login`. Raises MissingDependency.
    """
    try:
        import wandb
    except ImportError as error:
        raise MissingDependency(
            "--wandb needs the library wandb", "pip install wandb"
        ) from error
    run = None

    def on_log(line: dict[str, Any]) -> None:
        nonlocal run
        if run is None:  # not before the folder is known to be this run's
            record = load_record(folder)
            # by its id, a run that is resumed here goes on there, too
            run = wandb.init(
                project=project,
                name=record["name"],
                id=record["run_id"],
                config=record["config"],
                resume="allow",
            )
        run.log(scalars(line), step=line["step"])

    return on_log
