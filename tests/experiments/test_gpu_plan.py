"""The GPU plan: what it carries is whole or refused, its calls fit into a lease, and
whatever happens there is a trained model at the end.

book/experiments/gpu_plan_rehearsal.py runs all of it, in every mode.
"""

import argparse
import json
import math
import time

import pytest
import torch

from tilelli_nb import TilelliLM, load_config, open_shards, prepare_shards
from tilelli_nb.errors import CheckpointError, DataError, TrainingError

pytest.importorskip("fcntl", reason="the plan is for Linux")
import gpu_carry  # noqa: E402
import gpu_plan  # noqa: E402
import gpu_smoke  # noqa: E402
from gpu_plan_rehearsal import Rehearsal, rehearse  # noqa: E402


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


@pytest.fixture(scope="module")
def packed(shards, tmp_path_factory):
    """A text as it is carried."""
    folder = tmp_path_factory.mktemp("packed")
    gpu_carry.pack(shards, folder)
    return folder / "foxes.tar.xz"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["start", "--shards", "nothing"], "there is no nothing"),
        (["start", "--shards", ".", "--config", "lite"], "did you mean 'lite_10m'"),
        (["finish", "--back", "back"], "plan holds no plan"),
    ],
)
def test_what_cannot_work_is_said_at_once(packed, tmp_path, arguments, message):
    r = Rehearsal(tmp_path, packed)
    said = r.call(*arguments, limit=30, status=1)
    assert message in said and "What to do: " in said and "Traceback" not in said
    assert not (tmp_path / "plan" / "job.json").exists()


def test_the_calls_fit_into_the_lease():
    """A machine is lent for 900 seconds, its start included, and a call may take 600;
    what follows the first two at once must leave a minute for the start.
    """
    assert all(limit <= 600 for limit in gpu_plan.LIMITS.values())
    assert sum(gpu_plan.LIMITS.values()) < 14 * 60
    assert gpu_plan.INSURE < gpu_plan.FINISH < gpu_plan.LIMITS["finish"]
    careful = [(mode["kernel"], mode["compiled"]) for mode in gpu_plan.MODES]
    assert careful == [(True, True), (True, True), (False, True), (False, False)]


def test_a_training_goes_on_whatever_is_killed(packed, tmp_path):
    """Between calls A and B, and again between B and C: what came home after B is a
    model, and what comes home after C is the finished one. In the most careful mode.
    """
    found = rehearse("killed", tmp_path, packed, ["--modes", 3])
    assert found["good"], found
    assert found["insured_at_step"] > 0 and found["mode"] == "reference, eager"


FAKE = """
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
job = json.loads((out / "job.json").read_text())
mode = gpu_modes.index(job["mode"]["name"])
def tell(phase, **facts):
    state = {"pid": os.getpid(), "phase": phase, "at": time.time(), **facts}
    (out / "new.json").write_text(json.dumps(state))
    os.replace(out / "new.json", out / "state.json")
while json.loads((out / "job.json").read_text())["pid"] != os.getpid():
    time.sleep(0.01)
tell("starting")
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A plan whose trainer is a line of Python for each mode."""

    def of(*lines):
        names = [mode["name"] for mode in gpu_plan.MODES]
        text = FAKE.replace("gpu_modes", repr(names))
        for number, line in enumerate(lines):
            text += f"if mode == {number}:\n    {line}\n"
        (tmp_path / "gpu_trainer.py").write_text(text)
        monkeypatch.setattr(gpu_plan, "code", lambda out: tmp_path)
        job = {"run": "run", "modes": [0, 1, 2, 3], "patience": 6.0, "known": {}}
        job |= {"attempts": [], "accidents": 0, "failures": 0}
        made = gpu_plan.Plan(tmp_path)
        made.begin(job)
        return made

    return of


def looked_at(plan, *phases, seconds=30):
    """Looks until it is in one of these phases."""
    end = time.monotonic() + seconds
    while (phase := plan.look()) not in phases:
        assert time.monotonic() < end, phase
        time.sleep(0.02)
    return phase


