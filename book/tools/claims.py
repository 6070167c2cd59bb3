"""What was claimed, what we measured, and the verdict: reads claims.yml and judges each
claim by its own rule.
"""

import json
import re
from functools import lru_cache
from pathlib import Path

import yaml

from pairs import ROOT

FILE = ROOT / "book" / "claims.yml"
KEYS = (
    "id",
    "claim",
    "source",
    "published",
    "unit",
    "ours",
    "rule",
    "tolerance",
    "verdict",
    "chapter",
)
VERDICTS = ("confirmed", "refuted", "not shown", "not tested")
CONFIRMED, REFUTED, NOT_SHOWN, UNTESTED = VERDICTS


def load(path: Path = FILE) -> list[dict]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def resolve(pointer: dict | None, root: Path = ROOT):
    """The number, or the interval {low, high}, that a pointer leads to; None without
    one. KeyError if it is broken.

    {run, key} reads book/runs/RUN/run.json, or another `file` there; {config, key:
    parameters} counts a configuration.
    """
    if pointer is None:
        return None
    if "config" in pointer:
        return parameters(pointer["config"])
    path = root / "book" / "runs" / pointer["run"] / pointer.get("file", "run.json")
    if not path.is_file():
        raise KeyError(f"there is no {path.relative_to(root).as_posix()}")
    value = json.loads(path.read_text(encoding="utf-8"))
    for name in pointer["key"].split("."):
        value = value[int(name) if isinstance(value, list) else name]
    return value


@lru_cache
def parameters(config: str) -> int:
    """Counts the parameters of a configuration."""
    from tilelli_nb import TilelliLM, load_config

    lm = TilelliLM(load_config(config))
    return sum(parameter.numel() for parameter in lm.parameters())


def within(ours, published, tolerance) -> str:
    """No further from the published number than `tolerance`, a share of it."""
    return CONFIRMED if abs(ours - published) <= tolerance * abs(published) else REFUTED


def at_most(ours, published, tolerance) -> str:
    """No more than the published number, with `tolerance`, a share of it, on top."""
    return CONFIRMED if ours <= published + tolerance * abs(published) else REFUTED


def at_least(ours, published, tolerance) -> str:
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


def covers(ours, published, tolerance) -> str:
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


def judge(claim: dict, root: Path = ROOT) -> str:
    """The verdict that the claim's own rule gives; "not tested" while there is no
    number of ours.
    """
    ours = resolve(claim["ours"], root)
    if ours is None:
        return UNTESTED
    rule = RULES[claim["rule"]]
    return rule(ours, claim["published"], claim["tolerance"])


def problems(claim: dict, root: Path = ROOT) -> list[str]:
    """What is wrong with one claim, in words."""
    name = claim.get("id", "a claim without id")
    missing = [key for key in KEYS if key not in claim]
    if missing:
        return [f"{name}: it has no {', '.join(missing)}"]
    found = []
    verdict, rule = claim["verdict"], claim["rule"]
    if verdict not in VERDICTS:
        found.append(f"{name}: {verdict!r} is none of {', '.join(VERDICTS)}")
    if rule not in RULES:
        found.append(f"{name}: the rule {rule!r} is none of {', '.join(RULES)}")
    if not (root / "book" / f"{claim['chapter']}.md").is_file():
        found.append(f"{name}: there is no chapter book/{claim['chapter']}.md")
    sources = (root / "book" / "references.bib").read_text(encoding="utf-8")
    if f"{{{claim['source']}," not in sources:  # @article{name,
        said = f"references.bib does not have its source {claim['source']}"
        found.append(f"{name}: {said}")
    if found:
        return found
    try:
        due = judge(claim, root)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return [f"{name}: its pointer or its rule cannot be followed: {error}"]
    if due != verdict:
        found.append(f"{name}: it says {verdict!r}, but its rule gives {due!r}")
    return found


def write_verdict(name: str, verdict: str, path: Path = FILE) -> bool:
    """Sets the verdict of one claim in place; everything else keeps its form. Says
    whether the file changed.
    """
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(
        rf"(^- id: {re.escape(name)}\n(?:(?!- id:).*\n)*?  verdict: ).*$", re.M
    )
    new, count = pattern.subn(rf"\g<1>{verdict}", text)
    if count != 1:
        raise KeyError(f"claims.yml has {count} claims called {name!r}")
    # then renamed, so that an interrupted write leaves the old file
    part = path.with_suffix(".partial")
    part.write_text(new, encoding="utf-8")
    part.replace(path)
    return new != text
