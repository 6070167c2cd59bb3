"""The signals of chapter 12, against values worked out by hand and against numpy."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_models import tiny

from tilelli_nb.errors import EvaluationError
from tilelli_nb.evaluation import rule
from tilelli_nb.evaluation.probes import load_probes
from tilelli_nb.evaluation.rule import BASELINES, ROUTER_SIGNALS
from tilelli_nb.evaluation.signals import (
    controls,
    measure,
    output_signals,
    router_signals,
    signals,
    with_random_router,
)

TEXT = "USER: Où est Paris?\nTILELLI: ".encode()


def test_router_confidence_by_hand():
    # H([.7, .2, .1]) = .801819 nats; 1 - .801819 / 1.098612 = .270153
    found = router_signals(torch.tensor([[[0.7, 0.2, 0.1]]]))
    assert found["router_conf"] == pytest.approx(0.270153, abs=1e-6)
    assert found["router_entropy_variance"] == 0
    even, sure = [1 / 3] * 3, [0.0, 1.0, 0.0]
    p = torch.tensor([[even, sure, sure, sure], [even, even, even, even]])
    found = router_signals(p)
    assert found["router_conf_0"] == pytest.approx(0.75)
    assert found["router_conf_1"] == pytest.approx(0, abs=1e-7)
    assert found["router_conf"] == pytest.approx(0.375)


def test_the_variance_of_the_entropy_by_hand():
    """Entropies of ln 3, 0, 0, 0: a mean of ln 3 / 4, squared distances of 9/16 and
    thrice 1/16 of (ln 3)^2, together 12/64.
    """
    even, sure = [1 / 3] * 3, [0.0, 1.0, 0.0]
    p = torch.tensor([[even, sure, sure, sure], [sure, sure, sure, sure]])
    found = router_signals(p.double())
    expected = 12 / 64 * math.log(3) ** 2
    assert found["router_entropy_variance_0"] == pytest.approx(expected)
    assert found["router_entropy_variance_1"] == 0
    assert found["router_entropy_variance"] == pytest.approx(expected / 2)


def test_the_output_by_hand():
    """Two places: one byte with e times the weight of the other 255, then two bytes
    that share everything.
    """
    first, last = torch.zeros(256), torch.full((256,), -math.inf)
    first[65] = 1
    last[66], last[67] = math.log(0.75), math.log(0.25)
    found = output_signals(torch.stack([first, last]))
    e = math.e
    top, rest = e / (e + 255), 1 / (e + 255)
    entropy = -top * math.log(top) - 255 * rest * math.log(rest)
    assert found["max_softmax_last"] == pytest.approx(0.75)
    assert found["max_softmax_mean"] == pytest.approx((0.75 + top) / 2)
    assert found["margin_last"] == pytest.approx(0.5)
    assert found["margin_mean"] == pytest.approx((0.5 + top - rest) / 2)
    # .75 ln(4/3) + .25 ln 4 = .562335
    assert found["neg_entropy_last"] == pytest.approx(-0.562335, abs=1e-6)
    assert found["neg_entropy_mean"] == pytest.approx(-(0.562335 + entropy) / 2)


def test_higher_is_surer():
    vague, sure = torch.randn(1, 5, 256), 9 * torch.randn(1, 5, 256)
    low, high = output_signals(vague[0]), output_signals(sure[0])
    assert all(high[name] > low[name] for name in low)
    flat = torch.full((2, 5, 3), 1 / 3)
    peak = torch.tensor([0.9, 0.1, 0.0]).expand(2, 5, 3)
    conf = [router_signals(p)["router_conf"] for p in (flat, peak)]
    assert conf[0] < conf[1]


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


def by_numpy(lm, data):
    """The signals in float64 from what goes into the routers and the output matrix,
    which hooks catch; and the last hidden state.
    """
    caught = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, out: caught.append(inputs[0]))
        for module in (*[block.router for block in lm.blocks], lm.norm)
    ]
    with torch.no_grad():
        lm(torch.tensor([list(data)]))
    for hook in hooks:
        hook.remove()
    *ys, h = [c[0].double().numpy() for c in caught]
    weights = [block.router.weight.detach().double().numpy() for block in lm.blocks]
    p = np.stack([softmax(y @ w.T) for y, w in zip(ys, weights, strict=True)])
    mean, spread = h.mean(-1, keepdims=True), h.std(-1, keepdims=True)
    normed = (h - mean) / np.sqrt(spread**2 + 1e-5)
    normed = normed * lm.norm.weight.detach().numpy() + lm.norm.bias.detach().numpy()
    q = np.sort(softmax(normed @ lm.output.weight.detach().numpy().T), -1)
    found = {}
    conf, variance = 1 - entropy(p) / np.log(3), entropy(p).var(1)
    for name, value in (
        ("router_conf", conf.mean(1)),
        ("router_entropy_variance", variance),
    ):
        found[name] = value.mean()
        found |= {f"{name}_{i}": v for i, v in enumerate(value)}
    for name, value in (
        ("max_softmax", q[:, -1]),
        ("margin", q[:, -1] - q[:, -2]),
        ("neg_entropy", -entropy(q)),
    ):
        found |= {f"{name}_last": value[-1], f"{name}_mean": value.mean()}
    return found, h[-1]


@pytest.mark.parametrize("data", [TEXT, b"x", bytes(range(256))])
def test_a_tiny_model_against_numpy(data):
    lm = tiny(seed=3)
    expected, h = by_numpy(lm, data)
    seen = []
    found = signals(lm, data, abstain=lambda last: seen.append(last) or 0.25)
    assert found.pop("neg_abstain_p") == -0.25
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    # the head gets the last block's output at the last byte, before the norm
    assert np.allclose(seen[0].numpy(), h)


def test_a_model_in_fp32():
    """From the routers' inputs in fp32 on, numpy goes on in float64."""
    lm = tiny(seed=3, dtype=torch.float32)
    expected, _ = by_numpy(lm, TEXT)
    assert signals(lm, TEXT) == pytest.approx(expected, abs=1e-5)


