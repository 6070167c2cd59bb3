"""The router: for every byte, how much of each of the three pathways."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATHWAYS = ("conv", "attention", "ffn")  # the order of the router's three outputs


class Router(nn.Module):
    """One linear map D -> 3 without bias, then a softmax per byte. It starts at zero:
    every pathway gets 1/3.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(PATHWAYS), d_model))

    def forward(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., 3), each row sums to one; the softmax is in fp32 or
        better.
        """
        logits = F.linear(y, self.rows_for(y.device.type))[..., : len(PATHWAYS)]
        # In bf16 a share of 0.999 would become exactly 1.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits.softmax(-1, dtype=dtype)

    def rows_for(self, device: str) -> Tensor:
        """Returns the weight, (3, D), on CUDA with five rows of zeros below it: tensor
        cores take rows in eights, and three would be computed a slower way.
        """
        if device != "cuda":
            return self.weight
        return F.pad(self.weight, (0, 0, 0, 5))  # (8, D)


def balance_loss(p: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far the average use of the pathways is from uniform: 0 when even, 2 when one
    pathway takes everything.

    p: (B, T, 3) -> scalar: 3 * sum_i mean_t(p_i)^2 - 1 per sequence, averaged over
    sequences. `mask` (B, T) is False at padding, which does not count. After Shazeer et
    al. 2017, arXiv:1701.06538; the exact form is this book's choice.
    """
    return sequence_balance(p, mask).mean()


def sequence_balance(p: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes balance_loss for each sequence alone: p (B, T, 3) -> (B,), or of several
    blocks (B, blocks, T, 3) -> (B, blocks). `mask` is (B, T).
    """
    # What counts is the average over the bytes of a sequence: each byte may be as
    # decided as it likes.
    if mask is None:
        use = p.mean(-2)
        return 3 * use.square().sum(-1) - 1
    counts = mask.to(p.dtype)[..., None]  # (B, T, 1): 0 at padding
    if p.dim() == 4:
        counts = counts[:, None]  # the same for all blocks
    counted = counts.sum(-2)
    use = (p * counts).sum(-2) / counted.clamp(min=1)
    balance = 3 * use.square().sum(-1) - 1
    return balance * (counted[..., 0] > 0)  # 0 for a row that is all padding


def router_confidence(p: Tensor) -> Tensor:
    """1 - H / ln 3 with the entropy H in nats: 0 when undecided, 1 when one pathway has
    it all. (..., 3) -> (...).
    """
    return 1 - torch.special.entr(p).sum(-1) / math.log(len(PATHWAYS))
