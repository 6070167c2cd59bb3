"""Files that are either whole or refused: safetensors with a checksum, written beside
the target and renamed.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import CheckpointError
from .storage import hub
from .storage.checkpoint import MODEL_FILE, latest_valid, read_model

WEIGHTS = Path(__file__).parent / "weights"


def load_model(name: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and metadata of a bundled name, a folder with model.safetensors, or a run
    folder with checkpoints.
    """
    folder = resolve(name)
    if (folder / MODEL_FILE).is_file():
        return read_model(folder)
    found = latest_valid(folder / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{folder.name} holds no {MODEL_FILE} and no checkpoint",
            "name the folder of a run",
        )
    tensors, metadata = found
    return {
        key.removeprefix("model."): t
        for key, t in tensors.items()
        if key.startswith("model.")
    }, metadata


def resolve(name: str | Path) -> Path:
    """The folder of a model: names that begin with tilelli/ are bundled; then a path,
    or OWNER/NAME on the Hub.
    """
    text = str(name)
    bundled = sorted(
        f"tilelli/{path.parent.name}" for path in WEIGHTS.glob(f"*/{MODEL_FILE}")
    )
    if text in bundled:
        return WEIGHTS / text.removeprefix("tilelli/")
    if text.startswith("tilelli/"):
        config = text.removeprefix("tilelli/").replace("-", "_")
        raise CheckpointError(
            f"{text} is not bundled with this version (bundled: {', '.join(bundled) or 'none'})",
            f"train it: `tilelli train --config {config} --corpus NAME`, then load the run's folder",
        )
    path = Path(name)
    if path.is_file():
        raise CheckpointError(
            f"{path.name} is a file", "name the folder that holds model.safetensors"
        )
    if not path.is_dir() and hub.MODEL_ID.fullmatch(text):
        return hub.download(text)
    if not path.is_dir():
        raise CheckpointError(
            f"there is no model {text!r}",
            f"use {' or '.join(bundled)}, or the folder of a run",
        )
    return path
