"""Through transformers and lm-evaluation-harness, where they are installed: the same
numbers as the book's own code.
"""

import copy
import json
import math
import pickle

import pytest
import torch
from tiny_models import random_ids, tiny

from tilelli_nb import ByteTokenizer, TilelliLM, load_config
from tilelli_nb.errors import (
    CheckpointError,
    ConfigError,
    MissingDependency,
    TokenError,
)


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
        -float(logp.mean().detach()), abs=1e-6
    )


PROMPTS = ["Once upon a time", "The fox", "One day, a little girl named Lily"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_has_the_logits_of_its_single_texts(auto, side):
    model, tok, lm = auto
    batch = tok(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
    logits = model(**batch).logits
    assert logits.shape == (3, max(map(len, PROMPTS)), 256)
    for row, prompt in zip(logits, PROMPTS, strict=True):
        n = len(prompt)
        text = row[-n:] if side == "left" else row[:n]
        alone = lm(torch.tensor([list(prompt.encode())]))[0]
        assert (text - alone).abs().max() < 1e-4


def test_a_batch_goes_on_as_its_single_texts_do(auto):
    model, tok, lm = auto
    batch = tok(PROMPTS, return_tensors="pt", padding=True)
    wrote = model.generate(**batch, max_new_tokens=40, do_sample=False)
    for row, prompt in zip(wrote, PROMPTS, strict=True):
        alone = lm.generate(list(prompt.encode()), max_new=40, temperature=0)
        said = tok.decode(row, skip_special_tokens=True)
        assert said == ByteTokenizer().decode(alone)


def test_padding_inside_a_text_is_refused(auto):
    model, tok, _ = auto
    mask = torch.tensor([[1, 1, 0, 1]])
    with pytest.raises(TokenError, match="one piece"):
        model(torch.tensor([list(b"abcd")]), attention_mask=mask)


def test_the_loss_of_a_padded_batch_counts_its_text_alone(auto):
    model, tok, lm = auto
    batch = tok(PROMPTS, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    nats, predicted = 0.0, 0
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt.encode())])
        logp = lm(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])
        nats -= float(logp.double().sum().detach())
        predicted += ids.shape[1] - 1
    loss = float(model(**batch, labels=labels).loss.detach())
    assert loss == pytest.approx(nats / predicted, abs=1e-5)
    # as a Trainer divides, that adds up several batches
    loss = float(model(**batch, labels=labels, num_items_in_batch=500).loss.detach())
    assert loss == pytest.approx(nats / 500, abs=1e-5)


def test_labels_belong_to_the_logits_that_are_kept(auto):
    model, _, lm = auto
    x = torch.tensor([list(b"Once upon"), list(b"The foxes")])
    logp = lm(x).log_softmax(-1).double()
    # of the last four places three have a next byte
    wanted = logp[:, -4:-1].gather(2, x[:, -3:, None]).mean()
    kept = model(x, labels=x[:, -4:], logits_to_keep=4)
    assert kept.logits.shape == (2, 4, 256)
    assert float(kept.loss.detach()) == pytest.approx(-float(wanted.detach()), abs=1e-6)
    for labels, keep in ((x, 4), (x[:, -4:], 0), (x[:, -4:], 3), (x[:1], 0)):
        with pytest.raises(TokenError, match="labels of shape"):
            model(x, labels=labels, logits_to_keep=keep)


def test_places_may_be_named_whose_logits_are_kept(auto):
    model, _, lm = auto
    x = torch.tensor([list(b"Once upon")])
    places = torch.tensor([0, 3, 8])
    kept = model(x, logits_to_keep=places).logits
    assert (kept - lm(x)[:, places]).abs().max() < 1e-5


