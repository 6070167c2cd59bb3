"""`tilelli train`: its options. What it does with them stands in launch.py."""

import json
import signal
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from ..training import cpu_tuning
from .options import CORPUS_HELP, FINEWEB, MinScore, ParquetFiles

BUDGET_SPENT = 3  # the exit code of a run that --max-dollars has ended

# A type for each option, in groups; the signature below then fits a screen.

# what is trained
ConfigName = Annotated[
    str | None, typer.Option(help="nano (unless given), lite_10m, or a YAML file")
]
Corpus = Annotated[str, typer.Option(help=CORPUS_HELP + ", or a folder of shards")]
Init = Annotated[
    str | None,
    typer.Option(help="Start from the weights of this model, not from random ones"),
]

# how long, and where it goes
Steps = Annotated[int | None, typer.Option(help="Length of the schedule")]
Minutes = Annotated[
    float | None, typer.Option(help="Time some steps, then fix the schedule")
]
StopAt = Annotated[
    int | None,
    typer.Option(help="End early, on the same schedule; go on with --resume"),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder of the run; runs/CONFIG-CORPUS unless given"),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out")
]
DecayFrom = Annotated[
    Path | None,
    typer.Option(
        help="Finish this run, in runs/ITS_NAME-decayed unless --out is given: its "
        "newest checkpoint, and a rate that falls to its end over --steps more; the "
        "run itself may go on"
    ),
]

# the recipe, where it differs from the configuration
Batch = Annotated[int | None, typer.Option(help="Sequences per step")]
MicroBatch = Annotated[
    str, typer.Option(help="How many of them at once; auto finds what a GPU holds")
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="Peak learning rate of AdamW; Muon's is train.muon_lr of a YAML file"
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(help="fp32, bf16, or auto: bf16 where this machine is fast in it"),
]
Seed = Annotated[int | None, typer.Option(help="Of the weights and the batches")]
KeepCheckpoints = Annotated[
    int | None, typer.Option(help="How many checkpoints stay: the newest")
]

# the machine and its price
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or mps; the best one here unless given")
]
Compiled = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="torch.compile; on a GPU yes"),
]
Price = Annotated[
    float | None,
    typer.Option(help="What one card costs an hour, if not as in the table"),
]
MaxDollars = Annotated[
    float | None, typer.Option(help="Stop cleanly when the run has cost this much")
]

# what one sees of it
Prompt = Annotated[str, typer.Option(help="What the samples at 1%, 10%, 100% continue")]
Tensorboard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write event files into --out")
]
Wandb = Annotated[
    str | None, typer.Option(help="Also log to this project of Weights & Biases")
]
Notes = Annotated[str, typer.Option(help="A sentence for the run record")]

# FineWeb-Edu, with the two of options.py
Gigabytes = Annotated[
    float | None, typer.Option(help=f"--corpus {FINEWEB}: written while training runs")
]


def train(
    context: typer.Context,
    config: ConfigName = None,
    corpus: Corpus = "stories",
    steps: Steps = None,
    minutes: Minutes = None,
    stop_at: StopAt = None,
    out: Out = None,
    resume: Resume = False,
    batch: Batch = None,
    micro_batch: MicroBatch = "auto",
    lr: LearningRate = None,
    precision: Precision = None,
    seed: Seed = None,
    init: Init = None,
    decay_from: DecayFrom = None,
    prompt: Prompt = "",
    device: Device = None,
    compiled: Compiled = None,
    keep_checkpoints: KeepCheckpoints = None,
    usd_per_hour: Price = None,
    max_dollars: MaxDollars = None,
    tensorboard: Tensorboard = False,
    wandb: Wandb = None,
    gigabytes: Gigabytes = None,
    files: ParquetFiles = None,
    min_score: MinScore = None,
    notes: Notes = "",
) -> None:
    """Trains a model and leaves its run record, metrics, samples, checkpoints and
    weights in one folder.

    Ctrl-C, SIGTERM and a lost connection write a checkpoint first; `--resume` goes on
    as if nothing had happened. The exit code is then the shell's (130 for Ctrl-C), or 3
    when --max-dollars were spent.
    """
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both")
    cpu_tuning.wait_briefly()  # before PyTorch is imported
    from .launch import TrainOptions, launch

    # the context holds the values above by their names
    record, folder = launch(TrainOptions(**context.params))
    if record is None:  # under torchrun the first process alone has it
        return
    with suppress(OSError):  # a lost connection ends the run, and nobody reads this
        typer.echo(outcome(record, folder))
    code = exit_code(folder)
    if code:
        raise typer.Exit(code)


def outcome(record: dict, folder: Path) -> str:
    """Returns the last lines of the command: what came out, and what to do next."""
    if record["finished"]:
        return (
            f"{record['steps']:,} steps, {record['val_bpb']:.4f} bits per byte held "
            f"out, {record['bytes_per_s']:,.0f} bytes/s: {folder}\n"
            f"next: tilelli generate --model {folder} --stream"
        )
    return stopped_early(record, folder)


def stopped_early(record: dict, folder: Path) -> str:
    """Returns what to say of a run that has not reached its last step."""
    planned = record["config"]["train"]["steps"]
    return (
        f"stopped after {record['steps']:,} of {planned:,} steps; "
        f"the same command with --resume goes on: {folder}"
    )


def exit_code(folder: Path) -> int:
    """Returns 0, or what says why a run was stopped: 128 and the number of a signal, as
    shells have it, or BUDGET_SPENT.
    """
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    stopped_by = results.get("stopped_by")
    if stopped_by is None:
        return 0
    if stopped_by == "budget":
        return BUDGET_SPENT
    return 128 + signal.Signals[stopped_by]
