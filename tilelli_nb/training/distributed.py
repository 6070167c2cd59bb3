"""One loop on a laptop, on a rented GPU and on several: devices, processes, signals."""

import atexit
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ConfigError


def best_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(name: str | None) -> torch.device:
    """The device of this name; the best one here for None. Raises ConfigError for
    another name, and for a device that is not here.
    """
    name = name or best_device()
    kind, _, number = name.partition(":")
    if not re.fullmatch(r"(cpu|cuda|mps)(:(0|[1-9][0-9]*))?", name):
        raise ConfigError(f"--device {name}", "use cpu, cuda or mps")
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}
    count["mps"] = int(torch.backends.mps.is_available())
    if int(number or 0) >= count[kind]:
        raise ConfigError(
            f"--device {name}: PyTorch sees {count[kind]} of this kind here",
            f"leave it out, which takes {best_device()}; where a card is in the "
            "machine, look at `nvidia-smi`: its driver may not fit this PyTorch",
        )
    return torch.device(name)


def number_in(name: str, otherwise: int | None = None) -> int:
    """The number that torchrun has put into a variable of the environment. Raises
    ConfigError for anything else, and for none unless there is an `otherwise`.
    """
    text = os.environ.get(name, "")
    if not text and otherwise is not None:
        return otherwise
    if not text.isdecimal():
        raise ConfigError(
            f"{name} is {text!r}, though WORLD_SIZE says that several processes train",
            "start them with torchrun, which sets both; or unset WORLD_SIZE",
        )
    return int(text)


OVER_BUDGET = 1000  # where processes agree on why they stop: above all signals

