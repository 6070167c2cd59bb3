"""The clock of a run: how long it has trained, over all its parts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


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
