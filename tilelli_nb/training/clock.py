"""The clock of a run: how long it has trained, over all its parts, and when it ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

TIMED_STEPS = 5


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
