"""Typed configuration, read from YAML. An unknown key or a value that cannot work is an
error with its fix.
"""

import difflib
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

FOLDER = Path(__file__).parent / "configs"

# The words that a key of text may have.
BLOCKS = ("routed", "vanilla")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16")
SCHEDULES = ("cosine", "wsd")


LARGEST_SEED = 2**62  # what follows from a seed must still fit into 64 bits


def require(condition: bool, problem: str, fix: str) -> None:
    """Raises ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(problem, fix)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Every field has its comment in configs/*.yaml."""

    d_model: int = 384  # width of the residual stream
    n_blocks: int = 6  # one after the other
    n_heads: int = 8  # each d_model / n_heads wide
    keep: int = 16  # keys that each query keeps
    conv_width: int = 5  # bytes, the present one included
    ffn_expand: int = 4  # hidden width, in units of d_model
    context: int = 256  # bytes that the model sees at once
    block: str = "routed"  # one of BLOCKS

    def __post_init__(self) -> None:
        require(
            self.block in BLOCKS,
            f"model.block = {self.block!r}",
            f"use one of {', '.join(BLOCKS)}",
        )
        for name, value in asdict(self).items():
            if name != "block":
                require(
                    value >= 1, f"model.{name} = {value}", "every size is at least 1"
                )
        require(
            self.d_model % self.n_heads == 0,
            f"d_model = {self.d_model} does not divide into {self.n_heads} heads",
            "choose a d_model that is a multiple of n_heads",
        )
        require(
            self.keep <= self.context,
            f"keep = {self.keep} keys of a context of {self.context} bytes",
            f"set keep to at most {self.context}",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Every field has its comment in configs/*.yaml."""

    steps: int = 50_000  # length of the schedule
    batch: int = 128  # sequences per step
    micro_batch: int = 16  # sequences at once
    optimizer: str = "adamw"  # one of OPTIMIZERS
    precision: str = "auto"  # one of PRECISIONS
    lr: float = 3e-4  # peak learning rate
    muon_lr: float = 0.02  # peak for Muon's matrices
    schedule: str = "cosine"  # one of SCHEDULES
    decay_ratio: float = 0.2  # wsd: share of the steps in which the rate falls
    min_lr_ratio: float = 0.1  # the cosine ends at this share of the peak
    warmup_ratio: float = 0.02  # share of the steps that warm up
    weight_decay: float = 0.01  # on the matrices alone
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0  # largest gradient norm
    balance_weight: float = 0.01  # of the router's balance loss
    text_weight: float = 1.0  # fine-tuning: of the loss on the text of the pretraining
    qk_scale: float = 1.0  # q and k are multiplied by this, once, before the first step
    seed: int = 0  # of the weights and of the batches
    log_every: int = 10  # steps
    eval_every: int = 500  # steps
    eval_bytes: int = 65_536  # held-out bytes of an evaluation
    checkpoint_every: int = 500  # steps
    checkpoint_minutes: float = 10.0  # and by the clock
    keep_checkpoints: int = 2  # how many of them stay

    def __post_init__(self) -> None:
        words = {
            "optimizer": OPTIMIZERS,
            "precision": PRECISIONS,
            "schedule": SCHEDULES,
        }
        above_zero = (
            "lr", "muon_lr", "qk_scale", "eps", "clip", "checkpoint_minutes"
        )  # fmt: skip
        zero_to_one = ("min_lr_ratio", "warmup_ratio", "decay_ratio")
        below_one = ("beta1", "beta2")
        zero_or_more = ("weight_decay", "balance_weight", "text_weight")
        for name, value in asdict(self).items():
            if name in words:
                is_right = value in words[name]
                fix = f"use one of {', '.join(words[name])}"
            elif name in above_zero:
                is_right = value > 0
                fix = "set it above 0"
            elif name in zero_to_one:
                is_right = 0 <= value <= 1
                fix = "set it between 0 and 1"
            elif name in below_one:
                is_right = 0 <= value < 1
                fix = "set it to 0 or more, below 1"
            elif name == "seed":
                is_right = 0 <= value <= LARGEST_SEED
                fix = "set it to 0 or more, up to 2**62"
            elif name in zero_or_more:
                is_right = value >= 0
                fix = "set it to 0 or more"
            else:  # steps, sizes and counts
                is_right = value >= 1
                fix = "set it to 1 or more"
            if isinstance(value, float) and not value < math.inf:
                is_right, fix = False, "give a finite number"
            require(is_right, f"train.{name} = {value!r}", fix)


@dataclass(frozen=True)
class Config:
    """A model's shape and its training, under one name."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def with_train(self, **changes: Any) -> "Config":
        """The same configuration with some training values changed; the values are
        checked as in a file.
        """
        values = typed_values(changes, TrainConfig, "train")
        return replace(self, train=replace(self.train, **values))

    def with_model(self, **changes: Any) -> "Config":
        """The same configuration with some of the model's sizes changed."""
        values = typed_values(changes, ModelConfig, "model")
        return replace(self, model=replace(self.model, **values))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, as in the YAML file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of to_dict; what is not given has its default. Raises
        ConfigError.
        """
        kinds = {"name": str, "model": dict, "train": dict}
        for key, value in mapping(values, "the configuration").items():
            check_key(key, kinds, "")
            require(
                # a section that is left empty is None in YAML
                value is None or isinstance(value, kinds[key]),
                f"{key} = {value!r} is not a {kinds[key].__name__}",
                "see configs/nano.yaml for the shape of a configuration",
            )
        model = typed_values(values.get("model") or {}, ModelConfig, "model")
        train = typed_values(values.get("train") or {}, TrainConfig, "train")
        return cls(
            name=values.get("name") or "unnamed",
            model=ModelConfig(**model),
            train=TrainConfig(**train),
        )


def config_names() -> list[str]:
    """The configurations that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_config(name_or_path: str | Path) -> Config:
    """Reads a configuration of the package ("nano", "lite_10m", "vanilla_10m") or a
    YAML file. Raises ConfigError.
    """
    name = str(name_or_path)
    known = config_names()
    path = FOLDER / f"{name}.yaml" if name in known else Path(os.path.expanduser(name))
    if not os.path.isfile(path):  # False also for what can be no path
        guess = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {guess[0]!r}? " if guess else ""
        raise ConfigError(
            f"there is no configuration {name[:60]!r}",
            f"{hint}use one of {', '.join(known)} or a .yaml file",
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path.name}: {error.strerror}", "check its permissions"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path.name} is not YAML{where}",
            "write one `key: value` a line, indented by two spaces",
        ) from None
    values = mapping(values or {}, path.name)  # an empty file is all defaults
    return Config.from_dict({"name": path.stem, **values})


def typed_values(values: dict[str, Any], cls: type, section: str) -> dict[str, Any]:
    """The values with the types of the dataclass: ints stay ints, floats also take ints
    and text such as 3e-4. Raises ConfigError.
    """
    types = {each.name: each.type for each in fields(cls)}
    typed = {}
    for key, value in mapping(values, section).items():
        check_key(key, types, f"{section}.")
        wanted = types[key]
        # to Python, True is an int; numpy has integers and floats of its own
        if isinstance(value, Integral) and not isinstance(value, bool):
            value = int(value)
        elif isinstance(value, Real) and not isinstance(value, bool):
            value = float(value)
        is_number = isinstance(value, (int, str)) and not isinstance(value, bool)
        if wanted is float and is_number:
            with suppress(ValueError):
                value = float(value)  # YAML 1.1 reads 3e-4 as text
        article = "an" if wanted is int else "a"
        require(
            type(value) is wanted,
            f"{section}.{key} = {value!r} is a {type(value).__name__}",
            f"give {article} {wanted.__name__}",
        )
        typed[key] = value
    return typed


def check_key(key: str, known: dict[str, Any], prefix: str) -> None:
    """Raises ConfigError for a key that is not known, with the nearest that is."""
    if key in known:
        return
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    if near:
        fix = f"did you mean {prefix}{near[0]}?"
    else:
        fix = f"the keys here are {', '.join(known)}"
    raise ConfigError(f"unknown configuration key {prefix}{key}", fix)


def mapping(values: Any, where: str) -> dict[str, Any]:
    """The values, if they are keys and values at all. Raises ConfigError."""
    require(
        isinstance(values, dict),
        f"{where} holds {type(values).__name__}, not keys and values",
        "write `key: value` lines",
    )
    return values
