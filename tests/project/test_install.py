"""What is installed where: no CUDA where there is no card for it, and no PyTorch at all
to render the pages.
"""

import ast
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import check_environment
import install
import pairs
import stamps

WITHOUT_CUDA = ["--index-url", install.CPU_INDEX]


@pytest.fixture
def machine(monkeypatch):
    """Says what machine this is: its system, whether a card and an index are there."""

    def be(system="Linux", kind="x86_64", card=False, index=True):
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: kind)
        monkeypatch.setattr(install, "has_nvidia_card", lambda: card)
        monkeypatch.setattr(install, "answers", lambda address: index)

    return be


def test_the_site_needs_no_pytorch():
    said, commands = install.commands("site")
    (command,) = commands
    names = [pin.partition("==")[0] for pin in command if "==" in pin]
    assert names == ["jupytext", "jupyter-book"]
    assert "no PyTorch" in said


@pytest.mark.parametrize(
    "about, first, size",
    [
        ({}, True, install.CPU_SIZE),
        ({"kind": "aarch64"}, True, install.CPU_SIZE),
        ({"card": True}, False, install.CUDA_SIZE),
        ({"card": True, "index": False}, False, install.CUDA_SIZE),
        ({"index": False}, False, install.CUDA_SIZE),
        ({"system": "Darwin", "kind": "arm64"}, False, install.CPU_SIZE),
    ],
    ids=str,
)
def test_pytorch_comes_without_cuda_where_no_card_is(machine, about, first, size):
    machine(**about)
    said, commands = install.commands("everything")
    assert size in said
    (torch,) = install.pins(("torch",))
    assert ([torch, *WITHOUT_CUDA] == commands[0][-3:]) is first
    *_, requirements, package = commands
    assert requirements[-2:] == ["-r", str(install.ROOT / "requirements.txt")]
    assert package[-2:] == ["-e", str(install.ROOT)]
    assert len(commands) == 2 + first


