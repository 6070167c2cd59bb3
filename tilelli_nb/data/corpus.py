"""One door for every corpus: a name or a path in, shards out."""

import hashlib
import math
import warnings
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..files import at_home
from . import documents
from .encoding import encoding_of
from .shards import Shards, fingerprint, holds_shards, open_shards, prepare_shards


def prepare_corpus(
    source: str | Path,
    folder: str | Path | None = None,
    *,
    megabytes: float = 10.0,
    seed: int = 0,
) -> Shards:
    """The shards of a named corpus, a file, a folder of files or a folder of shards;
    they are written when missing. The word is the name: write ./stories, or a Path, for
    a folder that is called so.

    They land in data/NAME (or `folder`). The name carries a digest of what is in a file
    or folder, and of the first documents of what is generated, so that a changed text
    makes new shards. `megabytes` limits what is generated; files are read whole. Raises
    DataError.
    """
    folder = None if folder is None else at_home(folder)
    if source in documents.NAMES:  # a Path is equal to no word
        return _prepare_named(source, folder, megabytes, seed)
    documents.check_path(source)
    path = at_home(source)
    if holds_shards(path):
        if folder not in (None, path):
            raise DataError(
                f"{path} holds shards already", "use them there, or copy the folder"
            )
        return open_shards(path)
    if folder is not None and folder.resolve() == path.resolve():
        raise DataError(
            f"the shards of {path} would go into it",
            "choose another folder: they would be taken for the corpus from then on",
        )
    sides = sides_of(path)
    digest, marks = digest_of(path, sides)
    name = path.resolve().name  # "." has none of its own
    if folder is None:
        folder = Path("data") / "-".join([path.resolve().stem, digest[:8], *marks])
    revision = " ".join([digest, *marks])
    if not sides.val:
        texts = documents.read_files(sides.train)
        return prepare_shards(texts, folder, name, revision=revision)
    train, val = documents.read_files(sides.train), documents.read_files(sides.val)
    return prepare_shards(train, folder, name, revision=revision, val_documents=val)


class Sides(NamedTuple):
    """The files of a corpus. Without any in `val`, documents are held out by their
    hash.
    """

    train: list[Path]
    val: list[Path]


def sides_of(path: Path) -> Sides:
    """The files of a corpus, a file or a folder, and what each is for: val.txt,
    valid.txt and validation.txt are measured on, test.txt is never read.

    Warns of what a folder holds besides. Raises DataError where nothing is left to
    train on.
    """
    if not path.is_dir():
        documents.read_documents(path)  # says so where it is of an unknown kind
        return Sides([path], [])
    skipped: list[str] = []
    by_side: dict[str | None, list[Path]] = {}
    files = documents.files_inside(path, skipped)
    for file in files:
        by_side.setdefault(documents.side_of(file, path), []).append(file)
    val = by_side.pop("val", [])
    kept_away = by_side.pop("test", [])
    # with a split of its own, what is in neither part is no part of the corpus
    if val and "train" in by_side and None in by_side:
        skipped += [file.relative_to(path).as_posix() for file in by_side.pop(None)]
    # what is left: train, and names that say nothing
    train = sorted(chain(*by_side.values()), key=Path.as_posix)
    if files and not train:
        raise DataError(
            f"the folder {path.name} holds nothing to train on, only "
            f"{', '.join(file.name for file in files[:3])}",
            "put a train.txt beside it; or give the file itself as the corpus",
        )
    documents.read_documents(path)  # says so where there is nothing at all
    warn_of_skipped(path, skipped, kept_away)
    return Sides(train, val)


def warn_of_skipped(path: Path, skipped: list[str], kept_away: list[Path]) -> None:
    """Says what of a folder is not read."""
    said = []
    if kept_away:
        names = ", ".join(file.name for file in kept_away[:3])
        said.append(f"{names} (a test set is never trained on)")
    kinds = Counter(name if name[-1] == "/" else Path(name).suffix for name in skipped)
    for kind, count in kinds.most_common(5):
        if kind.endswith("/"):
            said.append(f"{kind} (a run or shards)")
        else:
            said.append(f"{count} {kind or 'file(s) without a suffix'}")
    if len(kinds) > 5:
        said.append("and others")
    if said:
        warnings.warn(
            f"of the folder {path.resolve().name} this is not read: {', '.join(said)}",
            stacklevel=4,  # where prepare_corpus was called
        )


def digest_of(path: Path, sides: Sides) -> tuple[str, list[str]]:
    """A digest of the files' names and bytes, and the encodings that are not UTF-8.
    Raises DataError for a file that is no text.
    """
    files = sorted([*sides.train, *sides.val], key=Path.as_posix)
    marks = set()
    for file in files:
        if file.suffix.lower() in documents.TEXT_KINDS:
            marks.add(encoding_of(file))
    marks -= {"utf-8", "utf-8-sig"}
    if not path.is_dir():
        return fingerprint(path), sorted(marks)
    lines = []
    for file in files:
        lines.append(f"{file.relative_to(path).as_posix()} {fingerprint(file)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest(), sorted(marks)


def _prepare_named(
    name: str, folder: str | Path | None, megabytes: float, seed: int
) -> Shards:
    """The shards of stories or docs. Raises DataError for no size."""
    if not 0 < megabytes < math.inf:
        raise DataError(f"{megabytes} megabytes of {name}", "give more than 0")
    limit = int(megabytes * 1_000_000)
    texts = documents.documents(name, seed=seed, limit_bytes=limit)
    # a hundred stories tell whether the program has changed; of the documentation they
    # are all from the standard library, so that the files of all packages are counted
    first = list(islice(texts, 100))
    about = [*first, documents.installed()] if name == "docs" else first
    digest = hashlib.sha256("\0".join(about).encode()).hexdigest()[:8]
    if folder is None:
        folder = Path("data") / f"{name}-{megabytes:g}mb-seed{seed}-{digest}"
    return prepare_shards(
        chain(first, texts),  # the hundred were taken from the iterator
        folder,
        name,
        revision=f"seed {seed}, {megabytes:g} MB, {digest}",
    )
