"""Cells and outputs that are too wide for the column of the site."""

import re
from pathlib import Path

from pairs import read_notebook

MAX_COLUMNS = 79  # of a cell and of what it prints
MAX_SOURCE_COLUMNS = 88  # of the package's source, which `show` displays
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # takes no place on the screen


def width_problems(path: Path) -> list[str]:
    """Finds cells and printed outputs of more than 79 columns, and shown source of more
    than 88. What a cell tagged `wrap` prints goes on in the next line: it may be wider.
    """
    problems = []
    for i, cell in enumerate(read_notebook(path).cells):
        if cell.cell_type != "code":
            continue
        columns = widest_line(cell.source)
        if columns > MAX_COLUMNS:
            problems.append(
                f"{path.stem}: cell {i}: {columns} columns of code, "
                f"more than {MAX_COLUMNS}"
            )
        if "wrap" in cell.metadata.get("tags", []):
            continue
        for output in cell.outputs:
            shows_source = "text/markdown" in output.get("data", {})
            limit = MAX_SOURCE_COLUMNS if shows_source else MAX_COLUMNS
            columns = widest_line(shown_text(output))
            if columns > limit:
                problems.append(
                    f"{path.stem}: cell {i}: {columns} columns of output, "
                    f"more than {limit}"
                )
    return problems


def shown_text(output: dict) -> str:
    """Returns the text that a page shows of an output: none where a picture, a table
    or a widget stands for it.
    """
    data = output.get("data", {})
    if "text/markdown" in data:
        return data["text/markdown"]
    if len(data) > 1:  # a page takes the richer form
        return ""
    traceback = "\n".join(output.get("traceback", []))
    return output.get("text", "") or data.get("text/plain", "") or traceback


def widest_line(text: str) -> int:
    """Counts the characters of the longest line."""
    lines = COLOUR.sub("", text).splitlines()
    return max((len(line) for line in lines), default=0)
