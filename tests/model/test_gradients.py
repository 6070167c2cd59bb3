"""Every output and every gradient against float64 NumPy, written here from the
mathematics.

The first half knows neither torch nor the package. Each of its functions returns its
output and a pullback: what takes the gradient of the output to the gradients of the
inputs. Central differences check the pullbacks, and the pullbacks check the package.
Where the forward selects or rounds, a choice that is nearer than GAP stops the test:
such inputs are set aside by another seed, and no tolerance hides a different choice.
"""

import math
import sys
from functools import cache

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from tilelli_nb import CausalConv, TilelliLM, load_config
from tilelli_nb.model.attention import TopKAttention, topk_attention
from tilelli_nb.model.network import RoutedBlock
from tilelli_nb.model.router import Router, balance_loss, router_confidence
from tilelli_nb.model.ternary import TernaryFFN, TernaryLinear

# the nearest choice that a test may contain; float64 gets a score right to about 1e-15
GAP = 1e-8
TOLERANCE = 1e-10  # of the largest entry of an array, or of 1 if all are smaller

LENGTHS, KEEPS, BATCHES = (1, 2, 5, 17, 65, 130), (1, 3, 16, 300), (1, 2, 3)
BACKENDS = ("reference", "blocked")


# --- the mathematics ---


def linear(x, w):
    def back(d):
        return d @ w, d.reshape(-1, len(w)).T @ x.reshape(-1, w.shape[1])

    return x @ w.T, back


def conv(y, w):
    """out[t] = sum_j w[:, j] y[t - (width - 1) + j], and nothing stands before the
    first byte.
    """
    T, width = y.shape[1], w.shape[1]
    heard = [
        (t, j, s)
        for t in range(T)
        for j in range(width)
        if (s := t - (width - 1) + j) >= 0
    ]
    out = np.zeros_like(y)
    for t, j, s in heard:
        out[:, t] += w[:, j] * y[:, s]

    def back(d):
        dy, dw = np.zeros_like(y), np.zeros_like(w)
        for t, j, s in heard:
            dy[:, s] += w[:, j] * d[:, t]
            dw[:, j] += (d[:, t] * y[:, s]).sum(0)
        return dy, dw

    return out, back


def attention(q, k, v, keep):
    """One query at a time: (B, H, T, D) each."""
    rows, root = list(np.ndindex(q.shape[:3])), math.sqrt(q.shape[-1])
    p, out = np.zeros((*q.shape[:3], q.shape[2])), np.zeros_like(v)
    for b, h, t in rows:
        scores = k[b, h, : t + 1] @ q[b, h, t] / root
        ranked = -np.sort(-scores)
        gap = ranked[keep - 1] - ranked[keep] if t + 1 > keep else math.inf
        assert gap == 0 or gap > GAP, "a near-tie among the inputs: take another seed"
        e = np.where(
            scores >= ranked[min(keep, t + 1) - 1], np.exp(scores - ranked[0]), 0
        )
        p[b, h, t, : t + 1] = e / e.sum()
        out[b, h, t] = p[b, h, t] @ v[b, h]

    def back(d):
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        for b, h, t in rows:
            row = p[b, h, t]
            jacobian = np.diag(row) - np.outer(row, row)  # of the softmax
            d_scores = jacobian @ (v[b, h] @ d[b, h, t]) / root
            dq[b, h, t] = d_scores @ k[b, h]
            dk[b, h] += np.outer(d_scores, q[b, h, t])
            dv[b, h] += np.outer(row, d[b, h, t])
        return dq, dk, dv

    return out, back


def multi_head(y, w, heads, keep):
    """q, k and v of a head are rows of w: first q of all heads, then k, then v. The
    heads' outputs lie side by side.
    """
    D = y.shape[-1]
    size = D // heads
    places = [
        [slice(part * D + h * size, part * D + (h + 1) * size) for h in range(heads)]
        for part in range(3)
    ]
    qkv = [np.stack([y @ w[place].T for place in part], axis=1) for part in places]
    out, back_attention = attention(*qkv, keep)

    def back(d):
        dy, dw = np.zeros_like(y), np.zeros_like(w)
        d_heads = np.stack([d[..., place] for place in places[0]], axis=1)
        for part, d_part in zip(places, back_attention(d_heads), strict=True):
            for h, place in enumerate(part):
                dy += d_part[:, h] @ w[place]
                dw[place] = np.einsum("bto,bti->oi", d_part[:, h], y)
        return dy, dw

    return np.concatenate([out[:, h] for h in range(heads)], axis=-1), back


