"""The Triton kernel against float64 NumPy: in Triton's interpreter here, on the GPU
itself where there is one.

tests/slow/kernel_grid.py runs `agrees` over the whole grid of shapes.
"""

import os
import subprocess
import sys
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

# float64 NumPy: one query at a time, one tap at a time, with their pullbacks
from test_gradients import attention, conv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    # read when the kernels are decorated, on import
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="Triton exists for Linux only")

import triton.language as tl  # noqa: E402

from tilelli_nb import CausalConv, TilelliLM  # noqa: E402
from tilelli_nb.config import Config  # noqa: E402
from tilelli_nb.errors import ConfigError, TilelliError  # noqa: E402
from tilelli_nb.model import kernel_conv, kernel_sort, kernels  # noqa: E402
from tilelli_nb.model.attention import (  # noqa: E402
    TopKAttention,
    reference_attention,
    topk_attention,
)

FP32 = 1e-5  # of the largest entry of an array, or of 1 if all are smaller


def heads(seed, shape, integers=False):
    """(B, H, T, D_h) in float64 that fp32 holds exactly, laid out as the model does:
    (B, T, H, D_h) in memory.
    """
    B, H, T, width = shape
    numbers = np.random.default_rng(seed).normal(size=(B, T, H, width))
    return (
        numbers.round() if integers else numbers.astype(np.float32).astype(float)
    ).transpose(0, 2, 1, 3)


def packed(q, k, v):
    """(B, H, T, D_h) each, tensors or arrays, as the operators take them: (B, T, 3, H,
    D_h).
    """
    parts = [torch.as_tensor(x).to(DEVICE).transpose(1, 2) for x in (q, k, v)]
    return torch.stack(parts, dim=2)


def nearest_choice(q, k, keep):
    """The smallest distance between a kept and a dropped score, ties aside."""
    T = q.shape[2]
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    ranked = -np.sort(-np.where(np.tri(T, dtype=bool), scores, -np.inf), -1)
    if keep >= T:
        return np.inf
    # of the rows that see more than `keep`
    gaps = ranked[..., keep:, keep - 1] - ranked[..., keep:, keep]
    return gaps[gaps > 0].min(initial=np.inf)


def agrees(shape, keep, dtype=torch.float32, tolerance=FP32, integers=False):
    """Output and three gradients of the kernel equal the float64 ones; inputs with a
    near-tie are set aside.
    """
    for seed in count():
        q, k, v, d_out = (
            torch.tensor(heads(10 * seed + i, shape, integers)).to(dtype)
            for i in range(4)
        )
        wanted = [x.double().numpy() for x in (q, k, v, d_out)]
        if nearest_choice(wanted[0], wanted[1], keep) > 2e-5:
            break
    expected, pullback = attention(*wanted[:3], keep)
    q, k, v = (x.to(DEVICE).requires_grad_() for x in (q, k, v))
    out = kernels.triton_attention(q, k, v, keep)
    grads = torch.autograd.grad(out, (q, k, v), d_out.to(DEVICE))
    for name, got, want in zip(
        ("out", "dq", "dk", "dv"),
        (out, *grads),
        (expected, *pullback(wanted[3])),
        strict=True,
    ):
        assert got.dtype == dtype and got.shape == shape
        error = np.abs(got.detach().double().cpu().numpy() - want).max()
        assert error <= tolerance * max(1, np.abs(want).max()), f"{name}: {error:.2e}"


@pytest.mark.parametrize(
    "shape, keep",
    [
        ((1, 2, 1, 16), 1),
        ((2, 1, 15, 40), 4),
        ((1, 3, 16, 48), 300),
        ((1, 2, 17, 64), 16),
        ((2, 2, 65, 128), 5),
        ((1, 1, 100, 48), 1),
        ((1, 2, 256, 48), 16),
        ((1, 1, 300, 20), 16),
    ],
)
def test_output_and_gradients(shape, keep):
    agrees(shape, keep)


@pytest.mark.parametrize("keep", [1, 4, 16])
def test_rows_full_of_ties(keep):
    agrees((1, 2, 70, 16), keep, integers=True)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]
)
def test_half_precision(dtype, tolerance):
    agrees((1, 2, 80, 48), 16, dtype, tolerance)


