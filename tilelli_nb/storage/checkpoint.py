"""Files that are either whole or refused: safetensors with a checksum, written beside
the target and renamed.

A safetensors file has three parts: 8 bytes that give the length of the header, the
header (JSON: each tensor's name, dtype, shape and place, and metadata as text), and the
numbers. It holds nothing that could run, so nothing is unpickled here.

The checksum is a sha256 over all that is read back: the metadata and each tensor's
name, dtype, shape and bytes. It stands in the metadata of the same file, so there is no
second file that could be missing or belong to another one:

    "tilelli": "sha256 " + checksum + " " + metadata as JSON
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import write_atomic

MODEL_FILE = "model.safetensors"
SOURCES_FILE = "SOURCES.md"  # beside a model: whose text it was trained on
CONFIG_FILE = "config.json"


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Writes tensors and JSON metadata as one safetensors file with a checksum."""
    plain = {}
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
    about = json.dumps(metadata, sort_keys=True)
    text = f"sha256 {checksum(plain, about)} {about}"
    # one entry alone: the library writes several in any order
    write_atomic(path, safetensors.torch.save(plain, {"tilelli": text}))


def checksum(tensors: dict[str, Tensor], about: str) -> str:
    """sha256 in hex of the metadata and, in the order of their names, of each tensor:
    name, dtype, shape and bytes. The tensors lie on the CPU, without gaps.
    """
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        title = f"\n{name} {tensor.dtype} {list(tensor.shape)}\n"
        digest.update(title.encode())
        # the same memory seen as bytes: numpy has no bf16, and nothing is copied
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what write_tensors has written. Raises CheckpointError for a file that is
    missing, truncated, altered or no safetensors file.

    A safetensors file of another program has no checksum: its tensors come with empty
    metadata, and a warning that they are taken as they are.
    """
    path = Path(path)
    try:
        data = path.read_bytes()  # once: what is checked is what is loaded
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path.name}: {error.strerror}", "check path and permissions"
        ) from None
    try:
        tensors = safetensors.torch.load(data)
    # KeyError: numbers of a kind that PyTorch does not have
    except (safetensors.SafetensorError, KeyError) as error:
        raise CheckpointError(*why_unreadable(path.name, data)) from error
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    about = json.loads(header).get("__metadata__") or {}
    # A damaged byte may have hit our name or the word behind it, but not both.
    has_digest = any(
        text.startswith("sha256 ") or '"file_sha256"' in text for text in about.values()
    )
    if "tilelli" not in about and not has_digest:
        warnings.warn(
            f"{path.name} carries no checksum: it is taken as it is", stacklevel=2
        )
        return tensors, {}
    metadata = verified(about.get("tilelli", ""), tensors, data)
    if metadata is None:
        raise CheckpointError(
            f"{path.name} is damaged: its checksum does not match its "
            f"{len(data):,} bytes",
            "fetch or write it again; a training run falls back to the checkpoint "
            "before it",
        )
    return tensors, metadata


def verified(
    text: str, tensors: dict[str, Tensor], data: bytes
) -> dict[str, Any] | None:
    """The metadata of a file of ours, or None where the checksum does not match."""
    if text.startswith("sha256 "):
        written, _, about = text.removeprefix("sha256 ").partition(" ")
        if checksum(tensors, about) != written:
            return None
        return json.loads(about)
    # Files from before carry in their JSON the sha256 of the whole file, in which 64
    # zeros stood where the digest was put afterwards.
    try:
        metadata = json.loads(text)
        written = metadata.pop("file_sha256")
        unsigned = data.replace(written.encode(), b"0" * 64, 1)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if hashlib.sha256(unsigned).hexdigest() != written:
        return None
    return metadata


def why_unreadable(name: str, data: bytes) -> tuple[str, str]:
    """Problem and fix for bytes that are no safetensors file."""
    # PyTorch's own files are zip archives or bare pickles, and could run code when
    # loaded. A safetensors file begins with the length of its header, and that may be
    # any eight bytes, also those: its header's brace is what tells them apart.
    of_pytorch = data.startswith((b"PK\x03\x04", b"\x80"))
    if of_pytorch and data[8:9] != b"{":
        return (
            f"{name} is a pickle, not a safetensors file",
            "use a .safetensors file of save_pretrained or a training run; "
            "nothing is unpickled",
        )
    return (
        f"{name} is damaged, or not a safetensors file: its header does not fit its "
        f"{len(data):,} bytes",
        "fetch or write it again; a training run falls back to the checkpoint before "
        "it",
    )


def refuse_to_lose_weights(folder: str | Path) -> None:
    """Raises CheckpointError where a packed model would take the place of one that is
    not, whose latent weights would be gone.
    """
    path = Path(folder) / MODEL_FILE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())  # it is no dictionary
    except (OSError, safetensors.SafetensorError):
        return  # nothing there, or nothing that anybody could read
    # a vanilla model has no ternary codes, but rows of int8
    if not any(name.endswith((".codes", ".rows")) for name in names):
        raise CheckpointError(
            f"{folder} holds a model with its latent weights: a packed one in its "
            "place would be for inference only",
            "choose another folder for the packed model",
        )


def save_model(
    folder: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Writes model.safetensors, which holds everything, and config.json for people and
    hubs to read. Raises CheckpointError where that would destroy what cannot be made
    again.
    """
    folder = Path(folder)
    if "packed" in metadata:
        refuse_to_lose_weights(folder)
    write_tensors(folder / MODEL_FILE, tensors, metadata)
    # the name that transformers looks for
    config = {"model_type": "tilelli", **metadata["config"]}
    if "packed" in metadata:
        config["packed"] = metadata["packed"]
    write_atomic(folder / CONFIG_FILE, json.dumps(config, indent=2).encode() + b"\n")