def test_what_the_rule_needs_is_there():
    found = signals(tiny(), TEXT, abstain=lambda h: torch.sigmoid(h.sum()))
    assert {*ROUTER_SIGNALS, *BASELINES} <= found.keys()
    assert -1 < found["neg_abstain_p"] < 0
    assert "neg_abstain_p" not in signals(tiny(), TEXT)


def test_vanilla_blocks_have_no_router():
    found = signals(tiny(block="vanilla"), TEXT)
    assert not [name for name in found if "router" in name]
    assert 0 < found["max_softmax_last"] < 1
    columns = measure(tiny(block="vanilla"), [TEXT])
    assert not [name for name in columns if "router" in name]


@pytest.mark.parametrize("data", [b"", bytes(257)])
def test_what_no_single_pass_can_take(data):
    with pytest.raises(EvaluationError, match=f"prompt of {len(data)} bytes"):
        signals(tiny(), data)


def test_the_controls_know_the_outside_alone():
    found = controls(TEXT)
    assert found["length"] == len(TEXT) == 30
    assert found["has_framing"] == 1
    assert controls("Où est Paris?".encode())["has_framing"] == 0
    assert controls(b"user: hello")["has_framing"] == 0
    assert controls(b"He said USER: hello")["has_framing"] == 0


def test_the_random_control_is_seeded_and_even():
    assert controls(TEXT) == controls(TEXT)
    assert controls(TEXT)["random"] != controls(TEXT, seed=1)["random"]
    many = [controls(str(i).encode())["random"] for i in range(2000)]
    assert len(set(many)) == 2000
    assert np.quantile(many, [0.25, 0.5, 0.75]) == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.05
    )


def test_a_random_router_is_as_strong_and_another():
    lm = tiny(seed=3, d_model=240)
    before = [block.router.weight.clone() for block in lm.blocks]
    other = with_random_router(lm)
    for old, block, drawn in zip(before, lm.blocks, other.blocks, strict=True):
        assert torch.equal(old, block.router.weight)  # the model keeps its own
        new = drawn.router.weight
        # 720 numbers tell a standard deviation to 1 / sqrt(1440) = 2.6%
        assert new.std().item() == pytest.approx(old.std().item(), rel=0.11)
        assert abs(np.corrcoef(old.detach().ravel(), new.detach().ravel())[0, 1]) < 0.15
        assert torch.equal(block.ffn.up.weight, drawn.ffn.up.weight)
    again, elsewhere = with_random_router(lm), with_random_router(lm, seed=1)
    assert torch.equal(again.blocks[0].router.weight, other.blocks[0].router.weight)
    assert not torch.equal(
        elsewhere.blocks[0].router.weight, other.blocks[0].router.weight
    )
    # each block has a draw of its own
    first, second = (
        block.router.weight / block.router.weight.std() for block in other.blocks
    )
    assert not torch.allclose(first, second)


def test_measure_has_a_column_for_everything():
    lm, prompts = tiny(seed=3), [TEXT, b"Where is Paris?", b"zzz"]
    columns = measure(lm, prompts, abstain=lambda h: 0.5, seed=4)
    blind = with_random_router(lm, 4)
    for row, prompt in enumerate(prompts):
        own = signals(lm, prompt, lambda h: 0.5) | controls(prompt, 4)
        for name in ROUTER_SIGNALS:
            own[f"random_{name}"] = signals(blind, prompt)[name]
        assert {name: column[row] for name, column in columns.items()} == own
    assert columns["random_router_conf"] != columns["router_conf"]


def test_prompts_do_not_touch_each_other():
    lm, prompts = tiny(), [TEXT, b"Where is Paris?"]
    forth, back = measure(lm, prompts), measure(lm, prompts[::-1])
    assert forth == {name: column[::-1] for name, column in back.items()}


def test_from_probes_to_a_verdict(monkeypatch):
    """What is measured fits the rule as it is: the same names, every regime."""
    monkeypatch.setattr(rule, "RESAMPLES", 20)
    lm, regimes = tiny(d_model=12), {}
    for name in rule.REGIMES:
        prompts = [p.in_chat for p in load_probes() if p.regime == name][::5]
        columns = measure(lm, prompts, abstain=lambda h: torch.sigmoid(h.mean()))
        regimes[name] = rule.Cases([True, False] * 3, columns)
    found = rule.verdict(regimes)
    assert not found.holds  # untrained, and the outcomes are by turns
    expected = roc_auc_score([1, 0] * 3, regimes["neo"].signals["router_conf"])
    own = found.contests["router_conf"]["neo"].auroc
    assert own == pytest.approx(expected) == found.beside["router_conf"]["neo"]
    assert {"random", "length", "has_framing", "margin_mean"} <= found.beside.keys()
    assert found.beside["has_framing"] == dict.fromkeys(rule.REGIMES, 0.5)
