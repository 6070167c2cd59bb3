"""Top-k attention as Triton kernels: the scores of a tile of queries never leave the
chip.

They run on CUDA, and without a GPU in Triton's interpreter: set TRITON_INTERPRET=1
before this module is imported. q, k and v come as they lie in memory behind the linear
map that makes all three, (B, T, 3, H, D_h), and their gradient goes back the same way.
"""

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import ConfigError
from .kernel_sort import (
    LIST,
    count_from,
    float_of,
    kth_and_highest,
    larger_half,
    lists_of,
    merge,
    sort,
)

MAX_WIDTH = 128


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# as Triton saw it when it decorated the functions below
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


LOG2_E: tl.constexpr = tl.constexpr(math.log2(math.e))  # exp(x) is exp2(x LOG2_E)


# On the chip: tiles


@triton.jit
def head_of(x, head, PART: tl.constexpr, PARTS: tl.constexpr, T, HEADS, WIDTH):
    """Where the vectors (T, D_h) of one head of one sequence begin in part PART of x
    (B, T, PARTS, H, D_h); from a byte to the next are PARTS * HEADS * WIDTH numbers.

    64 bits, for large batches.
    """
    sequence, place = (head // HEADS).to(tl.int64), head % HEADS
    return x + ((sequence * T * PARTS + PART) * HEADS + place) * WIDTH


@triton.jit
def load_tile(x, step, rows, columns, T, WIDTH: tl.constexpr):
    """Vectors of x at `rows`, `step` numbers apart: (rows, columns), zero outside of
    (T, WIDTH).
    """
    inside = (rows[:, None] < T) & (columns[None, :] < WIDTH)
    return tl.load(x + rows[:, None] * step + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(x, step, rows, columns, T, WIDTH: tl.constexpr, tile):
    """The inverse: writes a tile, except outside of (T, WIDTH)."""
    inside = (rows[:, None] < T) & (columns[None, :] < WIDTH)
    at = x + rows[:, None] * step + columns[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=inside)


@triton.jit
def dot_rows(a_tile, b, step, rows, columns, T, WIDTH: tl.constexpr):
    """Vectors of a tile times the vectors of b at `rows`: (tile's rows, rows) in
    fp32.
    """
    b_tile = load_tile(b, step, rows, columns, T, WIDTH)
    # else factors in fp32 would be cut to the ten bits of TF32
    return tl.dot(a_tile, tl.trans(b_tile), input_precision="ieee")


@triton.jit
def store_kept(kept, selected, rows, first_key, T, BLOCK: tl.constexpr):
    """Saves which pairs of a tile are kept, (rows, keys) booleans, as bits of 32-bit
    words; kept: (T, words) of one head.
    """
    words = (T + 31) // 32
    bits = tl.reshape(selected.to(tl.int32), [BLOCK, BLOCK // 32, 32])  # row, word, bit
    # each bit is there once, so that the sum is an "or"; the highest is the sign
    bits = tl.sum(bits << tl.arange(0, 32)[None, None, :], 2)  # (BLOCK, BLOCK / 32)
    word = first_key // 32 + tl.arange(0, BLOCK // 32)
    inside = (rows[:, None] < T) & (word[None, :] < words)
    tl.store(kept + rows[:, None] * words + word[None, :], bits, mask=inside)


@triton.jit
def load_kept(kept, rows, first_key, T, BLOCK: tl.constexpr):
    """The inverse: (rows, keys) booleans. Each word is loaded once."""
    words = (T + 31) // 32
    word = first_key // 32 + tl.arange(0, BLOCK // 32)
    inside = (rows[:, None] < T) & (word[None, :] < words)
    bits = tl.load(kept + rows[:, None] * words + word[None, :], mask=inside, other=0)
    bits = bits[:, :, None] >> tl.arange(0, 32)[None, None, :]  # row, word, bit
    return tl.reshape(bits & 1, [BLOCK, BLOCK]) == 1  # & 1: >> repeats the sign


@triton.jit
def load_kept_turned(kept, rows, first_key, T, BLOCK: tl.constexpr):
    """The same as (keys, rows), loaded that way round: nothing has to be transposed."""
    words = (T + 31) // 32
    word = first_key // 32 + tl.arange(0, BLOCK // 32)
    inside = (rows[None, :] < T) & (word[:, None] < words)
    bits = tl.load(kept + rows[None, :] * words + word[:, None], mask=inside, other=0)
    bits = bits[:, None, :] >> tl.arange(0, 32)[None, :, None]  # word, bit, row
    return tl.reshape(bits & 1, [BLOCK, BLOCK]) == 1


# On the chip: forward


@triton.jit
def sorted_thresholds(
    q_tile, k, step, first, columns, T, WIDTH, KEEP: tl.constexpr, BLOCK: tl.constexpr
):
    """The KEEP-th largest and the largest visible score of BLOCK rows from `first` on,
    (BLOCK,) each; -inf where a row sees fewer than KEEP keys.

    Each thread keeps the sixteen best of what it has seen of a row, as a sorted list:
    registers do not grow with T.
    """
    here = tl.arange(0, BLOCK)
    scores = dot_rows(q_tile, k, step, first + here, columns, T, WIDTH)
    # the tile on the diagonal is the only one where not all keys are visible
    scores = tl.where(here[None, :] <= here[:, None], scores, -float("inf"))
    best = sort(lists_of(scores, BLOCK))  # sixteen tensors (BLOCK, 4)
    for start in range(0, first, BLOCK):
        scores = dot_rows(q_tile, k, step, start + here, columns, T, WIDTH)
        new = sort(lists_of(scores, BLOCK))
        best = merge(larger_half(best, new), 16)  # in order again, by four layers
    return kth_and_highest(best, BLOCK, KEEP)


@triton.jit
def bisected_thresholds(
    q_tile, k, step, first, columns, T, WIDTH, KEEP: tl.constexpr, BLOCK: tl.constexpr
):
    """The same for any KEEP, by bisection over the order of all floating-point numbers;
    NaN where a row sees fewer than KEEP keys.

    From the highest bit down, a bit of the answer's code is set when at least KEEP
    scores are still that large. 32 rounds, each of which makes the scores anew.
    """
    here, highest = tl.arange(0, BLOCK), tl.full([BLOCK], -float("inf"), tl.float32)
    code = tl.zeros([BLOCK], tl.uint32)
    bit = tl.full([BLOCK], 1 << 31, tl.uint32)
    for _ in range(32):
        count = tl.zeros([BLOCK], tl.int32)
        for start in range(0, first + BLOCK, BLOCK):
            scores = dot_rows(q_tile, k, step, start + here, columns, T, WIDTH)
            visible = (start + here)[None, :] <= (first + here)[:, None]
            scores = tl.where(visible, scores, -float("inf"))
            # a code beyond the infinities is NaN: nothing reaches it, the bit stays 0
            count += count_from(scores, float_of(code | bit))
            highest = tl.maximum(highest, tl.max(scores, 1))
        code = tl.where(count >= KEEP, code | bit, code)
        bit = bit >> 1
    return float_of(code), highest


@triton.jit
def forward_kernel(
    qkv,
    out,
    kept,
    log_sums,
    HEADS,
    T,
    scale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    KEEP: tl.constexpr,
    SORTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: BLOCK = 64 queries, in two passes over the keys that they can see.

    The first finds each row's threshold. The second makes the scores again, which costs
    less than to keep them, selects, and sums up the values. Scores are not scaled
    before that: their order is the same.
    """
    head = tl.program_id(1)
    # the rows that see most begin first, so that none is left for the end
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK
    here, columns = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    rows, step = first + here, 3 * HEADS * WIDTH  # step: from a byte to the next
    q = head_of(qkv, head, 0, 3, T, HEADS, WIDTH)
    k = head_of(qkv, head, 1, 3, T, HEADS, WIDTH)
    v = head_of(qkv, head, 2, 3, T, HEADS, WIDTH)
    kept += head.to(tl.int64) * T * ((T + 31) // 32)  # this head's, (T, words)
    q_tile = load_tile(q, step, rows, columns, T, WIDTH)  # (BLOCK, PADDED)

    if SORTED:
        kth, highest = sorted_thresholds(
            q_tile, k, step, first, columns, T, WIDTH, KEEP, BLOCK
        )
    else:
        kth, highest = bisected_thresholds(
            q_tile, k, step, first, columns, T, WIDTH, KEEP, BLOCK
        )

    total = tl.zeros([BLOCK], tl.float32)
    product = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, first + BLOCK, BLOCK):
        keys = start + here
        scores = dot_rows(q_tile, k, step, keys, columns, T, WIDTH)
        # "not below" rather than "at least": NaN is kept, so that NaN comes out
        selected = (keys[None, :] <= rows[:, None]) & ~(scores < kth[:, None])
        store_kept(kept, selected, rows, start, T, BLOCK)
        # of what is visible at most 1; and exp2 is the power that the chip has
        weights = tl.exp2((scores - highest[:, None]) * (scale * LOG2_E))
        weights = tl.where(selected, weights, 0.0)
        total += tl.sum(weights, 1)
        v_tile = load_tile(v, step, keys, columns, T, WIDTH)
        weights = weights.to(v_tile.dtype)  # for a tensor core; sums stay in fp32
        product = tl.dot(weights, v_tile, product, input_precision="ieee")
    log_sum = highest * scale + tl.log(total)  # exp(score - it) is a weight
    tl.store(log_sums + head.to(tl.int64) * T + rows, log_sum, mask=rows < T)
    out = head_of(out, head, 0, 1, T, HEADS, WIDTH)
    product = product / total[:, None]  # once a row, not once a key
    store_tile(out, HEADS * WIDTH, rows, columns, T, WIDTH, product)


# On the chip: backward


@triton.jit
def backward_queries_kernel(
    qkv,
    out,
    d_out,
    d_qkv,
    kept,
    log_sums,
    means,
    HEADS,
    T,
    scale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dq of BLOCK queries: over the keys that they can see, BLOCK at a time.

    Softmax passes on p (dp - sum p dp), and the sum is d_out . out: one number a row,
    left in `means` for the other kernel.
    """
    head = tl.program_id(1)
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK
    here, columns = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    rows, step, line = first + here, 3 * HEADS * WIDTH, head.to(tl.int64) * T
    q = head_of(qkv, head, 0, 3, T, HEADS, WIDTH)
    k = head_of(qkv, head, 1, 3, T, HEADS, WIDTH)
    v = head_of(qkv, head, 2, 3, T, HEADS, WIDTH)
    out = head_of(out, head, 0, 1, T, HEADS, WIDTH)
    d_out = head_of(d_out, head, 0, 1, T, HEADS, WIDTH)
    kept += line * ((T + 31) // 32)

    out_tile = load_tile(out, HEADS * WIDTH, rows, columns, T, WIDTH)
    d_tile = load_tile(d_out, HEADS * WIDTH, rows, columns, T, WIDTH)
    mean = tl.sum(d_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    tl.store(means + line + rows, mean, mask=rows < T)
    log_sum = tl.load(log_sums + line + rows, mask=rows < T, other=0.0)
    q_tile = load_tile(q, step, rows, columns, T, WIDTH)
    dq = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, first + BLOCK, BLOCK):
        keys = start + here
        k_tile = load_tile(k, step, keys, columns, T, WIDTH)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")
        weights = tl.exp2((scores * scale - log_sum[:, None]) * LOG2_E)
        d_weights = dot_rows(d_tile, v, step, keys, columns, T, WIDTH)  # (rows, keys)
        d_scores = weights * (d_weights - mean[:, None])
        selected = load_kept(kept, rows, start, T, BLOCK)
        # pairs that were not kept have weights here as well, even infinite ones
        d_scores = tl.where(selected, d_scores, 0.0).to(k_tile.dtype)
        dq = tl.dot(d_scores, k_tile, dq, input_precision="ieee")
    d_q = head_of(d_qkv, head, 0, 3, T, HEADS, WIDTH)
    store_tile(d_q, step, rows, columns, T, WIDTH, dq * scale)  # score: scale * q . k


@triton.jit
def backward_keys_kernel(
    qkv,
    d_out,
    d_qkv,
    kept,
    log_sums,
    means,
    HEADS,
    T,
    scale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dk and dv of BLOCK keys: over the queries that can see them, BLOCK at a time.

    Every tile of pairs is (keys, rows) here, so that none has to be transposed.
    """
    head = tl.program_id(1)
    first = tl.program_id(0) * BLOCK
    here, columns = tl.arange(0, BLOCK), tl.arange(0, PADDED)
    keys, step, line = first + here, 3 * HEADS * WIDTH, head.to(tl.int64) * T
    q = head_of(qkv, head, 0, 3, T, HEADS, WIDTH)
    k = head_of(qkv, head, 1, 3, T, HEADS, WIDTH)
    v = head_of(qkv, head, 2, 3, T, HEADS, WIDTH)
    d_out = head_of(d_out, head, 0, 1, T, HEADS, WIDTH)
    kept += line * ((T + 31) // 32)
    k_tile = load_tile(k, step, keys, columns, T, WIDTH)
    v_tile = load_tile(v, step, keys, columns, T, WIDTH)
    dk = tl.zeros([BLOCK, PADDED], tl.float32)
    dv = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(first, T, BLOCK):  # earlier queries see none of these keys
        rows = start + here
        q_tile = load_tile(q, step, rows, columns, T, WIDTH)
        d_tile = load_tile(d_out, HEADS * WIDTH, rows, columns, T, WIDTH)
        log_sum = tl.load(log_sums + line + rows, mask=rows < T, other=0.0)
        mean = tl.load(means + line + rows, mask=rows < T, other=0.0)  # (rows,)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee")
        weights = tl.exp2((scores * scale - log_sum[None, :]) * LOG2_E)
        selected = load_kept_turned(kept, rows, first, T, BLOCK)
        weights = tl.where(selected, weights, 0.0)  # (keys, rows)
        dv = tl.dot(weights.to(d_tile.dtype), d_tile, dv, input_precision="ieee")
        d_weights = tl.dot(v_tile, tl.trans(d_tile), input_precision="ieee")
        d_scores = (weights * (d_weights - mean[None, :])).to(q_tile.dtype)
        dk = tl.dot(d_scores, q_tile, dk, input_precision="ieee")
    d_k = head_of(d_qkv, head, 1, 3, T, HEADS, WIDTH)
    d_v = head_of(d_qkv, head, 2, 3, T, HEADS, WIDTH)
    store_tile(d_k, step, keys, columns, T, WIDTH, dk * scale)
    store_tile(d_v, step, keys, columns, T, WIDTH, dv)


# On the host


def triton_attention(q: Tensor, k: Tensor, v: Tensor, keep: int) -> Tensor:
    """What reference_attention computes, shapes as there: (B, H, T, D_h). Raises
    ConfigError that names the limit that was passed.
    """
    check(q, k, v)
    # (B, T, 3, H, D_h): the copy that packed_attention does without
    packed = torch.stack([x.transpose(1, 2) for x in (q, k, v)], dim=2)
    return packed_attention(packed, keep).transpose(1, 2)


def packed_attention(qkv: Tensor, keep: int) -> Tensor:
    """The same for q, k and v in one tensor, of which nothing is copied: (B, T, 3, H,
    D_h) -> (B, T, H, D_h).
    """
    check(*qkv.unbind(2))
    # the interpreter's tl.dot would multiply the bits of a bf16 as integers
    if INTERPRETED and qkv.dtype == torch.bfloat16:
        return topk_attention_op(qkv.float(), keep)[0].to(qkv.dtype)
    return topk_attention_op(qkv, keep)[0]


def check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises ConfigError with the limit that these tensors pass, if any."""
    if limit := why_not(q, k, v):
        raise ConfigError(
            f"the Triton kernel cannot take this: {limit}", 'use backend="reference"'
        )


def why_not(q: Tensor, k: Tensor, v: Tensor) -> str:
    """The first limit of the kernel that these tensors pass, in words; empty when they
    fit.
    """
    if not q.shape == k.shape == v.shape or not q.dtype == k.dtype == v.dtype:
        return "q, k and v differ in shape or dtype"
    if q.dtype not in DTYPES:
        return f"{q.dtype} is not among float32, float16 and bfloat16"
    if q.shape[-1] > MAX_WIDTH:
        return f"a head width of {q.shape[-1]} is above {MAX_WIDTH}"
    if q.device.type != "cuda" and not INTERPRETED:
        return (
            f"on {q.device.type} it runs only in the interpreter (TRITON_INTERPRET=1 "
            "before the first import)"
        )
    return ""


@torch.library.custom_op("tilelli::topk_attention", mutates_args=())
def topk_attention_op(qkv: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """qkv (B, T, 3, H, D_h) -> the output (B, T, H, D_h) and two notes for the backward
    pass, through which no gradient flows.

    They are the selection, one bit a pair, as int32 (B, H, T, T / 32), and the log of
    each softmax's sum (B, H, T).
    """
    B, T, _, H, width = qkv.shape
    out, kept, log_sums = empty_results(qkv)
    forward_kernel[grid_of(qkv)](
        qkv.contiguous(),  # head_of reckons with numbers that lie without gaps
        out,
        kept,
        log_sums,
        H,
        T,
        1 / math.sqrt(width),  # the scale of the scores
        **sizes(width, qkv.element_size()) | selection(keep),
    )
    return out, kept, log_sums


@torch.library.custom_op("tilelli::topk_attention_backward", mutates_args=())
def backward_op(
    d_out: Tensor, qkv: Tensor, out: Tensor, kept: Tensor, log_sums: Tensor
) -> Tensor:
    """The gradient of qkv (B, T, 3, H, D_h) with the selection of the forward pass."""
    B, T, _, H, width = qkv.shape
    qkv, d_out = qkv.contiguous(), d_out.contiguous()
    d_qkv, means = torch.empty_like(qkv), torch.empty_like(log_sums)
    cut = sizes(width, qkv.element_size())
    shape = H, T, 1 / math.sqrt(width)
    grid = grid_of(qkv, cut["BLOCK"])
    backward_queries_kernel[grid](
        qkv, out, d_out, d_qkv, kept, log_sums, means, *shape, **cut
    )
    # after it, in the same stream: it reads the means
    backward_keys_kernel[grid](qkv, d_out, d_qkv, kept, log_sums, means, *shape, **cut)
    return d_qkv


# for torch.compile, which asks for shapes and types before there are numbers
@topk_attention_op.register_fake
def _(qkv: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    return empty_results(qkv)


@backward_op.register_fake
def _(
    d_out: Tensor, qkv: Tensor, out: Tensor, kept: Tensor, log_sums: Tensor
) -> Tensor:
    return qkv.new_empty(qkv.shape)


def keep_for_backward(ctx, inputs: tuple, output: tuple) -> None:
    """Autograd's note of a call: the tensors, the selection and the sums; the scores
    are made again.
    """
    ctx.save_for_backward(inputs[0], *output)
    ctx.mark_non_differentiable(*output[1:])


def backward(ctx, d_out: Tensor, *_) -> tuple[Tensor, None]:
    """Autograd's way from d_out to the gradient of qkv."""
    return backward_op(d_out, *ctx.saved_tensors), None


topk_attention_op.register_autograd(backward, setup_context=keep_for_backward)


def grid_of(qkv: Tensor, block: int = 64) -> tuple[int, int]:
    """One program for `block` bytes of one head of one sequence."""
    B, T, _, H, _ = qkv.shape
    return triton.cdiv(T, block), B * H


def sizes(width: int, element_size: int) -> dict[str, int]:
    """How the kernels are cut up for heads of this width; `element_size` in bytes."""
    # the wider the head, the fewer pairs fit the registers
    narrow = element_size * width <= 192
    return {
        "WIDTH": width,
        "PADDED": max(16, triton.next_power_of_2(width)),  # tl.dot takes 16 or more
        "BLOCK": 64 if narrow else 32,
        # four warps of 16 rows: with eight, two would do the same rows
        "num_warps": 4,
        "num_stages": 2 if narrow else 1,  # 2: a tile is loaded while one is computed
    }


def selection(keep: int) -> dict[str, int]:
    """How the forward kernel selects: by sorting up to sixteen, in tiles of 64."""
    return {"KEEP": keep, "SORTED": keep <= LIST.value, "BLOCK": 64}


def empty_results(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what the forward pass returns."""
    B, T, _, H, width = qkv.shape
    # words that no key of a row's tiles falls into are not written
    kept = qkv.new_zeros(B, H, T, (T + 31) // 32, dtype=torch.int32)
    log_sums = qkv.new_empty(B, H, T, dtype=torch.float32)
    return qkv.new_empty(B, T, H, width), kept, log_sums
