"""FineWeb-Edu while training runs: a process of its own writes shards, and training
starts on the first ones.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from ..errors import DataError
from ..errors import TilelliError
from .fineweb import FineWebEdu
from .shards import FINEWEB_SHARD_BYTES
from .shards import MANIFEST
from .shards import Shards
from .fineweb import fineweb_source
from .shards import open_shards
from .shards import prepare_shards
from .shards import read_manifest


@contextmanager
def fineweb_in_background(
    folder: str | Path | None = None, **options: Any
) -> Iterator[Shards]:
    """The shards of FineWeb-Edu that are there so far, while a process of its own
    writes the others.

    The options are fineweb_source's; `Shards.grown` gives what has come since. The
    process ends with the `with` block and with this process, however that ends, and
    goes on where it was the next time. DataError when it dies before both sides have a
    shard; later it says so on the standard error, and training goes on with what is
    there.
    """
    folder, source = fineweb_source(folder, **options)
    if (folder / MANIFEST).is_file() and read_manifest(folder)["complete"]:
        yield open_shards(folder)
        return
    told, tell = multiprocessing.Pipe(duplex=False)
    writer = multiprocessing.get_context("spawn").Process(
        target=write, args=(tell, folder, source), daemon=True
    )
    writer.start()
    tell.close()
    stopping = threading.Event()
    try:
        shards = wait_for_shards(folder, writer, told)
        threading.Thread(
            target=watch, args=(writer, told, stopping), daemon=True
        ).start()
        yield shards
    finally:
        stopping.set()
        writer.terminate()  # at any instant: a commit is there or not
        writer.join()


def write(tell: Connection, folder: Path, source: FineWebEdu) -> None:
    """What the process does. What goes wrong is told to the process that started it."""
    # Ctrl-C reaches both; the trainer ends this one when it is ready
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        prepare_shards(
            source,
            folder,
            "fineweb-edu",
            revision=source.revision,
            shard_bytes=FINEWEB_SHARD_BYTES,
        )
    except TilelliError as error:
        tell.send((error.problem, error.fix))
        sys.exit(1)


def end_with_parent() -> None:
    """Waits for the end of the process that started this one, by SIGKILL too, and ends
    this one: no orphans.
    """
    multiprocessing.parent_process().join()
    os._exit(1)


def wait_for_shards(
    folder: Path,
    writer: multiprocessing.Process | None = None,
    told: Connection | None = None,
) -> Shards:
    """Opens the shards of a folder once both sides have one. DataError when the writer
    ends before.
    """
    while True:
        ended = writer is not None and writer.exitcode is not None
        written = (
            read_manifest(folder)["shards"] if (folder / MANIFEST).is_file() else []
        )
        if {shard["split"] for shard in written} == {"train", "val"}:
            return open_shards(folder)
        if ended:
            raise DataError(*cause(writer, told))
        time.sleep(0.1)


def watch(
    writer: multiprocessing.Process, told: Connection, stopping: threading.Event
) -> None:
    """Says so when the writer dies while training runs."""
    wait([writer.sentinel])
    if not stopping.is_set() and writer.exitcode not in (0, -signal.SIGTERM):
        problem, fix = cause(writer, told)
        print(
            f"\nFineWeb-Edu: {problem}; training goes on with what is there. {fix}",
            file=sys.stderr,
            flush=True,
        )


def cause(writer: multiprocessing.Process, told: Connection) -> tuple[str, str]:
    """Why the writer ended, and what to do."""
    try:
        return told.recv()
    except EOFError:
        return (
            f"the writer ended with exit code {writer.exitcode}",
            "the same command with --resume starts it again",
        )
