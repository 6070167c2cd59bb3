"""Runs are kept apart: a checkpoint belongs to its run, a folder to one process, a record
that is finished to nobody any more; and a run that is stopped says why.
"""

import json
import os
import signal
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from filelock import FileLock
from test_train import small
from typer.testing import CliRunner

from tilelli_nb import TilelliLM, load_record, prepare_shards
from tilelli_nb.cli.app import app
from tilelli_nb.cli.train import BUDGET_SPENT, exit_code
from tilelli_nb.errors import ConfigError, TrainingError
from tilelli_nb.storage import checkpoint
from tilelli_nb.training import distributed
from tilelli_nb.training.distributed import Processes
from tilelli_nb.training.loop import train
from tilelli_nb.training.resuming import branch

TEXT = [f"The {word} mouse ran up the clock. " * 4 for word in "abcdefghijklmnopqrst"]


@pytest.fixture
def shards(tmp_path):
    return prepare_shards(TEXT, tmp_path / "shards", "mice")


def stop(lm, shards, out, step, **options):
    return train(lm, shards, out, stop_at=step, progress=False, **options)


def test_a_new_run_does_not_take_over_the_checkpoints_of_an_old_one(tmp_path, shards):
    stop(small(seed=1), shards, tmp_path / "run", 8)
    (tmp_path / "run" / "run.json").unlink()
    for resume in (False, True):
        with pytest.raises(TrainingError, match="run.json is gone.*\n.*another --out"):
            stop(small(seed=2), shards, tmp_path / "run", 4, resume=resume)
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert sorted(kept) == ["step-00000004.safetensors", "step-00000008.safetensors"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path, shards):
    stop(small(), shards, tmp_path / "a", 8)
    stop(small(), shards, tmp_path / "b", 4)
    name = "step-00000008.safetensors"
    foreign = (tmp_path / "a" / "checkpoints" / name).read_bytes()
    (tmp_path / "b" / "checkpoints" / name).write_bytes(foreign)
    with pytest.raises(TrainingError, match="step 8 in b belongs to another run"):
        stop(small(), shards, tmp_path / "b", 12, resume=True)
    ids = [load_record(tmp_path / name)["run_id"] for name in "ab"]
    state = checkpoint.latest_valid(tmp_path / "a" / "checkpoints")[1]
    assert ids[0] == state["run_id"] != ids[1]


def test_one_process_a_folder(tmp_path, shards):
    out = tmp_path / "run"
    out.mkdir()
    with (
        FileLock(out / ".lock"),
        pytest.raises(TrainingError, match="another process is training in run"),
    ):
        stop(small(), shards, out, 4)
    assert not (out / "run.json").exists()
    stop(small(), shards, out, 4)  # the lock went with its owner


def test_a_finished_record_is_never_touched(tmp_path, shards):
    train(small(), shards, tmp_path / "run", progress=False)
    files = ("run.json", "metrics.jsonl", "samples.jsonl", "model.safetensors")
    before = [(tmp_path / "run" / name).read_bytes() for name in files]
    record = train(
        small(), shards, tmp_path / "run", resume=True, progress=False, usd_per_hour=9.0
    )
    assert record == load_record(tmp_path / "run") and record["usd"] is None
    assert [(tmp_path / "run" / name).read_bytes() for name in files] == before


@pytest.mark.parametrize(
    "limit",
    [
        {"minutes": 0},
        {"minutes": -1.0},
        {"minutes": float("inf")},
        {"max_dollars": float("nan")},
    ],
)
def test_limits_that_cannot_be_meant(tmp_path, shards, limit):
    name = next(iter(limit)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name} .*\n.*more than 0"):
        train(small(), shards, tmp_path / "run", **limit)
    with pytest.raises(ConfigError, match="--stop-at 0"):
        train(small(), shards, tmp_path / "run", stop_at=0)
    with pytest.raises(ConfigError, match="--stop-at 13 lies behind the last of 12"):
        train(small(), shards, tmp_path / name, stop_at=13, progress=False)


