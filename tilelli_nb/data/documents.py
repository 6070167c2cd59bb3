"""Where text comes from: generated stories, the documentation that is installed here,
any file or folder.

Every source is an iterator of documents (strings). Nothing is downloaded, nothing large
is read into memory whole.
"""

import ast
import difflib
import hashlib
import json
import os
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path

from ..errors import DataError, MissingDependency
from ..files import at_home
from .encoding import open_text
from .stories import stories

# The corpora that have a name, and how much of one that never ends.
NAMES = ("stories", "docs")
STORY_BYTES = 10_000_000

# Marks the end of a document in a .txt.
SEPARATOR = "<|endoftext|>"

# Documentation is read from these packages, as far as they are installed.
DOCUMENTED = ("stdlib", "numpy", "matplotlib", "datasets")


def documents(
    source: str | Path, *, seed: int = 0, limit_bytes: int | None = None
) -> Iterator[str]:
    """Documents of "stories", of "docs", or of a path. The word is the name, whatever
    lies in the working directory: write ./stories for a folder of that name.

    Ends with the document that reaches `limit_bytes` of UTF-8. Stories have no end of
    their own: 10 MB by default. `seed` is for stories. DataError for a name that is
    neither.
    """
    if source == "stories":
        return up_to(STORY_BYTES if limit_bytes is None else limit_bytes, stories(seed))
    limit = inf if limit_bytes is None else limit_bytes
    if source == "docs":
        return up_to(limit, docs())
    check_path(source)
    return up_to(limit, read_documents(source))


