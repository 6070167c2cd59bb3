"""A chapter is a pair: book/NN_name.md, the text that people edit, and
notebooks/NN_name.ipynb, the page with outputs.

What links the two: reading and writing, and `sync`, which carries the text into the
notebook.
"""

import difflib
import hashlib
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


def notebooks(root: Path = ROOT) -> list[Path]:
    return sorted((root / "notebooks").glob("*.ipynb"))


def twins(root: Path = ROOT) -> list[Path]:
    """The chapters' texts: NN_name.md. Other Markdown files in book/ are pages that do
    not run.
    """
    return sorted((root / "book").glob("[0-9][0-9]_*.md"))


def twin_of(notebook: Path) -> Path:
    return notebook.parent.parent / "book" / f"{notebook.stem}.md"


def notebook_of(twin: Path) -> Path:
    return twin.parent.parent / "notebooks" / f"{twin.stem}.ipynb"


def read_notebook(path: Path):
    return nbformat.read(path, as_version=4)


def write_notebook(nb, path: Path) -> None:
    """Validates, writes beside, then renames: an interrupted write leaves the old
    notebook.
    """
    nbformat.validate(nb)
    part = path.with_suffix(".partial")
    part.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")
    part.replace(path)


def text_form(nb) -> str:
    """The notebook as MyST Markdown, with the filters of pyproject.toml: what its twin
    must be.
    """
    fmt = {"extension": ".md", "format_name": "myst"}
    config = load_jupytext_config(str(ROOT / "notebooks" / "any.ipynb"))
    config.set_default_format_options(fmt)
    # metadata in the order in which a file has them
    as_stored = nbformat.reads(nbformat.writes(nb), as_version=4)
    return jupytext.writes(as_stored, fmt)


def sync(twin: Path) -> str:
    """Carries the text of `twin` into its notebook, and tidies the text. Returns a line
    that says what changed.

    Cells that did not change keep their id and outputs. An edited cell keeps its id and
    loses its outputs, so that no old result stands under a new line of code.
    """
    path = notebook_of(twin)
    path.parent.mkdir(exist_ok=True)
    nb = jupytext.read(twin, fmt={"extension": ".md", "format_name": "myst"})
    old = read_notebook(path) if path.exists() else nbformat.v4.new_notebook()
    changed = carry_over(old.cells, nb.cells)
    kept = keep(old.metadata, "widgets", "tilelli")
    nb.metadata = nbformat.from_dict({**kept, **HEADER})
    nb.nbformat, nb.nbformat_minor = 4, 5  # the first version with ids of cells
    # a file that would stay the same is not touched: `make` looks at its time
    if not path.exists() or nbformat.writes(nb) != nbformat.writes(old):
        write_notebook(nb, path)
    text = text_form(nb)
    if text != twin.read_text(encoding="utf-8"):
        twin.write_text(text, encoding="utf-8")
    if changed:
        return f"{twin.stem}: {changed} of {len(nb.cells)} cells changed"
    return f"{twin.stem}: up to date"


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
