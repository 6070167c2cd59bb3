"""What a run goes on from: what is gone or damaged, and what must not be mixed."""

import json

import pytest
import torch
from test_train import shards, small  # noqa: F401  (a fixture)

from tilelli_nb import TilelliLM, load_record, prepare_shards
from tilelli_nb.chat.rows import ChatRows
from tilelli_nb.errors import ConfigError, DataError, TrainingError
from tilelli_nb.files import write_atomic
from tilelli_nb.storage.checkpoint import read_tensors, written_in
from tilelli_nb.training import clock as clock_module
from tilelli_nb.training import loop
from tilelli_nb.training.clock import Clock
from tilelli_nb.training.loop import train
from tilelli_nb.training.resuming import add_notes

STILL = {"lr": 1e-12, "qk_scale": 0.5}  # what changes is the softening alone


def q_and_k(lm):
    weight = lm.blocks[0].attention.weight.detach()
    return weight[: 2 * weight.shape[1]]


def test_a_finished_run_without_checkpoints_keeps_all_it_has(tmp_path, shards):  # noqa: F811
    settings = {"lr": 1e-2, "qk_scale": 0.5}
    train(small(**settings), shards, tmp_path / "run", progress=False)
    names = ("run.json", "metrics.jsonl", "samples.jsonl")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in names}
    assert all(before.values())
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.unlink()
    lm = small(**settings)
    train(lm, shards, tmp_path / "run", resume=True, progress=False)
    assert lm.is_softened
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in names}
    trained = TilelliLM.from_pretrained(tmp_path / "run").state_dict()
    for name, tensor in lm.state_dict().items():
        assert torch.equal(tensor, trained[name])


def test_what_is_refused_leaves_no_run_behind(tmp_path, shards):  # noqa: F811
    with pytest.raises(ConfigError, match="--stop-at 99"):
        train(small(), shards, tmp_path / "run", stop_at=99, progress=False)
    few = prepare_shards(["one", "two", "three"], tmp_path / "few", "few")
    with pytest.raises(DataError):
        train(small(), few, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "run.json").exists()
    train(small(), shards, tmp_path / "run", stop_at=2, progress=False)


def test_a_run_that_was_finished_before_leaves_the_model_as_a_run_does(
    tmp_path,
    shards,  # noqa: F811
):
    lm = small()
    for resume in (False, True):
        train(lm, shards, tmp_path / "run", resume=resume, progress=False)
        assert not lm.training


