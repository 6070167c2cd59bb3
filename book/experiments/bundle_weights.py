"""Makes a finished run part of the book: its record under book/runs, its weights in
bf16 in the package, a model card.

    python book/experiments/bundle_weights.py runs/nano-stories nano --corpus stories \
        --temperature 0.3 --why "of 200 stories, 72% at 0.3, ... are whole"

The card's numbers are measured here, on the weights as they are bundled and on the
run's held-out stream; the temperature goes into the model's generation_config.json. Of
a long run's metrics the book keeps every fiftieth step and every evaluation.
"""

import argparse
import bz2
import json
import lzma
import re
import shutil
from pathlib import Path

import torch

from tilelli_nb import ByteTokenizer, TilelliLM, load_record
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.files import write_atomic
from tilelli_nb.training.planning import FINAL_EVAL_BYTES

ROOT = Path(__file__).parents[2]
CARD = """# tilelli/{name}

A byte-level language model of {parameters:,} parameters, trained from nothing by the code of this book.

| | |
|---|---|
| architecture | configuration `{config}`: {blocks} routed blocks of width {width}, context {context} bytes |
| trained on | {source}, {train_mb:.1f} MB; held out {val_kb:,.0f} KB |
| training | {training}; {seen_mb:.1f} MB in all |
| time | {minutes:.0f} minutes on a {device} ({speed:,.0f} bytes/s) |
| held out, in chunks of {context} | **{bits:.4f} bits per byte** as bundled (bf16); {fp32_bits:.4f} in fp32 |
| held out, sliding window | {sliding:.4f} bits per byte |
| the same stream | bzip2 -9: {bzip2:.3f}, xz -9e: {xz:.3f} bits per byte |
| sampling | temperature {temperature:g} unless told otherwise: {why} |
| record | {records} (metrics: every 50th step) |

## Reproduce it

```sh
{command}
```

## What it writes

Prompt in bold, temperature {temperature:g}, seed {seed}:

{samples}

## What it is not

It has read nothing but generated stories about a small world: forty plots, told again and again of twenty-four houses
and their things, and those are what it tells. It sees 256 bytes, so a story can lose its thread. How often it does is
counted by `book/experiments/judge_stories.py` and kept in `book/runs/nano-judged/`. It knows no facts and answers no
questions. The data are made by `tilelli_nb/data/stories.py` from word lists in this repository; the weights have the licence
of the code, Apache-2.0.
"""


def history(record: dict) -> list[dict]:
    """The record and, before it, those of the runs whose weights it started from."""
    start = re.match(r"Started from the weights of (\S+)\.", record["notes"])
    return [*(history(load_record(Path(start[1]).name)) if start else []), record]


def command(record: dict, corpus: str, processes: int) -> str:
    """What to type to train the same again."""
    train, start = (
        record["config"]["train"],
        re.match(r"Started from the weights of (\S+)\.", record["notes"]),
    )
    init = f" --init {start[1]}" if start else ""
    program = (
        "tilelli"
        if processes == 1
        else f"torchrun --nproc-per-node {processes} -m tilelli_nb.cli"
    )
    return (
        f"{program} train --config {record['config']['name']} --corpus {corpus} --batch {train['batch']} "
        f"--lr {train['lr']:g} --steps {train['steps']} --seed {train['seed']}{init} --out runs/{record['name']}"
    )


def quote(tok, lm, prompt: str, seed: int) -> str:
    ids = tok.encode(prompt)
    out = tok.decode(lm.generate(ids, max_new=700, seed=seed))
    return "> **" + prompt + "**" + out[len(prompt) :].replace("\n", "\n>\n> ")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--temperature", type=float, required=True)
    parser.add_argument("--why", required=True, help="this temperature: for the card")
    args = parser.parse_args()
    record, folder = load_record(args.run), ROOT / "tilelli_nb" / "weights" / args.name
    lm = TilelliLM.from_pretrained(args.run)
    lm.sampling_defaults = {"temperature": args.temperature}
    lm.save_pretrained(
        folder, dtype=torch.bfloat16, val_bpb=record["val_bpb"], run=record["name"]
    )
    shards = prepare_corpus(args.corpus)
    held_out = shards.val.read(FINAL_EVAL_BYTES)
    assert shards.describe()["sha256"] == record["data"]["sha256"], (
        "this is not the corpus of the run"
    )
    bundled, train = TilelliLM.from_pretrained(folder), record["config"]["train"]
    model, tok = record["config"]["model"], ByteTokenizer()
    bits = bundled.score(held_out)
    bundled.save_pretrained(
        folder, dtype=torch.bfloat16, val_bpb=bits, run=record["name"]
    )
    runs, results = history(record), args.run / "results.json"
    processes = (
        json.loads(results.read_text()).get("processes", 1) if results.is_file() else 1
    )
    training = [
        f"{run['steps']:,} steps of {t['batch']} x {model['context']} bytes, peak learning rate {t['lr']:g}, "
        f"seed {t['seed']}"
        for run in runs
        for t in [run["config"]["train"]]
    ]
    prompts = [
        "Once upon a time",
        "Once there was a little fox named Pip.",
        "Tom was a tall boy.",
    ]
    card = CARD.format(
        name=args.name,
        parameters=sum(p.numel() for p in lm.parameters()),
        config=record["config"]["name"],
        blocks=model["n_blocks"],
        width=model["d_model"],
        context=model["context"],
        source=f"`{args.corpus}`",
        train_mb=record["data"]["train_bytes"] / 1e6,
        val_kb=record["data"]["val_bytes"] / 1e3,
        training="; then ".join(training),
        seen_mb=sum(run["bytes_seen"] for run in runs) / 1e6,
        seed=train["seed"],
        minutes=sum(run["wall_s"] for run in runs) / 60,
        device=record["gpu_name"] or "CPU",
        speed=record["bytes_per_s"],
        temperature=args.temperature,
        why=args.why,
        bits=bits,
        fp32_bits=record["val_bpb"],
        sliding=bundled.score(held_out, sliding=True),
        records=", ".join(
            f"`book/runs/{run['name']}/` at commit {run['git']}" for run in runs
        ),
        bzip2=8 * len(bz2.compress(held_out, 9)) / len(held_out),
        xz=8
        * len(lzma.compress(held_out, preset=9 | lzma.PRESET_EXTREME))
        / len(held_out),
        command="\n".join(command(run, args.corpus, processes) for run in runs),
        samples="\n\n".join(
            quote(tok, bundled, prompt, train["seed"]) for prompt in prompts
        ),
    )
    write_atomic(folder / "README.md", card.encode())
    kept = ROOT / "book" / "runs" / record["name"]
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("run.json", "samples.jsonl", "results.json"):
        if (args.run / file).is_file():
            shutil.copy(args.run / file, kept / file)
    lines = []
    # as bytes, a file is cut at \n alone
    for line in (args.run / "metrics.jsonl").open("rb"):
        entry = json.loads(line)
        # a line in fifty draws the same curve
        if entry["step"] == 1 or entry["step"] % 50 == 0 or "val_bpb" in entry:
            lines.append(line)
    (kept / "metrics.jsonl").write_bytes(b"".join(lines))
    print(
        f"{folder.relative_to(ROOT)}: {bits:.4f} bits per byte; {kept.relative_to(ROOT)}"
    )


if __name__ == "__main__":
    main()
