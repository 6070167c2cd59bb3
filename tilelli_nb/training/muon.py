"""Muon: an optimizer for matrices that makes all directions of an update as long."""

import math

import torch
from torch import Tensor

# Of the polynomial a x + b x^3 + c x^5, which takes singular values between 0.003 and 1
# to the neighbourhood of 1 in five rounds. Source: Keller Jordan's Muon, 2024.
A, B, C = 3.4445, -4.7750, 2.0315


ROUNDS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """U V^T of each matrix U S V^T, roughly: (n, out, in) -> the same shape, in
    `dtype`.

    Newton-Schulz iteration: products of matrices alone, so that no singular value has
    to be computed. Those above 0.003 of the matrix's norm come out between 0.68 and 1.2
    instead of at 1, which does no harm; smaller ones grow 485 times at most.
    """
    # The products are as large as the shorter side squared, so tall matrices lie down.
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)  # the short side first
    # No singular value is above the root of the sum of squares: all are now at most 1.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT  # (n, short, short)
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, polynomial, x, beta=A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal before it is applied.

    A group may set `stacked`: so many matrices of one shape lie in each parameter, one
    below the other, as q, k and v do; each is made orthogonal by itself. The update has
    the size that AdamW's usually has (a root mean square of 0.2 lr), whatever the
    shape. Products are in `dtype`: bf16 where it is fast. After Jordan et al. 2024 and,
    for the size, Liu et al. 2025, arXiv:2502.16982; torch.optim.Muon is the same for
    one matrix in bf16.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "stacked": 1,
        }
        super().__init__(groups, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)

    def move(self, parameter: Tensor, group: dict) -> None:
        """One parameter (stacked * out, in), in place."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(average, group["momentum"])  # after Nesterov
        matrices = ahead.unflatten(0, (group["stacked"], -1))  # (stacked, out, in)
        direction = orthogonalize(matrices, self.dtype).flatten(0, 1)
        size = 0.2 * math.sqrt(max(matrices.shape[1:]))
        # Decay first, as AdamW does it: apart from the gradient.
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction, alpha=-group["lr"] * size)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the matrices between the blocks' vectors, AdamW for everything else."""

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        self.parts = [muon, adamw]

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Both."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Both."""
        for part in self.parts:
            part.zero_grad()
