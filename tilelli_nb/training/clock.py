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
        self.before_s = 0.0  # of the parts before this one
        self.aside_s = 0.0  # of evaluation, samples and files, over all parts

    def go_on(self, wall_s: float, train_s: float) -> None:
        """Goes on from what a checkpoint says of the parts before."""
        # A run that is stopped for the night has not trained meanwhile.
        self.before_s = wall_s
        self.aside_s = wall_s - train_s

    def seconds(self) -> float:
        """Wall time of the run so far."""
        return self.before_s + time.perf_counter() - self.started

    def training_seconds(self) -> float:
        """The same without what was aside."""
        return self.seconds() - self.aside_s

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not counted as training."""
        start = time.perf_counter()
        yield
        self.aside_s += time.perf_counter() - start
