"""How many threads: the cores that this process may use and nobody else does."""

import os

import pytest
import torch
from test_train import shards, small  # noqa: F401  (a fixture)

from tilelli_nb.training import cpu_tuning
from tilelli_nb.training.cpu_tuning import (
    allowed_cores,
    free_cores,
    keep_threads,
    use_free_cores,
)
from tilelli_nb.training.loop import train


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of four cores whose files the test writes: told what they do during a
    look, and what a container may use.
    """
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False
    )
    stat, quota = tmp_path / "stat", tmp_path / "cpu.max"
    monkeypatch.setattr(cpu_tuning, "CPU_TIMES", stat)
    monkeypatch.setattr(cpu_tuning, "QUOTA", quota)
    for name in cpu_tuning.THREADS_SET_BY:
        monkeypatch.delenv(name, raising=False)

    def write(user=0, nice=0, system=0, idle=0, waiting=0, stolen=0, of_container=None):
        stat.write_text("cpu  1000 0 1000 9000 0 0 0 0 77 0\ncpu0 1 2 3 4\n")
        ticks = (1000 + user, nice, 1000 + system, 9000 + idle, waiting, 0, 0, stolen)
        later = "cpu  " + " ".join(map(str, ticks)) + " 99 0\ncpu0 5 6 7 8\n"
        monkeypatch.setattr(
            cpu_tuning.time, "sleep", lambda seconds: stat.write_text(later)
        )
        if of_container:
            quota.write_text(of_container)

    return write


@pytest.mark.parametrize(
    "ticks, expected",
    [
        ({"idle": 40}, 4),
        ({"user": 10, "idle": 30}, 3),  # one of four is busy
        ({"user": 19, "system": 1, "idle": 20}, 2),
        ({"user": 10, "nice": 20, "idle": 10}, 3),  # what gives way is no hindrance
        ({"user": 10, "waiting": 30}, 3),  # waiting for a disk is doing nothing
        ({"idle": 20, "stolen": 20}, 2),  # by another guest of the same host
        ({"user": 40}, 1),  # never none
        ({}, 4),  # the clock has not ticked
    ],
)
def test_cores_that_others_use_are_not_counted(machine, ticks, expected):
    machine(**ticks)
    assert free_cores() == expected


@pytest.mark.parametrize(
    "quota, expected",
    [
        ("200000 100000", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("max 100000", 4),
    ],
)
def test_a_container_has_what_it_is_given(machine, quota, expected):
    machine(idle=40, of_container=quota)
    assert allowed_cores() == expected
    assert free_cores() == expected


def test_a_process_that_is_bound_to_a_core_has_one(machine, monkeypatch):
    machine(idle=40)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2})
    assert free_cores() == 1


def test_elsewhere_the_load_decides(machine, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (2.6, 0.0, 0.0), raising=False)
    assert free_cores() == 1  # of four cores, 1.4 are free
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4, 0.0, 0.0), raising=False)
    assert free_cores() == 4


def test_threads_follow_unless_somebody_said_how_many(machine, monkeypatch):
    torch.set_num_threads(4)
    machine(user=20, idle=20)
    assert use_free_cores() == 2 == torch.get_num_threads()
    torch.set_num_threads(1)
    assert use_free_cores() == 1  # never more than there were
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert use_free_cores() == 4 == torch.get_num_threads()


def test_a_resumed_run_takes_the_threads_that_it_began_with(tmp_path, shards):  # noqa: F811
    torch.set_num_threads(2)
    record = train(small(), shards, tmp_path, stop_at=2, progress=False)
    assert record["threads"] == 2
    torch.set_num_threads(1)
    train(small(), shards, tmp_path, resume=True, progress=False)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    keep_threads({"device": "cpu"})  # a record of before
    keep_threads({"device": "cuda", "threads": 7})
    assert torch.get_num_threads() == 1
