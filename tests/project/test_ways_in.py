"""The ways into the repository lead somewhere: the table of the README, the map and the
commands of CONTRIBUTING, the workflows.
"""

import ast
import os
import re
import subprocess
import sys

import pytest
import yaml

import pairs
import stamps

ROOT = pairs.ROOT
PACKAGE = ROOT / "tilelli_nb"
EVERY = stamps.modules_of(PACKAGE)
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.M))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

# Folders whose every module a chapter explains, and what none explains yet.
EXPLAINED = ("data.", "model.", "training.", "inference.")
NOT_YET = {
    "model.kernel_conv": "the same convolution, quicker on a GPU: no chapter needs it",
}


def rows() -> dict[str, list[str]]:
    """The README's table: the name of a chapter -> its modules, as model.conv. A page
    that goes deeper stands in its chapter's row.
    """
    found = {}
    for line in README.splitlines():
        row = re.match(r"\| \[.*?\]\(notebooks/(\w+)\.ipynb\)[^|]*\|(.*)\|$", line)
        if row:
            places = re.findall(r"`([\w/]+)`", row[2])
            found[row[1]] = [place.replace("/", ".") for place in places]
    return found


def imported(module: str) -> set[str]:
    """The modules that a module of the package imports."""
    path = PACKAGE / f"{module.replace('.', '/')}.py"
    folder = module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = folder if node.level == 1 else ""
            for alias in node.names:
                place = ".".join(filter(None, [start, node.module, alias.name]))
                found.add(stamps.module_of(place, EVERY))
    return found


def test_every_chapter_has_a_row():
    chapters = [twin.stem for twin in pairs.twins() if not pairs.is_deeper(twin)]
    assert list(rows()) == chapters


def test_each_page_that_goes_deeper_stands_beside_its_chapter():
    for twin in filter(pairs.is_deeper, pairs.twins()):
        chapter = twin.stem.removesuffix("_deeper")
        row = next(line for line in README.splitlines() if f"/{chapter}." in line)
        assert f"[deeper](notebooks/{twin.stem}.ipynb)" in row
        # and each leads to the other
        assert f"({twin.stem}.ipynb" in (ROOT / "book" / f"{chapter}.md").read_text(
            "utf-8"
        )
        assert f"({chapter}.ipynb" in twin.read_text("utf-8")


def code_cells(twin) -> list[str]:
    """A page's code, from its text: that is what is edited."""
    notebook = pairs.read_notebook(pairs.notebook_of(twin))
    text = twin.read_text(encoding="utf-8")
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", text, re.M | re.S)
    # the notebook only says which cells are code
    assert len(cells) == sum(c.cell_type == "code" for c in notebook.cells)
    settings = re.compile(r"\A(---\n.*?\n---\n|(:[^\n]*\n)+)", re.S)
    return [settings.sub("", cell) for cell in cells]


@pytest.mark.parametrize("chapter, modules", rows().items(), ids=list(rows()))
def test_a_chapter_uses_the_modules_of_its_row(chapter, modules):
    """It names each of them, or another of the row is built on it."""
    assert set(modules) <= EVERY
    pages = [twin for twin in pairs.twins() if twin.stem.startswith(chapter)]
    cells = [source for page in pages for source in code_cells(page)]
    used = stamps.modules(cells, PACKAGE)
    for module in modules:
        used |= imported(module)
    assert set(modules) - used == set()


def test_each_module_that_a_chapter_explains_stands_once():
    listed = [module for modules in rows().values() for module in modules]
    assert len(listed) == len(set(listed))
    due = {module for module in EVERY if module.startswith(EXPLAINED)}
    assert due - set(listed) == set(NOT_YET)


def test_the_map_names_places_that_exist():
    table = GUIDE[: GUIDE.index("## A first change")]
    for line in table.splitlines():
        if not line.startswith("| `"):
            continue
        for place in re.findall(r"`\s*([\w./-]+)`", line):
            place = place.replace("NN_name", "02_data").replace("NAME", "nano-stories")
            spots = [ROOT / place, PACKAGE / place, PACKAGE / f"{place}.py"]
            inside = place in ("show", "check")  # functions of notebook/
            assert inside or any(spot.exists() for spot in spots), place
    links = re.findall(r"\]\(([^)#:]+)\)", GUIDE)
    assert links and all((ROOT / link).exists() for link in links)


def test_commands_are_targets():
    texts = [README, GUIDE, *(p.read_text(encoding="utf-8") for p in WORKFLOWS)]
    for text in texts:
        assert set(re.findall(r"(?:`|^|run: )make ([a-z-]+)", text, re.M)) <= TARGETS
    assert {"test", "test-package", "test-chapter", "execute", "book"} <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_needs_nothing_that_is_not_here(path):
    text = path.read_text(encoding="utf-8")
    assert "secrets." not in text
    steps = [s for job in yaml.safe_load(text)["jobs"].values() for s in job["steps"]]
    for step in steps:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
        else:
            assert re.fullmatch(r"make [a-z-]+", step["run"])


def test_workflows_test_two_systems_and_publish_tags_alone():
    test, pages = (
        yaml.safe_load(p.read_text(encoding="utf-8")) for p in WORKFLOWS[::-1]
    )
    # YAML reads the key `on` as true
    assert pages[True] == {"push": {"tags": ["v*"]}}
    systems = [
        row["system"] for row in test["jobs"]["test"]["strategy"]["matrix"]["include"]
    ]
    assert systems == ["ubuntu-latest", "macos-latest"]


# --- the scripts that make records start ---

SCRIPTS = sorted((ROOT / "book" / "experiments").glob("*.py"))
# Each as if it stood alone: with the path that Python gives it, and none of the
# others' modules.
IMPORTS = """
import runpy, sys
path = list(sys.path)
for script in sys.argv[1:]:
    known = set(sys.modules)
    sys.path[:] = [script.rpartition("/")[0], *path]
    try:
        runpy.run_path(script, run_name="imported")
    except ImportError as error:
        print(script, error)
    for name in set(sys.modules) - known:
        if "/book/" in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
"""


def test_every_script_of_an_experiment_can_be_imported():
    files = [script.as_posix() for script in SCRIPTS]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *files],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
