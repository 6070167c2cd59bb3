"""Memory and threads on the CPU: what a training run asks of the C libraries below
PyTorch.
"""

import ctypes
import os
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h


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
