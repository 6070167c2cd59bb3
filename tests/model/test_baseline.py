"""The vanilla transformer: its count, PyTorch's own layer with the same weights, its
steps, and the one trainer.
"""

import json

import pytest
import torch
from torch import nn

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import ConfigError
from tilelli_nb.model.vanilla import VanillaBlock
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import make_optimizer


def tiny(**sizes):
    sizes = {"d_model": 24, "n_blocks": 2, "n_heads": 3, "context": 32, **sizes}
    config = load_config("vanilla_10m").with_model(**sizes)
    return TilelliLM(config, seed=3).double().eval()


def draw(*shape, seed=0):
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def test_the_parameter_table_of_the_contract():
    lm = TilelliLM(load_config("vanilla_10m"))
    assert lm.parameter_table() == {
        "token": 81_920,
        "position": 81_920,
        "conv": 0,
        "attention": 8 * 4 * 320**2,
        "ffn": 8 * 8 * 320**2,
        "router": 0,
        "norms": 17 * 640,
        "output": 81_920,
    }
    assert sum(p.numel() for p in lm.parameters()) == 10_087_040
    assert not any(
        key.endswith("bias") and "norm" not in key for key in lm.state_dict()
    )
    assert lm.blocks[0].attention.out.weight.std().item() == pytest.approx(
        320**-0.5, rel=0.06
    )
    assert lm.blocks[7].ffn.down.weight.std().item() == pytest.approx(
        1280**-0.5, rel=0.06
    )


def test_decay_is_on_the_matrices_alone():
    lm = tiny()
    decayed = {
        id(p) for p in make_optimizer(lm, lm.config.train).param_groups[0]["params"]
    }
    names = {name for name, p in lm.named_parameters() if id(p) in decayed}
    matrices = (
        "attention.qkv.weight",
        "attention.out.weight",
        "ffn.up.weight",
        "ffn.down.weight",
    )
    assert names == {
        "output.weight",
        *(f"blocks.{i}.{m}" for i in range(2) for m in matrices),
    }


@pytest.mark.parametrize("T", [1, 2, 17])
def test_block_and_gradients_equal_pytorchs_own_layer(T):
    block = VanillaBlock(
        load_config("vanilla_10m").with_model(d_model=24, n_heads=3).model
    ).double()
    ours = dict(block.named_parameters())
    for i, (name, p) in enumerate(ours.items()):
        p.data = draw(*p.shape, seed=i) / 5 + (name.endswith("norm.weight"))
    layer = nn.TransformerEncoderLayer(
        24, 3, 96, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    layer = layer.double()
    theirs = {
        "self_attn.in_proj_weight": "attention.qkv.weight",
        "self_attn.out_proj.weight": "attention.out.weight",
        "linear1.weight": "ffn.up.weight",
        "linear2.weight": "ffn.down.weight",
        **{
            f"norm{n}.{part}": f"{name}_norm.{part}"
            for n, name in ((1, "attention"), (2, "ffn"))
            for part in ("weight", "bias")
        },
    }
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(ours[theirs[name]]) if name in theirs else p.zero_()
    x, direction = draw(2, T, 24, seed=50), draw(2, T, 24, seed=51)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = block(x1)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    expected = layer(x2, src_mask=mask, is_causal=True)
    assert (out - expected).abs().max() < 1e-10
    (out * direction).sum().backward()
    (expected * direction).sum().backward()
    assert (x1.grad - x2.grad).abs().max() < 1e-9
    for name, p in layer.named_parameters():
        if name in theirs:
            assert (p.grad - ours[theirs[name]].grad).abs().max() < 1e-9, name


def test_steps_agree_with_forward_and_nothing_leaks():
    lm, x = (
        tiny(),
        torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(1)),
    )
    logits, state = lm(x), lm.new_state(2)
    stepped = torch.stack([lm.step(x[:, t], state) for t in range(32)], dim=1)
    assert (stepped - logits).abs().max() < 1e-10
    for t in (0, 7, 30):
        poked = x.clone()
        poked[:, t + 1 :] = (poked[:, t + 1 :] + 1) % 256
        assert torch.equal(lm(poked)[:, : t + 1], logits[:, : t + 1])


def test_the_same_trainer_saves_and_loads_it(tmp_path):
    shards = prepare_corpus("stories", tmp_path / "shards", megabytes=0.05)
    config = load_config("vanilla_10m").with_model(
        d_model=24, n_blocks=2, n_heads=3, context=32
    )
    lm = TilelliLM(
        config.with_train(steps=20, lr=0.01, batch=4, log_every=5, eval_bytes=500)
    )
    record = train(lm, shards, tmp_path / "run", device="cpu", progress=False)
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [1, 5, 10, 15, 20] and lines[-1][
        "loss"
    ] < lines[0]["loss"] - 1
    assert all(
        line["balance"] == 0 and line["router_use"] == [] and line["zero_share"] == []
        for line in lines
    )
    loaded = TilelliLM.from_pretrained(tmp_path / "run")
    assert (
        isinstance(loaded.blocks[0], VanillaBlock)
        and record["config"]["model"]["block"] == "vanilla"
    )
    assert loaded.generate([65], max_new=40, seed=1) == lm.generate(
        [65], max_new=40, seed=1
    )


def test_an_unknown_block_is_named():
    with pytest.raises(ConfigError, match="model.block = 'plain'"):
        load_config("nano").with_model(block="plain")
