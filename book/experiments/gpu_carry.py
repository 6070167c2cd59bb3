"""What travels to a rented GPU and back: shards as one compressed file, weights in
parts. Used through gpu_plan.py.
"""

import hashlib
import json
import lzma
import os
import tarfile
import tempfile
from pathlib import Path

import torch

from tilelli_nb.config import Config
from tilelli_nb.data.shards import MANIFEST, open_shards
from tilelli_nb.errors import CheckpointError, DataError
from tilelli_nb.files import write_atomic
from tilelli_nb.language_model import TilelliLM
from tilelli_nb.pretrained import load_model
from tilelli_nb.storage.checkpoint import MODEL_FILE, read_tensors
from tilelli_nb.storage.records import dumps


def weights(run: Path, out: Path, part_mib: float = 15) -> str:
    """Master weights of a run (final, else of its newest good checkpoint) in bf16:
    NAME.part00 ... and NAME.json.
    """
    tensors, metadata = load_model(run)
    name, size = run.resolve().name, max(1, int(part_mib * 2**20))
    lm = TilelliLM(Config.from_dict(metadata["config"]))
    lm.load_weights(tensors)
    about = {key: metadata[key] for key in ("step", "val_bpb") if key in metadata}
    with tempfile.TemporaryDirectory() as folder:
        lm.save_pretrained(folder, dtype=torch.bfloat16, run=name, **about)
        data = (Path(folder) / MODEL_FILE).read_bytes()
    for old in out.glob(f"{name}.part*"):
        old.unlink()
    pieces = {
        f"{name}.part{i:02}": data[start : start + size]
        for i, start in enumerate(range(0, len(data), size))
    }
    for file, piece in pieces.items():
        write_atomic(out / file, piece)
    parts = [{"file": file, **digest(piece)} for file, piece in pieces.items()]
    write_atomic(
        out / f"{name}.json",
        dumps({"name": name, **about, **digest(data), "parts": parts}),
    )
    return f"{name}: {len(data):,} bytes in {len(parts)} parts, {about}"


def join(listing: Path, out: Path) -> str:
    """The parts that a .json lists, verified, as a folder for from_pretrained. Raises
    CheckpointError.
    """
    try:
        listed, data = json.loads(listing.read_text(encoding="utf-8")), b""
        for part in listed["parts"]:
            piece = (listing.parent / Path(part["file"]).name).read_bytes()
            if digest(piece) != {"bytes": part["bytes"], "sha256": part["sha256"]}:
                raise CheckpointError(
                    f"{part['file']} is damaged: size or checksum of its {len(piece):,} bytes differ "
                    f"from {listing.name}",
                    "fetch this part again",
                )
            data += piece
        folder, whole = (
            out / Path(listed["name"]).name,
            digest(data)["sha256"] == listed["sha256"],
        )
    except OSError as error:
        raise CheckpointError(
            f"cannot read {Path(error.filename).name}: {error.strerror}",
            "put the .json and all its parts into one folder",
        ) from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise CheckpointError(
            f"{listing.name} does not list the parts of a model",
            "name the .json that `weights` wrote beside them, or write both again",
        )
    write_atomic(folder / MODEL_FILE, data)
    write_atomic(
        folder / "config.json", dumps(read_tensors(folder / MODEL_FILE)[1]["config"])
    )
    return f"{folder.name}: {len(data):,} bytes, verified; TilelliLM.from_pretrained loads the folder"


def pack(folder: Path, out: Path) -> str:
    """A folder of shards, verified, as one .tar.xz. Raises DataError."""
    shards, name = open_shards(folder), folder.resolve().name
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{name}.tar.xz"
    # 9 gains a per cent and takes 7 times the memory
    with tarfile.open(f"{target}.tmp", "w:xz", preset=6) as tar:
        for file in (MANIFEST, *(shard["file"] for shard in shards.manifest["shards"])):
            entry = tarfile.TarInfo(f"{name}/{file}")  # neither dates nor owners
            entry.size = (folder / file).stat().st_size
            with open(folder / file, "rb") as content:
                tar.addfile(entry, content)
    os.replace(f"{target}.tmp", target)
    return f"{target.name}: {len(shards.train) + len(shards.val):,} bytes of text in {target.stat().st_size:,}"


def unpack(file: Path, out: Path) -> str:
    """The inverse; what is unpacked already is only verified. Raises DataError."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / file.name.removesuffix(".tar.xz")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=out) as folder:
            try:
                with tarfile.open(file, "r:xz") as tar:
                    tar.extractall(folder, filter="data")
                (inside,) = Path(folder).iterdir()
            except (
                OSError,
                EOFError,
                ValueError,
                tarfile.TarError,
                lzma.LZMAError,
            ) as error:
                raise DataError(
                    f"{file.name} is not a whole pack of shards ({error})",
                    "carry it over again, or make it again with `pack FOLDER`",
                ) from None
            os.replace(inside, target)
    shards = open_shards(target)
    return f"{target.name}: {len(shards.train):,} bytes to train on, {len(shards.val):,} held out, verified"


def digest(data: bytes) -> dict:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
