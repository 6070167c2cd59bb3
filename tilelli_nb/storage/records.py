"""Run records: what was run, on what, with which code, and what came out. Every number
in the book points at one.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import at_home, is_file, load_lines, write_atomic

PACKAGE = Path(__file__).resolve().parents[1]

# The keys of run.json, in the order in which they are written.
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
    "run_id",
    "threads",
    "processor",
)
KINDS = ("train", "sft", "eval", "bench")


# What is noted


def new_record(name: str, kind: str, **values: Any) -> dict[str, Any]:
    """A record with every key of the format: what is not known yet is None, what
    describes the machine is filled in. Raises DataError for another key or kind.
    """
    known = f"its keys are {', '.join(KEYS)}; its kinds {', '.join(KINDS)}"
    for key in values:
        if key not in KEYS:
            raise DataError(f"a run record has no key {key!r}", known)
    if kind not in KINDS:
        raise DataError(f"unknown kind of run {kind!r}", known)
    record = dict.fromkeys(KEYS)
    record |= {
        "name": name,
        "kind": kind,
        "device": "cpu",
        "processor": processor(),
        "versions": versions(),
        "git": git_commit(),
        "package_sha256": package_sha256(),
        "started": now(),
        "notes": "",
    }
    return record | values


def versions() -> dict[str, str]:
    """Python, operating system and the libraries that decide the numbers."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    for name in ("torch", "numpy", "triton", "tilelli-nb"):
        with suppress(metadata.PackageNotFoundError):  # there is no triton on a Mac
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """The name of this machine's CPU, and how many cores it has."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux alone says more in a file
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", cpu, re.M)
        name = found[1].strip() if found else name
    return f"{name}, {os.cpu_count()} cores"


def git_commit() -> str | None:
    """The commit of the book's checkout that holds the package, with + when it has
    local changes; None outside of one.

    Another repository around the package, such as a project with its .venv inside, says
    nothing about the code.
    """
    root = git("rev-parse", "--show-toplevel")
    is_tracked = git("ls-files", "--", "__init__.py")
    if not root or not is_tracked or Path(root).resolve() != PACKAGE.parent:
        return None
    # a commit's hash even where a tag is near: --exclude takes every tag away
    return git("describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")


def git(*arguments: str) -> str | None:
    """What git says in the package's folder; None where it says nothing."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(
            command, cwd=PACKAGE, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here
    if done.returncode != 0:
        return None  # no checkout
    return done.stdout.strip() or None


def package_sha256() -> str:
    """One digest over the package's Python files: names and contents, in order."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        # byte 0 closes each part, so that none can run into the next
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dumps(record: dict[str, Any]) -> bytes:
    """A record as indented JSON."""
    return json.dumps(record, indent=2, ensure_ascii=False).encode() + b"\n"


def write_run(folder: Path, record: dict[str, Any], results: dict[str, Any]) -> None:
    """Writes what a measurement found, results.json, and its record, run.json, which is
    finished now unless it says when.

    The record comes last: a folder that has one is whole, whenever the program is
    killed. Raises DataError where nothing can be written.
    """
    if record["finished"] is None:
        record = record | {"finished": now()}
    write_atomic(folder / "results.json", dumps(results))
    write_atomic(folder / "run.json", dumps(record))


# Where it lies


def runs_folder(start: Path | None = None) -> Path:
    """book/runs of the checkout around `start` (the working directory), else of the one
    that holds the package, else what a wheel carries of it. Raises DataError where
    there is none of them.
    """
    here = Path(start or ".").resolve()
    for folder in (here, *here.parents, *PACKAGE.parents, PACKAGE):
        book = folder / "book"
        # Somebody else's folder may have the same name.
        if (book / "claims.yml").is_file() and (book / "runs").is_dir():
            return book / "runs"
    raise DataError(
        "there is no folder book/runs here",
        "clone the book's repository: the records live there",
    )


def run_folder(name: str | Path, file: str) -> Path:
    """The folder `name` if it holds `file`, else the committed run of that name."""
    if is_file(at_home(name) / file):
        return at_home(name)
    return runs_folder() / name


def load_record(name: str | Path) -> dict[str, Any]:
    """The run.json of a committed run, by name, or of any folder. Raises DataError when
    there is none.
    """
    folder = run_folder(name, "run.json")
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        # the first records had fewer keys, but never without these
        if {"name", "kind", "config", "started"} <= record.keys():
            return record
        problem = f"the run.json of {folder.name} is no run record"
    except OSError:
        problem = f"the run record {folder.name} does not exist"
    except (ValueError, AttributeError):
        problem = f"the run record {folder.name} is not JSON, or damaged"
    known = "give the folder of a run, or mend its run.json"
    with suppress(DataError):  # installed without the book
        names = sorted(path.parent.name for path in runs_folder().glob("*/run.json"))
        known = f"the records are {', '.join(names)}"
    raise DataError(problem, known)


def load_metrics(name: str | Path) -> list[dict[str, Any]]:
    """The metrics.jsonl of a committed run, by name, or of any run folder."""
    return load_lines(run_folder(name, "metrics.jsonl") / "metrics.jsonl")
