"""What lets one loop train on a laptop, on a rented GPU and on several: devices,
processes, batches made ahead.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

AHEAD = 4  # batches that wait for the model, so that it never waits for them


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
        self.draw, self.pin, self.state, self.waited_s = draw, pin, state, 0.0
        self.generator = torch.Generator()
        self.generator.set_state(state)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.ahead = deque(self.thread.submit(self.make) for _ in range(AHEAD))

    def make(self) -> tuple[tuple[Tensor, ...], Tensor]:
        batch = self.draw(self.generator)
        return tuple(
            part.contiguous().pin_memory() if self.pin else part for part in batch
        ), self.generator.get_state()

    def next(self) -> tuple[Tensor, ...]:
        """The next batch. An error in the thread is raised here."""
        start = time.perf_counter()
        self.ahead.append(self.thread.submit(self.make))
        batch, self.state = self.ahead.popleft().result()
        self.waited_s += time.perf_counter() - start
        return batch

    def restart(self) -> None:
        """Draws again what was drawn ahead, from data that has changed."""
        for future in self.ahead:
            future.cancel()
        # behind the batch that is being drawn
        self.thread.submit(self.generator.set_state, self.state).result()
        self.ahead = deque(self.thread.submit(self.make) for _ in range(AHEAD))

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)
