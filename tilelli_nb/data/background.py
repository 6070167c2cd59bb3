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

from ..errors import DataError, TilelliError
from .fineweb import FineWebEdu, fineweb_source, write_fineweb
from .shards import MANIFEST, Shards, open_shards, read_manifest


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
    # through this pipe the writer says what went wrong
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # "spawn" starts a fresh Python: a copy of this one would share its GPU and threads
    writer = multiprocessing.get_context("spawn").Process(
        target=run_writer, args=(sender, folder, source), daemon=True
    )
    writer.start()
    sender.close()  # the writer has its own; with this one open, its end goes unseen
    stopping = threading.Event()
    try:
        shards = wait_for_shards(folder, writer, receiver)
        threading.Thread(
            target=report_death, args=(writer, receiver, stopping), daemon=True
        ).start()
        yield shards
    finally:
        stopping.set()
        writer.terminate()  # at any instant: a commit is there or not
        writer.join()


def run_writer(sender: Connection, folder: Path, source: FineWebEdu) -> None:
    """What the process does. What goes wrong is told to the process that started it."""
    # Ctrl-C reaches both; the trainer ends this one when it is ready
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        write_fineweb(folder, source)
    except TilelliError as error:
        sender.send((error.problem, error.fix))
        sys.exit(1)


def end_with_parent() -> None:
    """Waits for the end of the process that started this one, by SIGKILL too, and ends
    this one: no orphans.
    """
    multiprocessing.parent_process().join()
    os._exit(1)  # sys.exit would end this thread alone


def wait_for_shards(
    folder: Path,
    writer: multiprocessing.Process | None = None,
    receiver: Connection | None = None,
) -> Shards:
    """Opens the shards of a folder once both sides have one. DataError when the writer
    ends before.
    """
    while True:
        # asked before looking: what it wrote last would be missed the other way round
        has_ended = writer is not None and writer.exitcode is not None
        shards = []
        if (folder / MANIFEST).is_file():
            shards = read_manifest(folder)["shards"]
        if {shard["split"] for shard in shards} == {"train", "val"}:
            return open_shards(folder)
        if has_ended:
            raise DataError(*cause_of_death(writer, receiver))
        time.sleep(0.1)


def report_death(
    writer: multiprocessing.Process, receiver: Connection, stopping: threading.Event
) -> None:
    """Waits for the end of the writer and prints it to the standard error, unless it is
    done or was stopped on purpose.
    """
    wait([writer.sentinel])
    was_meant = writer.exitcode in (0, -signal.SIGTERM)  # the latter by terminate()
    if stopping.is_set() or was_meant:
        return
    problem, fix = cause_of_death(writer, receiver)
    print(
        f"\nFineWeb-Edu: {problem}; training goes on with what is there. {fix}",
        file=sys.stderr,
        flush=True,
    )


def cause_of_death(
    writer: multiprocessing.Process, receiver: Connection
) -> tuple[str, str]:
    """Why the writer ended, and what to do."""
    try:
        return receiver.recv()
    except EOFError:  # it ended without a word
        return (
            f"the writer ended with exit code {writer.exitcode}",
            "the same command with --resume starts it again",
        )
