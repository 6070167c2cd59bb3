"""Where text comes from: generated stories, the documentation that is installed here,
any file or folder.

Every source is an iterator of documents (strings). Nothing is downloaded, nothing large
is read into memory whole.
"""

import ast
import csv
import difflib
import json
import random
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import resources
from itertools import count, groupby, islice
from math import inf
from pathlib import Path
import yaml
from ..errors import DataError
from ..errors import MissingDependency
from .stories import stories

SEPARATOR = "<|endoftext|>"


NAMES = ("stories", "docs")


def docs(packages: list[str] | None = None) -> Iterator[str]:
    """Docstrings of installed packages, one document of at least 200 bytes per module,
    in the order of sorted paths.

    The default is the standard library ("stdlib"), numpy, matplotlib and datasets,
    where present. Sources are read with `ast`, never imported; files that do not parse
    are skipped. DataError for a named package that is missing.
    """
    found = {
        name: _sources(name)
        for name in packages or ("stdlib", "numpy", "matplotlib", "datasets")
    }
    if packages and (missing := [name for name, files in found.items() if not files]):
        raise DataError(
            f"no Python sources of {', '.join(missing)} are installed",
            "install it, or leave it out",
        )
    texts = (_docstrings(file) for files in found.values() for file in files)
    return (text for text in texts if len(text.encode("utf-8")) >= 200)


def _sources(package: str) -> list[Path]:
    """The .py files of a package, sorted, without its tests and (for stdlib) without
    what is installed beside it.
    """
    skip = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}
    roots = (
        [Path(sysconfig.get_path("stdlib"))]
        if package == "stdlib"
        else [
            Path(entry) / name
            for entry in sys.path
            for name in (package, f"{package}.py")
            if package.isidentifier()
        ]
    )
    for root in roots:
        files = [root] if root.is_file() else root.rglob("*.py")
        if files := [
            file for file in files if not skip & set(file.relative_to(root).parts)
        ]:
            return sorted(files, key=Path.as_posix)
    return []


def _docstrings(file: Path) -> str:
    try:
        # old sources have escapes that newer Pythons warn about
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = sorted(
        (n for n in ast.walk(tree) if isinstance(n, kinds)),
        key=lambda n: getattr(n, "lineno", 0),
    )
    texts = filter(None, map(ast.get_docstring, nodes))  # cleaned with inspect.cleandoc
    # half a surrogate pair is no UTF-8
    return "\n\n".join(texts).encode("utf-8", "replace").decode("utf-8")


