"""What the tests ask of the chapters and `tools.py check` prints. Each function returns
a list of problems.
"""

import difflib
import json
import re
import sys
from pathlib import Path

import yaml

import stamps
from pairs import ROOT, notebook_of, notebooks, read_notebook, text_form, twin_of, twins
from widths import width_problems

IMAGES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")
MAX_BYTES = 500_000
MIN_ALT = 20

# Folders that exist on one machine only. The look-behind lets URLs and relative paths
# through.
MACHINE_PATH = re.compile(
    r"(?<![\w./~-])/(?:home|root|Users|tmp|private|var/folders|mnt|opt|work|workspace)/[\w.-]+"
    r"|\b[A-Za-z]:\\\\?Users\b| at 0x[0-9a-f]{8,}"
)


def stamp_of(path: Path, nb=None) -> str:
    root = path.parent.parent
    return stamps.stamp(
        nb or read_notebook(path), root / "tilelli_nb", root / "book" / "runs"
    )


def is_stale(path: Path) -> bool:
    nb = read_notebook(path)
    return nb.metadata.get("tilelli", {}).get("stamp") != stamp_of(path, nb)


def pair_problems(path: Path) -> list[str]:
    twin = twin_of(path)
    if not twin.exists():
        return [f"notebooks/{path.name} has no book/{twin.name}"]
    old, new = (
        twin.read_text(encoding="utf-8").splitlines(),
        text_form(read_notebook(path)).splitlines(),
    )
    if old == new:
        return []
    first = next(
        line
        for line in difflib.unified_diff(old, new, lineterm="", n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    )
    return [
        f"{path.stem}: text and notebook differ, first at {first!r}: run `make sync`"
    ]


def run_problems(path: Path) -> list[str]:
    """Executed top to bottom, by the present code, without an error."""
    nb = read_notebook(path)
    cells = [
        c
        for c in nb.cells
        if c.cell_type == "code"
        and c.source.strip()
        and "skip-execution" not in c.metadata.get("tags", [])
    ]
    problems = []
    if [c.execution_count for c in cells] != list(range(1, len(cells) + 1)):
        problems.append(f"{path.stem}: not executed from top to bottom: run `make run`")
    if is_stale(path):
        problems.append(
            f"{path.stem}: its outputs are older than its code: run `make run`"
        )
    for i, cell in enumerate(cells, 1):
        failed = any(o.output_type == "error" for o in cell.outputs)
        if failed and "raises-exception" not in cell.metadata.get("tags", []):
            problems.append(f"{path.stem}: code cell {i} raised an error")
    return problems


def alt_problems(path: Path) -> list[str]:
    """Every image says in words what it shows: in the cell's metadata for outputs, in
    the text for the others.
    """
    problems = []
    for i, cell in enumerate(read_notebook(path).cells):
        if cell.cell_type == "markdown":
            problems += [
                f"{path.stem}: cell {i}: {problem}"
                for problem in markdown_alt_problems(cell.source)
            ]
            continue
        shown = any(
            mime in output.get("data", {})
            for output in cell.get("outputs", [])
            for mime in IMAGES
        )
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if shown and len(alt.strip()) < MIN_ALT:
            problems.append(
                f"{path.stem}: cell {i}: a figure needs mystnb.image.alt of {MIN_ALT} characters or more"
            )
    return problems


def markdown_alt_problems(text: str) -> list[str]:
    # code samples are not images
    text = re.sub(r"^(`{3,}|~{3,})(?!\{).*?^\1", "", text, flags=re.M | re.S)
    bare = [m.group() for m in re.finditer(r"!\[\s*\]\([^)]*\)", text)]
    bare += [
        tag
        for tag in re.findall(r"<img\b[^>]*>", text)
        if not re.search(r"\balt\s*=\s*[\"'][^\"']", tag)
    ]
    figures = re.finditer(
        r"^[`:]{3,}\{(?:figure|image)\}.*?^[`:]{3,}", text, re.M | re.S
    )
    bare += [
        m.group().splitlines()[0]
        for m in figures
        if not re.search(r"^:?alt:\s*\S", m.group(), re.M)
    ]
    return [f"no alternative text on {image}" for image in bare]


def size_problems(path: Path) -> list[str]:
    size = path.stat().st_size
    return (
        [f"{path.stem}: {size:,} bytes, more than {MAX_BYTES:,}"]
        if size > MAX_BYTES
        else []
    )


def path_problems(path: Path) -> list[str]:
    """No output names a folder of the machine that ran it, nor an address in its
    memory.
    """
    nb = read_notebook(path)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    texts = [*map(words, outputs), json.dumps(nb.metadata, ensure_ascii=False)]
    here = [str(ROOT) + "/", str(Path.home()) + "/", sys.prefix + "/"]
    found = [m.group() for text in texts for m in MACHINE_PATH.finditer(text)]
    found += [
        place
        for place in here
        if len(place) > 2 and any(place in text for text in texts)
    ]
    return [
        f"{path.stem}: an output names {name!r}, which is of one machine only"
        for name in dict.fromkeys(found)
    ]


def words(output: dict) -> str:
    """An output as text, without its pictures' pixels."""
    data = {
        mime: value
        for mime, value in output.get("data", {}).items()
        if mime not in IMAGES[:3]
    }
    rest = [
        output.get("text", ""),
        output.get("evalue", ""),
        *output.get("traceback", []),
    ]
    return "\n".join(
        [*rest, *(v if isinstance(v, str) else json.dumps(v) for v in data.values())]
    )


def toc_files(root: Path = ROOT) -> list[str]:
    """The pages of the site in reading order, without suffix."""

    def walk(entry):
        yield from (entry[k] for k in ("root", "file") if k in entry)
        for key in ("parts", "chapters", "sections"):
            for child in entry.get(key, []):
                yield from walk(child)

    return list(walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))


def book_problems(root: Path = ROOT) -> list[str]:
    """What concerns the book as a whole: texts without a notebook, pages missing from
    or in vain in _toc.yml.
    """
    listed, made = (
        toc_files(root),
        [f"notebooks/{path.stem}" for path in notebooks(root)],
    )
    problems = [
        f"book/{twin.name} has no notebook: run `make sync`"
        for twin in twins(root)
        if not notebook_of(twin).exists()
    ]
    problems += [
        f"{page}.ipynb is not in _toc.yml" for page in made if page not in listed
    ]
    problems += [
        f"_toc.yml names {page}, which does not exist"
        for page in listed
        if not any((root / f"{page}{suffix}").exists() for suffix in (".ipynb", ".md"))
    ]
    return problems


CHECKS = (
    pair_problems,
    run_problems,
    alt_problems,
    size_problems,
    path_problems,
    width_problems,
)
