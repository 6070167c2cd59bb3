"""Says OK or MISSING for everything the book needs, and how to fix what is missing.
`make check` runs it.

It needs nothing but Python. `--quiet` prints only what is missing. The exit status is 1
when something is missing that the book cannot do without.
"""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def check_python():
    found = ".".join(map(str, sys.version_info[:3]))
    return (
        sys.version_info >= (3, 11),
        "Python",
        found,
        "install Python 3.11 or newer, then: make PY=/path/to/it",
    )


def applies(marker):
    """Does a requirement with this marker count on this machine? When it cannot be
    told, yes.
    """
    try:
        from pip._vendor.packaging.markers import Marker
    except ImportError:
        return True
    return not marker or Marker(marker).evaluate()


def check_packages():
    """One row for each pin of requirements.txt that applies here."""
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        pin, _, marker = (part.strip() for part in line.split("#")[0].partition(";"))
        if not pin or not applies(marker):
            continue
        name, _, wanted = pin.partition("==")
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield (
                False,
                name,
                "",
                f"run `make book`, or: {sys.executable} -m pip install {pin}",
            )
            continue
        same = re.split(r"[+]", found)[0] == wanted
        yield (
            True,
            name,
            found if same else f"{found} (the book was tested with {wanted})",
            "",
        )


def check_commands():
    """Programs, and whether the book can do without them."""
    yield (
        bool(shutil.which("git")),
        True,
        "git",
        "install git with your package manager",
    )
    yield (
        bool(shutil.which("make")),
        True,
        "make",
        "install make (macOS: xcode-select --install)",
    )
    browser = any(shutil.which(name) for name in BROWSERS)
    yield (
        browser,
        False,
        "Chromium",
        "only the browser tests need it; Debian and Ubuntu: apt-get install chromium",
    )
    yield (
        bool(shutil.which("npm")),
        False,
        "npm",
        "only for a site that works without network; install Node.js",
    )


def main():
    quiet = "--quiet" in sys.argv[1:]
    rows = [(*row, True) for row in (check_python(), *check_packages())]
    rows += [(ok, name, "", fix, needed) for ok, needed, name, fix in check_commands()]
    for ok, name, found, fix, needed in rows:
        if ok and not quiet:
            print(f"OK       {name} {found}".rstrip())
        elif not ok and (needed or not quiet):
            print(
                f"MISSING  {name}{'' if needed else ' (optional)'}\n         fix: {fix}"
            )
    return any(needed and not ok for ok, _, _, _, needed in rows)


if __name__ == "__main__":
    sys.exit(main())
