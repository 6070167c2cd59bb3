"""A chapter is a pair: book/NN_name.md, the text that people edit, and
notebooks/NN_name.ipynb, the page with outputs.

What links the two: reading and writing, `sync`, which carries the text into the
notebook, and `adopt`, which carries a notebook into its text. Neither discards what
somebody wrote: a notebook notes what both said when they last agreed.
"""

import difflib
import hashlib
import json
from pathlib import Path

import jupytext
import nbformat
from jupytext.config import load_jupytext_config

ROOT = Path(__file__).resolve().parents[2]
# The metadata of every notebook. No version of Python: it would change with every
# machine.
HEADER = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
FORMAT = {"extension": ".md", "format_name": "myst"}


class WouldDiscard(Exception):
    """Carrying one half of a chapter into the other would lose what somebody wrote."""


def notebooks(root: Path = ROOT) -> list[Path]:
    return sorted((root / "notebooks").glob("*.ipynb"))


def twins(root: Path = ROOT) -> list[Path]:
    """The chapters' texts: NN_name.md. Other Markdown files in book/ are pages that do
    not run.
    """
    return sorted((root / "book").glob("[0-9][0-9]_*.md"))


def is_deeper(page: Path) -> bool:
    """Is it a page beside a chapter, which its reader may skip?"""
    return page.stem.endswith("_deeper")


def twin_of(notebook: Path) -> Path:
    return notebook.parent.parent / "book" / f"{notebook.stem}.md"


def notebook_of(twin: Path) -> Path:
    return twin.parent.parent / "notebooks" / f"{twin.stem}.ipynb"


def read_notebook(path: Path):
    return nbformat.read(path, as_version=4)


def read_twin(twin: Path):
    """The text as a notebook without outputs; its solutions are folded in JupyterLab
    too.
    """
    nb = jupytext.read(twin, fmt=FORMAT)
    for cell in nb.cells:
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True}
    return nb


