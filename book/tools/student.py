"""Exercises: student copies without the solutions, and the few cells of a chapter that
one check depends on.
"""

import ast
import copy
import symtable
from pathlib import Path
from typing import NamedTuple

from nbconvert.preprocessors import ClearOutputPreprocessor, TagRemovePreprocessor
from nbformat import from_dict

import pairs

FOLDER = pairs.ROOT / "student"
ROLES = {"exercise", "solution", "check"}


def tags(cell) -> set[str]:
    """Returns the tags of a cell."""
    return set(cell.metadata.get("tags", []))


def student_copy(nb):
    """Returns the notebook as a student gets it: no solution cells, no outputs."""
    nb = copy.deepcopy(nb)
    nb, _ = TagRemovePreprocessor(remove_cell_tags={"solution"}).preprocess(nb, {})
    nb, _ = ClearOutputPreprocessor().preprocess(nb, {})
    # no stamp, no state of widgets; a note of how it was given away
    note = {"tilelli": {"text": pairs.fingerprint(nb)}}
    nb.metadata = from_dict({**pairs.HEADER, **note})
    return nb


def write_copies(
    notebooks: list[Path], folder: Path = FOLDER
) -> tuple[list[Path], list[Path]]:
    """Writes the student copies of the given notebooks into `folder`. Returns the paths
    that were written, and those that were kept because a student has written in them.
    """
    folder.mkdir(exist_ok=True)
    written, kept = [], []
    for path in notebooks:
        target = folder / path.name
        if target.exists() and pairs.is_edited(pairs.read_notebook(target)):
            kept.append(target)
            continue
        pairs.write_notebook(student_copy(pairs.read_notebook(path)), target)
        written.append(target)
    return written, kept


class Exercise(NamedTuple):
    """One check of a chapter, with the sources of the cells that belong to it."""

    title: str
    name: str  # of the function that is asked for
    needs: list[str]  # the cells it depends on, in order
    stub: str
    solution: str
    check: str

    def answered_by_solution(self) -> str:
        """Returns code that puts the book's solution in the place of the student's
        answer.
        """
        return f"{self.solution}\n{self.name} = solution_{self.name}"


def exercises(nb) -> list[Exercise]:
    """Returns the exercises of a chapter: each ends with its check.

    The cells it depends on are found by walking back from the check and collecting the
    cells that define a name that is used further down; imports and magics of the first
    cells come along when they are needed.
    """
    found = []
    before = []  # the ordinary cells so far
    stub = solution = ""
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        role = tags(cell) & ROLES
        if not role:
            before.append(cell.source)
        elif "exercise" in role:
            stub = cell.source
        elif "solution" in role:
            solution = cell.source
        else:
            used = set()
            for source in (stub, solution, cell.source):
                used |= names_used(source)
            title, [name] = title_of(cell.source), names_defined(stub)
            # what the chapter may have called so before is the student's from here on
            needs = depends_on(used - {name}, before)
            found.append(Exercise(title, name, needs, stub, solution, cell.source))
    return found


def title_of(check: str) -> str:
    """Returns the first argument of the call check("title", ...) in a cell."""
    for node in ast.walk(ast.parse(check)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "check":
            return node.args[0].value
    raise ValueError(f"no check(...) in the cell {check!r}")


def depends_on(needed: set[str], cells: list[str]) -> list[str]:
    """Returns the cells that define the needed names, and what those need, in order."""
    chosen = []
    for source in reversed(cells):
        try:
            defined = names_defined(source)
        except SyntaxError:  # a magic: %pip, !git
            continue
        if defined & needed:
            needed = needed | names_used(source)
            chosen.append(source)
    chosen.reverse()
    return chosen


def names_used(source: str) -> set[str]:
    """Returns the names of the notebook that a cell refers to; what is local to a
    function or a comprehension does not count.
    """
    cell, *inner = scopes(source)
    names = {s.get_name() for s in cell.get_symbols() if s.is_referenced()}
    for scope in inner:
        names |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
    return names


def names_defined(source: str) -> set[str]:
    """Returns the names of the notebook that a cell binds or changes: assignments,
    functions, imports, x[i] = ... and x.a = ...
    """
    names = set()
    for symbol in scopes(source)[0].get_symbols():
        if symbol.is_assigned() or symbol.is_imported():
            names.add(symbol.get_name())
    used = names_used(source)
    for node in ast.walk(ast.parse(source)):
        changes = isinstance(node, (ast.Subscript, ast.Attribute))
        if changes and isinstance(node.ctx, ast.Store):
            names |= names_used(ast.unparse(node.value)) & used
    return names


def scopes(source: str) -> list[symtable.SymbolTable]:
    """Returns the cell's own scope, then those of its functions, classes and
    comprehensions, however deep.
    """
    found = [symtable.symtable(source, "cell", "exec")]
    for scope in found:  # grows as it goes
        found.extend(scope.get_children())
    return found
