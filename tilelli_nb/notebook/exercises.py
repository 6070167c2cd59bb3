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
    failures = [
        (number, said)
        for number, case in enumerate(cases, 1)
        if (said := _failure(case)) is not None
    ]
    if cases and not failures:
        print(f"{TICK} {title}")
        return
    right = (
        f" ({len(cases) - len(failures)} of {len(cases)} right)"
        if len(cases) > 1
        else ""
    )
    print(f"{CROSS} {title}{right}")
    for line in failures[0][1] if failures else ["this check has no cases"]:
        print(textwrap.fill(line, 72, initial_indent="  ", subsequent_indent="  "))


def _failure(case) -> list[str] | None:
    """None when the case holds, else the lines that help: what was raised, if anything,
    and the hint.
    """
    test, hint = case if isinstance(case, tuple) and len(case) == 2 else (case, "")
    raised = None
    try:
        if bool(test()):
            return None
    except NameError as error:
        raised = f"{_describe(error)}. Has the cell that defines it been run?"
    # a reader's code may raise anything; only an interrupt goes through
    except (Exception, SystemExit) as error:
        raised = _describe(error)
    return [line for line in (raised, hint and f"hint: {hint}") if line] or ["not yet"]


def _describe(error: BaseException) -> str:
    try:
        said = str(error).strip().partition("\n")[0]
    except Exception:  # an exception whose own __str__ is broken
        said = ""
    return f"it raised {type(error).__name__}" + (f": {said}" if said else "")
