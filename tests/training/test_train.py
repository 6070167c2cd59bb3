"""Training: the schedule, the update, and runs that are stopped, killed and resumed
without a trace.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tilelli_nb import TilelliError, TilelliLM, load_config, load_record, prepare_shards
from tilelli_nb.errors import ConfigError, DataError, TrainingError
from tilelli_nb.files import load_lines
from tilelli_nb.storage.checkpoint import read_tensors
from tilelli_nb.storage.records import KEYS, load_metrics
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import learning_rate, make_optimizer, update

TEXT = [
    f"The {c} cat number {i} sat on the {m} mat. " * 3
    for i, (c, m) in enumerate(
        (c, m)
        for c in ("red", "big", "old", "shy", "fat")
        for m in ("blue", "wet", "warm", "soft", "torn", "new")
    )
]


def small(**changes):
    settings = {
        "steps": 12,
        "batch": 4,
        "micro_batch": 4,
        "eval_every": 6,
        "eval_bytes": 300,
        "checkpoint_every": 4,
        "log_every": 1,
        **changes,
    }
    config = load_config("nano").with_model(
        d_model=16, n_blocks=2, n_heads=2, keep=4, context=32
    )
    return TilelliLM(config.with_train(**settings))


@pytest.fixture
def shards(tmp_path):
    return prepare_shards(TEXT, tmp_path / "shards", "cats")


def timeless(folder):
    return [
        {k: v for k, v in line.items() if k != "wall_s"}
        for line in load_metrics(folder)
    ]


def weights(folder):
    return TilelliLM.from_pretrained(folder).state_dict()


def assert_same_run(a, b):
    assert timeless(a) == timeless(b)
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()
    assert all(
        torch.equal(x, y)
        for x, y in zip(weights(a).values(), weights(b).values(), strict=True)
    )


@pytest.mark.parametrize(
    "step,lr",
    [
        (0, 3e-7),
        (499, 1.5e-4),
        (999, 3e-4),
        (12_500, 2.649362e-4),
        (25_500, 1.649957e-4),
        (37_500, 7.107822e-5),
        (49_999, 3e-5),
    ],
)
def test_schedule_golden(step, lr):
    assert learning_rate(step, load_config("lite_10m").train) == pytest.approx(
        lr, rel=1e-6
    )


def test_decay_touches_the_matrices_alone():
    lm = TilelliLM(load_config("nano"))
    groups = make_optimizer(lm, lm.config.train).param_groups
    assert [g["weight_decay"] for g in groups] == [0.01, 0]
    # q, k, v; FFN; output
    assert sum(p.numel() for p in groups[0]["params"]) == 196_608 + 524_288 + 32_768
    assert (
        sum(p.numel() for p in groups[1]["params"])
        == 32_768 * 2 + 2_560 + 1_536 + 1_280
    )


def test_what_training_makes_smaller_is_nats_and_a_hundredth_of_the_balance():
    """One plain gradient step against the two terms put together here by hand."""
    lm = small(micro_batch=3).double().train()
    config = lm.config.with_train(clip=1e9).train
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for (
            block
        ) in lm.blocks:  # a router at zero is even, and its balance loss is flat
            block.router.weight.normal_(0, 0.5, generator=generator)
    bytes_ = torch.randint(0, 256, (4, 33), generator=generator)
    x, targets = bytes_[:, :-1], bytes_[:, 1:]

    h, p = lm.hidden(x)  # p: (B, blocks, T, 3)
    nats = -lm.logits(h).log_softmax(-1).gather(2, targets[..., None]).mean()
    uneven = 3 * p.mean(2).pow(2).sum(-1) - 1  # (B, blocks)
    alone = torch.autograd.grad(
        0.01 * uneven.mean(), lm.blocks[0].router.weight, retain_graph=True
    )[0]
    expected = torch.autograd.grad(nats + 0.01 * uneven.mean(), list(lm.parameters()))
    assert alone.abs().max() > 1e-4  # or nothing would be tested

    before = [parameter.detach().clone() for parameter in lm.parameters()]
    optimizer = torch.optim.SGD(lm.parameters(), lr=1.0)
    stats = update(lm, optimizer, (x, targets), config, lr=1.0)
    for parameter, start, gradient in zip(
        lm.parameters(), before, expected, strict=True
    ):
        assert torch.allclose(start - parameter, gradient, atol=1e-12)
    assert stats["loss"].item() == pytest.approx(nats.item(), abs=1e-12)
    assert stats["balance"].item() == pytest.approx(uneven.mean().item(), abs=1e-12)


def test_an_update_is_adamw_on_the_clipped_gradient():
    """One step against AdamW written out in float64."""
    lm, x = (
        small().double().train(),
        torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(0)),
    )
    config, before = (
        lm.config.train,
        {n: p.detach().clone() for n, p in lm.named_parameters()},
    )
    lm(x[:, :-1], x[:, 1:]).backward()
    grads = {n: p.grad.clone() for n, p in lm.named_parameters()}
    lm.zero_grad()
    stats = update(
        lm, make_optimizer(lm, config), (x[:, :-1], x[:, 1:]), config, lr=0.01
    )
    norm = math.sqrt(sum(g.square().sum().item() for g in grads.values()))
    assert stats["grad_norm"].item() == pytest.approx(norm, rel=1e-6)
    for name, p in lm.named_parameters():
        g = grads[name] * min(1, 1 / (norm + 1e-6))
        decay = (
            0.01
            if "attention" in name or "ffn" in name or name == "output.weight"
            else 0
        )
        # first step: m / sqrt(v) = g / |g|
        expected = before[name] * (1 - 0.01 * decay) - 0.01 * g / (g.abs() + 1e-8)
        assert (p - expected).abs().max() < 1e-7, name


def test_micro_batches_add_up_to_the_batch():
    x = torch.randint(0, 256, (6, 33), generator=torch.Generator().manual_seed(0))
    after = []
    for micro in (6, 2, 4):  # the last one leaves a smaller rest
        lm = small(batch=6, micro_batch=micro, clip=1e9).double().train()
        stats = update(
            lm,
            # its step is as long as the gradient: adam's first one knows no length
            torch.optim.SGD(lm.parameters()),
            (x[:, :-1], x[:, 1:]),
            lm.config.train,
            lr=0.001,
        )
        after.append(
            (
                stats["loss"].item(),
                stats["balance"].item(),
                {name: p.detach() for name, p in lm.named_parameters()},
            )
        )
    for loss, balance, w in after[1:]:
        assert loss == pytest.approx(
            after[0][0], rel=1e-6
        ) and balance == pytest.approx(after[0][1], rel=1e-6)
        for name, weight in w.items():
            assert (weight - after[0][2][name]).abs().max() < 1e-9, name


def test_a_run_learns_and_leaves_its_record(tmp_path, shards):
    record = train(
        small(steps=60, lr=1e-2),
        shards,
        tmp_path / "run",
        progress=False,
        notes="a test",
    )
    lines = load_metrics(tmp_path / "run")
    assert tuple(record) == KEYS and record == load_record(tmp_path / "run")
    assert (record["steps"], record["bytes_seen"]) == (60, 60 * 4 * 32)
    assert (record["kind"], record["notes"]) == ("train", "a test")
    assert (
        record["data"]["val_bytes"] == len(shards.val)
        and record["device"] == "cpu"
        and record["gpu_name"] is None
    )
    assert (
        lines[0]["loss"] > 5
        and lines[-1]["loss"] < 3.5
        and record["val_bpb"] == lines[-1]["val_bpb"] < 6
    )
    assert record["val_bpb"] == pytest.approx(
        TilelliLM.from_pretrained(tmp_path / "run").score(shards.val.read())
    )
    assert set(lines[0]) == {
        "step",
        "bytes_seen",
        "loss",
        "lr",
        "grad_norm",
        "balance",
        "router_use",
        "zero_share",
        "wall_s",
    }
    assert [
        len(lines[0]["router_use"]),
        len(lines[0]["router_use"][0]),
        len(lines[0]["zero_share"]),
    ] == [2, 3, 2]
    assert sum(lines[-1]["router_use"][0]) == pytest.approx(1, abs=1e-5)
    assert [s["step"] for s in load_lines(tmp_path / "run" / "samples.jsonl")] == [
        1,
        6,
        60,
    ]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_stopping_and_resuming_leaves_no_trace(tmp_path, shards):
    train(small(), shards, tmp_path / "whole", progress=False)
    for stop in (3, 5, 10):
        record = train(
            small(),
            shards,
            tmp_path / "parts",
            resume=stop > 3,
            stop_at=stop,
            progress=False,
        )
        assert record["steps"] == stop and record["finished"] is None
    train(small(), shards, tmp_path / "parts", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    # nothing left to do
    again = train(small(), shards, tmp_path / "parts", resume=True, progress=False)
    assert again["val_bpb"] == load_record(tmp_path / "whole")["val_bpb"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, shards):
    train(small(), shards, tmp_path / "whole", progress=False)
    train(small(), shards, tmp_path / "hurt", stop_at=9, progress=False)
    newest = sorted((tmp_path / "hurt" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="damaged"):
        train(small(), shards, tmp_path / "hurt", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "hurt")


def test_a_damaged_last_checkpoint_is_written_again(tmp_path, shards):
    train(small(), shards, tmp_path / "run", stop_at=8, progress=False)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-10])
    with pytest.warns(UserWarning, match="damaged"):
        train(small(), shards, tmp_path / "run", resume=True, stop_at=8, progress=False)
    before, _ = read_tensors_of(whole, tmp_path)
    after, metadata = read_tensors(newest)
    assert metadata["step"] == 8 and all(
        torch.equal(before[name], after[name]) for name in before
    )


def read_tensors_of(data, folder):
    (folder / "copy.safetensors").write_bytes(data)
    return read_tensors(folder / "copy.safetensors")


def test_nan_before_a_sample_is_the_same_clear_error(tmp_path, shards):
    lm = small(lr=1e30, log_every=50, eval_every=50, checkpoint_every=50)
    with pytest.raises(TilelliError, match="loss is nan|loss is inf|not finite"):
        train(lm, shards, tmp_path / "run", progress=False)


def test_a_run_is_not_overwritten_and_not_mixed(tmp_path, shards):
    train(small(), shards, tmp_path / "run", stop_at=4, progress=False)
    with pytest.raises(TrainingError, match="already holds a run"):
        train(small(), shards, tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="lr 0.003, not 0.5"):
        train(small(lr=0.5), shards, tmp_path / "run", resume=True, progress=False)
    other = prepare_shards(TEXT[:-1], tmp_path / "other", "cats")
    with pytest.raises(DataError, match="does not hold the data"):
        train(small(), other, tmp_path / "run", resume=True, progress=False)


def test_nan_in_the_loss_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, shards):
    lm = small(steps=40)

    def poison(line):
        if line["step"] == 6:
            lm.output.weight.data[0, 0] = math.nan

    with pytest.raises(TrainingError, match="loss is nan at step 7"):
        train(lm, shards, tmp_path / "run", progress=False, on_log=poison)
    names = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step-00000004.safetensors"]
    assert all(w.isfinite().all() for w in weights(tmp_path / "run").values())


def test_a_signal_writes_a_checkpoint_and_returns(tmp_path, shards):
    before = signal.getsignal(signal.SIGTERM)

    def at_step_3(line):
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    record = train(small(), shards, tmp_path / "run", progress=False, on_log=at_step_3)
    assert (
        record["steps"] == 3
        and record["finished"] is None
        and signal.getsignal(signal.SIGTERM) is before
    )
    train(small(), shards, tmp_path / "run", resume=True, progress=False)
    train(small(), shards, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_training_works_outside_the_main_thread(tmp_path, shards):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            train(small(), shards, tmp_path / "run", progress=False)
        )
    )
    thread.start()
    thread.join()
    assert results[0]["steps"] == 12


def test_minutes_fix_the_steps_once(tmp_path, shards):
    record = train(
        small(eval_every=50),
        shards,
        tmp_path / "run",
        minutes=0.15,
        stop_at=3,
        progress=False,
    )
    steps = record["config"]["train"]["steps"]
    assert steps > 12
    again = train(
        small(eval_every=50),
        shards,
        tmp_path / "run",
        resume=True,
        stop_at=5,
        minutes=9,
        progress=False,
    )
    assert again["config"]["train"]["steps"] == steps and again["steps"] == 5


def test_an_unwritable_place_is_one_clear_error(tmp_path, shards):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write into"):
        train(small(), shards, tmp_path / "file" / "run", progress=False)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_train import small
from tilelli_nb import open_shards
from tilelli_nb.training.loop import train
folder = Path({folder!r})
lm = small(steps=400, checkpoint_every=7)
train(lm, open_shards(folder / "shards"), folder / "killed", resume=True, progress=False)
"""


def test_kill_9_three_times_and_resume(tmp_path, shards):
    train(
        small(steps=400, checkpoint_every=7), shards, tmp_path / "whole", progress=False
    )
    code = KILLED.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    metrics = tmp_path / "killed" / "metrics.jsonl"
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for lines in (20, 90, 200):
        process = subprocess.Popen([sys.executable, "-c", code], env=threads)
        while process.poll() is None and not (
            metrics.is_file() and metrics.read_bytes().count(b"\n") > lines
        ):
            time.sleep(0.01)
        assert process.poll() is None, "it finished before it could be killed"
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-c", code], check=True, env=threads)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["finished"]


def test_a_batch_in_which_nothing_is_predicted_has_no_loss():
    """As in the objective: 0, and not 0 / 0, which would be taken for divergence."""
    lm = small().train()
    x = torch.zeros(4, 32, dtype=torch.long)
    optimizer = make_optimizer(lm, lm.config.train)
    batch = x, torch.full_like(x, -100)
    assert update(lm, optimizer, batch, lm.config.train, lr=0.0)["loss"] == 0
