"""The fast recipe: sixteen bits where they pay, Muon, the stable schedule, and branches
that finish a run.
"""

import math

import numpy as np
import pytest
import torch
from test_train import assert_same_run, small, timeless, weights

from tilelli_nb import TilelliLM, load_config, load_record, prepare_shards
from tilelli_nb.errors import ConfigError, TrainingError
from tilelli_nb.storage.records import load_metrics
from tilelli_nb.training import precision as precision_module
from tilelli_nb.training.loop import train
from tilelli_nb.training.muon import Muon, MuonWithAdamW, orthogonalize
from tilelli_nb.training.optimizer import learning_rate, make_optimizer, update
from tilelli_nb.training.precision import bf16_gain, choose_precision
from tilelli_nb.training.resuming import branch

TEXT = [f"Number {i} is {i * i} when it is squared. " * 5 for i in range(40)]
CPU = torch.device("cpu")


@pytest.fixture
def shards(tmp_path):
    return prepare_shards(TEXT, tmp_path / "shards", "squares")


# Muon


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_one_matrix_moves_as_with_pytorchs_muon(shape):
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    a = Muon([{"params": [ours]}], lr=0.02, weight_decay=0.1)
    b = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    assert torch.allclose(ours, theirs, atol=1e-6) and not torch.equal(
        ours, torch.ones(shape)
    )


def test_orthogonal_directions_against_the_singular_vectors():
    matrix = np.random.default_rng(0).normal(size=(12, 20))
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    made = orthogonalize(torch.tensor(matrix)[None], torch.float64)[0].numpy()
    inner = u.T @ made @ vt.T  # diagonal where the singular vectors are kept
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-9
    assert np.diag(inner).min() > 0.6 and np.diag(inner).max() < 1.3


def test_which_singular_values_come_out_near_1():
    values = torch.tensor([1, 0.5, 0.1, 0.01, 0.0035, 0.0003], dtype=torch.float64)
    made = orthogonalize(torch.diag(values)[None], torch.float64)[0].diagonal()
    assert (made[:-1] > 0.68).all() and (made[:-1] < 1.2).all()
    # five rounds multiply a small one by 3.4445 ** 5 at most
    grown = 3.4445**5 * values[-1] / values.norm()
    assert 0.9 * grown < made[-1] < grown


def test_stacked_matrices_do_not_see_each_other():
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(8, 8, generator=generator) for _ in range(3)]
    together = torch.nn.Parameter(torch.zeros(24, 8))
    together.grad = torch.cat(parts)
    Muon([{"params": [together], "stacked": 3}], 1.0, 0.0, dtype=torch.float64).step()
    for part, moved in zip(parts, together.detach().split(8), strict=True):
        alone = torch.nn.Parameter(torch.zeros(8, 8))
        alone.grad = part
        Muon([{"params": [alone]}], 1.0, 0.0, dtype=torch.float64).step()
        assert torch.allclose(moved, alone, atol=1e-6)


def test_muon_takes_the_matrices_between_the_vectors_and_adamw_the_rest():
    lm = small(optimizer="muon")
    optimizer = make_optimizer(lm, lm.config.train)
    assert isinstance(optimizer, MuonWithAdamW)
    names = {id(p): name for name, p in lm.named_parameters()}
    muon, adamw = (
        {names[id(p)] for group in part.param_groups for p in group["params"]}
        for part in optimizer.parts
    )
    assert muon | adamw == set(names.values()) and not muon & adamw
    assert all(".attention." in name or ".ffn." in name for name in muon)
    assert len(muon) == 2 * 3  # q, k, v in one; up; down; in each of two blocks
    assert [group["stacked"] for group in optimizer.parts[0].param_groups] == [3, 1]


def test_both_rates_follow_the_schedule():
    lm = small(optimizer="muon", lr=0.002, muon_lr=0.02)
    optimizer = make_optimizer(lm, lm.config.train)
    x = torch.zeros(4, 32, dtype=torch.long)
    update(lm.train(), optimizer, (x, x), lm.config.train, lr=0.001)
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.01, 0.001, 0.001]


def test_muon_resumes_exactly(tmp_path, shards):
    settings = {"optimizer": "muon", "schedule": "wsd"}
    train(small(**settings), shards, tmp_path / "whole", progress=False)
    train(small(**settings), shards, tmp_path / "parts", stop_at=5, progress=False)
    train(small(**settings), shards, tmp_path / "parts", resume=True, progress=False)
    assert timeless(tmp_path / "whole") == timeless(tmp_path / "parts")