def test_pins_are_those_of_the_file():
    pins = install.pins()
    text = (install.ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert len(pins) == sum("==" in line for line in text.splitlines())
    assert all(pin.count("==") >= 1 for pin in pins)


@pytest.mark.parametrize(
    "script, found",
    [
        ("echo 'GPU 0: NVIDIA RTX A6000'", True),
        ("echo 'No devices were found'", False),
        ("echo 'GPU access blocked'; exit 9", False),
    ],
)
def test_a_card_is_what_the_driver_says(tmp_path, monkeypatch, script, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    assert install.has_nvidia_card() is found
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not install.has_nvidia_card()


def test_a_place_where_nobody_is_does_not_answer():
    assert not install.answers("http://127.0.0.1:9/")


def test_a_failed_command_ends_it(monkeypatch, capsys):
    monkeypatch.setattr(
        install, "commands", lambda what: ("it", [["false"], ["touch", "never"]])
    )
    ran = []

    def run(command):
        ran.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    assert install.main(["site"]) == 1 and ran == [["false"]]
    assert install.main(["both"]) == 2
    assert "Installing it into" in capsys.readouterr().out


# --- environments that make did not make, or did not fill ---

PYTHON = """\
#!/bin/sh
# a Python that says what it would run; as -m venv it copies itself into the folder
echo "python $*"
case "$*" in "-m venv "*)
  for folder; do :; done
  mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" && cp "$0" "$folder/bin/jupyter-book"
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs a target of the Makefile in a folder with little else: what it would run."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(install.ROOT / name, tmp_path)
    (tmp_path / "_build" / "html").mkdir(parents=True)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)

    def run(*words):
        command = ["make", "PY=./python", *words]
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        env.pop("VENV", None)
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_make_installs_what_its_own_environment_needs(make):
    assert "install.py everything" in make("lint")
    assert "install.py" not in make("lint")
    assert "check_environment" not in make("train")


@pytest.mark.parametrize(
    "target, part",
    [
        ("lint", "everything"),
        ("test-package", "everything"),
        ("lab", "notebooks"),
        ("execute", "notebooks"),
        ("train", "train"),
        ("reproduce", "train"),
        ("book", "site"),
    ],
)
def test_an_environment_of_ones_own_is_asked_for_what_the_target_needs(
    make, tmp_path, target, part
):
    make("VENV=own", "lint")
    (tmp_path / "own" / ".ready").unlink()  # as if somebody else had made it
    said = make("VENV=own", target)
    assert f"check_environment.py --quiet {part}\n" in said
    assert "install.py" not in said


def test_what_make_pod_makes_is_not_taken_for_everything(make):
    """It has no tests, and nothing is to replace its PyTorch."""
    assert "-m venv --system-site-packages .venv" in make("pod")
    assert "check_environment.py --quiet train\n" in make("train")
    said = make("lint")
    assert "check_environment.py --quiet everything\n" in said
    assert "install.py" not in said
    assert "check_environment.py --quiet site\n" in make("book")


def test_which_pins_a_target_needs():
    def names(*part):
        return [name for name, version in check_environment.pins(*part)]

    assert names("train")[0] == "torch" and "datasets" not in names("train")
    assert {"torch", "datasets", "jupyterlab"} <= set(names("notebooks"))
    assert "pytest" not in names("notebooks")
    assert sorted(names("site")) == sorted(install.OF_THE_SITE)
    assert set(names("notebooks")) | set(names("site")) < set(names())
    assert names() == [
        pin.partition("==")[0]
        for pin in install.pins()
        if check_environment.applies(pin.partition(";")[2].strip())
    ]


# --- Binder, which reads the folder binder/ and no other file ---

BINDER = install.ROOT / "binder"


def binder_lines():
    lines = (BINDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_binder_has_the_python_of_the_tests():
    runtime = (BINDER / "runtime.txt").read_text(encoding="utf-8")
    workflow = install.ROOT / ".github" / "workflows" / "test.yml"
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    (version,) = [
        step["with"]["python-version"]
        for step in jobs["test"]["steps"]
        if "python-version" in step.get("with", {})
    ]
    assert runtime == f"python-{version}\n"


def test_binder_has_the_pinned_versions_and_no_cuda():
    lines = binder_lines()
    assert f"--extra-index-url {install.CPU_INDEX}" in lines
    (constraints,) = [line.split()[1] for line in lines if "--constraint" in line]
    assert (BINDER / constraints).samefile(install.ROOT / "requirements.txt")
    assert "--editable .[data]" in lines
    for name in (line for line in lines if not line.startswith("--")):
        assert install.pins((name,)), name
    # of one version, pip takes the build without CUDA before the one with it
    assert Version("2.13.0+cpu") > Version("2.13.0")
    assert "2.13.0+cpu" in SpecifierSet("==2.13.0")


def test_binder_has_what_the_pages_import():
    project = tomllib.loads((install.ROOT / "pyproject.toml").read_text("utf-8"))
    project = project["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["data"]
    there = {re.match(r"[\w-]+", line)[0] for line in [*wanted, *binder_lines()]}
    there |= {"tilelli_nb", "IPython", *sys.stdlib_module_names}  # ipywidgets needs it
    for notebook in pairs.notebooks():
        cells = pairs.read_notebook(notebook).cells
        for node in stamps.nodes([c.source for c in cells if c.cell_type == "code"]):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= there, notebook.name


# --- a browser ---


@pytest.mark.parametrize(
    "system, installs",
    [("ID=debian", True), ("ID=ubuntu", False), ('ID="ubuntu"', False)],
)
def test_where_chromium_is_a_snap_it_is_not_installed(tmp_path, system, installs):
    """A machine without a browser, whose programs only say that they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "sudo", "make"):
        (programs / name).write_text(f"#!/bin/sh\necho {name} $*\n")
    for name in ("bash", "dirname", "grep", "id"):
        (programs / name).symlink_to(shutil.which(name))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text("#!/bin/sh\n")
    (tmp_path / "os-release").write_text(f"NAME=It\n{system}\nID_LIKE=debian\n")
    script = (install.ROOT / ".ci" / "run").read_text(encoding="utf-8")
    run = tmp_path / ".ci" / "run"
    run.parent.mkdir()
    run.write_text(script.replace("/etc/os-release", str(tmp_path / "os-release")))
    for program in (*programs.glob("*"), tmp_path / ".venv" / "bin" / "python"):
        if not program.is_symlink():
            program.chmod(0o755)
    done = subprocess.run(
        ["bash", run], env={"PATH": str(programs)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "make test" in done.stdout
    assert ("chromium" in done.stdout) is installs
    assert ("install Google Chrome" in done.stderr) is not installs


def test_the_tools_that_build_the_site_import_nothing_else():
    """The site's environment lacks PyTorch, nbconvert's extras, and the package."""
    code = (
        "import sys\n"
        "sys.path.insert(0, 'book/tools')\n"
        "for name in ('torch', 'tilelli_nb', 'nbval', 'pytest', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import build, pages\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=install.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
