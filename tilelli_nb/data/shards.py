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


MANIFEST = "manifest.json"


SHARD_BYTES = 64 * 2**20  # text bytes between two commits of the writer


# smaller: a run that does not wait for the writer begins after the first commit
FINEWEB_SHARD_BYTES = 8 * 2**20


def prepare_shards(
    documents: Iterable[str],
    folder: str | Path,
    source: str,
    *,
    revision: str | None = None,
    val_documents: Iterable[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> "Shards":
    """Writes `documents` as shards, each document followed by byte 0, and opens them.

    About one document in twenty is held out by its hash, unless `val_documents` brings
    its own split. A writer that was killed goes on where its last commit was, given the
    same documents: those before it are read again and passed over, unless `documents`
    has `state()` and `resume(state)`. Raises DataError for fewer than two documents.
    """
    writer = ShardWriter(Path(folder), source, revision, shard_bytes)
    if not writer.manifest["complete"]:
        if val_documents is None:
            cursor = documents if hasattr(documents, "resume") else None
            writer.write(((document, None) for document in documents), cursor)
        else:
            writer.write(
                tagged
                for split, texts in (("val", val_documents), ("train", documents))
                for tagged in ((text, split) for text in texts)
            )
    return open_shards(folder)


def fingerprint(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and digests of a folder's files."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        inside = "".join(
            f"{p.relative_to(path).as_posix()} {fingerprint(p)}\n" for p in files
        )
        return hashlib.sha256(inside.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_held_out(document: str | bytes) -> bool:
    """One document in twenty, chosen by its own bytes: the same on every machine,
    whatever stands around it.
    """
    data = (
        document.encode("utf-8", errors="replace")
        if isinstance(document, str)
        else document
    )
    return int(hashlib.sha1(data).hexdigest()[:8], 16) % 20 == 0


class ShardWriter:
    """Collects documents and commits them as one shard a split; the manifest says how
    many documents were read.
    """

    def __init__(
        self, folder: Path, source: str, revision: str | None, shard_bytes: int
    ) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self.manifest = {
            "format": 1,
            "source": source,
            "revision": revision,
            "shard_bytes": shard_bytes,
            "complete": False,
            "documents_read": 0,
            "shards": [],
        }
        if (folder / MANIFEST).is_file():
            found = read_manifest(folder)
            same = all(
                found.get(key) == self.manifest[key]
                for key in ("format", "source", "revision", "shard_bytes")
            )
            if not same:
                raise DataError(
                    f"{folder.name} holds shards of {found.get('source')!r} ({found.get('revision')}), "
                    f"not of {source!r} ({revision})",
                    "choose another folder, or delete this one",
                )
            self.manifest = found
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
        self.cursor, read = cursor, self.manifest["documents_read"]
        if cursor and "cursor" in self.manifest:
            cursor.resume(self.manifest["cursor"])
        elif read:
            tagged = islice(tagged, read, None)
        for document, split in tagged:
            read += 1
            data = document.encode("utf-8", errors="replace")
            split = split or ("val" if is_held_out(data) else "train")
            if data := data.replace(b"\0", b""):  # byte 0 only separates
                self.waiting[split].append(data + b"\0")
                self.waiting_bytes += len(data) + 1
            if self.waiting_bytes >= self.shard_bytes and (
                self.manifest["shards"] or all(self.waiting.values())
            ):
                self.commit(read)
        if not self.manifest["shards"]:
            self.keep_both_sides()
        self.commit(read, complete=True)

    def commit(self, documents_read: int, complete: bool = False) -> None:
        """Writes what waits as shards and then the manifest: killed in between, the
        shards are simply written again.
        """
        for split, documents in self.waiting.items():
            if not documents:
                continue
            number = sum(shard["split"] == split for shard in self.manifest["shards"])
            data = b"".join(documents)
            name = f"{split}-{number:05d}.bin"
            write_atomic(self.folder / name, data)
            self.manifest["shards"].append(
                {
                    "file": name,
                    "split": split,
                    "bytes": len(data),
                    "documents": len(documents),
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
        self.waiting, self.waiting_bytes = {"train": [], "val": []}, 0
        self.manifest |= {"documents_read": documents_read, "complete": complete}
        self.manifest.pop("cursor", None)
        if self.cursor and not complete:
            self.manifest["cursor"] = self.cursor.state()
        write_atomic(
            self.folder / MANIFEST, json.dumps(self.manifest, indent=2).encode() + b"\n"
        )

    def keep_both_sides(self) -> None:
        """A small corpus may have nothing on one side of the split: its last document
        moves over.
        """
        train, val = self.waiting["train"], self.waiting["val"]
        if len(train) + len(val) < 2:
            raise DataError(
                f"{self.manifest['source']} holds {len(train) + len(val)} document(s); training needs at "
                "least two",
                "add text: one document is held out to measure on, the others are trained on",
            )
        if not val:
            val.append(train.pop())
        if not train:
            train.append(val.pop())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards. Raises DataError when there is none."""
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        raise DataError(
            f"{folder.name} holds no shards",
            "make them with `tilelli data NAME --out FOLDER`",
        ) from None
    except ValueError:
        raise DataError(
            f"the manifest of {folder.name} is not JSON",
            "delete the folder and make it again",
        ) from None


@dataclass(frozen=True)
class Split:
    """One side of the corpus: its shards as one row of bytes."""

    shards: list[np.ndarray]

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def read(self, limit: int | None = None) -> bytes:
        """The first `limit` bytes of the stream (all of it unless given)."""
        return b"".join(piece.tobytes() for piece in self.pieces(limit))

    def pieces(self, limit: int | None) -> Iterator[np.ndarray]:
        left = len(self) if limit is None else limit
        for shard in self.shards:
            yield shard[:left]
            left -= len(shard[:left])


@dataclass(frozen=True)
class Shards:
    """An opened corpus. `train` and `val` are the two sides of the split."""

    folder: Path
    train: Split
    val: Split
    manifest: dict[str, Any]

    def batch(
        self, rows: int, context: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Random windows of the training side: x and targets, (rows, context) long
        each, targets one byte ahead.
        """
        # starts in each shard
        lengths = torch.tensor(
            [max(len(shard) - context, 0) for shard in self.train.shards]
        )
        if int(lengths.sum()) == 0:
            raise DataError(
                f"the training side has {len(self.train):,} bytes, the model reads {context} + 1 at once",
                "add text, or lower model.context",
            )
        ends = lengths.cumsum(0)
        starts = torch.randint(int(ends[-1]), (rows,), generator=generator)
        which = torch.searchsorted(ends, starts, right=True)
        begins = starts - (ends - lengths)[which]
        places = zip(which.tolist(), begins.tolist(), strict=True)
        stacked = torch.from_numpy(
            np.stack([self.train.shards[s][b : b + context + 1] for s, b in places])
        ).long()
        return stacked[:, :-1], stacked[:, 1:]

    def describe(self) -> dict[str, Any]:
        """What a run record says about its data."""
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
        train, val = data.get("train_shards"), data.get("val_shards")
        sides = [
            [shard for shard in self.manifest["shards"] if shard["split"] == side]
            for side in ("train", "val")
        ]
        files = [shard["file"] for shard in sides[0][:train] + sides[1][:val]]
        manifest = self.manifest | {
            "shards": [
                shard for shard in self.manifest["shards"] if shard["file"] in files
            ]
        }
        view = Shards(
            self.folder,
            Split(self.train.shards[:train]),
            Split(self.val.shards[:val]),
            manifest,
        )
        if view.describe()["sha256"] != data["sha256"]:
            raise DataError(
                f"{self.folder.name} does not hold the data that the run was started on",
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
        now = [
            shard
            for shard in read_manifest(self.folder)["shards"]
            if shard["split"] == "train"
        ]
        new = now[len(self.train.shards) : train]
        side = Split(
            self.train.shards + [map_shard(self.folder, shard) for shard in new]
        )
        manifest = self.manifest | {"shards": self.manifest["shards"] + new}
        return Shards(self.folder, side, self.val, manifest) if new else None


def open_shards(folder: str | Path, verify: bool = True) -> Shards:
    """Maps the shards of a folder into memory after checking size and sha256. Raises
    DataError for an altered one.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    splits: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for shard in manifest["shards"]:
        splits[shard["split"]].append(map_shard(folder, shard, verify))
    if not (splits["train"] and splits["val"]):
        raise DataError(
            f"{folder.name} is not finished: one side of the split is empty",
            "run the same command again",
        )
    return Shards(folder, Split(splits["train"]), Split(splits["val"]), manifest)


def map_shard(folder: Path, shard: dict[str, Any], verify: bool = True) -> np.ndarray:
    """One shard of the manifest, mapped into memory after the checks of open_shards."""
    path = folder / shard["file"]
    if not path.is_file() or path.stat().st_size != shard["bytes"]:
        size = (
            f"{path.stat().st_size:,} bytes instead of {shard['bytes']:,}"
            if path.is_file()
            else "missing"
        )
        raise DataError(
            f"shard {path.name} is {size}",
            f"delete the folder {folder.name} and make it again",
        )
    if verify and fingerprint(path) != shard["sha256"]:
        raise DataError(
            f"shard {path.name} was altered since it was written: its checksum differs",
            f"delete the folder {folder.name} and make the shards again",
        )
    return np.memmap(path, dtype=np.uint8, mode="r")
