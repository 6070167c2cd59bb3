"""The yardstick: a block of the usual pre-norm transformer, for the bytes, trainer and
decoder of the routed one.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KeyValues
from .config import ModelConfig


class DenseAttention(nn.Module):
    """Multi-head causal attention over every visible key, with an output projection.
    After Vaswani et al. 2017, arXiv:1706.03762."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, y: Tensor, state: KeyValues | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). With a `state`, leaves keys and values in it for
        `step`.
        """
        B, T, D = y.shape
        q, k, v = (
            self.qkv(y)
            .view(B, T, 3, self.n_heads, D // self.n_heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        if state is not None:
            state.k[:, :, :T], state.v[:, :, :T], state.length = k, v, T
        # (B, H, T, D_h)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(heads.transpose(1, 2).reshape(B, T, D))

    def new_state(self, batch: int, context: int) -> KeyValues:
        """Room for `context` keys and values."""
        shape = (batch, self.n_heads, context, self.out.weight.shape[0] // self.n_heads)
        return KeyValues(
            self.out.weight.new_zeros(shape), self.out.weight.new_zeros(shape)
        )

    def step(self, y_t: Tensor, state: KeyValues) -> Tensor:
        """One byte: (B, D) -> (B, D) against the remembered keys. Appends to
        `state`.
        """
        B, D = y_t.shape
        # (B, H, 1, D_h)
        q, k, v = self.qkv(y_t).view(B, 3, self.n_heads, 1, D // self.n_heads).unbind(1)
        t = state.length
        state.k[:, :, t : t + 1], state.v[:, :, t : t + 1], state.length = k, v, t + 1
        heads = F.scaled_dot_product_attention(
            q, state.k[:, :, : t + 1], state.v[:, :, : t + 1]
        )
        return self.out(heads.reshape(B, D))


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

    def forward(self, x: Tensor, state: KeyValues | None = None) -> tuple[Tensor, None]:
        """(B, T, D) -> the same."""
        x = x + self.attention(self.attention_norm(x), state)
        return x + self.ffn(self.ffn_norm(x)), None

    def new_state(self, batch: int, context: int) -> KeyValues:
        """Room for the keys and values of a window."""
        return self.attention.new_state(batch, context)

    def step(self, x_t: Tensor, state: KeyValues) -> tuple[Tensor, None]:
        """One byte: (B, D) -> (B, D). Updates `state` in place."""
        x_t = x_t + self.attention.step(self.attention_norm(x_t), state)
        return x_t + self.ffn(self.ffn_norm(x_t)), None
