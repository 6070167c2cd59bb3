"""Checks that print a tick or a cross with a hint, and never raise: a wrong answer must
not stop a notebook.
"""

import textwrap
from collections.abc import Callable

TICK, CROSS = "✓", "✗"


def check(title: str, *cases: Callable | tuple[Callable, str]) -> None:
    """Prints a tick when every case holds, otherwise a cross with the hint of the first
    that does not.

    A case is `(test, hint)` or just `test`: a function without arguments whose result
    is true when the answer is right. Whatever goes wrong inside a test (an exception, a
    missing function, a result of None) is a cross.

    >>> check("One byte", (lambda: len(b"a") == 1, "count again"))
    ✓ One byte
    """
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
    for line in failures[0]:
        print(textwrap.fill(line, 72, initial_indent="  ", subsequent_indent="  "))


def _failure(case) -> list[str] | None:
    """Returns None when the case holds, else the lines that help: what was raised, if
    anything, and the hint.
    """
    test, hint = case, ""
    if isinstance(case, tuple) and len(case) == 2:
        test, hint = case
    lines = []
    try:
        if bool(test()):
            return None
    except NameError as error:
        lines.append(f"{_describe(error)}. Has the cell that defines it been run?")
    # a reader's code may raise anything; only an interrupt goes through
    except (Exception, SystemExit) as error:
        lines.append(_describe(error))
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
