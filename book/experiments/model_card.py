"""The card of a bundled model: what its record, and what was measured when it was
bundled, say about it.

    python book/experiments/model_card.py NAME

writes tilelli_nb/weights/NAME/README.md anew (nano's card is older than the records
that this needs, and is written by hand). Nothing is measured here: every number
comes from book/runs, where bundle_weights.py has put it, together with the words that
were said there about the model.
"""

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from tilelli_nb import TilelliLM, load_record, pretrained
from tilelli_nb.config import Config, load_config
from tilelli_nb.files import write_atomic
from tilelli_nb.storage.checkpoint import SOURCES_FILE
from tilelli_nb.storage.records import runs_folder

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "tilelli_nb" / "weights"
OF_THE_BOOK = ("stories", "docs")  # the corpora that the book makes by itself
MISSING = """
`{corpus}` is a folder of text that does not come with this book: with another text, the
commands train another model.
"""
PAIRS = 50_000  # questions and answers, unless `tilelli sft` is told otherwise
SHOWN = 10  # samples in the card, of those in the record
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
{missing}
## Measured

Bits per byte, in chunks of {context} bytes, of the weights as they lie here, beside two
compressors, which have the whole of each text at once.

| text | bytes read | this model | bytes | bzip2 -9 | xz -9e |
|---|---:|---:|---:|---:|---:|
{measured}
{learning}
## What it writes

Prompt in bold; none was picked, seeds and temperatures are as they come. All of them
are in `book/runs/{run}/results.json`.

{samples}

## What it is not

{about}

The weights have the licence of the code, Apache-2.0.
"""


def started_from(record: dict) -> str | None:
    """The model whose weights a run began with, as it was named; None for a run that
    began with nothing.
    """
    # not at the beginning: a branch first says where it leaves its trunk
    said = re.search(r"Started from the weights of (\S+)\.", record["notes"])
    return said and said[1]


def history(record: dict) -> list[dict]:
    """The record and, before it, those of the runs whose weights it started from."""
    start = started_from(record)
    if start is None:
        return [record]
    name = Path(start).name
    if start.startswith("tilelli/"):  # a bundled model says which run it is from
        name = pretrained.load_model(start)[1]["run"]
    return [*history(load_record(name)), record]


def results_of(record: dict) -> dict[str, Any]:
    """What stands beside the record of a run."""
    path = runs_folder() / record["name"] / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def pairs_of(record: dict) -> dict[str, int]:
    """The options of a fine-tuning run that say which pairs it had, where they are not
    the usual ones.
    """
    said = re.match(
        r"([\d,]+) questions and answers of seed (\d+)", record["data"]["source"]
    )
    count, seed = (int(number.replace(",", "")) for number in said.groups())
    options = {}
    if count != PAIRS:
        options["pairs"] = count
    if seed:
        options["pairs-seed"] = seed
    return options


def commands(record: dict, corpus: str) -> list[str]:
    """What to type to train the same again."""
    config, out = record["config"], f"runs/{record['name']}"
    train = config["train"]
    processes = results_of(record).get("processes", 1)
    program = "tilelli"
    if processes > 1:
        program = f"torchrun --nproc-per-node {processes} -m tilelli_nb.cli"
    start = started_from(record)
    init = f" --init {start}" if start else ""
    branch = re.match(r"Decays from step ([\d,]+) of (\S+)\.", record["notes"])
    if branch:
        trunk, stem = f"runs/{branch[2]}", int(branch[1].replace(",", ""))
        return [
            f"{program} train{init} --config {config['name']} --corpus {corpus} "
            f"--seed {train['seed']} --stop-at {stem} --out {trunk}",
            f"{program} train --decay-from {trunk} --steps {train['steps'] - stem} "
            f"--corpus {corpus} --out {out}",
        ]
    until = f" --stop-at {record['steps']}" if record["finished"] is None else ""
    if record["kind"] == "sft":
        usual = load_config(config["name"]).train
        own = {
            name: value
            for name in ("steps", "batch", "lr")
            # only where they are not those of the configuration
            if (value := train[name]) != getattr(usual, name)
        }
        own |= pairs_of(record)
        options = "".join(f" --{name} {value}" for name, value in own.items())
        return [
            f"{program} sft{init} --config {config['name']} --text {corpus}{options} "
            f"--seed {train['seed']}{until} --out {out}"
        ]
    return [
        f"{program} train --config {config['name']} --corpus {corpus} "
        f"--batch {train['batch']} --lr {train['lr']:g} --steps {train['steps']} "
        f"--seed {train['seed']}{init}{until} --out {out}"
    ]


def recipe(record: dict) -> str:
    """One run's training in words."""
    train, model = record["config"]["train"], record["config"]["model"]
    rates = f"peak learning rate {train['lr']:g}"
    if train.get("optimizer") == "muon":
        rates = f"Muon {train['muon_lr']:g} and AdamW {train['lr']:g}"
    if train.get("schedule") == "wsd":
        falling = round(train["decay_ratio"] * train["steps"])
        rates += f", falling over the last {falling:,} steps"
    rows = f"{train['batch']} x {model['context']} bytes"
    if record["kind"] == "sft":
        rows = f"{train['batch']} conversations"
    stopped = ""
    if record["finished"] is None:
        stopped = f", stopped there on a schedule of {train['steps']:,}"
    return (
        f"{record['steps']:,} steps of {rows}{stopped}, {rates}, in "
        f"{record.get('precision', 'fp32')}, seed {train['seed']}"
    )


