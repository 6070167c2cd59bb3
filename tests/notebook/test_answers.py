"""What a check says of an exercise that nobody has tried, and the comparisons that take
any sensible type.
"""

import doctest
import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tilelli_nb.notebook import exercises
from tilelli_nb.notebook.exercises import as_lists, is_close, is_same

# not attempted yet


def stub(x): ...


def stub_with_words(x):
    """What it will be."""
    # your code here


def stub_with_pass(x, *more, key=None):
    pass


class Kernel:  # as Triton wraps a function
    def __init__(self, fn):
        self.fn = fn


@functools.wraps(stub)
def wrapped(x):
    return stub(x)


@pytest.mark.parametrize(
    "answer", [stub, stub_with_words, stub_with_pass, Kernel(stub), wrapped]
)
def test_a_stub_is_not_attempted_yet_and_no_case_is_tried(capsys, answer):
    tried = []
    exercises.check("Bits", lambda: tried.append(1), answer=lambda: answer)
    assert capsys.readouterr().out == "· Bits: not attempted yet\n"
    assert tried == []


def begun(x):
    half = x / 2  # and no return yet
    half += 1


def unfinished(x):
    raise NotImplementedError("soon")


def ignores(x):
    return 0


@pytest.mark.parametrize("answer", [begun, unfinished, ignores, Kernel(begun), 3, None])
def test_an_answer_that_was_begun_is_an_attempt(capsys, answer):
    exercises.check(
        "Bits", (lambda: answer(1) == 1, "look again"), answer=lambda: answer
    )
    out = capsys.readouterr().out
    assert out.startswith("✗ Bits\n") and "hint: look again" in out


def test_a_right_answer_ticks(capsys):
    exercises.check("Root", lambda: math.sqrt(4) == 2, answer=lambda: math.sqrt)
    assert capsys.readouterr().out == "✓ Root\n"


def test_an_answer_whose_cell_was_not_run_is_a_cross_that_says_so(capsys):
    exercises.check(
        "Bits",
        (lambda: never_defined(1) == 1, "look again"),  # noqa: F821
        answer=lambda: never_defined,  # noqa: F821
    )
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("✗ Bits") and "Has the cell that defines it been run?" in out


def test_a_name_that_is_missing_inside_of_an_answer_is_no_cell_that_was_not_run(capsys):
    def total(numbers):
        for n in numbers:
            found += n  # noqa: F821, F841
        return found

    exercises.check(
        "Sum", (lambda: total([1]) == 1, "look again"), answer=lambda: total
    )
    out = " ".join(capsys.readouterr().out.split())
    assert "UnboundLocalError" in out and "been run" not in out


# comparisons


def test_as_lists_gives_lists_and_numbers_of_python():
    rows = [(1, 2), np.array([3, 4]), torch.tensor([5.0, 6.0], requires_grad=True)]
    assert as_lists(rows) == [[1, 2], [3, 4], [5.0, 6.0]]
    assert as_lists(x * x for x in range(3)) == [0, 1, 4]
    assert (
        type(as_lists(np.float32(0.5))) is float and type(as_lists(np.bool_(1))) is bool
    )
    assert (
        as_lists(torch.tensor(7)) == 7
        and as_lists("ab") == "ab"
        and as_lists(b"ab") == b"ab"
    )
    assert as_lists(None) is None and as_lists({1, 2}) == {1, 2}


PAIR = [
    [1, 2],
    (1.0, 2.0),
    range(1, 3),
    np.array([1, 2], dtype=np.uint8),
    torch.tensor([1, 2]),
    torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    [np.int64(1), torch.tensor(2.0)],
    (Fraction(n) for n in (1, 2)),
]


@pytest.mark.parametrize("compare", [is_same, is_close])
@pytest.mark.parametrize("found", PAIR[:-1], ids=lambda x: type(x).__name__)
def test_the_same_numbers_in_any_container_agree(compare, found):
    assert compare(found, [1, 2]) is True
    assert compare((1, 2), found) is True
    assert compare([found, found], ((1, 2), (1, 2))) is True
    assert compare(found, [1, 3]) is False
    assert compare(found, [2, 1]) is False
    assert compare(found, [1, 2, 2]) is False
    assert compare(found, [[1, 2]]) is False
    assert compare(found, 1) is False


def test_a_generator_is_read():
    assert is_same(PAIR[-1], [1, 2])


@pytest.mark.parametrize(
    "found, expected, agree",
    [
        (np.bool_(True), True, True),
        (torch.tensor(False), False, True),
        (np.str_("hot"), "hot", True),
        ("hot", ["h", "o", "t"], False),
        ({1, 2}, [1, 2], False),  # a set has no order
        (None, None, True),
        (None, 0, False),
        ([], np.zeros(0), True),
        ([None], [0], False),
        (np.array(["a", "b"]), ("a", "b"), True),
        (0.1 + 0.2, 0.3, False),
    ],
)
def test_is_same_is_exact(found, expected, agree):
    assert is_same(found, expected) is agree


@pytest.mark.parametrize(
    "found, expected, agree",
    [
        (torch.tensor(2 / 3), 2 / 3, True),  # fp32
        (np.float32(1e7) / 3, 1e7 / 3, True),
        (1.00001, 1.0, False),
        (0.0, 1e-5, False),
        (1e-7, 0.0, True),
        (1e7 + 1, 1e7, True),
        (1e7 + 11, 1e7, False),
        (math.nan, math.nan, False),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        (Fraction(1, 3), 1 / 3, True),
        ([[0.5, [0.25]]], ((0.5, (0.25,)),), True),
    ],
)
def test_is_close_allows_for_rounding(found, expected, agree):
    assert bool(is_close(found, expected)) is agree


def test_the_tolerance_can_be_another():
    assert is_close([1.0, 2.0], [1.0, 2.1], tolerance=0.06)
    assert not is_close([1.0, 2.0], [1.0, 2.1], tolerance=0.04)


def test_comparing_numbers_with_none_or_words_is_a_cross(capsys):
    exercises.check("Words", (lambda: is_close("two", 2.0), "a number"))
    exercises.check("None", (lambda: is_close(None, 2.0), "a number"))
    assert capsys.readouterr().out.count("✗") == 2


def test_the_examples_of_the_module():
    assert doctest.testmod(exercises).attempted >= 6
    assert doctest.testmod(exercises).failed == 0
