"""Run records: what was run, on what, with which code, and what came out. Every number
in the book points at one.
"""

import json
import os
from pathlib import Path
from typing import Any

from .errors import DataError


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a temporary file beside `path`, flushes it to disk and renames it: `path`
    is old or new, never half.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        raise DataError(
            f"cannot write {path.name} ({len(data):,} bytes): {error.strerror}",
            "free some room or choose another folder; what was there before is untouched",
        ) from None


def load_lines(path: str | Path) -> list[dict[str, Any]]:
    """A .jsonl file (metrics.jsonl, samples.jsonl) as a list of dictionaries."""
    return [
        json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()
    ]


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds one line to a .jsonl file."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DataError(
            f"cannot write {path.name}: {error.strerror}",
            "free some room, then go on with --resume: the last checkpoint is whole",
        ) from None


def keep_lines(path: Path, last_step: int) -> None:
    """Drops the lines of a .jsonl file after a step, and a last one that is only half
    written; makes a missing file.
    """
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line)
        except ValueError:
            break  # the process was killed while it wrote
    write_atomic(path, b"".join(kept))
