"""Makes a finished run part of the book: its record under book/runs, its weights in the
package, a model card.

    python book/experiments/bundle_weights.py RUN NAME --corpus stories
        --temperature 0.3 --why "of 200 stories, 72% at 0.3, ... are whole"
        --about "It knows a small world and nothing else."
        [--licence "..."] [--packed] [--elsewhere "FineWeb-Edu, first MB=FILE" ...]

The weights are kept in bf16, to be trained further, or --packed: ternary codes five to
a byte, for use alone. All numbers of the card are measured here, on the weights as they
are bundled: on the run's held-out stream and, with --elsewhere, on the first megabyte
of other texts, each beside two compressors. The temperature goes into the model's
generation_config.json. Of a long run's metrics the book keeps every fiftieth step and
every evaluation.
"""

import argparse
import bz2
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import torch

from model_card import started_from, write_card
from tilelli_nb import ByteTokenizer, TilelliLM, load_record, pretrained
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.files import write_atomic
from tilelli_nb.storage.records import dumps
from tilelli_nb.training.planning import FINAL_EVAL_BYTES

ROOT = Path(__file__).parents[2]
TEMPERATURES = (0.4, 0.7, 1.0)
SAMPLES = 10
SAMPLE_BYTES = 400


def on_text(lm: TilelliLM, text: bytes, most: int) -> dict[str, float]:
    """Bits per byte of a text: by two compressors, and by the model on its beginning.

    The compressors have the whole of it, which is to their advantage.
    """
    xz = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    return {
        "bytes": len(text),
        "scored": min(most, len(text)),
        "bits_per_byte": lm.score(text[:most]),
        "bzip2": 8 * len(bz2.compress(text, 9)) / len(text),
        "xz": 8 * len(xz) / len(text),
    }


def write_samples(lm: TilelliLM, prompts: list[str]) -> list[dict[str, Any]]:
    """Ten texts at each of three temperatures: the prompts in turn, seeds 0 to 9."""
    tok = ByteTokenizer()
    samples = []
    for temperature in TEMPERATURES:
        for seed in range(SAMPLES):
            prompt = prompts[seed % len(prompts)]
            out = lm.generate(tok.encode(prompt), SAMPLE_BYTES, temperature, seed=seed)
            sample = {"temperature": temperature, "seed": seed, "prompt": prompt}
            samples.append(sample | {"text": tok.decode(out)})
    return samples


def save_weights(lm: TilelliLM, folder: Path, packed: bool, **about: Any) -> None:
    """Writes the model into the package, in bf16 or packed."""
    if packed:
        lm.save_packed(folder, **about)
    else:
        lm.save_pretrained(folder, dtype=torch.bfloat16, **about)


def under_its_own_name(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The record of a run that goes on with tilelli/NAME and is to become that model:
    from now on the name means other weights, so the notes name the run they were from.
    """
    if started_from(record) != f"tilelli/{name}":
        return record
    before = pretrained.load_model(f"tilelli/{name}")[1]["run"]
    begun = "Started from the weights of "
    notes = record["notes"].replace(f"{begun}tilelli/{name}.", f"{begun}runs/{before}.")
    return record | {"notes": notes}


def keep_record(
    run: Path, record: dict[str, Any], kept: Path, more: dict[str, Any]
) -> None:
    """Copies what a run has left under book/runs, its metrics thinned, with `more` in
    its results and with this record.
    """
    kept.mkdir(parents=True, exist_ok=True)
    if (run / "samples.jsonl").is_file():
        shutil.copy(run / "samples.jsonl", kept / "samples.jsonl")
    results = {}
    if (run / "results.json").is_file():
        results = json.loads((run / "results.json").read_text())
    lines = []
    # as bytes, a file is cut at \n alone
    for line in (run / "metrics.jsonl").open("rb"):
        entry = json.loads(line)
        # a line in fifty draws the same curve
        if entry["step"] == 1 or entry["step"] % 50 == 0 or "val_bpb" in entry:
            lines.append(line)
    (kept / "metrics.jsonl").write_bytes(b"".join(lines))
    write_atomic(kept / "results.json", dumps(results | more))
    write_atomic(kept / "run.json", dumps(record))  # last: now it is whole


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--temperature", type=float, required=True)
    parser.add_argument("--why", required=True, help="this temperature: for the card")
    parser.add_argument("--about", required=True, help="what it does not know")
    parser.add_argument("--licence", default="", help="of the text it was trained on")
    parser.add_argument("--packed", action="store_true")
    parser.add_argument(
        "--most", type=int, default=FINAL_EVAL_BYTES, help="bytes to score of a text"
    )
    parser.add_argument("--elsewhere", action="append", default=[], help="NAME=FILE")
    parser.add_argument("--prompt", action="append", help="of the samples")
    args = parser.parse_args()
    if args.most < 1:
        parser.error("--most counts bytes: 1 or more")
    for named in args.elsewhere:
        if not Path(named.partition("=")[2]).is_file():
            parser.error(f"--elsewhere wants NAME=FILE with a file, not {named!r}")
    return args


def main() -> None:
    args = parse()
    record = under_its_own_name(load_record(args.run), args.name)
    folder = ROOT / "tilelli_nb" / "weights" / args.name
    shards = prepare_corpus(args.corpus)
    if shards.describe()["sha256"] != record["data"]["sha256"]:
        raise SystemExit(f"{args.corpus} is not the corpus of {args.run.name}")
    held_out = shards.val.read(FINAL_EVAL_BYTES)

    lm = TilelliLM.from_pretrained(args.run)
    lm.sampling_defaults = {"temperature": args.temperature}
    save_weights(lm, folder, args.packed, run=record["name"])
    bundled = TilelliLM.from_pretrained(folder)
    found = {
        "held_out": on_text(bundled, held_out, args.most),
        "sliding": bundled.score(held_out[: args.most], sliding=True),
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "elsewhere": {},
    }
    for named in args.elsewhere:
        name, path = named.split("=", 1)
        text = Path(path).read_bytes()[:FINAL_EVAL_BYTES]
        found["elsewhere"][name] = on_text(bundled, text, args.most)
    # once more, with what was measured on it
    bits = found["held_out"]["bits_per_byte"]
    save_weights(lm, folder, args.packed, run=record["name"], val_bpb=bits)

    found["samples"] = write_samples(bundled, args.prompt or ["Once upon a time"])
    found["said"] = {
        "corpus": Path(args.corpus).name,
        "licence": args.licence,
        "packed": args.packed,
        "temperature": args.temperature,
        "why": args.why,
        "about": args.about,
    }
    kept = ROOT / "book" / "runs" / record["name"]
    keep_record(args.run, record, kept, {"bundled": found})
    write_card(args.name)
    print(f"tilelli/{args.name}: {bits:.4f} bits per byte, {found['megabytes']:.2f} MB")


if __name__ == "__main__":
    main()
