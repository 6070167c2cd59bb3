"""The package keeps its shape: folders without circles, a network that knows tensors
alone, lines that a page can show, functions that fit a screen.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tilelli_nb"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A folder, or a file beside the folders, imports only from those before it.
ORDER = [
    "address",
    "errors",
    "config",
    "files",
    "data",
    "model",
    "storage",
    "chat",
    "inference",
    "training",
    "pretrained",
    "language_model",
    "evaluation",
    "notebook",
    "extras",
    "cli",
]
ALLOWED_IN_MODEL = {"errors", "config", "model"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, with their folder."""
    here = name_of(path).split(".")[:-1]
    names = {name_of(module).removesuffix(".__init__") for module in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            whole_names = [alias.name.split(".") for alias in node.names]
            found |= {
                ".".join(parts[1:]) for parts in whole_names if parts[0] == "tilelli_nb"
            }
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            start = here[: len(here) - node.level + 1]
        elif (node.module or "").split(".")[0] == "tilelli_nb":
            start = []
        else:
            continue
        middle = (node.module or "").removeprefix("tilelli_nb").strip(".")
        for alias in node.names:
            whole = [*start, *filter(None, middle.split(".")), alias.name]
            while whole and ".".join(whole) not in names:
                whole.pop()
            if whole:
                found.add(".".join(whole))
    return found


def folder(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_folder_imports_only_from_those_before_it(path):
    here = folder(name_of(path))
    if here == "__init__":
        return
    for other in map(folder, imports(path)):
        if other != here:
            assert ORDER.index(other) < ORDER.index(here), f"imports {other}"


def test_no_module_imports_itself_by_a_way_round():
    graph = {name_of(path): imports(path) for path in MODULES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way, module])
        if module not in done:
            for other in graph.get(module, graph.get(f"{module}.__init__", ())):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=name_of)
def test_the_network_knows_tensors_alone(path):
    assert {folder(module) for module in imports(path)} <= ALLOWED_IN_MODEL


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_page_can_show_it(path):
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= 500
    assert not [n for n, line in enumerate(lines, 1) if len(line) > 88]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


# Each has a reason to be its own, though another has its name and value.
OF_ITS_OWN = {"evaluation.rule.RESAMPLES"}  # the rule was written down before the runs


def test_a_number_stands_in_one_place():
    homes: dict[tuple, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                name = node.targets[0].id
                home = f"{name_of(path)}.{name}"
                if home not in OF_ITS_OWN:
                    homes.setdefault((name, node.value.value), []).append(home)
    assert [found for found in homes.values() if len(found) > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not tree.body:
        return
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(
            node, (ast.FunctionDef, ast.ClassDef)
        ) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


@pytest.mark.parametrize("folder_of_tests", ["model", "training", "experiments"])
def test_the_oldest_pytorch_needs_no_notebooks(folder_of_tests):
    """`make oldest` runs these in an environment that cannot draw figures."""
    for path in sorted((PACKAGE.parent / "tests" / folder_of_tests).glob("*.py")):
        assert "tilelli_nb.notebook" not in path.read_text(encoding="utf-8"), path.name