# The schedule


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_the_last_step_has_the_lowest_rate(schedule, steps):
    config = small(
        steps=steps,
        schedule=schedule,
        warmup_ratio=0.5,
        decay_ratio=0.5,
        min_lr_ratio=0.1,
    ).config.train
    assert learning_rate(steps - 1, config) == pytest.approx(0.1 * config.lr)


def test_warm_up_stable_decay():
    config = small(
        steps=100, schedule="wsd", warmup_ratio=0.1, decay_ratio=0.2, min_lr_ratio=0.0
    ).config.train
    rates = [learning_rate(step, config) / config.lr for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates[9:80] == pytest.approx([1.0] * 71)
    assert rates[80:83] == pytest.approx([0.95, 0.9, 0.85]) and abs(rates[99]) < 1e-12


def test_the_end_can_be_chosen_late(tmp_path, shards):
    """A run and its branch share their first steps; the branch then decays to its end."""
    settings = {"schedule": "wsd", "steps": 1000, "min_lr_ratio": 0.0}
    settings["warmup_ratio"] = 0.004  # 4 steps
    train(small(**settings), shards, tmp_path / "long", stop_at=8, progress=False)
    before = (tmp_path / "long" / "run.json").read_bytes()
    config = branch(tmp_path / "long", tmp_path / "end", 4)
    lm = TilelliLM(config)
    record = train(lm, shards, tmp_path / "end", resume=True, progress=False)
    assert record["finished"] and record["steps"] == 12
    assert "Decays from step 8 of long" in record["notes"]
    assert timeless(tmp_path / "end")[:8] == timeless(tmp_path / "long")[:8]
    peak = timeless(tmp_path / "long")[-1]["lr"]
    rates = [line["lr"] for line in load_metrics(tmp_path / "end")[8:]]
    assert rates == pytest.approx([0.00225, 0.0015, 0.00075, 0]) and peak == 0.003
    assert (tmp_path / "long" / "run.json").read_bytes() == before
    with pytest.raises(TrainingError, match="already holds a run"):
        branch(tmp_path / "long", tmp_path / "end", 4)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        # From 0.003 down to 0.0003. The third step is one of 38 down half a wave,
        # 0.0003 + 0.0027 * (1 + cos(pi / 38)) / 2
        ({"schedule": "cosine"}, "at step 3 the rate of long is 0.002995, not at"),
        # 4 of 40 steps warm up: three quarters of 0.003
        ({"warmup_ratio": 0.1}, "at step 3 the rate of long is 0.00225, not at"),
        # 38 of 40 steps fall in a straight line: 0.003 - 0.0027 / 38
        ({"decay_ratio": 0.95}, "at step 3 the rate of long is 0.002929, not at"),
    ],
)
def test_a_decay_does_not_begin_with_a_higher_rate(tmp_path, shards, settings, problem):
    """Than that of the run, which is not at its peak; nothing is left behind."""
    lm = small(**{"schedule": "wsd", "steps": 40, **settings})
    train(lm, shards, tmp_path / "long", stop_at=3, progress=False)
    with pytest.raises(TrainingError, match=problem) as caught:
        branch(tmp_path / "long", tmp_path / "end", 4)
    assert "its own command with --resume" in caught.value.fix
    assert not (tmp_path / "end").exists()


@pytest.mark.parametrize("stop_at", [4, 20])
def test_a_decay_begins_at_the_first_step_of_the_peak_and_at_the_last(
    tmp_path, shards, stop_at
):
    """Also where the whole is to be longer than planned, with a longer warm-up."""
    ratios = {"warmup_ratio": 0.1, "decay_ratio": 0.5, "min_lr_ratio": 0.0}
    lm = small(schedule="wsd", steps=40, **ratios)
    train(lm, shards, tmp_path / "long", stop_at=stop_at, progress=False)
    settings = branch(tmp_path / "long", tmp_path / "end", 100).train
    steps = [stop_at, stop_at + 1, stop_at + 50, stop_at + 99]
    rates = [learning_rate(step, settings) / settings.lr for step in steps]
    assert rates == pytest.approx([0.99, 0.98, 0.49, 0])


@pytest.mark.parametrize("steps", [0, -5])
def test_a_decay_takes_a_step_at_least(tmp_path, shards, steps):
    lm = small(schedule="wsd", steps=40)
    train(lm, shards, tmp_path / "long", stop_at=3, progress=False)
    with pytest.raises(ConfigError, match=f"--steps {steps}\n.*give 1 or more"):
        branch(tmp_path / "long", tmp_path / "end", steps)
    assert not (tmp_path / "end").exists()


