"""A trained model, prepared for one byte at a time on a CPU: few large operations, and
weights of fewer bytes.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import ConfigError
from ..model.attention import at_least_fp32, topk_attention
from ..model.network import check_tokens
from ..model.ternary import TernaryLinear
from .chatting import Talker
from .decoding import DecodeState

KINDS = ("fp32", "bf16", "int8", "ternary")

SQRT_HALF = 0.5**0.5  # 1 / sqrt 2: two factors of it make a half
CPU = torch.device("cpu")  # whatever the default device is


def without_autocast(method: Callable) -> Callable:
    """Makes a method compute as it does outside autocast: these weights have their
    precision already, and another one would be mixed in.
    """

    @wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # to ask takes a hundredth of the time of a switch
        if not torch.is_autocast_enabled("cpu"):
            return method(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return method(*args, **kwargs)

    return wrapper


# Matrices


class Matrix:
    """A weight matrix (out, in) as a map, y (n, in) -> y @ W^T (n, out), in fp32, or in
    float64 where W is.

    Its longer side lies in one piece in memory: a single row is multiplied by it up to
    twice as fast.
    """

    # Up to so many rows are multiplied by the weights as they are stored. For more it
    # pays to make a copy of the weights in full precision first.
    max_rows_as_stored = 0

    def __init__(self, weight: Tensor) -> None:
        d_out, d_in = weight.shape
        weight = weight.t()  # (in, out)
        self.weight = weight.contiguous() if d_out > d_in else weight

    def __call__(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, in) -> (n, out), written to `out` where that is given."""
        if len(y) <= self.max_rows_as_stored:
            return self.multiply_as_stored(y, out)
        return torch.mm(y, self.full_weight(), out=out)

    def full_weight(self) -> Tensor:
        """Returns the weight (in, out) in fp32 or float64."""
        return self.weight


