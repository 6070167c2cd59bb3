"""The experiments of chapter 12, each a few lines in experiments/: what is trained, on
what, and what for.
"""

import difflib
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import yaml

from ..config import typed_values
from ..errors import ConfigError
from .lessons import LESSONS, TWO_SIDED

# the order in which `tilelli eval all` runs them
NAMES = (
    "v4",
    "v5",
    "v6",
    "v7",
    "v8a",
    "v8b",
    "sweep_5",
    "sweep_02",
    "sweep_0",
    "fresh",
    "splice",
    "splice_head",
)
SWEEP = ("v7", "sweep_5", "v8a", "sweep_02", "sweep_0")  # entropy weights 20 to 0
TRAINS = ("nothing", "router", "router and head", "all")


@dataclass(frozen=True)
class Experiment:
    """What is done to a chat model before it is measured."""

    name: str
    says: str = ""  # in a sentence
    published: str = ""  # what came out, in the original's words or numbers
    trains: str = "nothing"  # one of TRAINS
    data: str = "semantic"  # one of LESSONS
    cross_entropy: float = 0.0  # weights of the losses
    entropy: float = 0.0
    abstain: float = 0.0
    steps: int = 160
    batch: int = 32  # rows of each side
    lr: float = 0.01
    # a splice trains nothing of its own; "" is the model as it came
    router_from: str = ""
    head_from: str = ""
    rest_from: str = ""

    @property
    def is_splice(self) -> bool:
        """Whether it is put together from parts of other experiments."""
        return bool(self.router_from or self.head_from or self.rest_from)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a record."""
        return asdict(self)


def load_experiment(name: str) -> Experiment:
    """One of NAMES. Raises ConfigError for another name."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"there is no experiment {name[:60]!r}",
            f"{guess}use one of {', '.join(NAMES)}, or all",
        )
    file = resources.files(__package__) / "experiments" / f"{name}.yaml"
    return read_experiment(name, yaml.safe_load(file.read_text(encoding="utf-8")))


def read_experiment(name: str, values: dict[str, Any]) -> Experiment:
    """An experiment from keys and values. Raises ConfigError for a key that is not
    known, a value of another kind, or settings that make no sense together.
    """
    values = typed_values(values, Experiment, f"experiment {name}")
    experiment = Experiment(**{"name": name, **values})
    for wrong, problem, fix in problems(experiment):
        if wrong:
            raise ConfigError(f"experiment {name}: {problem}", fix)
    return experiment


def problems(e: Experiment) -> list[tuple[bool, str, str]]:
    """What could be wrong with an experiment: whether it is, and in words."""
    weights = (e.cross_entropy, e.entropy, e.abstain)
    is_trained = e.trains != "nothing"
    return [
        (e.trains not in TRAINS, f"trains {e.trains!r}", f"use {', '.join(TRAINS)}"),
        (e.data not in LESSONS, f"data {e.data!r}", f"use {', '.join(LESSONS)}"),
        (min(weights) < 0, "a loss has a weight below 0", "use 0 or more"),
        (
            min(e.steps, e.batch) < 1 or e.lr <= 0,
            "it has no steps, no rows or no learning rate",
            "use at least 1 step and 1 row, and a rate above 0",
        ),
        (
            e.is_splice and (is_trained or any(weights)),
            "a splice trains nothing of its own",
            "leave out either the training or what is taken from others",
        ),
        (
            is_trained != any(weights),
            "it trains something for no loss, or has a loss and trains nothing",
            "give `trains`, and a weight above 0 for at least one loss",
        ),
        (
            (e.abstain > 0) != (e.trains == "router and head"),
            "the abstain loss and the head belong together",
            "give `abstain` a weight where the head is trained, and nowhere else",
        ),
        (
            (e.entropy > 0 or e.abstain > 0) and e.data not in TWO_SIDED,
            f"its losses compare two sides, and {e.data} has one",
            f"use the data {' or '.join(TWO_SIDED)}",
        ),
    ]