@pytest.mark.parametrize("context", [1, 7, 8])
def test_a_longer_text_has_the_window_of_our_own_steps(tmp_path, context):
    pytest.importorskip("transformers", reason="an optional library")
    from tilelli_nb.extras.transformers import TilelliForCausalLM

    lm = tiny(dtype=torch.float32, context=context, keep=1)
    lm.save_pretrained(tmp_path)
    model, state = TilelliForCausalLM.from_pretrained(tmp_path), lm.new_state()
    ids = random_ids(3 * context + 2)
    whole = model(torch.tensor([ids])).logits
    assert whole.shape == (1, len(ids), 256)
    for n, byte in enumerate(ids, start=1):
        expected = lm.step(torch.tensor([byte]), state)[0]
        last = model(torch.tensor([ids[:n]]), logits_to_keep=1).logits
        assert last.shape == (1, 1, 256)
        assert (last[0, 0] - expected).abs().max() < 1e-4
        assert (whole[0, n - 1] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16"])
def test_dtype_and_device_map_are_those_asked_for(auto, tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    named = torch.bfloat16 if isinstance(dtype, str) else dtype
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=dtype, device_map="cpu"
    )
    assert {weight.dtype for weight in model.parameters()} == {named}
    expected = auto[2].token.weight.to(named)
    assert torch.equal(model.lm.token.weight, expected)
    assert not model.training
    with pytest.raises(TypeError, match="no_such_option"):
        AutoModelForCausalLM.from_pretrained(tmp_path, no_such_option=1)


@pytest.mark.parametrize(
    "option",
    [{"subfolder": "x"}, {"variant": "fp16"}, {"output_loading_info": True}],
    ids=lambda option: next(iter(option)),
)
def test_options_that_would_read_something_else_are_refused(auto, tmp_path, option):
    with pytest.raises(ConfigError, match="is not followed here"):
        type(auto[0]).from_pretrained(tmp_path, **option)


def test_a_revision_is_the_one_that_is_fetched(auto, tmp_path, monkeypatch):
    import tilelli_nb.extras.transformers as module

    asked = []

    def download(name, revision):
        asked.append((name, revision))
        return tmp_path

    monkeypatch.setattr(module.hub, "download", download)
    type(auto[0]).from_pretrained("me/model", revision="v1.0")
    assert asked == [("me/model", "v1.0")]


@pytest.mark.parametrize("place", ["a folder", "bundled", "at home"])
def test_what_lies_here_is_the_same_with_any_revision(
    auto, tmp_path, monkeypatch, place
):
    """As in transformers, which looks for revisions on the Hub alone."""
    import tilelli_nb.extras.transformers as module

    monkeypatch.setattr(module.hub, "download", None)  # would fail if it were called
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    at_home = f"~/{tmp_path.name}"
    names = {"a folder": tmp_path, "bundled": "tilelli/nano", "at home": at_home}
    model = type(auto[0]).from_pretrained(names[place], revision="v1.0")
    assert torch.equal(model.lm.token.weight, auto[2].token.weight)


def test_a_folder_of_a_bundled_name_is_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="an optional library")
    from tilelli_nb.extras.transformers import TilelliForCausalLM

    monkeypatch.chdir(tmp_path)
    tiny(dtype=torch.float32).save_pretrained("tilelli/nano")
    model = TilelliForCausalLM.from_pretrained("./tilelli/nano")
    assert model.lm.config.model.d_model != load_config("nano").model.d_model


def test_another_configuration_than_the_models_is_refused(auto, tmp_path):
    config = type(auto[0].config)(**auto[2].config.with_model(keep=1).to_dict())
    with pytest.raises(ConfigError, match="another model"):
        type(auto[0]).from_pretrained(tmp_path, config=config)


def test_a_harness_may_ask_for_a_cache(auto):
    model, tok, _ = auto
    ids = tok("Once", return_tensors="pt")
    plain = model.generate(**ids, max_new_tokens=3, do_sample=False)
    cached = model.generate(**ids, max_new_tokens=3, do_sample=False, use_cache=True)
    assert torch.equal(plain, cached)


