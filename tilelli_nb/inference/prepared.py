"""A trained model, prepared for one byte at a time on a CPU: few large operations, and
weights of fewer bytes.
"""

from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, TokenError
from ..model.attention import at_least_fp32, topk_attention
from ..model.ternary import TernaryLinear
from .decoding import Decoder, State

KINDS = ("fp32", "bf16", "int8", "ternary")


HALF = 0.5**0.5  # a half, in two equal parts


class Matrix:
    """A weight matrix (out, in) as a map, y (n, in) -> y @ W^T (n, out), in fp32, or in
    float64 where W is.

    Its longer side lies in one piece in memory: a single row is multiplied by it up to
    twice as fast.
    """

    # up to so many rows are multiplied by the weights as they are stored; more are
    # worth a wide copy of them
    few = 0

    def __init__(self, weight: Tensor) -> None:
        # (in, out)
        self.weight = (
            weight.t().contiguous() if len(weight) > weight.shape[1] else weight.t()
        )

    def __call__(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        return (
            self.narrow(y, out)
            if len(y) <= self.few
            else torch.mm(y, self.wide(), out=out)
        )

    def wide(self) -> Tensor:
        """The weight (in, out) in fp32 or float64."""
        return self.weight


class Bf16Matrix(Matrix):
    """Half the bytes: of each weight the upper 16 bits. Its product is faster the usual
    way round, (out, in).
    """

    few = 3

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def narrow(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """The product in bf16, returned in fp32."""
        product = torch.mm(y.bfloat16(), self.weight.t())
        return product.float() if out is None else out.copy_(product)

    def wide(self) -> Tensor:
        """The weight (in, out) in fp32."""
        return self.weight.float().t()


class Int8Matrix(Matrix):
    """A quarter of the bytes: whole numbers from -127 to 127, and a scale in fp32 for
    each row.
    """

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        # (out, in): what PyTorch's int8 product reads
        self.weight, self.scale = codes, scale
        # PyTorch's int8 product reads 16 numbers at once
        self.few = 0 if codes.shape[1] % 16 else 16
        # it would take the scales, but only in bf16
        self.ones = torch.ones(len(codes), dtype=torch.bfloat16)

    def narrow(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """The product of bf16 inputs with the codes, then the scales in fp32."""
        return torch.mul(
            torch._weight_int8pack_mm(y.bfloat16(), self.weight, self.ones),
            self.scale,
            out=out,
        )

    def wide(self) -> Tensor:
        """The weight (in, out) in fp32."""
        return (self.weight * self.scale[:, None]).t()


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> int8 codes (out, in) and fp32 scales (out,), so that the largest of
    each row becomes 127.
    """
    scale = (at_least_fp32(weight).abs().amax(1) / 127).clamp(
        min=torch.finfo(torch.float32).tiny
    )
    return (weight / scale[:, None]).round().to(torch.int8), scale.float()


def fuse(weights: str, *parts: Tensor | TernaryLinear) -> Matrix:
    """One matrix from several with the same input, on top of each other. "ternary"
    keeps the codes as they are.

    Ternary parts are times 1 / sqrt 2: see PreparedBlock.
    """
    if weights in ("fp32", "bf16"):
        whole = torch.cat([at_least_fp32(dense(part)) for part in parts])
        return Bf16Matrix(whole.bfloat16()) if weights == "bf16" else Matrix(whole)
    codes, scales = [], []
    for part in parts:
        is_kept = isinstance(part, TernaryLinear) and weights == "ternary"
        found, scale = part.codes() if is_kept else int8_rows(dense(part))
        codes.append(found.to(torch.int8))
        scales.append((scale * HALF if is_kept else scale).float().expand(len(found)))
    return Int8Matrix(torch.cat(codes), torch.cat(scales))


def dense(part: Tensor | TernaryLinear) -> Tensor:
    """The numbers that are multiplied by."""
    return part.ternary_weight() * HALF if isinstance(part, TernaryLinear) else part


class PreparedBlock:
    """A routed block as two products: one makes q, k, v, the FFN's inside and the
    router's logits, one is FFN-down.

    gelu(x) = x (1 + erf(x / sqrt 2)) / 2 is (u + u erf u) / sqrt 2 with u = x / sqrt 2:
    both matrices of the FFN take a 1 / sqrt 2, and what is left between them is two
    cheap operations.
    """

    def __init__(self, block: Any, weights: str, dtype: torch.dtype) -> None:
        self.norm = (
            *(w.to(dtype, copy=True) for w in (block.norm.weight, block.norm.bias)),
            block.norm.eps,
        )
        # (width, 1, D): i acts i bytes later
        self.taps = block.conv.weight.to(dtype).t().flip(0)[:, None].contiguous()
        q, k, v = block.attention.weight.chunk(3)
        # of the scores, once and for all
        scale = (len(q) // block.attention.n_heads) ** -0.5
        self.into = fuse(
            weights, torch.cat([q * scale, k, v]), block.ffn.up, block.router.weight
        )
        self.down = fuse(weights, block.ffn.down)


class Memory:
    """What all blocks remember of `rows` texts, and room to work in. Nothing here
    grows: a step writes into it.
    """

    @torch.inference_mode()
    def __init__(self, model: "Prepared", rows: int) -> None:
        c, zeros = model.config.model, partial(torch.zeros, dtype=model.dtype)
        D, H = c.d_model, c.n_heads
        self.keys = zeros(c.n_blocks, rows, H, D // H, c.context)
        self.values = zeros(c.n_blocks, rows, H, c.context, D // H)
        # the sums so far, of now and later
        self.conv = zeros(c.n_blocks, c.context + c.conv_width - 1, rows, D)
        self.p = zeros(c.n_blocks, rows, 1, 3)  # the router's p at the latest byte
        self.x, self.z, self.paths = (
            zeros(rows, D),
            zeros(rows, sum(model.split)),
            zeros(3, rows, D),
        )
        q, k, v, self.u, router = self.z.split(model.split, dim=1)
        self.q, self.k, self.v = (part.view(rows, H, D // H) for part in (q, k, v))
        # q of a single text, as its product wants it
        self.one = self.q.view(H, 1, D // H) if rows == 1 else None
        self.router, self.x3, self.mixed = (
            router[:, None],
            self.x[:, None],
            self.paths.transpose(0, 1),
        )
        self.conv_now, attended, self.ffn = self.paths
        self.attended = attended.view(rows * H, 1, D // H)
        whole = (
            self.keys.flatten(1, 2),
            self.values.flatten(1, 2),
            self.keys,
            self.values,
            self.conv,
            self.p,
        )
        self.views, self.whole = {}, [each.unbind(0) for each in whole]

    def at(self, t: int) -> list[tuple[Tensor, ...]]:
        """The views that a step at position t needs, block by block; kept, because a
        re-read window comes back to t.
        """
        if t not in self.views:
            width = self.conv.shape[1] - self.keys.shape[-1] + 1
            self.views[t] = [
                (
                    keys[..., : t + 1],
                    values[:, : t + 1],
                    key[..., t],
                    value[..., t, :],
                    sums[t : t + width],
                    sums[t],
                    p,
                )
                for keys, values, key, value, sums, p in zip(*self.whole, strict=True)
            ]
        return self.views[t]


class Prepared(Decoder):
    """A routed model for inference alone, made by `prepare`. It answers as the model
    does, sooner.

    In inference mode PyTorch notes nothing for a backward pass, which is a fifth of the
    time of a small operation.
    """

    device = torch.device("cpu")

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
        lm = lm if lm.device.type == "cpu" else deepcopy(lm).cpu()
        self.config, self.weights = lm.config, weights
        self.sampling_defaults = dict(lm.sampling_defaults)
        c, is_double = (
            lm.config.model,
            weights == "fp32" and lm.token.weight.dtype == torch.float64,
        )
        self.dtype = torch.float64 if is_double else torch.float32
        self.split = [c.d_model] * 3 + [c.ffn_expand * c.d_model, 3]
        self.token, self.position = (
            table.weight.to(self.dtype, copy=True) for table in (lm.token, lm.position)
        )
        self.positions = self.position.unbind(0)
        self.blocks = [PreparedBlock(block, weights, self.dtype) for block in lm.blocks]
        self.norm = (
            *(w.to(self.dtype, copy=True) for w in (lm.norm.weight, lm.norm.bias)),
            lm.norm.eps,
        )
        self.output = fuse(weights, lm.output.weight)

    def new_state(self, batch: int = 1) -> State:
        """An empty memory for `step`. `state.blocks.p` (blocks, B, 1, 3) is the
        router's p at the latest step.
        """
        return State(
            Memory(self, batch),
            torch.zeros(batch, self.config.model.context, dtype=torch.long),
        )

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """x (B, T) long -> logits (B, T, 256). Raises TokenError for more bytes than
        the context has.
        """
        if x.shape[1] > self.config.model.context:
            raise TokenError(
                f"{x.shape[1]} bytes at once, but the model sees {self.config.model.context}",
                "pass fewer, or use generate() and score(), which move the window along",
            )
        h, _ = self.hidden(x)
        return self.logits(h.flatten(0, 1)).view(*x.shape, -1)

    @torch.inference_mode()
    def logits(self, h: Tensor) -> Tensor:
        """(n, D) -> (n, 256)."""
        return self.output(F.layer_norm(h, h.shape[-1:], *self.norm))

    def step_blocks(self, x_t: Tensor, position: int, memory: Memory) -> Tensor:
        """One byte through all the blocks: (B,) -> logits (B, 256)."""
        m, c, size = memory, self.config.model, (self.config.model.d_model,)
        shape = (-1, 1, c.d_model // c.n_heads)
        x = torch.add(
            self.token.index_select(0, x_t), self.positions[position], out=m.x
        )
        for block, (keys, values, key, value, sums, conv, p) in zip(
            self.blocks, m.at(position), strict=True
        ):
            y = torch.layer_norm(x, size, *block.norm)
            # q, k, v, u and the router's logits, of which m has views
            block.into(y, out=m.z)
            torch.softmax(m.router, -1, out=p)
            # this byte's part of the convolution, now and at the next four
            sums.addcmul_(block.taps, y)
            m.conv_now.copy_(conv)
            key.copy_(m.k)
            value.copy_(m.v)
            q = m.q.reshape(shape) if m.one is None else m.one
            scores = torch.bmm(q, keys)  # (B * H, 1, position + 1)
            if position >= c.keep:
                kth = scores.topk(c.keep).values[..., -1:]
                scores.masked_fill_(scores < kth, -torch.inf)
            torch.bmm(scores.softmax(-1), values, out=m.attended)
            block.down(torch.addcmul(m.u, m.u, m.u.erf()), out=m.ffn)
            # the residual, and the three paths, each times its p
            m.x3.baddbmm_(p, m.mixed)
        return self.output(torch.layer_norm(x, size, *self.norm))

    @torch.inference_mode()
    def hidden(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, None]:
        """Bytes (B, T) from position 0, all at once -> the last block's output (B, T,
        D). Leaves all in `memory`.
        """
        B, T = x.shape
        c, D = self.config.model, self.config.model.d_model
        h = F.embedding(x, self.token) + self.position[:T]
        for i, block in enumerate(self.blocks):
            y = F.layer_norm(h, (D,), *block.norm)
            *qkv, u, router = block.into(y.flatten(0, 1)).split(self.split, dim=1)
            q, k, v = (part.view(B, T, c.n_heads, -1).transpose(1, 2) for part in qkv)
            p = router.softmax(-1).view(B, T, 1, 3)
            conv = y.new_zeros(B, T + len(block.taps) - 1, D)
            for delay, tap in enumerate(block.taps):
                conv[:, delay : delay + T].addcmul_(y, tap)
            if memory is not None:
                memory.keys[i, ..., :T], memory.values[i, :, :, :T] = (
                    k.transpose(2, 3),
                    v,
                )
                memory.conv[i] = F.pad(conv, (0, 0, 0, c.context - T)).transpose(0, 1)
                memory.p[i] = p[:, -1]
            attended = (
                topk_attention(q * q.shape[-1] ** 0.5, k, v, c.keep)
                .transpose(1, 2)
                .reshape(B, T, D)
            )
            paths = torch.stack(
                [
                    conv[:, :T],
                    attended,
                    block.down(torch.addcmul(u, u, u.erf())).view(B, T, D),
                ],
                dim=2,
            )
            h = h + (p @ paths)[:, :, 0]
        return h, None


class Kept:
    """The fp32 form of one model, for its own `generate`: made when it is first asked
    for, and again when a weight is not what it was.

    It lies inside the model, but a copy or a pickle of the model begins without it.
    """

    def __init__(self) -> None:
        self.made: tuple[Any, Prepared] | None = None  # of which weights, and the form

    def __reduce__(self) -> tuple:
        """How to copy or pickle it: make an empty one."""
        return Kept, ()

    def of(self, lm: Any) -> Prepared:
        """The prepared form of `lm` as its weights are now."""
        now = fingerprint(lm)
        if self.made is None or self.made[0] != now:
            self.made = now, Prepared(lm, "fp32")
        return self.made[1]


@torch.inference_mode()
def fingerprint(lm: Any) -> tuple[Any, bytes]:
    """What changes when a weight of `lm` (fp32, on the CPU) does: where each lies, how
    often PyTorch has seen it written to, and its products with one fixed vector.

    PyTorch does not count what is written through `weight.data`: the products see that
    too. They read every weight once, which takes about as long as writing one byte.
    """
    weights = [weight.detach() for weight in lm.parameters()]
    # None: a weight that was made in inference mode is not counted at all
    seen = [
        (w.data_ptr(), None if w.is_inference() else w._version)
        for w in lm.parameters()
    ]
    widest = max(w.shape[-1] for w in weights)
    # no two numbers alike, so that weights that change places are noticed
    probe = torch.arange(1, widest + 1, dtype=torch.float32).cos()
    products = [w.view(-1, w.shape[-1]) @ probe[: w.shape[-1]] for w in weights]
    # as bytes: NaN is not equal to itself
    return seen, torch.cat(products).numpy().tobytes()