@pytest.mark.parametrize(
    "keep, expected",
    [
        (1, [[1, 0], [0.5, 0.5], [1.5, 1], [2, -1.5]]),
        (2, [[1, 0], [0.5, 0.5], [1.5, 1], [2, -1.5]]),
        (3, [[1, 0], [0.5, 0.5], [1.337425, 1], [1.834881, -0.674404]]),
    ],
)
def test_golden_values(keep, expected):
    q, k, v = (
        [[1, 0], [1, 1], [2, 0], [0, 1]],
        [[1, 0], [0, 1], [1, 0], [1, 1]],
        [[1, 0], [0, 1], [2, 2], [4, -4]],
    )
    q, k, v = (
        torch.tensor([[x]], dtype=torch.float32, device=DEVICE) for x in (q, k, v)
    )
    out = kernels.triton_attention(q, k, v, keep)
    assert torch.allclose(
        out[0, 0].cpu(), torch.tensor(expected, dtype=torch.float32), atol=1e-6
    )


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_scores_of_any_size(size):
    """The order of the scores decides, whatever their size: at 1e30 the largest takes
    all, at 1e-30 all count alike.
    """
    q, k, v = torch.ones(1, 1, 6, 16), torch.ones(1, 1, 6, 16), torch.zeros(1, 1, 6, 16)
    q *= size / 4
    k *= torch.tensor([3, 1, 5, 2, 4, 6])[:, None]
    v[0, 0, :, 0] = torch.arange(6)
    out = kernels.triton_attention(*(x.to(DEVICE) for x in (q, k, v)), 2)[
        0, 0, :, 0
    ].cpu()
    best_two = [[0], [0, 1], [0, 2], [0, 2], [2, 4], [2, 5]]
    largest = [0, 0, 2, 2, 2, 5]
    expected = [sum(pair) / len(pair) for pair in best_two] if size < 1 else largest
    assert torch.allclose(out, torch.tensor(expected, dtype=torch.float32), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
@pytest.mark.parametrize("place", ["q", "k"])
def test_nan_in_gives_nan_out(place):
    tensors = {
        name: torch.tensor(heads(i, (1, 1, 90, 16)), dtype=torch.float32)
        for i, name in enumerate("qkv")
    }
    tensors[place][0, 0, 40, 3] = torch.nan
    touched = torch.arange(90) == 40 if place == "q" else torch.arange(90) >= 40
    for sign in (1, -1):
        tensors[place][0, 0, 40, 3] *= sign
        out = kernels.triton_attention(*(x.to(DEVICE) for x in tensors.values()), 4)[
            0, 0
        ].cpu()
        assert out[touched].isnan().all() and out[~touched].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN")
def test_nan_gradients_come_out_too():
    q, k, v = (
        torch.tensor(heads(i, (1, 1, 20, 16)), dtype=torch.float32, device=DEVICE)
        for i in range(3)
    )
    q[0, 0, 7, 0] = torch.nan
    q.requires_grad_(), k.requires_grad_()
    dq, dk = torch.autograd.grad(kernels.triton_attention(q, k, v, 4).sum(), (q, k))
    assert dq[0, 0, 7].isnan().all() and dk[0, 0, :8].isnan().all()
    assert dq[0, 0, :7].isfinite().all()


@pytest.mark.parametrize(
    "layout", ["expanded", "every other", "reversed heads", "transposed width"]
)
def test_any_strides(layout):
    x = torch.tensor(heads(1, (2, 4, 24, 32)), dtype=torch.float32, device=DEVICE)
    x = {
        "expanded": x[:1, :1].expand(2, 4, 24, 32),
        "every other": x[..., ::2],
        "reversed heads": x.flip(1),
        "transposed width": x.transpose(2, 3),
    }[layout]
    plain = x.contiguous().clone()
    out = kernels.triton_attention(x, x * 0.5, x, 3)
    assert torch.equal(out, kernels.triton_attention(plain, plain * 0.5, plain, 3))
    assert torch.allclose(
        out, reference_attention(plain, plain * 0.5, plain, 3), atol=1e-5
    )


def test_backward_uses_the_selection_of_the_forward():
    """Given a selection that keeps nothing but the query's own byte, the gradients are
    those of v alone.
    """
    q, k, v, d_out = (
        torch.tensor(heads(i, (1, 1, 40, 16)), dtype=torch.float32, device=DEVICE)
        for i in range(4)
    )
    kept = torch.zeros(1, 1, 40, 2, dtype=torch.int32, device=DEVICE)
    for t in range(40):
        kept[0, 0, t, t // 32] = 1 << t % 32 if t % 32 < 31 else -(2**31)
    # the only score of each row, so the log of the softmax's sum
    own = (q * k).sum(-1) / 4
    d_rows, v_rows = d_out.transpose(1, 2), v.transpose(1, 2).contiguous()
    d_qkv = kernels.backward_op(d_rows, packed(q, k, v), v_rows, kept, own)
    dq, dk, dv = (part.transpose(1, 2) for part in d_qkv.unbind(2))
    assert (
        torch.allclose(dv, d_out, atol=1e-5)
        and dq.abs().max() < 1e-5
        and dk.abs().max() < 1e-5
    )


def test_saved_selection_is_one_bit_a_pair():
    q = torch.tensor([3.0, 1, 2, 1]).view(1, 1, 4, 1).to(DEVICE)
    k = torch.tensor([1.0, 2, 2, -1]).view(1, 1, 4, 1).to(DEVICE)
    _, kept, log_sums = kernels.topk_attention_op(packed(q, k, q), 1)
    # a tie keeps two
    assert kept.shape == (1, 1, 4, 1) and kept.flatten().tolist() == [
        0b1,
        0b10,
        0b110,
        0b110,
    ]
    assert torch.allclose(
        log_sums.flatten().cpu(),
        torch.tensor([3, 2, 4 + np.log(2), 2 + np.log(2)]).float(),
    )
    qkv = torch.ones(1, 256, 3, 1, 16, device=DEVICE)
    assert kernels.topk_attention_op(qkv, 16)[1].shape[-1] * 4 == 32


def kept_pairs(kept, T):
    """The saved words (..., T, words) as booleans (..., T, T)."""
    words = kept.cpu().numpy().view(np.uint32)
    bits = words[..., None] >> np.arange(32, dtype=np.uint32) & 1
    return bits.reshape(*words.shape[:-1], -1)[..., :T].astype(bool)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("keep", [1, 5, 16, 17, 60])
def test_selection_among_any_floats(keep):
    """Random bit patterns as scores of one query, the last of 64: tiny and huge,
    denormal, both zeros, both infinities.
    """
    patterns = np.random.default_rng(keep).integers(0, 2**32, (9, 64), dtype=np.uint32)
    x = np.where(np.isnan(patterns.view(np.float32)), 0, patterns.view(np.float32))
    x[0, :4], x[1, :8], x[2, :3] = (
        (0.0, -0.0, np.inf, -np.inf),
        np.inf,
        (1e-45, -1e-45, 0.0),
    )
    x[3] = np.repeat(x[3, :8], 8)  # every number eight times
    qkv = torch.zeros(9, 64, 3, 1, 16, device=DEVICE)
    # of a width of one, so that nothing is multiplied with an infinity
    qkv = qkv[..., :1].contiguous()
    qkv[:, :, 0], qkv[:, :, 1, 0, 0] = 1, torch.from_numpy(x).to(DEVICE)
    kept = kept_pairs(kernels.topk_attention_op(qkv, keep)[1], 64)[:, 0, 63]
    assert np.array_equal(kept, x >= np.sort(x, 1)[:, 64 - keep, None])


@pytest.mark.parametrize("keep", [1, 2, 7, 15, 16, 17])
@pytest.mark.parametrize("T", [1, 16, 31, 64, 65, 129, 200])
def test_selection_bit_for_bit(T, keep):
    """Whole numbers make scores exact and ties many: row t keeps what is at least its
    keep-th largest score, as NumPy sorts it, and nothing that it cannot see.
    """
    if keep > 16 and T > 65:
        pytest.skip("bisection takes 32 rounds in the interpreter")
    qkv = np.random.default_rng(T + keep).normal(size=(2, T, 3, 1, 20)).round()
    q, k, _ = qkv.transpose(2, 0, 3, 1, 4)  # (2, 1, T, 20) each
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2), -np.inf)
    kth = np.sort(scores, -1)[..., [max(T - keep, 0)]]
    qkv = torch.from_numpy(qkv).float().to(DEVICE)
    kept = kept_pairs(kernels.topk_attention_op(qkv, keep)[1], T)
    assert np.array_equal(kept, (scores >= kth) & np.tri(T, dtype=bool))


