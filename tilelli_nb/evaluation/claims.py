"""What has been claimed about Tilelli, and the verdict: read from book/claims.yml, and
judged by each claim's own rule (chapters 7 and 14).
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ..config import load_config
from ..language_model import TilelliLM
from ..storage.records import runs_folder

VERDICTS = ("confirmed", "refuted", "not shown", "not tested")
CONFIRMED, REFUTED, NOT_SHOWN, UNTESTED = VERDICTS


def load_claims(file: Path | None = None) -> list[dict[str, Any]]:
    """The claims of `file`, else of book/claims.yml, in its order. Raises DataError
    where there is no book.
    """
    file = file or runs_folder().parent / "claims.yml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


# A number


def follow(pointer: dict[str, str] | None, runs: Path | None = None) -> Any:
    """The number, or the interval {low, high}, that a claim's `ours` points to; None
    where it points nowhere. KeyError if it is broken.

    {run, key} reads run.json of that record (or another `file` there), in `runs`, else
    in book/runs; {config, key: parameters} counts the parameters of a configuration.
    """
    if pointer is None:
        return None
    if "config" in pointer:
        return parameters(pointer["config"])
    name = f"{pointer['run']}/{pointer.get('file', 'run.json')}"
    path = (runs or runs_folder()) / name
    if not path.is_file():
        raise KeyError(f"there is no {name} among the records")
    value = json.loads(path.read_text(encoding="utf-8"))
    for key in pointer["key"].split("."):
        value = value[int(key) if isinstance(value, list) else key]
    return value


@lru_cache
def parameters(config: str) -> int:
    """How many parameters a model of this configuration has."""
    lm = TilelliLM(load_config(config), draw=False)
    return sum(parameter.numel() for parameter in lm.parameters())


# A verdict


def within(ours: float, published: float, tolerance: float) -> str:
    """No further from the published number than `tolerance`, a share of it."""
    return CONFIRMED if abs(ours - published) <= tolerance * abs(published) else REFUTED


def at_most(ours: float, published: float, tolerance: float) -> str:
    """No more than the published number, with `tolerance`, a share of it, on top."""
    return CONFIRMED if ours <= published + tolerance * abs(published) else REFUTED


def at_least(ours: dict[str, Any], published: float | None, tolerance: float) -> str:
    """The whole 95% interval {low, high} must reach `tolerance`. One that lies below
    refutes a number that was published; where the bar is ours, the claim is merely not
    shown by this model. One on both sides of the bar does not show it either.

    A record may say that the claim does not apply: {low, high, applies: false}.
    """
    if not ours.get("applies", True):
        return UNTESTED
    if ours["low"] >= tolerance:
        return CONFIRMED
    is_excluded = ours["high"] < tolerance and published is not None
    return REFUTED if is_excluded else NOT_SHOWN


def covers(ours: dict[str, Any] | float, published: float, tolerance: float) -> str:
    """The 95% interval {low, high} of a smaller model, or its one number, must hold the
    published number, give or take `tolerance`. Where it does not, size may be why: the
    claim is not shown, and never refuted.
    """
    if not isinstance(ours, dict):
        ours = {"low": ours, "high": ours}
    is_inside = ours["low"] - tolerance <= published <= ours["high"] + tolerance
    return CONFIRMED if is_inside else NOT_SHOWN


RULES = {
    "within": within,
    "at_most": at_most,
    "at_least": at_least,
    "covers": covers,
}


def judge(claim: dict[str, Any], runs: Path | None = None) -> str:
    """The verdict that the claim's own rule gives; "not tested" while there is no
    number of ours.
    """
    ours = follow(claim["ours"], runs)
    if ours is None:
        return UNTESTED
    rule = RULES[claim["rule"]]
    return rule(ours, claim["published"], claim["tolerance"])
