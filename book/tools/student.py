"""Exercises: student copies without the solutions, and the few cells of a chapter that
one check depends on.
"""

import ast
import symtable
from pathlib import Path

import nbformat

import pairs

FOLDER = pairs.ROOT / "student"


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def student_copy(nb):
    """The notebook as a student gets it: no solution cells, no outputs."""
    copy = nbformat.from_dict(nb)
    copy.cells = [cell for cell in copy.cells if "solution" not in tags(cell)]
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    copy.metadata = nbformat.from_dict(pairs.HEADER)
    return copy


def write_copies(notebooks: list[Path], folder: Path = FOLDER) -> list[Path]:
    """Writes the student copies of all the given notebooks into `folder`."""
    folder.mkdir(exist_ok=True)
    for path in notebooks:
        pairs.write_notebook(
            student_copy(pairs.read_notebook(path)), folder / path.name
        )
    return [folder / path.name for path in notebooks]


def exercises(nb) -> list[tuple[str, list[str], str, str, str]]:
    """For each check: its title, the cells it depends on, the stub, the solution, and
    the check itself.

    The cells it depends on are found by walking back from the check and collecting the
    cells that define a name that is used further down; imports and magics of the first
    cells come along when they are needed.
    """
    found, stub, solution = [], "", ""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for position, cell in enumerate(code):
        if "exercise" in tags(cell):
            stub = cell.source
        elif "solution" in tags(cell):
            solution = cell.source
        elif "check" in tags(cell):
            needed = names_used(cell.source) | names_used(stub) | names_used(solution)
            before = [
                c.source
                for c in code[:position]
                if not tags(c) & {"exercise", "solution", "check"}
            ]
            title = next(
                node.args[0].value
                for node in ast.walk(ast.parse(cell.source))
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "check"
            )
            found.append(
                (title, depends_on(needed, before), stub, solution, cell.source)
            )
    return found


def depends_on(needed: set[str], cells: list[str]) -> list[str]:
    """The cells that define the needed names, and what those need, in order."""
    chosen = []
    for source in reversed(cells):
        try:
            defined = names_defined(source)
        except SyntaxError:  # a magic: %pip, !git
            continue
        if defined & needed:
            needed = needed | names_used(source)
            chosen.append(source)
    return chosen[::-1]


def names_used(source: str) -> set[str]:
    """Names of the notebook that a cell refers to; what is local to a function or a
    comprehension does not count.
    """
    cell, *inner = scopes(source)
    return {
        symbol.get_name() for symbol in cell.get_symbols() if symbol.is_referenced()
    } | {
        symbol.get_name()
        for scope in inner
        for symbol in scope.get_symbols()
        if symbol.is_global()
    }


def names_defined(source: str) -> set[str]:
    """Names of the notebook that a cell binds or changes: assignments, functions,
    imports, x[i] = ... and x.a = ...
    """
    bound = {
        symbol.get_name()
        for symbol in scopes(source)[0].get_symbols()
        if symbol.is_assigned() or symbol.is_imported()
    }
    changed = {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Subscript, ast.Attribute))
        and isinstance(node.ctx, ast.Store)
        for name in names_used(ast.unparse(node.value))
    }
    return bound | (changed & names_used(source))


def scopes(source: str) -> list[symtable.SymbolTable]:
    """The cell's own scope, then those of its functions, classes and comprehensions,
    however deep.
    """
    found = [symtable.symtable(source, "cell", "exec")]
    for scope in found:  # grows as it goes
        found.extend(scope.get_children())
    return found