# What says that a machine has a graphics card, or that somebody pays for one.
SIGNS = ("RUNPOD_POD_ID", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")


def refuse_unseen_gpu(device: str | None) -> None:
    """Raises ConfigError where no device was named, the machine should have a GPU, and
    PyTorch sees none: on its CPU a run would take weeks, at the price of the card.
    """
    if device is not None or best_device() != "cpu":
        return
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return  # hidden on purpose
    signs = [name for name in SIGNS if os.environ.get(name, "0") != "0"]
    if shutil.which("nvidia-smi"):
        signs.append("nvidia-smi")
    if signs:
        made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs alone"
        raise ConfigError(
            f"this machine should have a GPU ({', '.join(signs)} says so), and PyTorch "
            "sees none",
            f"look at `nvidia-smi`: this PyTorch is made for {made_for}, and the "
            "driver must be as new; --device cpu trains on the CPU anyway",
        )


class Processes:
    """The processes that train one model together, as torchrun starts them; without
    torchrun, a group of one.

    Each holds the whole model and computes an equal share of every batch; their
    gradients are averaged. Number 0 alone evaluates and writes files.
    """

    def __init__(self, device: str | None = None) -> None:
        # torchrun tells each process its number and how many there are. A number alone,
        # left over from something else, means nothing.
        self.world = number_in("WORLD_SIZE", 1)
        self.rank = number_in("RANK") if self.world > 1 else 0
        local_rank = number_in("LOCAL_RANK") if self.world > 1 else 0
        self.device = device_of(device)
        if self.world > 1 and self.device.type == "cuda":
            self.device = device_of(f"cuda:{local_rank}")
        if self.device.type == "cuda" and self.device.index is not None:
            # Triton launches its kernels on the device that is current.
            torch.cuda.set_device(self.device)
        if self.world == 1:
            return  # nobody to talk to
        if not dist.is_initialized():
            if not os.environ.get("MASTER_ADDR"):
                raise ConfigError(
                    "WORLD_SIZE says that several processes train, and MASTER_ADDR "
                    "does not say where they meet",
                    "start them with torchrun, which sets both; or unset WORLD_SIZE",
                )
            # Small agreements go through the CPU even where gradients go through GPUs.
            on_gpu = self.device.type == "cuda"
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
            # Without this, a process that ends leaves the others waiting for it.
            atexit.register(dist.destroy_process_group)

    @property
    def is_first(self) -> bool:
        """Whether this one writes the files."""
        return self.rank == 0

    def share(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """This process's rows of each tensor of a batch: every process draws the same
        batch and keeps its own part.
        """
        mine = []
        for part in batch:
            rows = len(part)
            if rows % self.world:
                raise ConfigError(
                    f"a batch of {rows} does not divide among {self.world} processes",
                    "choose a batch that is a multiple of their number; for "
                    "conversations, beside which there are a sixteenth as many rows of "
                    "text, of 16 times their number",
                )
            each = rows // self.world
            mine.append(part[self.rank * each : (self.rank + 1) * each])
        return tuple(mine)

    def loss_terms(self, lm, compiled: bool) -> Callable:
        """lm.loss_terms, compiled if wanted; between several processes its backward
        pass averages the gradients.
        """
        module = loss_terms_alone(lm, compiled)
        if self.world > 1:
            module = nn.parallel.DistributedDataParallel(module)
        return module

    def any(self, flag: bool) -> bool:
        """True everywhere if `flag` is true anywhere. On the CPU, so that no GPU is
        waited for.
        """
        return bool(self.maximum(torch.tensor(int(flag), device="cpu")))

    def why_to_stop(self, stopped: "Stop", over_budget: bool) -> str | None:
        """What any process was told: "budget", or the name of a signal; None where none
        was. A node that is taken away hears a signal alone, and each has its own clock.
        """
        reason = OVER_BUDGET if over_budget else int(stopped.signal or 0)
        reason = int(self.maximum(torch.tensor(reason, device="cpu")))
        if reason == OVER_BUDGET:
            return "budget"
        return signal.Signals(reason).name if reason else None

    def maximum(self, value: Tensor) -> Tensor:
        """The largest value that a process has."""
        if self.world > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def minimum(self, value: int) -> int:
        """The smallest number that a process has."""
        return -int(self.maximum(torch.tensor(-value)))

    def agree(self, precision: str) -> str:
        """bf16 if every process would take it: their machines may differ."""
        return "fp32" if self.any(precision == "fp32") else precision

    def mean(self, value: Tensor) -> Tensor:
        """The average over the processes."""
        if self.world > 1:
            value = value.clone()  # all_reduce writes into what it is given
            dist.all_reduce(value)
        return value / self.world

    def first_alone(self, work: Callable):
        """`work()` by number 0 while the others wait, then by them: what it writes is
        there when they look.
        """
        if self.is_first:
            done = work()
        # The barrier opens when all have reached it: number 0 after its work.
        if self.world > 1:
            dist.barrier()
        if not self.is_first:
            done = work()
        return done


class LossTermsOf(nn.Module):
    """A model whose forward is its loss_terms: what torch.compile and
    DistributedDataParallel can wrap.
    """

    def __init__(self, lm) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, x: Tensor, targets: Tensor):
        """The terms of the loss of x and targets (B, T)."""
        return self.lm.loss_terms(x, targets)


def loss_terms_alone(lm, compiled: bool) -> LossTermsOf:
    """lm.loss_terms, compiled if wanted, of this process alone."""
    module = LossTermsOf(lm)
    if compiled:
        # A graph for each size of batch: one for all of them would be slower.
        module.compile(dynamic=False)
    return module


ECHO_S = 2.0  # seconds in which a second signal is taken for an echo of the first


class Stop:
    """Whether somebody wants a run to stop, and by which signal they said so."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def is_set(self) -> bool:
        """True once a signal has come."""
        return self.signal is not None


@contextmanager
def stop_signals(say: Callable[[str], None] | None = None) -> Iterator[Stop]:
    """Notes the first Ctrl-C, SIGTERM or SIGHUP (a lost connection, a closed laptop)
    and says at once that it came. A later one does not wait for the end of the step:
    it acts as it always does. Main thread only.
    """
    stop = Stop()
    previous = {}  # what a signal did before, by its number
    came_at = 0.0

    def note(number: int, frame) -> None:
        nonlocal came_at
        if not stop.is_set():
            came_at = time.monotonic()
            stop.signal = signal.Signals(number)
            if say is not None:
                say(f"{stop.signal.name}: the run is saved after this step")
        # A terminal or Slurm signals all processes, and torchrun passes its own on: so
        # each worker hears of one Ctrl-C twice.
        elif time.monotonic() - came_at > ECHO_S:
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    # Python lets the main thread alone handle signals; elsewhere nothing is caught.
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            # nohup has asked for SIGHUP to be ignored: so it stays.
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        # In a notebook, the next cell must be interruptible as before.
        for number, handler in previous.items():
            signal.signal(number, handler)
