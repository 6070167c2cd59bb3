"""What every test may count on. Nothing here imports torch, so that collecting stays
quick.
"""

import os
import random
import shutil
import sys

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # the workers share the cores; set before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# on GitHub typer colours its help, and the codes stand inside of its words
os.environ.setdefault("_TYPER_FORCE_DISABLE_TERMINAL", "1")

if not shutil.which("nvidia-smi"):
    # read when Triton is first imported, by whatever test that is
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def same_every_time(monkeypatch):
    """Fixed seeds, and figures that need no window. Undone after each test, so that the
    notebooks never see it.
    """
    monkeypatch.setenv("MPLBACKEND", "Agg")
    random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        # the models of the tests are tiny: a second thread only waits
        torch.set_num_threads(1)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)


def pytest_terminal_summary(terminalreporter):
    """Prints what the book says to each hostile input: tests/test_hostile.py hands the
    messages over.
    """
    passed = terminalreporter.stats.get("passed", [])
    rows = [dict(report.user_properties) for report in passed if report.when == "call"]
    rows = [row for row in rows if "hostile" in row]
    if rows:
        terminalreporter.section("hostile inputs and what the reader is told")
        for row in sorted(rows, key=lambda row: row["hostile"]):
            terminalreporter.write_line(f"{row['hostile']:<34} {row['told']}")
