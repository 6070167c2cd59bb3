"""Whatever a user's program has set before: weights of 16 or 64 bits, another default
dtype, another default device, autocast around everything.
"""

import pytest
import torch
from test_train import shards, small  # noqa: F401  (a fixture)
from tiny_models import random_ids, tiny

from tilelli_nb import ByteTokenizer, TilelliLM
from tilelli_nb.chat.template import encode_prompt, encode_row
from tilelli_nb.inference.prepared import KINDS
from tilelli_nb.training.loop import train

DTYPES = [torch.float16, torch.bfloat16, torch.float64]
# What rounding each weight and activation may cost, of logits of size 1, on average: a
# few weights lie so near to a half of alpha that their code is another one.
MEAN_ERROR = {torch.float16: 0.005, torch.bfloat16: 0.04, torch.float64: 1e-6}


@pytest.fixture
def defaults():
    """Sets a default dtype or device, for one test."""
    yield torch
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", ["routed", "vanilla"])
def test_a_model_in_another_dtype_says_nearly_the_same(dtype, block):
    # Dense attention: which keys are kept is decided by the last bits of a score.
    lm = tiny(dtype=torch.float32, context=16, keep=16, block=block)
    x = torch.tensor([random_ids(16)])
    expected = lm(x)
    cast = lm.to(dtype)
    logits = cast(x)
    assert logits.dtype == dtype
    assert (logits.double() - expected.double()).abs().mean() < MEAN_ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_its_residual_and_its_gradients_keep_the_dtype(dtype):
    lm = tiny(dtype=torch.float32, context=16, keep=4).to(dtype).train()
    h, p = lm.hidden(torch.tensor([random_ids(16)]))
    assert h.dtype == dtype
    assert p.dtype == torch.promote_types(dtype, torch.float32)
    lm(torch.tensor([random_ids(16)]), torch.tensor([random_ids(16)])).backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad.dtype == dtype, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_agree_with_reading_at_once_in_that_dtype(dtype):
    lm = tiny(dtype=torch.float32, context=16, keep=16).to(dtype)
    ids, state = random_ids(16), lm.new_state()
    for byte in ids:
        stepped = lm.step(torch.tensor([byte]), state)
    whole = lm(torch.tensor([ids]))[:, -1]
    assert (stepped.double() - whole.double()).abs().mean() < MEAN_ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_default_dtype_is_that_of_the_model(defaults, dtype):
    defaults.set_default_dtype(dtype)
    lm = TilelliLM.from_pretrained("tilelli/nano")
    assert lm.token.weight.dtype == dtype
    ids = lm.generate(list(b"Once upon a"), max_new=5, temperature=0)
    assert bytes(ids) == b"Once upon a time"
    assert lm.score("Once upon a time, there was") < 1


@pytest.mark.parametrize("weights", KINDS)
def test_a_prepared_model_is_the_same_under_autocast(weights):
    lm = tiny(dtype=torch.float32, context=16, keep=4)
    x = torch.tensor([random_ids(16)])
    expected = lm.prepare(weights)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prepared = lm.prepare(weights)
        assert torch.equal(prepared(x), expected)
        state = prepared.new_state()
        for byte in x[0]:
            stepped = prepared.step(byte[None], state)
    assert (stepped - expected[:, -1]).abs().max() < 0.05


def test_a_default_device_moves_nothing(defaults):
    """The meta device stands for any other: what is made there by mistake has no
    numbers, and the first use of it fails.
    """
    text = "Once upon a time, there was a little fox."
    lm = TilelliLM.from_pretrained("tilelli/nano")
    ids = ByteTokenizer().encode(text)
    said = lm.generate(ids, max_new=8, temperature=0.5, seed=1)
    drawn = tiny(dtype=torch.float32, context=16).state_dict()
    defaults.set_default_device("meta")
    again = TilelliLM.from_pretrained("tilelli/nano")
    assert again.device.type == "cpu"
    assert again.score(text) == lm.score(text)
    for form in (again, again.prepare("ternary"), again.prepare()):
        assert len(form.generate(ids, max_new=8, temperature=0.5, seed=1)) == len(said)
    assert again.generate(ids, max_new=8, temperature=0.5, seed=1) == said
    for name, weight in tiny(dtype=torch.float32, context=16).state_dict().items():
        assert torch.equal(weight, drawn[name]), name


def test_a_run_does_not_notice_a_default_device(tmp_path, shards, defaults):  # noqa: F811
    def run(name):
        lm = small(steps=4)
        return train(lm, shards, tmp_path / name, progress=False)

    expected = run("before")
    defaults.set_default_device("meta")
    assert run("after")["val_bpb"] == expected["val_bpb"]


def test_a_conversation_does_not_notice_a_default_device(defaults):
    turns = [("Which?", "This.")]
    expected = encode_row(turns)
    defaults.set_default_device("meta")
    for found, wanted in zip(encode_row(turns), expected, strict=True):
        assert found.device.type == "cpu" and found.equal(wanted)
    assert encode_prompt("Which?").device.type == "cpu"