def test_checkpoints_by_the_clock(tmp_path, shards):
    lm = small(checkpoint_every=1000, checkpoint_minutes=1e-9, keep_checkpoints=99)
    train(lm, shards, tmp_path / "run", progress=False, stop_at=3)
    written = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert written == [f"step-{step:08d}.safetensors" for step in (1, 2, 3)]


# Sixteen bits


@pytest.mark.parametrize(
    "gain, chosen", [(0.01, "fp32"), (1.29, "fp32"), (1.31, "bf16"), (15.0, "bf16")]
)
def test_auto_takes_bf16_from_1_3_times_up(monkeypatch, gain, chosen):
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: gain)
    assert choose_precision("auto", CPU) == chosen
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


def test_the_gain_is_the_ratio_of_the_fastest_products(monkeypatch):
    """Whatever else the machine does makes single products slower, never faster."""
    seconds = {torch.float32: [9.0, 6.0, 8.0], torch.bfloat16: [5.0, 7.0, 2.0]}
    now = [0.0]

    def product_seconds(a, b):
        assert a.dtype == b.dtype
        took = seconds[a.dtype].pop(0)
        now[0] += took
        return took

    monkeypatch.setattr(precision_module, "product_seconds", product_seconds)
    monkeypatch.setattr(precision_module.time, "perf_counter", lambda: now[0])
    # The first pair takes 14 s. Fourteen more are left to look: 13 for the second pair,
    # and the third has begun by then.
    assert bf16_gain(14.0) == 6.0 / 2.0
    assert seconds == {torch.float32: [], torch.bfloat16: []}


def test_a_run_keeps_the_precision_it_began_with(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: 15.0)
    settings = {"precision": "auto"}
    train(small(**settings), shards, tmp_path / "run", stop_at=4, progress=False)
    assert load_record(tmp_path / "run")["precision"] == "bf16"
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: 0.01)
    lm = small(**settings)
    record = train(lm, shards, tmp_path / "run", resume=True, progress=False)
    assert record["precision"] == "bf16" and record["finished"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_auto_without_a_gain_trains_as_fp32_bit_for_bit(
    tmp_path, shards, monkeypatch, optimizer
):
    def run(name, precision):
        lm = small(steps=3, optimizer=optimizer, precision=precision)
        return train(lm, shards, tmp_path / name, progress=False)["precision"]

    assert run("exact", "fp32") == "fp32"
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: 1.29)
    assert run("slow", "auto") == "fp32"
    assert_same_run(tmp_path / "exact", tmp_path / "slow")
    # with a gain it does not, so that there is something to see
    monkeypatch.setattr(precision_module, "bf16_gain", lambda: 1.31)
    assert run("fast", "auto") == "bf16"
    exact, fast = (weights(tmp_path / name) for name in ("exact", "fast"))
    assert any(not torch.equal(exact[name], fast[name]) for name in exact)


def test_another_precision_or_optimizer_is_refused_by_name(tmp_path, shards):
    settings = {"precision": "fp32"}
    train(small(**settings), shards, tmp_path / "run", stop_at=4, progress=False)
    with pytest.raises(ConfigError, match="precision fp32, not bf16"):
        train(small(precision="bf16"), shards, tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="optimizer adamw, not muon"):
        lm = small(optimizer="muon", **settings)
        train(lm, shards, tmp_path / "run", resume=True)


def test_bf16_gradients_are_near_those_of_fp32():
    lm = small().train()
    x = torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(0))
    gradients = {}
    for name, enabled in (("fp32", False), ("bf16", True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = lm.loss_terms(x[:, :-1], x[:, 1:])
        (terms.nats / 128).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in lm.parameters()])
        lm.zero_grad()
    near = torch.cosine_similarity(gradients["fp32"], gradients["bf16"], dim=0)
    assert near > 0.999 and not torch.equal(gradients["fp32"], gradients["bf16"])


def test_words_that_are_not_known():
    for name, value in (
        ("optimizer", "sgd"),
        ("precision", "fp8"),
        ("schedule", "step"),
    ):
        with pytest.raises(ConfigError, match=f"train.{name} = {value!r}.*\n.*one of"):
            small(**{name: value})
    assert math.isclose(load_config("lite_10m_fast").train.muon_lr, 0.02)


@pytest.mark.parametrize(("card_has_bf16", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_that_only_imitates_sixteen_bits_trains_in_32(
    monkeypatch, card_has_bf16, chosen
):
    """A T4 says that it supports bf16, and emulates it."""

    def is_supported(including_emulation=True):
        return including_emulation or card_has_bf16

    monkeypatch.setattr("torch.cuda.is_bf16_supported", is_supported)
    assert choose_precision("auto", torch.device("cuda")) == chosen
    assert choose_precision("bf16", torch.device("cuda")) == "bf16"
