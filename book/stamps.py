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
        source = (package / f"{module}.py").read_text(encoding="utf-8")
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
    """The modules of the package that the cells name: `from tilelli_nb import
    TilelliLM` names model.
    """
    names, aliases = set(), set()
    trees = [tree for source in cells if (tree := parse(source))]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parent = node.module.split(".")
            if parent == [PACKAGE]:
                names.update(alias.name for alias in node.names)
            elif parent[0] == PACKAGE:
                names.add(parent[1])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == PACKAGE:
                    names.update(parts[1:2])
                    aliases.add(alias.asname or PACKAGE)
    names.update(
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in aliases
    )
    table = exports(package)
    places = {path.stem for path in package.glob("*.py")} - {"__init__"}
    if "*" in names:
        return places
    return {place for name in names if (place := table.get(name, name)) in places}


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
