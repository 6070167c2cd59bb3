"""The clock of a run: how long it has trained, over all its parts, and how fast it
reads where nothing else is done.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Clock:
    """Counts the seconds of a run that may be stopped and resumed. What is not training
    (evaluation, samples, files) is counted apart.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.aside_s = 0.0  # of evaluation, samples and files, in this part
        # of the parts before this one
        self.before_s = 0.0
        self.trained_before_s = 0.0

    def go_on(self, wall_s: float, train_s: float) -> None:
        """Goes on from what a checkpoint says of the parts before."""
        # A run that is stopped for the night has not trained meanwhile.
        self.before_s = wall_s
        self.trained_before_s = train_s

    def part_seconds(self) -> float:
        """Wall time of this part."""
        return time.perf_counter() - self.started

    def part_training_seconds(self) -> float:
        """The same without what was aside."""
        return self.part_seconds() - self.aside_s

    def seconds(self) -> float:
        """Wall time of the run so far."""
        return self.before_s + self.part_seconds()

    def training_seconds(self) -> float:
        """The same without what was aside."""
        return self.trained_before_s + self.part_training_seconds()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not counted as training."""
        start = time.perf_counter()
        yield
        self.aside_s += time.perf_counter() - start


def steady_bytes_per_s(lines: list[dict[str, Any]]) -> float | None:
    """Bytes/s between two lines of metrics.jsonl that no evaluation lies between: the
    median, so that a sample or a checkpoint now and then does not count. None where
    there are no such two lines behind the first, which is for warming up or compiling.

    A record's own bytes_per_s is of all the time of training, these included.
    """
    rates = []
    for earlier, later in zip(lines[1:], lines[2:], strict=False):
        seconds = later["wall_s"] - earlier["wall_s"]
        # the time of an evaluation is before its own line
        if "val_bpb" not in later and seconds > 0:
            rates.append((later["bytes_seen"] - earlier["bytes_seen"]) / seconds)
    return statistics.median(rates) if rates else None