def test_more_than_sixteen_are_kept_by_bisection():
    agrees((1, 2, 70, 16), 33)
    agrees((1, 1, 40, 16), 17, integers=True)


def test_a_row_that_sees_as_many_as_it_keeps_keeps_all():
    """Whatever its scores: none may be taken for one that is not visible."""
    qkv = torch.full((1, 20, 3, 1, 16), -1e18, device=DEVICE)
    qkv[:, :, 1] *= -1  # scores of -1.6e37
    for keep in (16, 17):
        kept = kept_pairs(kernels.topk_attention_op(qkv, keep)[1], 20)
        assert np.array_equal(kept[0, 0], np.tri(20, dtype=bool))


def test_sixteen_numbers_of_each_thread_are_sorted():
    """The network alone, on every list of zeros and ones: a network that sorts these
    sorts everything (Knuth, The Art of Computer Programming, 5.3.4).
    """
    bits = np.arange(2**16, dtype=np.uint32)[:, None] >> np.arange(16) & 1
    tables = torch.from_numpy(bits.astype(np.float32)).reshape(-1, ROWS.value, 4, 16)
    out = torch.empty(tables.shape, device=DEVICE)
    sort_lists[len(tables),](tables.transpose(2, 3).contiguous().to(DEVICE), out)
    wanted = np.sort(bits, 1)[:, ::-1].astype(np.float32)
    assert np.array_equal(out.cpu().numpy().reshape(-1, 16), wanted)


