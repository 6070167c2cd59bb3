"""What the tests ask of the chapters and `build.py check` prints. Each function whose
name ends in _problems returns a list of what is wrong, in words.
"""

import difflib
import json
import math
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
# a page that can be read at one sitting
MAX_WORDS, MAX_CELLS = 3_000, 48
FOLDED = {"hide-input", "hide-cell", "remove-cell", "remove-input"}

# Folders that exist on one machine only. The look-behind lets URLs and relative paths
# through.
MACHINE_PATH = re.compile(
    r"(?<![\w./~-])/(?:home|root|Users|tmp|private|var/folders|mnt|opt|work|workspace)/[\w.-]+"
    r"|\b[A-Za-z]:\\\\?Users\b| at 0x[0-9a-f]{8,}"
)


def stamp_of(path: Path, nb=None) -> str:
    """The stamp that a notebook should carry, by the code and records of today."""
    if nb is None:
        nb = read_notebook(path)
    root = path.parent.parent
    return stamps.stamp(nb, root / "tilelli_nb", root / "book" / "runs")


def is_stale(path: Path) -> bool:
    """Are the notebook's outputs older than its code?"""
    nb = read_notebook(path)
    return nb.metadata.get("tilelli", {}).get("stamp") != stamp_of(path, nb)


def pair_problems(path: Path) -> list[str]:
    """The notebook says the same as its text in book/."""
    twin = twin_of(path)
    if not twin.exists():
        return [f"notebooks/{path.name} has no book/{twin.name}"]
    old = twin.read_text(encoding="utf-8").splitlines()
    new = text_form(read_notebook(path)).splitlines()
    if old == new:
        return []
    # the first line that differs; before it stand two lines with the files' names
    lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]
    first = next(line for line in lines if line.startswith(("+", "-")))
    return [
        f"{path.stem}: text and notebook differ, first at {first!r}: run `make sync`"
    ]


def run_problems(path: Path) -> list[str]:
    """Executed top to bottom, by the present code, without an error."""
    cells = []
    for cell in read_notebook(path).cells:
        skipped = "skip-execution" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and cell.source.strip() and not skipped:
            cells.append(cell)
    problems = []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        problems.append(
            f"{path.stem}: not executed from top to bottom: run `make execute`"
        )
    if is_stale(path):
        problems.append(
            f"{path.stem}: its outputs are older than its code: run `make execute`"
        )
    for i, cell in enumerate(cells, 1):
        failed = any(output.output_type == "error" for output in cell.outputs)
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
            for problem in markdown_alt_problems(cell.source):
                problems.append(f"{path.stem}: cell {i}: {problem}")
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if has_image(cell) and len(alt.strip()) < MIN_ALT:
            problems.append(
                f"{path.stem}: cell {i}: a figure needs mystnb.image.alt "
                f"of {MIN_ALT} characters or more"
            )
    return problems


def has_image(cell) -> bool:
    """Does the cell show a picture?"""
    for output in cell.get("outputs", []):
        if any(mime in output.get("data", {}) for mime in IMAGES):
            return True
    return False


def markdown_alt_problems(text: str) -> list[str]:
    """The pictures of a text without words, in each of the three ways to write one."""
    # code samples are not images
    text = re.sub(r"^(`{3,}|~{3,})(?!\{).*?^\1", "", text, flags=re.M | re.S)
    bare = re.findall(r"!\[\s*\]\([^)]*\)", text)
    for tag in re.findall(r"<img\b[^>]*>", text):
        if not re.search(r"\balt\s*=\s*[\"'][^\"']", tag):
            bare.append(tag)
    figure = re.compile(r"^[`:]{3,}\{(?:figure|image)\}.*?^[`:]{3,}", re.M | re.S)
    for directive in figure.findall(text):
        if not re.search(r"^:?alt:\s*\S", directive, re.M):
            bare.append(directive.splitlines()[0])
    return [f"no alternative text on {image}" for image in bare]


def size_problems(path: Path) -> list[str]:
    """The notebook is small enough for git."""
    size = path.stat().st_size
    if size <= MAX_BYTES:
        return []
    return [f"{path.stem}: {size:,} bytes, more than {MAX_BYTES:,}"]


