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

from .errors import DataError, MissingDependency

SEPARATOR = "<|endoftext|>"
NAMES = ("stories", "docs")
PRONOUNS = {
    "f": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "m": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
ALWAYS = {
    "place": "any",
    "food": "any",
    "snack": "any",
    "world": "child,child,animal",
    "weather": "sunny,cloudy,windy,rainy,snowy",
}  # what a plot may narrow


class _Slots(dict):
    """What the slots of one story stand for. `{a_x}`, `{A_x}`, `{x_cap}` and `{X}` are
    made from `{x}`.
    """

    def __missing__(self, name: str) -> str:
        if name[:2] in ("a_", "A_"):
            return _article(self[name[2:]], name[0])
        text = self[name.removesuffix("_cap").lower()]
        return text[0].upper() + text[1:]


def _article(noun: str, a: str = "a") -> str:
    return f"{a}n {noun}" if noun[0] in "aeiou" else f"{a} {noun}"


def _write(parts: list, rnd: Callable[[], float], out: list[str]) -> None:
    """Appends compiled text to `out`: a list of parts, a str written as it is, a tuple
    a choice between such lists.
    """
    for part in parts:
        if type(part) is str:
            out.append(part)
        else:
            _write(part[int(rnd() * len(part))], rnd, out)


@lru_cache(maxsize=1)
class _World:
    """The tables, word lists, rules and plots of data/stories.yaml: read once, compiled
    when first used.
    """

    def __init__(self) -> None:
        text = (
            resources.files(__package__)
            .joinpath("data/stories.yaml")
            .read_text(encoding="utf-8")
        )
        data = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self.rules, self.plots = data["rules"], data["plots"]
        self.words = {
            name: text.split() for name, text in data.items() if isinstance(text, str)
        }
        self.rows = {
            name: list(
                csv.DictReader(text.splitlines(), delimiter="|", quoting=csv.QUOTE_NONE)
            )
            for name, text in data.items()
            if isinstance(text, str) and "|" in text
        }
        self.compiled: dict[tuple, list | tuple] = {}

    def lines(self, name: str, weather: str) -> list[str]:
        """The alternatives of a rule. `a_`/`A_` put an article before each."""
        if name[:2] in ("a_", "A_"):
            return [_article(line, name[0]) for line in self.lines(name[2:], weather)]
        text = self.rules.get(f"{name}_{weather}") or self.rules[name]
        return (
            text.strip().splitlines()
            if "\n" in text
            else [word.replace("_", " ") for word in text.split()]
        )

    def compile(self, text: str, weather: str) -> list:
        parts: list = []
        for piece in re.split(r"(<\w+>)", text):
            if piece[:1] == "<":
                if (key := (piece, weather)) not in self.compiled:
                    self.compiled[key] = tuple(
                        self.compile(line, weather)
                        for line in self.lines(piece[1:-1], weather)
                    )
                parts.append(self.compiled[key])
            elif piece:
                parts.append(piece)
        return parts

    def plot(self, number: int, weather: str) -> list:
        """A plot's sentences: "- " begins one, "/ " is another wording, "=" a new
        paragraph.
        """
        if (number, weather) not in self.compiled:
            sentences: list = []
            for sentence in re.split(r"\n(?!/)", self.plots[number]["story"].strip()):
                ways = tuple(
                    self.compile(way[2:] + " ", weather) for way in sentence.split("\n")
                )
                sentences.append("\n" if sentence == "=" else ways)
            self.compiled[number, weather] = sentences
        return self.compiled[number, weather]

    def cast(
        self, table: str, allowed: str, weather: str, pick: Callable
    ) -> dict[str, str]:
        """A row that has one of the `allowed` tags, as slots; an `x0` with `looks` also
        gives x, "red kite".
        """
        if (key := (table, allowed, weather == "snowy")) not in self.compiled:
            self.compiled[key] = [
                row
                for row in self.rows[table]
                if allowed == "any"
                or (
                    set(allowed.split(",")) & set(row["tags"].split())
                    and not (
                        # no boats in the snow
                        table == "thing"
                        and weather == "snowy"
                        and "water" in row["tags"]
                    )
                )
            ]
        row = pick(self.compiled[key])
        return (
            row | {table: f"{pick(row['looks'].split())} {row[table + '0']}"}
            if "looks" in row
            else row
        )

    def people(self, world: str, weather: str, pick: Callable) -> dict[str, str]:
        """A house: the names of hero, friend, elder and helper, their pronouns, and
        what and where the hero is.
        """
        slots = self.cast("people", world, weather, pick)
        return slots | {
            who + slot: word
            for who in ("", "f", "e", "h")
            for slot, word in PRONOUNS[slots[who + "sex"]].items()
        }

    def tell(self, rnd: Callable[[], float]) -> str:
        """One story."""

        def pick(options):
            return options[int(rnd() * len(options))]

        number = int(rnd() * len(self.plots))
        needs = ALWAYS | dict(
            need.split("=") for need in self.plots[number]["needs"].split()
        )
        weather = pick(needs["weather"].split(","))
        slots = _Slots(self.people(pick(needs["world"].split(",")), weather, pick))
        for table in filter(self.rows.__contains__, needs):
            slots |= self.cast(table, needs[table], weather, pick)
        slots |= {
            "at": f"{slots['at']} {slots['place']}",
            "to": f"to {slots['place']}",
            "season": needs.get("season") or pick(self.words[f"season_{weather}"]),
            "trait": pick(self.words["trait"]),
        }
        out: list[str] = []
        _write(self.plot(number, weather), rnd, out)
        # twice: what a slot stands for may hold slots
        text = "".join(out).format_map(slots).format_map(slots)
        return text.replace(" \n", "\n").rstrip()


def stories(seed: int = 0) -> Iterator[str]:
    """Endless short stories (about 320 to 560 bytes each) from a small generated world.

    Story i depends on (seed, i) alone, so the same seed gives the same stories on every
    machine.
    """
    for i in count():
        yield _World().tell(random.Random(f"{seed}-{i}").random)


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
