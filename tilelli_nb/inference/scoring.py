"""Inference: from logits to bytes, one at a time, with states instead of re-reading the
window for each.
"""

import math

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..errors import TokenError


@torch.no_grad()
def score(lm, text: str | bytes, sliding: bool = False) -> float:
    """Bits per byte of byte 0 + text: in chunks whose context begins with the chunk, or
    by the sliding context rule.

    Raises TokenError for an empty text.
    """
    ids = ByteTokenizer().encode(text)
    if not ids:
        raise TokenError(
            "an empty text has no bytes to score", "pass at least one byte"
        )
    nats = (
        log_probs(lm, torch.tensor([0, *ids], dtype=torch.long), sliding).sum().item()
    )
    return -nats / math.log(2) / len(ids)


@torch.no_grad()
def log_probs(lm, stream: Tensor, sliding: bool = True, batch: int = 64) -> Tensor:
    """Log-probabilities in nats, float64 (n,), of stream[1:] given what comes before:
    stream (n+1,) long.

    sliding: by the context rule, each byte sees 129 to 256 before it (once there are
    that many). Otherwise in chunks.
    """
    context = lm.config.model.context
    stride = context // 2 if sliding else context
    n = len(stream) - 1
    starts = (
        list(range(0, max(n - context, 0) + stride, stride))
        if sliding
        else list(range(0, n, stride))
    )
    out = torch.empty(n, dtype=torch.float64)
    for first in range(0, len(starts), batch):
        group = starts[first : first + batch]
        windows = torch.zeros(len(group), context, dtype=torch.long)
        for row, start in zip(windows, group, strict=True):
            piece = stream[start : min(start + context, n)]
            # what follows the end is never read: the model is causal
            row[: len(piece)] = piece
        logits = lm(windows.to(lm.device))
        all_logp = (
            logits.log_softmax(
                -1, dtype=torch.promote_types(logits.dtype, torch.float32)
            )
            .double()
            .cpu()
        )
        for logp, start in zip(all_logp, group, strict=True):
            # a later window predicts only what the one before it did not
            skip = context - stride if start else 0
            targets = stream[start + skip + 1 : min(start + context, n) + 1]
            found = logp[skip : skip + len(targets)].gather(1, targets[:, None])[:, 0]
            out[start + skip : start + skip + len(targets)] = found
    return out
