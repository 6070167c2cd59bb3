"""The wheel, installed in a clean environment outside the repository, runs the five
lines.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIVE_LINES = """
from tilelli_nb import ByteTokenizer, TilelliLM
tok = ByteTokenizer()
lm = TilelliLM.from_pretrained("tilelli/nano")
out = lm.generate(tok.encode("Once upon a time"), max_new=32)
print(tok.decode(out))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the repository stays clean and nothing of an earlier
    build gets in.
    """
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "tilelli_nb",
        source / "tilelli_nb",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    pip(
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        source / "dist",
        source,
    )
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """A new environment with the wheel in it, and an empty folder to work in. Returns
    run(program, *arguments).
    """
    place = tmp_path_factory.mktemp("elsewhere")
    home, cwd = place / "env", place / "empty"
    cwd.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    pip(
        "--python", home / "bin" / "python", "install", "--no-deps", "--no-index", wheel
    )
    # The dependencies (torch alone has 2 GB) are borrowed from here. A folder that a
    # .pth file adds comes after the environment's own, and its .pth files are not read,
    # so an editable install of the package stays out of sight.
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def run(program, *arguments):
        done = subprocess.run(
            [home / "bin" / program, *arguments],
            cwd=cwd,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def pip(*arguments):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_code_configurations_data_and_weights(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("tilelli_nb/")}
        expected = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / "tilelli_nb").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert inside == expected
        assert all(
            archive.read(name) == (ROOT / name).read_bytes() for name in expected
        )
    for place in ("configs", "data", "weights"):
        assert any(name.startswith(f"tilelli_nb/{place}/") for name in inside), place


def test_the_package_comes_from_the_new_environment(elsewhere):
    said = elsewhere(
        "python",
        "-c",
        "import sys, tilelli_nb; print(sys.prefix); print(tilelli_nb.__file__)",
    )
    prefix, file = said.splitlines()
    assert Path(file).is_relative_to(prefix) and not Path(file).is_relative_to(ROOT)


def test_the_five_lines(elsewhere):
    said = elsewhere("python", "-c", FIVE_LINES)
    assert said.startswith("Once upon a time")
    assert len(said.rstrip("\n").encode()) > len("Once upon a time")


def test_the_command(elsewhere):
    said = elsewhere("tilelli", "--help")
    assert all(command in said for command in ("data", "train", "generate", "info"))
