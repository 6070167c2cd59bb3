"""Files that a crash cannot spoil: whole ones that are old or new, never half, and
.jsonl files that grow by a line at a time.

A line of a .jsonl file ends at the byte \\n and nowhere else. Text has other characters
that some functions take for the end of a line, U+2028 among them, and a model that
writes bytes will write those too: so lines are read and counted as bytes.
"""

import json
import os
from pathlib import Path
from typing import Any

from .errors import DataError


def at_home(path: str | Path) -> Path:
    """The path, with ~ for the home folder as in a shell, which replaces it in some
    places only.
    """
    # a ~somebody who is not known here stays as it is
    return Path(os.path.expanduser(path))


def is_file(path: Path) -> bool:
    """Whether there is such a file; no name that no system could have, either."""
    return os.path.isfile(path)  # pathlib raises OSError where a name is too long


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a temporary file beside `path`, flushes it to disk and renames it: `path`
    is old or new, never half. Raises DataError where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            # into the file, and from the system's memory onto the disk
            file.flush()
            os.fsync(file.fileno())
        # the one step that others can see, and it happens at once
        os.replace(temporary, path)
    except OSError as error:
        if is_file(temporary):
            temporary.unlink()
        raise DataError(
            f"cannot write {path.name} ({len(data):,} bytes): {error.strerror}",
            "free some room or choose another folder; what was there is untouched",
        ) from None


def load_lines(path: str | Path) -> list[dict[str, Any]]:
    """Reads a .jsonl file (metrics.jsonl, samples.jsonl) as a list of dictionaries; a
    last line that is only half written yet is left out. Raises DataError.
    """
    path, lines = Path(path), []
    try:
        with open(path, "rb") as file:  # as bytes, a file is cut at \n alone
            for number, line in enumerate(file, 1):
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    if line.endswith(b"\n"):
                        raise DataError(
                            f"{path.name}, line {number} is not JSON",
                            "repair the line or delete it",
                        ) from None
    except OSError as error:
        raise DataError(
            f"cannot read {path.name} in {path.parent.name}: {error.strerror}",
            "name the folder of a run that has one",
        ) from None
    return lines


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds one line to a .jsonl file. Raises DataError where it cannot be written."""
    data = json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n"
    try:
        with open(path, "ab") as file:
            file.write(data)
    except OSError as error:
        raise DataError(
            f"cannot write {path.name}: {error.strerror}",
            "free some room, then go on with --resume: the last checkpoint is whole",
        ) from None


def keep_lines(path: Path, last_step: int) -> None:
    """Drops the lines of a .jsonl file after a step, and a last one that is only half
    written; makes a missing file.
    """
    data = path.read_bytes() if path.is_file() else b""
    kept = []
    for line in data.split(b"\n"):
        if not line:
            continue  # what follows the last \n
        try:
            is_kept = json.loads(line)["step"] <= last_step
        except ValueError:
            break  # the process was killed while it wrote this line
        except (KeyError, TypeError):
            raise DataError(
                f"{path.name} holds a line that no run has written: {line[:40]!r}",
                "take it out, or move the file away",
            ) from None
        if is_kept:
            kept.append(line + b"\n")
    write_atomic(path, b"".join(kept))