def ternary(w):
    """The weight that is used: the sign of w times the mean of |w|, or 0 where |w| is
    at most half of that mean.
    """
    scale = max(np.abs(w).mean(), 1e-5)
    gap = np.abs(np.abs(w) / scale - 0.5)
    assert ((gap == 0) | (gap > GAP)).all(), (
        "a near-tie of the rounding: take another seed"
    )
    return scale * np.where(np.abs(w) > scale / 2, np.sign(w), 0)


def gelu(x):
    share = (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2

    def back(d):
        return d * (share + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi))

    return x * share, back


def ffn(y, up, down):
    """`up` and `down` are ternary already. Straight through: the latent weight gets the
    ternary one's gradient.
    """
    wide, back_up = linear(y, up)
    bent, back_gelu = gelu(wide)
    out, back_down = linear(bent, down)

    def back(d):
        d_bent, d_down = back_down(d)
        dy, d_up = back_up(back_gelu(d_bent))
        return dy, d_up, d_down

    return out, back


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)

    def back(d):
        return np.einsum(
            "...i,...ij->...j",
            d,
            p[..., None] * np.eye(p.shape[-1]) - p[..., None] * p[..., None, :],
        )

    return p, back


def balance(p, mask):
    """3 sum_i mean_t(p_i)^2 - 1 for each sequence, over the bytes that are no padding;
    then the sequences' mean.
    """
    uses = [p[b][mask[b]].mean(0) for b in range(len(p))]

    def back(d):
        dp = np.zeros_like(p)
        for b, use in enumerate(uses):
            dp[b][mask[b]] = d / len(p) * 6 * use / mask[b].sum()
        return dp

    return np.mean([3 * (use**2).sum() - 1 for use in uses]), back


def layer_norm(x, w, b):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    unit = centred / spread

    def back(d):
        g = d * w
        dx = (
            g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True)
        ) / spread
        return dx, (d * unit).sum((0, 1)), d.sum((0, 1))

    return unit * w + b, back


def block(x, w, heads, keep):
    """The output and p (B, T, 3); `w` has the weights by their names in the package,
    the ternary ones as used.
    """
    y, back_norm = layer_norm(x, w["norm.weight"], w["norm.bias"])
    z, back_router = linear(y, w["router.weight"])
    p, back_softmax = softmax(z)
    paths, backs = zip(
        conv(y, w["conv.weight"]),
        multi_head(y, w["attention.weight"], heads, keep),
        ffn(y, w["ffn.up.weight"], w["ffn.down.weight"]),
        strict=True,
    )

    def back(d, dp):
        dp = dp + np.stack([(d * path).sum(-1) for path in paths], axis=-1)
        dy, g = 0, {}
        names = (
            ["conv.weight"],
            ["attention.weight"],
            ["ffn.up.weight", "ffn.down.weight"],
        )
        for i, (back_path, own) in enumerate(zip(backs, names, strict=True)):
            d_path, *d_own = back_path(p[..., i : i + 1] * d)
            dy = dy + d_path
            g |= zip(own, d_own, strict=True)
        d_path, g["router.weight"] = back_router(back_softmax(dp))
        dx, g["norm.weight"], g["norm.bias"] = back_norm(dy + d_path)
        return d + dx, g

    return x + sum(p[..., i : i + 1] * path for i, path in enumerate(paths)), p, back


def cross_entropy(logits, targets):
    """Mean of -ln p(target) over the targets that are not -100."""
    p, _ = softmax(logits)
    places = [(*i, targets[i]) for i in np.ndindex(targets.shape) if targets[i] != -100]

    def back(d):
        d_logits = np.zeros_like(p)
        for b, t, target in places:
            d_logits[b, t] = d * p[b, t] / len(places)
            d_logits[b, t, target] -= d / len(places)
        return d_logits

    return -np.mean([math.log(p[place]) for place in places]), back


