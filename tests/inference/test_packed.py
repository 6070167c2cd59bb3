"""Packed models: exact codes, five to a byte; a file that is whole or refused; and
training from it, with new latent weights alone.
"""

import json
import math
import random
import struct

import pytest
import torch

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.cli.models import pack
from tilelli_nb.data.stories import stories
from tilelli_nb.errors import CheckpointError, TokenError
from tilelli_nb.inference.packed import CODES, ROWS, SCALE, draw_latent
from tilelli_nb.inference.prepared import Prepared
from tilelli_nb.model.ternary import ternarize
from tilelli_nb.pretrained import first_weights
from tilelli_nb.storage.checkpoint import read_tensors, write_tensors


def small(**sizes):
    config = load_config("nano").with_model(
        **{"d_model": 32, "n_blocks": 1, "n_heads": 2, "context": 32, **sizes}
    )
    return TilelliLM(config, seed=4).eval()


@pytest.fixture(scope="module")
def nano():
    return TilelliLM.from_pretrained("tilelli/nano")


@pytest.fixture(scope="module")
def text():
    return next(iter(stories(900))).encode()[:1000]


@pytest.fixture(scope="module")
def packed_nano(nano, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return folder, nano.save_packed(folder, text, val_bpb=0.25)


def test_nano_takes_less_than_half_a_megabyte_and_hardly_loses_anything(
    nano, text, packed_nano
):
    folder, note = packed_nano
    assert (folder / "model.safetensors").stat().st_size <= 500_000
    again = TilelliLM.from_pretrained(folder)
    assert again.is_packed and not again.training
    assert note["bits_per_byte_before"] == pytest.approx(nano.score(text)) and note[
        "text_bytes"
    ] == len(text)
    assert note["bits_per_byte"] == pytest.approx(again.score(text), abs=1e-6)
    assert abs(note["bits_per_byte"] - note["bits_per_byte_before"]) < 0.01
    assert json.loads((folder / "config.json").read_text())["packed"] == note
    assert read_tensors(folder / "model.safetensors")[1]["val_bpb"] == 0.25


@pytest.mark.parametrize("empty", ["", b""])
def test_an_empty_text_is_refused_and_none_alone_is_not_measured(tmp_path, empty):
    with pytest.raises(TokenError, match="an empty text has no bytes to score"):
        small().save_packed(tmp_path / "packed", empty)
    assert not (tmp_path / "packed").exists()
    assert "bits_per_byte" not in small().save_packed(tmp_path / "packed", None)


def test_a_model_that_is_packed_again_keeps_what_was_measured(packed_nano, tmp_path):
    """Since it is the same model: every tensor is equal."""
    tensors, metadata = read_tensors(packed_nano[0] / "model.safetensors")
    about = {name: metadata[name] for name in ("val_bpb", "packed")}
    again = TilelliLM.from_pretrained(packed_nano[0])
    assert again.save_packed(tmp_path, **about) == packed_nano[1]
    same, noted = read_tensors(tmp_path / "model.safetensors")
    assert noted == metadata and same.keys() == tensors.keys()
    assert all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_the_command_keeps_what_was_measured(packed_nano, tmp_path):
    pack(str(packed_nano[0]), tmp_path / "again", text=None)
    _, noted = read_tensors(tmp_path / "again" / "model.safetensors")
    assert noted["packed"] == packed_nano[1]


def test_lite_10m_takes_at_most_4_6_megabytes(tmp_path):
    lm = TilelliLM(load_config("lite_10m"))
    lm.save_packed(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size <= 4_600_000
    codes, alpha = lm.blocks[5].ffn.down.codes()
    again, same = TilelliLM.from_pretrained(tmp_path).blocks[5].ffn.down.codes()
    assert torch.equal(codes, again) and alpha == same


def test_codes_and_scales_are_exact_and_never_ternarized_again(
    nano, packed_nano, tmp_path
):
    """Against the definition, in float64; and after packing what was packed."""
    first = TilelliLM.from_pretrained(packed_nano[0])
    first.save_packed(tmp_path / "again")
    for again in (first, TilelliLM.from_pretrained(tmp_path / "again")):
        for before, after in zip(nano.blocks, again.blocks, strict=True):
            for old, new in (
                (before.ffn.up, after.ffn.up),
                (before.ffn.down, after.ffn.down),
            ):
                alpha = old.weight.double().abs().mean()
                codes = (old.weight.double() / alpha).round().clamp(-1, 1)
                # ties of rounding, if any
                assert (codes != new.weight.detach().sign()).float().mean() < 1e-5
                assert new.codes()[1].item() == pytest.approx(alpha.item(), rel=1e-6)
                assert torch.equal(new.ternary_weight(), old.ternary_weight())
                assert new.zero_share() == pytest.approx(old.zero_share())


def test_the_rows_are_within_half_a_step_of_the_weights(nano, packed_nano):
    tensors, _ = read_tensors(packed_nano[0] / "model.safetensors")
    weights = nano.state_dict()
    rows = [name.removesuffix(ROWS) for name in tensors if name.endswith(ROWS)]
    assert {
        "token.weight",
        "position.weight",
        "output.weight",
        "blocks.0.attention.weight",
    } <= set(rows)
    for name in rows:
        step = weights[name].double().abs().amax(1, keepdim=True) / 127
        error = (
            tensors[name + ROWS].double() * tensors[name + SCALE].double()[:, None]
            - weights[name].double()
        )
        assert (error.abs() <= step * 0.5001).all()
    kept = [name for name in tensors if not name.endswith((ROWS, CODES, SCALE))]
    assert kept and all(torch.equal(tensors[name], weights[name]) for name in kept)


def test_the_prepared_model_holds_the_codes_of_the_file(nano, packed_nano):
    model = TilelliLM.from_pretrained(packed_nano[0]).prepare("ternary")
    for block, prepared in zip(nano.blocks, model.blocks, strict=True):
        assert torch.equal(prepared.down.weight.float(), block.ffn.down.codes()[0])
        assert torch.allclose(
            prepared.down.scale * math.sqrt(2), block.ffn.down.codes()[1], rtol=1e-6
        )


def regions(data):
    """Every part of the file: the length, the header, its digest, both ends and the
    middle of each tensor.
    """
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    yield from range(8)
    yield from range(8, 8 + length, 7)
    digest = data.index(b"sha256 ") + 7
    yield from range(digest, digest + 64)
    for name, about in header.items():
        if name != "__metadata__":
            first, last = (8 + length + offset for offset in about["data_offsets"])
            yield from {first, first + 1, (first + last) // 2, last - 1}


def test_any_flipped_byte_is_refused(tmp_path):
    small().save_packed(tmp_path)
    path, rng = tmp_path / "model.safetensors", random.Random(0)
    data = path.read_bytes()
    for position in sorted(set(regions(data))):
        path.write_bytes(
            data[:position]
            + bytes([data[position] ^ (1 << rng.randrange(8))])
            + data[position + 1 :]
        )
        with pytest.raises(CheckpointError):
            TilelliLM.from_pretrained(tmp_path)
    path.write_bytes(data)
    assert TilelliLM.from_pretrained(tmp_path).is_packed


def test_a_packed_model_cannot_be_trained_and_says_why(packed_nano, nano):
    lm = TilelliLM.from_pretrained(packed_nano[0])
    with pytest.raises(
        CheckpointError, match="latent weights behind its codes are gone"
    ):
        lm.train()
    with pytest.raises(CheckpointError, match="latent weights"):
        nano.load_weights(read_tensors(packed_nano[0] / "model.safetensors")[0])
    with pytest.raises(CheckpointError, match="save_packed"):
        lm.save_pretrained(packed_nano[0])


def test_training_can_begin_from_a_packed_model(nano, packed_nano, text):
    """With new latent weights, whose codes and scales are the file's (worked out in
    float64) and which are not all far from the next code.
    """
    lm = TilelliLM(nano.config, draw=False)
    said = first_weights(packed_nano[0], lm)
    assert said == ["They were packed: their latent weights were drawn anew."]
    assert not lm.is_packed and lm.is_as_built()
    for before, after in zip(nano.blocks, lm.blocks, strict=True):
        for old, new in (
            (before.ffn.up, after.ffn.up),
            (before.ffn.down, after.ffn.down),
        ):
            codes, alpha = old.codes()
            latent = new.weight.detach().double()
            size = latent.abs().mean()
            assert size.item() == pytest.approx(alpha.item(), rel=1e-6)
            assert torch.equal((latent / size).round().clamp(-1, 1), codes.double())
            # Spread evenly: of those that are 0, a tenth lies within a twentieth of
            # alpha from the edge at 0.5. (0.49 - 0.45) / 0.49 is a twelfth.
            zeros = latent[codes == 0].abs() / size
            assert (zeros > 0.45).double().mean().item() == pytest.approx(
                1 / 12, abs=0.01
            )
            others = latent[codes != 0].abs() / size
            assert others.min().item() == pytest.approx(0.51, abs=0.01)
            middle = (others.min() + others.max()) / 2
            assert others.mean().item() == pytest.approx(middle.item(), abs=0.02)
    packed_score = TilelliLM.from_pretrained(packed_nano[0]).score(text)
    assert lm.eval().score(text) == pytest.approx(packed_score, abs=1e-4)
    lm.train()(
        torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)
    ).backward()
    assert lm.blocks[0].ffn.up.weight.grad.abs().sum() > 0


def test_weights_of_a_packed_model_are_not_rounded_once_more(nano, packed_nano, text):
    """alpha * codes would get another alpha; nothing is copied."""
    packed = TilelliLM.from_pretrained(packed_nano[0])
    before = nano.score(text)
    with pytest.raises(CheckpointError, match="latent weights"):
        nano.load_weights(packed.state_dict())
    assert nano.score(text) == before


def test_latent_weights_make_a_packed_model_an_ordinary_one(nano, packed_nano, text):
    lm = TilelliLM.from_pretrained(packed_nano[0])
    lm.load_weights(nano.state_dict())
    assert not lm.is_packed and lm.score(text) == nano.score(text)
    assert isinstance(lm.fast_form(), Prepared)
    assert lm.train().training


def test_the_same_latent_weights_are_drawn_each_time(nano, packed_nano):
    drawn = []
    for seed in (5, 6):  # of PyTorch's own generator, which has no say
        torch.manual_seed(seed)
        lm = TilelliLM(nano.config, draw=False)
        first_weights(packed_nano[0], lm)
        drawn.append(lm.state_dict())
    for one, other in zip(*(weights.values() for weights in drawn), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("codes", [[0, 0, 0], [1, -1, 1], [0, 0, 1]])
def test_latent_weights_of_one_kind_of_code_alone(codes):
    generator = torch.Generator().manual_seed(0)
    latent = draw_latent(0.25 * torch.tensor([codes], dtype=torch.float32), generator)
    again, alpha = ternarize(latent)
    assert again.tolist() == [codes]
    if any(codes):
        assert alpha.item() == pytest.approx(0.25, rel=1e-6)
    else:
        assert not latent.any()


def test_latent_weights_do_not_hang_on_the_defaults_of_pytorch():
    packed = 0.3 * torch.tensor([[1.0, 0.0, -1.0, 1.0] * 50])
    drawn = draw_latent(packed, torch.Generator().manual_seed(0))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        again = draw_latent(packed, torch.Generator(device="cpu").manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(drawn, again)


def test_a_packed_model_writes_with_its_fast_form(packed_nano):
    lm = TilelliLM.from_pretrained(packed_nano[0])
    assert isinstance(lm.fast_form(), Prepared)
    plain = lm.generate([65], max_new=20, temperature=0)
    lm.blocks[0].register_forward_hook(lambda *_: None)  # which the form would not call
    assert not isinstance(lm.fast_form(), Prepared)
    assert lm.generate([65], max_new=20, temperature=0) == plain


def test_a_packed_vanilla_model_has_no_latent_weights_to_draw(tmp_path):
    lm = small(block="vanilla")
    lm.save_packed(tmp_path)
    lm.save_packed(tmp_path)  # one packed model may replace another
    other = small(block="vanilla")
    assert first_weights(tmp_path, other) == []
    assert torch.equal(
        other.output.weight, TilelliLM.from_pretrained(tmp_path).output.weight
    )


def test_a_newer_format_and_a_missing_tensor_say_so(tmp_path):
    small().save_packed(tmp_path)
    tensors, metadata = read_tensors(tmp_path / "model.safetensors")
    newer = {**metadata, "packed": {**metadata["packed"], "version": 2}}
    write_tensors(tmp_path / "model.safetensors", tensors, newer)
    with pytest.raises(CheckpointError, match="version 2"):
        TilelliLM.from_pretrained(tmp_path)
    for name in (
        "token.weight.rows",
        "blocks.0.ffn.up.weight.codes",
        "blocks.0.ffn.up.weight.scale",
        "norm.weight",
    ):
        write_tensors(
            tmp_path / "model.safetensors",
            {k: t for k, t in tensors.items() if k != name},
            metadata,
        )
        with pytest.raises(CheckpointError):
            TilelliLM.from_pretrained(tmp_path)


def test_a_vanilla_model_packs_too(tmp_path):
    lm = small(block="vanilla")
    note = lm.save_packed(tmp_path, b"some text of its own" * 10)
    assert abs(note["bits_per_byte"] - note["bits_per_byte_before"]) < 0.01
    assert TilelliLM.from_pretrained(tmp_path).generate([65], max_new=3, temperature=0)
