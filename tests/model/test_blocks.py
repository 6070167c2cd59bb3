"""The pathways against values worked out by hand, independent float64 NumPy, and their
own one-byte steps.
"""

import math

import numpy as np
import pytest
import torch

from tilelli_nb import (
    CausalConv,
    Router,
    TernaryFFN,
    TopKAttention,
    balance_loss,
    ternarize,
    topk_attention,
)
from tilelli_nb.errors import ConfigError
from tilelli_nb.model.router import router_confidence
from tilelli_nb.model.ternary import TernaryLinear

BACKENDS = ["reference", "blocked"]


def draw(*shape, seed=0):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


# Convolution


def test_conv_by_hand():
    conv = CausalConv(1, width=3).double()
    conv.weight.data = torch.tensor([[100.0, 10.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 4, 1)
    assert conv(y).flatten().tolist() == [1, 12, 123, 234]


# Top-k attention

GOLDEN = {
    1: [[1, 0], [0.5, 0.5], [1.5, 1], [2, -1.5]],
    2: [[1, 0], [0.5, 0.5], [1.5, 1], [2, -1.5]],
    3: [[1, 0], [0.5, 0.5], [1.337425, 1], [1.834881, -0.674404]],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", GOLDEN)
def test_attention_golden(backend, keep):
    q, k, v = (
        torch.tensor(rows, dtype=torch.float64).view(1, 1, 4, 2)
        for rows in (
            [[1, 0], [1, 1], [2, 0], [0, 1]],
            [[1, 0], [0, 1], [1, 0], [1, 1]],
            [[1, 0], [0, 1], [2, 2], [4, -4]],
        )
    )
    out = topk_attention(q, k, v, keep, backend)[0, 0]
    assert (out - torch.tensor(GOLDEN[keep], dtype=torch.float64)).abs().max() < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_are_kept_and_the_mask_wins(backend):
    q = k = torch.zeros(1, 1, 70, 3)  # every score is equal: all visible keys tie
    v = torch.arange(70.0).view(1, 1, 70, 1)
    out = topk_attention(q, k, v, keep=2, backend=backend).flatten()
    assert torch.allclose(out, torch.arange(70.0) / 2)  # the mean of 0..t


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_nan_out(backend):
    q, k, v = draw(1, 1, 5, 2), draw(1, 1, 5, 2, seed=1), draw(1, 1, 5, 2, seed=2)
    q[0, 0, 3] = math.nan
    out = topk_attention(q, k, v, 2, backend)[0, 0]
    assert out[3].isnan().all() and not out[[0, 1, 2, 4]].isnan().any()
    q[0, 0, 3], k[0, 0, 2] = 1.0, math.nan  # every query from there on sees that key
    out = topk_attention(q, k, v, 2, backend)[0, 0]
    assert out[2:].isnan().all() and not out[:2].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_inputs_are_compared_in_fp32(backend):
    q, k, v = (draw(1, 2, 40, 8, seed=s).bfloat16() for s in range(3))
    out = topk_attention(q, k, v, 4, backend)
    expected = topk_attention(q.double(), k.double(), v.double(), 4, "reference")
    assert out.dtype == torch.bfloat16 and (out.double() - expected).abs().max() < 0.03


@pytest.mark.parametrize(
    "shape, value_width",
    [((2, 3, 0, 4), 4), ((0, 3, 5, 4), 4), ((3, 30, 70, 1), 3), ((1, 70, 65, 5), 2)],
)
def test_blocked_gradients_of_nothing_of_many_heads_and_of_other_values(
    shape, value_width
):
    inputs = [draw(*shape), draw(*shape, seed=1), draw(*shape[:3], value_width, seed=2)]
    g, found = draw(*shape[:3], value_width, seed=3), []
    for backend in BACKENDS:
        leaves = [x.clone().requires_grad_() for x in inputs]
        found.append(
            torch.autograd.grad(topk_attention(*leaves, 4, backend), leaves, g)
        )
    for reference, blocked in zip(*found, strict=True):
        assert reference.shape == blocked.shape and torch.allclose(
            reference, blocked, rtol=0, atol=1e-10
        )


def test_unknown_backend_and_keep_zero_are_errors():
    q = draw(1, 1, 2, 2)
    with pytest.raises(ConfigError, match="backend"):
        topk_attention(q, q, q, 2, "fast")
    with pytest.raises(ConfigError, match="keep = 0"):
        topk_attention(q, q, q, 0)


# Ternary


def test_ternarize_golden():
    codes, scale = ternarize(torch.tensor([[0.9, -0.2, 0.05], [-1.1, 0.4, 0]]))
    assert codes.tolist() == [[1, 0, 0], [-1, 1, 0]]
    assert abs(scale.item() - 0.441667) < 1e-6


def test_halves_round_to_even_and_zeros_stay_finite():
    # scale 1: 0.5 rounds to 0, 1.5 to 2, clamped to 1
    codes, _ = ternarize(torch.tensor([0.5, 1.5, -0.5, -1.5]))
    assert codes.tolist() == [0, 1, 0, -1]
    codes, scale = ternarize(torch.zeros(3))
    assert codes.tolist() == [0, 0, 0] and scale.item() == pytest.approx(1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_scale_of_sixteen_bit_weights_is_computed_in_fp32(dtype):
    w = draw(64, 65).to(dtype)
    expected = np.abs(w.double().numpy()).mean()
    codes, scale = ternarize(w)
    assert codes.dtype == dtype and scale.dtype == torch.float32
    assert scale.item() == pytest.approx(expected, rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        _, under_autocast = ternarize(w)
    assert torch.equal(under_autocast, scale)


def test_the_used_weight_has_three_values_and_its_zero_share():
    layer = TernaryLinear(50, 40)
    layer.weight.data = draw(40, 50).float()
    w = layer.ternary_weight()
    assert len(w.unique()) == 3
    assert layer.zero_share() == pytest.approx((w == 0).float().mean().item())


# Router


def test_router_starts_even_and_sums_to_one():
    router = Router(8).double()
    assert torch.allclose(
        router(draw(2, 3, 8)), torch.full((2, 3, 3), 1 / 3, dtype=torch.float64)
    )
    router.weight.data = draw(3, 8, seed=1)
    logits = draw(4, 8, seed=2).numpy() @ router.weight.detach().numpy().T
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert np.abs(router(draw(4, 8, seed=2)).detach().numpy() - expected).max() < 1e-12


@pytest.mark.parametrize(
    "p,value",
    [
        ([[1, 0, 0]] * 4, 2.0),
        ([[1 / 3] * 3] * 4, 0.0),
        ([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], 0.065),
    ],
)
def test_balance_golden(p, value):
    assert balance_loss(torch.tensor([p], dtype=torch.float64)).item() == pytest.approx(
        value, abs=1e-12
    )


def test_balance_is_per_sequence_and_ignores_padding():
    # even over the batch, not within a sequence
    one_sided = torch.tensor([[[1.0, 0, 0]] * 2, [[0, 1.0, 0]] * 2])
    assert balance_loss(one_sided).item() == pytest.approx(2)
    p = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [1.0, 0, 0]]])
    assert balance_loss(p, torch.tensor([[True, True, False]])).item() == pytest.approx(
        0.065, abs=1e-6
    )


def test_confidence_golden():
    assert router_confidence(
        torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    ).item() == pytest.approx(0.270153, abs=1e-6)
    assert router_confidence(torch.tensor([1.0, 0, 0])).item() == 1
    assert router_confidence(
        torch.full((3,), 1 / 3, dtype=torch.float64)
    ).item() == pytest.approx(0, abs=1e-12)


# A sequence read at once and in pieces


def pathway(name):
    module = {
        "conv": lambda: CausalConv(12),
        "attention": lambda: TopKAttention(12, 3, keep=4),
        "ffn": lambda: TernaryFFN(12),
    }[name]().double()
    for i, parameter in enumerate(module.parameters()):
        parameter.data = draw(*parameter.shape, seed=i + 3)
    room = {"conv": (2,), "attention": (2, 40), "ffn": ()}[name]
    return module, module.new_state(*room)


@pytest.mark.parametrize("name", ["conv", "attention", "ffn"])
@pytest.mark.parametrize("sizes", [[1] * 40, [1, 39], [3, 1, 1, 30, 5], [20, 20], [40]])
def test_pieces_of_any_size_agree_with_the_whole(name, sizes):
    module, state = pathway(name)
    y = draw(2, 40, 12)
    with torch.no_grad():
        whole = module(y)
        parts = [module(piece, state) for piece in y.split(sizes, dim=1)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-10


@pytest.mark.parametrize("backend", ["auto", "reference", "blocked", "triton"])
@pytest.mark.parametrize("queries", [1, 2, 7, 40])
def test_fewer_queries_than_keys_are_the_last_ones(backend, queries):
    dtype = torch.float32 if backend == "triton" else torch.float64
    q, k, v = (draw(2, 3, 40, 16, seed=s).to(dtype) for s in range(3))
    whole = topk_attention(q, k, v, keep=4, backend="reference")
    last = topk_attention(q[:, :, 40 - queries :], k, v, keep=4, backend=backend)
    assert last.shape == (2, 3, queries, 16)
    assert (last - whole[:, :, 40 - queries :]).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["auto", "reference", "blocked", "triton"])
def test_more_queries_than_keys_are_refused(backend):
    q, k, v = draw(1, 1, 5, 8), draw(1, 1, 4, 8), draw(1, 1, 4, 8)
    with pytest.raises(ConfigError, match="5 queries, 4 keys and 4 values"):
        topk_attention(q, k, v, keep=2, backend=backend)
    with pytest.raises(ConfigError, match="4 queries, 5 keys and 4 values"):
        topk_attention(k, q, v, keep=2, backend=backend)
