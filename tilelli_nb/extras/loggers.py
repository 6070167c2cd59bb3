"""Watching a run from elsewhere: its metrics sent to TensorBoard or to Weights &
Biases, where these are installed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import MissingDependency
from ..model.router import PATHWAYS


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl as named numbers: lists become router_use/block1/conv,
    zero_share/block1 and so on.
    """
    found = {
        key: value
        for key, value in line.items()
        if isinstance(value, (int, float)) and key != "step"
    }
    for block, shares in enumerate(line["router_use"], 1):
        found |= {
            f"router_use/block{block}/{name}": share
            for name, share in zip(PATHWAYS, shares, strict=True)
        }
    return found | {
        f"zero_share/block{block}": share
        for block, share in enumerate(line["zero_share"], 1)
    }


def tensorboard(folder: Path) -> Callable[[dict[str, Any]], None]:
    """An `on_log` for train() that writes event files: watch with `tensorboard --logdir
    FOLDER`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependency(
            "--tensorboard needs the library tensorboard", "pip install tensorboard"
        ) from error
    writer = SummaryWriter(str(folder))

    def on_log(line: dict[str, Any]) -> None:
        for name, value in scalars(line).items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()

    return on_log


def weights_and_biases(
    project: str, name: str, config: dict[str, Any]
) -> Callable[[dict[str, Any]], None]:
    """An `on_log` for train() that logs to a project; the key comes from WANDB_API_KEY
    or `wandb login`.
    """
    try:
        import wandb
    except ImportError as error:
        raise MissingDependency(
            "--wandb needs the library wandb", "pip install wandb"
        ) from error
    run = wandb.init(project=project, name=name, config=config, resume="allow")
    return lambda line: run.log(scalars(line), step=line["step"])