def model(w, ids, targets, heads, keep, balance_weight):
    """The loss, the logits, p of each block, and a pullback that gives the gradient of
    every weight by its name.
    """
    T, inner = ids.shape[1], []
    n_blocks = 1 + max(
        int(name.split(".")[1]) for name in w if name.startswith("blocks")
    )
    x = w["token.weight"][ids] + w["position.weight"][:T]
    for i in range(n_blocks):
        own = {
            name[9:]: value
            for name, value in w.items()
            if name.startswith(f"blocks.{i}.")
        }
        x, p, back_block = block(x, own, heads, keep)
        inner.append((p, back_block, *balance(p, targets != -100)))
    y, back_norm = layer_norm(x, w["norm.weight"], w["norm.bias"])
    logits, back_output = linear(y, w["output.weight"])
    nats, back_nats = cross_entropy(logits, targets)

    def back():
        g = {}
        dy, g["output.weight"] = back_output(back_nats(1.0))
        dx, g["norm.weight"], g["norm.bias"] = back_norm(dy)
        for i in reversed(range(n_blocks)):
            _, back_block, _, back_balance = inner[i]
            dx, own = back_block(dx, back_balance(balance_weight / n_blocks))
            g |= {f"blocks.{i}.{name}": d for name, d in own.items()}
        g["token.weight"], g["position.weight"] = (
            np.zeros_like(w["token.weight"]),
            np.zeros_like(w["position.weight"]),
        )
        for b, t in np.ndindex(ids.shape):
            g["token.weight"][ids[b, t]] += dx[b, t]
            g["position.weight"][t] += dx[b, t]
        return g

    loss = nats + balance_weight * np.mean([value for _, _, value, _ in inner])
    return loss, logits, [p for p, *_ in inner], back


# --- inputs and comparison ---


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def weights(module, seed=0):
    """Fills a module with numbers that are nothing special, and returns them by
    name.
    """
    values = {}
    for i, (name, parameter) in enumerate(module.named_parameters()):
        value = draw(*parameter.shape, seed=100 * seed + i)
        is_norm = "norm" in name
        values[name] = (
            value / 5 + name.endswith("norm.weight")
            if is_norm
            else value / math.sqrt(parameter.shape[-1])
        )
        parameter.data = torch.from_numpy(values[name].copy()).to(parameter.dtype)
    return values


def used(values):
    """The weights as the forward uses them."""
    return {
        name: ternary(value)
        if ".up." in f".{name}" or ".down." in f".{name}"
        else value
        for name, value in values.items()
    }


def tensors(*arrays):
    return [
        torch.tensor(array, requires_grad=array.dtype == np.float64) for array in arrays
    ]


def close(ours, expected, what=""):
    ours, expected = ours.detach().numpy(), np.asarray(expected)
    assert ours.shape == expected.shape, what
    error, size = (
        np.abs(ours - expected).max(initial=0),
        max(1, np.abs(expected).max(initial=0)),
    )
    assert error <= TOLERANCE * size, f"{what}: off by {error:.2e}"


def gradients_agree(out, d, inputs, expected):
    """The gradients that the inputs get when the output's is d."""
    grads = torch.autograd.grad(out, inputs, torch.from_numpy(np.asarray(d)))
    for i, (grad, value) in enumerate(zip(grads, expected, strict=True)):
        close(grad, value, f"gradient {i}")


@pytest.fixture
def wide_gaps(monkeypatch):
    """For finite differences and for fp32: a small step must not change a choice."""
    monkeypatch.setattr(sys.modules[__name__], "GAP", 1e-4)


