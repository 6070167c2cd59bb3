"""The wheel, installed in a clean environment outside the repository and cut off from
the network, runs the five lines.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The five lines of the published recipe, word for word.
RECIPE = """\
from tilelli_nb import TilelliLM, ByteTokenizer
tok = ByteTokenizer()
lm = TilelliLM.from_pretrained("tilelli/lite-10m")
out = lm.generate(tok.encode("Once upon a time"), max_new=128)
print(tok.decode(out))
"""
RECIPES_NAME = "tilelli/lite-10m"
WEIGHTS = sorted((ROOT / "tilelli_nb" / "weights").glob("*/model.safetensors"))
BUNDLED = [f"tilelli/{path.parent.name}" for path in WEIGHTS]
WRITERS = [name for name in BUNDLED if not name.endswith("-chat")]
TALKERS = [name for name in BUNDLED if name.endswith("-chat")]
NO_NETWORK = """
import socket

def refuse(*about):
    raise OSError("this test has no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def readme_lines():
    """The Python block of the README, as a reader copies it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == 1, "the README shows one piece of Python: the five lines"
    return blocks[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the repository stays clean and nothing of an earlier
    build gets in.
    """
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("tilelli_nb", "book"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
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
    (site / "sitecustomize.py").write_text(NO_NETWORK)
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


def files_under(folder):
    """All files below a folder, without what Python makes of them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in files if "__pycache__" not in path.parts]


def expected_in_the_wheel():
    """Name in the wheel -> the file of the repository: the package, and what chapters
    read of the folder book.
    """
    expected = {
        path.relative_to(ROOT).as_posix(): path
        for path in files_under(ROOT / "tilelli_nb")
    }
    book = ROOT / "book"
    read_by_chapters = [book / "claims.yml", *files_under(book / "slurm")]
    for path in [*read_by_chapters, *files_under(book / "runs")]:
        expected[f"tilelli_nb/book/{path.relative_to(book).as_posix()}"] = path
    return expected


def test_the_wheel_holds_code_configurations_data_weights_and_records(wheel):
    expected = expected_in_the_wheel()
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("tilelli_nb/")}
        assert inside == expected.keys()
        for name, path in expected.items():
            assert archive.read(name) == path.read_bytes(), name
    for place in ("configs", "data", "weights", "book/runs", "book/slurm"):
        assert any(name.startswith(f"tilelli_nb/{place}/") for name in inside), place


def test_records_are_found_from_an_empty_folder(elsewhere):
    """Where a reader has the package and a notebook, and no clone: on Colab."""
    said = elsewhere(
        "python",
        "-c",
        "from tilelli_nb.storage.records import load_record, runs_folder\n"
        "names = sorted(path.name for path in runs_folder().iterdir())\n"
        "print(*names, *sorted(p.name for p in runs_folder().parent.iterdir()))\n"
        "print(load_record('nano-stories')['val_bpb'])",
    )
    runs = sorted(path.name for path in (ROOT / "book" / "runs").iterdir())
    names, val_bpb = said.splitlines()
    assert names.split() == [*runs, "claims.yml", "runs", "slurm"]
    record = (ROOT / "book" / "runs" / "nano-stories" / "run.json").read_text()
    assert f'"val_bpb": {val_bpb}' in record


def test_the_package_comes_from_the_new_environment(elsewhere):
    said = elsewhere(
        "python",
        "-c",
        "import sys, tilelli_nb; print(sys.prefix); print(tilelli_nb.__file__)",
    )
    prefix, file = said.splitlines()
    assert Path(file).is_relative_to(prefix) and not Path(file).is_relative_to(ROOT)


def test_there_is_no_network(elsewhere):
    code = "import urllib.request as r\ntry: r.urlopen('http://127.0.0.1:9')"
    said = elsewhere("python", "-c", code + "\nexcept OSError as error: print(error)")
    assert "this test has no network" in said


def check_story(said):
    """The prompt and something after it, as the last of the five lines prints them."""
    assert said.startswith("Once upon a time")
    assert len(said.rstrip("\n").encode()) > len("Once upon a time") + 20


@pytest.mark.parametrize("name", WRITERS)
def test_the_five_lines_with_every_bundled_model(elsewhere, name):
    """With one of them they are the recipe's, word for word."""
    assert RECIPES_NAME in WRITERS
    check_story(elsewhere("python", "-c", RECIPE.replace(RECIPES_NAME, name)))


@pytest.mark.parametrize("name", TALKERS)
def test_a_bundled_chat_model_answers_and_refuses(elsewhere, name):
    said = elsewhere(
        "python",
        "-c",
        "from tilelli_nb import TilelliLM\n"
        f"lm = TilelliLM.from_pretrained({name!r})\n"
        "print(lm.chat('What is the capital of France?').text)\n"
        "print(lm.chat('What did I eat this morning?').text)",
    )
    answer, refusal = said.splitlines()
    assert answer == "Paris."
    assert refusal.startswith("I don't know")


def test_the_readme_has_the_recipe_word_for_word():
    assert readme_lines() == RECIPE


def test_chapter_00_has_the_recipe_word_for_word():
    chapter = (ROOT / "book" / "00_welcome.md").read_text(encoding="utf-8")
    cell = f"```{{code-cell}} ipython3\n:tags: [wrap]\n\n{RECIPE}```\n"
    assert chapter.count(cell) == 1


def test_the_command(elsewhere):
    said = elsewhere("tilelli", "--help")
    assert all(command in said for command in ("data", "train", "generate", "info"))