def row(name: str, found: dict[str, float]) -> str:
    """A line of the card's table of measurements."""
    return (
        f"| {name} | {found['scored']:,} | **{found['bits_per_byte']:.4f}** "
        f"| {found['bytes']:,} | {found['bzip2']:.3f} | {found['xz']:.3f} |"
    )


def while_learning(record: dict) -> str:
    """What the model needs for a text when it learns while it reads it, as the
    compressors do, where that was measured: learn_while_reading.py.
    """
    records = [load_record(path) for path in sorted(runs_folder().glob("*-learning"))]
    found = [run for run in records if results_of(run)["model"] == record["name"]]
    if not found:
        return ""
    texts = results_of(found[0])["texts"]
    bits = "; ".join(
        f"{text['text']}, {text['bytes']:,} bytes: **{text['bits_per_byte']:.4f}**"
        for text in texts
    )
    sentence = (
        "A compressor learns a text while it reads it. If the model may do so, too, and "
        "takes a step of training on every piece once it is scored "
        f"(`book/runs/{found[0]['name']}/`), it needs these bits per byte: {bits}."
    )
    return f"\n{textwrap.fill(sentence, 88)}\n"


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


def shown(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ten of the samples: seeds 0 to 9, each at the next temperature."""
    temperatures = sorted({sample["temperature"] for sample in samples})
    return [
        sample
        for seed in range(SHOWN)
        for sample in samples
        if sample["seed"] == seed
        and sample["temperature"] == temperatures[seed % len(temperatures)]
    ]


def held_out(record: dict, bundled: dict[str, Any]) -> str:
    """What the model makes of the text that its run held out."""
    found = bundled["held_out"]
    text = (
        f"**{found['bits_per_byte']:.4f} bits per byte** over {found['scored']:,} "
        f"bytes, {bundled['sliding']:.4f} with a sliding window"
    )
    if record["val_bpb"] is not None:
        text += (
            f"; the run itself, over {found['bytes']:,} bytes and before the weights "
            f"were rounded: {record['val_bpb']:.4f}"
        )
    return text


def a_processor(record: dict) -> str:
    """What a run trained on. Records of before name no CPU."""
    if record["gpu_name"]:
        return f"a {record['gpu_name']}"
    named = record.get("processor")
    return f"a CPU ({named})" if named else "a CPU"


def facts(runs: list[dict], bundled: dict[str, Any], has_sources: bool) -> list[str]:
    """The lines of the card's first table."""
    record, said = runs[-1], bundled["said"]
    model, data = record["config"]["model"], record["data"]
    hours = sum(run["wall_s"] for run in runs) / 3600
    records = [f"`book/runs/{run['name']}/` at commit {run['git']}" for run in runs]
    weights = "bf16, the latent weights: it can be trained further"
    if said["packed"]:
        weights = "packed: ternary codes and int8 rows; who trains it on draws new latent weights"
    # some licences ask that the authors are named wherever the weights go
    sources = f" ([whose text]({SOURCES_FILE}))" if has_sources else ""
    megabytes = sum(run["bytes_seen"] for run in runs) / 1e6
    lines = {
        "architecture": f"configuration `{record['config']['name']}`: "
        f"{model['n_blocks']} blocks of width {model['d_model']}, context "
        f"{model['context']} bytes",
        "trained on": f"`{said['corpus']}`{sources}, {data['train_bytes'] / 1e6:.1f} MB; held "
        f"out {data['val_bytes'] / 1e3:,.0f} KB. {said['licence']}".strip(),
        "training": "; then ".join(map(recipe, runs))
        + f"; {megabytes:.1f} MB read in all",
        "remarks": " ".join(
            f"`{run['name']}`: {run['notes']}" for run in runs if run["notes"]
        ),
        "time": f"{hours:.1f} hours on {a_processor(record)}, with whatever else it "
        "did meanwhile",
        "weights": f"{weights}; {bundled['megabytes']:.2f} MB",
        "held out": held_out(record, bundled),
        "sampling": f"temperature {said['temperature']:g} unless told otherwise: "
        f"{said['why']}",
        "record": ", ".join(records) + " (metrics: every 50th step)",
    }
    return [f"| {name} | {text} |" for name, text in lines.items()]


def card(name: str, record: dict) -> str:
    """The card of a model that was bundled from the run of this record."""
    bundled = results_of(record)["bundled"]
    runs = history(record)
    corpus = bundled["said"]["corpus"]
    lines = [line for run in runs for line in commands(run, corpus)]
    texts = {"held out": bundled["held_out"], **bundled["elsewhere"]}
    context = record["config"]["model"]["context"]
    about = (
        f"{bundled['said']['about']} It sees {context} bytes, so a text can lose its "
        "thread."
    )
    network = TilelliLM(Config.from_dict(record["config"]), draw=False)
    missing = "" if corpus in OF_THE_BOOK else MISSING.format(corpus=corpus)
    return CARD.format(
        name=name,
        run=record["name"],
        parameters=sum(p.numel() for p in network.parameters()),
        context=context,
        facts="\n".join(
            facts(runs, bundled, (WEIGHTS / name / SOURCES_FILE).is_file())
        ),
        commands="\n".join(lines),
        missing=missing,
        measured="\n".join(row(text, found) for text, found in texts.items()),
        learning=while_learning(record),
        samples="\n\n".join(map(quote, shown(bundled["samples"]))),
        about=textwrap.fill(about, 88),
    )


def write_card(name: str) -> None:
    """Writes the card beside the weights of tilelli/NAME."""
    run = pretrained.load_model(f"tilelli/{name}")[1]["run"]
    path = WEIGHTS / name / "README.md"
    write_atomic(path, card(name, load_record(run)).encode())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name")
    write_card(parser.parse_args().name)


if __name__ == "__main__":
    main()
