"""Top-k attention as a Triton kernel: the scores of a tile of queries never leave the
chip.

It runs on CUDA, and without a GPU in Triton's interpreter: set TRITON_INTERPRET=1
before this module is imported.
"""

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .errors import ConfigError

MAX_T, MAX_WIDTH = 1024, 128
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# as Triton saw it when it decorated the functions below
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# On the chip


@triton.jit
def load_tile(x, strides, rows, columns, T, WIDTH: tl.constexpr):
    """Values of x at (rows, columns), zero outside of (T, WIDTH)."""
    inside = (rows[:, None] < T) & (columns[None, :] < WIDTH)
    return tl.load(
        x + rows[:, None] * strides[2] + columns[None, :] * strides[3],
        mask=inside,
        other=0.0,
    )


@triton.jit
def store_tile(x, strides, rows, columns, T, WIDTH: tl.constexpr, tile):
    """Writes a tile to x at (rows, columns), except outside of (T, WIDTH)."""
    inside = (rows[:, None] < T) & (columns[None, :] < WIDTH)
    tl.store(
        x + rows[:, None] * strides[2] + columns[None, :] * strides[3],
        tile.to(x.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def head_of(x, strides, head, HEADS):
    """Where the matrix (T, D_h) of one head of one sequence begins; 64 bits, for large
    batches.
    """
    return (
        x
        + (head // HEADS).to(tl.int64) * strides[0]
        + (head % HEADS).to(tl.int64) * strides[1]
    )


@triton.jit
def dot_rows(
    a, a_strides, b, b_strides, rows, keys, T, WIDTH: tl.constexpr, CHUNK: tl.constexpr
):
    """(rows, D_h) of a times (keys, D_h) of b, transposed: (rows, keys) in fp32, summed
    up CHUNK columns at a time.
    """
    total = tl.zeros([rows.shape[0], keys.shape[0]], tl.float32)
    for start in tl.static_range(0, WIDTH, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        a_tile = load_tile(a, a_strides, rows, columns, T, WIDTH)
        b_tile = load_tile(b, b_strides, keys, columns, T, WIDTH)
        total = tl.dot(a_tile, tl.trans(b_tile), total, input_precision="ieee")
    return total


@triton.jit
def float_of(code):
    """The fp32 that has this place in the order of all fp32; code: uint32. Codes beyond
    the infinities are NaN.
    """
    return tl.where(code >> 31 == 1, code ^ 0x80000000, code ^ 0xFFFFFFFF).to(
        tl.float32, bitcast=True
    )


@triton.jit
def kth_largest(scores, keep):
    """The keep-th largest of each row, exactly; NaN where a row has fewer than `keep`
    numbers above -inf.

    Bisection over the order of all floating-point numbers: from the highest bit down, a
    bit of the answer's code is set when at least `keep` scores are still that large. 32
    rounds, whatever the scores.
    """
    code = tl.zeros([scores.shape[0]], tl.uint32)
    bit = tl.full([scores.shape[0]], 1 << 31, tl.uint32)
    for _ in range(32):
        count = tl.sum((scores >= float_of(code | bit)[:, None]).to(tl.int32), 1)
        code = tl.where(count >= keep, code | bit, code)
        bit = bit >> 1
    return float_of(code)


@triton.jit
def load_kept(kept, head, rows, keys, T, WORDS: tl.constexpr):
    """The saved selection as booleans (rows, keys); false outside of T."""
    inside = (rows[:, None] < T) & (keys[None, :] < T)
    words = tl.load(
        kept + (head.to(tl.int64) * T + rows[:, None]) * WORDS + keys[None, :] // 32,
        mask=inside,
        other=0,
    )
    return (words >> (keys[None, :] % 32)) & 1 == 1


@triton.jit
def forward_kernel(
    q,
    k,
    v,
    out,
    kept,
    log_sums,
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    HEADS,
    T,
    keep,
    scale,
    first,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """One program: ROWS queries, from number `first` + ROWS * program on, against the
    first KEYS keys.
    """
    head = tl.program_id(1)
    rows, keys = (
        first + tl.program_id(0) * ROWS + tl.arange(0, ROWS),
        tl.arange(0, KEYS),
    )
    q, k = head_of(q, q_strides, head, HEADS), head_of(k, k_strides, head, HEADS)
    scores = dot_rows(q, q_strides, k, k_strides, rows, keys, T, WIDTH, CHUNK) * scale
    visible = (keys[None, :] <= rows[:, None]) & (keys[None, :] < T)
    scores = tl.where(visible, scores, -float("inf"))
    # false for NaN, so that NaN comes out
    dropped = scores < kth_largest(scores, keep)[:, None]
    selected = visible & ~dropped
    scores = tl.where(selected, scores, -float("inf"))
    highest = tl.max(scores, 1)
    weights = tl.exp(scores - highest[:, None])
    total = tl.sum(weights, 1)
    weights = (weights / total[:, None]).to(v.dtype.element_ty)
    tl.store(
        log_sums + head.to(tl.int64) * T + rows, highest + tl.log(total), mask=rows < T
    )

    out, v = head_of(out, out_strides, head, HEADS), head_of(v, v_strides, head, HEADS)
    for start in tl.static_range(0, WIDTH, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        product = tl.dot(
            weights,
            load_tile(v, v_strides, keys, columns, T, WIDTH),
            input_precision="ieee",
        )
        store_tile(out, out_strides, rows, columns, T, WIDTH, product)

    bits = (
        tl.reshape(selected.to(tl.int32), [ROWS, KEYS // 32, 32])
        << tl.arange(0, 32)[None, None, :]
    )
    words = tl.arange(0, KEYS // 32)
    tl.store(
        kept + (head.to(tl.int64) * T + rows[:, None]) * WORDS + words[None, :],
        tl.sum(bits, 2),
        mask=(rows[:, None] < T) & (words[None, :] < WORDS),
    )


@triton.jit
def pair_gradients(
    q,
    k,
    v,
    d_out,
    kept,
    log_sums,
    means,
    q_strides,
    k_strides,
    v_strides,
    d_strides,
    head,
    rows,
    keys,
    T,
    scale,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    WORDS: tl.constexpr,
):
    """For a tile of pairs (rows, keys): the softmax weights and the gradients of q . k,
    in fp32.
    """
    scores = dot_rows(q, q_strides, k, k_strides, rows, keys, T, WIDTH, CHUNK) * scale
    scores = tl.where(
        load_kept(kept, head, rows, keys, T, WORDS), scores, -float("inf")
    )
    log_sum = tl.load(log_sums + head.to(tl.int64) * T + rows, mask=rows < T, other=0.0)
    mean = tl.load(means + head.to(tl.int64) * T + rows, mask=rows < T, other=0.0)
    weights = tl.exp(scores - log_sum[:, None])
    d_weights = dot_rows(d_out, d_strides, v, v_strides, rows, keys, T, WIDTH, CHUNK)
    # softmax' = p * (dp - sum p dp)
    return weights, weights * (d_weights - mean[:, None]) * scale


@triton.jit
def backward_queries_kernel(
    q,
    k,
    v,
    d_out,
    kept,
    log_sums,
    means,
    dq,
    q_strides,
    k_strides,
    v_strides,
    d_strides,
    dq_strides,
    HEADS,
    T,
    scale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dq of BLOCK queries: over the keys that they can see, BLOCK at a time."""
    head = tl.program_id(1)
    rows, columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    q, k = head_of(q, q_strides, head, HEADS), head_of(k, k_strides, head, HEADS)
    d_out, v = (
        head_of(d_out, d_strides, head, HEADS),
        head_of(v, v_strides, head, HEADS),
    )
    dq_sum = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, (tl.program_id(0) + 1) * BLOCK, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        _, d_scores = pair_gradients(
            q,
            k,
            v,
            d_out,
            kept,
            log_sums,
            means,
            q_strides,
            k_strides,
            v_strides,
            d_strides,
            head,
            rows,
            keys,
            T,
            scale,
            WIDTH,
            CHUNK,
            WORDS,
        )
        k_tile = load_tile(k, k_strides, keys, columns, T, WIDTH)
        dq_sum = tl.dot(
            d_scores.to(k_tile.dtype), k_tile, dq_sum, input_precision="ieee"
        )
    store_tile(
        head_of(dq, dq_strides, head, HEADS),
        dq_strides,
        rows,
        columns,
        T,
        WIDTH,
        dq_sum,
    )


@triton.jit
def backward_keys_kernel(
    q,
    k,
    v,
    d_out,
    kept,
    log_sums,
    means,
    dk,
    dv,
    q_strides,
    k_strides,
    v_strides,
    d_strides,
    dk_strides,
    dv_strides,
    HEADS,
    T,
    scale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    CHUNK: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dk and dv of BLOCK keys: over the queries that can see them, BLOCK at a time."""
    head = tl.program_id(1)
    keys, columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
    q, k = head_of(q, q_strides, head, HEADS), head_of(k, k_strides, head, HEADS)
    d_out, v = (
        head_of(d_out, d_strides, head, HEADS),
        head_of(v, v_strides, head, HEADS),
    )
    dk_sum, dv_sum = (
        tl.zeros([BLOCK, PADDED], tl.float32),
        tl.zeros([BLOCK, PADDED], tl.float32),
    )
    for start in range(tl.program_id(0) * BLOCK, T, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        weights, d_scores = pair_gradients(
            q,
            k,
            v,
            d_out,
            kept,
            log_sums,
            means,
            q_strides,
            k_strides,
            v_strides,
            d_strides,
            head,
            rows,
            keys,
            T,
            scale,
            WIDTH,
            CHUNK,
            WORDS,
        )
        d_tile = load_tile(d_out, d_strides, rows, columns, T, WIDTH)
        dv_sum = tl.dot(
            tl.trans(weights).to(d_tile.dtype), d_tile, dv_sum, input_precision="ieee"
        )
        q_tile = load_tile(q, q_strides, rows, columns, T, WIDTH)
        dk_sum = tl.dot(
            tl.trans(d_scores).to(q_tile.dtype), q_tile, dk_sum, input_precision="ieee"
        )
    store_tile(
        head_of(dk, dk_strides, head, HEADS),
        dk_strides,
        keys,
        columns,
        T,
        WIDTH,
        dk_sum,
    )
    store_tile(
        head_of(dv, dv_strides, head, HEADS),
        dv_strides,
        keys,
        columns,
        T,
        WIDTH,
        dv_sum,
    )


# On the host


def triton_attention(q: Tensor, k: Tensor, v: Tensor, keep: int) -> Tensor:
    """What reference_attention computes, shapes as there. Raises ConfigError that names
    the limit that was passed.
    """
    limit = why_not(q, k, v)
    if limit:
        raise ConfigError(
            f"the Triton kernel cannot take this: {limit}", 'use backend="reference"'
        )
    # its tl.dot would multiply the bits of a bf16 as integers
    if INTERPRETED and q.dtype == torch.bfloat16:
        return topk_attention_op(q.float(), k.float(), v.float(), keep)[0].to(q.dtype)
    return topk_attention_op(q, k, v, keep)[0]


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The first limit of the kernel that these tensors pass, in words; empty when they
    fit.
    """
    _, _, T, width = q.shape
    if not q.shape == k.shape == v.shape or not q.dtype == k.dtype == v.dtype:
        return "q, k and v differ in shape or dtype"
    if q.dtype not in DTYPES:
        return f"{q.dtype} is not among float32, float16 and bfloat16"
    if T > MAX_T:
        return f"T = {T} is above {MAX_T}"
    if width > MAX_WIDTH:
        return f"a head width of {width} is above {MAX_WIDTH}"
    if q.device.type != "cuda" and not INTERPRETED:
        return f"on {q.device.type} it runs only in the interpreter (TRITON_INTERPRET=1 before the first import)"
    return ""


@torch.library.custom_op("tilelli::topk_attention", mutates_args=())
def topk_attention_op(
    q: Tensor, k: Tensor, v: Tensor, keep: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, H, T, D_h) and two notes for the backward pass, through which no
    gradient flows.

    They are the selection, one bit a pair, as int32 (B, H, T, T / 32), and the log of
    each softmax's sum (B, H, T).
    """
    B, H, T, width = q.shape
    out, kept, log_sums = empty_results(q)
    for first, keys in bands(T):
        sizes = forward_sizes(T, width, keys)
        forward_kernel[triton.cdiv(min(keys, T) - first, sizes["ROWS"]), B * H](
            q,
            k,
            v,
            out,
            kept,
            log_sums,
            q.stride(),
            k.stride(),
            v.stride(),
            out.stride(),
            H,
            T,
            keep,
            scale_of(q),
            first,
            **sizes,
        )
    return out, kept, log_sums


@torch.library.custom_op("tilelli::topk_attention_backward", mutates_args=())
def backward_op(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    kept: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v (B, H, T, D_h) with the selection of the forward
    pass.
    """
    B, H, T, width = q.shape
    dq, dk, dv = (like_heads(x) for x in (q, k, v))
    # of dp, weighted by p: sum p dp = d_out . out
    means = (d_out.float() * out.float()).sum(-1).contiguous()
    sizes = backward_sizes(T, width, q.element_size())
    grid, inputs = (
        (triton.cdiv(T, sizes["BLOCK"]), B * H),
        (q, k, v, d_out, kept, log_sums, means),
    )
    strides = [x.stride() for x in inputs[:4]]
    backward_queries_kernel[grid](
        *inputs, dq, *strides, dq.stride(), H, T, scale_of(q), **sizes
    )
    backward_keys_kernel[grid](
        *inputs, dk, dv, *strides, dk.stride(), dv.stride(), H, T, scale_of(q), **sizes
    )
    return dq, dk, dv


@topk_attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    return empty_results(q)


@backward_op.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    kept: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return like_heads(q), like_heads(k), like_heads(v)


def keep_for_backward(ctx, inputs: tuple, output: tuple) -> None:
    """Autograd's note of a call: the tensors, the selection and the sums; the scores
    are made again.
    """
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.mark_non_differentiable(*output[1:])


def backward(ctx, d_out: Tensor, *_) -> tuple[Tensor, Tensor, Tensor, None]:
    """Autograd's way from d_out to dq, dk, dv."""
    return *backward_op(d_out, *ctx.saved_tensors), None


topk_attention_op.register_autograd(backward, setup_context=keep_for_backward)


def bands(T: int) -> list[tuple[int, int]]:
    """(first row, keys) of groups of rows: those that see at most 64 keys, the next up
    to 128, and so on to T.
    """
    keys = [2**n for n in range(6, max(6, (T - 1).bit_length()) + 1)]
    return [(0 if n == 64 else n // 2, n) for n in keys]


def forward_sizes(T: int, width: int, keys: int) -> dict[str, int]:
    """How the forward kernel is cut up in the band of rows that see at most `keys`
    keys.
    """
    # at most 16,384 scores: 64 registers in each of 256 threads
    rows = max(16, min(64, 16384 // keys))
    return {
        "WIDTH": width,
        "CHUNK": chunk(width),
        "WORDS": words(T),
        "ROWS": rows,
        "KEYS": keys,
        "num_warps": 4 if rows * keys <= 8192 else 8,
        "num_stages": 1,
    }


def backward_sizes(T: int, width: int, element_size: int) -> dict[str, int]:
    """How both backward kernels are cut up; `element_size` in bytes."""
    # the wider the head, the fewer pairs fit the registers
    block = 64 if element_size * width <= 192 else 32
    return {
        "WIDTH": width,
        "PADDED": max(16, triton.next_power_of_2(width)),
        "CHUNK": chunk(width),
        "WORDS": words(T),
        "BLOCK": block,
        "num_warps": 8 if block == 64 else 4,
        "num_stages": 1,
    }


def chunk(width: int) -> int:
    """Columns of a head that are multiplied at once: 32 where that leaves nothing over,
    else 16.
    """
    return 32 if width % 32 == 0 else 16


def words(T: int) -> int:
    """32-bit words that hold one row's selection."""
    return (T + 31) // 32


def scale_of(q: Tensor) -> float:
    """What the scores are multiplied by."""
    return 1 / math.sqrt(q.shape[-1])


def like_heads(x: Tensor) -> Tensor:
    """Room for (B, H, T, D_h), laid out as (B, T, H, D_h): joining the heads afterwards
    moves nothing.
    """
    B, H, T, width = x.shape
    return x.new_empty(B, T, H, width).transpose(1, 2)


def empty_results(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what the forward pass returns."""
    B, H, T, _ = q.shape
    # words beyond a row's band are not written
    kept = q.new_zeros(B, H, T, words(T), dtype=torch.int32)
    return like_heads(q), kept, q.new_empty(B, H, T, dtype=torch.float32)
