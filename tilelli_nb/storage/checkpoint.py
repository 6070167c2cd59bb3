"""Files that are either whole or refused: safetensors with a checksum, written beside
the target and renamed.
"""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import write_atomic

MODEL_FILE = "model.safetensors"


NO_DIGEST = b"0" * 64


DIGEST = re.compile(rb'file_sha256\\": \\"([0-9a-f]{64})')  # JSON in JSON


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Tensors and JSON metadata in one safetensors file that carries the sha256 of
    itself (with the digest zeroed).
    """
    about = json.dumps({**metadata, "file_sha256": NO_DIGEST.decode()}, sort_keys=True)
    plain = {
        name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }
    data = safetensors.torch.save(plain, {"tilelli": about})
    digest = hashlib.sha256(data).hexdigest().encode()
    start = DIGEST.search(data).start(1)
    write_atomic(path, b"".join((data[:start], digest, data[start + 64 :])))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of write_tensors. Raises CheckpointError for a missing, foreign,
    truncated or altered file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path.name}: {error.strerror}", "check path and permissions"
        ) from None
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    found = DIGEST.search(header)
    if found is None:
        raise CheckpointError(
            f"{path.name} is not a checkpoint of this book" + pickle_hint(data),
            "use a .safetensors file of save_pretrained or a training run; nothing is unpickled",
        )
    start = 8 + found.start(1)
    whole = hashlib.sha256(data[:start])
    whole.update(NO_DIGEST)
    whole.update(memoryview(data)[start + 64 :])
    if whole.hexdigest().encode() != found[1]:
        raise CheckpointError(
            f"{path.name} is damaged: its checksum does not match its {len(data):,} bytes",
            "fetch or write it again; a training run falls back to the checkpoint before it",
        )
    tensors = safetensors.torch.load(data)
    with safetensors.safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["tilelli"])
    del metadata["file_sha256"]
    return tensors, metadata


def pickle_hint(data: bytes) -> str:
    """PyTorch's own files are zip archives (or bare pickles) and could run code when
    loaded.
    """
    return " but a pickle" if data[:2] == b"PK" or data[:1] == b"\x80" else ""


def save_model(
    folder: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """model.safetensors, which holds everything, and config.json for people and hubs to
    read.
    """
    folder = Path(folder)
    write_tensors(folder / MODEL_FILE, tensors, metadata)
    # the name that transformers looks for
    config = {"model_type": "tilelli", **metadata["config"]}
    config |= {key: metadata[key] for key in ("packed",) if key in metadata}
    write_atomic(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")


def latest_valid(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest whole checkpoint in `folder`, with a warning for each newer one that
    is not; None if none is.
    """
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            return read_tensors(path)
        except CheckpointError as error:
            warnings.warn(f"{error.problem}; trying the one before it", stacklevel=2)
    return None
