"""Where a model lies: bundled with the package, in a folder, or on the Hub; and its
weights from there.
"""

import difflib
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from .config import Config, config_names
from .errors import CheckpointError
from .files import at_home
from .inference.packed import CODES, trainable_weights
from .storage import hub
from .storage.checkpoint import MODEL_FILE, latest_valid, read_model, weights_in

WEIGHTS = Path(__file__).parent / "weights"


def load_model(name: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads weights and metadata of a bundled name, a folder with model.safetensors, a
    run's folder with checkpoints, or a Hub id.

    Raises CheckpointError where there is no model, or a damaged one.
    """
    return load_from(resolve(name))


def load_from(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The same from the folder that `resolve` found. Its path is no name any more:
    ./tilelli/nano is Path("tilelli/nano"), and not the bundled model.
    """
    if (folder / MODEL_FILE).is_file():
        return read_model(folder)
    found = latest_valid(folder / "checkpoints")
    if found is None:
        raise CheckpointError(
            f"{folder.name} holds no {MODEL_FILE} and no checkpoint",
            "name the folder of a run",
        )
    tensors, metadata = found
    return weights_in(tensors), metadata


def first_weights(name: str | Path, lm, may_differ: tuple[str, ...] = ()) -> list[str]:
    """Gives `lm`, which is to be trained, the weights of another model, and says in
    sentences what is worth knowing about them: which sizes in `may_differ` they were
    trained with, where these are others than the model's; that a packed model got new
    latent weights; that attention was softened before and will not be again.

    All other sizes must be the same. The tensors of 4 heads and of 8 have one shape,
    and the heads of one model mean nothing to the other. Raises CheckpointError, which
    names what differs.
    """
    tensors, metadata = load_model(name)
    trained, wanted = Config.from_dict(metadata["config"]).model, lm.config.model
    # a vanilla block has neither of these two
    is_vanilla = trained.block == wanted.block == "vanilla"
    without_effect = ("keep", "conv_width") if is_vanilla else ()
    changed, wrong = [], []
    for size, value in vars(trained).items():
        if value != getattr(wanted, size) and size not in without_effect:
            words = f"{size} {value}, not {getattr(wanted, size)}"
            (changed if size in may_differ else wrong).append(words)
    if wrong:
        raise CheckpointError(
            f"the weights of {name} were trained with {', '.join(wrong)}",
            "give the configuration that they were trained with, or other weights",
        )
    said = []
    if changed:
        said.append(f"They were trained with {', '.join(changed)}.")
    if "packed" in metadata:
        if any(name.endswith(CODES) for name in tensors):  # not in a vanilla model
            said.append("They were packed: their latent weights were drawn anew.")
        tensors = trainable_weights(tensors, metadata["packed"], lm)
    lm.load_weights(tensors)
    lm.is_softened = metadata["config"]["train"].get("qk_scale", 1) != 1
    if lm.is_softened and lm.config.train.qk_scale != 1:
        said.append("Their attention was softened before: that is not done again.")
    return said


def resolve(name: str | Path) -> Path:
    """Finds the folder of a model: names that begin with tilelli/ are bundled; then it
    is a path, or OWNER/NAME on the Hub, from where it is downloaded.

    Raises CheckpointError with what there is instead.
    """
    text = str(name)
    # as a path it would be the working directory, which nobody means
    if not text:
        raise CheckpointError(
            "the name of the model is empty",
            "give a name such as tilelli/nano, or the folder of a run (. for this one)",
        )
    files = sorted(WEIGHTS.glob(f"*/{MODEL_FILE}"))
    bundled = [f"tilelli/{file.parent.name}" for file in files]
    if text in bundled:
        return WEIGHTS / text.removeprefix("tilelli/")
    # the book's own names are never looked for on the Hub
    if text.startswith("tilelli/"):
        name = text.removeprefix("tilelli/")
        models = [file.parent.name for file in files]
        near = difflib.get_close_matches(name, models, n=1)
        config = name.replace("-", "_")
        # those of sft are not for `tilelli train`
        if config in config_names() and not config.startswith("sft"):
            fix = (
                f"train it: `tilelli train --config {config} --corpus NAME`, "
                "then load the run's folder"
            )
        elif near:
            fix = f"did you mean tilelli/{near[0]}?"
        else:
            fix = "use one of these, or train one: `tilelli train --help`"
        raise CheckpointError(
            f"{text} is not bundled with this version "
            f"(bundled: {', '.join(bundled) or 'none'})",
            fix,
        )
    path = at_home(name)
    # these two are False also for what can be no path
    if os.path.isdir(name):
        return Path(name)
    if os.path.isdir(path):
        return path
    if os.path.isfile(path):
        raise CheckpointError(
            f"{path.name} is a file", "name the folder that holds model.safetensors"
        )
    # OWNER/NAME of the Hub; but where OWNER is a folder here, NAME is meant to be in it
    if hub.MODEL_ID.fullmatch(text) and not os.path.isdir(path.parent):
        return hub.download(text)
    there = ""
    if path.parent != Path() and os.path.isdir(path.parent):
        names = sorted(each.name for each in path.parent.iterdir() if each.is_dir())
        near = difflib.get_close_matches(path.name, names, n=1)
        there = f"; did you mean {path.parent / near[0]}?" if near else ""
    raise CheckpointError(
        f"there is no model {text[:60]!r}{there}",
        f"use {' or '.join(bundled)}, or the folder of a run",
    )
