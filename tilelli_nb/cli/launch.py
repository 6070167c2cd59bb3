"""What `tilelli train` does with its options: model, corpus, watchers, and then the
loop.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import pretrained
from ..config import Config, load_config
from ..data.background import fineweb_in_background, wait_for_shards
from ..data.corpus import open_corpus
from ..data.fineweb import default_folder
from ..data.shards import Shards
from ..errors import ConfigError
from ..extras import loggers
from ..language_model import TilelliLM
from ..storage.records import load_record
from ..training.distributed import Processes
from ..training.gpu_memory import fit_micro_batch
from ..training.loop import train
from ..training.resuming import branch


def launch(o: SimpleNamespace) -> tuple[dict[str, Any] | None, Path]:
    """Trains with the options of the command: the record (None in all processes but the
    first) and its folder.
    """
    processes = Processes(o.device)
    changes = {
        "steps": o.steps,
        "batch": o.batch,
        "lr": o.lr,
        "seed": o.seed,
        "keep_checkpoints": o.keep,
        "precision": o.precision,
    }
    settings = load_config(o.config).with_train(
        **{key: value for key, value in changes.items() if value is not None}
    )
    out = o.out or Path("runs") / f"{settings.name}-{Path(o.corpus).stem}"
    if o.decay_from:
        settings = finishing(o, out, processes)
    lm = TilelliLM(settings).to(processes.device)
    rows = -(-settings.train.batch // processes.world)
    lm.config = settings.with_train(micro_batch=micro_batch(o.micro_batch, lm, rows))
    notes = o.notes
    if o.init:
        lm.load_weights(pretrained.load_model(o.init)[0])
        notes = " ".join(
            filter(None, [f"Started from the weights of {o.init}.", notes])
        )
    with corpus(o, processes) as shards:
        record = train(
            lm,
            shards,
            out,
            resume=o.resume or o.decay_from is not None,
            stop_at=o.stop_at,
            minutes=o.minutes,
            prompt=o.prompt,
            device=o.device,
            compiled=o.compiled,
            usd_per_hour=o.usd_per_hour,
            max_dollars=o.max_dollars,
            notes=notes,
            on_log=watchers(o, out, settings.to_dict()) if processes.is_first else None,
        )
    return record if processes.is_first else None, out


def finishing(o: SimpleNamespace, out: Path, processes: Processes) -> Config:
    """The configuration of a run that finishes another one, whose folder is prepared
    unless it is resumed. Raises ConfigError for options that are that run's already.
    """
    fixed = ("batch", "lr", "seed", "precision", "init", "minutes")
    given = [f"--{name}" for name in fixed if getattr(o, name) is not None]
    if given or o.steps is None:
        raise ConfigError(
            f"--decay-from goes with --steps{', not with ' if given else ''}"
            + ", ".join(given),
            "say over how many more steps the rate falls; all else is that run's own",
        )

    def prepare() -> None:
        if processes.is_first and not (o.resume and (out / "run.json").is_file()):
            branch(o.decay_from, out, o.steps)

    processes.first_alone(prepare)
    return Config.from_dict(load_record(out)["config"])


@contextmanager
def corpus(o: SimpleNamespace, processes: Processes) -> Iterator[Shards]:
    """The shards of --corpus. With --gigabytes a child of the first process goes on
    writing FineWeb-Edu meanwhile.
    """
    if o.gigabytes is None:
        yield processes.first_alone(lambda: open_corpus(o.corpus))
        return
    if o.corpus != "fineweb-edu":
        raise ConfigError(
            f"--gigabytes is for fineweb-edu, not for {o.corpus}",
            "leave it out, or change --corpus",
        )
    limit = int(o.gigabytes * 1e9)
    if not processes.is_first:
        yield wait_for_shards(default_folder(limit))
        return
    with fineweb_in_background(
        limit_bytes=limit, files=o.files, min_score=o.min_score
    ) as shards:
        if not shards.manifest["complete"]:
            print(
                f"{shards.folder} is being written: training starts on {len(shards.train):,} bytes",
                file=sys.stderr,
            )
        yield shards


def micro_batch(wanted: str, lm: TilelliLM, rows: int) -> int:
    """The number that --micro-batch gives, or for `auto` what fits. Raises ConfigError
    for anything else.
    """
    if wanted == "auto":
        return fit_micro_batch(lm, rows)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ConfigError(
            f"--micro-batch {wanted}", "give a number of sequences, or auto"
        )
    return int(wanted)


def watchers(
    o: SimpleNamespace, out: Path, config: dict[str, Any]
) -> Callable[[dict], None]:
    """One on_log for everything that --tensorboard and --wandb ask for."""
    chosen = [loggers.tensorboard(out)] if o.tensorboard else []
    chosen += [loggers.weights_and_biases(o.wandb, out.name, config)] if o.wandb else []

    def on_log(line: dict[str, Any]) -> None:
        for each in chosen:
            each(line)

    return on_log
