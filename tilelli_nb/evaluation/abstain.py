"""The abstain head: one row of numbers that reads the network's last vector and says
how likely it is that a question ought to be refused. The network does not know of it.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..inference.scoring import in_float64
from ..storage.checkpoint import read_tensors, write_tensors

HEAD_FILE = "abstain.safetensors"
PROMPTS_AT_ONCE = 64
FIT_STEPS, FIT_LR, FIT_DECAY = 300, 0.05, 0.01


class AbstainHead(nn.Module):
    """A linear map D -> 1 on the last block's output at the last byte of a prompt. It
    starts at zero: a half for every question.

    It stands beside the network, in a file of its own: what is trained into a head can
    be taken away again, and nothing of the network has moved.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_model, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor) -> Tensor:
        """(..., D) -> (...): the logit of "this ought to be refused"."""
        # The residual stream has no fixed size; the network's own norm would be one of
        # the things that training moves.
        even = F.layer_norm(h, h.shape[-1:])
        return self.linear(even).squeeze(-1)

    @torch.no_grad()
    def probability(self, h: Tensor) -> float:
        """The published `abstain_p` of one vector (D,): 0 to 1."""
        return float(in_float64(self(h)).sigmoid())


@torch.no_grad()
def last_vectors(lm, prompts: Sequence[Tensor]) -> Tensor:
    """The last block's output at the last byte of each prompt (T,): (n, D)."""
    found = []
    for first in range(0, len(prompts), PROMPTS_AT_ONCE):
        some = prompts[first : first + PROMPTS_AT_ONCE]
        # the model is causal: what is behind a prompt's last byte does not change it
        x = nn.utils.rnn.pad_sequence(some, batch_first=True)
        h, _ = lm.hidden(x.to(lm.device))
        last = torch.tensor([len(prompt) - 1 for prompt in some])
        found.append(h[torch.arange(len(some)), last])
    return torch.cat(found)


def fit_head(
    head: AbstainHead,
    lm,
    answered: Sequence[Tensor],
    refused: Sequence[Tensor],
) -> None:
    """Teaches a head to tell prompts (T,) that have an answer from those that ought to
    be refused, on vectors of a network that stays as it is: a logistic regression.
    """
    vectors = last_vectors(lm, [*answered, *refused])
    wanted = torch.zeros(len(vectors))
    wanted[len(answered) :] = 1
    optimizer = torch.optim.AdamW(head.parameters(), FIT_LR, weight_decay=FIT_DECAY)
    for _ in range(FIT_STEPS):
        loss = F.binary_cross_entropy_with_logits(head(vectors), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save_head(folder: str | Path, head: AbstainHead) -> None:
    """Puts a head beside a model."""
    write_tensors(Path(folder) / HEAD_FILE, head.state_dict(), {"kind": "abstain head"})


def load_head(folder: str | Path, d_model: int) -> AbstainHead:
    """The head that lies beside a model of width `d_model`. Raises CheckpointError
    where there is none, or one of another width.
    """
    tensors, _ = read_tensors(Path(folder) / HEAD_FILE)
    head = AbstainHead(d_model)
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise CheckpointError(
            f"{HEAD_FILE} is no abstain head of a model of width {d_model}",
            "put the head beside the model that it was trained with",
        )
    head.load_state_dict(tensors)
    return head
