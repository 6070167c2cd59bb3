"""Through transformers and lm-evaluation-harness, where they are installed: the same
numbers as the book's own code.
"""

import json
import math

import pytest
import torch
from tiny_models import random_ids, tiny

from tilelli_nb import ByteTokenizer, TilelliLM, load_config
from tilelli_nb.errors import MissingDependency, TokenError


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "tilelli_nb.extras.transformers", raising=False)
    with pytest.raises(MissingDependency, match="transformers"):
        import tilelli_nb.extras.transformers  # noqa: F401


def test_config_json_names_its_kind(tmp_path):
    TilelliLM(
        load_config("nano").with_model(d_model=16, n_blocks=1, n_heads=2)
    ).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "tilelli"


@pytest.fixture
def auto(tmp_path):
    """The bundled model as transformers loads it, its tokenizer, and the same model as
    the book's own class.
    """
    transformers = pytest.importorskip(
        "transformers", reason="an optional library: pip install transformers"
    )
    import tilelli_nb.extras.transformers  # noqa: F401

    TilelliLM.from_pretrained("tilelli/nano").save_pretrained(tmp_path)
    return (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
        TilelliLM.from_pretrained(tmp_path),
    )


def test_generation_pipeline_and_loss(auto):
    model, tok, lm = auto
    ids = tok("Once upon a time, a héron", return_tensors="pt")
    assert ids["input_ids"][0].tolist() == list("Once upon a time, a héron".encode())
    greedy = lm.generate(
        ByteTokenizer().encode("Once upon a time"), max_new=24, temperature=0
    )
    short = tok("Once upon a time", return_tensors="pt")
    assert (
        model.generate(**short, max_new_tokens=24, do_sample=False)[0].tolist()
        == greedy
    )
    from transformers import pipeline

    said = pipeline("text-generation", model=model, tokenizer=tok)(
        "Once upon a time", max_new_tokens=24, do_sample=False
    )
    assert said[0]["generated_text"] == ByteTokenizer().decode(greedy)
    x = ids["input_ids"]
    logp = lm(x[:, :-1]).log_softmax(-1).gather(2, x[:, 1:, None])
    assert float(model(x, labels=x).loss.detach()) == pytest.approx(
        -float(logp.mean()), abs=1e-6
    )
    mask = torch.ones_like(x)
    mask[0, 0] = 0
    with pytest.raises(TokenError, match="padded on the left"):
        model(x, attention_mask=mask)


@pytest.mark.parametrize("context", [1, 7, 8])
def test_a_longer_text_has_the_window_of_our_own_steps(tmp_path, context):
    pytest.importorskip("transformers", reason="an optional library")
    from tilelli_nb.extras.transformers import TilelliForCausalLM

    lm = tiny(dtype=torch.float32, context=context, keep=1)
    lm.save_pretrained(tmp_path)
    model, state = TilelliForCausalLM.from_pretrained(tmp_path), lm.new_state()
    ids = random_ids(3 * context + 2)
    for n, byte in enumerate(ids, start=1):
        expected = lm.step(torch.tensor([byte]), state)[0]
        found = model(torch.tensor([ids[:n]])).logits[0, -1]
        assert (found - expected).abs().max() < 1e-4


def test_the_harness_measures_what_score_measures(auto):
    model, tok, lm = auto
    pytest.importorskip("lm_eval", reason="an optional library: pip install lm-eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(
        pretrained=model, tokenizer=tok, max_length=256, device="cpu", batch_size=1
    )
    text = "Once upon a time, there was a little fox named Pip. He lived in a den."
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    nats = float(harness.loglikelihood_rolling(requests)[0])
    assert -nats / math.log(2) / len(text.encode()) == pytest.approx(
        lm.score(text), abs=1e-4
    )
