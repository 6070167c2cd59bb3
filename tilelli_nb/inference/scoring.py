"""Scores: how many bits a model needs for each byte of a text."""

import math

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..errors import TokenError
from .sampling import window_stride


def in_float64(x: Tensor) -> Tensor:
    """x in float64; on the CPU where its device has no such numbers, as a Mac's GPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


@torch.no_grad()
def score(lm, text: str | bytes, sliding: bool = False) -> float:
    """Bits per byte of byte 0 + text: in chunks whose context begins with the chunk, or
    by the sliding rule of the window.

    Raises TokenError for an empty text.
    """
    ids = ByteTokenizer().encode(text)
    if not ids:
        raise TokenError(
            "an empty text has no bytes to score", "pass at least one byte"
        )
    stream = torch.tensor([0, *ids], dtype=torch.long, device="cpu")
    nats = -log_probs(lm, stream, sliding).sum().item()
    return nats / math.log(2) / len(ids)


@torch.no_grad()
def log_probs(lm, stream: Tensor, sliding: bool = True, batch: int = 64) -> Tensor:
    """Log-probabilities in nats, float64 (n,), of stream[1:] given what comes before:
    stream (n+1,) long.

    sliding: by the rule of the window, each byte sees 129 to 256 before it (once there
    are that many). Otherwise in chunks. `batch` windows are read at once.
    """
    context = lm.config.model.context
    n = len(stream) - 1
    if sliding:
        stride = window_stride(context)
        # the last window is the first that reaches the end
        starts = list(range(0, max(n - context, 0) + stride, stride))
    else:
        stride = context
        starts = list(range(0, n, stride))
    out = torch.empty(n, dtype=torch.float64, device="cpu")
    for first in range(0, len(starts), batch):
        group = starts[first : first + batch]
        windows = torch.zeros(len(group), context, dtype=torch.long, device="cpu")
        for row, start in zip(windows, group, strict=True):
            piece = stream[start : min(start + context, n)]
            # the zeros behind the end are never looked at: the model is causal
            row[: len(piece)] = piece
        logits = lm(windows.to(lm.device))  # (windows, context, 256)
        at_least_fp32 = torch.promote_types(logits.dtype, torch.float32)
        all_logp = in_float64(logits.log_softmax(-1, dtype=at_least_fp32)).cpu()
        for logp, start in zip(all_logp, group, strict=True):
            # a later window predicts only what the one before it did not
            skip = context - stride if start else 0
            end = min(start + context, n)
            targets = stream[start + skip + 1 : end + 1]
            found = logp[skip : skip + len(targets)].gather(1, targets[:, None])
            out[start + skip : end] = found[:, 0]
    return out
