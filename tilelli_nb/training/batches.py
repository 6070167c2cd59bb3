"""Batches that are made ahead by a thread, so that the model never waits for them."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD = 4  # batches that wait for the model


class Prefetch:
    """Batches in the generator's order, drawn by a thread while the model computes;
    pinned, if a GPU copies them.

    `state` is the generator's behind the batch that was given out last, whatever has
    been drawn ahead: with it a resumed run draws the same ones. `waited_s` is how long
    the model had to wait.
    """

    def __init__(
        self,
        draw: Callable[[torch.Generator], tuple[Tensor, ...]],
        state: Tensor,
        pin: bool,
    ) -> None:
        self.draw, self.pin, self.state = draw, pin, state
        self.waited_s = 0.0
        self.generator = torch.Generator()
        self.generator.set_state(state)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.ahead = deque(self.thread.submit(self.make) for _ in range(AHEAD))

    def make(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """A batch, and the generator's state behind it. Runs in the thread."""
        batch = self.draw(self.generator)
        if self.pin:  # a GPU copies pinned memory without making anyone wait
            batch = tuple(part.contiguous().pin_memory() for part in batch)
        return batch, self.generator.get_state()

    def next(self) -> tuple[Tensor, ...]:
        """The next batch. An error in the thread is raised here."""
        # One is ordered for each that is taken, so that AHEAD of them stay in the
        # queue.
        start = time.perf_counter()
        self.ahead.append(self.thread.submit(self.make))
        batch, self.state = self.ahead.popleft().result()
        self.waited_s += time.perf_counter() - start
        return batch

    def peek(self) -> tuple[Tensor, ...]:
        """The batch that next() will give out; it stays in the queue. An error in the
        thread is raised here, too.
        """
        batch, _ = self.ahead[0].result()
        return batch

    def restart(self) -> None:
        """Draws again what was drawn ahead, from data that has changed."""
        for future in self.ahead:
            future.cancel()
        # The thread sets it back once the batch that it is drawing is done.
        self.thread.submit(self.generator.set_state, self.state).result()
        self.ahead = deque(self.thread.submit(self.make) for _ in range(AHEAD))

    def close(self) -> None:
        """Ends the thread."""
        self.thread.shutdown(cancel_futures=True)
