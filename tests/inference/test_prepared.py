"""Prepared models: the same answers as the model's own forward, in every form of the
weights, one byte at a time.
"""

import gc
import math
import pickle
import weakref
from copy import deepcopy
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from tiny_models import oracle, random_ids, tiny
from torch import nn

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.data.stories import stories
from tilelli_nb.errors import ConfigError, TokenError
from tilelli_nb.inference import decoding
from tilelli_nb.inference.decoding import prefill
from tilelli_nb.inference.prepared import (
    KINDS,
    Bf16Matrix,
    Int8Matrix,
    Matrix,
    Prepared,
    int8_rows,
)
from tilelli_nb.inference.sampling import Sampling, window_start
from tilelli_nb.language_model import FORMS
from tilelli_nb.model.ternary import TernaryFFN


def windowed(lm, ids):
    """Logits after each of ids, (n, 256), by the definition: full forwards over the
    windows of contract.md.

    The model is causal, so that one forward answers for all n whose window starts at
    the same byte.
    """
    context, out = lm.config.model.context, []
    starts = [window_start(n, context) for n in range(1, len(ids) + 1)]
    for start in sorted(set(starts)):
        ends = [n for n, s in enumerate(starts, 1) if s == start]
        with torch.no_grad():
            out.append(
                lm(torch.tensor([ids[start : ends[-1]]]))[0, ends[0] - start - 1 :]
            )
    return torch.cat(out)


def by_steps(model, ids):
    """The same by `step`, one byte after the other."""
    state = model.new_state()
    return torch.stack([model.step(torch.tensor([byte]), state)[0] for byte in ids])