def test_settings_of_the_tokenizer_are_followed_and_saved(auto, tmp_path):
    Tokenizer = type(auto[1])
    tok = Tokenizer.from_pretrained(tmp_path, padding_side="right")
    batch = tok(["a", "bcd"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[97, 0, 0], [98, 99, 100]]
    tok.model_max_length = 256
    tok.save_pretrained(tmp_path / "saved")
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert (again.padding_side, again.model_max_length) == ("right", 256)
    with pytest.raises(TokenError, match="pad_token = 'a'"):
        Tokenizer.from_pretrained(tmp_path, pad_token="a")


@pytest.mark.parametrize(
    "option, error, words",
    [
        ({"unk_token": "?"}, TokenError, "unk_token = '[?]'"),
        ({"extra_special_tokens": ["<a>"]}, TokenError, "but the 256 bytes"),
        ({"additional_special_tokens": ["<a>"]}, TokenError, "but the 256 bytes"),
        ({"image_token": "<i>"}, TokenError, "image_token = '<i>'"),
        ({"paddingside": "left"}, ConfigError, "no setting 'paddingside'"),
        ({"subfolder": "x"}, ConfigError, "no setting 'subfolder'"),
    ],
    ids=str,
)
def test_what_the_tokenizer_cannot_follow_is_refused(
    auto, tmp_path, option, error, words
):
    Tokenizer = type(auto[1])
    with pytest.raises(error, match=words):
        Tokenizer.from_pretrained(tmp_path, **option)
    with pytest.raises(error, match=words):
        Tokenizer(**option)
    with pytest.raises(TokenError, match="bos_token = None"):
        Tokenizer(bos_token=None)


def test_the_tokenizer_takes_what_programs_pass_along(auto, tmp_path):
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(
        tmp_path,
        use_fast=True,
        trust_remote_code=False,
        revision="main",
        token=False,
        subfolder="",
        unk_token=None,
        bos_token="\0",
    )
    assert tok("h\0")["input_ids"] == [104, 0] and len(tok) == 256
    # as other versions of transformers write them
    others = {"unk_token": "?", "pad_token": None, "tokenizer_file": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(others))
    assert type(tok).from_pretrained(tmp_path).pad_token == "\0"
    with pytest.raises(TokenError, match="pad_token = ''"):
        type(tok).from_pretrained(tmp_path, pad_token="")
    again = copy.deepcopy(pickle.loads(pickle.dumps(tok)))
    assert again("é")["input_ids"] == [0xC3, 0xA9]


def test_a_template_of_a_chat_is_read_back(auto, tmp_path):
    tok = auto[1]
    tok.chat_template = "{% for m in messages %}USER: {{ m.content }}\n{% endfor %}"
    tok.save_pretrained(tmp_path)
    again = type(tok).from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "Hi"}]
    assert again.apply_chat_template(chat, tokenize=False) == "USER: Hi\n"


def test_what_is_no_byte_is_no_token(auto):
    tok = auto[1]
    for call in (
        lambda: tok.convert_tokens_to_ids("ab"),
        lambda: tok.convert_tokens_to_ids(chr(322)),
        lambda: tok.decode([300]),
    ):
        with pytest.raises(TokenError, match="is no token"):
            call()
    assert tok.convert_tokens_to_ids("h") == 104 and tok.decode([104]) == "h"


def test_what_transformers_saves_is_read_back_by_both(auto, tmp_path):
    from transformers import AutoModelForCausalLM

    model, _, lm = auto
    with torch.no_grad():
        model.lm.token.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    own = TilelliLM.from_pretrained(tmp_path / "saved")
    for name, weight in model.lm.state_dict().items():
        assert torch.equal(again.lm.state_dict()[name], weight), name
        assert torch.equal(own.state_dict()[name], weight), name


def test_it_samples_as_the_file_beside_its_weights_says(auto, tmp_path):
    from transformers import GenerationConfig, pipeline

    model, tok, lm = auto
    assert lm.sampling_defaults == {"temperature": 0.3}
    said = model.generation_config
    assert (said.do_sample, said.temperature) == (True, 0.3)
    assert (said.eos_token_id, said.pad_token_id, said.use_cache) == (0, 0, False)
    model.save_pretrained(tmp_path / "again")
    own = TilelliLM.from_pretrained(tmp_path / "again")
    assert own.sampling_defaults == {"temperature": 0.3}
    # a pipeline too, and what the file says of other things than ours
    more = {"max_new_tokens": 3, "repetition_penalty": 1.5}
    (tmp_path / "generation_config.json").write_text(json.dumps(more))
    speak = pipeline("text-generation", model=str(tmp_path))
    written = speak("Once", return_full_text=False)[0]["generated_text"]
    assert len(written.encode()) <= 3
    assert speak.model.generation_config.repetition_penalty == 1.5
    # one that is given wins, and without a file there is transformers' own
    given = GenerationConfig(temperature=0.7, do_sample=True)
    read = type(model).from_pretrained(tmp_path, generation_config=given)
    assert read.generation_config.temperature == 0.7
    (tmp_path / "generation_config.json").unlink()
    plain = type(model).from_pretrained(tmp_path).generation_config
    assert (plain.temperature, plain.eos_token_id, plain.use_cache) == (None, 0, False)


