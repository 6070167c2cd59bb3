"""What must be right before a GPU trains for ten minutes: seconds of checking.

A fault here is rarely an error: PyTorch 2.11 once trained the last matrix alone, with
the right loss and nothing else moving. So gradients are compared, all of them.
Used by gpu_trainer.py.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tilelli_nb.errors import TrainingError
from tilelli_nb.model.attention import reference_attention
from tilelli_nb.training.compiled_check import check_gradients, distance

KEEP = 16
# Relative error of a vector: 0.004 was seen for one operation in bf16.
ONE_OPERATION = 0.03


def kernel_errors(device: str) -> dict[str, float]:
    """Both kernels against plain PyTorch in fp32, on random numbers: outputs and
    gradients. Raises TrainingError.
    """
    from tilelli_nb.model import kernel_conv, kernels

    cuda = device == "cuda"
    (B, T, H) = (8, 256, 8) if cuda else (1, 70, 2)
    dtype = torch.bfloat16 if cuda else torch.float32
    draw = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=draw).to(dtype)

    qkv = random(B, T, 3, H, 48).requires_grad_()
    out, kept, _ = kernels.topk_attention_op(qkv, KEEP)
    d_out = random(*out.shape)
    (d_qkv,) = torch.autograd.grad(out, qkv, d_out)
    check_selection(kept, T)
    exact = qkv.detach().float().requires_grad_()
    wanted = reference_attention(*exact.transpose(1, 3).unbind(2), KEEP).transpose(1, 2)
    (d_wanted,) = torch.autograd.grad(wanted, exact, d_out.float())
    errors = {
        "attention": distance(out, wanted),
        "attention's gradient": distance(d_qkv, d_wanted),
    }
    y, w = random(B, T, 384).requires_grad_(), random(384, 5).float().requires_grad_()
    out = kernel_conv.causal_conv(y, w)
    d_out = random(*out.shape)
    d_y, d_w = torch.autograd.grad(out, (y, w), d_out)
    exact = y.detach().float().requires_grad_()
    heard = F.pad(exact.transpose(1, 2), (4, 0))
    wanted = F.conv1d(heard, w[:, None], groups=384).transpose(1, 2)
    d_exact, d_weight = torch.autograd.grad(wanted, (exact, w), d_out.float())
    errors["convolution"] = distance(out, wanted)
    errors["convolution's gradient"] = distance(d_y, d_exact)
    errors["convolution weight's gradient"] = distance(d_w, d_weight)
    refuse_above(ONE_OPERATION, errors, "a kernel and plain PyTorch disagree")
    return errors


def check_selection(kept: Tensor, T: int) -> None:
    """Every row keeps at least min(keep, t + 1) bytes and none that comes after it."""
    places = torch.arange(32, device=kept.device)
    bits = (kept[..., None] >> places & 1).flatten(-2)[..., :T]  # (B, H, T, T)
    least = torch.arange(1, T + 1, device=kept.device).clamp(max=KEEP)
    future = torch.ones(T, T, device=kept.device).triu(1)
    if (bits.sum(-1) < least).any() or (bits * future).any():
        raise TrainingError(
            "the attention kernel keeps too few bytes, or some that it cannot see",
            "train without it: the mode after this one",
        )


def gradient_errors(
    lm, compiled: Callable, rows: int, autocast: bool
) -> dict[str, float]:
    """Of each parameter: the gradient of a compiled step against the eager one, as the
    training loop compares them, but before there is data: on the text of this file.
    Raises TrainingError; leaves no gradients behind.
    """
    text = torch.tensor(list(Path(__file__).read_bytes()))
    context = lm.config.model.context
    repeated = text.repeat(rows * context // len(text) + 1)
    x = repeated[: rows * context].view(rows, context)
    return check_gradients(lm, compiled, x, "bf16" if autocast else "fp32")


def refuse_above(limit: float, errors: dict[str, float], problem: str) -> None:
    """Raises TrainingError that names the worst of too large errors."""
    worst = max(errors, key=errors.get)
    if not errors[worst] <= limit:
        raise TrainingError(
            f"{problem}: {worst} by {errors[worst]:.2g}, more than {limit}",
            "train in the mode after this one",
        )
