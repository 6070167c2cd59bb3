"""Shards: a corpus as files of raw bytes, mapped into memory, with a manifest that says
what they are.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..errors import DataError
from ..files import at_home, write_atomic

MANIFEST = "manifest.json"
SHARD_BYTES = 64 * 2**20  # text bytes between two commits of the writer


# Writing


def prepare_shards(
    documents: Iterable[str],
    folder: str | Path,
    source: str,
    *,
    revision: str | None = None,
    val_documents: Iterable[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> "Shards":
    """Writes `documents` as shards of about `shard_bytes`, each document followed by
    byte 0, and opens them. `source` and `revision` say in the manifest where they are
    from.

    About one document in twenty is held out by its hash, unless `val_documents` brings
    its own split. A writer that was killed goes on where its last commit was, given the
    same documents: those before it are read again and passed over, unless `documents`
    has `state()` and `resume(state)`. A second process with the same folder waits for
    the first and writes nothing. Raises DataError for fewer than two documents.
    """
    folder = at_home(folder)
    writer = ShardWriter(folder, source, revision, shard_bytes)
    if writer.manifest["complete"]:
        return open_shards(folder)
    with one_at_a_time(folder):
        # another process may have written them while this one waited
        writer = ShardWriter(folder, source, revision, shard_bytes)
        if not writer.manifest["complete"]:
            cursor = None
            if val_documents is None and hasattr(documents, "resume"):
                cursor = documents
            writer.write(with_split(documents, val_documents), cursor)
    return open_shards(folder)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Lets one process write shards into a folder; another waits until it is done, and
    says so where that takes longer than two seconds. Raises DataError where nothing can
    be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=2)
        except Timeout:
            said = f"another process prepares {folder.name}: waiting until it is done"
            warnings.warn(said, stacklevel=4)  # where prepare_shards was called
            lock.acquire()
    except OSError as error:
        raise DataError(
            f"cannot write into {folder}: {error.strerror}", "choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def with_split(
    documents: Iterable[str], val_documents: Iterable[str] | None
) -> Iterator[tuple[str, str | None]]:
    """Yields (document, split): "train", "val", or None where the hash is to decide."""
    if val_documents is None:
        for document in documents:
            yield document, None
        return
    # the small side first: a run may begin once both have a shard
    for document in val_documents:
        yield document, "val"
    for document in documents:
        yield document, "train"


def is_held_out(document: str | bytes) -> bool:
    """One document in twenty, chosen by its own bytes: the same on every machine,
    whatever stands around it.
    """
    if isinstance(document, str):
        document = document.encode("utf-8", errors="replace")
    # only to spread documents evenly: nobody has a reason to forge one
    digest = hashlib.sha1(document).hexdigest()  # 40 hex digits
    return int(digest[:8], 16) % 20 == 0


class ShardWriter:
    """Collects documents and commits them as one shard a split; the manifest says how
    many documents were read.
    """

    def __init__(
        self, folder: Path, source: str, revision: str | None, shard_bytes: int
    ) -> None:
        self.folder = folder
        self.shard_bytes = shard_bytes
        about = {
            "format": 1,
            "source": source,
            "revision": revision,
            "shard_bytes": shard_bytes,
        }
        begun = {"complete": False, "documents_read": 0, "shards": []}
        self.manifest: dict[str, Any] = about | begun
        if (folder / MANIFEST).is_file():
            found = read_manifest(folder)
            refuse_others(folder, found, about)
            self.manifest = found  # go on with what a writer before has left
        # where the documents come from, if it can say where it is
        self.cursor: Any = None
        self.empty()

    def empty(self) -> None:
        """Nothing waits to be written."""
        self.waiting: dict[str, list[bytes]] = {"train": [], "val": []}
        self.waiting_bytes = 0

    def write(
        self, tagged: Iterable[tuple[str, str | None]], cursor: Any = None
    ) -> None:
        """Reads (document, split) pairs to the end, committing whenever shard_bytes
        have come together.

        Where the split is None, the document's hash decides. `cursor` is where they
        come from, if it can say where it is: its `state()` goes into the manifest.
        """
        self.cursor = cursor
        read = self.manifest["documents_read"]
        if cursor is not None and "cursor" in self.manifest:
            cursor.resume(self.manifest["cursor"])
        elif read:
            tagged = islice(tagged, read, None)  # pass over what is written already
        for document, split in tagged:
            read += 1
            data = document.encode("utf-8", errors="replace")
            if split is None:
                split = "val" if is_held_out(data) else "train"
            data = data.replace(b"\0", b"")  # byte 0 only separates
            if data:
                self.waiting[split].append(data + b"\0")
                self.waiting_bytes += len(data) + 1
            is_full = self.waiting_bytes >= self.shard_bytes
            # the first commit waits until there is something on both sides
            if is_full and (self.manifest["shards"] or all(self.waiting.values())):
                self.commit(read)
        if not self.manifest["shards"]:
            self.keep_both_sides()
        self.commit(read, complete=True)

    def commit(self, documents_read: int, complete: bool = False) -> None:
        """Writes what waits as shards and then the manifest: killed in between, the
        shards are simply written again.
        """
        for split, documents in self.waiting.items():
            if documents:
                self.write_shard(split, documents)
        self.empty()
        self.manifest["documents_read"] = documents_read
        self.manifest["complete"] = complete
        self.manifest.pop("cursor", None)  # a complete corpus has none
        if self.cursor is not None and not complete:
            self.manifest["cursor"] = self.cursor.state()
        about = json.dumps(self.manifest, indent=2).encode() + b"\n"
        write_atomic(self.folder / MANIFEST, about)

    def write_shard(self, split: str, documents: list[bytes]) -> None:
        """Writes documents as the next shard of a split and notes it down."""
        # a file that no manifest names, left by a crash, is written over
        number = len(shards_of(self.manifest, split))
        data = b"".join(documents)
        name = f"{split}-{number:05d}.bin"
        write_atomic(self.folder / name, data)
        shard = {
            "file": name,
            "split": split,
            "bytes": len(data),
            "documents": len(documents),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        self.manifest["shards"].append(shard)

    def keep_both_sides(self) -> None:
        """A small corpus may have nothing on one side of the split: its last document
        moves over. Raises DataError where there is only one.
        """
        train, val = self.waiting["train"], self.waiting["val"]
        count = len(train) + len(val)
        if count < 2:
            raise DataError(
                f"{self.manifest['source']} holds {count} document(s); "
                "training needs at least two",
                "add text: one document is held out to measure on, "
                "the others are trained on",
            )
        if not val:
            val.append(train.pop())
        if not train:
            train.append(val.pop())


# The manifest


def refuse_others(folder: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    """Raises DataError where the manifest that was `found` in a folder is of another
    corpus than `about`, or of one that was written in another way.
    """
    fix = "choose another folder, or delete this one"
    source, revision = about["source"], about["revision"]
    if (found.get("source"), found.get("revision")) != (source, revision):
        raise DataError(
            f"{folder.name} holds shards of {found.get('source')!r} "
            f"({found.get('revision')}), not of {source!r} ({revision})",
            fix,
        )
    for key in ("format", "shard_bytes"):
        if found.get(key) != about[key]:
            raise DataError(
                f"{folder.name} was written with {key} {found.get(key)}, "
                f"not {about[key]}",
                fix,
            )


def holds_shards(folder: Path) -> bool:
    """Whether a folder has a manifest that is ours; other programs have files of that
    name, too.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError:  # there is none
        return False
    except ValueError:  # one that was ours, and is damaged, must not be passed over
        return True
    return is_ours(manifest)


