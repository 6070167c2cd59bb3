"""The yardstick: a block of the usual pre-norm transformer, for the bytes, trainer and
decoder of the routed one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import KVCache


class DenseAttention(nn.Module):
    """Multi-head causal attention over every visible key, with an output projection.
    After Vaswani et al. 2017, arXiv:1706.03762."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, y: Tensor, state: KVCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). With a `state`, T bytes more: they also see the bytes
        before them, whose keys and values it holds, and leave their own there.
        """
        B, T, D = y.shape
        heads = (B, T, self.n_heads, D // self.n_heads)
        parts = self.qkv(y).chunk(3, dim=-1)  # (B, T, D) each
        q, k, v = (part.view(heads).transpose(1, 2) for part in parts)  # (B, H, T, D_h)
        # PyTorch's own attention: fused, and exact over all visible keys.
        if state is None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = state.append(k, v)  # (B, H, all bytes so far, D_h)
            seen = torch.ones(T, k.shape[2], dtype=torch.bool, device=y.device)
            seen = seen.tril(k.shape[2] - T)  # the last query sees all keys
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        joined = out.transpose(1, 2).reshape(B, T, D)  # the heads side by side
        return self.out(joined)

    def new_state(self, batch: int, context: int) -> KVCache:
        """Room for `context` keys and values."""
        width = self.out.weight.shape[0] // self.n_heads
        return KVCache(batch, self.n_heads, context, self.out.weight, width)


class DenseFFN(nn.Module):
    """Up to expand * D, exact GELU, down to D, with ordinary weights."""

    def __init__(self, d_model: int, expand: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, expand * d_model, bias=False)
        self.down = nn.Linear(expand * d_model, d_model, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down(F.gelu(self.up(y)))


class VanillaBlock(nn.Module):
    """x + attention(LayerNorm(x)), then x + ffn(LayerNorm(x)): two steps in a row where
    the routed block has one.

    It has the methods of `RoutedBlock`, and None where that returns the router's p.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.attention = DenseAttention(config.d_model, config.n_heads)
        self.ffn_norm = nn.LayerNorm(config.d_model)
        self.ffn = DenseFFN(config.d_model, config.ffn_expand)

    def forward(self, x: Tensor, state: KVCache | None = None) -> tuple[Tensor, None]:
        """(B, T, D) -> the same."""
        # Each part reads what the one before it has added.
        x = x + self.attention(self.attention_norm(x), state)
        return x + self.ffn(self.ffn_norm(x)), None

    def new_state(self, batch: int, context: int) -> KVCache:
        """Room for the keys and values of a window."""
        return self.attention.new_state(batch, context)
