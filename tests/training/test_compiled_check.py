"""The gradients of a compiled step are compared before a run begins: a fault ends it,
and where there is none the run never knows of it.
"""

import random
from functools import partialmethod

import numpy as np
import pytest
import torch
from test_train import assert_same_run, shards, small  # noqa: F401

from tilelli_nb.errors import TrainingError
from tilelli_nb.training import compiled_check, loop
from tilelli_nb.training.batches import Prefetch
from tilelli_nb.training.compiled_check import LIMIT, check_gradients, distance
from tilelli_nb.training.distributed import LossTermsOf
from tilelli_nb.training.loop import train

TOKENS = torch.randint(0, 256, (19, 32), generator=torch.Generator().manual_seed(3))
LOST = "blocks.1.conv.weight"


def forgetful(lm, name=LOST):
    """Like torch.compile of PyTorch 2.11: the right loss, without one gradient."""
    parameter = lm.get_parameter(name)

    def loss_terms(x, targets):
        parameter.requires_grad_(False)
        terms = lm.loss_terms(x, targets)
        parameter.requires_grad_(True)
        return terms

    return loss_terms


def trained(**changes):
    """A model whose weights are not those that it began with."""
    lm = small(**changes).train()
    draw = torch.Generator().manual_seed(1)
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.7, generator=draw)
    return lm


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1:]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_gradients_agree_nothing_is_left_behind(precision):
    lm = trained()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    state = str(generators())
    errors = check_gradients(lm, lm.loss_terms, TOKENS, precision)
    assert list(errors) == [name for name, _ in lm.named_parameters()]
    # 19 rows at once against 8, 8 and 3: other rounding, and no more
    assert max(errors.values()) < (1e-4 if precision == "fp32" else 0.03)
    assert all(torch.equal(before[n], value) for n, value in lm.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.parameters())
    assert lm.training and state == str(generators())


@pytest.mark.parametrize(
    "name", [name for name, _ in small().named_parameters() if "1." in name]
)
def test_a_lost_gradient_is_named_and_what_to_do_is_said(name):
    lm = trained()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    with pytest.raises(TrainingError, match=f"disagree: {name} by 1 of") as caught:
        check_gradients(lm, forgetful(lm, name), TOKENS, "fp32")
    assert "--resume and --no-compile" in caught.value.fix
    assert all(torch.equal(before[n], value) for n, value in lm.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_an_error_in_the_compiled_step_gives_the_weights_back():
    lm = trained()
    before = {name: value.clone() for name, value in lm.state_dict().items()}

    def broken(x, targets):
        raise RuntimeError("no such instruction")

    with pytest.raises(RuntimeError, match="no such instruction"):
        check_gradients(lm, broken, TOKENS, "fp32")
    assert all(torch.equal(before[n], value) for n, value in lm.state_dict().items())


def test_sharp_attention_of_a_trained_model_is_no_fault():
    """In bf16 its gradients move far with any other rounding: here fp32 for bf16."""
    lm = trained()
    for block in lm.blocks:
        block.attention.weight.data *= 10

    def rounded_elsewhere(x, targets):
        with torch.autocast("cpu", enabled=False):
            return lm.loss_terms(x, targets)

    errors = check_gradients(lm, rounded_elsewhere, TOKENS, "bf16")
    assert 0.001 < max(errors.values()) < LIMIT / 2
    # in the model's own weights the two would have disagreed
    found = compiled_check.gradients(lm, rounded_elsewhere, TOKENS, "bf16", 19)
    wanted = compiled_check.gradients(lm, lm.loss_terms, TOKENS, "bf16", 19)
    assert max(distance(found[name], wanted[name]) for name in wanted) > 2 * LIMIT


def test_a_gradient_that_is_no_number_is_far_away():
    nothing, one = torch.zeros(3), torch.ones(3)
    assert distance(nothing, nothing) == 0 and distance(nothing, one) == 1
    assert distance(one * torch.nan, one) == float("inf")
    assert distance(one * torch.inf, one) == float("inf")


def test_a_batch_that_is_looked_at_stays_the_next_one():
    def draw(generator):
        return (torch.randint(1000, (3,), generator=generator),)

    state = torch.Generator().manual_seed(5).get_state()
    plain, looked_at = (
        Prefetch(draw, state, pin=False),
        Prefetch(draw, state, pin=False),
    )
    for _ in range(6):
        (seen,) = looked_at.peek()
        (expected,) = plain.next()
        assert torch.equal(looked_at.next()[0], expected) and torch.equal(
            seen, expected
        )
        assert torch.equal(looked_at.state, plain.state)
    plain.close()
    looked_at.close()


def test_a_run_never_knows_that_it_was_checked(tmp_path, shards, monkeypatch):  # noqa: F811
    """Compiled by aot_eager, stopped and resumed; and once without the check."""
    compile_ = partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    checked = []

    def look(run):
        compiled_check.check_compiled(run)
        checked.append((run.step, run.clock.aside_s > 0))

    monkeypatch.setattr(loop, "check_compiled", look)
    options = {"compiled": True, "device": "cpu", "progress": False}
    train(small(micro_batch=2), shards, tmp_path / "run", stop_at=8, **options)
    lm = small(micro_batch=2)
    train(lm, shards, tmp_path / "run", resume=True, **options)
    # a run that is finished has nothing to check
    train(lm, shards, tmp_path / "run", resume=True, **options)
    assert checked == [(0, True), (8, True)]
    monkeypatch.setattr(loop, "check_compiled", lambda run: None)
    train(small(micro_batch=2), shards, tmp_path / "unchecked", **options)
    assert_same_run(tmp_path / "run", tmp_path / "unchecked")


def test_a_run_whose_compiler_forgets_ends_before_its_first_step(
    tmp_path,
    shards,  # noqa: F811
    monkeypatch,
):
    def compile_(self, dynamic):
        self.forward = forgetful(self.lm)

    monkeypatch.setattr(LossTermsOf, "compile", compile_)
    lm, folder = small(), tmp_path / "run"
    with pytest.raises(TrainingError, match=LOST):
        train(lm, shards, folder, compiled=True, progress=False)
    assert (folder / "metrics.jsonl").read_text() == ""
    # what the message says to do: the run that it would have been from the beginning
    train(lm, shards, folder, resume=True, compiled=False, progress=False)
    train(small(), shards, tmp_path / "eager", progress=False)
    assert_same_run(folder, tmp_path / "eager")


def test_a_run_that_does_not_compile_is_not_checked(tmp_path, shards, monkeypatch):  # noqa: F811
    def check(run):
        raise AssertionError

    monkeypatch.setattr(loop, "check_compiled", check)
    options = {"device": "cpu", "progress": False}
    assert train(small(), shards, tmp_path / "run", **options)["finished"]