def write_notebook(nb, path: Path) -> None:
    """Validates, then takes the place of the old notebook."""
    nbformat.validate(nb)
    replace_text(path, nbformat.writes(nb) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes beside, then renames: an interrupted write leaves the old file."""
    part = path.with_suffix(".partial")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def text_form(nb) -> str:
    """The notebook as MyST Markdown, with the filters of pyproject.toml: what its twin
    must be.
    """
    fmt = dict(FORMAT)
    config = load_jupytext_config(str(ROOT / "notebooks" / "any.ipynb"))
    config.set_default_format_options(fmt)
    # metadata in the order in which a file has them
    as_stored = nbformat.reads(nbformat.writes(nb), as_version=4)
    return jupytext.writes(as_stored, fmt)


def fingerprint(nb) -> str:
    """A hash of what people write in a notebook: cells and their tags, without outputs.
    Blank cells do not count: JupyterLab adds one at the end.
    """
    written = []
    for cell in nb.cells:
        if cell.source.strip():
            tags = sorted(cell.metadata.get("tags", []))
            page = cell.metadata.get("mystnb", {})
            written.append([cell.cell_type, cell.source, tags, page])
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()


def noted(nb) -> str | None:
    """The fingerprint that notebook and text had when they last agreed."""
    return nb.metadata.get("tilelli", {}).get("text")


def is_edited(nb) -> bool:
    """Does the notebook hold what the tools of the book did not put there?"""
    return noted(nb) != fingerprint(nb)


def sync(twin: Path, force: bool = False) -> str:
    """Carries the text of `twin` into its notebook, and tidies the text. Returns a line
    that says what changed.

    Cells that did not change keep their id and outputs. An edited cell keeps its id and
    loses its outputs, so that no old result stands under a new line of code.

    Raises WouldDiscard when somebody wrote in the notebook, unless `force`.
    """
    path = notebook_of(twin)
    path.parent.mkdir(exist_ok=True)
    written = twin.read_text(encoding="utf-8")
    nb = read_twin(twin)
    old = read_notebook(path) if path.exists() else nbformat.v4.new_notebook()
    both_agree = fingerprint(old) == fingerprint(nb)
    if path.exists() and is_edited(old) and not both_agree and not force:
        raise WouldDiscard(how_to_keep(path, old, nb))
    changed = carry_over(old.cells, nb.cells)
    kept = keep(old.metadata, "widgets", "tilelli")
    kept["tilelli"] = {**kept.get("tilelli", {}), "text": fingerprint(nb)}
    nb.metadata = nbformat.from_dict({**kept, **HEADER})
    nb.nbformat, nb.nbformat_minor = 4, 5  # the first version with ids of cells
    # a file that would stay the same is not touched: `make` looks at its time
    if not path.exists() or nbformat.writes(nb) != nbformat.writes(old):
        write_notebook(nb, path)
    text = text_form(nb)
    # not over what an editor has saved meanwhile
    if text != written and written == twin.read_text(encoding="utf-8"):
        replace_text(twin, text)
    if changed:
        return f"{twin.stem}: {changed} of {len(nb.cells)} cells changed"
    return f"{twin.stem}: up to date"


def how_to_keep(path: Path, notebook, text) -> str:
    """What `sync` says instead of writing over the notebook at `path`."""
    name = path.stem
    lines = {line for cell in text.cells for line in cell.source.splitlines()}
    found = (line for cell in notebook.cells for line in cell.source.splitlines())
    first = next((line.strip() for line in found if line not in lines), "")
    where = f", for example {first!r}" if first else ""
    return (
        f"{name}: left alone. Somebody wrote in notebooks/{name}.ipynb what "
        f"book/{name}.md does not say{where}. You can\n"
        f"  keep it elsewhere:   cp notebooks/{name}.ipynb my_{name}.ipynb\n"
        f"  make it the text:    python book/tools/build.py adopt {name}\n"
        f"  give it up:          python book/tools/build.py sync --force {name}"
    )


def adopt(path: Path, force: bool = False) -> str:
    """Writes the text of a notebook into book/. Returns a line that says so.

    Raises WouldDiscard when the text was edited since the two last agreed, unless
    `force`.
    """
    nb, twin = read_notebook(path), twin_of(path)
    if twin.exists() and noted(nb) and not force:
        text = fingerprint(read_twin(twin))
        if text not in (noted(nb), fingerprint(nb)):
            raise WouldDiscard(
                f"{path.stem}: left alone. Both book/{twin.name} and "
                f"notebooks/{path.name} were edited; the notebook's text would take "
                "the other's place. Carry your changes from one into the other by "
                "hand, or give up those of the text: "
                f"python book/tools/build.py adopt --force {path.stem}"
            )
    replace_text(twin, text_form(nb))
    agreed = {**nb.metadata.get("tilelli", {}), "text": fingerprint(nb)}
    nb.metadata["tilelli"] = nbformat.from_dict(agreed)
    write_notebook(nb, path)
    return f"{path.stem}: text written from the notebook"


def carry_over(old: list, new: list) -> int:
    """Gives the cells of `new` the ids and outputs of the cells of `old` they come
    from. Returns how many differ.
    """
    for i, cell in enumerate(new):
        cell.id = hashlib.sha256(f"{i}{cell.source}".encode()).hexdigest()[:8]
    old_keys = [(cell.cell_type, cell.source) for cell in old]
    new_keys = [(cell.cell_type, cell.source) for cell in new]
    matcher = difflib.SequenceMatcher(None, old_keys, new_keys, autojunk=False)
    changed = abs(len(old) - len(new))
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        for before, after in zip(old[i1:i2], new[j1:j2], strict=False):
            after.id = before.id
            if kind != "equal":
                changed += 1
            elif after.cell_type == "code":
                after.outputs = before.outputs
                after.execution_count = before.execution_count
    return changed


def keep(mapping: dict, *names: str) -> dict:
    """Returns the part of a dictionary with these names."""
    return {name: mapping[name] for name in names if name in mapping}
