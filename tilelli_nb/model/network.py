"""The model: bytes in, logits of the next byte out. Six (or four) routed blocks between
two matrices.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import KVCache, TopKAttention
from .conv import CausalConv
from .router import Router
from .ternary import TernaryFFN

IGNORE = -100  # a target that is not predicted


VOCAB = 256


class BlockState(NamedTuple):
    """What the three pathways of one block remember between bytes."""

    conv: Tensor
    attention: KVCache
    ffn: tuple[Tensor, Tensor]

    def restart(self) -> None:
        """Forgets all bytes."""
        self.conv.zero_()
        self.attention.restart()


class RoutedBlock(nn.Module):
    """x + p_conv conv(y) + p_attention attention(y) + p_ffn ffn(y) with y =
    LayerNorm(x) and p = router(y).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.router = Router(config.d_model)
        self.conv = CausalConv(config.d_model, config.conv_width)
        self.attention = TopKAttention(config.d_model, config.n_heads, config.keep)
        self.ffn = TernaryFFN(config.d_model, config.ffn_expand)

    def forward(
        self, x: Tensor, state: BlockState | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> the same, and the router's p (B, T, 3). With a `state`, T bytes
        more, after those that it remembers.
        """
        conv, attention, ffn = state or (None, None, None)
        y = self.norm(x)
        p = self.router(y)
        local = self.conv(y, conv)
        sparse = self.attention(y, attention)
        dense = self.ffn(y, ffn)
        return mix(x, p, local, sparse, dense), p

    def new_state(self, batch: int, context: int) -> BlockState:
        """Room for what the pathways remember of `context` bytes."""
        return BlockState(
            self.conv.new_state(batch),
            self.attention.new_state(batch, context),
            self.ffn.new_state(),
        )


def mix(x: Tensor, p: Tensor, conv: Tensor, attention: Tensor, ffn: Tensor) -> Tensor:
    """The residual and the weighted sum of the pathways, (..., D) each; p is (...,
    3).
    """
    return Mix.apply(x, p, conv, attention, ffn)


class Mix(torch.autograd.Function):
    """x + p_conv * conv + p_attention * attention + p_ffn * ffn, in half as many passes
    over memory as term by term.
    """

    @staticmethod
    def forward(ctx, x: Tensor, p: Tensor, *pathways: Tensor) -> Tensor:
        ctx.save_for_backward(p, *pathways)
        # Never in place: torch.compile of PyTorch 2.11 would lose all gradients here.
        out = x
        for share, pathway in zip(p.split(1, dim=-1), pathways, strict=True):
            out = torch.addcmul(out, share, pathway)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, *pathways = ctx.saved_tensors
        d_shares, d_pathways = [], []
        for share, pathway in zip(p.split(1, dim=-1), pathways, strict=True):
            d_shares.append((grad * pathway).sum(-1, keepdim=True))
            d_pathways.append((share * grad).to(pathway.dtype))
        return grad, torch.cat(d_shares, dim=-1), *d_pathways


class LossTerms(NamedTuple):
    """Sums, so that micro-batches of different sizes add up exactly."""

    nats: Tensor  # cross-entropy, summed over the predicted bytes
    predicted: Tensor  # how many bytes were predicted
    balance: Tensor  # balance loss, averaged over blocks and summed over sequences
    # (blocks, 3): the router's p, averaged over bytes and summed over sequences
    use: Tensor
