"""The causal convolution as a Triton kernel: each number is read once and written once,
as it lies in memory.

A library's convolution wants zeros in front, which is a copy of everything, and the
channels in another place, which makes its neighbours turn their numbers round. On CUDA,
and in Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 32, 128  # of a tile; the rows before it come from the cache


@triton.jit
def tile_of(T, D, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Bytes and channels of this program's tile, where they lie in (B, T, D), and
    which are there.
    """
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # (ROWS,)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)  # (CHANNELS,)
    # (ROWS, CHANNELS), in 64 bits: a large batch has more than 2^31 numbers
    at = tl.program_id(2).to(tl.int64) * T * D + t[:, None] * D + d[None, :]
    return t, d, at, (t[:, None] < T) & (d[None, :] < D)


@triton.jit
def forward_kernel(
    y,
    weight,
    out,
    T,
    D,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y, out: (B, T, D); weight: (D, WIDTH), the present byte last. Sums in fp32."""
    t, d, at, inside = tile_of(T, D, ROWS, CHANNELS)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for ago in tl.static_range(WIDTH):
        there = inside & (t[:, None] >= ago)  # before the first byte is nothing
        heard = tl.load(y + at - ago * D, mask=there, other=0.0).to(tl.float32)
        tap = tl.load(weight + d * WIDTH + WIDTH - 1 - ago, mask=d < D, other=0.0)
        total += heard * tap.to(tl.float32)[None, :]  # no channel hears another
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    d_out,
    y,
    weight,
    d_y,
    d_weight,
    T,
    D,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """d_y (B, T, D): what a byte gave to those after it comes back from them. And of
    each tile its part of d_weight, (tiles, WIDTH, D) in fp32: programs that add to the
    same place would do it in any order.
    """
    t, d, at, inside = tile_of(T, D, ROWS, CHANNELS)
    # the line of d_weight that is this program's own
    tile = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    now = tl.load(d_out + at, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for ago in tl.static_range(WIDTH):
        column = WIDTH - 1 - ago  # of the weight: the last is the present byte's
        there = inside & (t[:, None] + ago < T)  # after the last byte is nothing
        later = tl.load(d_out + at + ago * D, mask=there, other=0.0).to(tl.float32)
        tap = tl.load(weight + d * WIDTH + column, mask=d < D, other=0.0)
        total += later * tap.to(tl.float32)[None, :]
        there = inside & (t[:, None] >= ago)
        heard = tl.load(y + at - ago * D, mask=there, other=0.0).to(tl.float32)
        part = d_weight + (tile * WIDTH + column) * D + d
        tl.store(part, tl.sum(now * heard, 0), mask=d < D)  # (CHANNELS,)
    tl.store(d_y + at, total.to(d_y.dtype.element_ty), mask=inside)


def grid_of(y: Tensor) -> tuple[int, int, int]:
    """A program for each tile of each sequence of y (B, T, D)."""
    B, T, D = y.shape
    return triton.cdiv(T, ROWS), triton.cdiv(D, CHANNELS), B


@torch.library.custom_op("tilelli::causal_conv", mutates_args=())
def causal_conv(y: Tensor, weight: Tensor) -> Tensor:
    """(B, T, D) and (D, width) -> (B, T, D) in y's type, which may be narrower than the
    weight's.
    """
    y, weight = y.contiguous(), weight.contiguous()
    out = torch.empty_like(y)
    shape = *y.shape[1:], weight.shape[1]  # T, D, WIDTH
    forward_kernel[grid_of(y)](y, weight, out, *shape, ROWS, CHANNELS)
    return out


@torch.library.custom_op("tilelli::causal_conv_backward", mutates_args=())
def backward_op(d_out: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of y and of the weight."""
    d_out, y, weight = d_out.contiguous(), y.contiguous(), weight.contiguous()
    grid, (B, T, D), width = grid_of(y), y.shape, weight.shape[1]
    d_y = torch.empty_like(y)
    parts = y.new_empty(B * grid[0], width, D, dtype=torch.float32)
    backward_kernel[grid](d_out, y, weight, d_y, parts, T, D, width, ROWS, CHANNELS)
    return d_y, parts.sum(0).T.to(weight.dtype).contiguous()  # (D, width)


# for torch.compile, which asks for shapes and types before there are numbers
@causal_conv.register_fake
def _(y: Tensor, weight: Tensor) -> Tensor:
    return y.new_empty(y.shape)


@backward_op.register_fake
def _(d_out: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), weight.new_empty(weight.shape)


def keep_for_backward(ctx, inputs: tuple, output: Tensor) -> None:
    """Autograd's note of a call."""
    ctx.save_for_backward(*inputs)


def backward(ctx, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """Autograd's way from d_out to the gradients of y and weight."""
    return backward_op(d_out, *ctx.saved_tensors)


causal_conv.register_autograd(backward, setup_context=keep_for_backward)