def padded_targets(ids, seed=0):
    """Random targets; every sequence but the first ends in padding and has a hole, and
    none is padding alone.
    """
    rng, (B, T) = np.random.default_rng(seed), ids.shape
    targets = rng.integers(0, 256, (B, T))
    for b in range(1, B):
        targets[b, T - (b * T) // 4 :] = -100
        targets[b, T // 2 : T // 2 + T // 5] = -100
    return targets


# --- the mathematics against its own central differences ---


def differences_agree(f, arrays, grads, step=1e-5):
    """For each array by itself: the slope of f along a random direction is the gradient
    times that direction.
    """
    for i, (array, grad) in enumerate(zip(arrays, grads, strict=True)):
        direction = draw(*array.shape, seed=77 + i)
        up, down = (
            [*arrays[:i], array + s * direction, *arrays[i + 1 :]]
            for s in (step, -step)
        )
        slope = (f(*up) - f(*down)) / (2 * step)
        assert abs(slope - (grad * direction).sum()) < 1e-7 * max(1, abs(slope)), (
            f"array {i}"
        )


PULLBACKS = {
    "linear": (linear, [(2, 5, 3), (4, 3)]),
    "conv": (conv, [(2, 7, 3), (3, 4)]),
    "attention": (lambda q, k, v: attention(q, k, v, 3), [(2, 2, 9, 3)] * 3),
    "multi_head": (lambda y, w: multi_head(y, w, 2, 3), [(2, 9, 6), (18, 6)]),
    "ffn": (ffn, [(2, 5, 3), (8, 3), (3, 8)]),
    "softmax": (lambda z: softmax(z), [(2, 5, 3)]),
    "layer_norm": (layer_norm, [(2, 5, 7), (7,), (7,)]),
}


@pytest.mark.parametrize("name", PULLBACKS)
def test_the_yardstick_against_central_differences(name, wide_gaps):
    f, shapes = PULLBACKS[name]
    arrays = [draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    out, back = f(*arrays)
    d = draw(*out.shape, seed=50)
    grads = back(d)
    differences_agree(
        lambda *a: (f(*a)[0] * d).sum(),
        arrays,
        grads if isinstance(grads, tuple) else (grads,),
    )


def test_the_whole_yardstick_against_central_differences(wide_gaps):
    lm, ids, targets = tiny_model(2, 9, d_model=12, n_heads=3, keep=3)
    w = used(weights(lm))
    *_, back = model(w, ids, targets, 3, 3, 0.5)
    grads = back()
    assert set(grads) == set(w)
    differences_agree(
        lambda *a: model(dict(zip(w, a, strict=True)), ids, targets, 3, 3, 0.5)[0],
        list(w.values()),
        [grads[name] for name in w],
    )


# --- the package against the mathematics ---


@cache
def attention_case(B, T, keep):
    """Odd heads and widths; keys that are used by several blocks of rows once T is
    above 64.
    """
    shape = (B, 1 + (T + keep) % 3, T, 2 * ((T + B) % 4) + 1)
    q, k, v, d = (draw(*shape, seed=keep * 10 + i) for i in range(4))
    out, back = attention(q, k, v, keep)
    return (q, k, v), out, d, back(d)


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention(backend, T, keep, B):
    inputs, expected, d, grads = attention_case(B, T, keep)
    q, k, v = tensors(*inputs)
    out = topk_attention(q, k, v, keep, backend)
    close(out, expected)
    gradients_agree(out, d, (q, k, v), grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keep", KEEPS[:3])
@pytest.mark.parametrize("T", [5, 17, 65, 130])
def test_attention_where_many_scores_tie(backend, T, keep):
    rng = np.random.default_rng(T)
    # width 4: sqrt is 2, every score is exact
    q, k = (rng.integers(-1, 2, (2, 2, T, 4)).astype(float) for _ in "qk")
    v, d = draw(2, 2, T, 4, seed=1), draw(2, 2, T, 4, seed=2)
    expected, back = attention(q, k, v, keep)
    inputs = tensors(q, k, v)
    out = topk_attention(*inputs, keep, backend)
    close(out, expected)
    gradients_agree(out, d, inputs, back(d))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_in_half_precision(dtype, backend, wide_gaps):
    """The selection is that of the rounded inputs in fp32; what is left is rounding: 2%
    of the largest entry.
    """
    inputs = [
        torch.tensor(draw(1, 2, 70, 8, seed=s)).to(dtype).requires_grad_()
        for s in range(3)
    ]
    d = torch.tensor(draw(1, 2, 70, 8, seed=3)).to(dtype)
    expected, back = attention(*(x.detach().double().numpy() for x in inputs), 4)
    out = topk_attention(*inputs, 4, backend)
    grads = torch.autograd.grad(out, inputs, d)
    for ours, value in zip(
        (out, *grads), (expected, *back(d.double().numpy())), strict=True
    ):
        assert ours.dtype == dtype
        assert (
            np.abs(ours.detach().double().numpy() - value).max()
            < 0.02 * np.abs(value).max()
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("D,heads", [(3, 1), (9, 3), (15, 5)])
def test_attention_with_its_projection(backend, T, D, heads):
    module = TopKAttention(D, heads, keep=3, backend=backend).double()
    w, y, d = weights(module)["weight"], draw(2, T, D, seed=1), draw(2, T, D, seed=2)
    expected, back = multi_head(y, w, heads, 3)
    [x] = tensors(y)
    out = module(x)
    close(out, expected)
    gradients_agree(out, d, (x, module.weight), back(d))


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("D,width", [(1, 5), (7, 5), (3, 1), (5, 4)])
def test_conv(B, T, D, width):
    module = CausalConv(D, width).double()
    w, y, d = weights(module)["weight"], draw(B, T, D, seed=1), draw(B, T, D, seed=2)
    expected, back = conv(y, w)
    [x] = tensors(y)
    out = module(x)
    close(out, expected)
    gradients_agree(out, d, (x, module.weight), back(d))


LATENT = {
    "drawn": draw(7, 5, seed=3),
    "zeros": np.zeros((2, 3)),
    "smaller than the least scale": draw(3, 5) * 6e-6,
    "exact halves": np.array([[0.5, 1.5], [-0.5, -1.5]]),
    "one far out": np.array([[0.1, -0.2, 90.0]]),
}


@pytest.mark.parametrize("name", LATENT)
def test_ternary_linear(name):
    w = LATENT[name]
    module = TernaryLinear(w.shape[1], w.shape[0]).double()
    module.weight.data = torch.from_numpy(w.copy())
    y, d = draw(2, 5, w.shape[1], seed=1), draw(2, 5, w.shape[0], seed=2)
    expected, back = linear(y, ternary(w))
    [x] = tensors(y)
    out = module(x)
    close(out, expected)
    gradients_agree(out, d, (x, module.weight), back(d))


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("D,expand", [(1, 3), (5, 4), (9, 1)])
def test_ternary_ffn(B, T, D, expand):
    module = TernaryFFN(D, expand).double()
    w, y, d = used(weights(module)), draw(B, T, D, seed=1), draw(B, T, D, seed=2)
    expected, back = ffn(y, w["up.weight"], w["down.weight"])
    [x] = tensors(y)
    out = module(x)
    close(out, expected)
    gradients_agree(out, d, (x, module.up.weight, module.down.weight), back(d))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", LENGTHS)
def test_router_and_balance(T, B, padded):
    D = 2 * (T % 4) + 1
    module = Router(D).double()
    w, y, d = (
        weights(module)["weight"] * 2,
        draw(B, T, D, seed=1),
        draw(B, T, 3, seed=2),
    )
    module.weight.data *= 2
    mask = (
        padded_targets(np.zeros((B, T), dtype=int)) != -100
        if padded
        else np.ones((B, T), dtype=bool)
    )
    z, back_linear = linear(y, w)
    expected, back_softmax = softmax(z)
    value, back_balance = balance(expected, mask)
    [x] = tensors(y)
    p = module(x)
    loss = balance_loss(p, torch.from_numpy(mask)) if padded else balance_loss(p)
    close(p, expected)
    close(loss, value)
    total = (p * torch.from_numpy(d)).sum() + 0.7 * loss
    gradients_agree(
        total, 1.0, (x, module.weight), back_linear(back_softmax(d + back_balance(0.7)))
    )


def block_config(D, heads, keep, T):
    return load_config("nano").with_model(
        d_model=D, n_heads=heads, keep=keep, n_blocks=2, context=max(T, keep, 16)
    )


# T: width and heads
SHAPES = {1: (15, 5), 2: (3, 3), 5: (12, 3), 17: (9, 1), 65: (15, 3), 130: (9, 3)}


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("T", LENGTHS)
def test_block(T, keep, B):
    D, heads = SHAPES[T]
    module = RoutedBlock(block_config(D, heads, keep, T).model).double()
    w, x = used(weights(module)), draw(B, T, D, seed=1)
    d, dp = draw(B, T, D, seed=2), draw(B, T, 3, seed=3)
    expected, expected_p, back = block(x, w, heads, keep)
    [inputs] = tensors(x)
    out, p = module(inputs)
    close(out, expected, "output")
    close(p, expected_p, "p")
    dx, grads = back(d, dp)
    names, parameters = zip(*module.named_parameters(), strict=True)
    assert set(names) == set(grads)
    total = (out * torch.from_numpy(d)).sum() + (p * torch.from_numpy(dp)).sum()
    gradients_agree(
        total, 1.0, (inputs, *parameters), (dx, *(grads[name] for name in names))
    )


def tiny_model(B, T, d_model, n_heads, keep, balance_weight=0.5):
    config = block_config(d_model, n_heads, keep, T).with_train(
        balance_weight=balance_weight
    )
    ids = np.random.default_rng([B, T]).integers(0, 256, (B, T))
    ids[:, T // 2] = ids[:, 0]  # a byte that comes twice collects both gradients
    return TilelliLM(config).double(), ids, padded_targets(ids)


@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("T", LENGTHS)
def test_model(T, keep, B):
    D, heads = SHAPES[T]
    lm, ids, targets = tiny_model(B, T, D, heads, keep)
    loss, logits, all_p, back = model(used(weights(lm)), ids, targets, heads, keep, 0.5)
    x, y = tensors(ids, targets)
    ours = lm.train()(x, y)
    close(ours, loss, "loss")
    close(lm(x), logits, "logits")
    close(lm.hidden(x)[1], np.stack(all_p, axis=1), "p")
    grads = back()
    names, parameters = zip(*lm.named_parameters(), strict=True)
    assert set(names) == set(grads)
    gradients_agree(ours, 1.0, parameters, [grads[name] for name in names])


@pytest.mark.parametrize("training,balance_weight", [(True, 0.01), (False, 0.0)])
def test_the_books_balance_weight_and_none_in_evaluation(training, balance_weight):
    lm, ids, targets = tiny_model(3, 16, 12, 3, 3, balance_weight=0.01)
    loss, *_, back = model(used(weights(lm)), ids, targets, 3, 3, balance_weight)
    grads, ours = back(), lm.train(training)(*tensors(ids, targets))
    close(ours, loss)
    names, parameters = zip(*lm.named_parameters(), strict=True)
    gradients_agree(ours, 1.0, parameters, [grads[name] for name in names])


def test_in_fp32_as_people_train_it(wide_gaps):
    lm, ids, targets = tiny_model(2, 70, 12, 3, 16)
    *_, back = model(used(weights(lm, seed=3)), ids, targets, 3, 16, 0.5)
    grads, ours = back(), lm.float().train()(*tensors(ids, targets))
    for grad, (name, _) in zip(
        torch.autograd.grad(ours, list(lm.parameters())),
        lm.named_parameters(),
        strict=True,
    ):
        assert grad.dtype == torch.float32
        error = np.abs(grad.numpy() - grads[name]).max()
        assert error < 5e-6 * np.abs(grads[name]).max(), f"{name}: off by {error:.2e}"


# --- PyTorch's own check, where the function is smooth around its inputs ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("T,keep", [(7, 1), (7, 3), (7, 300), (66, 3)])
def test_gradcheck_attention(backend, T, keep, wide_gaps):
    arrays = [draw(1, 1, T, 2, seed=s) for s in range(3)]
    attention(*arrays, keep)  # stops at a near-tie
    assert gradcheck(
        lambda *qkv: topk_attention(*qkv, keep, backend),
        tensors(*arrays),
        fast_mode=T > 7,
    )


def test_gradcheck_conv_router_balance_and_confidence():
    module, [y] = CausalConv(3, 4).double(), tensors(draw(2, 6, 3))
    assert gradcheck(
        lambda y, w: functional_call(module, {"weight": w}, y),
        (y, *tensors(draw(3, 4, seed=1))),
    )
    router = Router(3).double()
    [w] = tensors(draw(3, 3, seed=1))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    for f in (
        lambda p: p,
        balance_loss,
        lambda p: balance_loss(p, mask),
        router_confidence,
    ):
        assert gradcheck(
            lambda y, w, f=f: f(functional_call(router, {"weight": w}, y)), (y, w)
        )


def test_gradcheck_ternary_ffn_by_its_input():
    module = TernaryFFN(3).double()
    weights(module)
    assert gradcheck(module, tensors(draw(2, 4, 3)))


def test_gradcheck_block_and_model(wide_gaps):
    """By everything but the latent weights, whose true gradient is not the one that is
    wanted.
    """
    lm, ids, targets = tiny_model(2, 9, 12, 3, 3)
    values = weights(lm)
    model(used(values), ids, targets, 3, 3, 0.5)  # stops at a near-tie
    names = [name for name in values if ".ffn." not in name]
    batch = tensors(ids, targets)

    def loss(*parameters):
        return functional_call(
            lm.train(), dict(zip(names, parameters, strict=True)), tuple(batch)
        )

    assert gradcheck(loss, tensors(*(values[name] for name in names)), fast_mode=True)