class Bf16Matrix(Matrix):
    """Half the bytes: of each weight the upper 16 bits. Its product is faster the usual
    way round, (out, in).
    """

    max_rows_as_stored = 3

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def multiply_as_stored(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiplies in bf16, and returns fp32."""
        product = torch.mm(y.bfloat16(), self.weight.t())
        return product.float() if out is None else out.copy_(product)

    def full_weight(self) -> Tensor:
        """Makes the weight (in, out) in fp32."""
        return self.weight.float().t()


class Int8Matrix(Matrix):
    """A quarter of the bytes: whole numbers from -127 to 127, and a scale in fp32 for
    each row.
    """

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        # codes (out, in), scale (out,): what PyTorch's int8 product reads
        self.weight, self.scale = codes, scale
        # it reads 16 numbers at once
        self.max_rows_as_stored = 16 if codes.shape[1] % 16 == 0 else 0
        # and it would take the scales, but only in bf16
        self.ones = torch.ones(len(codes), dtype=torch.bfloat16, device=CPU)

    def multiply_as_stored(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """Multiplies y in bf16 by the codes, then by the scales in fp32."""
        product = torch._weight_int8pack_mm(y.bfloat16(), self.weight, self.ones)
        return torch.mul(product, self.scale, out=out)

    def full_weight(self) -> Tensor:
        """Makes the weight (in, out) in fp32."""
        return (self.weight * self.scale[:, None]).t()


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> int8 codes (out, in) and fp32 scales (out,), so that the largest of
    each row becomes 127.
    """
    largest = at_least_fp32(weight).abs().amax(1)
    # a row of zeros would be divided by zero
    scale = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (weight / scale[:, None]).round().to(torch.int8)
    return codes, scale.float()


def fuse(weights: str, *parts: Tensor | TernaryLinear) -> Matrix:
    """Makes one matrix from several with the same input, one below the other. "ternary"
    keeps the codes of ternary parts as they are.

    Ternary parts are times 1 / sqrt 2: see PreparedBlock.
    """
    if weights in ("fp32", "bf16"):
        whole = torch.cat([at_least_fp32(used_weight(part)) for part in parts])
        return Bf16Matrix(whole.bfloat16()) if weights == "bf16" else Matrix(whole)
    all_codes, all_scales = [], []
    for part in parts:
        if weights == "ternary" and isinstance(part, TernaryLinear):
            codes, scale = part.codes()
            scale = scale * SQRT_HALF  # one for the whole matrix
        else:
            codes, scale = int8_rows(used_weight(part))
        all_codes.append(codes.to(torch.int8))
        all_scales.append(scale.float().expand(len(codes)))
    return Int8Matrix(torch.cat(all_codes), torch.cat(all_scales))


def used_weight(part: Tensor | TernaryLinear) -> Tensor:
    """Returns the numbers that are multiplied by, (out, in)."""
    if isinstance(part, TernaryLinear):
        return part.ternary_weight() * SQRT_HALF
    return part


# The model


class PreparedNorm:
    """A LayerNorm, copied: (..., D) -> the same."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        self.weight = norm.weight.to(dtype, copy=True)
        self.bias = norm.bias.to(dtype, copy=True)
        self.size, self.eps = norm.normalized_shape, norm.eps

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.size, self.weight, self.bias, self.eps)


class PreparedBlock:
    """A routed block as two products: `fused` makes q, k, v, the FFN's inside and the
    router's logits, `down` is the FFN's second matrix.

    gelu(x) = x (1 + erf(x / sqrt 2)) / 2 is (u + u erf u) / sqrt 2 with u = x / sqrt 2:
    both matrices of the FFN take a 1 / sqrt 2, and what is left between them is two
    cheap operations.
    """

    def __init__(self, block: Any, weights: str, dtype: torch.dtype) -> None:
        self.norm = PreparedNorm(block.norm, dtype)
        # (width, 1, D): tap i acts i bytes later, so the present byte's comes first
        taps = block.conv.weight.to(dtype).t().flip(0)
        self.taps = taps[:, None].contiguous()
        q, k, v = block.attention.weight.chunk(3)
        # the scores are divided by sqrt(D_h): q's rows are, once and for all
        head_size = len(q) // block.attention.n_heads
        qkv = torch.cat([q * head_size**-0.5, k, v])
        self.fused = fuse(weights, qkv, block.ffn.up, block.router.weight)
        self.down = fuse(weights, block.ffn.down)
        self.keep = block.attention.keep  # of this block: somebody may have set another


class BlockMemory(NamedTuple):
    """What one block remembers of B texts: views of the tensors of a FastCache."""

    keys: Tensor  # (B, H, D_h, context), as the product with q wants them
    values: Tensor  # (B, H, context, D_h)
    all_keys: Tensor  # (B * H, D_h, context), the same keys for one product
    all_values: Tensor  # (B * H, context, D_h)
    conv: Tensor  # (context + width - 1, B, D), sums so far of now and later
    p: Tensor  # (B, 1, 3), the router's choice at the latest byte


class BlockViews(NamedTuple):
    """The part of a BlockMemory that a step at one position reads and writes."""

    keys: Tensor  # (B * H, D_h, position + 1)
    values: Tensor  # (B * H, position + 1, D_h)
    new_key: Tensor  # (B, H, D_h), the last of the keys
    new_value: Tensor  # (B, H, D_h), the last of the values
    conv_sums: Tensor  # (width, B, D), of this byte and those after it
    conv_now: Tensor  # (B, D), the first of them: complete with this byte
    p: Tensor  # (B, 1, 3)


class FastCache:
    """What all blocks remember of `rows` texts (B), made once and written into: nothing
    here grows.
    """

    @torch.inference_mode()
    def __init__(self, c: ModelConfig, rows: int, dtype: torch.dtype) -> None:
        head_size = c.d_model // c.n_heads
        heads = (c.n_blocks, rows, c.n_heads)
        kind = {"dtype": dtype, "device": CPU}
        self.keys = torch.zeros(*heads, head_size, c.context, **kind)
        self.values = torch.zeros(*heads, c.context, head_size, **kind)
        # The convolution works ahead: each byte adds its part to the sums of itself and
        # of the width - 1 bytes after it.
        self.conv_width = c.conv_width
        sums = c.context + c.conv_width - 1
        self.conv = torch.zeros(c.n_blocks, sums, rows, c.d_model, **kind)
        self.p = torch.zeros(c.n_blocks, rows, 1, 3, **kind)
        self.blocks = []
        for i in range(c.n_blocks):
            memory = BlockMemory(
                keys=self.keys[i],
                values=self.values[i],
                all_keys=self.keys[i].flatten(0, 1),
                all_values=self.values[i].flatten(0, 1),
                conv=self.conv[i],
                p=self.p[i],
            )
            self.blocks.append(memory)
        self.work = Workspace(c, rows, dtype)
        self.views: dict[int, list[BlockViews]] = {}

    def at(self, position: int) -> list[BlockViews]:
        """Returns what a step at this position needs, for each block. Views are kept,
        because a window that is read again comes back to the same positions.
        """
        if position not in self.views:
            self.views[position] = []
            length = position + 1
            for memory in self.blocks:
                views = BlockViews(
                    keys=memory.all_keys.narrow(2, 0, length),
                    values=memory.all_values.narrow(1, 0, length),
                    new_key=memory.keys.select(3, position),
                    new_value=memory.values.select(2, position),
                    conv_sums=memory.conv.narrow(0, position, self.conv_width),
                    conv_now=memory.conv.select(0, position),
                    p=memory.p,
                )
                self.views[position].append(views)
        return self.views[position]


class Workspace:
    """Room for what a step computes and nobody remembers; the blocks take turns."""

    def __init__(self, c: ModelConfig, rows: int, dtype: torch.dtype) -> None:
        width, heads = c.d_model, c.n_heads
        head_size = width // heads
        kind = {"dtype": dtype, "device": CPU}
        self.x = torch.zeros(rows, width, **kind)  # the residual stream
        # The fused product, and views of its five parts.
        sizes = fused_sizes(c)
        self.fused = torch.zeros(rows, sum(sizes), **kind)
        q, k, v, self.u, router = self.fused.split(sizes, dim=1)
        self.q = q.view(rows, heads, head_size)
        self.k = k.view(rows, heads, head_size)
        self.v = v.view(rows, heads, head_size)
        self.router = router[:, None]  # (B, 1, 3)
        # What the three pathways say, and views of each.
        paths = torch.zeros(3, rows, width, **kind)
        self.conv, attended, self.ffn = paths
        self.attended = attended.view(rows * heads, 1, head_size)
        # Only the heads of a single text lie as a product with the keys wants them.
        self.q_alone = self.q.view(heads, 1, head_size) if rows == 1 else None
        # They are mixed row by row: (B, 1, 3) times (B, 3, D) is added to x.
        self.paths_by_row = paths.transpose(0, 1)
        self.x_by_row = self.x[:, None]  # (B, 1, D)

    def q_by_head(self) -> Tensor:
        """Returns q as its product with the keys wants it, (B * H, 1, D_h)."""
        if self.q_alone is not None:
            return self.q_alone
        return self.q.reshape(self.attended.shape)


def fused_sizes(c: ModelConfig) -> list[int]:
    """How many numbers the fused product makes of q, k, v, the FFN's inside (u) and the
    router's logits.
    """
    return [c.d_model, c.d_model, c.d_model, c.ffn_expand * c.d_model, 3]


class Prepared(Talker):
    """A routed model for inference alone, made by `prepare`. It answers as the model
    does, sooner.

    In inference mode PyTorch notes nothing for a backward pass, which is a fifth of the
    time of a small operation.
    """

    device = CPU

    @without_autocast
    @torch.inference_mode()
    def __init__(self, lm: Any, weights: str) -> None:
        if weights not in KINDS:
            raise ConfigError(
                f"weights = {weights!r}", f"use one of {', '.join(KINDS)}"
            )
        if lm.config.model.block != "routed":
            raise ConfigError(
                f"a model of {lm.config.model.block} blocks cannot be prepared",
                "use it as it is: generate() and score() work without prepare()",
            )
        if lm.output.bias is not None:  # somebody has given it one
            raise ConfigError(
                "a model whose output has a bias cannot be prepared",
                "use it as it is: generate() and score() work without prepare()",
            )
        if lm.device.type != "cpu":
            lm = deepcopy(lm).cpu()
        self.config, self.weights = lm.config, weights
        self.sampling_defaults = dict(lm.sampling_defaults)
        is_double = weights == "fp32" and lm.token.weight.dtype == torch.float64
        self.dtype = torch.float64 if is_double else torch.float32
        self.token = lm.token.weight.to(self.dtype, copy=True)
        self.position = lm.position.weight.to(self.dtype, copy=True)
        self.positions = self.position.unbind(0)  # its rows
        self.blocks = [PreparedBlock(block, weights, self.dtype) for block in lm.blocks]
        self.norm = PreparedNorm(lm.norm, self.dtype)
        self.output = fuse(weights, lm.output.weight)

    def new_state(self, batch: int = 1) -> DecodeState:
        """Makes an empty memory for `step`. `state.blocks.p` (blocks, B, 1, 3) is the
        router's p at the latest step.
        """
        model = self.config.model
        cache = FastCache(model, batch, self.dtype)
        window = torch.zeros(batch, model.context, dtype=torch.long, device=CPU)
        return DecodeState(cache, window)

    @without_autocast
    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """x (B, T) long -> logits (B, T, 256). Raises TokenError for more bytes than
        the context has, and for what is no byte.
        """
        check_tokens(x, self.config.model.context)
        h, _ = self.hidden(x)
        return self.logits(h.flatten(0, 1)).view(*x.shape, -1)

    @without_autocast
    @torch.inference_mode()
    def logits(self, h: Tensor) -> Tensor:
        """(n, D) -> (n, 256)."""
        return self.output(self.norm(h))

    @without_autocast
    def step_blocks(self, x_t: Tensor, position: int, cache: FastCache) -> Tensor:
        """Reads one byte through all the blocks: (B,) -> logits (B, 256)."""
        work = cache.work
        byte = self.token.index_select(0, x_t)  # (B, D)
        x = torch.add(byte, self.positions[position], out=work.x)
        for block, views in zip(self.blocks, cache.at(position), strict=True):
            y = block.norm(x)
            # q, k, v, u and the router's logits, of which `work` has views
            block.fused(y, out=work.fused)
            torch.softmax(work.router, -1, out=views.p)
            # local: this byte's part of the sums, now and at the next four
            views.conv_sums.addcmul_(block.taps, y)
            work.conv.copy_(views.conv_now)
            # sparse: remember the key and the value, then look at all of them
            views.new_key.copy_(work.k)
            views.new_value.copy_(work.v)
            q = work.q_by_head()  # (B * H, 1, D_h)
            scores = torch.bmm(q, views.keys)  # (B * H, 1, position + 1)
            if position >= block.keep:
                kth = scores.topk(block.keep).values[..., -1:]
                scores.masked_fill_(scores < kth, -torch.inf)
            torch.bmm(scores.softmax(-1), views.values, out=work.attended)
            # dense: the GELU's two operations, and the way down
            inside = torch.addcmul(work.u, work.u, work.u.erf())
            block.down(inside, out=work.ffn)
            # x += p_conv * conv + p_attention * attended + p_ffn * ffn
            work.x_by_row.baddbmm_(views.p, work.paths_by_row)
        return self.output(self.norm(x))

    @without_autocast
    @torch.inference_mode()
    def hidden(self, x: Tensor, cache: FastCache | None = None) -> tuple[Tensor, None]:
        """Reads bytes (B, T) from position 0, all at once -> the last block's output
        (B, T, D). Leaves in `cache` what T steps would.
        """
        c = self.config.model
        B, T = x.shape
        heads = (B, T, c.n_heads, c.d_model // c.n_heads)
        sizes = fused_sizes(c)
        h = F.embedding(x, self.token) + self.position[:T]  # (B, T, D)
        for i, block in enumerate(self.blocks):
            y = block.norm(h)
            fused = block.fused(y.flatten(0, 1))  # (B * T, all five)
            q, k, v, u, router = fused.split(sizes, dim=1)
            q, k, v = (part.view(heads).transpose(1, 2) for part in (q, k, v))
            p = router.softmax(-1).view(B, T, 1, 3)
            sums = conv_sums(y, block.taps)  # (B, T + width - 1, D)
            if cache is not None:
                cache.keys[i, ..., :T] = k.mT
                cache.values[i, :, :, :T] = v
                unread = c.context - T  # positions whose sums are still empty
                cache.conv[i] = F.pad(sums, (0, 0, 0, unread)).transpose(0, 1)
                cache.p[i] = p[:, -1]
            # topk_attention divides by sqrt(D_h), and these q have been divided
            attended = topk_attention(q * q.shape[-1] ** 0.5, k, v, block.keep)
            attended = attended.transpose(1, 2).reshape(B, T, c.d_model)
            ffn = block.down(torch.addcmul(u, u, u.erf())).view(B, T, c.d_model)
            paths = torch.stack([sums[:, :T], attended, ffn], dim=2)  # (B, T, 3, D)
            h = h + (p @ paths).squeeze(2)
        return h, None


def conv_sums(y: Tensor, taps: Tensor) -> Tensor:
    """Adds each byte's part of the convolution to itself and the bytes after it: y
    (B, T, D) and taps (width, 1, D) -> (B, T + width - 1, D).
    """
    B, T, D = y.shape
    sums = y.new_zeros(B, T + len(taps) - 1, D)
    for delay, tap in enumerate(taps):
        sums[:, delay : delay + T].addcmul_(y, tap)
    return sums