@pytest.fixture
def hear():
    """Sees to it that a signal is heard: what is started in the background, or by
    nohup, inherits that it is not.
    """
    before = {}

    def now(number):
        before[number] = signal.signal(number, signal.default_int_handler)
        return signal.getsignal(number)

    yield now
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_the_run_and_is_noted(tmp_path, shards, name, capsys, hear):
    number = getattr(signal, name)
    handler = hear(number)

    def interrupt(line):
        if line["step"] == 3:
            os.kill(os.getpid(), number)

    out = tmp_path / "run"
    if name == "SIGINT":  # as for any other Python code, the next line is not reached
        with pytest.raises(KeyboardInterrupt, match="saved at step 3 of 12: resume"):
            train(small(), shards, out, on_log=interrupt)
    else:
        train(small(), shards, out, on_log=interrupt)
    record = load_record(out)
    assert record["finished"] is None and record["steps"] == 3
    assert (out / "checkpoints" / "step-00000003.safetensors").is_file()
    assert exit_code(out) == 128 + number and signal.getsignal(number) is handler
    assert f"{name}: the run is saved after this step" in capsys.readouterr().out


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_launcher_passes_on_once_more_is_the_same_stop(
    tmp_path, shards, second
):
    def interrupt(line):
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), second)

    def die(number, frame):  # what SIGTERM does where nobody listens, but for the tests
        raise SystemExit(f"killed by {number}")

    before = signal.signal(signal.SIGTERM, die)
    try:
        record = train(
            small(), shards, tmp_path / "run", on_log=interrupt, progress=False
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert record["steps"] == 3 and exit_code(tmp_path / "run") == 128 + signal.SIGTERM


def test_a_later_signal_does_not_wait_for_the_end_of_the_step(monkeypatch, hear):
    now = [100.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(distributed, "time", clock)
    before = hear(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), distributed.stop_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        now[0] += distributed.ECHO_S / 2
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        now[0] += distributed.ECHO_S
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the third one, well after the first, should have been heard")
    assert signal.getsignal(signal.SIGINT) is before


def test_exit_codes(tmp_path):
    for stopped_by, code in ((None, 0), ("SIGINT", 130), ("budget", BUDGET_SPENT)):
        text = json.dumps({"stopped_by": stopped_by})
        (tmp_path / "results.json").write_text(text)
        assert exit_code(tmp_path) == code


def test_a_number_of_a_process_without_others_means_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes("cpu").is_first


def test_another_length_or_the_same_folder_are_refused(tmp_path, shards):
    stop(small(), shards, tmp_path / "run", 4)
    folder, corpus = str(tmp_path / "run"), str(shards.folder)
    begin = ["train", "--corpus", corpus, "--out", folder]
    longer = CliRunner().invoke(app, [*begin, "--resume", "--steps", "500"])
    assert "has 12 steps, not 500" in str(longer.exception)
    same = CliRunner().invoke(app, [*begin, "--init", folder])
    assert "--init and --out are both" in str(same.exception)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_the_run_where_nobody_reads_any_more(
    tmp_path, shards, monkeypatch, name, hear
):
    """A lost connection, or a `tee` that the same Ctrl-C has ended: every write fails."""
    number = getattr(signal, name)
    hear(number)
    reading, writing = os.pipe()
    for stream in ("stdout", "stderr"):
        pipe = os.fdopen(os.dup(writing), "w", buffering=1)
        monkeypatch.setattr(sys, stream, pipe)

    def leave(line):
        if line["step"] == 3:
            os.close(reading)
            os.kill(os.getpid(), number)

    with suppress(KeyboardInterrupt):
        train(small(), shards, tmp_path / "run", on_log=leave)
    with pytest.raises(BrokenPipeError):
        print("heard by nobody")
    assert load_record(tmp_path / "run")["steps"] == 3
    assert exit_code(tmp_path / "run") == 128 + number
    assert (tmp_path / "run/checkpoints/step-00000003.safetensors").is_file()


def test_a_branch_of_a_run_whose_samples_are_gone(tmp_path, shards):
    settings = {"schedule": "wsd", "steps": 48}
    stop(small(**settings), shards, tmp_path / "run", 8)
    (tmp_path / "run" / "samples.jsonl").unlink()
    config = branch(tmp_path / "run", tmp_path / "end", 4)
    record = train(TilelliLM(config), shards, tmp_path / "end", resume=True)
    assert record["steps"] == 12 and record["finished"]