def length_problems(path: Path) -> list[str]:
    """The page is short enough to be read at one sitting."""
    cells = read_notebook(path).cells
    text = [cell.source for cell in cells if cell.cell_type == "markdown"]
    word_count = len(" ".join(text).split())
    code_count = sum(cell.cell_type == "code" for cell in cells)
    if word_count <= MAX_WORDS and code_count <= MAX_CELLS:
        return []
    return [
        f"{path.stem}: {word_count:,} words and {code_count} code cells, more than "
        f"{MAX_WORDS:,} or {MAX_CELLS}: move what a reader may skip to "
        f"book/{path.stem}_deeper.md"
    ]


def reading_minutes(nb) -> int:
    """How long a page takes to read, rounded up to five minutes: 130 words or 12 lines
    of code that is not folded a minute.
    """
    word_count, line_count = 0, 0
    for cell in nb.cells:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if cell.cell_type == "markdown":
            word_count += len(cell.source.split())
        elif not FOLDED & set(cell.metadata.get("tags", [])):
            line_count += len(lines)
    return 5 * math.ceil((word_count / 130 + line_count / 12) / 5)


def reading_problems(path: Path) -> list[str]:
    """The page says how long it takes to read."""
    nb = read_notebook(path)
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    said = re.search(r"\*\*Reading\*\* (\d+) minutes", text)
    minutes = reading_minutes(nb)
    if said is None:
        return [f"{path.stem}: does not say **Reading** {minutes} minutes"]
    if int(said[1]) == minutes:
        return []
    return [f"{path.stem}: says {said[1]} minutes of reading, it takes {minutes}"]


def path_problems(path: Path) -> list[str]:
    """No output names a folder of the machine that ran it, nor an address in its
    memory.
    """
    nb = read_notebook(path)
    texts = [json.dumps(nb.metadata, ensure_ascii=False)]
    for cell in nb.cells:
        texts += [words(output) for output in cell.get("outputs", [])]
    here = [f"{folder}/" for folder in (ROOT, Path.home(), sys.prefix)]
    found = []
    for text in texts:
        found += MACHINE_PATH.findall(text)
        # a home in / is in every path
        found += [place for place in here if len(place) > 2 and place in text]
    return [
        f"{path.stem}: an output names {name!r}, which is of one machine only"
        for name in dict.fromkeys(found)
    ]


def words(output: dict) -> str:
    """An output as text, without its pictures' pixels."""
    parts = [output.get("text", ""), output.get("evalue", "")]
    parts += output.get("traceback", [])
    for mime, value in output.get("data", {}).items():
        if mime == "image/svg+xml" or mime not in IMAGES:
            parts.append(value if isinstance(value, str) else json.dumps(value))
    return "\n".join(parts)


def toc_files(root: Path = ROOT) -> list[str]:
    """The pages of the site in reading order, without suffix."""
    pages = []

    def walk(entry: dict) -> None:
        for key in ("root", "file"):
            if key in entry:
                pages.append(entry[key])
        for key in ("parts", "chapters", "sections"):
            for child in entry.get(key, []):
                walk(child)

    walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    return pages


def book_problems(root: Path = ROOT) -> list[str]:
    """What concerns the book as a whole: texts without a notebook, pages missing from
    or in vain in _toc.yml.
    """
    listed = toc_files(root)
    problems = []
    for twin in twins(root):
        if not notebook_of(twin).exists():
            problems.append(f"book/{twin.name} has no notebook: run `make sync`")
    for path in notebooks(root):
        if f"notebooks/{path.stem}" not in listed:
            problems.append(f"notebooks/{path.name} is not in _toc.yml")
    for page in listed:
        files = [root / f"{page}{suffix}" for suffix in (".ipynb", ".md")]
        if not any(file.exists() for file in files):
            problems.append(f"_toc.yml names {page}, which does not exist")
    return problems


CHECKS = (
    pair_problems,
    run_problems,
    alt_problems,
    size_problems,
    length_problems,
    reading_problems,
    path_problems,
    width_problems,
)
