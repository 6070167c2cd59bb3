"""Checks book/claims.yml, and writes verdicts into it. How a claim is judged is in
tilelli_nb/evaluation/claims.py.
"""

import re
from pathlib import Path

from pairs import ROOT
from tilelli_nb.evaluation.claims import RULES, VERDICTS, judge

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
        due = judge(claim, root / "book" / "runs")
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
