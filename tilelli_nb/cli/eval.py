"""`tilelli eval`: the experiments of chapter 12, each with one command."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..files import at_home
from ..training import cpu_tuning
from .options import CORPUS_HELP, MODEL_HELP

TEXT_MEGABYTES = 1.0  # of a corpus that is generated

Name = Annotated[
    str,
    typer.Argument(
        help="v4, v5, v6, v7, v8a, v8b, sweep_5, sweep_02, sweep_0, fresh, splice, "
        "splice_head, or all"
    ),
]
ModelName = Annotated[str, typer.Option(help=f"A chat model. {MODEL_HELP}")]
Seeds = Annotated[int, typer.Option(help="How often, with other rows each time")]
Text = Annotated[
    str, typer.Option(help="What the model was pretrained on: " + CORPUS_HELP)
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the record, runs/eval-NAME unless given; with `all` the folder "
        "that holds the records, runs unless given"
    ),
]


def eval_(
    name: Name,
    model: ModelName = "tilelli/nano-chat",
    seeds: Seeds = 3,
    text: Text = "stories",
    out: Out = None,
) -> None:
    """Does the router know what the model does not know? Trains a variant of a chat
    model, measures it, and writes a record. What is finished in the folder is not run
    again.
    """
    from ..data.corpus import prepare_corpus
    from ..evaluation.experiments import NAMES, load_experiment
    from ..evaluation.study import HELD_OUT_BYTES, Study
    from ..evaluation.teaching import Workshop
    from ..language_model import TilelliLM

    names = NAMES if name == "all" else (load_experiment(name).name,)
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}", "give 1 or more")
    cpu_tuning.use_free_cores()
    lm = TilelliLM.from_pretrained(model)
    studies = [Study(one, model, folder_of(one, name, out)) for one in names]
    shards = prepare_corpus(text, megabytes=TEXT_MEGABYTES)
    held_out = shards.val.read(HELD_OUT_BYTES)
    workshop = Workshop(lm, shards.train.read(int(TEXT_MEGABYTES * 1e6)))
    cpu_s = 0.0
    for study in studies:
        study.begin(lm, held_out, shards.describe())
        study.run(workshop, held_out, seeds, typer.echo)
        typer.echo(verdict_line(study))
        cpu_s += study.results["cpu_s"]
    typer.echo(f"{cpu_s / 60:.1f} CPU minutes for {len(studies)} records")


def folder_of(experiment: str, name: str, out: Path | None) -> Path:
    """Where the record of an experiment goes, when `name` was asked for."""
    own = f"eval-{experiment.replace('_', '-')}"
    if name == "all":
        return at_home(out or Path("runs")) / own
    return at_home(out or Path("runs") / own)


def verdict_line(study) -> str:
    """What the rule says of all seeds, in a line."""
    found = study.results["summary"]
    held = sum(found["holds"])
    return (
        f"{study.experiment.name}: the hypothesis holds with {held} of "
        f"{len(found['holds'])} seeds; most regimes won {found['most_regimes_won']} of "
        f"7; {study.out}"
    )