READY = "tell('ready', step_ms=7.0); time.sleep(1000)"


def test_each_failure_leads_to_a_more_careful_mode(plan):
    """One says what failed, one ends without a word, one hangs; the fourth is there."""
    p = plan("tell('failed', error='no room')", "sys.exit(3)", "time.sleep(99)", READY)
    try:
        looked_at(p, "ready")
        whys = [attempt["why"] for attempt in p.job["attempts"]]
        assert whys[:2] == ["no room", "gone"] and whys[2].startswith("silent for ")
        assert p.job["mode"]["name"] == "reference, eager" and p.job["known"] == {}
    finally:
        p.kill()


def test_a_trainer_that_others_end_is_begun_again_in_its_mode(plan):
    """With what it had measured; after a third time it is no accident any more."""
    p = plan(READY, READY)
    try:
        for expected in (0, 0, 0, 1):
            looked_at(p, "ready")
            assert p.job["mode"] == gpu_plan.MODES[expected]
            p.kill()
            p.replace("gone")
        assert p.job["known"] == {"step_ms": 7.0}
    finally:
        p.kill()


def test_at_last_it_gives_up_and_says_so(plan):
    p = plan(*["tell('failed', error='no card')"] * 4)
    with pytest.raises(TrainingError, match="no way of computing works here.*no card"):
        looked_at(p, "ready")


def test_what_there_is_comes_home_when_nothing_works(plan, tmp_path):
    """The last words of the trainers, too; and again when it is called again."""
    p = plan(*["tell('failed', error='no card')"] * 4)
    back = tmp_path / "back"
    args = argparse.Namespace(out=p.out, back=back, limit=math.inf, no_profile=True)
    for _ in range(2):
        with pytest.raises(TrainingError, match="no way of computing works here"):
            gpu_plan.finish(args)
        told = json.loads((back / "plan.json").read_text())
        assert {attempt["why"] for attempt in told["attempts"]} == {"no card"}
        assert (back / "train.log").is_file()
        (back / "plan.json").unlink()


def test_the_smoke_test_sees_a_lost_gradient_and_a_lost_byte():
    config = load_config("nano").with_model(d_model=32, n_blocks=1, n_heads=1)
    lm = TilelliLM(config).train()

    def forgetful(x, targets):
        terms = lm.loss_terms(x, targets)
        lost = lm.blocks[0].ffn.down.weight  # its gradient is another
        return terms._replace(nats=terms.nats + 1e6 * lost.sum())

    good = gpu_smoke.gradient_errors(lm, lm.loss_terms, 2, False)
    assert len(good) == len(list(lm.parameters())) and max(good.values()) < 1e-6
    with pytest.raises(TrainingError, match="disagree: blocks.0.ffn.down.weight by"):
        gpu_smoke.gradient_errors(lm, forgetful, 2, False)
    kept = torch.full((1, 1, 20, 1), 1, dtype=torch.int32)  # the first byte alone
    with pytest.raises(TrainingError, match="too few bytes"):
        gpu_smoke.check_selection(kept, 20)
    rows = torch.tensor([(2 << t) - 1 for t in range(20)], dtype=torch.int32)
    gpu_smoke.check_selection(rows.view(1, 1, 20, 1), 20)
    rows[3] |= 1 << 10  # a byte that it cannot see
    with pytest.raises(TrainingError, match="cannot see"):
        gpu_smoke.check_selection(rows.view(1, 1, 20, 1), 20)


def test_the_steady_rate_leaves_out_what_is_not_training(tmp_path):
    # three of four pairs are slow: the first one, and two with an evaluation
    lines = [(10, 5.0, {}), (20, 15.0, {}), (30, 16.0, {})]
    lines += [(40, 26.0, {"val_bpb": 2.0}), (50, 36.0, {"val_bpb": 2.0})]
    text = "".join(
        json.dumps({"step": n, "bytes_seen": n * 100, "wall_s": s} | more) + "\n"
        for n, s, more in lines
    )
    (tmp_path / "metrics.jsonl").write_text(text)
    assert gpu_plan.steady_rate(tmp_path) == 1000