SIXTEEN, ROWS = tl.constexpr(tuple(range(16))), tl.constexpr(4096)


@triton.jit
def sort_lists(x, out):
    """x (tables, ROWS, 16, 4), sorted by its third axis: out (tables, ROWS, 4, 16)."""
    row, lane = tl.arange(0, ROWS)[:, None], tl.arange(0, 4)[None, :]
    table = tl.program_id(0) * ROWS * 64
    numbers = [tl.load(x + table + row * 64 + i * 4 + lane) for i in SIXTEEN.value]
    numbers = kernel_sort.sort(numbers)
    for i in tl.static_range(16):
        tl.store(out + table + row * 64 + lane * 16 + i, numbers[i])


def test_torch_accepts_the_operator():
    """Schema, fake tensors, autograd and what torch.compile does to it, by torch's own
    checker.
    """
    qkv = packed(*(heads(i, (1, 2, 20, 16)) for i in range(3))).float()
    out, *saved = kernels.topk_attention_op(qkv, 4)
    torch.library.opcheck(
        kernels.backward_op,
        (out, qkv, out, *saved),
        test_utils=("test_schema", "test_faketensor"),
    )
    inputs = qkv.clone().requires_grad_(), 4
    found = torch.library.opcheck(kernels.topk_attention_op, inputs)
    assert set(found.values()) == {"SUCCESS"}