def read_model(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what save_model has written. Raises CheckpointError.

    A model.safetensors of another program knows no configuration: the config.json
    beside it is then the one. Names as transformers writes them begin with "lm.".
    """
    folder = Path(folder)
    tensors, metadata = read_tensors(folder / MODEL_FILE)
    if "config" in metadata:
        return tensors, metadata
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        metadata["config"] = {key: config[key] for key in ("name", "model", "train")}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{MODEL_FILE} in {folder.name} does not say what model it belongs to",
            f"put the {CONFIG_FILE} of that model beside it, as save_pretrained does",
        ) from None
    if "packed" in config:
        metadata["packed"] = config["packed"]
    weights = {name.removeprefix("lm."): tensor for name, tensor in tensors.items()}
    return weights, metadata


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint: 500 of step-00000500.safetensors."""
    return int(path.stem.removeprefix("step-"))


def written_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last: by number, not by letter."""
    found = []
    for path in folder.glob("step-*.safetensors"):
        if path.stem.removeprefix("step-").isdecimal():
            found.append(path)
    return sorted(found, key=step_of)


def latest_valid(
    folder: Path, last_step: int | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Reads the newest whole checkpoint in `folder` (up to `last_step`, if given), with
    a warning for each newer one that is not; None if none is.
    """
    for path in reversed(written_in(folder)):
        if last_step is not None and step_of(path) > last_step:
            continue
        try:
            tensors, metadata = read_tensors(path)
        except CheckpointError as error:
            warnings.warn(f"{error.problem}; trying the one before it", stacklevel=2)
            continue
        if "step" in metadata:
            return tensors, metadata
        warnings.warn(
            f"{path.name} is no checkpoint of a run; trying the one before it",
            stacklevel=2,
        )
    return None


def weights_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Picks the model's own tensors out of those of a run's checkpoint, where the
    optimizer's state lies beside them.
    """
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("model."):
            weights[name.removeprefix("model.")] = tensor
    return weights