def test_the_windows_are_the_ones_of_the_definition():
    lm, ids = tiny(context=32), random_ids(70)
    expected = torch.stack([oracle(lm, ids[:n]) for n in range(1, 71)])
    assert (windowed(lm, ids) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("number", range(20))
def test_float64_parity_at_every_position_of_20_prompts(number):
    """0 to 600 bytes; the widths, the heads and the number of kept keys vary."""
    lengths = torch.randint(
        0, 601, (20,), generator=torch.Generator().manual_seed(3)
    ).tolist()
    length = {0: 0, 1: 1, 2: 600}.get(number, lengths[number])
    sizes = [
        {},
        {"keep": 1, "conv_width": 1},
        {"n_heads": 1, "n_blocks": 1},
        {"keep": 200, "ffn_expand": 1},
    ]
    lm = tiny(number, **sizes[number % 4])
    # an empty prompt is an implied byte 0
    model, ids = lm.prepare(), random_ids(length, number) or [0]
    assert model.dtype == torch.float64
    assert (by_steps(model, ids) - windowed(lm, ids)).abs().max() < 1e-9
    with torch.no_grad():
        assert (
            model(torch.tensor([ids[:256]])) - lm(torch.tensor([ids[:256]]))
        ).abs().max() < 1e-9
    if length < 300:
        expected = list(ids)
        for _ in range(5):
            expected.append(int(oracle(lm, expected).argmax()))
        out = model.generate(ids if length else [], max_new=5, temperature=0, stop=())
        assert out == expected[0 if length else 1 :]


def near_ties(lm, ids, gap=1e-4):
    """Whether a byte's window, read in one go, holds a query whose k-th and next best
    score almost tie: (n,) bool.
    """
    flags, keep = torch.zeros(len(ids), dtype=torch.bool), lm.config.model.keep
    h = (lm.token.weight[torch.tensor(ids)] + lm.position.weight[: len(ids)])[None]
    for block in lm.blocks:
        qkv = F.linear(block.norm(h), block.attention.weight)
        q, k, _ = qkv.view(len(ids), 3, lm.config.model.n_heads, -1).unbind(1)
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
        for t in range(keep, len(ids)):
            best = scores[:, t, : t + 1].topk(keep + 1).values
            if (best[:, -2] - best[:, -1]).min() < gap:
                flags[t:] = True  # a later byte may read this one
                break
        h, _ = block(h)
    return flags


@torch.no_grad()
def test_fp32_parity_with_near_ties_set_aside():
    compared = 0
    for seed in range(8):
        lm, ids = tiny(seed, torch.float32, keep=16), random_ids(60, seed)
        difference = (by_steps(lm.prepare(), ids) - windowed(lm, ids)).abs().amax(-1)
        aside = near_ties(lm, ids)
        compared += int((~aside).sum())
        assert difference[~aside].max() < 1e-4
    assert compared > 150


def test_ties_are_all_kept():
    """Keys of zero: every score ties with every other, so that attention is the mean of
    all values seen so far.
    """
    lm, ids = tiny(n_blocks=1), random_ids(30)
    lm.blocks[0].attention.weight.data[24:48] = 0
    model = lm.prepare()
    assert (by_steps(model, ids) - windowed(lm, ids)).abs().max() < 1e-9
    state = model.new_state()
    for byte in ids:
        model.step(torch.tensor([byte]), state)
    y = lm.blocks[0].norm(lm.token.weight[ids] + lm.position.weight[:30])
    mean = (y @ lm.blocks[0].attention.weight[48:].t()).mean(0)
    assert torch.allclose(state.blocks.work.attended.flatten(), mean, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_do_not_depend_on_their_neighbours(kind):
    lm = tiny(
        dtype=torch.float64 if kind == "fp32" else torch.float32,
        d_model=32,
        n_heads=4,
        context=32,
    )
    model = lm.prepare(kind)
    prompts = [random_ids(20, 1), random_ids(20, 2), random_ids(7, 3)]
    together = model.generate(prompts, max_new=30, seed=5, stop=())
    assert together[0] == model.generate(prompts[0], max_new=30, seed=5, stop=())
    assert [len(text) for text in together] == [50, 50, 37]
    state, logits = model.new_state(2), []
    for pair in zip(*prompts[:2], strict=True):
        logits.append(model.step(torch.tensor(pair), state))
    for row in (0, 1):
        alone = by_steps(model, prompts[row])
        assert (torch.stack(logits)[:, row] - alone).abs().max() < (
            1e-9 if kind == "fp32" else 0.05
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_prepared_does_not_change_when_the_model_does(kind):
    lm, ids = tiny(dtype=torch.float32, d_model=32, n_heads=4), random_ids(10)
    model = lm.prepare(kind)
    before = by_steps(model, ids)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.zero_()
    assert torch.equal(by_steps(model, ids), before)


def test_a_block_that_keeps_another_number_does_so_in_its_prepared_form():
    lm = tiny()
    ids = random_ids(40)
    as_configured = lm.prepare()(torch.tensor([ids]))
    lm.blocks[0].attention.keep = 1
    wanted = lm(torch.tensor([ids]))
    prepared = lm.prepare()
    assert (prepared(torch.tensor([ids])) - wanted).abs().max() < 1e-9
    assert (as_configured - wanted).abs().max() > 1e-3
    state = prepared.new_state()
    for byte in ids:
        logits = prepared.step(torch.tensor([byte]), state)
    assert (logits - wanted[:, -1]).abs().max() < 1e-9


def test_two_threads_give_what_one_gives():
    lm, ids = tiny(), random_ids(40)
    one = by_steps(lm.prepare(), ids)
    torch.set_num_threads(2)  # every test begins with one
    assert (by_steps(lm.prepare(), ids) - one).abs().max() < 1e-9


def test_the_routers_choice_is_left_in_the_state():
    lm, ids = tiny(), random_ids(9)
    model = lm.prepare()
    state = model.new_state()
    for byte in ids:
        model.step(torch.tensor([byte]), state)
    expected = lm.hidden(torch.tensor([ids]))[1][0, :, -1]  # (blocks, 3)
    assert torch.allclose(state.blocks.p[:, 0, 0], expected, atol=1e-12)
    state = model.new_state()
    prefill(model, torch.tensor([ids]), state)
    assert torch.allclose(state.blocks.p[:, 0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_float64_model_can_be_prepared_in_every_form(kind):
    lm, ids = tiny(d_model=32, n_heads=4), random_ids(12)
    model = lm.prepare(kind)
    assert model.dtype == (torch.float64 if kind == "fp32" else torch.float32)
    assert bits(model(torch.tensor([ids]))[0], ids) == pytest.approx(
        bits(by_steps(model, ids), ids), abs=0.05
    )


# The forms of the weights


def test_int8_rows_by_hand():
    codes, scale = int8_rows(
        torch.tensor([[1.27, -0.50, 0.004], [0.0, 0, 0], [-254, 127, 1]])
    )
    # 63.5 is rounded to even
    assert codes.tolist() == [[127, -50, 0], [0, 0, 0], [-127, 64, 0]]
    assert scale[0].item() == pytest.approx(0.01) and scale[2].item() == 2


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize("shape", [(7, 32), (33, 48), (5, 3), (50, 20)])
def test_a_product_in_every_form(rows, shape):
    g = torch.Generator().manual_seed(0)
    weight, y = (
        torch.randn(shape, generator=g),
        torch.randn(rows, shape[1], generator=g),
    )
    codes, scale = int8_rows(weight)
    forms = {
        Matrix(weight): weight,
        Bf16Matrix(weight.bfloat16()): weight.bfloat16().float(),
        Int8Matrix(codes, scale): codes * scale[:, None],
    }
    for matrix, meant in forms.items():
        expected = y.double() @ meant.double().t()
        for out in (None, torch.empty(rows, shape[0])):
            result = matrix(y, out=out)
            assert result.dtype == torch.float32 and (out is None or result is out)
            assert (result - expected).norm() <= (
                1e-6 if type(matrix) is Matrix else 6e-3
            ) * expected.norm()


def test_ternary_keeps_the_codes_and_the_scale():
    lm = tiny(dtype=torch.float32, d_model=32, n_heads=4)
    model = lm.prepare("ternary")
    for block, prepared in zip(lm.blocks, model.blocks, strict=True):
        for layer, matrix, first in (
            (block.ffn.up, prepared.fused, 3 * 32),
            (block.ffn.down, prepared.down, 0),
        ):
            alpha = layer.weight.abs().mean()
            codes = (layer.weight / alpha).round().clamp(-1, 1)
            rows = slice(first, first + len(codes))
            assert torch.equal(matrix.weight[rows].float(), codes)
            assert torch.allclose(
                matrix.scale[rows] * math.sqrt(2), alpha.expand(len(codes)), rtol=1e-6
            )


@pytest.fixture(scope="module")
def nano():
    return TilelliLM.from_pretrained("tilelli/nano")


@pytest.fixture(scope="module")
def held_out():
    return [0, *"\0".join(islice(stories(900), 5)).encode()][:700]


def bits(logits, ids):
    return F.cross_entropy(
        logits[:-1].double(), torch.tensor(ids[1:])
    ).item() / math.log(2)


@pytest.mark.parametrize(
    "kind,allowed", [("fp32", 1e-4), ("bf16", 0.01), ("int8", 0.01), ("ternary", 0.01)]
)
def test_bits_per_byte_of_every_form(nano, held_out, kind, allowed):
    """On held-out stories, by steps and all at once, within 0.01 of the model
    itself.
    """
    model, expected = nano.prepare(kind), bits(windowed(nano, held_out), held_out)
    assert abs(bits(by_steps(model, held_out), held_out) - expected) < allowed
    text = bytes(held_out[1:])
    assert abs(model.score(text) - nano.score(text)) < allowed


def test_what_cannot_be_prepared_says_so(nano):
    with pytest.raises(ConfigError, match="int8"):
        nano.prepare("int4")
    with pytest.raises(ConfigError, match="vanilla"):
        TilelliLM(load_config("nano").with_model(block="vanilla", d_model=16)).prepare()
    with_bias = tiny()
    with_bias.output.bias = torch.nn.Parameter(torch.ones(256))
    with pytest.raises(ConfigError, match="output has a bias"):
        with_bias.prepare()
    with pytest.raises(TokenError, match="257 bytes"):
        nano.prepare()(torch.zeros(1, 257, dtype=torch.long))
    with pytest.raises(TokenError, match="they go from -1 to 300"):
        nano.prepare()(torch.tensor([[-1, 300]]))


# A model prepares itself


def plain(lm, ids, **settings):
    """What the model writes when it is not prepared."""
    return decoding.generate(lm, ids, Sampling(**settings))


def small(**sizes):
    """An fp32 model on the CPU in eval(), as one that was loaded."""
    return tiny(dtype=torch.float32, d_model=32, n_heads=4, keep=8, context=32, **sizes)


@pytest.mark.parametrize("length", [0, 1, 2, 17, 127, 255, 256, 257, 400, 600])
@pytest.mark.parametrize("temperature", [0, 0.8])
def test_generate_writes_the_text_of_the_plain_model(
    nano, held_out, length, temperature
):
    settings = {"max_new": 40, "temperature": temperature, "seed": length}
    ids = held_out[1 : 1 + length]
    assert isinstance(nano.fast_form(), Prepared)
    expected = plain(nano, ids, **settings)
    assert nano.generate(ids, **settings) == expected
    assert [*ids, *nano.stream(ids, **settings)] == expected
    batch = [ids, held_out[100 : 100 + length], [7]]
    assert nano.generate(batch, **settings) == plain(nano, batch, **settings)


def test_a_model_is_prepared_once():
    lm = small()
    first = lm.fast_form()
    lm.generate([1, 2], max_new=3)
    lm.score(bytes(range(64)))
    assert lm.fast_form() is first
    assert lm.generate([1, 2], max_new=0) == [1, 2]


@torch.no_grad()
def add_in_place(lm):
    lm.output.weight += torch.randn(lm.output.weight.shape)


def write_behind_the_counter(lm):
    lm.output.weight.data.normal_()


def write_through_numpy(lm):
    lm.blocks[1].norm.bias.detach().numpy()[3] = 7


def put_another_tensor_behind_the_name(lm):
    lm.token.weight.data = torch.randn(lm.token.weight.shape)


def put_another_parameter_in_place(lm):
    lm.position.weight = nn.Parameter(torch.randn(lm.position.weight.shape))


def load_other_weights(lm):
    lm.load_state_dict(small_with_seed(5).state_dict())


def take_a_step_of_training(lm):
    lm.train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.1)
    lm(torch.tensor([random_ids(20)]), torch.tensor([random_ids(20, 1)])).backward()
    optimizer.step()
    lm.eval()


@torch.inference_mode()
def add_in_inference_mode(lm):
    lm.blocks[0].ffn.down.weight.mul_(-1)


def small_with_seed(seed):
    return tiny(seed, dtype=torch.float32, d_model=32, n_heads=4, keep=8, context=32)


@pytest.mark.parametrize(
    "change",
    [
        add_in_place,
        write_behind_the_counter,
        write_through_numpy,
        put_another_tensor_behind_the_name,
        put_another_parameter_in_place,
        load_other_weights,
        take_a_step_of_training,
        add_in_inference_mode,
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_weight_changes_the_text(change):
    torch.manual_seed(0)
    lm, settings = small(), {"max_new": 60, "temperature": 1, "seed": 4, "stop": ()}
    before = lm.generate([40, 200], **settings)
    first = lm.fast_form()
    change(lm)
    after = lm.generate([40, 200], **settings)
    assert lm.fast_form() is not first
    assert after == plain(lm, [40, 200], **settings) != before


def test_weights_that_change_places_behind_the_counter_are_noticed():
    lm = small()
    lm.norm.bias.data[:2] = torch.tensor([1.0, 2.0])
    first = lm.fast_form()
    lm.norm.bias.data[:2] = torch.tensor([2.0, 1.0])
    assert lm.fast_form() is not first


@torch.no_grad()
def test_a_latent_weight_that_crosses_a_border_is_noticed():
    """A change too small for a product to show, which makes a 0 a 1."""
    lm = small()
    up = lm.blocks[0].ffn.up
    scale = up.weight.abs().mean().item()
    zero, one = 0.4 * scale, 0.6 * scale
    for _ in range(20):
        middle = (zero + one) / 2
        up.weight[0, 0] = middle
        zero, one = (zero, middle) if up.codes()[0][0, 0] == 1 else (middle, one)
    first_of_up = 3 * 32  # in the prepared block it stands below q, k and v
    for latent, code in ((zero, 0), (one, 1), (zero, 0)):
        up.weight[0, 0] = latent
        found = lm.fast_form().blocks[0].fused.weight[0, first_of_up].item()
        assert found == pytest.approx(code * scale / math.sqrt(2), rel=1e-2)
    assert one - zero < 1e-6 * scale


def test_sampling_while_training_writes_with_the_weights_of_the_moment():
    lm = small()
    optimizer = torch.optim.SGD(lm.parameters(), lr=1.0)
    settings = {"max_new": 30, "temperature": 0, "stop": ()}
    x, y = torch.tensor([random_ids(20)]), torch.tensor([random_ids(20, 1)])
    texts = []
    for _ in range(3):
        lm.train()
        assert lm not in FORMS, "nothing is kept while training goes on"
        optimizer.zero_grad()
        lm(x, y).backward()
        optimizer.step()
        texts.append(lm.generate([3], **settings))  # in train() as well
        assert lm.fast_form() is lm
        lm.eval()
        assert lm.generate([3], **settings) == plain(lm, [3], **settings) == texts[-1]
    assert texts[0] != texts[2]


def hooked(lm):
    lm.blocks[0].router.register_forward_hook(lambda _module, _y, p: p.flip(-1))


def with_another_part(lm):
    lm.blocks[1].norm = nn.Identity()


def with_another_method(lm):
    lm.blocks[0].conv.step = lambda y, state: y


def keeping_fewer_keys(lm):
    lm.blocks[0].attention.keep = 1


def with_one_head(lm):
    lm.blocks[0].attention.n_heads = 1


def with_another_eps(lm):
    lm.norm.eps = 5.0


@pytest.mark.parametrize(
    "change",
    [
        nn.Module.train,
        nn.Module.double,
        nn.Module.bfloat16,
        lambda lm: lm.to("meta"),
        hooked,
        with_another_part,
        with_another_method,
        keeping_fewer_keys,
        with_one_head,
        with_another_eps,
    ],
)
def test_a_model_that_cannot_be_prepared_exactly_writes_by_itself(change):
    lm = small()
    assert isinstance(lm.fast_form(), Prepared)
    change(lm)
    assert lm.fast_form() is lm


@torch.no_grad()
def with_a_bias(lm):
    lm.output.bias = nn.Parameter(torch.zeros(256))
    lm.output.bias[97] = 1e4


def without_a_bias(lm):
    lm.norm.bias = None


def tied(lm):
    lm.output.weight = lm.token.weight


def sharing_a_matrix(lm):
    lm.blocks[1].ffn.up.weight = lm.blocks[0].ffn.up.weight


@pytest.mark.parametrize("was_used", [False, True])
@pytest.mark.parametrize(
    "change", [with_a_bias, without_a_bias, tied, sharing_a_matrix]
)
def test_a_weight_more_or_less_or_a_shared_one_is_noticed(change, was_used):
    settings = {"max_new": 8, "temperature": 0, "stop": ()}
    lm = small()
    if was_used:
        lm.generate([65, 66], **settings)
    change(lm)
    assert lm.generate([65, 66], **settings) == plain(lm, [65, 66], **settings)


def test_a_method_that_was_replaced_in_its_class_is_not_passed_over(monkeypatch):
    lm = small()
    before = lm.generate([65], max_new=8, temperature=0)
    monkeypatch.setattr(TernaryFFN, "forward", lambda self, y, state=None: 0 * y)
    assert lm.fast_form() is lm
    assert lm.generate([65], max_new=8, temperature=0) == plain(
        lm, [65], max_new=8, temperature=0
    )
    monkeypatch.undo()
    assert isinstance(lm.fast_form(), Prepared)
    assert lm.generate([65], max_new=8, temperature=0) == before


def test_other_kinds_of_model_write_by_themselves():
    class Another(TilelliLM):
        pass

    config = load_config("nano").with_model(d_model=16, n_blocks=1)
    assert isinstance(TilelliLM(config).eval().fast_form(), Prepared)
    vanilla = TilelliLM(config.with_model(block="vanilla")).eval()
    for lm in (vanilla, Another(config).eval()):
        assert lm.fast_form() is lm
        assert lm.generate([1], max_new=3, stop=())[0] == 1
    lm = TilelliLM(config).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert lm.fast_form() is lm


def test_copies_and_files_do_not_know_of_it(tmp_path):
    lm = small()
    names = list(lm.state_dict())
    lm.save_pretrained(tmp_path / "before")
    text = lm.generate([5], max_new=20, seed=1)
    assert lm in FORMS and list(lm.state_dict()) == names
    lm.save_pretrained(tmp_path / "after")
    before, after = (
        (tmp_path / when / "model.safetensors").read_bytes()
        for when in ("before", "after")
    )
    assert before == after
    for copy in (deepcopy(lm), pickle.loads(pickle.dumps(lm))):
        assert copy not in FORMS
        assert copy.generate([5], max_new=20, seed=1) == text
        assert copy.fast_form() is not lm.fast_form()


def test_a_model_that_is_gone_takes_its_form_along():
    lm = small()
    lm.generate([1], max_new=1)
    form = weakref.ref(FORMS[lm].prepared)
    assert form() is not None
    del lm
    gc.collect()
    assert form() is None


def test_weights_that_were_made_in_inference_mode():
    with torch.inference_mode():
        lm = TilelliLM.from_pretrained("tilelli/nano")
    first = lm.generate(list(b"Once"), max_new=20, temperature=0)
    assert first == plain(lm, list(b"Once"), max_new=20, temperature=0)
    with torch.inference_mode():
        lm.output.weight.zero_()
    assert lm.generate([9], max_new=5, temperature=0, stop=()) == [9, 0, 0, 0, 0, 0]
