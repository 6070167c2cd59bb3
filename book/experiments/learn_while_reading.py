"""Bits per byte of a text for a model that goes on learning while it reads it.

    python book/experiments/learn_while_reading.py "enwik8, first MiB=FILE"
        [--model tilelli/lite-10m] [--config lite_10m_fast] [--out FOLDER]

A compressor begins to learn a text with its first byte; a model that was trained before
is usually scored with its weights held still. Here it is treated as the compressor is.
The text comes in pieces of eight windows. Each is scored first, by the rule of lm.score,
with weights that have not seen it; then the model takes one step of training on it, and
the next piece comes. So every byte is predicted from bytes before it alone, and a
program that decodes could make the same steps. (The method is as old as online
learning; for language models: Krause et al. 2018, arXiv:1709.07432, who call it dynamic
evaluation.)

The optimizer and its rates are those of --config, and they stay. A packed model first
gets new latent weights. Of each text its first MiB is read. Both compressors of the
table get the beginnings of the text, one after the other longer, so that their curves
can stand beside the model's.
"""

import argparse
import bz2
import hashlib
import lzma
import math
import time
from pathlib import Path
from typing import Any

import torch

from tilelli_nb import ByteTokenizer, TilelliLM, load_config, pretrained
from tilelli_nb.config import Config
from tilelli_nb.errors import DataError
from tilelli_nb.inference.scoring import log_probs
from tilelli_nb.storage.records import new_record, write_run
from tilelli_nb.training.optimizer import make_optimizer, update
from tilelli_nb.training.planning import FINAL_EVAL_BYTES
from tilelli_nb.training.precision import choose_precision

ROWS = 8  # windows in a piece: few, so that the model soon learns from the first ones
BEGINNINGS = 16  # of the text, for the curves of the compressors


def learner(name: str, recipe: str) -> TilelliLM:
    """A model with the weights of `name` that can be trained by the rates of the
    configuration `recipe`.
    """
    of_model = Config.from_dict(pretrained.load_model(name)[1]["config"])
    lm = TilelliLM(of_model.with_train(**vars(load_config(recipe).train)))
    pretrained.first_weights(name, lm)
    return lm


def learn_while_reading(
    lm: TilelliLM, text: bytes, rows: int = ROWS, precision: str = "fp32"
) -> list[float]:
    """Scores `text` piece by piece, takes a step of training on each piece once it is
    scored, and returns the bits that each piece took. `lm` is changed.

    A piece is `rows` windows; the last one has the whole windows that are left, and
    what does not fill a window is left out. Raises DataError where there is no window.
    """
    train, context = lm.config.train, lm.config.model.context
    stream = torch.tensor([0, *ByteTokenizer().encode(text)])
    whole = len(text) - len(text) % context
    if not whole:
        raise DataError(
            f"a text of {len(text)} bytes fills no window of {context}",
            "give it more text",
        )
    optimizer = make_optimizer(lm, train, precision)
    bits = []
    for start in range(0, whole, rows * context):
        piece = stream[start : min(start + rows * context, whole) + 1]
        nats = -log_probs(lm.eval(), piece, sliding=False).sum().item()
        bits.append(nats / math.log(2))
        # Scored, so now it may be learned from.
        x = piece[:-1].view(-1, context)
        targets = piece[1:].view(-1, context)
        update(lm.train(), optimizer, (x, targets), train, train.lr, None, precision)
    return bits


def beginnings(text: bytes) -> list[dict[str, float]]:
    """What two compressors make of longer and longer beginnings of a text."""
    found = []
    for part in range(1, BEGINNINGS + 1):
        begun = text[: len(text) * part // BEGINNINGS]
        packed = {
            "bzip2": bz2.compress(begun, 9),
            "xz": lzma.compress(begun, preset=9 | lzma.PRESET_EXTREME),
        }
        bits = {name: 8 * len(data) / len(begun) for name, data in packed.items()}
        found.append({"bytes": len(begun), **bits})
    return found


def measure(model: str, recipe: str, text: bytes, name: str) -> dict[str, Any]:
    """What the record says of one text."""
    lm = learner(model, recipe)
    context, train = lm.config.model.context, lm.config.train
    text = text[: len(text) - len(text) % context]  # the same bytes for everybody
    precision = choose_precision(train.precision, lm.device)
    began = time.perf_counter()
    bits = learn_while_reading(lm, text, ROWS, precision)
    return {
        "text": name,
        "bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
        "bits_per_byte": sum(bits) / len(text),
        "precision": precision,
        "seconds": round(time.perf_counter() - began, 1),
        "piece_bytes": ROWS * context,
        "bits": [round(each, 2) for each in bits],
        "compressors": beginnings(text),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--model", default="tilelli/lite-10m")
    parser.add_argument("--config", default="lite_10m_fast")
    parser.add_argument("--out", type=Path, default=Path("book/runs/lite-10m-learning"))
    args = parser.parse_args()
    for named in args.texts:
        if not Path(named.partition("=")[2]).is_file():
            parser.error(f"a text is NAME=FILE with a file, not {named!r}")
    train = load_config(args.config).train
    record = new_record(
        args.out.name,
        "bench",
        seed=0,
        config=load_config(args.config).to_dict(),
        threads=torch.get_num_threads(),
        notes=f"{args.model} learns while it reads: steps of {ROWS} windows at the "
        f"rates of {args.config}, {train.muon_lr:g} and {train.lr:g}.",
    )
    results = {"model": pretrained.load_model(args.model)[1]["run"], "texts": []}
    for named in args.texts:
        name, _, file = named.partition("=")
        text = Path(file).read_bytes()[:FINAL_EVAL_BYTES]
        found = measure(args.model, args.config, text, name)
        results["texts"].append(found)
        last = found["compressors"][-1]
        print(
            f"{name}: {found['bits_per_byte']:.4f} bits per byte,",
            f"bzip2 {last['bzip2']:.4f}, xz {last['xz']:.4f}",
            flush=True,
        )
    write_run(args.out, record, results)


if __name__ == "__main__":
    main()
