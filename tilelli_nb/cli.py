"""The command line: tilelli data | train | generate | info. Each command says what it made and what comes next."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .errors import TilelliError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  rich_markup_mode="markdown",
                  help="Tilelli, a byte-level language model you can rebuild from zero.\n\n"
                       "Begin with `tilelli generate \"Once upon a time\"`, then train your own with `tilelli train`.")

CORPUS_HELP = "`stories` (generated here), `docs` (documentation installed here), or a .txt, .jsonl, .parquet or folder"
FINEWEB_HELP = "`fineweb-edu` (streamed from the Hugging Face hub), "
MODEL_HELP = "A bundled name such as tilelli/nano, or the folder of a run"


@app.command()
def data(
    corpus: Annotated[str, typer.Argument(help=FINEWEB_HELP + CORPUS_HELP)],
    out: Annotated[Path | None, typer.Option(help="Folder for the shards; data/NAME unless given")] = None,
    megabytes: Annotated[float, typer.Option(help="How much text to make, at most; files are read whole")] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of generated text")] = 0,
    gigabytes: Annotated[float | None, typer.Option(help="fineweb-edu: how much text, at most")] = None,
    min_score: Annotated[float, typer.Option(help="fineweb-edu: only pages at least this educational, 0 to 5")] = 0.0,
    files: Annotated[Path | None, typer.Option(help="fineweb-edu: parquet files to read in place of the hub")] = None,
    rank: Annotated[int, typer.Option(help="fineweb-edu: number of this node")] = 0,
    world: Annotated[int, typer.Option(help="fineweb-edu: how many nodes share the work")] = 1,
) -> None:
    """Turns a corpus into shards: files of raw bytes with a manifest, one document in twenty held out.

    Killed or stopped, the same command goes on where it was: no document twice, none missing.
    """
    from .shards import open_corpus, open_fineweb

    if corpus == "fineweb-edu":
        limit = int(gigabytes * 1e9 if gigabytes else megabytes * 1e6)
        shards = open_fineweb(out, files=files, limit_bytes=limit, min_score=min_score, rank=rank, world=world)
    else:
        shards = open_corpus(corpus, out, megabytes=megabytes, seed=seed)
    documents = sum(shard["documents"] for shard in shards.manifest["shards"])
    typer.echo(f"{shards.folder}: {documents:,} documents, {len(shards.train):,} bytes to train on, "
               f"{len(shards.val):,} held out")
    typer.echo(f"next: tilelli train --config nano --corpus {shards.folder}")


@app.command()
def train(
    config: Annotated[str, typer.Option(help="nano, lite_10m, or a YAML file")] = "nano",
    corpus: Annotated[str, typer.Option(help=CORPUS_HELP + ", or a folder of shards")] = "stories",
    steps: Annotated[int | None, typer.Option(help="Length of the schedule")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time some steps, then fix the schedule")] = None,
    stop_at: Annotated[int | None, typer.Option(help="End early, on the same schedule; go on with --resume")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/CONFIG-CORPUS unless given")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out")] = False,
    batch: Annotated[int | None, typer.Option(help="Sequences per step")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights and the batches")] = None,
    init: Annotated[str | None, typer.Option(help="Start from the weights of this model, not from random ones")] = None,
    prompt: Annotated[str, typer.Option(help="What the samples at 1%, 10% and 100% continue")] = "",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best one here unless given")] = None,
    notes: Annotated[str, typer.Option(help="A sentence for the run record")] = "",
) -> None:
    """Trains a model and leaves its run record, metrics, samples, checkpoints and weights in one folder.

    Ctrl-C and SIGTERM write a checkpoint first; `--resume` goes on as if nothing had happened.
    """
    from . import checkpoint
    from .config import load_config
    from .model import TilelliLM
    from .shards import open_corpus
    from .train import train as run_training

    if steps and minutes:
        raise typer.BadParameter("give --steps or --minutes, not both")
    changes = {"steps": steps, "batch": batch, "lr": lr, "seed": seed}
    settings = load_config(config).with_train(**{key: value for key, value in changes.items() if value is not None})
    lm, shards = TilelliLM(settings), open_corpus(corpus)
    if init:
        lm.load_weights(checkpoint.load_model(init)[0])
        notes = " ".join(filter(None, [f"Started from the weights of {init}.", notes]))
    out = out or Path("runs") / f"{settings.name}-{Path(corpus).stem}"
    record = run_training(lm, shards, out, resume=resume, stop_at=stop_at, minutes=minutes,
                          prompt=prompt, device=device, notes=notes)
    if record["finished"]:
        typer.echo(f"{record['steps']:,} steps, {record['val_bpb']:.4f} bits per byte held out, "
                   f"{record['bytes_per_s']:,.0f} bytes/s: {out}")
        typer.echo(f"next: tilelli generate --model {out} --stream")
    else:
        typer.echo(f"stopped after {record['steps']:,} of {record['config']['train']['steps']:,} steps; "
                   f"the same command with --resume goes on: {out}")


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue; - reads it from the standard input")] = "",
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "tilelli/nano",
    max_new: Annotated[int, typer.Option(help="Bytes at most")] = 400,
    temperature: Annotated[float, typer.Option(help="0 is greedy, 1 is what the model believes")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most probable bytes")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest bytes that together reach p")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print each character as it comes")] = False,
) -> None:
    """Continues a text, byte by byte, until the model ends the document or --max-new is reached."""
    from .model import TilelliLM
    from .tokenizer import ByteTokenizer

    tokenizer, lm = ByteTokenizer(), TilelliLM.from_pretrained(model)
    raw = sys.stdin.buffer.read() if prompt == "-" else prompt
    ids = tokenizer.encode(raw)
    settings = {"max_new": max_new, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if stream:
        typer.echo(tokenizer.decode(ids), nl=False)
        for piece in tokenizer.stream(lm.stream(ids, **settings)):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()
    else:
        typer.echo(tokenizer.decode(lm.generate(ids, **settings)))


@app.command()
def info(model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "tilelli/nano") -> None:
    """Says what a model is: its sizes, its parameters part by part, and how well it does."""
    from . import checkpoint
    from .config import Config
    from .model import TilelliLM

    tensors, metadata = checkpoint.load_model(model)
    config = Config.from_dict(metadata["config"])
    lm = TilelliLM(config)
    lm.load_weights(tensors)
    typer.echo(f"{model}: configuration {config.name}, {sum(p.numel() for p in lm.parameters()):,} parameters")
    for part, count in lm.parameter_table().items():
        typer.echo(f"  {part:<12}{count:>12,}")
    sizes = ", ".join(f"{key} {value}" for key, value in config.to_dict()["model"].items())
    typer.echo(f"sizes: {sizes}")
    if metadata.get("val_bpb") is not None:
        typer.echo(f"held out: {metadata['val_bpb']:.4f} bits per byte")
    if "step" in metadata:
        typer.echo(f"a checkpoint at step {metadata['step']:,} of {config.train.steps:,}")


def main() -> None:
    """Runs the app; an error of this package becomes two lines and exit code 1, never a traceback."""
    try:
        app()
    except TilelliError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