def test_killed_between_its_last_two_files_a_run_is_finished_by_the_next_command(
    tmp_path,
    shards,  # noqa: F811
    monkeypatch,
):
    def killed(path, data):
        if path.name == "run.json" and (path.parent / "results.json").exists():
            raise KeyboardInterrupt
        write_atomic(path, data)

    monkeypatch.setattr(loop, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        train(small(), shards, tmp_path / "run", progress=False)
    assert load_record(tmp_path / "run")["finished"] is None
    monkeypatch.undo()
    record = train(small(), shards, tmp_path / "run", resume=True, progress=False)
    assert record["finished"] and record["val_bpb"] > 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["stopped_by"] is None


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_again(tmp_path, shards):  # noqa: F811
    train(small(), shards, tmp_path / "run", stop_at=9, progress=False)
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:-10])
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(TrainingError, match="all checkpoints of run are damaged"),
    ):
        train(small(), shards, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_a_damaged_newer_checkpoint_does_not_push_out_a_whole_one(tmp_path, shards):  # noqa: F811
    settings = {"keep_checkpoints": 1, "checkpoint_every": 4}
    train(small(**settings), shards, tmp_path / "run", stop_at=4, progress=False)
    folder = tmp_path / "run" / "checkpoints"
    (folder / "step-00000009.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        train(
            small(**settings),
            shards,
            tmp_path / "run",
            resume=True,
            stop_at=6,
            progress=False,
        )
    assert (folder / "step-00000006.safetensors") in written_in(folder)


def test_a_softened_model_is_not_softened_by_another_run(tmp_path, shards):  # noqa: F811
    hard = small(**STILL)
    before = q_and_k(hard).clone()
    train(hard, shards, tmp_path / "one", progress=False)
    assert torch.allclose(q_and_k(hard), before / 2, atol=1e-6)
    again = TilelliLM.from_pretrained(tmp_path / "one")
    assert again.config.train.qk_scale == 0.5
    train(again, shards, tmp_path / "two", progress=False)
    assert torch.allclose(q_and_k(again), before / 2, atol=1e-6)
    again.load_weights(small(**STILL).state_dict())  # others, as they were drawn
    train(again, shards, tmp_path / "three", progress=False)
    assert torch.allclose(q_and_k(again), before / 2, atol=1e-6)


def test_a_run_that_failed_at_its_first_batch_softens_once(
    tmp_path,
    shards,  # noqa: F811
    monkeypatch,
):
    def no_batch(*_):
        raise DataError("nothing to read", "try again")

    lm = small(**STILL)
    before = q_and_k(lm).clone()
    with monkeypatch.context() as patch:
        patch.setattr(type(shards), "batch", no_batch)
        with pytest.raises(DataError, match="nothing to read"):
            train(lm, shards, tmp_path / "run", progress=False)
    train(lm, shards, tmp_path / "run", resume=True, progress=False)
    assert torch.allclose(q_and_k(lm), before / 2, atol=1e-6)


def test_text_and_conversations_are_not_mixed(tmp_path, shards):  # noqa: F811
    chats = ChatRows([[("a?", "b")], [("c?", "d")]], shards, "two")
    train(small(), chats, tmp_path / "chat", stop_at=4, progress=False)
    with pytest.raises(TrainingError, match="chat holds a run of kind sft, not train"):
        train(small(), shards, tmp_path / "chat", resume=True, progress=False)
    train(small(), shards, tmp_path / "text", stop_at=4, progress=False)
    with pytest.raises(TrainingError, match="text holds a run of kind train, not sft"):
        train(small(), chats, tmp_path / "text", resume=True, progress=False)


def test_a_run_that_goes_on_keeps_its_bill_and_takes_in_notes(tmp_path, shards):  # noqa: F811
    options = {"progress": False, "notes": "The first."}
    out = tmp_path / "run"
    train(small(), shards, out, usd_per_hour=1e6, stop_at=2, **options)
    path = out / "checkpoints" / "step-00000002.safetensors"
    spent = read_tensors(path)[1]["usd"]
    assert spent > 0
    record = train(
        small(),
        shards,
        out,
        resume=True,
        usd_per_hour=0.0,
        progress=False,
        notes="A cheaper machine.",
    )
    assert record["usd"] == spent  # what the second part cost is nothing
    assert record["notes"] == "The first. A cheaper machine."
    again = train(small(), shards, out, resume=True, **options)
    assert again["notes"] == record["notes"]


@pytest.mark.parametrize(
    ("before", "notes", "after"),
    [
        ("", "New.", "New."),
        ("One. Two.", "One.", "One. Two."),
        ("One. Two.", "One", "One. Two. One"),  # a part of a word is not there
        ("One.", "", "One."),
    ],
)
def test_notes_are_added_once(before, notes, after):
    record = {"notes": before, "finished": None}
    add_notes(record, notes)
    assert record["notes"] == after
    done = {"notes": before, "finished": "2026-11-29T18:00:00Z"}
    add_notes(done, notes)
    assert done["notes"] == before


def test_the_clock_knows_this_part_from_all(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    clock = Clock()
    clock.go_on(wall_s=100.0, train_s=80.0)
    now[0] += 5
    with clock.aside():
        now[0] += 2
    now[0] += 1
    assert clock.part_seconds() == 8 and clock.part_training_seconds() == 6
    assert clock.seconds() == 108 and clock.training_seconds() == 86