def read_documents(path: str | Path) -> Iterator[str]:
    """The documents of a .txt, .jsonl (key `text`) or .parquet (column `text`) file, or
    of a folder of these, streamed.

    A .txt with `<|endoftext|>` is cut there and its documents stay as they are, but for
    the newlines around them. Other .txt files are cut at blank lines, else at newlines,
    and the pieces are joined again to documents of at least 1 KB. Empty documents are
    dropped, bytes that are not UTF-8 become U+FFFD. Raises DataError.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise DataError(
            f"there is no file or folder {path}",
            "check the spelling, or give the full path",
        )
    files = [path]
    if path.is_dir():
        files = sorted(
            (
                f
                for f in path.rglob("*")
                if f.is_file()
                and f.suffix.lower() in READERS
                and not any(part.startswith(".") for part in f.relative_to(path).parts)
            ),
            key=Path.as_posix,
        )
        if not files:
            raise DataError(
                f"the folder {path.name} holds no {', '.join(READERS)} file",
                "put the text there first",
            )
    if files[0].suffix.lower() not in READERS:
        raise DataError(
            f"{path.name} is of an unknown kind",
            f"give a {', '.join(READERS)} file, or a folder of these",
        )
    return (
        text
        for file in files
        for text in READERS[file.suffix.lower()](file)
        if text.strip()
    )


def _read_txt(file: Path) -> Iterator[str]:
    def pieces():  # lines, and separators by themselves
        # universal newlines: CRLF is read as LF
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            yield from (
                piece
                for line in stream
                for piece in re.split(f"({re.escape(SEPARATOR)})", line)
                if piece
            )

    def blocks(is_cut):  # each block is an iterator of pieces
        return (block for cut, block in groupby(pieces(), key=is_cut) if not cut)

    if any(piece == SEPARATOR for piece in pieces()):
        return ("".join(block).strip("\n") for block in blocks(SEPARATOR.__eq__))
    if len(list(islice(blocks(str.isspace), 2))) > 1:
        return _pack(
            ("".join(block).rstrip("\n") for block in blocks(str.isspace)), "\n\n"
        )
    return _pack((line.rstrip("\n") for line in pieces() if line.strip()), "\n")


def _pack(pieces: Iterator[str], separator: str, least: int = 1024) -> Iterator[str]:
    """Joins pieces until each document has `least` bytes; a shorter rest is added to
    the last one.
    """
    ready, pack, size = [], [], 0
    for piece in pieces:
        size += len(piece.encode("utf-8")) + (len(separator) if pack else 0)
        pack.append(piece)
        if size >= least:
            yield from ready
            ready, pack, size = [separator.join(pack)], [], 0
    if ready or pack:
        yield separator.join(ready + pack)


def _read_jsonl(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            text = line.decode(
                "utf-8-sig" if number == 1 else "utf-8", errors="replace"
            ).strip()
            try:
                # an empty line is an empty document
                row = json.loads(text or '{"text": ""}')
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(
                    f"{file.name}, line {number} is not JSON",
                    "repair the line or delete it",
                ) from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise DataError(
                    f'{file.name}, line {number} has no "text"',
                    'write {"text": "..."} on every line',
                )
            # half a surrogate pair is no UTF-8
            yield row["text"].encode("utf-8", "replace").decode("utf-8")


def _read_parquet(file: Path) -> Iterator[str]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependency(
            "reading .parquet needs pyarrow", "pip install pyarrow"
        ) from error
    try:
        table = pq.ParquetFile(file)
    except ValueError as error:  # ArrowInvalid is one
        raise DataError(
            f"{file.name} is not a parquet file", "download or write it again"
        ) from error
    with table:
        if "text" not in table.schema_arrow.names:
            raise DataError(
                f"{file.name} has no column `text`, only {', '.join(table.schema_arrow.names)}",
                "rename the column that holds the text to `text`",
            )
        for batch in table.iter_batches(batch_size=1024, columns=["text"]):
            yield from (
                text for text in batch.column(0).to_pylist() if isinstance(text, str)
            )


READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def documents(
    source: str | Path, *, seed: int = 0, limit_bytes: int | None = None
) -> Iterator[str]:
    """Documents of "stories", of "docs", or of a path (write ./stories for a folder of
    that name).

    Ends with the document that reaches `limit_bytes` of UTF-8. Stories have no end of
    their own: 10 MB by default. `seed` is for stories. DataError for a name that is
    neither.
    """

    def limit(texts: Iterator[str], most: float) -> Iterator[str]:
        while most > 0 and (text := next(texts, None)) is not None:
            yield text
            most -= len(text.encode("utf-8"))

    if source == "stories":
        return limit(stories(seed), 10_000_000 if limit_bytes is None else limit_bytes)
    if str(source) == "fineweb-edu":
        raise DataError(
            "fineweb-edu is streamed from the Hugging Face hub, so it needs a size",
            "give --gigabytes 2, or write it first: tilelli data fineweb-edu --gigabytes 2",
        )
    if source != "docs" and not (str(source) and Path(source).expanduser().exists()):
        near = difflib.get_close_matches(str(source), NAMES, n=1)
        raise DataError(
            f"{str(source)!r} is no corpus and no path"
            + (f"; did you mean {near[0]!r}?" if near else ""),
            f"use one of {', '.join(NAMES)}, or the path of a {', '.join(READERS)} file or of a folder",
        )
    return limit(
        docs() if source == "docs" else read_documents(source),
        inf if limit_bytes is None else limit_bytes,
    )


def train_val_files(path: str | Path) -> tuple[Path, Path] | None:
    """A folder's own split: its train.* and val.* (or None where it lacks one of
    them).
    """
    files = sorted(
        f for f in Path(path).expanduser().glob("*.*") if f.suffix.lower() in READERS
    )
    split = [
        next((f for f in files if f.stem == stem), None) for stem in ("train", "val")
    ]
    return tuple(split) if all(split) else None
