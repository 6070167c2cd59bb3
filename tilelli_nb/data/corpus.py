"""Shards: a corpus as files of raw bytes, mapped into memory, with a manifest that says
what they are.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any
import numpy as np
import torch
from torch import Tensor


from ..errors import DataError
from ..files import write_atomic
from . import documents
from .shards import MANIFEST, fingerprint, open_shards, prepare_shards

def open_corpus(
    source: str | Path,
    folder: str | Path | None = None,
    *,
    megabytes: float = 10.0,
    seed: int = 0,
) -> "Shards":
    """The shards of a named corpus, a file, a folder of files or a folder of shards;
    they are made when missing.

    They land in data/NAME (or `folder`). The name carries a digest of what is in a file
    or folder, and of the first documents of what is generated, so that a changed text
    makes new shards. `megabytes` limits what is generated; files are read whole. Raises
    DataError.
    """
    path = Path(source)
    if (path / MANIFEST).is_file():
        return open_shards(path)
    if not path.exists():
        documents = documents.documents(
            source, seed=seed, limit_bytes=int(megabytes * 1_000_000)
        )
        first = list(islice(documents, 100))
        digest = hashlib.sha256("\0".join(first).encode()).hexdigest()[:8]
        folder = (
            folder or Path("data") / f"{source}-{megabytes:g}mb-seed{seed}-{digest}"
        )
        return prepare_shards(
            chain(first, documents),
            folder,
            str(source),
            revision=f"seed {seed}, {megabytes:g} MB, {digest}",
        )
    digest = fingerprint(path)
    folder = folder or Path("data") / f"{path.resolve().stem}-{digest[:8]}"
    if split := documents.train_val_files(path):
        train, val = (documents.read_documents(side) for side in split)
        return prepare_shards(
            train, folder, path.resolve().name, revision=digest, val_documents=val
        )
    return prepare_shards(
        documents.read_documents(path), folder, path.resolve().name, revision=digest
    )