def check_path(source: str | Path) -> None:
    """Raises DataError, with the names of the corpora, where `source` is the path of
    nothing; and for fineweb-edu, of which somebody must say how much.
    """
    if source == "fineweb-edu":  # the word, that is: a Path is equal to none
        raise DataError(
            "fineweb-edu is streamed from the Hugging Face hub, so it needs a size",
            "give --gigabytes 2, or write it first: "
            "tilelli data fineweb-edu --gigabytes 2; "
            "a folder of that name is ./fineweb-edu",
        )
    # a Path has said that it is one, so the names of corpora would not help
    if isinstance(source, Path) and not exists(at_home(source)):
        raise DataError(
            f"there is no file or folder {source}",
            "check the spelling, or give the full path",
        )
    # Path("") is the working directory, which nobody means
    if not str(source) or not exists(at_home(source)):
        near = difflib.get_close_matches(str(source), NAMES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        said = textwrap.shorten(repr(str(source)), 80)
        raise DataError(
            f"{said} is no corpus and no path{hint}",
            f"use one of {', '.join(NAMES)}, or the path of a {', '.join(READERS)} "
            "file or of a folder",
        )


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; no path that no system could have."""
    return os.path.exists(path)  # False where a name is too long, or holds NUL


def up_to(limit: float, texts: Iterator[str]) -> Iterator[str]:
    """Yields texts; the one that reaches `limit` bytes of UTF-8 is the last."""
    size = 0
    while size < limit:
        text = next(texts, None)
        if text is None:
            return
        yield text
        size += len(text.encode("utf-8"))


# Documentation


def docs(packages: list[str] | None = None) -> Iterator[str]:
    """Docstrings of installed packages, one document of at least 200 bytes per module,
    in the order of sorted paths.

    The default is the standard library ("stdlib"), numpy, matplotlib and datasets,
    where present. Sources are read with `ast`, never imported; files that do not parse
    are skipped. DataError for a named package that is missing.
    """
    files, missing = [], []
    for name in packages or DOCUMENTED:
        found = python_files(name)
        files += found
        if not found:
            missing.append(name)
    if packages and missing:
        raise DataError(
            f"no Python sources of {', '.join(missing)} are installed",
            "install it, or leave it out",
        )
    texts = map(docstrings, files)  # each is read when it is asked for
    return (text for text in texts if len(text.encode("utf-8")) >= 200)


def installed() -> str:
    """A digest of all that the default documentation is read from: another version of a
    package is another text.
    """
    digest = hashlib.sha256()
    for package in DOCUMENTED:
        for file in python_files(package):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def python_files(package: str) -> list[Path]:
    """The .py files of a package, sorted, without its tests and (for stdlib) without
    what is installed beside it.
    """
    skip = {"site-packages", "dist-packages", "__pycache__", "test", "tests"}
    roots = []
    if package == "stdlib":
        roots.append(Path(sysconfig.get_path("stdlib")))
    elif package.isidentifier():
        # where an import would look for it: a folder, or a single file
        for entry in sys.path:
            roots += [Path(entry) / package, Path(entry) / f"{package}.py"]
    for root in roots:
        files = []
        candidates = [root] if root.is_file() else root.rglob("*.py")
        for file in candidates:
            if skip.isdisjoint(file.relative_to(root).parts):
                files.append(file)
        # the first place that has any, as with an import
        if files:
            return sorted(files, key=Path.as_posix)
    return []


def docstrings(file: Path) -> str:
    """The docstrings of a Python file in the order of its lines; "" for a file that
    does not parse.
    """
    try:
        # old sources have escapes that newer Pythons warn about
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    # ast.walk goes level by level; the module itself has no line and comes first
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    texts = []
    for node in nodes:
        text = ast.get_docstring(node)  # without the indentation
        if text:
            texts.append(text)
    return as_utf8("\n\n".join(texts))


def as_utf8(text: str) -> str:
    """The text with "?" for what cannot be written as UTF-8: half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


# Files and folders


def read_documents(path: str | Path) -> Iterator[str]:
    """The documents of a .txt, .jsonl (key `text`) or .parquet (column `text`) file, or
    of a folder of these, streamed.

    A .txt with `<|endoftext|>` is cut there and its documents stay as they are, but for
    the newlines around them. Other .txt files are cut at blank lines, else at newlines,
    and the pieces are joined again to documents of at least 1 KB. Empty documents are
    dropped. A file is UTF-8, or what its byte order mark says; a few bytes that are not
    become U+FFFD. Raises DataError, also for a file that is no text.
    """
    path = at_home(path)
    if not exists(path):
        raise DataError(
            f"there is no file or folder {path}",
            "check the spelling, or give the full path",
        )
    files = [path]
    if path.is_dir():
        files = files_inside(path)
        if not files:
            raise DataError(
                f"the folder {path.name} holds no {', '.join(READERS)} file",
                "put the text there first",
            )
    elif not is_readable(path):
        raise DataError(
            f"{path.name} is of an unknown kind",
            f"give a {', '.join(READERS)} file, or a folder of these",
        )
    # a function of its own, so that the errors above come at once and not when the
    # first document is asked for
    return read_files(files)


def is_readable(file: Path) -> bool:
    """Whether the file's name says that it is of a kind that can be read."""
    return file.suffix.lower() in READERS


# A folder with one of these was written by this package: a run, or shards.
OWN_FILES = ("run.json", "manifest.json")


def files_inside(folder: Path, skipped: list[str] | None = None) -> list[Path]:
    """The readable files of a folder and of those in it, sorted, but no hidden ones and
    none of runs and shards. `skipped` gets the names of what else was there.

    A folder that is a link counts as a folder, once.
    """
    found, left = [], [] if skipped is None else skipped
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        here = Path(place)
        is_own = here != folder and any(name in names for name in OWN_FILES)
        real = os.path.realpath(here)
        if is_own:
            left.append(f"{here.relative_to(folder)}/")
        if is_own or real in seen:  # a link can lead back to where it came from
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            file = here / name
            if name.startswith(".") or not file.is_file():
                continue
            if is_readable(file):
                found.append(file)
            else:
                left.append(file.relative_to(folder).as_posix())
    return sorted(found, key=Path.as_posix)


def read_files(files: list[Path]) -> Iterator[str]:
    """Yields the documents of one file after the other, without empty ones."""
    for file in files:
        read = READERS[file.suffix.lower()]
        for text in read(file):
            if text.strip():
                yield text


def read_txt(file: Path) -> Iterator[str]:
    """Yields the documents of a .txt, cut as read_documents says."""
    separator = separator_of(file)
    if separator == SEPARATOR:
        for block in cut_at(lambda piece: piece == SEPARATOR, pieces_of(file)):
            yield "".join(block).strip("\n")
        return
    if separator == "\n\n":
        blocks = cut_at(str.isspace, pieces_of(file))
        short = ("".join(block).rstrip("\n") for block in blocks)
    else:
        lines = pieces_of(file)
        short = (line.rstrip("\n") for line in lines if not line.isspace())
    yield from join_short(short, separator)


def pieces_of(file: Path) -> Iterator[str]:
    """Yields the lines of a .txt, and every `<|endoftext|>` by itself."""
    with open_text(file) as stream:  # CRLF is read as LF
        for line in stream:
            # the brackets keep the separator among the pieces
            for piece in re.split(f"({re.escape(SEPARATOR)})", line):
                if piece:
                    yield piece


def separator_of(file: Path) -> str:
    """What stands between the documents of a .txt: `<|endoftext|>` if there is one,
    else a blank line if one stands between other lines, else a newline.
    """
    separator = "\n"
    has_text = after_blank = False
    for piece in pieces_of(file):
        if piece == SEPARATOR:
            return SEPARATOR  # one is enough, whatever else there is
        if piece.isspace():
            after_blank = has_text
            continue
        if after_blank:
            separator = "\n\n"
        has_text = True
    return separator


def cut_at(is_cut: Callable[[str], bool], pieces: Iterator[str]) -> Iterator[list[str]]:
    """Yields what stands between the pieces that are cuts; nothing for two in a row."""
    block: list[str] = []
    for piece in pieces:
        if not is_cut(piece):
            block.append(piece)
        elif block:
            yield block
            block = []
    if block:
        yield block


def join_short(
    pieces: Iterator[str], separator: str, least: int = 1024
) -> Iterator[str]:
    """Joins pieces until each document has `least` bytes; a shorter rest is added to
    the last one.
    """
    ready: list[str] = []  # the last whole document, held back for the rest
    waiting: list[str] = []
    size = 0  # of what waits, in bytes
    for piece in pieces:
        if waiting:
            size += len(separator)
        size += len(piece.encode("utf-8"))
        waiting.append(piece)
        if size >= least:
            yield from ready
            ready = [separator.join(waiting)]
            waiting, size = [], 0
    if ready or waiting:
        yield separator.join(ready + waiting)


def read_jsonl(file: Path) -> Iterator[str]:
    """Yields the `text` of every line. Raises DataError that names the line."""
    with open_text(file, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            text = line.strip()
            if not text:
                continue
            try:
                row = json.loads(text)
            # ValueError: also a number of thousands of digits; RecursionError:
            # thousands of brackets within each other
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{file.name}, line {number} is not JSON",
                    "repair the line or delete it",
                ) from error
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise DataError(
                    f'{file.name}, line {number} has no "text"',
                    'write {"text": "..."} on every line',
                )
            yield as_utf8(row["text"])


def read_parquet(file: Path) -> Iterator[str]:
    """Yields the column `text`, 1,024 rows at a time. Raises DataError for a file
    without it, MissingDependency without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependency(
            "reading .parquet needs pyarrow", "pip install pyarrow"
        ) from error
    try:
        table = pq.ParquetFile(file)
    except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
        raise DataError(
            f"{file.name} is not a parquet file", "download or write it again"
        ) from error
    with table:
        schema = table.schema_arrow
        if "text" not in schema.names:
            raise DataError(
                f"{file.name} has no column `text`, only {', '.join(schema.names)}",
                "rename the column that holds the text to `text`",
            )
        kind = schema.field("text").type
        # a column of few texts may have each once, in a dictionary
        texts = kind.value_type if pa.types.is_dictionary(kind) else kind
        if str(texts) not in ("string", "large_string", "string_view"):
            raise DataError(
                f"the column `text` of {file.name} holds {kind}, not text",
                "rename the column that holds the text to `text`",
            )
        try:
            for batch in table.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if text is not None:  # a row may have none
                        yield text
        # a damaged page, or a string that is no UTF-8
        except (ValueError, OSError) as error:
            raise DataError(
                f"{file.name} is damaged ({type(error).__name__})",
                "download or write it again",
            ) from error


TEXT_KINDS = (".txt", ".jsonl")
READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}


# What a file that begins or ends so is for: valid.txt, train-00000-of-00002.parquet,
# TinyStories-valid.txt; or one in a folder of that name.
SIDES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}


def side_of(file: Path, folder: Path) -> str | None:
    """Which side of a split a file of the folder is for: "train", "val", "test", or
    None where its name says nothing.
    """
    *parents, name = file.relative_to(folder).parts
    words = re.split(r"[-_.\s]+", Path(name).stem.lower())
    for word in (words[0], words[-1], *(parent.lower() for parent in parents)):
        if word in SIDES:
            return SIDES[word]
    return None
