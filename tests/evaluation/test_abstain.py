"""The abstain head: beside the network, never in it."""

import math

import pytest
import torch
from tiny_models import random_ids, tiny

from tilelli_nb.errors import CheckpointError
from tilelli_nb.evaluation.abstain import (
    AbstainHead,
    fit_head,
    last_vectors,
    load_head,
    save_head,
)


def prompts(first, count, seed):
    """Prompts of 3 to 9 bytes that end in one of two bytes, behind random ones."""
    return [
        torch.tensor([*random_ids(2 + n % 7, seed + n), first]) for n in range(count)
    ]


def test_it_by_hand():
    """(1, 3) has mean 2 and standard deviation 1, so it is normalised to (-1, 1);
    -1 * 1 + 1 * 2 + 0.5 = 1.5.
    """
    head = AbstainHead(2)
    assert head.probability(torch.tensor([1.0, 3.0])) == 0.5  # it starts at zero
    head.linear.weight.data = torch.tensor([[1.0, 2.0]])
    head.linear.bias.data = torch.tensor([0.5])
    expected = 1 / (1 + math.exp(-1.5))
    assert head.probability(torch.tensor([1.0, 3.0])) == pytest.approx(
        expected, abs=1e-4
    )
    # a larger vector of the same direction says the same
    assert head.probability(torch.tensor([10.0, 30.0])) == pytest.approx(
        expected, abs=1e-4
    )


def test_padding_does_not_change_a_vector():
    lm = tiny()
    some = prompts(65, 5, 0)
    together = last_vectors(lm, some)
    for prompt, vector in zip(some, together, strict=True):
        alone = lm.hidden(prompt[None])[0][0, -1]
        assert torch.allclose(alone, vector, atol=1e-12)


def test_it_learns_and_the_network_stays():
    lm = tiny(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    head = AbstainHead(24)
    fit_head(head, lm, prompts(65, 200, 0), prompts(66, 200, 500))
    known = head(last_vectors(lm, prompts(65, 10, 1000))).sigmoid()
    unknown = head(last_vectors(lm, prompts(66, 10, 2000))).sigmoid()
    assert known.mean() < 0.35 and unknown.mean() > 0.65
    after = lm.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_lies_beside_a_model(tmp_path):
    head = AbstainHead(24)
    torch.nn.init.normal_(head.linear.weight)
    save_head(tmp_path, head)
    found = load_head(tmp_path, 24)
    assert torch.equal(found.linear.weight, head.linear.weight)
    with pytest.raises(CheckpointError, match="no abstain head of a model of width 32"):
        load_head(tmp_path, 32)
    with pytest.raises(CheckpointError, match="cannot read abstain"):
        load_head(tmp_path / "elsewhere", 24)
