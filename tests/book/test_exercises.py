"""Every exercise can be solved and cannot be passed by doing nothing or something else:
its check ticks for right answers of any type, crosses for plausible wrong ones, and
says so when nothing was tried.

The answers lie in `answers/NN.py`: a class for each exercise, named after the function
it asks for, with functions `right_...` and `wrong_...` in the place of that function.
"""

import ast
import linecache
import os
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import build
import pairs
import student

ANSWERS = Path(__file__).with_name("answers")
# the pages that a reader may skip ask for nothing
TWINS = [twin for twin in pairs.twins() if not pairs.is_deeper(twin)]
EXERCISES = [
    (twin, exercise)
    for twin in TWINS
    for exercise in student.exercises(pairs.read_twin(twin))
]


@cache
def answers(chapter: str) -> dict[str, dict[str, str]]:
    """The answers to a chapter's exercises as cells: function asked for -> what the
    answer is -> source.
    """
    tree = ast.parse((ANSWERS / f"{chapter}.py").read_text(encoding="utf-8"))
    found = {}
    for group in tree.body:
        if isinstance(group, ast.ClassDef):
            cells = found[group.name] = {}
            for answer in group.body:
                kind, answer.name = answer.name, group.name
                assert kind not in cells, f"two answers {kind} to {group.name}"
                cells[kind] = ast.unparse(answer)
    return found


def run_cell(source: str, namespace: dict, name: str) -> None:
    """Runs a cell as a notebook does, so that Triton can read the source."""
    lines = source.splitlines(keepends=True)
    linecache.cache[name] = (len(source), None, lines, name)
    exec(compile(source, name, "exec"), namespace)


@lru_cache(maxsize=1)
def prepared(folder: Path, needs: tuple[str, ...]) -> dict:
    """The names of a notebook after the cells that an exercise depends on."""
    namespace = {"__name__": "__main__"}
    for number, source in enumerate(needs):
        run_cell(source, namespace, f"<cell {number}>")
    plt.close("all")
    return namespace


def verdict(twin: Path, exercise: student.Exercise, answer: str, capsys) -> str:
    """What the check prints when `answer` stands in the cell of the stub."""
    if "@triton" in exercise.stub and not find_spec("triton"):
        pytest.skip("kernels need Triton, which is for Linux")
    folder, before = pairs.notebook_of(twin).parent, os.getcwd()
    os.chdir(folder)
    try:
        namespace = prepared(folder, tuple(exercise.needs))
        run_cell(answer, namespace, f"<answer {hash(answer)}>")
        capsys.readouterr()
        run_cell(exercise.check, namespace, "<check>")
        return capsys.readouterr().out
    finally:
        os.chdir(before)


EACH = pytest.mark.parametrize(
    "twin, exercise",
    [
        pytest.param(twin, exercise, id=f"{twin.stem}: {exercise.title}")
        for twin, exercise in EXERCISES
    ],
)


@EACH
def test_the_book_solves_it_under_a_name_of_its_own(twin, exercise, capsys):
    own = student.names_defined(exercise.solution)
    assert own == {f"solution_{exercise.name}"}
    assert exercise.name not in student.names_used(exercise.solution)
    solved = verdict(twin, exercise, exercise.answered_by_solution(), capsys)
    assert solved == f"✓ {exercise.title}\n"


@EACH
def test_a_stub_is_not_attempted_yet_though_the_solution_was_run(
    twin, exercise, capsys
):
    cells = f"{exercise.stub}\n{exercise.solution}"
    untouched = verdict(twin, exercise, cells, capsys)
    assert untouched == f"· {exercise.title}: not attempted yet\n"
    assert exercise.stub.endswith("\n    ...  # your code here")


GIVEN = [
    pytest.param(twin, exercise, kind, id=f"{twin.stem}: {exercise.name} {kind}")
    for twin, exercise in EXERCISES
    for kind in answers(twin.stem[:2]).get(exercise.name, {})
]


