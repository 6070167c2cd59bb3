"""Hostile prompts and settings, a hundred of each; tests/slow/fuzz_generation.py
tries thousands.
"""

import sys
from pathlib import Path

import pytest
import torch
from tiny_models import tiny

from tilelli_nb.errors import GenerationError, TokenError
from tilelli_nb.inference.prepared import KINDS

sys.path.append(str(Path(__file__).parents[1] / "slow"))
from fuzz_generation import try_prompts, try_settings  # noqa: E402


@pytest.fixture(scope="module")
def models():
    lm = tiny(dtype=torch.float32, d_model=32, n_heads=4)
    return {"the model itself": lm, **{kind: lm.prepare(kind) for kind in KINDS}}


def test_a_hundred_hostile_prompts(models):
    done = try_prompts(models, 100, seed=1)
    assert sum(done.values()) == 100 and min(done.values()) > 5


def test_a_hundred_settings(models):
    inside, refused = try_settings(models["fp32"], 100, seed=1)
    assert inside > 30 and refused > 20


@pytest.mark.parametrize("kind", ["the model itself", "fp32", "int8"])
def test_a_prompt_of_100_kb_costs_no_more_than_its_last_window(models, kind):
    ids = torch.randint(
        0, 256, (100_000,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    out = models[kind].generate(ids, max_new=5, seed=0, stop=())
    kept = ids[
        99_968 - 128 :
    ]  # 100,000 bytes: 128 ceil((100,000 - 256) / 128) = 99,840
    assert out[-5:] == models[kind].generate(kept, max_new=5, seed=0, stop=())[-5:]


def test_text_in_place_of_bytes_says_what_to_do(models):
    for lm in models.values():
        with pytest.raises(TokenError, match="encode"):
            lm.generate("Once upon a time")
    with pytest.raises(TokenError, match="encode"):
        list(models["fp32"].stream("Once upon a time"))


def test_a_prompt_that_can_be_read_only_once_is_read(models):
    prompt = list(b"Once upon a time")
    for lm in models.values():
        wanted = list(lm.stream(prompt, max_new=5, seed=0, stop=()))
        assert list(lm.stream(iter(prompt), max_new=5, seed=0, stop=())) == wanted


def test_weights_that_are_not_numbers_are_named():
    lm = tiny(dtype=torch.float32)
    lm.output.weight.data[3, 0] = torch.nan
    for model in (lm, lm.prepare()):
        with pytest.raises(GenerationError, match="not finite"):
            model.generate([1], max_new=2)