def is_ours(manifest: Any) -> bool:
    """Whether what a JSON file holds is a manifest of shards."""
    keys = {"format", "source", "documents_read", "shards"}
    return isinstance(manifest, dict) and manifest.keys() >= keys


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards. Raises DataError when there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        raise DataError(
            f"{folder.name} holds no shards",
            "make them with `tilelli data NAME --out FOLDER`",
        ) from None
    except ValueError:  # of JSON, or of UTF-8
        raise DataError(
            f"the manifest of {folder.name} is not JSON",
            "delete the folder and make it again",
        ) from None
    if not is_ours(manifest):
        raise DataError(
            f"the {MANIFEST} in {folder.name} is another program's",
            "choose another folder, or move that file away",
        )
    return manifest


def shards_of(manifest: dict[str, Any], split: str) -> list[dict[str, Any]]:
    """What the manifest says of the shards of one split, in their order."""
    return [shard for shard in manifest["shards"] if shard["split"] == split]


def fingerprint(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and digests of a folder's files."""
    if not path.is_dir():
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"cannot read {path.name}: {error.strerror}",
                "check path and permissions",
            ) from None
    lines = []
    for file in sorted(path.rglob("*")):
        if file.is_file():
            name = file.relative_to(path).as_posix()  # a copy elsewhere has the same
            lines.append(f"{name} {fingerprint(file)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# Reading


@dataclass(frozen=True)
class Split:
    """One side of the corpus: its shards as one row of bytes."""

    shards: list[np.ndarray]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def read(self, limit: int | None = None) -> bytes:
        """The first `limit` bytes of the stream (all of it unless given)."""
        left = len(self) if limit is None else limit
        pieces = []
        for shard in self.shards:
            piece = shard[:left]  # a view: nothing is read from the disk yet
            pieces.append(piece.tobytes())
            left -= len(piece)
        return b"".join(pieces)


@dataclass(frozen=True)
class Shards:
    """An opened corpus. `train` and `val` are the two sides of the split."""

    folder: Path
    train: Split
    val: Split
    manifest: dict[str, Any]
    kind: ClassVar[str] = "train"  # of a run on it

    def batch(
        self, rows: int, context: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Random windows of the training side: x and targets, (rows, context) long
        each, targets one byte ahead. Raises DataError when no window fits.
        """
        shards = self.train.shards
        # in how many places of each shard a window of context + 1 bytes can begin
        places = torch.tensor(
            [max(len(shard) - context, 0) for shard in shards], device="cpu"
        )
        ends = places.cumsum(0)  # of each shard, when all places are numbered in a row
        total = int(ends[-1])
        if total == 0:
            raise DataError(
                f"the training side has {len(self.train):,} bytes, "
                f"the model reads {context} + 1 at once",
                "add text, or lower model.context",
            )
        numbers = torch.randint(total, (rows,), generator=generator, device="cpu")
        # from the number of a place to its shard, and to where in the shard it is
        which = torch.searchsorted(ends, numbers, right=True)
        begins = numbers - (ends - places)[which]
        windows = []
        for shard, begin in zip(which.tolist(), begins.tolist(), strict=True):
            windows.append(shards[shard][begin : begin + context + 1])
        stacked = torch.from_numpy(np.stack(windows)).long()  # (rows, context + 1)
        return stacked[:, :-1], stacked[:, 1:]

    def step_bytes(self, rows: int, context: int) -> int:
        """How many bytes a batch has."""
        return rows * context

    def describe(self) -> dict[str, Any]:
        """What a run record says about its data."""
        # from the manifest's digests: no file has to be read for it
        digests = "".join(shard["sha256"] for shard in self.manifest["shards"])
        return {
            "source": self.manifest["source"],
            "sha256": hashlib.sha256(digests.encode()).hexdigest(),
            "train_bytes": len(self.train),
            "val_bytes": len(self.val),
            "train_shards": len(self.train.shards),
            "val_shards": len(self.val.shards),
        }

    def as_described(self, data: dict[str, Any]) -> "Shards":
        """The shards that `data`, a `describe()` of before, was about: those that were
        written since are left out.

        Raises DataError when they are not the same any more.
        """
        # a record from before shards were counted has no number: then it is all of them
        train, val = data.get("train_shards"), data.get("val_shards")
        known = shards_of(self.manifest, "train")[:train]
        known += shards_of(self.manifest, "val")[:val]
        # in the order of the manifest, which the digest goes by
        kept = [shard for shard in self.manifest["shards"] if shard in known]
        view = Shards(
            self.folder,
            Split(self.train.shards[:train]),
            Split(self.val.shards[:val]),
            self.manifest | {"shards": kept},
        )
        if view.describe()["sha256"] != data["sha256"]:
            raise DataError(
                f"{self.folder.name} does not hold the data "
                "that the run was started on",
                "resume with the same --corpus",
            )
        return view

    def grown(self, train: int | None = None) -> "Shards | None":
        """The same with the training shards that were written since (up to `train` in
        all); None when none were.

        The held-out side stays as it is, so that figures before and after compare.
        """
        if not (self.folder / MANIFEST).is_file():
            return None
        written = shards_of(read_manifest(self.folder), "train")
        # shards are only ever added at the end
        new = written[len(self.train.shards) : train]
        if not new:
            return None
        mapped = [map_shard(self.folder, shard) for shard in new]
        manifest = self.manifest | {"shards": self.manifest["shards"] + new}
        side = Split(self.train.shards + mapped)
        return Shards(self.folder, side, self.val, manifest)


def open_shards(folder: str | Path, verify: bool = True) -> Shards:
    """Maps the shards of a folder into memory after checking size and sha256 (the size
    alone without `verify`). Raises DataError for an altered one.
    """
    folder = at_home(folder)
    manifest = read_manifest(folder)
    sides = {}
    for split in ("train", "val"):
        listed = shards_of(manifest, split)
        sides[split] = [map_shard(folder, shard, verify) for shard in listed]
    if not (sides["train"] and sides["val"]):
        raise DataError(
            f"{folder.name} is not finished: one side of the split is empty",
            "run the same command again",
        )
    return Shards(folder, Split(sides["train"]), Split(sides["val"]), manifest)


def map_shard(folder: Path, shard: dict[str, Any], verify: bool = True) -> np.ndarray:
    """Maps one shard of the manifest into memory, after the checks of open_shards."""
    path = folder / shard["file"]
    wanted = shard["bytes"]
    problem = None
    if not path.is_file():
        problem = "missing"
    elif path.stat().st_size != wanted:
        problem = f"{path.stat().st_size:,} bytes instead of {wanted:,}"
    if problem:
        raise DataError(
            f"shard {path.name} is {problem}",
            f"delete the folder {folder.name} and make it again",
        )
    if verify and fingerprint(path) != shard["sha256"]:
        raise DataError(
            f"shard {path.name} was altered since it was written: its checksum differs",
            f"delete the folder {folder.name} and make the shards again",
        )
    return np.memmap(path, dtype=np.uint8, mode="r")
