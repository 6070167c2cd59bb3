"""`make oldest` installs a few packages by name: what it runs may import no others."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE_OF = {"pyyaml": "yaml", "scikit-learn": "sklearn", "pytest-xdist": "xdist"}
WITH_TORCH = {"triton", "filelock"}  # what PyTorch brings along


def target() -> str:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(r"^oldest:(.*\n(?:\t.*\n)+)", makefile, re.M)[1]


def installed() -> set[str]:
    """The modules that the packages of the target bring."""
    listed = re.search(r'"torch==.*?;', target(), re.S)[0]
    names = re.findall(
        r"[a-z][a-z-]+", re.sub(r"\$\(.*?\)|[<=].*?(?=[\" ])", "", listed)
    )
    return {MODULE_OF.get(name, name) for name in names} | WITH_TORCH


def imported(path: Path) -> set[str]:
    """The modules that a file imports when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.partition(".")[0])
    return names


def test_it_imports_nothing_that_it_has_not_installed():
    folders = re.findall(r"\btests/\w+", target())
    assert folders == ["tests/model", "tests/training", "tests/experiments"]
    files = [ROOT / "tests" / "conftest.py"]
    for folder in folders:
        files += sorted((ROOT / folder).glob("*.py"))
    # modules of our own, and what these import in turn
    own = {
        path.stem: path
        for folder in ("tests", "tests/data", "tests/model", "tests/training")
        for path in (ROOT / folder).glob("*.py")
    }
    own |= {path.stem: path for path in (ROOT / "book").glob("*/*.py")}
    found, seen = {}, set()
    while files:
        path = files.pop()
        seen.add(path)
        for name in imported(path):
            if name in own and own[name] not in seen:
                files.append(own[name])
            elif name not in own:
                found.setdefault(name, path.relative_to(ROOT))
    allowed = installed() | sys.stdlib_module_names | {"tilelli_nb"}
    assert {"torch", "numpy", "pytest"} <= installed()
    assert {n: p for n, p in found.items() if n not in allowed} == {}
