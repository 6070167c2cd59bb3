"""What a person is told when a run begins: what it is, on what, when it will end."""

import time
from types import SimpleNamespace

import pytest
import torch
from test_train import shards, small  # noqa: F401  (a fixture)

from tilelli_nb.training import precision as precision_module
from tilelli_nb.training import progress as progress_module
from tilelli_nb.training.loop import train
from tilelli_nb.training.progress import Pace, introduction

# Of small(): two tables and the output, 16 * (256 + 32 + 256); two blocks of q, k and v
# 3 * 16 * 16, FFN 2 * 64 * 16, taps 5 * 16, router 3 * 16, norm 2 * 16; a norm, 2 * 16.
PARAMETERS = "14,688"


class Watch:
    """Stands for the module time: noon of 1 January 1970, and a clock that is moved on
    by hand.
    """

    localtime = staticmethod(time.gmtime)
    strftime = staticmethod(time.strftime)

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def time(self):
        return 12 * 3600.0

    def after_a_step(self, line):
        self.now += 600


@pytest.fixture
def watch(monkeypatch):
    made = Watch()
    monkeypatch.setattr(progress_module, "time", made)
    return made


def test_a_run_says_what_it_is_and_when_it_ends(
    tmp_path,
    shards,  # noqa: F811
    monkeypatch,
    capsys,
    watch,
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: 15.0)
    options = {"device": "cpu", "on_log": watch.after_a_step}
    lm = small(precision="auto")
    train(lm, shards, tmp_path / "run", stop_at=4, **options)
    # a step has 4 rows of 32 bytes; of four steps none is timed
    what = f"nano: {PARAMETERS} parameters on cpu with 3 threads, in bf16; 12 steps of "
    assert capsys.readouterr().out.splitlines() == [
        f"{what}128 bytes, 0 of them done",
    ]
    lm = small(precision="auto")
    train(lm, shards, tmp_path / "run", resume=True, **options)
    # Steps 6 to 10 are timed. The last two of twelve take 1,200 seconds.
    assert capsys.readouterr().out.splitlines() == [
        f"{what}128 bytes, 4 of them done",
        "600.00 s a step: done in about 0.3 h, at 12:20",
    ]


def test_a_run_that_stops_early_ends_when_it_stops(
    tmp_path,
    shards,  # noqa: F811
    capsys,
    watch,
):
    train(small(), shards, tmp_path / "run", stop_at=9, on_log=watch.after_a_step)
    # steps 7 to 9 of twelve: 1,800 seconds
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "600.00 s a step: done in about 0.5 h, at 12:30"


def test_nothing_is_said_where_nobody_looks(
    tmp_path,
    shards,  # noqa: F811
    capsys,
    watch,
):
    train(small(), shards, tmp_path / "run", progress=False)
    assert capsys.readouterr().out == ""


def test_an_end_on_another_day_is_said_with_its_day(watch):
    """A first step of a minute, which does not count, and five of two seconds. Then
    100,000 - 6 are left: 199,988 seconds, which are two days, 7 hours, 33 minutes and 8
    seconds.
    """
    pace, said = Pace(0, 100_000), []
    for step in range(1, 9):
        watch.now += 60 if step == 1 else 2
        said.append(pace.expected_end(step))
    end = "2.00 s a step: done in about 55.6 h, at 03 January, 19:33"
    assert said == [None, None, None, None, None, end, None, None]


def test_a_gpu_and_several_processes_are_named():
    run = SimpleNamespace(
        lm=small(),
        config=small().config,
        settings=SimpleNamespace(steps=50_000),
        step_bytes=8192,
        step=1200,
        precision="bf16",
        gpu_name="NVIDIA H200",
        device=torch.device("cuda"),
        processes=SimpleNamespace(world=2),
    )
    assert introduction(run) == (
        f"nano: {PARAMETERS} parameters on NVIDIA H200 in each of 2 processes, in "
        "bf16; 50,000 steps of 8,192 bytes, 1,200 of them done"
    )
