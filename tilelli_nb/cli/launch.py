"""What `tilelli train` does with its options: it makes the model, opens the corpus,
starts the loggers, and hands all of them to the training loop.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import pretrained
from ..config import Config, load_config
from ..data.background import fineweb_in_background, wait_for_shards
from ..data.corpus import prepare_corpus
from ..data.fineweb import default_folder
from ..data.shards import Shards
from ..errors import ConfigError, RunInterrupted
from ..extras import loggers
from ..files import at_home, is_file
from ..language_model import TilelliLM
from ..storage.checkpoint import written_in
from ..storage.records import load_record
from ..training.cpu_tuning import use_free_cores
from ..training.distributed import Processes, refuse_unseen_gpu
from ..training.gpu_memory import explain_gpu_errors, fit_micro_batch
from ..training.loop import train
from ..training.progress import say
from ..training.resuming import branch, check_kind, recorded_precision
from .options import FINEWEB, check_range, check_size, refuse


@dataclass(frozen=True)
class TrainOptions:
    """The options of `tilelli train`, which explains each of them in its `--help`; None
    is not given.
    """

    # what is trained, and on what
    config: str | None = None  # a name or a YAML file; nano unless given
    corpus: str = "stories"  # a name, a file, a folder of files or of shards
    init: str | None = None  # a model whose weights are the first ones

    # how long, and where
    steps: int | None = None  # length of the schedule
    minutes: float | None = None  # what the length is made from instead
    stop_at: int | None = None  # a step of the schedule
    out: Path | None = None  # folder of the run
    resume: bool = False
    decay_from: Path | None = None  # folder of a run that this one finishes

    # what replaces a value of the configuration
    batch: int | None = None  # sequences a step
    micro_batch: str = "auto"  # sequences at once
    lr: float | None = None  # the highest learning rate
    precision: str | None = None
    seed: int | None = None
    keep_checkpoints: int | None = None  # how many files stay

    # the machine
    device: str | None = None  # the best one here unless given
    compiled: bool | None = None  # torch.compile; on CUDA unless given
    usd_per_hour: float | None = None  # as in the table unless given
    max_dollars: float | None = None  # no limit unless given

    # what one sees of the run
    prompt: str = ""  # what the samples continue
    tensorboard: bool = False
    wandb: str | None = None  # a project of Weights & Biases
    notes: str = ""  # for the run record

    # FineWeb-Edu, written while training runs
    gigabytes: float | None = None  # how much of it
    files: Path | None = None  # a folder of it, in place of the hub
    min_score: float | None = None  # how educational a page must be, 0 to 5


def launch(options: TrainOptions) -> tuple[dict[str, Any] | None, Path]:
    """Trains as the options say. Returns the run record (None in all processes but the
    first) and the folder of the run.
    """
    use_free_cores()
    refuse_unseen_gpu(options.device)
    processes = Processes(options.device)  # one, unless torchrun started more
    if options.decay_from:
        settings, out = finishing(options, processes)
    else:
        settings, out = beginning(options)
    check_options(options, settings, out)
    lm = TilelliLM(settings).to(processes.device)
    # each process holds its share of the batch; rounded up, since one may hold more
    rows = -(-settings.train.batch // processes.world)
    # cards differ, and so does what else lies on them: all take what fits everywhere
    precision = precision_of(options, out, settings)
    fitting = processes.minimum(micro_batch(options.micro_batch, lm, rows, precision))
    lm.config = settings.with_train(micro_batch=fitting)
    notes = options.notes
    if options.init is not None:
        may_differ = ("keep",) if options.config else ()  # it is in no weight
        said = start_from(options.init, lm, processes, may_differ)
        # of a run that goes on, the record says it already
        if not (options.resume and is_file(out / "run.json")):
            notes = f"{said} {notes}".strip()
    on_log = None
    if processes.is_first:  # one process logs for all
        on_log = to_loggers(options, out)
    with corpus(options, processes) as shards:
        record = saved_record(
            train,
            lm,
            shards,
            out,
            # finishing() has copied a checkpoint to go on from
            resume=options.resume or options.decay_from is not None,
            stop_at=options.stop_at,
            minutes=options.minutes,
            prompt=options.prompt,
            device=options.device,
            compiled=options.compiled,
            usd_per_hour=options.usd_per_hour,
            max_dollars=options.max_dollars,
            notes=notes,
            on_log=on_log,
        )
    return (record if processes.is_first else None), out


def check_options(options: TrainOptions, settings: Config, out: Path) -> None:
    """Raises ConfigError for what would be without effect, would overwrite the model
    that the run begins with, or differs from the run that goes on.
    """
    if settings.train.text_weight != 1.0:
        raise ConfigError(
            f"train.text_weight = {settings.train.text_weight} in pretraining",
            "leave it out: it weighs the text against the answers in tilelli sft",
        )
    if options.init is not None and same_place(options.init, out):
        raise ConfigError(
            f"--init and --out are both {out}",
            "choose another --out: the model there would be overwritten",
        )
    # With --decay-from, --steps are those behind the run that is finished.
    if options.resume and options.decay_from is None:
        check_steps(options.steps, out)
        check_start(options.init, out)


def saved_record(train: Callable[..., dict], *inputs: Any, **options: Any) -> dict:
    """Calls train(), and returns the run record also where Ctrl-C has stopped it."""
    try:
        return train(*inputs, **options)
    except RunInterrupted as stopped:
        return stopped.record


def same_place(model: str, out: Path) -> bool:
    """Whether a model lies where the run would go, by whatever names."""
    return pretrained.resolve(model).resolve() == out.resolve()


def start_from(
    init: str, lm: TilelliLM, processes: Processes, may_differ: tuple[str, ...] = ()
) -> str:
    """Gives the model the weights of --init, and returns what the run record says about
    them. The optimizer and the schedule begin anew. The sizes in `may_differ` may be
    others than those that the weights were trained with.

    Raises CheckpointError for anything else that differs.
    """
    said = pretrained.first_weights(init, lm, may_differ)
    if processes.is_first:
        for sentence in said:
            print(f"{init}: {sentence}", file=sys.stderr)
    return " ".join([f"Started from the weights of {init}.", *said])


def check_start(init: str | None, out: Path) -> None:
    """Raises ConfigError where a run is to go on from other weights than it began with,
    or needs them once more and is not told which.
    """
    if not is_file(out / "run.json"):
        return  # nothing to go on with: that is said elsewhere
    notes = load_record(out)["notes"]
    if init is None:
        began_elsewhere = notes.startswith("Started from the weights of ")
        if began_elsewhere and not written_in(out / "checkpoints"):
            raise ConfigError(
                f"the run in {out.name} began with the weights of another model, and "
                "has no checkpoint yet",
                "give it the same --init once more",
            )
        return
    # the name ends where its sentence does, or at a comma: a.b is no a
    behind = notes.removeprefix(f"Started from the weights of {init}")
    is_same = behind == "." or behind.startswith((". ", ", "))
    if not is_same:
        raise ConfigError(
            f"the run in {out.name} did not start from {init}",
            "go on with the same --init, or choose another --out",
        )


def check_steps(steps: int | None, out: Path) -> None:
    """Raises ConfigError when a run is resumed with another length than it has."""
    if steps is None or not is_file(out / "run.json"):
        return
    planned = load_record(out)["config"]["train"]["steps"]
    if steps != planned:
        raise ConfigError(
            f"the run in {out.name} has {planned:,} steps, not {steps:,}",
            "resume it without --steps; to train longer, begin another run with "
            f"--init {out}",
        )


def beginning(options: TrainOptions) -> tuple[Config, Path]:
    """Returns the configuration of a run of its own, with the changes that the options
    make to it, and the run's folder.
    """
    changes = {
        "steps": options.steps,
        "batch": options.batch,
        "lr": options.lr,
        "precision": options.precision,
        "seed": options.seed,
        "keep_checkpoints": options.keep_checkpoints,
    }
    # what is not given stays as the configuration has it
    given = {name: value for name, value in changes.items() if value is not None}
    settings = load_config(
        "nano" if options.config is None else options.config
    ).with_train(**given)
    # "." has no name of its own
    corpus_name = Path(options.corpus).stem or Path(options.corpus).resolve().stem
    name = f"{settings.name}-{corpus_name}"
    return settings, at_home(options.out or Path("runs") / name)


def finishing(options: TrainOptions, processes: Processes) -> tuple[Config, Path]:
    """Returns the configuration of a run that finishes another one, and its folder,
    which is prepared unless it is resumed.

    Raises ConfigError for options that are that run's already, or that are others than
    those that the branch began with.
    """
    # 0 is a value too, so numbers are compared with None
    refuse(
        {
            "config": options.config,
            "init": options.init,
            "minutes": options.minutes is not None,
            "batch": options.batch is not None,
            "lr": options.lr is not None,
            "precision": options.precision,
            "seed": options.seed is not None,
            "notes": options.notes or None,
        },
        "not for a run that finishes another with --decay-from",
        "leave it out: all but --steps is as in that run",
    )
    if options.steps is None:
        raise ConfigError(
            "--decay-from goes with --steps",
            "say over how many more steps the rate falls",
        )
    source = at_home(options.decay_from)
    out = at_home(options.out or Path("runs") / f"{source.resolve().name}-decayed")

    def prepare() -> None:
        # once it is there, --resume goes on with it
        prepared = options.resume and is_file(out / "run.json")
        if prepared:
            check_branch(source, out, options.steps)
        elif processes.is_first:
            check_kind(load_record(source), "train", source)
            branch(source, out, options.steps)

    processes.first_alone(prepare)  # the others wait until it is written
    settings = Config.from_dict(load_record(out)["config"])
    # of all settings this one changes no result
    if options.keep_checkpoints is not None:
        settings = settings.with_train(keep_checkpoints=options.keep_checkpoints)
    return settings, out


def check_branch(source: Path, out: Path, steps: int) -> None:
    """Raises ConfigError where the run in `out` does not finish the one in `source`
    over so many steps.
    """
    record = load_record(out)
    # the run in `source` may have been removed since
    name = source.resolve().name
    if is_file(source / "run.json"):
        name = load_record(source)["name"]
    began_at = record["config"]["train"]["steps"] - steps
    if not record["notes"].startswith(f"Decays from step {began_at:,} of {name}."):
        raise ConfigError(
            f"the run in {out.name} does not finish {name} over {steps:,} steps: "
            f"{record['notes'].split('. ')[0]}, and ends at step "
            f"{record['config']['train']['steps']:,}",
            "resume it with the same --decay-from and --steps, or choose another --out",
        )


@contextmanager
def corpus(options: TrainOptions, processes: Processes) -> Iterator[Shards]:
    """Opens the shards of --corpus. With --gigabytes a child of the first process goes
    on writing FineWeb-Edu meanwhile.

    Raises ConfigError for options of FineWeb-Edu that would have no effect, DataError.
    """
    if options.gigabytes is None:
        refuse(
            {"files": options.files, "min-score": options.min_score},
            f"for {FINEWEB} that is written while training runs",
            f"leave it out, or add --corpus {FINEWEB} --gigabytes N",
        )
        # the first process makes them, if need be; the others then find them
        yield processes.first_alone(lambda: prepare_corpus(options.corpus))
        return
    if options.corpus != FINEWEB:
        raise ConfigError(
            f"--gigabytes is for {FINEWEB}, not for {options.corpus}",
            "leave it out, or change --corpus",
        )
    check_size("gigabytes", options.gigabytes)
    check_range("min-score", options.min_score, 0, 5)
    limit_bytes = int(options.gigabytes * 1e9)
    # one process writes; the others look into its folder
    if not processes.is_first:
        yield wait_for_shards(default_folder(limit_bytes))
        return
    with fineweb_in_background(
        limit_bytes=limit_bytes, files=options.files, min_score=options.min_score or 0.0
    ) as shards:
        if not shards.manifest["complete"]:
            size = f"{len(shards.train):,} bytes"
            said = f"{shards.folder} is being written: training starts on {size}"
            print(said, file=sys.stderr)
        yield shards


def precision_of(options: TrainOptions, out: Path, settings: Config) -> str:
    """Returns what the run computes in: one that goes on stays with what it has, also
    where the command leaves it to the machine.
    """
    goes_on = options.resume or options.decay_from is not None
    if goes_on and is_file(out / "run.json"):
        return recorded_precision(load_record(out))
    return settings.train.precision


def micro_batch(wanted: str, lm: TilelliLM, rows: int, precision: str) -> int:
    """Returns the number that --micro-batch gives, or for `auto` what fits. Raises
    ConfigError for anything else.
    """
    if wanted == "auto":
        with explain_gpu_errors(rows):
            return fit_micro_batch(lm, rows, precision)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ConfigError(
            f"--micro-batch {wanted}", "give a number of sequences, or auto"
        )
    return int(wanted)


def to_loggers(options: TrainOptions, out: Path) -> Callable[[dict[str, Any]], None]:
    """Returns one on_log for all that --tensorboard and --wandb ask for. One that fails
    is left out from then on: a run is not lost for want of somebody to watch it.
    """
    chosen = []
    if options.tensorboard:
        chosen.append(loggers.tensorboard(out))
    if options.wandb == "":
        raise ConfigError("--wandb has no project", "name one, or leave it out")
    if options.wandb is not None:
        chosen.append(loggers.weights_and_biases(options.wandb, out))

    def on_log(line: dict[str, Any]) -> None:
        for logger in list(chosen):
            try:
                logger(line)
            except Exception as error:  # no login, no network, a full disk
                chosen.remove(logger)
                said = f"a watcher failed: {type(error).__name__}: {error}"
                say(f"{said}; the run goes on without it, its numbers in {out}")

    return on_log