def test_a_compiled_model_has_no_graph_break_and_the_same_loss():
    config = Config.from_dict(
        {
            "model": {
                "d_model": 32,
                "n_blocks": 1,
                "n_heads": 2,
                "keep": 4,
                "context": 24,
            }
        }
    )
    lm, ids = TilelliLM(config).to(DEVICE), torch.arange(24, device=DEVICE)[None]
    with torch.no_grad():
        wanted = float(lm.eval()(ids, ids))
    for block in lm.blocks:
        block.attention.backend = "triton"
    compiled = torch.compile(lm, fullgraph=True, backend="aot_eager")
    loss = compiled(ids, ids)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-5)
    assert lm.blocks[0].attention.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    "backend", ["triton", "reference"] + ["blocked"] * (DEVICE == "cpu")
)
def test_scores_stay_in_fp32_under_autocast(backend):
    """The linear map gives bf16; from there on the result is that of the same bf16
    numbers without autocast.
    """
    torch.manual_seed(3)
    layer = TopKAttention(32, 2, 4, backend).to(DEVICE)
    torch.nn.init.normal_(layer.weight, std=0.2)
    y = torch.randn(1, 12, 32, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = layer(y)
    q, k, v = (
        (y.bfloat16() @ part.bfloat16().T).view(1, 12, 2, 16).transpose(1, 2).double()
        for part in layer.weight.detach().chunk(3)
    )
    expected = reference_attention(q, k, v, 4).transpose(1, 2).reshape(1, 12, 32)
    assert out.dtype == torch.bfloat16 and torch.allclose(
        out.double(), expected, rtol=0.01, atol=0.01
    )
    out.float().sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_the_environment_decides_for_auto(monkeypatch):
    x, calls = torch.ones(1, 1, 4, 16, device=DEVICE), []
    monkeypatch.setattr(
        kernels, "triton_attention", lambda *given: calls.append("triton")
    )
    monkeypatch.setenv("TILELLI_ATTENTION", "triton")
    topk_attention(x, x, x)
    monkeypatch.setenv("TILELLI_ATTENTION", "reference")
    topk_attention(x, x, x)
    monkeypatch.delenv("TILELLI_ATTENTION")
    topk_attention(x, x, x)
    assert calls == ["triton"] * (2 if DEVICE == "cuda" else 1)
    monkeypatch.setenv("TILELLI_ATTENTION", "cuda")
    with pytest.raises(ConfigError, match="no attention backend 'cuda'"):
        topk_attention(x, x, x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shape": (1, 1, 4, 129)}, "a head width of 129 is above 128"),
        (
            {"dtype": torch.float64},
            "float64 is not among float32, float16 and bfloat16",
        ),
    ],
)
def test_a_limit_is_named(change, message):
    x = torch.zeros(
        size=change.get("shape", (1, 1, 4, 16)),
        dtype=change.get("dtype", torch.float32),
    )
    with pytest.raises(TilelliError, match=message):
        topk_attention(x.to(DEVICE), x.to(DEVICE), x.to(DEVICE), backend="triton")


def test_tensors_that_do_not_fit_together_are_refused():
    x = torch.zeros(1, 1, 4, 16, device=DEVICE)
    with pytest.raises(ConfigError, match="differ in shape or dtype"):
        topk_attention(x, x.half(), x, backend="triton")


