"""A study: a YAML file that says which arms are trained, on how much text, with which
seeds, and what each is compared with.

    name: parts               # the records go to book/runs/lab-parts
    question: ...             # what it is to answer, in words
    config: nano              # what every arm begins with
    settings: {lr: 6.0e-3}    # and changes; keys of `model` or `train`
    bytes: 327680             # that each run reads; the steps follow from the batch
    seeds: [1, 2, 3]          # of the weights and of the batches: arms share both
    evaluations: 1            # of the held-out text, in the course of a run
    base: full                # the arm that the others build on and are compared with
    tune: {lr: [...], seed: 0}  # the base (without one: every arm) takes its best value
    arms:
      full: {}
      no-conv: {variant: no-conv}         # see lab_variants.py
      muon: {optimizer: muon, tune: {...}}  # an arm that is tuned by itself
      vanilla: {block: vanilla, against: lite}  # compared with another than the base
    factors:                  # short for arms: keep-1, keep-2 ...; one thing at a time
      keep: [1, 2, 4]
    together: best            # last an arm with the best level of each factor that helped
    target: reference         # when does each arm reach the last loss of this one?
    claims:                   # what claims.yml points at: the first arm minus the second
      ternary-price: [full, fp32-ffn]
"""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lab_variants import VARIANTS
from tilelli_nb.config import (
    Config,
    ModelConfig,
    TrainConfig,
    check_key,
    load_config,
    mapping,
    require,
)

STUDIES = Path(__file__).parent / "studies"
OF_MODEL = {each.name for each in fields(ModelConfig)}
OF_TRAIN = {each.name for each in fields(TrainConfig)}


@dataclass(frozen=True)
class Tuning:
    """Which values of one setting are tried, with a seed that no result is taken
    from.
    """

    key: str
    values: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Arm:
    """One way to train: what it changes, and what it is compared with."""

    name: str
    changes: dict[str, Any]
    variants: tuple[str, ...] = ()
    against: str | None = None
    tuning: Tuning | None = None
    factor: str | None = None  # what it is a level of
    builds_on: str | None = None  # the arm whose settings, tuned ones too, it takes


