"""The stamp of a notebook: a hash of the code its outputs come from.

It covers the notebook's own code cells and the source of each module of `tilelli_nb`
that they name: in an import, or as an attribute of the package
(`show(tilelli_nb.ternarize)`), and the run records whose names, or patterns of names,
stand in them as strings. A change in a module or record that a chapter does not name
leaves the chapter fresh. Everything is read with `ast`; nothing is imported.
"""

import ast
import hashlib
import re
from fnmatch import fnmatchcase
from pathlib import Path

PACKAGE = "tilelli_nb"


def stamp(nb, package: Path, runs: Path) -> str:
    """The sha256, in hex, of the code of notebook `nb` and of what it names in the
    folders `package` and `runs`.
    """
    cells = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    digest = hashlib.sha256()
    for source in cells:
        digest.update(f"cell {len(source)}\n{source}\n".encode())
    for module in sorted(modules(cells, package)):
        path = package / f"{module.replace('.', '/')}.py"
        source = path.read_text(encoding="utf-8")
        digest.update(f"module {module} {len(source)}\n{source}\n".encode())
    for path in sorted(records(cells, runs)):
        digest.update(
            f"record {path.relative_to(runs).as_posix()}\n{path.read_text(encoding='utf-8')}\n".encode()
        )
    return digest.hexdigest()


def records(cells: list[str], runs: Path) -> set[Path]:
    """All .json and .jsonl files of the runs that a string in the cells names: `nano`,
    `bench-*`, `*/run.json`.
    """
    strings = {
        node.value
        for source in cells
        if (tree := parse(source))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    # a lone * is a sign, no pattern
    patterns = {text.split("/")[0] for text in strings if re.search(r"\w", text)}
    folders = [
        folder
        for folder in runs.glob("*")
        if any(fnmatchcase(folder.name, pattern) for pattern in patterns)
    ]
    return {path for folder in folders for path in folder.glob("*.json*")}


def modules(cells: list[str], package: Path) -> set[str]:
    """The modules of the package that the cells name, with their folder: `from
    tilelli_nb import TilelliLM` names language_model, `from tilelli_nb.model import
    conv` model.conv.
    """
    names, aliases = set(), set()
    trees = [tree for source in cells if (tree := parse(source))]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            first, *rest = node.module.split(".")
            if first == PACKAGE:
                names.update(".".join([*rest, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == PACKAGE:
                    names.add(".".join(rest))
                    aliases.add(alias.asname or PACKAGE)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in aliases:
                names.add(node.attr)
    table = exports(package)
    every = {
        ".".join(path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.stem != "__init__"
    }
    if "*" in names:
        return every
    found = {module_of(table.get(name, name), every) for name in names}
    return found - {None}


def module_of(name: str, modules: set[str]) -> str | None:
    """The module that a dotted name begins with: model.conv.CausalConv -> model.conv."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in modules:
            return ".".join(parts[:length])
    return None


def parse(source: str) -> ast.Module | None:
    """The cell as a tree; lines for IPython (%magic, !command) are set aside, a cell
    for another language is None.
    """
    if source.lstrip().startswith("%%"):
        return None
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M))
    except SyntaxError:
        return None


def exports(package: Path) -> dict[str, str]:
    """The table `_EXPORTS = {"Name": "module"}` of the package's __init__.py."""
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [getattr(node, "target", None)]
        )
        if any(
            isinstance(target, ast.Name) and target.id == "_EXPORTS"
            for target in targets
        ):
            return {
                name: place.lstrip(".")
                for name, place in ast.literal_eval(node.value).items()
            }
    return {}
