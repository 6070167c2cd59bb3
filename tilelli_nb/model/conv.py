"""Pathway 1: local convolution. Each channel mixes the present byte with the four
before it.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import HAVE_TRITON


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
        """(B, T, D) -> (B, T, D). With a `state`, T bytes more: it holds what was heard
        before, and is left as the next call needs it.
        """
        if state is None and kernel_takes(y):
            return through_kernel(y, self.weight)
        if state is None:
            past = F.pad(y, (0, 0, self.width - 1, 0))  # zeros before the first byte
        else:
            past = torch.cat([state, y], dim=1)
            state.copy_(past[:, y.shape[1] :])
        # One line high, so that nothing has to be moved: (B, D, 1, width-1+T).
        image = past.transpose(1, 2)[:, :, None]
        kernels = self.weight[:, None, None]  # (D, 1, 1, width)
        # A processor's sixteen-bit convolution takes four times as long backwards.
        autocast = y.device.type != "cpu" and torch.is_autocast_enabled(y.device.type)
        with torch.autocast(y.device.type, enabled=autocast):
            out = F.conv2d(image, kernels, groups=y.shape[2])  # (B, D, 1, T)
        return out.squeeze(2).transpose(1, 2)

    def new_state(self, batch: int) -> Tensor:
        """The inputs that are still heard, (B, width-1, D), oldest first: none yet."""
        return self.weight.new_zeros(batch, self.width - 1, self.weight.shape[0])


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
