"""A model that learns while it reads: it never looks ahead, and it does learn."""

import bz2
import copy
import lzma
import random

import pytest
import torch
from tiny_models import tiny

from learn_while_reading import beginnings, learn_while_reading, learner
from tilelli_nb.errors import DataError


def reader():
    """A tiny model in fp32 with windows of 16 bytes."""
    return tiny(dtype=torch.float32, context=16)


def text_of(n, seed=0):
    return random.Random(seed).randbytes(n)


def test_the_first_piece_is_scored_by_the_weights_as_they_came():
    text = text_of(64)
    bits = learn_while_reading(reader(), text, rows=2)
    assert len(bits) == 2
    assert bits[0] / 32 == pytest.approx(reader().score(text[:32]), rel=1e-6)


def test_what_follows_has_no_say():
    text = text_of(96)
    whole = learn_while_reading(reader(), text, rows=2)
    other = learn_while_reading(reader(), text[:64] + text_of(32, seed=1), rows=2)
    assert whole[:2] == other[:2] and whole[2] != other[2]


def test_a_step_is_one_of_adamw_on_the_piece_that_was_scored():
    text = text_of(64)
    lm = reader()
    train = lm.config.train
    stream = torch.tensor([0, *text])
    x, targets = stream[:32].view(2, 16), stream[1:33].view(2, 16)
    terms = lm.train().loss_terms(x, targets)
    loss = terms.nats / 32 + train.balance_weight * terms.balance / 2
    loss.backward()
    torch.nn.utils.clip_grad_norm_(lm.parameters(), train.clip)
    # after one step AdamW's two averages leave the gradient's sign
    for name, parameter in lm.named_parameters():
        decays = name.startswith("output") or ".attention." in name or ".ffn." in name
        with torch.no_grad():
            parameter.mul_(1 - train.lr * train.weight_decay * decays)
            size = parameter.grad.abs() + train.eps
            parameter.sub_(train.lr * parameter.grad / size)
    # scored as the model's second piece: byte 31 is the one that comes before it
    chunk = lm.eval()(stream[32:64].view(2, 16)).log_softmax(-1)
    by_hand = -chunk.gather(2, stream[33:].view(2, 16, 1)).sum().item()
    bits = learn_while_reading(reader(), text, rows=2)
    assert bits[1] * 0.6931471805599453 == pytest.approx(by_hand, rel=1e-5)


def test_it_learns():
    lm, text = reader(), b"one two three four five six. " * 150
    still = copy.deepcopy(lm)
    bits = learn_while_reading(lm, text, rows=4)
    end = text[-64 * 4 :]
    assert sum(bits[-4:]) / 256 < 0.7 * still.score(end)


def test_the_last_piece_has_the_windows_that_are_left():
    text = text_of(3 * 16 + 5)
    bits = learn_while_reading(reader(), text, rows=2)
    assert len(bits) == 2
    # a window alone and less than a window behind it
    assert learn_while_reading(reader(), text[:21]) == [
        pytest.approx(16 * reader().score(text[:16]), rel=1e-6)
    ]


@pytest.mark.parametrize("size", [0, 15])
def test_less_than_a_window_is_refused(size):
    with pytest.raises(DataError, match="fills no window of 16"):
        learn_while_reading(reader(), text_of(size))


def test_a_packed_model_can_go_on():
    lm = learner("tilelli/lite-10m", "lite_10m_fast")
    assert lm.config.train.optimizer == "muon" and lm.config.train.lr == 2e-3
    with torch.no_grad():
        assert not lm.is_packed and lm.blocks[0].ffn.up.weight.unique().numel() > 3


def test_the_compressors_get_the_beginnings():
    text = b"to be or not to be, " * 64
    found = beginnings(text)
    assert [part["bytes"] for part in found] == [80 * n for n in range(1, 17)]
    half = text[:640]
    assert found[7]["bzip2"] == 8 * len(bz2.compress(half)) / 640
    assert found[7]["xz"] == 8 * len(lzma.compress(half, preset=9 | 1 << 31)) / 640
