"""The real source of a function, class or method, shown in a cell, so that a chapter
cannot drift from the package.
"""

import inspect
import textwrap
from pathlib import Path

from ..errors import TilelliError


def show(*objects) -> None:
    """Displays the source of each of `objects`, highlighted, under the file and lines
    it comes from.

    Takes modules, classes, functions, methods (`show(Class.method)`), properties and
    wrapped functions. Raises TilelliError for anything whose Python source cannot be
    read.
    """
    for obj in objects:
        where, source = locate(obj)
        fence = "```"
        while fence in source:  # a docstring may itself hold a fenced block
            fence += "`"
        markdown = f"`{where}`\n\n{fence}python\n{source}\n{fence}"
        _display(markdown, plain=f"# {where}\n{source}")


def locate(obj) -> tuple[str, str]:
    """Returns ("tilelli_nb/data/tokenizer.py, lines 9-31", the dedented source). Raises
    TilelliError as `show` does.
    """
    obj = _inner(obj)
    try:
        lines, first = inspect.getsourcelines(obj)
        module = inspect.getmodule(obj)
        file = inspect.getsourcefile(obj)
    except (TypeError, OSError) as error:
        raise TilelliError(
            f"{_name(obj)} has no Python source to show",
            "give a function, class, method or module that is written in Python",
        ) from error
    source = textwrap.dedent("".join(lines)).rstrip()
    first = max(first, 1)  # inspect says 0 for a whole module
    last = first + source.count("\n")
    numbers = f"lines {first}-{last}" if last > first else f"line {first}"
    return f"{_relative(module, file)}, {numbers}", source


def _inner(obj):
    """Returns the function inside a property, or inside a wrapper that keeps it as `fn`
    (a compiled or Triton kernel).
    """
    if isinstance(obj, property):
        return obj.fget
    inner = getattr(obj, "fn", None)
    if inspect.isfunction(inner) and not inspect.isclass(obj):
        return inner
    return inspect.unwrap(obj)


def _relative(module, file: str) -> str:
    """Returns the file from its package's folder on, the same on every machine; a
    notebook's own code has no file.
    """
    if module is None or module.__name__ == "__main__":
        return "this notebook"
    path = Path(file)
    # tilelli_nb.data.tokenizer is three parts of the path; a package has its
    # __init__.py besides
    parts = len(module.__name__.split("."))
    if path.name == "__init__.py":
        parts += 1
    return "/".join(path.parts[-parts:])


def _name(obj) -> str:
    """Returns what a message calls the object."""
    name = getattr(obj, "__qualname__", None)
    return name or f"an object of type {type(obj).__name__}"


def _display(markdown: str, plain: str) -> None:
    """Displays text that a notebook renders, or prints it in a plain Python."""
    try:
        from IPython.display import display
    except ImportError:
        print(plain)
        return
    display({"text/markdown": markdown, "text/plain": plain}, raw=True)
