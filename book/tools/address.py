"""The book's address, in one place and wherever it is needed: `make address URL=...`
writes it, and `make address` without one takes it out again.

Until it is set, the first cell of a chapter installs nothing, and the launch buttons
stay off.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HOME = "tilelli_nb/address.py"  # the place that all others follow

CELL_START = """\
import importlib.util

if importlib.util.find_spec("tilelli_nb") is None:
"""
UNSET_CELL = f"""\
# Where the book's package is missing: how to get it.
{CELL_START}\
    print("The book's package is not installed here. In the folder of the")
    print("book, the one that holds tilelli_nb/, run: pip install .")
"""
SET_CELL = f"""\
# Colab: fetch the book, install its package. Elsewhere: nothing.
{CELL_START}\
    !git clone --quiet --depth 1 {{url}} tilelli-book
    %pip install --quiet ./tilelli-book
"""

UNSET_SITE = """\
html:
"""
SET_SITE = """\
repository:
  url: {url}
  branch: main

launch_buttons:
  notebook_interface: jupyterlab
  colab_url: https://colab.research.google.com
  binderhub_url: https://mybinder.org

html:
  use_repository_button: true
  use_issues_button: true
"""


class Place(NamedTuple):
    """A piece of text that stands exactly once in each of some files."""

    files: str  # a pattern, below the repository's root
    unset: str  # as it reads while there is no address
    set: str  # and with one, which stands for {url}

    def text(self, url: str) -> str:
        """The piece as it reads with this address, or with none."""
        return self.set.replace("{url}", url) if url else self.unset


PLACES = [
    Place(HOME, 'REPOSITORY = ""\n', 'REPOSITORY = "{url}"\n'),
    Place("book/[0-9][0-9]_*.md", UNSET_CELL, SET_CELL),
    Place(
        "book/10_renting.md",
        "git clone ADDRESS tilelli-book  # the address that you have the book from\n",
        "git clone {url} tilelli-book\n",
    ),
    Place("_config.yml", UNSET_SITE, SET_SITE),
    Place(
        "pyproject.toml",
        '[project.scripts]\ntilelli = "tilelli_nb.cli.app:main"\n',
        '[project.scripts]\ntilelli = "tilelli_nb.cli.app:main"\n\n'
        '[project.urls]\nRepository = "{url}"\n',
    ),
    Place(
        "CITATION.cff",
        "version: 0.1.0\nlicense: Apache-2.0\n",
        'version: 0.1.0\nlicense: Apache-2.0\nrepository-code: "{url}"\n',
    ),
    Place(
        "LICENSE-prose",
        'Suggested credit: "The Tilelli Notebooks, CC BY 4.0".\n',
        'Suggested credit: "The Tilelli Notebooks, {url}, CC BY 4.0".\n',
    ),
]


def current(root: Path = ROOT) -> str:
    """The address as it is set now; empty where none is."""
    text = (root / HOME).read_text(encoding="utf-8")
    return re.search(r'^REPOSITORY = "(.*)"$', text, re.M)[1]


def write(url: str, root: Path = ROOT) -> list[str]:
    """Writes an address (or none: "") everywhere. Returns the names of the files.

    Raises SystemExit, and changes nothing, for an address that is no https one, or
    where a file does not read as it should.
    """
    if url and not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+", url):
        raise SystemExit(
            f"{url!r} is no address of a repository: https://HOST/OWNER/NAME"
        )
    old_url = current(root)
    texts: dict[Path, str] = {}
    for place in PLACES:
        old, new = place.text(old_url), place.text(url)
        for path in sorted(root.glob(place.files)):
            text = texts.get(path) or path.read_text(encoding="utf-8")
            if text.count(old) != 1:
                name = path.relative_to(root)
                raise SystemExit(f"{name} should hold this once, and does not:\n{old}")
            texts[path] = text.replace(old, new)
    for path, text in texts.items():
        part = path.with_name(f"{path.name}.partial")
        part.write_text(text, encoding="utf-8")
        part.replace(path)  # an interrupted write leaves the old file
    return [path.relative_to(root).as_posix() for path in texts]


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else ""
    names = write(url.removesuffix("/").removesuffix(".git"))
    print(
        f"{url or 'No address'}: written to {len(names)} files. Now: make sync execute"
    )
