"""`tilelli sft`: teaches a pretrained model to answer, and to say when it cannot."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..training import cpu_tuning
from .options import CORPUS_HELP, MODEL_HELP
from .train import (
    Batch,
    Compiled,
    Device,
    KeepCheckpoints,
    LearningRate,
    Minutes,
    Notes,
    Precision,
    Resume,
    Seed,
    Steps,
    StopAt,
    exit_code,
)

Init = Annotated[str, typer.Option(help=f"The pretrained model. {MODEL_HELP}")]
ConfigName = Annotated[
    str, typer.Option(help="sft_nano, sft_10m, or a YAML file: how it is trained")
]
Text = Annotated[
    str,
    typer.Option(
        help="What the model was pretrained on, so that it stays: " + CORPUS_HELP
    ),
]
Pairs = Annotated[int, typer.Option(help="How many questions with answers are made")]
PairsSeed = Annotated[int, typer.Option(help="Another seed makes other ones")]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run; runs/CONFIG unless given")
]
SAMPLE = "USER: What is the capital of France?\nTILELLI: "


def sft(
    init: Init = "tilelli/nano",
    config: ConfigName = "sft_nano",
    text: Text = "stories",
    pairs: Pairs = 50_000,
    pairs_seed: PairsSeed = 0,
    steps: Steps = None,
    minutes: Minutes = None,
    stop_at: StopAt = None,
    out: Out = None,
    resume: Resume = False,
    batch: Batch = None,
    lr: LearningRate = None,
    precision: Precision = None,
    seed: Seed = None,
    device: Device = None,
    compiled: Compiled = None,
    keep_checkpoints: KeepCheckpoints = None,
    notes: Notes = "",
) -> None:
    """Fine-tunes a model on questions and answers, a third of which is "I don't know."
    Leaves what `tilelli train` leaves; `tilelli chat --model FOLDER` talks with it.
    """
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both")
    cpu_tuning.wait_briefly()  # before PyTorch is imported
    changes = {
        "steps": steps,
        "batch": batch,
        "micro_batch": batch,
        "lr": lr,
        "precision": precision,
        "seed": seed,
        "keep_checkpoints": keep_checkpoints,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    folder = Path(out or Path("runs") / Path(config).stem.replace("_", "-"))
    record = fine_tune(
        init,
        config,
        given,
        text,
        (pairs_seed, pairs),
        folder,
        resume=resume,
        minutes=minutes,
        stop_at=stop_at,
        device=device,
        compiled=compiled,
        notes=notes,
    )
    if record is None:  # under torchrun the first process alone has it
        return
    if record["finished"]:
        typer.echo(
            f"{record['steps']:,} steps; {record['val_bpb']:.4f} bits per byte of held "
            f"out text\nnext: tilelli chat --model {folder}"
        )
    else:
        planned = record["config"]["train"]["steps"]
        typer.echo(
            f"stopped after {record['steps']:,} of {planned:,} steps; "
            f"the same command with --resume goes on: {folder}"
        )
    code = exit_code(folder)
    if code:
        raise typer.Exit(code)


def fine_tune(
    init: str,
    config: str,
    changes: dict[str, Any],
    text: str,
    pairs: tuple[int, int],
    folder: Path,
    **options: Any,
) -> dict[str, Any] | None:
    """Makes the pairs, of a seed and a number, and trains the model `init` on them: the
    run record, or None in all processes but the first.

    Raises ConfigError where init and out are one place, CheckpointError where the
    weights do not fit the configuration.
    """
    from .. import pretrained
    from ..chat.pairs import make_pairs
    from ..chat.rows import ChatRows
    from ..config import load_config
    from ..data.corpus import prepare_corpus
    from ..errors import ConfigError
    from ..language_model import TilelliLM
    from ..training.distributed import Processes
    from ..training.loop import train
    from .launch import same_place

    if same_place(init, folder):
        raise ConfigError(
            f"--init and --out are both {folder}",
            "choose another --out: the model there would be overwritten",
        )
    processes = Processes(options["device"])
    lm = TilelliLM(load_config(config).with_train(**changes))
    weights, _ = pretrained.first_weights(init, lm.config.model)
    lm.load_weights(weights)
    pairs_seed, count = pairs
    if processes.is_first:
        typer.echo(f"Making {count:,} questions with answers.", err=True)
    made = make_pairs(pairs_seed, count).train
    rows = ChatRows(
        [[*pair.history, (pair.question, pair.answer)] for pair in made],
        processes.first_alone(lambda: prepare_corpus(text)),
        f"{count:,} questions and answers of seed {pairs_seed}",
    )
    notes = f"Started from the weights of {init}. {options.pop('notes')}".strip()
    record = train(lm, rows, folder, prompt=SAMPLE, notes=notes, **options)
    return record if processes.is_first else None
