"""Pathway 2: sparse attention. Each query keeps its k best visible scores and forgets
the rest.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import ConfigError, MissingDependency

POOL = ThreadPoolExecutor()  # its threads begin when they are first needed


# of a block: large enough for the matrix product, small enough for the cache
ROWS, HEADS = 64, 64


# asked once: torch.compile cannot follow the question
HAVE_TRITON = find_spec("triton") is not None


def topk_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: int = 16, backend: str = "auto"
) -> Tensor:
    """Computes causal attention over the `keep` best visible keys of each query; ties
    at the threshold are all kept.

    q, k, v: (B, H, T, D_h) each -> (B, H, T, D_h). Fewer queries than keys are those of
    the last bytes: each sees all keys up to its own.

    `backend` is "reference" (plain and differentiable all the way), "blocked" (the same
    on the CPU in about half the time), "triton" (the kernel of chapter 5) or "auto":
    the kernel on CUDA for 16-bit tensors that fit it, blocked on the CPU, else the
    reference. TILELLI_ATTENTION in the environment decides for "auto". Scores and
    softmax are in fp32 or better. Raises ConfigError for a backend that is not there,
    keep < 1 or more queries than keys, MissingDependency without Triton. After Gupta et
    al. 2021, arXiv:2106.06899.
    """
    if keep < 1:
        raise ConfigError(
            f"keep = {keep}: a query must keep at least one key",
            "set keep to 1 or more, e.g. 16",
        )
    before = k.shape[2] - q.shape[2]  # keys of bytes that no query belongs to
    if before < 0 or v.shape[2] != k.shape[2]:
        raise ConfigError(
            f"{q.shape[2]} queries, {k.shape[2]} keys and {v.shape[2]} values",
            "give as many keys as values, and at most as many queries",
        )
    if backend == "auto":
        backend = best_backend(q, k, v)
    if before and backend != "reference":  # the others know the whole triangle alone
        q = F.pad(q, (0, 0, before, 0))
        return topk_attention(q, k, v, keep, backend)[:, :, before:]
    # Autocast would take the scores' product down to bf16.
    with torch.autocast(q.device.type, enabled=False):
        if backend == "reference":
            return reference_attention(q, k, v, keep)
        if backend == "blocked" and q.device.type == "cpu":
            return BlockedAttention.apply(q, k, v, keep)
        if backend == "triton":
            return load_kernels().triton_attention(q, k, v, keep)
    raise ConfigError(
        f"there is no attention backend {backend!r} on {q.device.type}",
        'use "auto", "reference", "triton" or, on a CPU, "blocked"',
    )


def best_backend(q: Tensor, k: Tensor, v: Tensor) -> str:
    """What "auto" means for these tensors."""
    chosen = os.environ.get("TILELLI_ATTENTION")
    if chosen:
        return chosen
    if q.shape[2] < k.shape[2]:  # a byte more, or a few
        return "reference"
    if q.device.type == "cpu":
        return "blocked"
    # In fp32 there is evaluation alone, a thousandth of the work: to compile the kernel
    # for it would take longer than it ever saves.
    fits = (
        HAVE_TRITON
        and q.device.type == "cuda"
        and q.dtype in (torch.float16, torch.bfloat16)
        and not load_kernels().why_not(q, k, v)
    )
    return "triton" if fits else "reference"


def load_kernels():
    """The module of the kernel, imported when it is first needed. Raises
    MissingDependency without Triton.
    """
    try:
        from . import kernels
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "the attention kernel needs Triton, which exists for Linux only",
            'use backend="reference", or on Linux: pip install triton',
        ) from error
    return kernels


def reference_attention(q: Tensor, k: Tensor, v: Tensor, keep: int) -> Tensor:
    """The rule, line by line; shapes as in topk_attention."""
    queries, keys = q.shape[2], k.shape[2]
    scores = at_least_fp32(q) @ at_least_fp32(k).mT / math.sqrt(q.shape[-1])
    if queries > 1:  # the last query sees all keys, and a single one is the last
        visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device)
        visible = visible.tril(keys - queries)
        scores = scores.masked_fill(~visible, -math.inf)  # (B, H, queries, keys)
    best = scores.topk(min(keep, keys)).values
    kth = best[..., -1:]  # (B, H, queries, 1); -inf where fewer than `keep` are visible
    kept = scores.masked_fill(scores < kth, -math.inf)
    weights = kept.softmax(-1)
    return weights.to(v.dtype) @ v


class BlockedAttention(torch.autograd.Function):
    """The same rule, 64 queries of a few sequences at a time against only the keys that
    they can see, with a backward pass by hand.

    Scores, selection and softmax are in fp32 or better, as everywhere. The other five
    products of the two passes are in the inputs' own dtype: sixteen bits where autocast
    made them sixteen, as in the kernel of chapter 5.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, keep: int) -> Tensor:
        B, H, T, D = q.shape
        dtype = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
        scale = 1 / math.sqrt(D)
        out = empty_for_joining(v, v.shape[-1], dtype)
        saved = []
        for some in chunks(B, HEADS // H):
            # The heads of a few sequences, as one row of matrices: (heads, T, D_h).
            qs, ks, vs = (x[some].flatten(0, 1).to(dtype) for x in (q, k, v))
            tables = visible_scores(at_least_fp32(qs), at_least_fp32(ks), scale)
            thresholds = kth_largest(tables, keep)
            saved += [qs, ks, vs]
            for rows, scores, kth in zip(
                chunks(T, ROWS), tables, thresholds, strict=True
            ):
                weights = softmax_of_kept(scores, kth).to(dtype)  # (heads, rows, seen)
                values = torch.bmm(weights, vs[:, : rows.stop])  # (heads, rows, D_h)
                out[some, :, rows] = values.unflatten(0, (-1, H))
                saved.append(weights)
        ctx.save_for_backward(out, *saved)
        ctx.inputs = [(x.shape[-1], x.dtype) for x in (q, k, v)]
        return out.to(v.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor):
        """Only the kept pairs have weight, so only they carry gradient: the forward's
        selection is the backward's.
        """
        out, *saved = ctx.saved_tensors
        B, H, T, _ = out.shape
        dtype = out.dtype
        dq, dk, dv = (empty_for_joining(out, width, dtype) for width, _ in ctx.inputs)
        scale = 1 / math.sqrt(dq.shape[-1])
        d_out = d_out.to(dtype)
        # Softmax backwards is p * (dp - sum p dp), and that sum is d_out . out.
        means = (at_least_fp32(d_out) * out).sum(-1, keepdim=True).to(dtype)
        row_chunks = chunks(T, ROWS)
        tensors_each = 3 + len(row_chunks)  # q, k, v, and the weights of each block
        for number, some in enumerate(chunks(B, HEADS // H)):
            first = number * tensors_each
            qs, ks, vs, *all_weights = saved[first : first + tensors_each]
            g, g_means = d_out[some].flatten(0, 1), means[some].flatten(0, 1)
            dks, dvs = torch.zeros_like(ks), torch.zeros_like(vs)  # (heads, T, D_h)
            for rows, weights in zip(row_chunks, all_weights, strict=True):
                seen = slice(0, rows.stop)
                d_weights = torch.bmm(g[:, rows], vs[:, seen].mT)
                d_scores = d_weights.sub_(g_means[:, rows]).mul_(weights)
                dqs = scaled_bmm(d_scores, ks[:, seen], scale)
                dq[some, :, rows] = dqs.unflatten(0, (-1, H))
                dks[:, seen].baddbmm_(d_scores.mT, qs[:, rows], alpha=scale)
                dvs[:, seen].baddbmm_(weights.mT, g[:, rows])
            dk[some] = dks.unflatten(0, (-1, H))
            dv[some] = dvs.unflatten(0, (-1, H))
        (_, q_dtype), (_, k_dtype), (_, v_dtype) = ctx.inputs
        return dq.to(q_dtype), dk.to(k_dtype), dv.to(v_dtype), None


def visible_scores(q: Tensor, k: Tensor, scale: float) -> list[Tensor]:
    """Computes the scores of each chunk of queries against the keys up to its last.

    q, k: (heads, T, D_h) -> a list of (heads, rows, seen), -inf where a key is ahead.
    """
    tables = []
    future = q.new_full((ROWS, ROWS), -math.inf).triu(1)
    for rows in chunks(q.shape[1], ROWS):
        size = rows.stop - rows.start
        scores = scaled_bmm(q[:, rows], k[:, : rows.stop].mT, scale)
        scores[..., rows].tril_().add_(future[:size, :size])
        tables.append(scores)
    return tables


def softmax_of_kept(scores: Tensor, kth: Tensor) -> Tensor:
    """Takes the softmax over the scores that reach the threshold: (..., n), (..., 1) ->
    (..., n).

    The scores are overwritten: three passes over memory instead of masked_fill's five.
    """
    dropped = torch.lt(scores, kth, out=torch.empty_like(scores))  # 1.0 or 0.0
    scores.sub_(dropped, alpha=torch.finfo(scores.dtype).max)
    return torch.softmax(scores, -1, out=dropped)  # in memory that is free again


def chunks(length: int, size: int) -> list[slice]:
    """Cuts 0..length into pieces of `size`, at least 1; the last may be shorter."""
    size = max(size, 1)
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def empty_for_joining(x: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Makes room for (B, H, T, width) beside x, with a byte's heads side by side in
    memory: joining them moves nothing.
    """
    B, H, T, _ = x.shape
    return x.new_empty(B, T, H, width, dtype=dtype).transpose(1, 2)


def scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Computes scale * a @ b for (H, n, m) and (H, m, l), in one pass."""
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def kth_largest(tables: list[Tensor], keep: int) -> list[Tensor]:
    """Finds the keep-th largest of each row, or the smallest of a shorter one: tables
    (..., n) on the CPU -> (..., 1) for each.

    NumPy's partition does several numbers per instruction and takes a fraction of the
    time of torch.topk; it lets go of Python's lock, so that threads can share the rows.
    All tables come at once, since to wake a thread takes time, too.
    """
    found = [table.new_empty(*table.shape[:-1], 1) for table in tables]
    jobs = []  # (rows, n) of a table, and where to write their (rows, 1)
    for table, kth in zip(reversed(tables), reversed(found), strict=True):
        rows = table.flatten(0, -2).split(1024)
        places = kth.flatten(0, -2).split(1024)
        jobs += zip(rows, places, strict=True)  # tables with long rows come first
    todo = iter(jobs)

    def work() -> None:
        for rows, place in todo:  # each piece goes to whichever thread asks first
            rank = max(rows.shape[1] - keep, 0)  # of the keep-th largest, ascending
            ordered = np.partition(rows.numpy(), rank)
            place.numpy()[:] = ordered[:, rank : rank + 1]

    threads = min(torch.get_num_threads(), len(jobs))
    helpers = [POOL.submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()  # waits, and raises what the helper raised
    return found


def at_least_fp32(x: Tensor) -> Tensor:
    """Takes fp16 and bf16 to fp32; fp32 and float64 stay what they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class KVCache:
    """The keys and values of one block's attention for the window so far,
    preallocated.
    """

    def __init__(self, batch: int, heads: int, context: int, like: Tensor, width: int):
        shape = (batch, heads, context, width)
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.length = 0

    def restart(self) -> None:
        """Forgets all bytes."""
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in keys and values of T bytes more, (B, H, T, D_h) each, and returns
        those of all bytes.
        """
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class TopKAttention(nn.Module):
    """Multi-head top-k attention. One matrix makes q, k and v; the heads are joined
    without an output projection.
    """

    def __init__(
        self, d_model: int, n_heads: int, keep: int, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.n_heads, self.keep, self.backend = n_heads, keep, backend
        # rows: q, then k, then v
        self.weight = nn.Parameter(torch.empty(3 * d_model, d_model))

    def forward(self, y: Tensor, state: KVCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). With a `state`, T bytes more: they also see the bytes
        before them, whose keys and values it holds, and leave their own there.
        """
        B, T, D = y.shape
        qkv = F.linear(y, self.weight)  # (B, T, 3 D)
        heads = (B, T, self.n_heads, D // self.n_heads)
        q, k, v = (part.view(heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if state is not None:
            k, v = state.append(k, v)  # (B, H, all bytes so far, D_h)
        backend = best_backend(q, k, v) if self.backend == "auto" else self.backend
        if (
            backend == "triton" and state is None
        ):  # takes them in one piece, as they lie
            packed = qkv.view(B, T, 3, self.n_heads, D // self.n_heads)
            return load_kernels().packed_attention(packed, self.keep).flatten(2)
        out = topk_attention(q, k, v, self.keep, backend)
        return out.transpose(1, 2).reshape(B, T, D)

    def new_state(self, batch: int, context: int) -> KVCache:
        """Room for `context` keys and values."""
        width = self.weight.shape[1] // self.n_heads
        return KVCache(batch, self.n_heads, context, self.weight, width)
