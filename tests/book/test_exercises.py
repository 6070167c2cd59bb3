"""Every exercise can be solved and cannot be passed by doing nothing: its check ticks
and crosses accordingly.
"""

import linecache
import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import pairs
import student

CASES = [
    pytest.param(path, *exercise, id=f"{path.stem}: {exercise[0]}")
    for path in pairs.notebooks()
    for exercise in student.exercises(pairs.read_notebook(path))
]


def printed(cells, capsys, folder: Path) -> str:
    """What the last of the cells prints when they run in order, as in a notebook of
    this book.
    """
    namespace, before = {"__name__": "__main__"}, os.getcwd()
    os.chdir(folder)
    try:
        for number, source in enumerate(cells[:-1]):
            name = f"<cell {number}>"
            # Triton reads sources
            linecache.cache[name] = (
                len(source),
                None,
                source.splitlines(keepends=True),
                name,
            )
            exec(compile(source, name, "exec"), namespace)
        capsys.readouterr()
        exec(compile(cells[-1], "<check>", "exec"), namespace)
        return capsys.readouterr().out
    finally:
        os.chdir(before)


@pytest.mark.parametrize("path,title,needs,stub,solution,check", CASES)
def test_the_check_ticks_on_the_solution_and_crosses_on_the_stub(
    path, title, needs, stub, solution, check, capsys
):
    assert stub.strip() and solution.strip() and stub != solution
    solved = printed([*needs, solution, check], capsys, path.parent)
    assert solved.startswith("✓") and "✗" not in solved, solved
    untouched = printed([*needs, stub, check], capsys, path.parent)
    assert (
        untouched.startswith("✗") and "✓" not in untouched and "hint: " in untouched
    ), untouched


@pytest.mark.parametrize("path", pairs.notebooks(), ids=lambda path: path.stem)
def test_a_chapter_has_three_to_five_exercises(path):
    assert 3 <= len(student.exercises(pairs.read_notebook(path))) <= 5


def test_student_copies_have_no_solutions_and_no_outputs(tmp_path):
    nb = new_notebook(
        cells=[
            new_markdown_cell("text"),
            new_code_cell("x = 1\nx"),
            new_code_cell("def f(): ...", metadata={"tags": ["exercise"]}),
            new_code_cell(
                "def f(): return 42", metadata={"tags": ["solution", "hide-input"]}
            ),
            new_code_cell(
                "check('f', lambda: f() == 42)", metadata={"tags": ["check"]}
            ),
        ]
    )
    nb.cells[1].outputs = [
        nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=1)
    ]
    source = tmp_path / "01_x.ipynb"
    pairs.write_notebook(nb, source)
    [copy] = student.write_copies([source], tmp_path / "student")
    cells = pairs.read_notebook(copy).cells
    assert [c.source for c in cells] == [
        "text",
        "x = 1\nx",
        "def f(): ...",
        "check('f', lambda: f() == 42)",
    ]
    assert all(not c.get("outputs") for c in cells)
    assert (
        len(pairs.read_notebook(source).cells) == 5
        and pairs.read_notebook(source).cells[1].outputs
    )


def test_a_check_brings_the_cells_it_depends_on_and_no_others():
    sources = [
        "import math",
        "a = 1",
        "b = math.pi + a",
        "unrelated = 5",
        "c = {}",
        "c['k'] = b",
        "!ls",
    ]
    assert student.depends_on({"c"}, sources) == [
        "import math",
        "a = 1",
        "b = math.pi + a",
        "c = {}",
        "c['k'] = b",
    ]
