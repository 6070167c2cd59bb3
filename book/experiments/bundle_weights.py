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
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from tilelli_nb import ByteTokenizer, TilelliLM, load_record, pretrained
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.files import write_atomic
from tilelli_nb.storage.records import dumps
from tilelli_nb.training.planning import FINAL_EVAL_BYTES

ROOT = Path(__file__).parents[2]
TEMPERATURES = (0.4, 0.7, 1.0)
SAMPLES = 10
SAMPLE_BYTES = 400
CARD = """\
# tilelli/{name}

A byte-level language model of {parameters:,} parameters, trained from nothing by the
code of this book.

| | |
|---|---|
{facts}

## Reproduce it

```sh
{commands}
```

## Measured

Bits per byte, in chunks of {context} bytes, of the weights as they lie here, beside two
compressors, which have the whole of each text at once.

| text | bytes read | this model | bytes | bzip2 -9 | xz -9e |
|---|---:|---:|---:|---:|---:|
{measured}

## What it writes

Prompt in bold; {unpicked}

{samples}

## What it is not

{about} It sees {context} bytes, so a text can lose its thread.

The weights have the licence of the code, Apache-2.0.
"""


def history(record: dict) -> list[dict]:
    """The record and, before it, those of the runs whose weights it started from."""
    start = re.match(r"Started from the weights of (\S+)\.", record["notes"])
    if not start:
        return [record]
    name = Path(start[1]).name
    if start[1].startswith("tilelli/"):  # a bundled model says which run it is from
        name = pretrained.load_model(start[1])[1]["run"]
    return [*history(load_record(name)), record]


def commands(record: dict, corpus: str, processes: int) -> list[str]:
    """What to type to train the same again."""
    config = record["config"]
    train = config["train"]
    program = "tilelli"
    if processes > 1:
        program = f"torchrun --nproc-per-node {processes} -m tilelli_nb.cli"
    branch = re.match(r"Decays from step ([\d,]+) of (\S+)\.", record["notes"])
    if branch:
        trunk = f"runs/{branch[2]}"
        stem = int(branch[1].replace(",", ""))
        return [
            f"{program} train --config {config['name']} --corpus {corpus} "
            f"--seed {train['seed']} --stop-at {stem} --out {trunk}",
            f"{program} train --decay-from {trunk} --steps {train['steps'] - stem} "
            f"--corpus {corpus} --out runs/{record['name']}",
        ]
    start = re.match(r"Started from the weights of (\S+)\.", record["notes"])
    init = f" --init {start[1]}" if start else ""
    if record["kind"] == "sft":
        return [
            f"tilelli sft{init} --config {config['name']} --text {corpus} "
            f"--seed {train['seed']} --out runs/{record['name']}"
        ]
    return [
        f"{program} train --config {config['name']} --corpus {corpus} "
        f"--batch {train['batch']} --lr {train['lr']:g} --steps {train['steps']} "
        f"--seed {train['seed']}{init} --out runs/{record['name']}"
    ]


def recipe(record: dict) -> str:
    """One run's training in words."""
    train, model = record["config"]["train"], record["config"]["model"]
    rates = f"peak learning rate {train['lr']:g}"
    if train.get("optimizer") == "muon":
        rates = f"Muon {train['muon_lr']:g} and AdamW {train['lr']:g}"
    if train.get("schedule") == "wsd":
        falling = round(train["decay_ratio"] * train["steps"])
        rates += f", falling to zero over the last {falling:,} steps"
    rows = f"{train['batch']} x {model['context']} bytes"
    if record["kind"] == "sft":
        rows = f"{train['batch']} conversations"
    return (
        f"{record['steps']:,} steps of {rows}, "
        f"{rates}, in {record.get('precision', 'fp32')}, seed {train['seed']}"
    )


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


def row(name: str, found: dict[str, float]) -> str:
    """A line of the card's table of measurements."""
    return (
        f"| {name} | {found['scored']:,} | **{found['bits_per_byte']:.4f}** "
        f"| {found['bytes']:,} | {found['bzip2']:.3f} | {found['xz']:.3f} |"
    )


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


def quote(sample: dict[str, Any]) -> str:
    """A sample in Markdown."""
    new = sample["text"][len(sample["prompt"]) :]
    lines = [line.strip() for line in new.splitlines()]
    text = "\n>\n> ".join(line for line in lines if line)
    prompt = " ".join(sample["prompt"].split())
    return (
        f"Temperature {sample['temperature']:g}, seed {sample['seed']}:\n\n"
        f"> **{prompt}** {text}"
    )


def save_weights(lm: TilelliLM, folder: Path, packed: bool, **about: Any) -> None:
    """Writes the model into the package, in bf16 or packed."""
    if packed:
        lm.save_packed(folder, **about)
    else:
        lm.save_pretrained(folder, dtype=torch.bfloat16, **about)


