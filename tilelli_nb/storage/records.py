"""Run records: what was run, on what, with which code, and what came out. Every number
in the book points at one.
"""

import hashlib
import json
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import load_lines

PACKAGE = Path(__file__).parents[1]


KEYS = (
    "name",
    "kind",
    "config",
    "seed",
    "data",
    "steps",
    "bytes_seen",
    "device",
    "gpu_name",
    "versions",
    "git",
    "package_sha256",
    "started",
    "finished",
    "wall_s",
    "bytes_per_s",
    "mfu",
    "usd_per_hour",
    "usd",
    "val_bpb",
    "notes",
    "precision",
)


KINDS = ("train", "sft", "eval", "bench")


def new_record(name: str, kind: str, **values: Any) -> dict[str, Any]:
    """A record with every key of the format: what is not known yet is None, what
    describes the machine is filled in.
    """
    unknown = [key for key in values if key not in KEYS]
    if unknown or kind not in KINDS:
        raise DataError(
            f"a run record has no key {unknown[0]!r}"
            if unknown
            else f"unknown kind of run {kind!r}",
            f"its keys are {', '.join(KEYS)}; its kinds {', '.join(KINDS)}",
        )
    about = {
        "name": name,
        "kind": kind,
        "device": "cpu",
        "versions": versions(),
        "git": git_commit(),
        "package_sha256": package_sha256(),
        "started": now(),
        "notes": "",
    }
    return {key: values.get(key, about.get(key)) for key in KEYS}


def versions() -> dict[str, str]:
    """Python, operating system and the libraries that decide the numbers."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in ("torch", "numpy", "triton", "tilelli-nb"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_commit() -> str | None:
    """The commit of the checkout that holds the package, with + when it has local
    changes; None outside of one.
    """
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=PACKAGE,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() or None if commit.returncode == 0 else None


def package_sha256() -> str:
    """One digest over the package's Python files: names and contents, in order."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(
            path.relative_to(PACKAGE).as_posix().encode()
            + b"\0"
            + path.read_bytes()
            + b"\0"
        )
    return digest.hexdigest()


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(record: dict[str, Any]) -> bytes:
    """A record as indented JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def runs_folder(start: Path | None = None) -> Path:
    """book/runs of the checkout around `start` (the working directory), or of the one
    that holds the package.
    """
    for folder in (*(Path(start or ".").resolve() / "x").parents, *PACKAGE.parents):
        if (folder / "book" / "runs").is_dir():
            return folder / "book" / "runs"
    raise DataError(
        "there is no folder book/runs here",
        "clone the book's repository: the records live there",
    )


def load_record(name: str | Path) -> dict[str, Any]:
    """The run.json of a committed run, by name, or of any folder. Raises DataError when
    there is none.
    """
    folder = Path(name) if (Path(name) / "run.json").is_file() else runs_folder() / name
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = ", ".join(
            sorted(path.parent.name for path in runs_folder().glob("*/run.json"))
        )
        reason = "is not JSON" if isinstance(error, ValueError) else "does not exist"
        raise DataError(
            f"the run record {folder.name} {reason}", f"the records are {known}"
        ) from None


def load_metrics(name: str | Path) -> list[dict[str, Any]]:
    """The metrics.jsonl of a committed run, by name, or of any run folder."""
    folder = (
        Path(name) if (Path(name) / "metrics.jsonl").is_file() else runs_folder() / name
    )
    return load_lines(folder / "metrics.jsonl")