@pytest.mark.parametrize("with_file", [True, False])
def test_generation_ends_at_byte_0(auto, tmp_path, with_file):
    """The file does not name the byte, and need not."""
    if not with_file:
        (tmp_path / "generation_config.json").unlink()
    model = type(auto[0]).from_pretrained(tmp_path)
    with torch.no_grad():
        model.lm.output.weight.zero_()  # all bytes are equal: the first is chosen
    wrote = model.generate(torch.tensor([[104]]), max_new_tokens=9, do_sample=False)
    assert wrote.tolist() == [[104, 0]]


@pytest.mark.parametrize(
    "option, words",
    [
        ({"max_shard_size": "500KB"}, "several files"),
        ({"max_shard_size": 500_000}, "several files"),
        ({"variant": "fp16"}, "not read here"),
        ({"distributed_checkpoint": True}, "not read here"),
    ],
    ids=str,
)
def test_what_could_not_be_read_back_is_not_written(auto, tmp_path, option, words):
    folder = tmp_path / "saved"
    with pytest.raises(ConfigError, match=words):
        auto[0].save_pretrained(folder, **option)
    assert not folder.exists()
    # as much as transformers allows by itself is no reason to refuse
    auto[0].save_pretrained(folder, max_shard_size="50GB", variant=None)
    assert type(auto[0]).from_pretrained(folder)


def test_a_packed_model_stays_packed_and_is_not_saved_as_another(tmp_path):
    pytest.importorskip("transformers", reason="an optional library")
    from tilelli_nb.extras.transformers import TilelliForCausalLM

    TilelliLM.from_pretrained("tilelli/nano").save_packed(tmp_path / "packed")
    packed = TilelliLM.from_pretrained(tmp_path / "packed")
    model = TilelliForCausalLM.from_pretrained(tmp_path / "packed")
    x = torch.tensor([list(b"Once upon a time")])
    assert torch.equal(model(x).logits, packed(x))
    with pytest.raises(CheckpointError, match="save_packed"):
        model.save_pretrained(tmp_path / "saved")


def test_a_trainer_trains_it_and_goes_on_from_its_checkpoint(tmp_path):
    pytest.importorskip("accelerate", reason="what a Trainer needs")
    from transformers import Trainer, TrainingArguments

    from tilelli_nb.extras.transformers import TilelliConfig, TilelliForCausalLM

    rows = [list(b"the fox and the den. "[i:] + b"the fox"[:i]) for i in range(8)]
    data = [{"input_ids": row[:20], "labels": row[:20]} for row in rows]
    config = TilelliConfig(**tiny(context=32).config.to_dict())

    def trained(folder, steps, resume=None):
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            save_steps=3,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            per_device_train_batch_size=4,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(TilelliForCausalLM(config), arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.lm.state_dict()

    straight = trained(tmp_path / "straight", 6)
    first = trained(tmp_path / "stopped", 3)
    resumed = trained(
        tmp_path / "stopped", 6, str(tmp_path / "stopped" / "checkpoint-3")
    )
    drawn = TilelliForCausalLM(config).lm.state_dict()
    assert not torch.equal(first["token.weight"], drawn["token.weight"])
    for name, weight in straight.items():
        assert torch.allclose(resumed[name], weight, atol=1e-6), name
    read = TilelliLM.from_pretrained(tmp_path / "straight" / "checkpoint-6")
    assert torch.equal(read.token.weight, straight["token.weight"])


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