def keep_record(run: Path, kept: Path, more: dict[str, Any]) -> None:
    """Copies the record of a run under book/runs, its metrics thinned, with `more` in
    its results.
    """
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("run.json", "samples.jsonl"):
        if (run / file).is_file():
            shutil.copy(run / file, kept / file)
    results = {}
    if (run / "results.json").is_file():
        results = json.loads((run / "results.json").read_text())
    write_atomic(kept / "results.json", dumps(results | more))
    lines = []
    # as bytes, a file is cut at \n alone
    for line in (run / "metrics.jsonl").open("rb"):
        entry = json.loads(line)
        # a line in fifty draws the same curve
        if entry["step"] == 1 or entry["step"] % 50 == 0 or "val_bpb" in entry:
            lines.append(line)
    (kept / "metrics.jsonl").write_bytes(b"".join(lines))


def of_the_run(record: dict, more: dict[str, Any]) -> str:
    """What the run itself measured at its end, if it came to it."""
    if record["val_bpb"] is None:
        planned = record["config"]["train"]["steps"]
        return f"the run was stopped after {record['steps']:,} of {planned:,} steps"
    return (
        f"the run itself, over {more['held_out']['bytes']:,} bytes and before the "
        f"weights were rounded: {record['val_bpb']:.4f}"
    )


def facts(record: dict, args: argparse.Namespace, more: dict[str, Any]) -> list[str]:
    """The lines of the card's first table."""
    runs = history(record)
    model, data = record["config"]["model"], record["data"]
    minutes = sum(run["wall_s"] for run in runs) / 60
    records = [f"`book/runs/{run['name']}/` at commit {run['git']}" for run in runs]
    kept = (
        "packed, for use alone: ternary codes and int8 rows"
        if args.packed
        else ("bf16, the latent weights: it can be trained further")
    )
    lines = {
        "architecture": f"configuration `{record['config']['name']}`: "
        f"{model['n_blocks']} blocks of width {model['d_model']}, context "
        f"{model['context']} bytes",
        "trained on": f"`{Path(args.corpus).name}`, {data['train_bytes'] / 1e6:.1f} MB; "
        f"held out {data['val_bytes'] / 1e3:,.0f} KB. {args.licence}",
        "training": "; then ".join(recipe(run) for run in runs)
        + f"; {sum(run['bytes_seen'] for run in runs) / 1e6:.1f} MB read in all",
        "time": f"{minutes / 60:.1f} hours on a {record['gpu_name'] or 'CPU'}, which "
        "other work shared"
        if minutes > 90
        else f"{minutes:.0f} minutes on a "
        f"{record['gpu_name'] or 'CPU'} ({record['bytes_per_s']:,.0f} bytes/s)",
        "weights": f"{kept}; {more['megabytes']:.2f} MB",
        "held out": f"**{more['held_out']['bits_per_byte']:.4f} bits per byte** over "
        f"{more['held_out']['scored']:,} bytes, {more['sliding']:.4f} with a sliding "
        f"window; {of_the_run(record, more)}",
        "sampling": f"temperature {args.temperature:g} unless told otherwise: "
        f"{args.why}",
        "record": ", ".join(records) + " (metrics: every 50th step)",
    }
    return [f"| {name} | {text} |" for name, text in lines.items()]


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
    return parser.parse_args()


def main() -> None:
    args = parse()
    record, folder = load_record(args.run), ROOT / "tilelli_nb" / "weights" / args.name
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

    samples = write_samples(bundled, args.prompt or ["Once upon a time"])
    texts = {"held out": found["held_out"], **found["elsewhere"]}
    results = args.run / "results.json"
    processes = 1
    if results.is_file():
        processes = json.loads(results.read_text()).get("processes", 1)
    # ten in all, each temperature in turn: seeds 0, 1, 2, ... as they fall
    shown = [samples[(n % 3) * SAMPLES + n] for n in range(SAMPLES)]
    card = CARD.format(
        name=args.name,
        parameters=sum(p.numel() for p in lm.parameters()),
        context=record["config"]["model"]["context"],
        facts="\n".join(facts(record, args, found)),
        commands="\n".join(
            line
            for run in history(record)
            for line in commands(run, Path(args.corpus).name, processes)
        ),
        measured="\n".join(row(name, values) for name, values in texts.items()),
        unpicked="none was picked, seeds and temperatures are as they come. All thirty "
        f"are in `book/runs/{record['name']}/results.json`.",
        samples="\n\n".join(quote(sample) for sample in shown),
        about=args.about,
    )
    write_atomic(folder / "README.md", card.encode())
    kept = ROOT / "book" / "runs" / record["name"]
    keep_record(args.run, kept, {"bundled": found | {"samples": samples}})
    print(
        f"{folder.relative_to(ROOT)}: {bits:.4f} bits per byte, {found['megabytes']:.2f} MB"
    )


if __name__ == "__main__":
    main()
