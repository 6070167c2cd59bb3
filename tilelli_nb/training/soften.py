"""Attention that has become too sure to learn, made soft again before it is trained."""

import torch

from .optimizer import holds_q_k_v


@torch.no_grad()
def soften_attention(lm, factor: float) -> None:
    """Multiplies the matrices of q and k in every block by `factor`, so that all scores
    become `factor` squared times as large.

    Where scores lie far apart, the softmax gives one byte everything, whatever the
    others have: its gradient is zero, and q and k cannot learn. Smaller scores are as
    many choices again; which bytes are best stays as it was. On such a collapse: Zhai
    et al. 2023, arXiv:2303.06296; a rule that shrinks q and k in training: Kimi K2,
    2025, arXiv:2507.20534.
    """
    for name, parameter in lm.named_parameters():
        if holds_q_k_v(name, parameter):
            width = parameter.shape[1]
            parameter[: 2 * width] *= factor
    lm.is_softened = True  # the training loop asks: once is enough
