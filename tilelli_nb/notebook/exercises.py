"""Checks that print a tick, a cross with a hint or that nothing was tried yet, and
never raise: a wrong answer must not stop a notebook. And comparisons for them, which
take whatever a right answer may return.
"""

import dis
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Set

TICK, CROSS, OPEN = "✓", "✗", "·"


def check(
    title: str,
    *cases: Callable | tuple[Callable, str],
    answer: Callable | None = None,
) -> None:
    """Prints a tick when every case holds, otherwise a cross with the hint of the first
    that does not.

    A case is `(test, hint)` or just `test`: a function without arguments whose result
    is true when the answer is right. Whatever goes wrong inside a test (an exception, a
    missing function, a result of None) is a cross.

    `answer` is for exercises: a function without arguments that gives the reader's own
    function. While that has no body but `...`, no case is tried.

    >>> check("One byte", (lambda: len(b"a") == 1, "count again"))
    ✓ One byte
    >>> def bits(probabilities): ...
    >>> check("Bits", lambda: bits([0.5]) == 1, answer=lambda: bits)
    · Bits: not attempted yet
    """
    if answer is not None and _is_stub(answer):
        print(f"{OPEN} {title}: not attempted yet")
        return
    failures = []  # what is said about each case that does not hold
    for case in cases:
        said = _failure(case)
        if said is not None:
            failures.append(said)
    if not cases:
        failures = [["this check has no cases"]]
    if not failures:
        print(f"{TICK} {title}")
        return
    count = ""
    if len(cases) > 1:
        count = f" ({len(cases) - len(failures)} of {len(cases)} right)"
    print(f"{CROSS} {title}{count}")
    for line in failures[0]:  # the others may be wrong because of this one
        print(textwrap.fill(line, 72, initial_indent="  ", subsequent_indent="  "))


def _is_stub(answer: Callable) -> bool:
    """Is what `answer()` gives a function whose body is `...`, `pass` or only words?

    A kernel of Triton keeps the function that it was made from as `fn`.
    """
    try:
        function = answer()
        function = inspect.unwrap(getattr(function, "fn", function))
        code = function.__code__
    # the cell was never run, or it made no function: the cases will say so
    except Exception:
        return False
    steps = []
    for step in dis.get_instructions(code):
        if step.opname not in ("RESUME", "NOP"):
            steps.append((step.opname, step.argval))
    # the second is what Python 3.12 and 3.13 make of the first
    return steps in (
        [("LOAD_CONST", None), ("RETURN_VALUE", None)],
        [("RETURN_CONST", None)],
    )


def _failure(case) -> list[str] | None:
    """Returns None when the case holds, else the lines that help: what was raised, if
    anything, and the hint.
    """
    test, hint = case, ""
    if isinstance(case, tuple) and len(case) == 2:
        test, hint = case
    lines = []
    try:
        if bool(test()):  # an array of several numbers raises here: a cross
            return None
    # a reader's code may raise anything; only an interrupt goes through
    except (Exception, SystemExit) as error:
        said = _describe(error)
        # not for its relative UnboundLocalError, whose name is in the cell itself
        if type(error) is NameError:
            said += ". Has the cell that defines it been run?"
        lines.append(said)
    if hint:
        lines.append(f"hint: {hint}")
    return lines or ["not yet"]


def _describe(error: BaseException) -> str:
    """Returns the kind of an exception and the first line of what it says."""
    try:
        said = str(error).strip().partition("\n")[0]
    except Exception:  # an exception whose own __str__ is broken
        said = ""
    raised = f"it raised {type(error).__name__}"
    return f"{raised}: {said}" if said else raised


def as_lists(value: object) -> object:
    """Returns the value as nested lists of Python's own numbers, whatever held them: a
    list, tuple, range or generator, an array of NumPy, a tensor. Anything else, such as
    a number, a text or None, comes back as it is.

    >>> as_lists((1, range(2)))
    [1, [0, 1]]
    """
    if hasattr(value, "tolist"):  # NumPy and PyTorch, numbers of theirs too
        return value.tolist()
    # a set has no order to compare; a text is one value, not a list of letters
    unordered = isinstance(value, (str, bytes, Mapping, Set))
    if isinstance(value, Iterable) and not unordered:
        return [as_lists(each) for each in value]
    return value


def is_same(found, expected) -> bool:
    """Do both hold the same values in the same order and shape? The kind of container
    and the type of the numbers make no difference.

    >>> is_same((1, 2.0), [1, 2])
    True
    """
    return _agree(as_lists(found), as_lists(expected), lambda a, b: bool(a == b))


def is_close(found, expected, tolerance: float = 1e-6) -> bool:
    """Do both hold the same numbers in the same order and shape, up to rounding?

    `tolerance` is relative for numbers above one and absolute below: large enough for
    answers in fp32. NaN is close to nothing.

    >>> is_close([0.1 + 0.2], (0.3,))
    True
    """

    def near(a, b) -> bool:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)

    return _agree(as_lists(found), as_lists(expected), near)


def _agree(found, expected, agree: Callable) -> bool:
    """Compares what `as_lists` gave, number by number."""
    # a number is not the list that holds it alone
    if isinstance(found, list) != isinstance(expected, list):
        return False
    if not isinstance(found, list):
        return agree(found, expected)
    if len(found) != len(expected):
        return False
    pairs = zip(found, expected, strict=True)
    return all(_agree(mine, theirs, agree) for mine, theirs in pairs)
