"""What lets one loop train on a laptop, on a rented GPU and on several: devices,
processes, batches made ahead.
"""

import atexit
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import ConfigError, TrainingError

AHEAD = 4  # batches that wait for the model, so that it never waits for them


def best_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Processes:
    """The processes that train one model together, as torchrun starts them; without
    torchrun, a group of one.

    Each holds the whole model and computes an equal share of every batch; their
    gradients are averaged. Number 0 alone evaluates and writes files.
    """

    def __init__(self, device: str | None = None) -> None:
        self.rank, self.world = (
            int(os.environ.get("RANK", 0)),
            int(os.environ.get("WORLD_SIZE", 1)),
        )
        self.device = torch.device(device or best_device())
        if self.world == 1:
            return
        if self.device.type == "cuda":
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(self.device)
        if not dist.is_initialized():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            )
            atexit.register(dist.destroy_process_group)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """This process's rows of x and targets: every process draws the same batch and
        keeps its own part.
        """
        rows = len(batch[0])
        if rows % self.world:
            raise ConfigError(
                f"a batch of {rows} does not divide among {self.world} processes",
                "choose a batch that is a multiple of their number",
            )
        mine = slice(
            self.rank * rows // self.world, (self.rank + 1) * rows // self.world
        )
        return tuple(part[mine] for part in batch)

    def loss_terms(self, lm, compiled: bool) -> Callable:
        """lm.loss_terms, compiled if wanted; between several processes its backward
        pass averages the gradients.
        """
        module = LossTermsOf(lm)
        if compiled:
            # a graph for each size of batch: one for all of them would be slower
            module.compile(dynamic=False)
        return nn.parallel.DistributedDataParallel(module) if self.world > 1 else module

    def any(self, flag: bool) -> bool:
        """True everywhere if `flag` is true anywhere. On the CPU, so that no GPU is
        waited for.
        """
        return bool(self.maximum(torch.tensor(int(flag))))

    def maximum(self, value: Tensor) -> Tensor:
        """The largest value that a process has."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def agree(self, precision: str) -> str:
        """bf16 if every process would take it: their machines may differ."""
        return "fp32" if self.any(precision == "fp32") else precision

    def mean(self, value: Tensor) -> Tensor:
        """The average over the processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value / self.world

    def first_alone(self, work: Callable):
        """`work()` by number 0 while the others wait, then by them: what it writes is
        there when they look.
        """
        for turn in (True, False):
            if self.is_first == turn:
                done = work()
            if self.world > 1:
                dist.barrier()
        return done


class LossTermsOf(nn.Module):
    """A model whose forward is its loss_terms: what torch.compile and
    DistributedDataParallel can wrap.
    """

    def __init__(self, lm) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor, targets: Tensor):
        return self.lm.loss_terms(x, targets)


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


def fit_micro_batch(lm, rows: int) -> int:
    """How many of `rows` sequences a GPU holds at once, forward and backward: tried,
    and halved until they fit.

    Elsewhere the configuration's. Raises TrainingError when not even one fits.
    """
    if next(lm.parameters()).device.type != "cuda":
        return min(rows, lm.config.train.micro_batch)
    while rows:
        try:
            try_micro_batch(lm, rows)
            return rows
        except torch.OutOfMemoryError:
            rows //= 2
        finally:
            lm.zero_grad()
            torch.cuda.empty_cache()
    raise TrainingError(
        "not even one sequence fits into the memory of this GPU",
        "use a smaller model or another card",
    )


def try_micro_batch(lm, rows: int) -> None:
    """A forward and backward pass beside as much memory as the optimizer will take, and
    some air.
    """
    moments = torch.empty(
        sum(p.numel() for p in lm.parameters()) * 16, dtype=torch.uint8, device="cuda"
    )
    x = torch.zeros(
        rows, lm.config.model.context, dtype=torch.long, device=moments.device
    )
    with torch.autocast("cuda", torch.bfloat16):
        lm.loss_terms(x, x).nats.backward()


def activation_bytes(lm, x: Tensor, targets: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass, each stored tensor once,
    the weights left out.
    """
    weights = {p.untyped_storage()._cdata for p in lm.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # held until all has been counted: a freed address is used again
        terms = lm.loss_terms(x, targets)
    del terms
    return sum(size for storage, size in kept.items() if storage not in weights)


@contextmanager
def explain_gpu_errors(micro_batch: int) -> Iterator[None]:
    """What can go wrong on a GPU alone, as TrainingError that says what to do next."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the memory of this GPU does not hold {micro_batch} sequences at once",
            "the same command with --resume and --micro-batch auto finds what fits",
        ) from error
    except Exception as error:
        if explanation := gpu_explanation(error):
            raise TrainingError(*explanation) from error
        raise


def gpu_explanation(error: BaseException) -> tuple[str, str] | None:
    """What an error of a GPU's compilers or of the GPU itself means, and what helps;
    None for any other. The first that is known counts, among it and its causes.
    """
    name = type(error).__name__
    origins = " ".join(kind.__module__ for kind in type(error).__mro__)
    words = str(error).strip().splitlines() or [""]
    if "triton" in origins:
        return (
            f"a Triton kernel failed ({name}: {words[-1][:200]})",
            "the same command with --resume, and TILELLI_ATTENTION=reference in the "
            "environment, trains without the kernels, more slowly",
        )
    # torch.AcceleratorError where it exists; it and its elders say "CUDA error: ..."
    if name == "AcceleratorError" or words[0].startswith("CUDA error"):
        return (
            f"the GPU reported an error ({words[0][:200]})",
            "this process cannot use it any more, a new one can: the same command with "
            "--resume; should it come again, TILELLI_ATTENTION=reference in the "
            "environment trains without the kernels",
        )
    inner = error.__cause__ or getattr(error, "inner_exception", None)
    if inner and (found := gpu_explanation(inner)):
        return found
    if "torch._dynamo" in origins or "torch._inductor" in origins:
        return (
            f"torch.compile failed ({name})",
            "the same command with --resume and --no-compile trains without it, more "
            "slowly",
        )
    return None


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one acts as it always
    does. Main thread only.
    """
    stopped, previous = threading.Event(), {}

    def stop(number, frame) -> None:
        stopped.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        previous = {
            number: signal.signal(number, stop)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