@pytest.mark.parametrize("twin, exercise, kind", GIVEN)
def test_right_answers_tick_and_wrong_ones_do_not(twin, exercise, kind, capsys):
    answer = answers(twin.stem[:2])[exercise.name][kind]
    said = verdict(twin, exercise, answer, capsys)
    if kind.startswith("right_"):
        assert said == f"✓ {exercise.title}\n", said
    else:
        assert kind.startswith("wrong_")
        assert said.startswith(f"✗ {exercise.title}") and "hint: " in said, said


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_each_exercise_has_three_right_and_three_wrong_answers(twin):
    asked = [exercise.name for owner, exercise in EXERCISES if owner == twin]
    given = answers(twin.stem[:2])
    assert list(given) == asked
    for name, kinds in given.items():
        right = [kind for kind in kinds if kind.startswith("right_")]
        assert len(right) >= 3 and len(kinds) - len(right) >= 3, name


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_a_chapter_has_three_to_five_exercises(twin):
    assert 3 <= len(student.exercises(pairs.read_twin(twin))) <= 5


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_no_cell_takes_the_name_of_what_the_checks_use(twin):
    helpers = {"check", "is_same", "is_close", "as_lists"}
    cells = [
        cell.source for cell in pairs.read_twin(twin).cells if "code" in cell.cell_type
    ]
    binding = [
        source
        for source in cells
        if "%pip" not in source and student.names_defined(source) & helpers
    ]
    assert len(binding) == 1 and "notebook.exercises import" in binding[0]


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_no_check_changes_a_name_of_the_chapter(twin):
    chapter, changed = set(), {}
    for cell in pairs.read_twin(twin).cells:
        if cell.cell_type != "code" or "%pip" in cell.source:
            continue
        names = student.names_defined(cell.source)
        if "check" in student.tags(cell):
            changed[student.title_of(cell.source)] = names & chapter
        elif not student.tags(cell) & student.ROLES:
            chapter |= names
    assert changed and not any(changed.values()), changed


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_solutions_are_folded_in_the_site_and_in_jupyterlab(twin):
    cells = pairs.read_notebook(pairs.notebook_of(twin)).cells
    folds = [
        ("hide-input" in student.tags(cell), dict(cell.metadata.get("jupyter", {})))
        for cell in cells
        if "solution" in student.tags(cell)
    ]
    assert len(folds) >= 3
    assert set(map(str, folds)) == {"(True, {'source_hidden': True})"}


# --- student copies ---


def chapter_with_an_exercise():
    nb = new_notebook(
        cells=[
            new_markdown_cell("text"),
            new_code_cell("x = 1\nx"),
            new_code_cell("def f(): ...", metadata={"tags": ["exercise"]}),
            new_code_cell(
                "def solution_f(): return 42",
                metadata={"tags": ["solution", "hide-input"]},
            ),
            new_code_cell(
                "check('f', lambda: f() == 42, answer=lambda: f)",
                metadata={"tags": ["check"]},
            ),
        ]
    )
    nb.cells[1].outputs = [
        nbformat.v4.new_output("execute_result", {"text/plain": "1"}, execution_count=1)
    ]
    return nb


def test_student_copies_have_no_solutions_and_no_outputs(tmp_path):
    source = tmp_path / "01_x.ipynb"
    pairs.write_notebook(chapter_with_an_exercise(), source)
    [copy], kept = student.write_copies([source], tmp_path / "student")
    cells = pairs.read_notebook(copy).cells
    assert [c.source for c in cells] == [
        "text",
        "x = 1\nx",
        "def f(): ...",
        "check('f', lambda: f() == 42, answer=lambda: f)",
    ]
    assert all(not c.get("outputs") for c in cells) and kept == []
    assert (
        len(pairs.read_notebook(source).cells) == 5
        and pairs.read_notebook(source).cells[1].outputs
    )


def test_a_copy_that_a_student_wrote_in_is_never_written_over(tmp_path):
    source = tmp_path / "01_x.ipynb"
    pairs.write_notebook(chapter_with_an_exercise(), source)
    [copy], _ = student.write_copies([source], tmp_path / "student")
    assert student.write_copies([source], copy.parent) == ([copy], [])
    nb = pairs.read_notebook(copy)
    nb.cells[2].source = "def f(): return 6 * 7"
    pairs.write_notebook(nb, copy)
    before = copy.read_bytes()
    assert student.write_copies([source], copy.parent) == ([], [copy])
    assert copy.read_bytes() == before


def test_an_untouched_copy_runs_to_its_end_and_claims_nothing(monkeypatch):
    for name in ("PYTHONPATH", "PYTHONHASHSEED"):
        monkeypatch.setenv(name, "")  # put back after the test: run() sets them
    chapter = pairs.read_twin(TWINS[1])
    copy = student.student_copy(chapter)
    build.run(copy, pairs.ROOT / "notebooks")
    checks = [cell for cell in copy.cells if "check" in student.tags(cell)]
    assert [cell.outputs[0].text for cell in checks] == [
        f"· {exercise.title}: not attempted yet\n"
        for exercise in student.exercises(chapter)
    ]
    assert all(cell.execution_count for cell in checks)


# --- which cells belong to an exercise ---


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
