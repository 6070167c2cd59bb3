"""Pathway 1: local convolution. Each channel mixes the present byte with the four
before it.
"""

import os
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# asked once: torch.compile cannot follow the question
HAVE_TRITON = find_spec("triton") is not None


class CausalConv(nn.Module):
    """Depthwise causal convolution without bias or activation.

    `weight` is (D, width); the last column multiplies the present byte, the first the
    oldest one that is heard.
    """

    def __init__(self, d_model: int, width: int = 5) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(d_model, width))

    def forward(self, y: Tensor, state: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D). With a `state`, leaves in it what `step` needs to go
        on from here.
        """
        if state is None and kernel_takes(y):
            return through_kernel(y, self.weight)
        T = y.shape[1]
        # (B, width-1+T, D): zeros stand before the first byte
        past = F.pad(y, (0, 0, self.width - 1, 0))
        if state is not None:
            state.copy_(past[:, T:])
        # one line high, (B, D, 1, width-1+T): nothing has to be moved
        image = past.transpose(1, 2)[:, :, None]
        kernels = self.weight[:, None, None]  # (D, 1, 1, width)
        # A processor's sixteen-bit convolution takes four times as long backwards.
        autocast = y.device.type != "cpu" and torch.is_autocast_enabled(y.device.type)
        with torch.autocast(y.device.type, enabled=autocast):
            out = F.conv2d(image, kernels, groups=y.shape[2])  # (B, D, 1, T)
        return out.squeeze(2).transpose(1, 2)

    def new_state(self, batch: int) -> Tensor:
        """The inputs that are still heard, (B, width-1, D), oldest first."""
        return self.weight.new_zeros(batch, self.width - 1, self.weight.shape[0])

    def step(self, y_t: Tensor, state: Tensor) -> Tensor:
        """One byte: (B, D) -> (B, D). Updates `state` in place."""
        heard = torch.cat([state, y_t[:, None]], dim=1)  # (B, width, D)
        state.copy_(heard[:, 1:])
        return torch.einsum("bwd,dw->bd", heard, self.weight)


def kernel_takes(y: Tensor) -> bool:
    """Whether the kernel computes this: in 16 bits on CUDA, as in training. With
    TILELLI_ATTENTION=reference in the environment no kernel of the book does.
    """
    allowed = os.environ.get("TILELLI_ATTENTION") in (None, "", "triton")
    if not (HAVE_TRITON and allowed and y.device.type == "cuda"):
        return False
    return type_in_use(y) in (torch.float16, torch.bfloat16)


def type_in_use(y: Tensor) -> torch.dtype:
    """y's own, or under autocast what PyTorch's convolution would take it to."""
    kind = y.device.type
    on = torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if on else y.dtype


def through_kernel(y: Tensor, weight: Tensor) -> Tensor:
    """(B, T, D) -> (B, T, D) by kernel_conv.py, imported when it is first needed."""
    from .kernel_conv import causal_conv

    return causal_conv(y.to(type_in_use(y)), weight)
