"""The stamp of a notebook: a hash of the code its outputs come from.

It covers the notebook's own code cells and the source of each module of `tilelli_nb`
that they name: in an import, or as an attribute of the package
(`show(tilelli_nb.ternarize)`), with the tables that lie beside these modules (facts,
prices, configurations, claims), and the run records, bundled models and other files of
book/ whose names, or patterns of names, stand in them as strings. A change in a module,
record or file that a chapter does not name leaves the chapter fresh. Everything is read
with `ast`; nothing is imported.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

PACKAGE = "tilelli_nb"


def stamp(nb, package: Path, runs: Path) -> str:
    """Returns the sha256, in hex, of the code of notebook `nb` and of what it names in
    the folders `package` and `runs`.
    """
    cells = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    digest = hashlib.sha256()
    for source in cells:
        digest.update(f"cell {len(source)}\n{source}\n".encode())
    named = sorted(modules(cells, package))
    for module in named:
        path = package / f"{module.replace('.', '/')}.py"
        source = path.read_text(encoding="utf-8")
        digest.update(f"module {module} {len(source)}\n{source}\n".encode())
    for path in sorted(tables(named, package) | models(cells, package)):
        place = path.relative_to(package).as_posix()
        digest.update(f"file {place}\n".encode() + path.read_bytes())
    for path in sorted(files_of_book(cells, named, runs)):
        place = path.relative_to(runs.parent).as_posix()
        digest.update(f"file book/{place}\n".encode() + path.read_bytes())
    for path in sorted(records(cells, runs)):
        place = path.relative_to(runs).as_posix()
        text = path.read_text(encoding="utf-8")
        digest.update(f"record {place}\n{text}\n".encode())
    return digest.hexdigest()


def records(cells: list[str], runs: Path) -> set[Path]:
    """Returns all .json and .jsonl files of the runs that a string in the cells names:
    `nano`, `bench-*`, `*/run.json`.
    """
    patterns = set()
    for node in nodes(cells):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if re.search(r"\w", node.value):  # a lone * is a sign, no pattern
            patterns.add(node.value.split("/")[0])
    found = set()
    for folder in runs.glob("*"):
        if any(fnmatchcase(folder.name, pattern) for pattern in patterns):
            found.update(folder.glob("*.json*"))
    return found


def tables(named: list[str], package: Path) -> set[Path]:
    """Returns the .yaml and .tsv files that modules read: those in their folder or in
    one of their own name, and for `config` the configurations.
    """
    folders = set()
    for module in named:
        path = package / module.replace(".", "/")
        folders.add(path)  # chat/facts/ belongs to chat/facts.py
        if path.parent != package:
            folders.add(path.parent)
        if module == "config":
            folders.add(package / "configs")
    found = set()
    for folder in folders:
        found.update(folder.glob("*.yaml"), folder.glob("*.tsv"))
    return found


def files_of_book(cells: list[str], named: list[str], runs: Path) -> set[Path]:
    """Returns the files of the folder that holds `runs`, but the records, whose name is
    a string in the cells, or the end of one: `pretrain.sbatch`. The claims belong to
    the module that reads them.
    """
    names = set()
    for node in nodes(cells):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value.split("/")[-1])
    if "evaluation.claims" in named:
        names.add("claims.yml")
    found = set()
    for path in runs.parent.rglob("*"):
        if path.name in names and path.is_file() and runs not in path.parents:
            found.add(path)
    return found


def models(cells: list[str], package: Path) -> set[Path]:
    """Returns the files with weights of the bundled models that a string in the cells
    names: `tilelli/nano`.
    """
    found = set()
    for node in nodes(cells):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for name in re.findall(r"tilelli/([\w-]+)", node.value):
                found.update((package / "weights" / name).glob("*.safetensors"))
    return found


def modules(cells: list[str], package: Path) -> set[str]:
    """Returns the modules of the package that the cells name, with their folder: `from
    tilelli_nb import TilelliLM` names language_model, `from tilelli_nb.model import
    conv` model.conv.
    """
    every = modules_of(package)
    names = names_in(cells)
    if "*" in names:
        return every
    table = exports(package)
    found = {module_of(table.get(name, name), every) for name in names}
    found.discard(None)
    return found


def modules_of(package: Path) -> set[str]:
    """Returns all modules of the package, with their folder."""
    found = set()
    for path in package.rglob("*.py"):
        if path.stem != "__init__":
            found.add(".".join(path.relative_to(package).with_suffix("").parts))
    return found


def names_in(cells: list[str]) -> set[str]:
    """Returns what the cells name of the package, without the package's own name:
    "TilelliLM", "model.conv.CausalConv", "*".
    """
    names = set()
    aliases = {}  # what the package, or a module of it, is called here -> its place
    every = list(nodes(cells))
    for node in every:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            first, *rest = node.module.split(".")
            if first == PACKAGE:
                names.update(".".join([*rest, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first != PACKAGE:
                    continue
                if rest:
                    names.add(".".join(rest))
                if alias.asname:
                    aliases[alias.asname] = rest
                else:  # `import tilelli_nb.x` binds the package
                    aliases[PACKAGE] = []
    for node in every:
        place = dotted(node, aliases)
        if place:
            names.add(".".join(place))
    return names


def dotted(node: ast.AST, aliases: dict[str, list[str]]) -> list[str] | None:
    """Returns the parts of `tilelli_nb.model.conv.CausalConv` behind the package's
    name; None for what is no attribute of the package.
    """
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in aliases and attributes:
        return [*aliases[node.id], *attributes]
    return None


def module_of(name: str, modules: set[str]) -> str | None:
    """Returns the module that a dotted name begins with: model.conv for
    model.conv.CausalConv.
    """
    parts = name.split(".")
    while parts and ".".join(parts) not in modules:
        parts.pop()
    return ".".join(parts) or None


def nodes(cells: list[str]) -> Iterator[ast.AST]:
    """Yields all nodes of the cells' syntax trees."""
    for source in cells:
        tree = parse(source)
        if tree is not None:
            yield from ast.walk(tree)


def parse(source: str) -> ast.Module | None:
    """Returns the cell as a tree; lines for IPython (%magic, !command) are set aside, a
    cell for another language is None.
    """
    if source.lstrip().startswith("%%"):
        return None
    try:
        return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", source, flags=re.M))
    except SyntaxError:
        return None


def exports(package: Path) -> dict[str, str]:
    """Returns the table `_EXPORTS = {"Name": "module"}` of the package's
    __init__.py.
    """
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
        else:
            continue
        if isinstance(target, ast.Name) and target.id == "_EXPORTS":
            return ast.literal_eval(node.value)
    return {}
