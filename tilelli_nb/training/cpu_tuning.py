"""Memory and threads on the CPU: what a training run asks of the C libraries below
PyTorch.
"""

import ctypes
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h
CPU_TIMES = Path("/proc/stat")  # what the cores have done since the start, on Linux
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: "150000 100000" is 1.5 cores
LOOK = 0.1  # seconds of looking at what the cores do
THREADS_SET_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def keep_freed_memory() -> None:
    """Asks the C library to keep freed memory instead of handing it back to the system
    after every tensor.

    Pages that come back must be cleared and mapped again, which takes a good part of a
    step of the ten-million model. Only glibc (Linux) can be asked; elsewhere nothing
    happens.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for size in (2**30, 2**25):  # some versions refuse more than 32 MiB
            if mallopt(MMAP_THRESHOLD, size):
                break
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def wait_briefly() -> None:
    """Lets PyTorch's idle threads sleep after a fraction of a millisecond; call it
    before PyTorch is imported.

    GNU OpenMP's threads spin for several milliseconds after their work, in case there
    is more, and meanwhile hold the cores on which attention's own threads should
    select. Other versions of OpenMP, and settings of the user's, stay. Source: GNU
    libgomp manual, GOMP_SPINCOUNT (300,000 unless set).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def use_free_cores() -> int:
    """Lets PyTorch take as many threads as there are cores that do nothing, unless
    somebody has said how many, and returns their number.

    On a core that is busy, a thread makes all others wait at the end of each operation:
    two threads on one free core can take many times as long as one.
    """
    import torch  # here, because wait_briefly must be called before it

    if not any(name in os.environ for name in THREADS_SET_BY):
        torch.set_num_threads(min(torch.get_num_threads(), free_cores()))
    return torch.get_num_threads()


def keep_threads(record: dict) -> None:
    """Sets the number of threads that a run began with: sums are cut into as many
    pieces, and go on to the bit. Records of before have none.
    """
    import torch  # as above

    if record.get("device") == "cpu" and "threads" in record:
        torch.set_num_threads(record["threads"])


def free_cores(seconds: float = LOOK) -> int:
    """How many cores this process may use and nobody else is using; at least 1.

    Looks at the cores for `seconds` where the system shows what they do (Linux), else
    at the load of the last minute.
    """
    allowed = allowed_cores()
    if CPU_TIMES.is_file():
        idle = idle_cores(seconds)
    else:
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        idle = (os.cpu_count() or 1) - busy
    return max(1, min(allowed, round(idle)))


def allowed_cores() -> int:
    """How many cores the system lets this process use: those it is bound to, or what a
    container is given.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or "max": no quota
        quota, period = QUOTA.read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def idle_cores(seconds: float) -> float:
    """How many cores of the machine did nothing during the next `seconds`, or only what
    gives way to others (niced programs).
    """
    before = cpu_times()
    time.sleep(seconds)
    user, nice, system, idle, waiting, *rest = (
        after - start for after, start in zip(cpu_times(), before, strict=True)
    )
    everything = user + nice + system + idle + waiting + sum(rest)
    share = (idle + waiting + nice) / everything if everything else 1.0
    return share * (os.cpu_count() or 1)


def cpu_times() -> list[int]:
    """What all cores have done since the start, in ticks: user, nice, system, idle,
    waiting for disks, interrupts (two kinds), stolen by other guests. Source: proc(5).
    """
    first = CPU_TIMES.read_text().partition("\n")[0]  # "cpu  10 0 4 200 ..."
    return [int(ticks) for ticks in first.split()[1:9]]  # guests are in user already
