"""The book's pipeline. `python book/tools/build.py --help` lists the commands; `make`
calls them.

`sync` carries the text of a chapter (book/NN_name.md) into its notebook, `execute` runs
the notebook in place and stamps it, `check` says what is wrong. Nothing that somebody
wrote in a notebook is lost on the way, unless `--force` says so.
"""

import argparse
import base64
import hashlib
import io
import os
import sys
from pathlib import Path

import nbformat

import offline
import pairs
from checks import CHECKS, book_problems, is_stale, stamp_of
from pairs import ROOT, keep, notebooks, read_notebook, write_notebook

WIDGETS = "application/vnd.jupyter.widget-state+json"
CELL_TIMEOUT = 600  # seconds; a busy machine passes two minutes
# without it each kernel warns that it talks over local TCP
QUIET = ["--IPKernelApp.log_level=40"]


def execute(path: Path) -> None:
    """Runs the notebook in its own folder and writes it back; a cell that raises leaves
    the file as it was.
    """
    nb = read_notebook(path)
    nb.metadata.pop("widgets", None)
    agreed = keep(nb.metadata.get("tilelli", {}), "text")
    run(nb, path.parent)
    nb = tidy(nb, path.stem)
    nb.metadata["tilelli"] = {**agreed, "stamp": stamp_of(path, nb)}
    write_notebook(nb, path)


def run(nb, folder: Path) -> None:
    """Runs all cells in a fresh kernel that works in `folder`; outputs go into `nb`."""
    from nbclient import NotebookClient

    set_environment()
    client = NotebookClient(
        nb,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=True,
        extra_arguments=QUIET,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def set_environment() -> None:
    """Prepares the variables that a kernel gets from this process."""
    folders = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        folders.append(os.environ["PYTHONPATH"])
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    os.environ["PYTHONHASHSEED"] = "0"  # the order of a printed set stays the same
    os.environ.pop("MPLBACKEND", None)  # the kernel shows figures itself


def tidy(nb, stem: str):
    """Returns the executed notebook, small, and without what differs from run to run:
    times, versions, random widget ids.
    """
    nb.metadata = nbformat.from_dict({**keep(nb.metadata, "widgets"), **pairs.HEADER})
    for cell in nb.cells:
        cell.metadata = nbformat.from_dict(
            keep(cell.metadata, "tags", "mystnb", "jupyter")
        )
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = fewer_colours(output.data["image/png"])
    states = nb.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    if not states:
        nb.metadata.pop("widgets", None)
    text = nbformat.writes(nb)
    for i, model in enumerate(states):  # in the order in which the kernel made them
        same_each_time = hashlib.sha256(f"{stem} {i}".encode()).hexdigest()[:32]
        text = text.replace(model, same_each_time)
    return nbformat.reads(text, as_version=4)


def fewer_colours(png: str) -> str:
    """Returns a PNG in base64 with a palette: the eye sees no difference, and the file
    has a third of the size.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    # the usual way, median cut, gives a small mark the colour of a large area near it
    picture = picture.quantize(
        256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def chosen(names: list[str], found: list[Path]) -> list[Path]:
    """Returns the paths whose name starts with one of `names` (all without names): `01`
    is enough, and a whole name means that page alone.
    """
    for name in names:
        if not any(path.stem.startswith(name) for path in found):
            known = ", ".join(path.stem for path in found)
            sys.exit(f"no chapter starts with {name}; there are {known}")
    if not names:
        return found
    stems = [path.stem for path in found]
    starts = tuple(name for name in names if name not in stems)
    return [
        path
        for path in found
        if path.stem in names or (starts and path.stem.startswith(starts))
    ]


def command_sync(args) -> int:
    return carry(pairs.sync, chosen(args.names, pairs.twins()), args.force)


def command_adopt(args) -> int:
    return carry(pairs.adopt, chosen(args.names, notebooks()), args.force)


def carry(way, paths: list[Path], force: bool) -> int:
    """Carries each chapter one way or the other; returns 1 if one was left alone."""
    failed = 0
    for path in paths:
        try:
            print(way(path, force))
        except pairs.WouldDiscard as reason:
            failed = 1
            print(reason, file=sys.stderr)
    return failed


def command_execute(args) -> int:
    from nbclient.exceptions import (
        CellExecutionError,
        CellTimeoutError,
        DeadKernelError,
    )

    failed = 0
    for path in chosen(args.names, notebooks()):
        if not args.force and not is_stale(path):
            print(f"{path.stem}: fresh")
            continue
        try:
            execute(path)
            print(f"{path.stem}: executed")
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed = 1
            said = f"{path.stem}: stopped, the file is as it was\n{error}"
            print(said, file=sys.stderr)
    return failed


def command_stale(args) -> int:
    stale = [path.stem for path in chosen(args.names, notebooks()) if is_stale(path)]
    print("\n".join(stale) or "nothing is stale")
    return 0


def command_check(args) -> int:
    problems = book_problems()
    for path in chosen(args.names, notebooks()):
        for check in CHECKS:
            problems += check(path)
    print("\n".join(problems) or "nothing to complain about")
    return 1 if problems else 0


def command_vendor(args) -> int:
    print(offline.fetch())
    return 0


def command_student(args) -> int:
    import student  # it needs nbconvert, which the pages do not

    written, kept = student.write_copies(chosen(args.names, notebooks()))
    place = student.FOLDER.relative_to(ROOT)
    print(f"{len(written)} copies without solutions and outputs written to {place}/")
    for path in kept:
        said = f"{place}/{path.name} has something of yours in it and stays as it is;"
        print(said, "for a fresh copy, give it another name first")
    return 0


COMMANDS = {
    "sync": (command_sync, "carry book/NN_name.md into its notebook, in place"),
    "adopt": (
        command_adopt,
        "the other way: write book/NN_name.md from a notebook that was edited",
    ),
    "execute": (command_execute, "run stale notebooks in place and stamp them"),
    "stale": (
        command_stale,
        "list the notebooks whose outputs are older than their code",
    ),
    "check": (command_check, "list what is wrong with the chapters"),
    "student": (command_student, "write copies without the solutions into student/"),
    "vendor": (command_vendor, "fetch the scripts that make the site work offline"),
}
FORCED = {
    "sync": "give up what was written in the notebooks",
    "adopt": "give up what was written in the texts",
    "execute": "also those that are fresh",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, (function, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function, names=[], force=False)
        if name != "vendor":
            command.add_argument(
                "names",
                nargs="*",
                help="chapters, by the start of their name (default: all)",
            )
        if name in FORCED:
            command.add_argument("--force", action="store_true", help=FORCED[name])
    args = parser.parse_args()
    return args.function(args)


if __name__ == "__main__":
    sys.exit(main())
