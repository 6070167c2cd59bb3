"""What a run does when its loss is no number any more, or far from what was usual: it
goes back to a checkpoint and on with other batches, once. The second time it ends.
"""

import math
import statistics
import warnings
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from ..files import keep_lines
from ..storage import checkpoint
from .resuming import JSONL_FILES

WINDOW = 50  # logged losses that say what is usual
LEAST = 10  # fewer say nothing
ROW = 5  # logged losses in a row that must all be too high
OUTLIERS = 2  # losses of the window that may be as high as those of the row
MARGIN = 1.5  # nats above the median, at least
HOPELESS = 2 * math.log(256)  # nats: twice what a model without a clue has


class LossGuard:
    """Tells noise from divergence.

    Where a batch is small and the text is mixed, the next loss may be any of those
    before it: then the last five are among the seven highest of 55 in one of 166,000
    cases. So the run has diverged when five logged losses in a row are higher than all
    but two of the fifty before them, and 1.5 nats above their median; or when five in a
    row are hopeless. A single peak, however high, is no reason to stop.
    """

    def __init__(self) -> None:
        self.usual: list[float] = []  # the latest losses before the row, WINDOW of them
        self.row: list[float] = []  # the latest ones, while they are too high
        self.good_step = 0  # of the last logged loss that was not
        self.setbacks: list[dict[str, Any]] = []  # where the run went back, and whereto
        self.is_noted = True  # the latest of them, in metrics.jsonl

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed run judges in the same way."""
        return dict(vars(self))

    def go_on(self, state: dict[str, Any]) -> None:
        """Goes on from what a checkpoint says; the first ones said nothing."""
        vars(self).update(state)

    @property
    def ceiling(self) -> float:
        """A logged loss above this, in nats, is too high."""
        if len(self.usual) < LEAST:
            return HOPELESS
        highest = sorted(self.usual)[-1 - OUTLIERS]
        margin = statistics.median(self.usual) + MARGIN
        return min(HOPELESS, max(highest, margin))

    def judge(self, step: int, loss: float) -> str | None:
        """Takes in a logged loss. The words for what is wrong, or None."""
        if loss <= self.ceiling:
            # a row that has ended was noise, and noise is usual
            self.usual = [*self.usual, *self.row, loss][-WINDOW:]
            self.row, self.good_step = [], step
            return None
        self.row = [*self.row, loss]
        if len(self.row) < ROW:
            return None
        words = f"the loss is {loss:.4g} at step {step:,}"
        if self.usual:
            words += f"; {statistics.median(self.usual):.4g} was usual"
        return words

    def note(self) -> dict[str, Any] | None:
        """What the first line of metrics after a setback says of it; else None."""
        if self.is_noted:
            return None
        self.is_noted = True
        return self.setbacks[-1]


def not_finite(step: int, loss: float, grad_norm: float) -> str | None:
    """The words for a loss or a gradient that is no number, or None."""
    if math.isfinite(loss + grad_norm):
        return None
    return f"the loss is {loss:.4g} at step {step:,}"


def has_broken_weights(lm: nn.Module) -> bool:
    """Whether a weight is NaN or infinite: an update can do that to a good loss."""
    return not all(bool(weight.isfinite().all()) for weight in lm.parameters())


def go_back(run: Any, trouble: str) -> None:
    """Takes a `run` back to its newest checkpoint from before the trouble, and on with
    other batches. Raises TrainingError where there is none, and the second time.
    """
    if run.guard.setbacks:
        give_up(run, f"{trouble}, and the run has gone back once already")

    def prepare() -> None:
        # the others wait until it is written
        if run.processes.is_first:
            write_setback(run, trouble)

    run.processes.first_alone(prepare)
    run.take_up()
    run.batches.state = run.data_state
    run.batches.restart()  # those made ahead belong to the steps that are dropped
    run.saved_step = run.step
    if run.processes.is_first:
        warnings.warn(
            f"{trouble}: back to the checkpoint of step {run.step:,}, this once, and "
            "on from there with other batches",
            stacklevel=2,
        )


def write_setback(run: Any, trouble: str) -> None:
    """Makes the checkpoint to go back to the newest one, with other batches to come and
    a note of why. Killed at any point, the run comes here again.
    """
    folder = run.out / "checkpoints"
    # all that is saved is finite; a row may have begun before it was seen
    good_step = run.guard.good_step if run.guard.row else run.saved_step
    found = checkpoint.latest_valid(folder, good_step)
    if found is None:
        give_up(run, trouble)
    tensors, state = found
    for path in checkpoint.written_in(folder):
        if checkpoint.step_of(path) > state["step"]:
            path.unlink()
    # other batches, and the same ones should this be done again
    generator = torch.Generator().manual_seed(run.settings.seed + state["step"])
    tensors["generator"] = generator.get_state()
    setback = {"from": run.step, "to": state["step"], "why": trouble}
    noted = {"setbacks": [setback], "is_noted": False}
    state["guard"] = {"good_step": state["step"]} | state.get("guard", {}) | noted
    # the time is spent, whatever became of it
    state["wall_s"] = run.clock.seconds()
    state["train_s"] = run.clock.training_seconds()
    state["usd"] = run.bill.spent(run.gpu_seconds())
    name = f"step-{state['step']:08d}.safetensors"
    checkpoint.write_tensors(folder / name, tensors, state)
    for name in JSONL_FILES:
        keep_lines(run.out / name, state["step"])


def give_up(run: Any, trouble: str) -> None:
    """Raises TrainingError, which says from where to begin again."""
    rate = f"--lr (now {run.settings.lr:g})"
    if run.settings.optimizer == "muon":
        rate += f" and train.muon_lr (now {run.settings.muon_lr:g}) in a YAML file"
    start = ""
    if run.saved_step:
        step = f"{run.saved_step:,}"
        start = f" from its checkpoint of step {step} (--init {run.out})"
    raise TrainingError(
        trouble,
        f"begin another run{start}, with a lower {rate}, or a longer warm-up",
    )
