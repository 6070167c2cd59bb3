"""Pathway 3: a feed-forward layer whose weights are -1, 0 or +1 times one scale."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError

SMALLEST_SCALE = 1e-5  # keeps a matrix of zeros from dividing by zero
# Five digits to base three fit into a byte: 3^5 = 243 <= 256.
POWERS = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device="cpu")


def ternarize(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, 1} (shape and dtype of w) and the scale alpha = mean|w|, a
    scalar, so that w is roughly alpha * codes.

    Rounding is half to even; the scale is computed in fp32 or better. After Ma et al.
    2024, arXiv:2402.17764.
    """
    exact = w.to(torch.promote_types(w.dtype, torch.float32))
    scale = exact.abs().mean().clamp(min=SMALLEST_SCALE)
    codes = (exact / scale).round().clamp(-1, 1)
    return codes.to(w.dtype), scale


class StraightThrough(torch.autograd.Function):
    """Forward: the ternary weight. Backward: the gradient of the ternary weight, handed
    to the latent one unchanged.
    """

    @staticmethod
    def forward(ctx, w: Tensor) -> Tensor:
        codes, scale = ternarize(w)
        return codes * scale

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad  # as if rounding were not there


class TernaryLinear(nn.Module):
    """A linear map without bias that multiplies by alpha * codes and trains the latent
    weight (out, in) behind them.
    """

    # True where `weight` came from a packed file: it is alpha * codes already, and to
    # round it again would give another alpha.
    packed = False

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))

    def codes(self) -> tuple[Tensor, Tensor]:
        """Codes (out, in) and the scale alpha, without a gradient."""
        weight = self.weight.detach()
        if self.packed:
            return weight.sign(), weight.abs().max()
        return ternarize(weight)

    def ternary_weight(self) -> Tensor:
        """The weight that is used, (out, in): never more than three different
        values.
        """
        if self.packed:
            return self.weight
        with torch.autocast(self.weight.device.type, enabled=False):
            return StraightThrough.apply(self.weight)

    def forward(self, y: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(y, self.ternary_weight())

    def zero_share(self) -> float:
        """Share of the codes that are 0."""
        codes, _ = self.codes()
        return (codes == 0).float().mean().item()


class TernaryFFN(nn.Module):
    """Ternary up to expand * D, exact GELU, ternary down to D. It sees one byte at a
    time.
    """

    def __init__(self, d_model: int, expand: int = 4) -> None:
        super().__init__()
        self.up = TernaryLinear(d_model, expand * d_model)
        self.down = TernaryLinear(expand * d_model, d_model)

    def forward(self, y: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). A `state` spares the rounding of the weights."""
        up, down = state or self.new_state()
        inside = F.gelu(F.linear(y, up))  # (B, T, expand * D)
        return F.linear(inside, down)

    def new_state(self) -> tuple[Tensor, Tensor]:
        """The two ternary weights, made once. No byte leaves anything behind."""
        return self.up.ternary_weight(), self.down.ternary_weight()


def pack(codes: Tensor) -> Tensor:
    """Codes of any shape, row by row -> uint8, five to a byte: the first code lowest,
    each as the digit code + 1.

    The last byte is filled up with code 0. Raises CheckpointError for a value that is
    no code. Keep the scale beside the bytes: ternarizing scale * codes again would give
    a smaller one.
    """
    flat = codes.reshape(-1)
    if not ((flat == -1) | (flat == 0) | (flat == 1)).all():
        raise CheckpointError(
            "pack() was given a value other than -1, 0 and 1",
            "give it the codes of ternarize(w)",
        )
    digits = flat.to(torch.int8) + 1  # 0, 1 or 2
    missing = -len(flat) % 5
    digits = F.pad(digits, (0, missing), value=1).to(torch.uint8).view(-1, 5)
    values = digits * POWERS.to(codes.device)
    return values.sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: int | Sequence[int]) -> Tensor:
    """The inverse: the bytes, and how many codes or in which shape -> int8 codes.
    Raises CheckpointError.
    """
    count = shape if isinstance(shape, int) else math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count + 4) // 5:
        raise CheckpointError(
            f"{packed.numel()} values of {packed.dtype} are not {count} codes, "
            "five to a byte",
            "give the bytes that pack() made and the shape of the codes they were made "
            "from",
        )
    if (packed >= 3**5).any():
        raise CheckpointError(
            f"a byte of {int(packed.max())} holds no five codes: 242 is the largest "
            "that does",
            "the packed weights are damaged, or are something else: copy them again",
        )
    digits = packed.reshape(-1, 1) // POWERS.to(packed.device) % 3  # (bytes, 5)
    codes = digits.to(torch.int8).reshape(-1) - 1
    if codes[count:].any():
        raise CheckpointError(
            f"there are codes behind the {count} that were asked for",
            "give the shape of the codes that were packed",
        )
    return codes[:count].reshape(shape)
