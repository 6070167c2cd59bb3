"""Every chapter from an empty folder, with the package from a wheel and no clone around:
`python tests/slow/read_elsewhere.py [NN ...]`. About four minutes.

That is where a reader stands on Colab, or with one notebook in a downloads folder: all
that a chapter reads has to come with the package.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
VARIABLES = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}


def build_wheel(place: Path) -> Path:
    """The package's wheel, built from a copy: the clone stays clean."""
    source = place / "source"
    leave = shutil.ignore_patterns(".*", "_build", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave)
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    command = [*PIP, "wheel", *options, "--wheel-dir", str(place), str(source)]
    subprocess.run(command, check=True)
    return next(place.glob("*.whl"))


def environment(place: Path, wheel: Path) -> Path:
    """A Python that has the wheel, and borrows everything else from this one."""
    home = place / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*PIP, *install, str(wheel)], check=True)
    site = next((home / "lib").glob("python*/site-packages"))
    # .pth files of a borrowed folder are not read: an editable install stays out
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def main(numbers: list[str]) -> int:
    """Runs the chapters with these numbers, or all; the status of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        python = environment(place, build_wheel(place))
        empty = place / "empty"
        empty.mkdir()
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            if not numbers or path.name[:2] in numbers:
                shutil.copy(path, empty)
        shutil.rmtree(place / "source")
        options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600"]
        command = [
            python,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *options,
            ".",
        ]
        return subprocess.run(command, cwd=empty, env=VARIABLES).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
