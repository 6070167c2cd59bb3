"""The whole model: its size, its loss, no leak of the future, and generation by the
rule of the window.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import oracle, random_ids, tiny

from tilelli_nb import ByteTokenizer, TilelliLM, load_config
from tilelli_nb.errors import CheckpointError, GenerationError, TokenError
from tilelli_nb.inference.sampling import (
    Sampling,
    probabilities,
    sample_next,
    window_start,
)
from tilelli_nb.inference.scoring import log_probs

TABLES = {
    "lite_10m": {
        "token": 98_304,
        "position": 98_304,
        "output": 98_304,
        "conv": 11_520,
        "attention": 2_654_208,
        "ffn": 7_077_888,
        "router": 6_912,
        "norms": 5_376,
    },
    "nano": {
        "token": 32_768,
        "position": 32_768,
        "output": 32_768,
        "conv": 2_560,
        "attention": 196_608,
        "ffn": 524_288,
        "router": 1_536,
        "norms": 1_280,
    },
}


@pytest.mark.parametrize("name,total", [("lite_10m", 10_050_816), ("nano", 824_576)])
def test_parameter_tables(name, total):
    lm = TilelliLM(load_config(name))
    assert lm.parameter_table() == TABLES[name]
    assert (
        sum(p.numel() for p in lm.parameters()) == sum(TABLES[name].values()) == total
    )
    assert not any(
        key.endswith("bias") and "norm" not in key for key in lm.state_dict()
    )


def test_init_has_the_contracts_deviations():
    lm = TilelliLM(load_config("lite_10m"))
    block = lm.blocks[0]
    for weight, deviation in [
        (lm.token.weight, 0.02),
        (lm.position.weight, 0.02),
        (lm.output.weight, 384**-0.5),
        (block.attention.weight, 384**-0.5),
        (block.ffn.up.weight, 384**-0.5),
        (block.ffn.down.weight, 1536**-0.5),
        (block.conv.weight, 5**-0.5),
    ]:
        assert weight.std().item() == pytest.approx(deviation, rel=0.06)
    assert block.router.weight.abs().max() == 0


def test_building_a_model_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b = (
        TilelliLM(load_config("nano"), seed=1),
        TilelliLM(load_config("nano"), seed=1),
    )
    assert torch.equal(torch.rand(3), expected)
    assert all(
        torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)
    )


def test_no_byte_of_the_future_leaks():
    lm, ids = tiny(), torch.tensor([random_ids(40)])
    with torch.no_grad():
        before = lm(ids)
        for t in range(40):
            poked = ids.clone()
            poked[0, t] = (poked[0, t] + 1) % 256
            after = lm(poked)
            assert torch.equal(before[0, :t], after[0, :t])
            assert not torch.equal(before[0, t], after[0, t])


def test_tokens_and_length_are_checked():
    lm = tiny()
    with pytest.raises(TokenError, match="256"):
        lm(torch.tensor([[0, 256]]))
    with pytest.raises(TokenError, match="257 bytes at once"):
        lm(torch.zeros(1, 257, dtype=torch.long))
    with pytest.raises(TokenError, match="position 1"):
        lm.generate([1, 999])
    for wrong in (torch.tensor([72, 105]), torch.zeros(1, 2, dtype=torch.uint8)):
        with pytest.raises(TokenError, match="give .B, T. long") as caught:
            lm(wrong)
        assert str(wrong.dtype) in caught.value.problem
    with pytest.raises(TokenError, match="no bytes to read"):
        lm(torch.zeros(1, 0, dtype=torch.long))


@pytest.mark.parametrize("change", [256, -1, torch.int32, (1, 3)], ids=str)
def test_targets_are_checked(change):
    lm, x = tiny(), torch.tensor([[1, 2, 3, 4]])
    targets = torch.tensor([[2, 3, 4, -100]])
    assert lm(x, targets).isfinite()
    if isinstance(change, int):
        targets[0, 1], said = change, "neither a byte"
    elif isinstance(change, tuple):
        targets, said = targets[:, :3], r"shape \(1, 3\)"
    else:
        targets, said = targets.to(change), "torch.int32"
    with pytest.raises(TokenError, match=said):
        lm(x, targets)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, bytes, tuple])
def test_what_is_generated_are_plain_numbers(kind):
    lm = tiny()
    alone = lm.generate([72, 105], max_new=3, temperature=0)
    for found in (
        lm.generate(kind([72, 105]), max_new=3, temperature=0),
        lm.generate([list(kind([72, 105]))], max_new=3, temperature=0)[0],
    ):
        assert found == alone and {type(byte) for byte in found} == {int}


# The window


def test_window_golden():
    assert [window_start(n) for n in (0, 1, 256, 257, 384, 385, 512, 513)] == [
        0,
        0,
        0,
        128,
        128,
        256,
        256,
        384,
    ]


def test_steps_agree_with_the_window_read_again():
    lm, ids = tiny(context=32), random_ids(150)
    state = lm.new_state()
    for n, byte in enumerate(ids, start=1):
        logits = lm.step(torch.tensor([byte]), state)[0]
        assert (logits - oracle(lm, ids[:n])).abs().max() < 1e-10, n


def test_odd_windows_worked_out_by_hand():
    """A full window drops its larger half: 7 bytes drop 4 and keep 3, 1 drops 1."""
    seven = [window_start(n, 7) for n in (7, 8, 11, 12, 15, 16)]
    assert seven == [0, 4, 4, 8, 8, 12]
    assert [window_start(n, 1) for n in (0, 1, 2, 3)] == [0, 0, 1, 2]


@pytest.mark.parametrize("block", ["routed", "vanilla"])
@pytest.mark.parametrize("context", [1, 2, 3, 7])
def test_one_rule_for_every_context(context, block):
    """Steps, generation and sliding scores, of the model and its prepared form, against
    the window read again."""
    lm = tiny(context=context, keep=min(4, context), block=block)
    ids = random_ids(5 * context + 3)
    after = torch.stack([oracle(lm, ids[:n]) for n in range(1, len(ids) + 1)])
    forms = [lm, lm.prepare()] if block == "routed" else [lm]
    for model in forms:
        state = model.new_state()
        steps = [model.step(torch.tensor([byte]), state)[0] for byte in ids]
        assert (torch.stack(steps) - after).abs().max() < 1e-9
        found = model.log_probs(torch.tensor(ids), sliding=True)
        expected = after[:-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        assert (found - expected).abs().max() < 1e-9
        best = int(after[-1].argmax())
        assert model.generate(ids, max_new=1, temperature=0, stop=()) == [*ids, best]


@pytest.mark.parametrize("length", [0, 1, 5, 31, 32, 33, 48, 49, 100])
def test_greedy_generation_agrees_with_the_window_read_again(length):
    lm, ids = tiny(context=32), random_ids(length)
    out = lm.generate(ids, max_new=60, temperature=0, stop=())
    expected = list(ids) or [0]
    for _ in range(60):
        expected.append(int(oracle(lm, expected).argmax()))
    assert out == (expected if length else expected[1:])


def test_log_probs_and_score_agree_with_one_byte_at_a_time():
    lm, ids = tiny(context=32), [0, *random_ids(101)]
    one_by_one = torch.stack(
        [F.log_softmax(oracle(lm, ids[:n]), -1)[ids[n]] for n in range(1, 102)]
    )
    assert (
        log_probs(lm, torch.tensor(ids), sliding=True) - one_by_one
    ).abs().max() < 1e-10
    assert lm.score(bytes(ids[1:]), sliding=True) == pytest.approx(
        -one_by_one.mean().item() / math.log(2), abs=1e-10
    )
    nats = 0.0
    # chunk i reads s[32i : 32i+32] and predicts the byte after each
    for i in range(0, 101, 32):
        chunk, targets = torch.tensor([ids[i : i + 32][: 101 - i]]), ids[i + 1 : i + 33]
        logp = F.log_softmax(lm(chunk), -1)[0]
        nats -= sum(logp[j, t].item() for j, t in enumerate(targets))
    assert lm.score(bytes(ids[1:])) == pytest.approx(
        nats / math.log(2) / 101, abs=1e-10
    )


def test_an_untrained_model_needs_about_eight_bits_and_an_empty_text_is_an_error():
    lm = tiny()
    for parameter in lm.output.parameters():
        parameter.data.zero_()
    assert lm.score("any text at all") == pytest.approx(8, abs=1e-6)
    with pytest.raises(TokenError, match="empty"):
        lm.score("")


# Sampling


def test_probabilities_by_hand():
    logits = torch.full((256,), -1e9, dtype=torch.float64)
    logits[:4] = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log()

    def take(**settings):
        return probabilities(logits, Sampling(**settings))[:4].tolist()

    assert take(temperature=1) == pytest.approx([0.4, 0.3, 0.2, 0.1])
    squares = [0.16, 0.09, 0.04, 0.01]
    assert take(temperature=0.5) == pytest.approx([s / 0.3 for s in squares])
    assert take(temperature=1, top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert take(temperature=1, top_p=0.65) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert take(temperature=1, top_p=0.75) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])
    assert take(temperature=1, top_p=1e-9) == pytest.approx([1, 0, 0, 0])
    assert take(temperature=0) == [1, 0, 0, 0]


def test_a_draw_is_the_draw_of_multinomial():
    logits = torch.randn(256, generator=torch.Generator().manual_seed(0)) * 3
    for settings in (
        {"temperature": 1.0},
        {"temperature": 1e-300},
        {"top_k": 5},
        {"top_p": 0.3},
    ):
        sampling = Sampling(seed=1, **settings)
        ours, theirs = sampling.generator(0), sampling.generator(0)
        p = probabilities(logits, sampling)
        for _ in range(50):
            assert sample_next(logits, sampling, ours) == int(
                torch.multinomial(p, 1, generator=theirs)
            )


def test_the_seed_decides_and_rows_do_not_depend_on_their_neighbours():
    lm = tiny()
    prompts = [random_ids(6, 1), random_ids(9, 2), random_ids(6, 3)]
    batch = lm.generate(prompts, max_new=30, seed=7)
    assert batch == lm.generate(prompts, max_new=30, seed=7)
    assert batch[0] == lm.generate(prompts[0], max_new=30, seed=7)
    assert (
        lm.generate(prompts[:1] + [prompts[2]] * 2, max_new=30, seed=7)[0] == batch[0]
    )
    assert lm.generate(prompts[0], max_new=30, seed=8) != batch[0]


def test_the_stop_byte_ends_the_text_and_is_not_in_it():
    lm = tiny()
    free = lm.generate(random_ids(4), max_new=40, temperature=0, stop=())
    stop = free[12]
    cut = lm.generate(random_ids(4), max_new=40, temperature=0, stop=(stop,))
    assert cut == free[: 4 + free[4:].index(stop)]
    assert (
        list(lm.stream(random_ids(4), max_new=40, temperature=0, stop=(stop,)))
        == cut[4:]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.5},
        {"max_new": -1},
        {"seed": -1},
        {"stop": (300,)},
    ],
)
def test_settings_outside_their_range_are_named(settings):
    with pytest.raises(GenerationError, match=next(iter(settings))):
        tiny().generate([1], **settings)


@pytest.mark.parametrize("name", ["max_new", "temperature", "top_k", "top_p", "seed"])
def test_none_is_allowed_where_it_has_a_meaning(name):
    if name in ("top_k", "top_p", "seed"):
        assert getattr(Sampling(**{name: None}), name) is None
    else:
        with pytest.raises(GenerationError, match=f"{name} = None"):
            Sampling(**{name: None})


# Saving


def test_save_and_load_give_the_same_model(tmp_path):
    lm = tiny(dtype=torch.float32)
    lm.save_pretrained(tmp_path / "model")
    again = TilelliLM.from_pretrained(tmp_path / "model")
    assert not again.training and again.config == lm.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            lm.state_dict().values(), again.state_dict().values(), strict=True
        )
    )


def test_the_bundled_model_runs_the_five_lines():
    tok = ByteTokenizer()
    lm = TilelliLM.from_pretrained("tilelli/nano")
    out = lm.generate(tok.encode("Once upon a time"), max_new=64, seed=0)
    text = tok.decode(out)
    assert text.startswith("Once upon a time") and len(out) > 40
    # words, not noise
    assert sum(c.isalpha() or c in " .,'\"!?" for c in text) / len(text) > 0.95


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(CheckpointError, match="tilelli/nano"):
        TilelliLM.from_pretrained("tilelli/big")
    with pytest.raises(CheckpointError, match="there is no model"):
        TilelliLM.from_pretrained("no/such/thing")


def test_where_nothing_is_predicted_the_loss_is_zero():
    """A row of padding alone must not turn the weights into NaN."""
    lm = tiny(context=16).train()
    x = torch.tensor([random_ids(8)])
    loss = lm(x, torch.full_like(x, -100))
    loss.backward()
    assert loss.item() == 0.0
    assert all(parameter.grad.isfinite().all() for parameter in lm.parameters())