def test_without_a_gpu_and_without_the_interpreter_it_says_so():
    code = (
        "import torch; from tilelli_nb.model.attention import topk_attention\n"
        "x = torch.zeros(1, 1, 4, 16)\n"
        "try: topk_attention(x, x, x, backend='triton')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {
        key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "ConfigError" in done.stdout and "TRITON_INTERPRET=1" in done.stdout, (
        done.stderr
    )


# Convolution


@pytest.mark.parametrize(
    "shape, width", [((2, 70, 300), 5), ((1, 3, 40), 5), ((3, 32, 128), 1)]
)
def test_convolution_and_its_gradients(shape, width):
    numbers = np.random.default_rng(width)
    y, d_out, w = (numbers.normal(size=s) for s in (shape, shape, (shape[2], width)))
    expected, pullback = conv(y, w)
    y, d_out, w = (torch.tensor(x).float().to(DEVICE) for x in (y, d_out, w))
    y.requires_grad_(), w.requires_grad_()
    out = kernel_conv.causal_conv(y, w)
    grads = torch.autograd.grad(out, (y, w), d_out)
    wanted = expected, *pullback(d_out.double().cpu().numpy())
    for got, want in zip((out, *grads), wanted, strict=True):
        error = np.abs(got.detach().double().cpu().numpy() - want).max()
        assert error < 1e-5 * max(1, np.abs(want).max())


def test_a_byte_hears_itself_and_four_before_it():
    y = torch.tensor([1.0, 2, 3, 4], device=DEVICE).view(1, 4, 1)
    w = torch.tensor([[100.0, 10, 1]], device=DEVICE)
    out = kernel_conv.causal_conv(y, w)
    assert out.flatten().tolist() == [1, 12, 123, 234]


def test_the_layer_gives_the_kernel_sixteen_bits_under_autocast(monkeypatch):
    """As on CUDA, where autocast is on in training: the result is that of the same bf16
    numbers, and its weight learns in fp32.
    """
    layer = CausalConv(40).to(DEVICE)
    torch.nn.init.normal_(layer.weight, std=0.4)
    y = torch.randn(2, 33, 40, device=DEVICE, requires_grad=True)
    monkeypatch.setattr("tilelli_nb.model.conv.kernel_takes", lambda y: True)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = layer(y)
    out.float().square().sum().backward()
    rounded = y.detach().bfloat16().double().cpu().numpy()
    expected, pullback = conv(rounded, layer.weight.detach().double().cpu().numpy())
    assert out.dtype == torch.bfloat16 and layer.weight.grad.dtype == torch.float32
    assert np.allclose(out.detach().double().cpu().numpy(), expected, atol=0.02)
    d_y, d_weight = pullback(2 * expected)
    assert np.allclose(y.grad.double().cpu().numpy(), d_y, atol=0.1)
    assert np.allclose(layer.weight.grad.double().cpu().numpy(), d_weight, atol=0.7)


def test_torch_accepts_the_convolution():
    y = torch.randn(2, 20, 10, device=DEVICE, requires_grad=True)
    w = torch.randn(10, 5, device=DEVICE, requires_grad=True)
    found = torch.library.opcheck(kernel_conv.causal_conv, (y, w))
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("chosen, wanted", [(None, True), ("reference", False)])
def test_the_environment_also_decides_for_the_convolution(monkeypatch, chosen, wanted):
    from tilelli_nb.model.conv import kernel_takes

    class OnCuda:
        device, dtype = torch.device("cuda"), torch.bfloat16

    if chosen:
        monkeypatch.setenv("TILELLI_ATTENTION", chosen)
    else:
        monkeypatch.delenv("TILELLI_ATTENTION", raising=False)
    assert kernel_takes(OnCuda()) is wanted
    OnCuda.dtype = torch.float32
    assert not kernel_takes(OnCuda())


def test_padded_rows_give_the_router_s_own_numbers():
    from tilelli_nb import Router

    router, y = Router(24), torch.randn(5, 24)
    torch.nn.init.normal_(router.weight)
    padded = router.rows_for("cuda")
    assert padded.shape == (8, 24) and torch.equal(padded[:3], router.weight)
    assert torch.allclose((y @ padded.T)[:, :3].softmax(-1), router(y), atol=1e-6)


# For cards that are not here


def test_the_kernels_compile_for_real_cards():
    """In a process of its own, without a GPU: tensor cores, and no more shared memory
    than an RTX A6000 has.
    """
    script = Path(__file__).parents[2] / "book" / "experiments" / "compile_kernels.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, "--widths", "48"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {(line[0], line[1]) for line in lines} == {
        (kernel, f"sm_{capability}")
        for capability in (80, 86, 90)
        for kernel in (
            "forward_kernel",
            "backward_queries_kernel",
            "backward_keys_kernel",
            "conv_forward_kernel",
            "conv_backward_kernel",
        )
    }


def test_instructions_are_counted_by_how_their_names_begin():
    """IADD3 is an addition too, of three numbers."""
    from kernel_selection import by_kind

    names = {"IADD3": 5, "VIADD": 2, "LEA": 1, "FMNMX3": 7, "ISETP": 4, "MOV": 9}
    found = by_kind(Counter(names))
    assert found["count"] == 8 and found["comparison"] == 4
    assert found["larger or smaller of two"] == 7 and sum(found.values()) == 19
