"""Typed configuration, read from YAML. An unknown key or a value that cannot work is an
error with its fix.
"""

import difflib
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

FOLDER = Path(__file__).parent / "configs"


BLOCKS = ("routed", "vanilla")


OPTIMIZERS = ("adamw", "muon")


PRECISIONS = ("auto", "fp32", "bf16")


SCHEDULES = ("cosine", "wsd")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. Every field has its comment in configs/*.yaml."""

    d_model: int = 384
    n_blocks: int = 6
    n_heads: int = 8
    keep: int = 16
    conv_width: int = 5
    ffn_expand: int = 4
    context: int = 256
    block: str = "routed"

    def __post_init__(self) -> None:
        require(
            self.block in BLOCKS,
            f"model.block = {self.block!r}",
            f"use one of {', '.join(BLOCKS)}",
        )
        for name, value in asdict(self).items():
            require(
                name == "block" or value >= 1,
                f"model.{name} = {value}",
                "every size is at least 1",
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

    steps: int = 50_000
    batch: int = 128
    micro_batch: int = 16
    optimizer: str = "adamw"
    precision: str = "auto"
    lr: float = 3e-4
    muon_lr: float = 0.02
    schedule: str = "cosine"
    decay_ratio: float = 0.2
    min_lr_ratio: float = 0.1
    warmup_ratio: float = 0.02
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    balance_weight: float = 0.01
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    eval_bytes: int = 65_536
    checkpoint_every: int = 500
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch",
            "micro_batch",
            "log_every",
            "eval_every",
            "eval_bytes",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            require(
                getattr(self, name) >= 1,
                f"train.{name} = {getattr(self, name)}",
                "set it to 1 or more",
            )
        for name, words in (
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
            ("schedule", SCHEDULES),
        ):
            require(
                getattr(self, name) in words,
                f"train.{name} = {getattr(self, name)!r}",
                f"use one of {', '.join(words)}",
            )
        for name in ("lr", "muon_lr", "eps", "clip", "checkpoint_minutes"):
            require(
                getattr(self, name) > 0,
                f"train.{name} = {getattr(self, name)}",
                "set it above 0",
            )
        for name in ("min_lr_ratio", "warmup_ratio", "decay_ratio", "beta1", "beta2"):
            require(
                0 <= getattr(self, name) <= 1,
                f"train.{name} = {getattr(self, name)}",
                "set it between 0 and 1",
            )
        for name in ("weight_decay", "balance_weight", "seed"):
            require(
                getattr(self, name) >= 0,
                f"train.{name} = {getattr(self, name)}",
                "set it to 0 or more",
            )


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
        return replace(
            self, train=replace(self.train, **checked(changes, TrainConfig, "train"))
        )

    def with_model(self, **changes: Any) -> "Config":
        """The same configuration with some of the model's sizes changed."""
        return replace(
            self, model=replace(self.model, **checked(changes, ModelConfig, "model"))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, as in the YAML file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The inverse of to_dict. Raises ConfigError."""
        sections = {"name": str, "model": dict, "train": dict}
        for key, value in mapping(values, "the configuration").items():
            nearest(key, sections, "")
            require(
                value is None or isinstance(value, sections[key]),
                f"{key} = {value!r} is not a {sections[key].__name__}",
                "see configs/nano.yaml for the shape of a configuration",
            )
        return cls(
            name=values.get("name") or "unnamed",
            model=ModelConfig(
                **checked(values.get("model") or {}, ModelConfig, "model")
            ),
            train=TrainConfig(
                **checked(values.get("train") or {}, TrainConfig, "train")
            ),
        )


def load_config(name_or_path: str | Path) -> Config:
    """A configuration of the package ("nano", "lite_10m", "vanilla_10m") or a YAML
    file. Raises ConfigError.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    path = (
        FOLDER / f"{name_or_path}.yaml"
        if str(name_or_path) in known
        else Path(name_or_path)
    )
    if not path.is_file():
        guess = difflib.get_close_matches(str(name_or_path), known, n=1)
        raise ConfigError(
            f"there is no configuration {str(name_or_path)!r}",
            (f"did you mean {guess[0]!r}? " if guess else "")
            + f"use one of {', '.join(known)} or a .yaml file",
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"{path.name} is not YAML{f', line {place.line + 1}' if place else ''}",
            "write one `key: value` a line, indented by two spaces",
        ) from None
    values = mapping(values or {}, path.name)
    return Config.from_dict({"name": path.stem, **values})


def checked(values: dict[str, Any], cls: type, section: str) -> dict[str, Any]:
    """The values with the types of the dataclass: ints stay ints, floats also take ints
    and text such as 3e-4.
    """
    types = {f.name: f.type for f in fields(cls)}
    out = {}
    for key, value in mapping(values, section).items():
        nearest(key, types, f"{section}.")
        if (
            types[key] is float
            and isinstance(value, (int, str))
            and not isinstance(value, bool)
        ):
            with suppress(ValueError):
                value = float(value)  # YAML 1.1 reads 3e-4 as text
        require(
            type(value) is types[key],
            f"{section}.{key} = {value!r} is a {type(value).__name__}",
            f"give a{'n' if types[key] is int else ''} {types[key].__name__}",
        )
        out[key] = value
    return out


def nearest(key: str, known: Any, prefix: str) -> None:
    """Raises ConfigError for a key that is not known, with the nearest that is."""
    guess = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.5)
    require(
        key in known,
        f"unknown configuration key {prefix}{key}",
        f"did you mean {prefix}{guess[0]}?"
        if guess
        else f"the keys here are {', '.join(known)}",
    )


def mapping(values: Any, where: str) -> dict[str, Any]:
    """The values, if they are keys and values at all. Raises ConfigError."""
    require(
        isinstance(values, dict),
        f"{where} holds {type(values).__name__}, not keys and values",
        "write `key: value` lines",
    )
    return values


def require(condition: bool, problem: str, fix: str) -> None:
    """Raises ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(problem, fix)
