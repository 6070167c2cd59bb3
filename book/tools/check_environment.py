"""Says OK or MISSING for everything the book needs, and how to fix what is missing.
`make check` runs it.

It needs nothing but Python. `--quiet` prints only what is missing; a word behind it,
such as `site`, asks for what some targets need and for nothing else. The exit status
is 1 when something is missing that cannot be done without.
"""

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# what some targets need: headings of requirements.txt, or names under them
NEEDED = {
    "train": ("the model",),
    "notebooks": ("the model", "the data", "the notebooks"),
    "site": ("jupyter-book", "jupytext"),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
GET_BROWSER = (
    "Debian: apt-get install chromium; elsewhere Google Chrome will do (Ubuntu's "
    "chromium is a snap, which does not start everywhere)"
)


def check_python():
    """A row (ok, name, what was found, how to mend it) for Python itself."""
    found = ".".join(str(part) for part in sys.version_info[:3])
    fix = "install Python 3.11 or newer, then: make PY=/path/to/it"
    return sys.version_info >= (3, 11), "Python", found, fix


def applies(marker):
    """Does a requirement with this marker count on this machine? When it cannot be
    told, yes.
    """
    try:
        from pip._vendor.packaging.markers import Marker
    except ImportError:
        return True
    return not marker or Marker(marker).evaluate()


def pins(part="everything"):
    """The pins of requirements.txt that apply here, as (name, version): all of them, or
    those of a part in NEEDED.
    """
    heading = ""
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            heading = line.removeprefix("# ")
        pin, _, marker = line.partition("#")[0].partition(";")
        name, _, version = pin.strip().partition("==")
        is_part = part == "everything" or {heading, name} & set(NEEDED[part])
        if name and is_part and applies(marker.strip()):
            yield name, version


def check_packages(part="everything", is_given=False):
    """One row for each pin of a part. Into an environment that is given to it, `make`
    installs nothing.
    """
    for name, wanted in pins(part):
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            install = f"{sys.executable} -m pip install {name}=={wanted}"
            by_make = "" if is_given else "run `make lab` or `make test`, or: "
            yield False, name, "", by_make + install
            continue
        if found.partition("+")[0] != wanted:  # 2.13.0+cpu is 2.13.0
            found += f" (the book was tested with {wanted})"
        yield True, name, found, ""


def check_commands():
    """A row (found, needed, name, how to mend it) for each program."""
    git = shutil.which("git") is not None
    make = shutil.which("make") is not None
    npm = shutil.which("npm") is not None
    browser = any(shutil.which(name) for name in BROWSERS)
    # who runs in an environment already needs no means to make one
    is_in_venv = sys.prefix != sys.base_prefix
    venv = is_in_venv or importlib.util.find_spec("ensurepip") is not None
    yield venv, True, "venv", "Debian and Ubuntu: apt-get install python3-venv"
    yield git, True, "git", "install git with your package manager"
    yield make, True, "make", "install make (macOS: xcode-select --install)"
    yield browser, False, "Chromium", f"only the browser tests need it; {GET_BROWSER}"
    fix = "only for a site that works without network; install Node.js"
    yield npm, False, "npm", fix


def main():
    """Prints the rows; 1 when something is missing that is needed."""
    quiet = "--quiet" in sys.argv[1:]
    part = sys.argv[-1] if sys.argv[-1] in NEEDED else "everything"
    packages = check_packages(part, is_given=quiet)
    rows = [(*row, True) for row in (check_python(), *packages)]
    for ok, needed, name, fix in check_commands():
        rows.append((ok, name, "", fix, needed))
    missing = False
    for ok, name, found, fix, needed in rows:
        if not ok and needed:
            missing = True
        if ok and not quiet:
            print(f"OK       {name} {found}".rstrip())
        elif not ok and (needed or not quiet):
            optional = "" if needed else " (optional)"
            print(f"MISSING  {name}{optional}\n         fix: {fix}")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
