"""Attention that is made soft again: what changes, what does not, and that it happens
once.
"""

import pytest
import torch
import yaml
from test_train import assert_same_run, shards, small  # noqa: F401  (a fixture)
from tiny_models import tiny
from typer.testing import CliRunner

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.cli.app import app
from tilelli_nb.storage.records import load_metrics
from tilelli_nb.training.loop import train
from tilelli_nb.training.soften import soften_attention


def projections(lm, y):
    """q, k and v of each block for y (T, D)."""
    found = []
    for block in lm.blocks:
        layer = getattr(block.attention, "qkv", block.attention)  # as vanilla has it
        found.append((y @ layer.weight.T).chunk(3, dim=-1))
    return found


@pytest.mark.parametrize("block", ["routed", "vanilla"])
def test_scores_become_the_square_of_the_factor_and_values_stay(block):
    lm = tiny(block=block)
    y = torch.randn(7, lm.config.model.d_model, dtype=torch.float64)
    before = projections(lm, y)
    soften_attention(lm, 0.25)
    for (q, k, v), (new_q, new_k, new_v) in zip(
        before, projections(lm, y), strict=True
    ):
        assert torch.allclose(new_q @ new_k.T, q @ k.T / 16, rtol=1e-12, atol=0)
        assert torch.equal(new_v, v)


def test_the_best_byte_stays_the_best():
    """With one key for each query the softmax has nothing to share out, so the output
    is the same.
    """
    lm = tiny(keep=1)
    y = torch.randn(2, 32, lm.config.model.d_model, dtype=torch.float64)
    before = [block.attention(y) for block in lm.blocks]
    soften_attention(lm, 0.1)
    for block, out in zip(lm.blocks, before, strict=True):
        assert torch.allclose(block.attention(y), out, rtol=1e-12, atol=0)


def test_attention_that_cannot_learn_learns_again():
    def gradient_of_q_and_k(lm):
        x = torch.arange(64).reshape(2, 32)
        loss = lm.loss_terms(x, x.flip(1)).nats
        (gradient,) = torch.autograd.grad(loss, [lm.blocks[0].attention.weight])
        return gradient[: 2 * gradient.shape[1]].norm()

    lm = tiny()
    soft = gradient_of_q_and_k(lm)
    soften_attention(lm, 1e4)  # the reverse: scores so far apart that one byte has all
    assert gradient_of_q_and_k(lm) < 1e-9 * soft
    soften_attention(lm, 1e-4)
    assert gradient_of_q_and_k(lm).item() == pytest.approx(soft.item(), rel=1e-6)


def test_a_run_that_lost_its_checkpoints_softens_again(tmp_path, shards):  # noqa: F811
    """Killed before the first of them, it begins anew, from the same weights."""
    settings = {"qk_scale": 0.5, "lr": 1e-2}
    train(small(**settings), shards, tmp_path / "whole", progress=False)
    train(small(**settings), shards, tmp_path / "cut", stop_at=2, progress=False)
    for file in (tmp_path / "cut" / "checkpoints").iterdir():
        file.unlink()
    train(small(**settings), shards, tmp_path / "cut", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    train(small(lr=1e-2), shards, tmp_path / "hard", progress=False)
    whole, hard = (load_metrics(tmp_path / name) for name in ("whole", "hard"))
    assert whole[0]["loss"] != hard[0]["loss"]


def test_a_fine_tuning_softens_once_and_not_again_when_it_is_resumed(tmp_path):
    """At a rate of almost nothing, so that what is measured is the softening."""
    config = load_config("sft_nano").with_train(
        steps=4, batch=4, lr=1e-9, muon_lr=1e-9, qk_scale=0.5, precision="fp32"
    )
    (tmp_path / "soft.yaml").write_text(yaml.safe_dump(config.to_dict()))
    command = ["sft", "--config", tmp_path / "soft.yaml", "--pairs", 6000]
    command = [*map(str, [*command, "--out", tmp_path / "run"])]
    for more in (["--stop-at", "2"], ["--resume"]):
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code == 0, done.output
    width = config.model.d_model
    before = TilelliLM.from_pretrained("tilelli/nano").blocks
    after = TilelliLM.from_pretrained(tmp_path / "run").blocks
    for old, new in zip(before, after, strict=True):
        old, new = old.attention.weight, new.attention.weight
        assert torch.allclose(new[: 2 * width], old[: 2 * width] / 2, atol=1e-4)
        assert torch.allclose(new[2 * width :], old[2 * width :], atol=1e-4)
