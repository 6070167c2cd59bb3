"""Installs what the book needs into the environment whose Python runs this:
`python book/tools/install.py site` for rendering the pages, `everything` for the rest.

Standard library alone: nothing is there yet. The pinned versions are in
requirements.txt; what `site` takes of it needs no PyTorch.
"""

import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
# PyTorch's own index of builds without CUDA; the public index has one build for Linux,
# and that is the one for NVIDIA cards.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS_TO_ANSWER = 5
OF_THE_SITE = ("jupyter-book", "jupytext")

# As measured on a Linux machine, with Python 3.11.
SITE_SIZE = "half a minute, 270 MB"
CPU_SIZE = "2 to 5 minutes, 3 GB"
CUDA_SIZE = "5 to 15 minutes, 3 GB and the CUDA libraries, several GB more"


def pins(names: tuple[str, ...] = ()) -> list[str]:
    """The lines of requirements.txt, or those of the packages with these names."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if "==" in line and not line.startswith("#")]
    if not names:
        return found
    return [line for line in found if line.partition("==")[0] in names]


def has_nvidia_card() -> bool:
    """Whether the driver's program says that there is one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    said = subprocess.run([program, "-L"], capture_output=True, text=True)
    return said.returncode == 0 and "GPU" in said.stdout


def answers(address: str) -> bool:
    """Whether something answers there soon."""
    try:
        with urllib.request.urlopen(address, timeout=SECONDS_TO_ANSWER):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False


def default_build_has_cuda() -> bool:
    """Whether the public index would give this machine a PyTorch with CUDA."""
    return platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")


def commands(what: str) -> tuple[str, list[list[str]]]:
    """What to say beforehand, and the commands to run: of "site" or "everything"."""
    if what == "site":
        said = f"what renders the pages ({SITE_SIZE}; no PyTorch)"
        return said, [[*PIP, *pins(OF_THE_SITE)]]
    wanted = [PIP + ["-r", str(ROOT / "requirements.txt")]]
    package = [*PIP, "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    if not default_build_has_cuda():
        return f"the pinned requirements ({CPU_SIZE})", [*wanted, package]
    if has_nvidia_card():
        said = f"the pinned requirements for an NVIDIA card ({CUDA_SIZE})"
        return said, [*wanted, package]
    if not answers(CPU_INDEX):
        said = (
            "the pinned requirements. PyTorch's index of builds without CUDA does not "
            f"answer, so pip's own decides: {CPU_SIZE} if it has such a build, else "
            f"{CUDA_SIZE}"
        )
        return said, [*wanted, package]
    (torch,) = pins(("torch",))
    said = f"the pinned requirements, PyTorch without CUDA ({CPU_SIZE})"
    # "2.13.0+cpu" is what the pin asks for, and stays when the rest is installed
    return said, [[*PIP, torch, "--index-url", CPU_INDEX], *wanted, package]


def main(arguments: list[str]) -> int:
    """Says what will be installed, and installs it."""
    if arguments not in (["site"], ["everything"]):
        print("python book/tools/install.py site | everything", file=sys.stderr)
        return 2
    said, to_run = commands(arguments[0])
    print(f"Installing {said} into {Path(sys.prefix).name}.", flush=True)
    for command in to_run:
        status = subprocess.run(command).returncode
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
