"""The command line: tilelli data | train | generate | score | pack | push | info | cost
| runpod.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from .. import pretrained
from ..errors import DataError, TilelliError
from ..extras import runpod
from ..inference import generation_config
from ..storage import checkpoint
from ..training import cpu_tuning

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Tilelli, a byte-level language model you can rebuild from zero.\n\n"
    'Begin with `tilelli generate "Once upon a time"`, then train your own with `tilelli train`.',
)


app.add_typer(runpod.pods, name="runpod")


CORPUS_HELP = "`stories` (generated here), `docs` (documentation installed here), or a .txt, .jsonl, .parquet or folder"


FINEWEB_HELP = "`fineweb-edu` (streamed from the Hugging Face hub), "


MODEL_HELP = "A bundled name such as tilelli/nano, the folder of a run or of a packed model, or a Hub's OWNER/NAME"


WEIGHTS_HELP = "fp32, bf16, int8 or ternary: fewer bytes for each weight, more speed, a little less exact"


@app.command()
def data(
    corpus: Annotated[str, typer.Argument(help=FINEWEB_HELP + CORPUS_HELP)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the shards; data/NAME unless given")
    ] = None,
    megabytes: Annotated[
        float, typer.Option(help="How much text to make, at most; files are read whole")
    ] = 10.0,
    seed: Annotated[int, typer.Option(help="Seed of generated text")] = 0,
    gigabytes: Annotated[
        float | None, typer.Option(help="fineweb-edu: how much text, at most")
    ] = None,
    min_score: Annotated[
        float,
        typer.Option(help="fineweb-edu: only pages at least this educational, 0 to 5"),
    ] = 0.0,
    files: Annotated[
        Path | None,
        typer.Option(help="fineweb-edu: parquet files to read in place of the hub"),
    ] = None,
    rank: Annotated[int, typer.Option(help="fineweb-edu: number of this node")] = 0,
    world: Annotated[
        int, typer.Option(help="fineweb-edu: how many nodes share the work")
    ] = 1,
) -> None:
    """Turns a corpus into shards: files of raw bytes with a manifest, one document in
    twenty held out.

    Killed or stopped, the same command goes on where it was: no document twice, none
    missing.
    """
    from ..data.corpus import prepare_corpus
    from ..data.fineweb import prepare_fineweb

    limit = int(gigabytes * 1e9 if gigabytes else megabytes * 1e6)
    try:
        shards = (
            prepare_corpus(corpus, out, megabytes=megabytes, seed=seed)
            if corpus != "fineweb-edu"
            else prepare_fineweb(
                out,
                files=files,
                limit_bytes=limit,
                min_score=min_score,
                rank=rank,
                world=world,
                progress=True,
            )
        )
    except KeyboardInterrupt:
        typer.echo(
            "stopped: what is written stays, and the same command goes on from there",
            err=True,
        )
        raise typer.Exit(130) from None
    documents = sum(shard["documents"] for shard in shards.manifest["shards"])
    typer.echo(
        f"{shards.folder}: {documents:,} documents, {len(shards.train):,} bytes to train on, "
        f"{len(shards.val):,} held out"
    )
    typer.echo(f"next: tilelli train --config nano --corpus {shards.folder}")


@app.command()
def train(
    config: Annotated[
        str, typer.Option(help="nano, lite_10m, or a YAML file")
    ] = "nano",
    corpus: Annotated[
        str, typer.Option(help=CORPUS_HELP + ", or a folder of shards")
    ] = "stories",
    steps: Annotated[int | None, typer.Option(help="Length of the schedule")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time some steps, then fix the schedule")
    ] = None,
    stop_at: Annotated[
        int | None,
        typer.Option(help="End early, on the same schedule; go on with --resume"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; runs/CONFIG-CORPUS unless given"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out")
    ] = False,
    batch: Annotated[int | None, typer.Option(help="Sequences per step")] = None,
    micro_batch: Annotated[
        str, typer.Option(help="How many of them at once; auto finds what a GPU holds")
    ] = "auto",
    lr: Annotated[float | None, typer.Option(help="Peak learning rate")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, or auto: bf16 where this machine is fast in it"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the weights and the batches")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="Start from the weights of this model, not from random ones"),
    ] = None,
    decay_from: Annotated[
        Path | None,
        typer.Option(
            help="Finish this run: its newest checkpoint, and a rate that falls to its "
            "end over --steps more; the run itself may go on"
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="What the samples at 1%, 10% and 100% continue")
    ] = "",
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda or mps; the best one here unless given"),
    ] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="torch.compile; on a GPU yes"),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="How many checkpoints stay")] = None,
    usd_per_hour: Annotated[
        float | None,
        typer.Option(help="What the machine costs, if not as in the table"),
    ] = None,
    max_dollars: Annotated[
        float | None, typer.Option(help="Stop cleanly when the run has cost this much")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write event files into --out")
    ] = False,
    wandb: Annotated[
        str | None, typer.Option(help="Also log to this project of Weights & Biases")
    ] = None,
    gigabytes: Annotated[
        float | None,
        typer.Option(help="--corpus fineweb-edu: written while training runs"),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(help="fineweb-edu: parquet files to read in place of the hub"),
    ] = None,
    min_score: Annotated[
        float,
        typer.Option(help="fineweb-edu: only pages at least this educational, 0 to 5"),
    ] = 0.0,
    notes: Annotated[str, typer.Option(help="A sentence for the run record")] = "",
) -> None:
    """Trains a model and leaves its run record, metrics, samples, checkpoints and
    weights in one folder.

    Ctrl-C and SIGTERM write a checkpoint first; `--resume` goes on as if nothing had
    happened.
    """
    cpu_tuning.wait_briefly()
    from .launch import launch

    if steps and minutes:
        raise typer.BadParameter("give --steps or --minutes, not both")
    record, out = launch(SimpleNamespace(**locals()))
    if record is None:
        return
    if record["finished"]:
        typer.echo(
            f"{record['steps']:,} steps, {record['val_bpb']:.4f} bits per byte held out, "
            f"{record['bytes_per_s']:,.0f} bytes/s: {out}"
        )
        typer.echo(f"next: tilelli generate --model {out} --stream")
    else:
        typer.echo(
            f"stopped after {record['steps']:,} of {record['config']['train']['steps']:,} steps; "
            f"the same command with --resume goes on: {out}"
        )


@app.command()
def generate(
    prompt: Annotated[
        str, typer.Argument(help="What to continue; - reads it from the standard input")
    ] = "",
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "tilelli/nano",
    max_new: Annotated[
        int | None,
        typer.Option(help="Bytes at most; the model's own number unless given, or 400"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="0 is greedy, 1 is what the model believes; the model's own unless "
            "given, or 0.8"
        ),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Draw from the k most probable bytes")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the fewest bytes that together reach p"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same text")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Print each character as it comes")
    ] = False,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "fp32",
) -> None:
    """Continues a text, byte by byte, until the model ends the document or --max-new is
    reached.
    """
    from ..data.tokenizer import ByteTokenizer

    tokenizer, lm = ByteTokenizer(), prepared(model, weights)
    raw = sys.stdin.buffer.read() if prompt == "-" else prompt
    ids = tokenizer.encode(raw)
    if max_new is None:
        max_new = lm.sampling_defaults.get("max_new", 400)
    settings = {
        "max_new": max_new,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    if stream:
        typer.echo(tokenizer.decode(ids), nl=False)
        for piece in tokenizer.stream(lm.stream(ids, **settings)):
            typer.echo(piece, nl=False)
            sys.stdout.flush()
        typer.echo()
    else:
        typer.echo(tokenizer.decode(lm.generate(ids, **settings)))


@app.command()
def score(
    file: Annotated[
        Path,
        typer.Argument(
            help="A text; - reads it from the standard input", allow_dash=True
        ),
    ],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "tilelli/nano",
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Let each byte see at least half a window")
    ] = False,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "fp32",
) -> None:
    """Says how many bits a model needs for each byte of a text: less is better, 8 is
    knowing nothing.
    """
    lm, text = prepared(model, weights), read_text(file)
    context = lm.config.model.context
    way = (
        f"a window that moves on by {context // 2}"
        if sliding
        else f"chunks of {context}"
    )
    typer.echo(
        f"{lm.score(text, sliding):.4f} bits per byte over {len(text):,} bytes, in {way}: {model}, {weights}"
    )


@app.command()
def pack(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for the packed model")],
    text: Annotated[
        Path | None,
        typer.Option(help="To measure the loss on; generated stories unless given"),
    ] = None,
) -> None:
    """Writes a model in a ninth of the bytes, for inference only: five ternary codes a
    byte, the rest in int8.
    """
    from itertools import islice

    from ..data.stories import stories
    from ..language_model import TilelliLM

    measured = (
        read_text(text) if text else "\0".join(islice(stories(seed=1000), 20)).encode()
    )
    tensors, metadata = pretrained.load_model(model)
    about = {
        key: value for key, value in metadata.items() if key not in ("config", "packed")
    }
    lm = TilelliLM.from_tensors(tensors, metadata)
    lm.sampling_defaults = generation_config.read_defaults(pretrained.resolve(model))
    note = lm.save_packed(out, measured, **about)
    typer.echo(f"{out}: {(out / checkpoint.MODEL_FILE).stat().st_size:,} bytes")
    typer.echo(
        f"{note['bits_per_byte']:.4f} bits per byte, {note['bits_per_byte_before']:.4f} before, on "
        f"{note['text_bytes']:,} bytes of {text or 'generated stories'}"
    )
    typer.echo(f"next: tilelli generate --model {out} --weights ternary --stream")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "tilelli/nano",
) -> None:
    """Says what a model is: its sizes, its parameters part by part, and how well it
    does.
    """
    from ..language_model import TilelliLM

    tensors, metadata = pretrained.load_model(model)
    lm = TilelliLM.from_tensors(tensors, metadata)
    defaults = generation_config.read_defaults(pretrained.resolve(model))
    typer.echo(
        f"{model}: configuration {lm.config.name}, {sum(p.numel() for p in lm.parameters()):,} parameters in "
        f"{sum(t.nbytes for t in tensors.values()):,} bytes"
    )
    for part, count in lm.parameter_table().items():
        typer.echo(f"  {part:<12}{count:>12,}")
    sizes = ", ".join(
        f"{key} {value}" for key, value in lm.config.to_dict()["model"].items()
    )
    typer.echo(f"sizes: {sizes}")
    if defaults:
        settings = ", ".join(f"{name} {value}" for name, value in defaults.items())
        typer.echo(f"sampled, unless told otherwise, with {settings}")
    if metadata.get("val_bpb") is not None:
        typer.echo(f"held out: {metadata['val_bpb']:.4f} bits per byte")
    if "step" in metadata:
        typer.echo(
            f"a checkpoint at step {metadata['step']:,} of {lm.config.train.steps:,}"
        )
    if note := metadata.get("packed"):
        loss = note.get("bits_per_byte", 0) - note.get("bits_per_byte_before", 0)
        typer.echo(
            f"packed, format {note['version']}, for inference only: {loss:+.4f} bits per byte for it, "
            f"measured on {note.get('text_bytes', 0):,} bytes"
        )


def prepared(model: str, weights: str) -> Any:
    """The model with its weights in one of the forms of `TilelliLM.prepare`."""
    from ..language_model import TilelliLM

    lm = TilelliLM.from_pretrained(model)
    # in fp32 it prepares itself, where that is possible
    return lm if weights == "fp32" else lm.prepare(weights)


def read_text(file: Path) -> bytes:
    """The bytes of a file, or of the standard input. Raises DataError."""
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}",
            "give the path of a text file, or -",
        ) from None


@app.command()
def push(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    name: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub")],
    private: Annotated[bool, typer.Option("--private", help="Only for you")] = False,
) -> None:
    """Publishes a model on the Hugging Face Hub, with a card made from its run record
    if its folder holds one.
    """
    from ..language_model import TilelliLM
    from ..storage.records import load_record

    record = load_record(model) if (Path(model) / "run.json").is_file() else None
    typer.echo(TilelliLM.from_pretrained(model).push_to_hub(name, record, private))


@app.command()
def cost(
    config: Annotated[
        str, typer.Option(help="nano, lite_10m, or a YAML file")
    ] = "lite_10m",
    gpu: Annotated[
        str | None,
        typer.Option(help='A card, such as A6000 or "H100 SXM"; all of them if none'),
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(help="What you pay; the table's price unless given")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Length of the run; the configuration's unless given"),
    ] = None,
    bytes_per_s: Annotated[
        float | None, typer.Option(help="A speed that you have measured")
    ] = None,
) -> None:
    """Says how long a run will take on which card and what it will cost, and what the
    runs so far have cost.
    """
    from ..config import load_config
    from ..training.cost import report

    settings = load_config(config)
    settings = settings.with_train(steps=steps) if steps is not None else settings
    for line in report(settings, gpu, usd_per_hour, bytes_per_s):
        typer.echo(line)


def main() -> None:
    """Runs the app; an error of this package becomes two lines and exit code 1, never a
    traceback.
    """
    try:
        app()
    except TilelliError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
