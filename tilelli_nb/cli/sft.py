"""`tilelli sft`: teaches a pretrained model to answer, and to say when it cannot."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError
from ..files import at_home, is_file
from ..training import cpu_tuning
from .options import CORPUS_HELP, MODEL_HELP
from .train import (
    Batch,
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
    stopped_early,
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
Compiled = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="torch.compile; not unless asked for: it compiles for each length of row",
    ),
]
SAMPLE = "USER: What is the capital of France?\nTILELLI: "


def sft(
    context: typer.Context,
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
    # the context holds the values above by their names
    options = SftOptions(**context.params)
    record = fine_tune(options)
    if record is None:  # under torchrun the first process alone has it
        return
    with suppress(OSError):  # a lost connection ends the run, and nobody reads this
        typer.echo(outcome(record, options.folder))
    code = exit_code(options.folder)
    if code:
        raise typer.Exit(code)


@dataclass(frozen=True)
class SftOptions:
    """The options of `tilelli sft`, which explains each of them in its `--help`; None
    is not given.
    """

    init: str
    config: str
    text: str
    pairs: int
    pairs_seed: int
    steps: int | None
    minutes: float | None
    stop_at: int | None
    out: Path | None
    resume: bool
    batch: int | None
    lr: float | None
    precision: str | None
    seed: int | None
    device: str | None
    compiled: bool | None
    keep_checkpoints: int | None
    notes: str

    @property
    def folder(self) -> Path:
        """Where the run goes."""
        return at_home(self.out or Path("runs") / Path(self.config).stem)

    @property
    def changes(self) -> dict[str, Any]:
        """What replaces a value of the configuration."""
        values = {
            "steps": self.steps,
            "batch": self.batch,
            "lr": self.lr,
            "precision": self.precision,
            "seed": self.seed,
            "keep_checkpoints": self.keep_checkpoints,
        }
        return {name: value for name, value in values.items() if value is not None}


def fine_tune(options: SftOptions) -> dict[str, Any] | None:
    """Makes the pairs and trains the model on them: the run record, or None in all
    processes but the first.

    Raises ConfigError where --init and --out are one place and where the batch does not
    divide among the processes, CheckpointError where the weights do not fit the
    configuration.
    """
    from ..config import load_config
    from ..language_model import TilelliLM
    from ..training.distributed import Processes, refuse_unseen_gpu
    from ..training.loop import train
    from .launch import (
        check_start,
        check_steps,
        same_place,
        saved_record,
        start_from,
    )

    if same_place(options.init, options.folder):
        raise ConfigError(
            f"--init and --out are both {options.folder}",
            "choose another --out: the model there would be overwritten",
        )
    if options.resume:
        check_steps(options.steps, options.folder)
        check_start(options.init, options.folder)
    cpu_tuning.use_free_cores()
    refuse_unseen_gpu(options.device)
    processes = Processes(options.device)
    config = load_config(options.config).with_train(**options.changes)
    _check_shares(config.train.batch, processes.world)
    lm = TilelliLM(config)
    notes = options.notes
    said = start_from(options.init, lm, processes)
    # of a run that goes on, the record says it already
    if not (options.resume and is_file(options.folder / "run.json")):
        notes = f"{said} {notes}".strip()
    record = saved_record(
        train,
        lm,
        conversations(options, processes),
        options.folder,
        resume=options.resume,
        minutes=options.minutes,
        stop_at=options.stop_at,
        device=options.device,
        # a graph is made for each length of row, and rows have many
        compiled=bool(options.compiled),
        prompt=SAMPLE,
        notes=notes,
    )
    return record if processes.is_first else None


def _check_shares(batch: int, world: int) -> None:
    """Raises ConfigError where a batch of conversations, or the text that goes with
    them, does not divide among `world` processes.
    """
    from ..chat.rows import TEXT_SHARE, text_rows

    rows = text_rows(batch)
    if batch % world == 0 and rows % world == 0:
        return
    per_row = round(1 / TEXT_SHARE)  # conversations for each row of text
    raise ConfigError(
        f"a batch of {batch} conversations and {rows} rows of text does not divide "
        f"among {world} processes",
        f"choose a --batch that is a multiple of {per_row * world}: {per_row} times "
        "their number",
    )


def conversations(options: SftOptions, processes: Any) -> Any:
    """The pairs as rows to learn from, with the text that is not to be forgotten."""
    from ..chat.pairs import make_pairs
    from ..chat.rows import ChatRows
    from ..data.corpus import prepare_corpus

    if processes.is_first:
        typer.echo(f"Making {options.pairs:,} questions with answers.", err=True)
    pairs = make_pairs(options.pairs_seed, options.pairs).train
    return ChatRows(
        [[*pair.history, (pair.question, pair.answer)] for pair in pairs],
        # the first process makes the shards, if need be; the others then find them
        processes.first_alone(lambda: prepare_corpus(options.text)),
        f"{options.pairs:,} questions and answers of seed {options.pairs_seed}",
    )


def outcome(record: dict[str, Any], folder: Path) -> str:
    """Returns the last lines of the command: what came out, and what to do next."""
    if record["finished"]:
        return (
            f"{record['steps']:,} steps; {record['val_bpb']:.4f} bits per byte of held "
            f"out text\nnext: tilelli chat --model {folder}"
        )
    return stopped_early(record, folder)
