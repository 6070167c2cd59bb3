"""What a person sees of a run: what it is, how far it has come, when it will end."""

import sys
import time
from contextlib import suppress
from typing import Any

import torch
from tqdm import tqdm

from ..data.tokenizer import ByteTokenizer
from ..errors import GenerationError
from ..files import append_line

TIMED_STEPS = 5
SAMPLE_BYTES = 400
SAMPLE_TEMPERATURE = 0.8


def introduction(run: Any) -> str:
    """Returns what is about to run, and on what, in one line."""
    where = run.gpu_name or run.device.type
    if run.device.type == "cpu":
        where += f" with {torch.get_num_threads()} threads"
    if run.processes.world > 1:
        where += f" in each of {run.processes.world} processes"
    parameters = sum(p.numel() for p in run.lm.parameters())
    return (
        f"{run.config.name}: {parameters:,} parameters on {where}, in {run.precision}; "
        f"{run.settings.steps:,} steps of {run.step_bytes:,} bytes, {run.step:,} of "
        "them done"
    )


def progress_bar(run: Any, shows: bool) -> tqdm:
    """Makes the progress bar, in bytes."""
    return tqdm(
        total=run.settings.steps * run.step_bytes,
        initial=run.step * run.step_bytes,
        unit="B",
        unit_scale=True,
        disable=not shows,
        file=Unheard(sys.stderr),
    )


class Unheard:
    """A stream that nobody may read any more. A lost connection, or a `tee` that the
    same Ctrl-C has ended, makes every write an OSError, just when the run is to be
    saved.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.stream.flush()

    def __eq__(self, other: object) -> bool:
        # tqdm clears the bar before it writes to the terminal that the bar is on
        return self.stream == getattr(other, "stream", other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def say(text: str) -> None:
    """Writes a line above the bar, if anybody is there to read it."""
    with suppress(OSError, ValueError):
        tqdm.write(text)


def write_sample(run: Any) -> None:
    """Appends a text that the model writes to samples.jsonl; nothing where its logits
    are no numbers, which the loss of the next step will show, too.
    """
    if not run.processes.is_first:
        return
    tokenizer = ByteTokenizer()
    with run.clock.aside():
        run.lm.eval()
        try:
            ids = run.lm.generate(
                tokenizer.encode(run.prompt),
                max_new=SAMPLE_BYTES,
                temperature=SAMPLE_TEMPERATURE,
                seed=run.settings.seed,
            )
        except GenerationError:
            return
        finally:
            run.lm.train()
    line = {"step": run.step, "text": tokenizer.decode(ids)}
    append_line(run.out / "samples.jsonl", line)


class Pace:
    """Says once when a run will end, after it has timed a few steps."""

    def __init__(self, first_step: int, last_step: int) -> None:
        self.first_step, self.last_step = first_step, last_step
        self.begun = time.perf_counter()

    def expected_end(self, step: int) -> str | None:
        """Returns the words after step TIMED_STEPS + 1 of this part; before and after
        it, None. The first step is not timed: it warms up, or compiles.
        """
        if step == self.first_step + 1:
            self.begun = time.perf_counter()
        if step != self.first_step + 1 + TIMED_STEPS:
            return None
        step_s = (time.perf_counter() - self.begun) / TIMED_STEPS
        seconds = step_s * (self.last_step - step)
        end = time.localtime(time.time() + seconds)
        day = time.strftime("%d %B, ", end) if seconds >= 86_400 else ""
        hour = time.strftime("%H:%M", end)
        hours = f"{seconds / 3600:.1f} h"
        return f"{step_s:.2f} s a step: done in about {hours}, at {day}{hour}"
