"""One door for every corpus: a name or a path in, shards out."""

import hashlib
from itertools import chain, islice
from pathlib import Path

from . import documents
from .shards import MANIFEST, Shards, fingerprint, open_shards, prepare_shards


def prepare_corpus(
    source: str | Path,
    folder: str | Path | None = None,
    *,
    megabytes: float = 10.0,
    seed: int = 0,
) -> Shards:
    """The shards of a named corpus, a file, a folder of files or a folder of shards;
    they are written when missing.

    They land in data/NAME (or `folder`). The name carries a digest of what is in a file
    or folder, and of the first documents of what is generated, so that a changed text
    makes new shards. `megabytes` limits what is generated; files are read whole. Raises
    DataError.
    """
    path = Path(source)
    if (path / MANIFEST).is_file():
        return open_shards(path)
    if not path.exists():
        return _prepare_named(str(source), folder, megabytes, seed)
    digest = fingerprint(path)
    name = path.resolve().name
    if folder is None:
        folder = Path("data") / f"{path.resolve().stem}-{digest[:8]}"
    split = documents.train_val_files(path)
    if split is None:
        texts = documents.read_documents(path)
        return prepare_shards(texts, folder, name, revision=digest)
    train, val = (documents.read_documents(side) for side in split)
    return prepare_shards(train, folder, name, revision=digest, val_documents=val)


def _prepare_named(
    name: str, folder: str | Path | None, megabytes: float, seed: int
) -> Shards:
    """The shards of stories or docs. Raises DataError for another name."""
    limit = int(megabytes * 1_000_000)
    texts = documents.documents(name, seed=seed, limit_bytes=limit)
    # a hundred documents tell whether the program or the packages have changed
    first = list(islice(texts, 100))
    digest = hashlib.sha256("\0".join(first).encode()).hexdigest()[:8]
    if folder is None:
        folder = Path("data") / f"{name}-{megabytes:g}mb-seed{seed}-{digest}"
    return prepare_shards(
        chain(first, texts),
        folder,
        name,
        revision=f"seed {seed}, {megabytes:g} MB, {digest}",
    )
