"""The GPU plan: what it carries is whole or refused, and a training that is killed goes
on.

book/experiments/gpu_plan_rehearsal.py runs all of it, with more kills and every command.
"""

import json
import subprocess

import pytest
import torch

from tilelli_nb import TilelliLM, load_config, open_shards, prepare_shards
from tilelli_nb.errors import CheckpointError, DataError
from tilelli_nb.storage.records import load_record
from tilelli_nb.training.loop import train

pytest.importorskip("fcntl", reason="the plan is for Linux")
import gpu_carry  # noqa: E402
from gpu_plan_rehearsal import Rehearsal, Victims, result, wait_until  # noqa: E402


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    texts = [
        f"{i}: the quick brown fox jumps over {i * i} lazy dogs. " * 5
        for i in range(200)
    ]
    return prepare_shards(
        texts, tmp_path_factory.mktemp("data") / "foxes", "foxes"
    ).folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A model in parts, beside the model itself."""
    folder = tmp_path_factory.mktemp("parts")
    lm = TilelliLM(load_config("nano").with_model(d_model=32, n_blocks=1, n_heads=2))
    lm.save_pretrained(folder / "small", val_bpb=2.5)
    gpu_carry.weights(folder / "small", folder, part_mib=0.02)
    return folder


def test_weights_come_back_in_bf16(parts, tmp_path):
    listing = json.loads((parts / "small.json").read_text())
    sizes = [part["bytes"] for part in listing["parts"]]
    assert (
        len(sizes) > 2 and max(sizes) <= 0.02 * 2**20 and sum(sizes) == listing["bytes"]
    )
    gpu_carry.join(parts / "small.json", tmp_path)
    lm, joined = (
        TilelliLM.from_pretrained(parts / "small"),
        TilelliLM.from_pretrained(tmp_path / "small"),
    )
    assert joined.config == lm.config and listing["val_bpb"] == 2.5
    for name, tensor in lm.state_dict().items():
        assert torch.equal(tensor.bfloat16().float(), joined.state_dict()[name])


def test_a_flipped_byte_and_a_missing_part_are_refused(parts, tmp_path):
    for path in parts.glob("small.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    part = tmp_path / "small.part01"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(
        CheckpointError, match="small.part01 is damaged.*\n.*fetch this part again"
    ):
        gpu_carry.join(tmp_path / "small.json", tmp_path / "joined")
    part.unlink()
    with pytest.raises(
        CheckpointError,
        match="cannot read small.part01.*\n.*all its parts into one folder",
    ):
        gpu_carry.join(tmp_path / "small.json", tmp_path / "joined")
    (tmp_path / "small.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not list the parts of a model"):
        gpu_carry.join(tmp_path / "small.json", tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_shards_are_packed_and_unpacked(shards, tmp_path):
    gpu_carry.pack(shards, tmp_path)
    packed = tmp_path / "foxes.tar.xz"
    for _ in range(2):  # the second time it is there already
        gpu_carry.unpack(packed, tmp_path / "there")
    there, here = open_shards(tmp_path / "there" / "foxes"), open_shards(shards)
    assert (
        there.describe() == here.describe() and there.train.read() == here.train.read()
    )
    assert packed.stat().st_size < len(here.train) / 3
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(DataError, match="foxes.tar.xz is not a whole pack of shards"):
        gpu_carry.unpack(packed, tmp_path / "elsewhere")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pretrain", "--shards", "nothing"], "nothing is no folder of shards"),
        (["several", "lite_10m", "--shards", "."], "'lite_10m' is not a run"),
        (["pretrain", "--config", "lite", "--shards", "."], "did you mean 'lite_10m'"),
    ],
)
def test_what_cannot_work_is_said_at_once(shards, tmp_path, arguments, message):
    r = Rehearsal(tmp_path)
    done = subprocess.run(
        r.command("--out", tmp_path / "out", *arguments),
        cwd=shards,
        env=r.environment,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr and "What to do: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_training_whose_processes_are_all_killed_goes_on(shards, tmp_path):
    r, run = Rehearsal(tmp_path), "plan/tiny-seed3"
    options = [
        "--config",
        "tiny.yaml",
        "--seed",
        3,
        "--shards",
        shards,
        "--checkpoint-seconds",
        0.1,
        "--steps",
        60,
    ]
    v = Victims(r, run, options)
    wait_until(lambda: r.saved(run) > 0, "the first checkpoint")
    v.kill_watcher()
    v.kill_trainer()
    record = load_record(tmp_path / run)
    assert record["finished"] is None, "finished before it could be killed"
    said = r.run("continued", "--out", "plan", "pretrain", *options)
    assert "resuming: tiny-seed3" in said and "tiny-seed3: finished, 60 steps" in said
    config = load_config(tmp_path / "tiny.yaml").with_train(seed=3, steps=60)
    every = record["config"]["train"]["checkpoint_every"]
    train(
        TilelliLM(config.with_train(checkpoint_every=every)),
        open_shards(shards),
        tmp_path / "whole",
        device="cpu",
        progress=False,
    )
    assert result(tmp_path / run) == result(tmp_path / "whole")