@dataclass(frozen=True)
class Job:
    """One run to make: an arm with a seed."""

    study: str
    name: str
    arm: str
    config: Config
    variants: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What a file says, checked."""

    name: str
    question: str
    config: str
    settings: dict[str, Any]
    bytes: int
    seeds: tuple[int, ...]
    evaluations: int
    base: str | None
    arms: tuple[Arm, ...]
    together: str | None
    target: str | None
    claims: dict[str, tuple[str, str]]

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)


def load_study(path: str | Path) -> Study:
    """Reads a study by its name or its file. Raises ConfigError."""
    known = sorted(each.stem for each in STUDIES.glob("*.yaml"))
    path = STUDIES / f"{path}.yaml" if str(path) in known else Path(path)
    require(
        path.is_file(),
        f"there is no study {path.stem!r}",
        f"use one of {', '.join(known)}, or a .yaml file",
    )
    values = mapping(yaml.safe_load(path.read_text(encoding="utf-8")), path.name)
    keys = {each.name: each for each in fields(Study)} | {"factors": 1, "tune": 1}
    for key in values:
        check_key(key, keys, "")
    check_form(values, path)
    base = values.get("base")
    arms = [
        read_arm(name, about or {}, base, values.get("tune"))
        for name, about in values["arms"].items()
    ]
    for factor, levels in values.get("factors", {}).items():
        arms += levels_of(factor, levels, base)
    study = Study(
        name=values.get("name", path.stem),
        question=values["question"],
        config=values.get("config", "nano"),
        settings=values.get("settings", {}),
        bytes=values["bytes"],
        seeds=tuple(values["seeds"]),
        evaluations=values.get("evaluations", 1),
        base=base,
        arms=tuple(arms),
        together=values.get("together"),
        target=values.get("target"),
        claims={name: tuple(two) for name, two in values.get("claims", {}).items()},
    )
    check(study)
    return study


def check_form(values: dict[str, Any], path: Path) -> None:
    """Raises ConfigError for what is missing, or written in another way than above."""
    for key in ("question", "bytes", "seeds", "arms"):
        require(
            key in values, f"{path.name} has no {key}", "add it; lab_study.py shows how"
        )
    for key in ("arms", "factors", "settings", "claims"):
        mapping(values.get(key, {}), f"{key} of {path.name}")
    for name, about in values["arms"].items():
        mapping(about or {}, f"the arm {name}")
        check_tuning((about or {}).get("tune"), f"tune of the arm {name}")
    check_tuning(values.get("tune"), f"tune of {path.name}")
    for factor, levels in values.get("factors", {}).items():
        require(
            isinstance(levels, list | dict),
            f"the factor {factor} is {levels!r}",
            f"list its levels: {factor}: [{levels}]",
        )
    seeds = values["seeds"]
    require(
        isinstance(seeds, list) and seeds and all(isinstance(s, int) for s in seeds),
        f"seeds = {seeds!r}",
        "list one whole number or more: seeds: [1, 2, 3]",
    )
    name = values.get("name", path.stem)
    require(
        bool(re.fullmatch(r"[\w-]+", str(name))),
        f"name = {name!r}",
        "it names folders: take letters, digits and -",
    )


def check_tuning(tune: Any, where: str) -> None:
    """Raises ConfigError unless `tune` is None, or one setting with its values."""
    if tune is None:
        return
    settings = [key for key in mapping(tune, where) if key != "seed"]
    require(
        len(settings) == 1 and isinstance(tune[settings[0]], list),
        f"{where} is {tune!r}",
        "name one setting and list its values: {lr: [1.0e-3, 3.0e-3], seed: 0}",
    )


def read_arm(name: str, about: dict, base: str | None, tune: dict | None) -> Arm:
    """An arm of the file. With a base the others build on it and only it is tuned."""
    changes = dict(about)
    variants = changes.pop("variant", ())
    against = changes.pop("against", base)
    builds_on = None if base in (None, name) else base
    own = changes.pop("tune", None if builds_on else tune)
    return Arm(
        name=name,
        changes=changes,
        variants=(variants,) if isinstance(variants, str) else tuple(variants),
        against=None if against == name else against,
        tuning=read_tuning(own),
        builds_on=builds_on,
    )


def read_tuning(tune: dict | None) -> Tuning | None:
    """`{lr: [...], seed: 0}` in the form of the program."""
    if tune is None:
        return None
    values = dict(tune)
    seed = values.pop("seed", 0)
    [(key, tried)] = values.items()
    return Tuning(key, tuple(map(float, tried)), seed)


def levels_of(factor: str, levels: list | dict, base: str | None) -> list[Arm]:
    """`keep: [1, 2]` or `schedule: {cosine: {...}}` as arms."""
    if isinstance(levels, list) and factor == "variant":
        levels = {level: {"variant": level} for level in levels}
    elif isinstance(levels, list):
        levels = {f"{factor}-{word_of(level)}": {factor: level} for level in levels}
    arms = [read_arm(name, about, base, None) for name, about in levels.items()]
    return [replace(arm, factor=factor) for arm in arms]


def word_of(level: Any) -> str:
    """A level in the name of its arm: 0.1 of 1.0e-1, cosine of cosine."""
    return f"{level:g}" if isinstance(level, int | float) else str(level)


def check(study: Study) -> None:
    """Raises ConfigError for names that do not exist and settings that cannot be."""
    names = [arm.name for arm in study.arms]
    require(
        len(set(names)) == len(names),
        f"{study.name} has an arm twice",
        "give each a name of its own",
    )
    pointed = [study.base, study.target, *(arm.against for arm in study.arms)]
    pointed += [name for two in study.claims.values() for name in two]
    for name in pointed:
        require(
            name in (None, *names),
            f"{study.name} has no arm {name!r}",
            f"its arms are {', '.join(names)}",
        )
    for arm in study.arms:
        for variant in arm.variants:
            check_key(variant, dict.fromkeys(VARIANTS), "variant ")
        if arm.tuning:
            require(
                arm.tuning.seed not in study.seeds,
                f"{arm.name} is tuned with seed {arm.tuning.seed}, which counts too",
                "tune with a seed that no result is taken from",
            )
        config_of(study, arm, study.seeds[0], {})  # every key is known and possible


def config_of(study: Study, arm: Arm, seed: int, tuned: dict[str, dict]) -> Config:
    """The configuration of a run. `tuned` has the best values found, by arm; the steps
    follow from the bytes, so that arms with other batches read as many.
    """
    changes = dict(study.settings)
    if arm.builds_on:
        changes |= study.arm(arm.builds_on).changes | tuned.get(arm.builds_on, {})
    changes |= arm.changes | tuned.get(arm.name, {})
    for key in changes:
        check_key(key, dict.fromkeys([*OF_MODEL, *OF_TRAIN]), "")
    config = load_config(study.config).with_model(
        **{key: value for key, value in changes.items() if key in OF_MODEL}
    )
    config = config.with_train(
        **{key: value for key, value in changes.items() if key in OF_TRAIN}
    )
    batch = config.train.batch
    steps = study.bytes // (batch * config.model.context)
    every = max(1, -(-steps // study.evaluations))  # rounded up
    return config.with_train(
        seed=seed,
        steps=steps,
        micro_batch=changes.get("micro_batch", batch),
        log_every=steps,
        eval_every=every,
        eval_bytes=2**20,  # as much as the last evaluation reads
        checkpoint_every=steps,  # a run of a minute begins anew
    )


def tuning_jobs(study: Study) -> list[Job]:
    """The runs that choose a value for each arm that is tuned."""
    jobs = []
    for arm in study.arms:
        for value in arm.tuning.values if arm.tuning else ():
            key, seed = arm.tuning.key, arm.tuning.seed
            config = config_of(study, arm, seed, {arm.name: {key: value}})
            name = f"{arm.name}-{key}{value:g}-s{seed}"
            jobs.append(Job(study.name, name, arm.name, config, arm.variants))
    return jobs


def jobs_of(study: Study, arm: Arm, tuned: dict[str, dict]) -> list[Job]:
    """The runs of an arm that count."""
    return [
        Job(
            study.name,
            f"{arm.name}-s{seed}",
            arm.name,
            config_of(study, arm, seed, tuned),
            arm.variants,
        )
        for seed in study.seeds
    ]
