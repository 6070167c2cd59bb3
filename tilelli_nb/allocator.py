"""Memory on the CPU: what a training step frees, the next one needs again."""

import ctypes
import sys
from contextlib import suppress

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # their numbers in glibc's malloc.h


def keep_freed_memory() -> None:
    """Asks the C library to keep freed memory instead of handing it back to the system after every tensor.

    Pages that come back must be cleared and mapped again, which takes a good part of a step of the ten-million model.
    Only glibc (Linux) can be asked; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for size in (2 ** 30, 2 ** 25):  # some versions refuse more than 32 MiB
            if mallopt(MMAP_THRESHOLD, size):
                break
        mallopt(TRIM_THRESHOLD, 2 ** 31 - 1)
