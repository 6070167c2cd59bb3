"""The package keeps its shape: layers without circles, short files, short functions,
and no hidden dependency.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tilelli_nb"
MODULES = sorted(PACKAGE.glob("*.py"))
LAYERS = [
    {"errors"},
    {
        "tokenizer",
        "conv",
        "ternary",
        "router",
        "config",
        "records",
        "runtime",
        "kernels",
        "hub",
    },
    {"attention", "inference", "checkpoint", "corpora", "fineweb", "cost"},
    # shards is beside corpora in the plan; it opens them by name
    {"shards", "prepared", "generation_config"},
    # the block of baseline is one of the two that a model can be built from
    {"baseline", "background", "packed"},
    {"model"},
    {"optimizer", "hardware"},
    {"train"},
    {"figures", "widgets", "show", "exercises", "watch"},
    {"launch", "runpod", "players"},
    {"cli", "transformers_extra"},
]
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= (
                {node.module.split(".")[0]}
                if node.module
                else {alias.name for alias in node.names}
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "tilelli_nb"
        ):
            found.add((node.module.split(".") + ["__init__"])[1])
    return found


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.stem != "__init__"],
    ids=lambda path: path.stem,
)
def test_a_module_imports_only_from_layers_above_it(path):
    assert path.stem in LAYER_OF, "give the new module its place in LAYERS"
    for other in imports(path):
        assert LAYER_OF[other] < LAYER_OF[path.stem], f"{path.stem} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(
            node, (ast.FunctionDef, ast.ClassDef)
        ) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
