"""Noise is not divergence; a run that diverges goes back once, by itself, and ends the
second time.
"""

import base64
import json
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from itertools import islice

import pytest
import torch
from test_train import TEXT, assert_same_run, small, timeless

from tilelli_nb import TilelliLM, prepare_shards
from tilelli_nb.data.stories import stories
from tilelli_nb.errors import TrainingError
from tilelli_nb.storage.checkpoint import read_tensors
from tilelli_nb.training import loop
from tilelli_nb.training.guard import ROW, LossGuard
from tilelli_nb.training.loop import train
from tilelli_nb.training.resuming import branch


@pytest.fixture
def shards(tmp_path):
    return prepare_shards(TEXT, tmp_path / "shards", "cats")


@pytest.fixture
def mixed(tmp_path):
    """Stories, tables of one digit, and base64: easy, trivial and hopeless text."""
    draw = random.Random(0)
    texts = list(islice(stories(0), 60))
    texts += [f"{i} | " + "0 | " * 150 for i in range(40)]
    texts += [base64.b64encode(draw.randbytes(450)).decode() for _ in range(12)]
    draw.shuffle(texts)
    return prepare_shards(texts, tmp_path / "mixed", "mixed")


def test_a_batch_of_one_on_mixed_text_is_no_reason_to_stop(tmp_path, mixed):
    lm = small(steps=300, batch=1, micro_batch=1, lr=1e-2, eval_every=300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor to go back
        record = train(lm, mixed, tmp_path / "run", progress=False)
    losses = [line["loss"] for line in timeless(tmp_path / "run")]
    usual = [sorted(losses[i - 20 : i])[10] for i in range(100, 300)]
    jumps = [loss - u for loss, u in zip(losses[100:], usual, strict=True)]
    # noise that is large, or nothing would be tested
    assert record["finished"] and max(jumps) > 1.5


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_draws_of_two_kinds_of_text_are_noise(share):
    draw = random.Random(1)
    guard = LossGuard()
    for step in range(20_000):
        is_rare = draw.random() < share
        loss = draw.gauss(4.2 if is_rare else 1.4, 0.2)
        assert guard.judge(step, loss) is None, step


@pytest.mark.parametrize("high", [3.2, 5.5, 40.0, 1e9])
def test_a_loss_that_stays_high_is_divergence(high):
    guard = LossGuard()
    draw = random.Random(2)
    for step in range(1, 61):
        assert guard.judge(step, draw.gauss(1.4, 0.1)) is None
    found = [guard.judge(step, draw.gauss(high, 0.1)) for step in range(61, 61 + ROW)]
    assert found[: ROW - 1] == [None] * (ROW - 1)
    assert "at step 65; 1.373 was usual" in found[-1] and guard.good_step == 60


def test_a_peak_and_a_slow_rise_are_not():
    guard = LossGuard()
    losses = [1.4] * 60 + [50.0] * (ROW - 1) + [1.4] * 3 + [50.0] + [1.4] * 60
    losses += [1.4 + 0.01 * i for i in range(300)]  # up to 4.4
    assert not any(guard.judge(step, loss) for step, loss in enumerate(losses))


def test_a_loss_far_worse_than_guessing_needs_no_comparison():
    guard = LossGuard()
    assert not any(guard.judge(step, 8.0) for step in range(9))
    found = [guard.judge(step, 12.0) for step in range(9, 14)]
    assert found[-1] and not any(found[:-1])


def disturbing(lm, at, change, times=1):
    """An on_log that changes the weights at a step, so many times."""
    left = [times]

    def on_log(line):
        if line["step"] == at and left[0]:
            left[0] -= 1
            with torch.no_grad():
                change(lm.output.weight)

    return on_log


def shake(weight):
    weight.mul_(60)


def poison(weight):
    weight[0, 0] = math.nan


def disturbed_run(shards, out, change, at=10, times=1, **options):
    lm = small(steps=24, eval_every=24, checkpoint_every=8)
    on_log = disturbing(lm, at, change, times)
    with pytest.warns(UserWarning, match="back to the checkpoint of step 8"):
        return train(lm, shards, out, progress=False, on_log=on_log, **options)


@pytest.mark.parametrize(("change", "seen"), [(shake, 15), (poison, 11)])
def test_a_run_goes_back_once_by_itself(tmp_path, shards, change, seen):
    record = disturbed_run(shards, tmp_path / "run", change)
    assert record["finished"] and record["steps"] == 24
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (setback,) = results["went_back"]
    assert (setback["from"], setback["to"]) == (seen, 8)
    assert f"at step {seen}" in setback["why"]
    lines = timeless(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert [line["step"] for line in lines if "went_back" in line] == [9]
    assert lines[8]["went_back"] == setback
    # the same weights at step 8, and then other batches than without the trouble
    train(small(steps=24, eval_every=24), shards, tmp_path / "calm", progress=False)
    calm = timeless(tmp_path / "calm")
    assert lines[:8] == calm[:8] and lines[8]["loss"] != calm[8]["loss"]
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_the_second_time_is_the_end(tmp_path, shards):
    with pytest.raises(TrainingError, match="loss is nan at step 11, and .* once alr"):
        disturbed_run(shards, tmp_path / "run", poison, times=2)
    step_8 = tmp_path / "run" / "checkpoints" / "step-00000008.safetensors"
    assert [step_8] == list((tmp_path / "run" / "checkpoints").iterdir())
    assert all(tensor.isfinite().all() for tensor in read_tensors(step_8)[0].values())
    # a resumed run has had its second chance
    lm = small(steps=24, eval_every=24, checkpoint_every=8)
    on_log = disturbing(lm, 12, poison)
    with pytest.raises(TrainingError, match="gone back once already"):
        train(lm, shards, tmp_path / "run", resume=True, progress=False, on_log=on_log)


def test_stopped_and_resumed_after_a_setback_it_leaves_no_trace(tmp_path, shards):
    disturbed_run(shards, tmp_path / "whole", shake)
    for stop in (9, 13):
        out = tmp_path / f"stopped at {stop}"
        # the first pass is over step 9 before it goes back, so the signal comes later
        lm = small(steps=24, eval_every=24, checkpoint_every=8)
        on_log = disturbing(lm, 10, shake)
        passes = []

        def interrupt(line, stop=stop, on_log=on_log, passes=passes):
            on_log(line)
            passes.append(line["step"])
            if passes.count(stop) == 2:
                os.kill(os.getpid(), 15)

        with pytest.warns(UserWarning, match="back to the checkpoint"):
            record = train(lm, shards, out, progress=False, on_log=interrupt)
        assert record["steps"] == stop
        lm = small(steps=24, eval_every=24, checkpoint_every=8)
        train(lm, shards, out, resume=True, progress=False)
        assert_same_run(tmp_path / "whole", out)


def test_a_checkpoint_waits_while_the_loss_is_too_high(tmp_path, shards):
    """One is due at step 12, in the middle of the row of 11 to 15."""
    lm = small(steps=24, eval_every=24, checkpoint_every=6, keep_checkpoints=1)
    on_log = disturbing(lm, 10, shake)
    with pytest.warns(UserWarning, match="back to the checkpoint of step 6"):
        train(lm, shards, tmp_path / "run", progress=False, on_log=on_log)


def test_a_stop_at_a_broken_step_keeps_the_checkpoint_before(tmp_path, shards):
    lm = small(steps=24, log_every=4, eval_every=24, checkpoint_every=6)
    on_log = disturbing(lm, 8, poison)
    with pytest.warns(UserWarning, match="at step 10: back to the checkpoint of ste"):
        record = train(
            lm, shards, tmp_path / "run", progress=False, on_log=on_log, stop_at=10
        )
    assert record["steps"] == 6
    lm = small(steps=24, log_every=4, eval_every=24, checkpoint_every=6)
    record = train(lm, shards, tmp_path / "run", resume=True, progress=False)
    assert record["finished"] and record["val_bpb"] < 9


WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_guard import disturbing, poison
from test_train import small
from tilelli_nb import open_shards
from tilelli_nb.training.loop import train
folder = Path({folder!r})
lm = small(steps=24, micro_batch=1, eval_every=24, checkpoint_every=8)
train(lm, open_shards(folder / "shards"), folder / "run", device="cpu", progress=False,
      on_log=disturbing(lm, 10, poison))
"""


def test_two_processes_go_back_together(tmp_path, shards):
    """The first process alone logs, and its weights alone are broken."""
    worker = tmp_path / "worker.py"
    tests = os.path.dirname(__file__)
    worker.write_text(WORKER.format(tests=tests, folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", str(worker)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count(b"back to the checkpoint of step 8") == 1
    lines = timeless(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert lines[8]["went_back"]["from"] == 11 and lines[-1]["val_bpb"] < 9


def test_a_run_that_has_gone_back_can_be_finished_by_another(tmp_path, shards):
    """The branch has its own second chance."""
    lm = small(steps=48, schedule="wsd", eval_every=24, checkpoint_every=8)
    on_log = disturbing(lm, 10, shake)
    with pytest.warns(UserWarning, match="back to the checkpoint of step 8"):
        train(lm, shards, tmp_path / "run", progress=False, on_log=on_log, stop_at=20)
    config = branch(tmp_path / "run", tmp_path / "end", 6)
    lm = TilelliLM(config)
    record = train(lm, shards, tmp_path / "end", resume=True, progress=False)
    assert record["steps"] == 26 and record["finished"]
    assert (
        json.loads((tmp_path / "end" / "results.json").read_text())["went_back"] == []
    )


def test_a_branch_from_the_checkpoint_of_a_setback_has_nothing_to_note(
    tmp_path, shards
):
    """The run that diverged twice is saved this way: its newest checkpoint is the one
    that it went back to, and says so.
    """
    lm = small(steps=48, schedule="wsd", eval_every=24, checkpoint_every=8)
    on_log = disturbing(lm, 10, poison, times=2)
    with pytest.warns(UserWarning, match="back to"), pytest.raises(TrainingError):
        train(lm, shards, tmp_path / "run", progress=False, on_log=on_log)
    lm = TilelliLM(branch(tmp_path / "run", tmp_path / "end", 6))
    record = train(lm, shards, tmp_path / "end", resume=True, progress=False)
    assert record["steps"] == 14 and record["finished"]
    assert not any("went_back" in line for line in timeless(tmp_path / "end")[8:])


def test_a_stop_in_a_row_of_high_losses_keeps_the_checkpoint_before_it(
    tmp_path, shards
):
    lm = small(steps=24, eval_every=24, checkpoint_every=6, keep_checkpoints=1)
    on_log = disturbing(lm, 10, shake)
    train(lm, shards, tmp_path / "run", progress=False, on_log=on_log, stop_at=12)
    folder = tmp_path / "run" / "checkpoints"
    assert [file.stem for file in sorted(folder.iterdir())] == [
        "step-00000006",
        "step-00000012",
    ]
    # so the run has something to go back to, once the row is five long
    lm = small(steps=24, eval_every=24, checkpoint_every=6, keep_checkpoints=1)
    with pytest.warns(UserWarning, match="back to the checkpoint of step 6"):
        train(lm, shards, tmp_path / "run", resume=True, progress=False)


def test_weights_are_looked_at_before_they_write_a_sample(
    tmp_path, shards, monkeypatch
):
    """Also at a step that is logged: an update can break them after a good loss."""
    update = loop.update
    updates = []

    def breaking(lm, *inputs, **options):
        found = update(lm, *inputs, **options)
        updates.append(found)
        if len(updates) == 3:  # a sample is due at 10% of 24 steps
            poison(lm.output.weight.data)
        return found

    monkeypatch.setattr(loop, "update", breaking)
    lm = small(steps=24, eval_every=24, checkpoint_every=2, log_every=3)
    with pytest.warns(UserWarning, match="no numbers after step 3: back to the ch"):
        record = train(lm, shards, tmp_path / "run", progress=False)
    assert record["finished"]


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, "a lower --lr (now 0.003), or"),
        (
            {"optimizer": "muon", "muon_lr": 0.02},
            "a lower --lr (now 0.003) and train.muon_lr (now 0.02) in a YAML file, or",
        ),
    ],
)
def test_who_gives_up_names_the_rates_that_count(tmp_path, shards, settings, rates):
    lm = small(steps=24, **settings)
    on_log = disturbing(lm, 2, poison)
    with pytest.raises(TrainingError) as caught:
        train(lm, shards, tmp_path / "run", progress=False, on_log=on_log)
    assert rates in caught.value.fix


def test_killed_right_after_a_setback_it_leaves_no_trace(tmp_path, shards):
    """A copy of the folder, taken at step 11 of the second pass, is what a killed run
    leaves behind.
    """
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lm = small(steps=24, eval_every=24, checkpoint_every=8)
    on_log = disturbing(lm, 10, shake)
    passes = []

    def copy(line):
        on_log(line)
        passes.append(line["step"])
        if passes.count(11) == 2 and not killed.exists():
            shutil.copytree(whole, killed)

    with pytest.warns(UserWarning, match="back to the checkpoint"):
        train(lm, shards, whole, progress=False, on_log=copy)
    lm = small(steps=24, eval_every=24, checkpoint_every=8)
    train(lm, shards, killed, resume=True, progress=False)
    assert_same_run(whole, killed)
    results = json.loads((killed / "results.json").read_text())
    assert results["went_back"][0]["from"] == 15


def test_weights_that_are_no_numbers_are_never_saved(tmp_path, shards):
    """The loss of step 8 was one; what the update made of the weights is none."""
    lm = small(steps=24, eval_every=24, checkpoint_every=4)
    on_log = disturbing(lm, 8, poison)
    with pytest.warns(
        UserWarning,
        match="weights are no numbers after step 8: back to the checkpoint of",
    ):
        record = train(lm, shards, tmp_path / "run", progress=False, on_log=on_log)
    assert record["finished"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (results["went_back"][0]["from"], results["went_back"][0]["to"]) == (8, 4)


def test_going_back_finds_its_checkpoint_where_many_are_written(
    tmp_path, shards, monkeypatch
):
    """As by the clock: several between two logged losses, more than are kept."""
    lm = small(steps=60, log_every=5, checkpoint_every=1, keep_checkpoints=2)
    real = loop.Run.train_step

    def spoiled_from_step_21(run):
        real(run)
        if run.step > 20 and not run.guard.setbacks:
            run.last = {**run.last, "loss": run.last["loss"] + 20}

    monkeypatch.setattr(loop.Run, "train_step", spoiled_from_step_21)
    with pytest.warns(UserWarning, match="back to the checkpoint of step 20"):
        record = train(lm, shards, tmp_path / "run", progress=False)
    assert record["steps"] == 60
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.stem for path in kept] == ["step-00000059", "step-00000060"]
