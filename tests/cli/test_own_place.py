"""No command writes over what it reads, or over what cannot be made again."""

import os

import pytest
import torch
from test_train import TEXT, small
from typer.testing import CliRunner

from tilelli_nb import TilelliLM, load_config, prepare_shards
from tilelli_nb.cli.app import app
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    TokenError,
    TrainingError,
)
from tilelli_nb.training.loop import train


def model():
    return TilelliLM(load_config("nano").with_model(d_model=16, n_blocks=1, n_heads=2))


def tilelli(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    model().save_pretrained("model")
    (tmp_path / "link").symlink_to("model")
    return tmp_path


@pytest.mark.parametrize(
    "out", ["model", "./x/../model", "link", "link/", "~/model", "{here}/model"]
)
def test_pack_never_replaces_what_it_packs(here, out):
    (here / "x").mkdir()
    before = (here / "model" / "model.safetensors").read_bytes()
    done = tilelli("pack", "model", "--out", out.format(here=here))
    assert isinstance(done.exception, CheckpointError), done.output
    assert "choose another folder" in done.exception.fix
    assert (here / "model" / "model.safetensors").read_bytes() == before


def test_pack_never_replaces_another_model_or_a_run(here):
    model().save_pretrained("other")
    with pytest.raises(CheckpointError, match="other holds a model with its latent"):
        model().save_packed("other")  # from Python too
    os.makedirs("run")
    (here / "run" / "run.json").write_text("{}")
    done = tilelli("pack", "model", "--out", "run")
    assert isinstance(done.exception, ConfigError)
    # a folder inside is a place of its own, and a packed model can be made again
    for _ in range(2):
        assert tilelli("pack", "model", "--out", "model/packed").exit_code == 0
    assert not TilelliLM.from_pretrained("model").is_packed


def test_training_never_replaces_a_model(here):
    shards = prepare_shards(TEXT, "shards", "cats")
    with pytest.raises(TrainingError, match="model holds a model already"):
        train(small(), shards, "model", progress=False)
    assert torch.equal(
        TilelliLM.from_pretrained("model").output.weight, model().output.weight
    )


def test_shards_do_not_go_into_their_own_text(here):
    (here / "mine").mkdir()
    for name in "ab":
        (here / "mine" / f"{name}.txt").write_text(name * 20)
    (here / "alias").symlink_to("mine")
    for out in ("mine", "./mine", "alias", "~/mine"):
        with pytest.raises(DataError, match="would go into it"):
            prepare_corpus("mine", out)
    assert sorted(os.listdir("mine")) == ["a.txt", "b.txt"]
    prepare_corpus("mine", "shards")
    done = tilelli("data", "shards", "--out", "other")
    assert isinstance(done.exception, DataError)
    assert "shards holds shards already" in done.exception.problem
    assert tilelli("data", "shards").exit_code == 0


def test_pack_says_what_is_true_of_this_model(here):
    """Sizes from the files; nothing is measured on a text that nobody named."""
    done = tilelli("pack", "tilelli/nano", "--out", "packed")
    assert done.exit_code == 0, done.exception
    after = (here / "packed" / "model.safetensors").stat().st_size
    before = 824_576 * 2  # parameters, in bf16
    assert f"{after:,} bytes, {before / after:.1f} times fewer than" in done.stdout
    assert f"the {before:,} of" in done.stdout and "not measured" in done.stdout
    assert "stories" not in done.stdout
    about = tilelli("info", "packed").stdout
    assert "what it costs was not measured" in about and "+0.0000" not in about


def test_pack_names_whose_text_a_model_was_trained_on(here):
    sources = here / "model" / "SOURCES.md"
    sources.write_bytes("By Zoë.\n".encode())
    assert tilelli("pack", "model", "--out", "packed").exit_code == 0
    assert (here / "packed" / "SOURCES.md").read_bytes() == "By Zoë.\n".encode()
    sources.unlink()
    assert tilelli("pack", "model", "--out", "packed").exit_code == 0
    assert not (here / "packed" / "SOURCES.md").exists()


def test_pack_refuses_an_empty_text(here):
    (here / "empty.txt").write_text("")
    done = tilelli("pack", "model", "--out", "packed", "--text", "empty.txt")
    assert isinstance(done.exception, TokenError), done.exception
    assert "an empty text has no bytes" in done.exception.problem
    assert not (here / "packed").exists()


def test_the_help_promises_no_speed_that_the_records_deny(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    for command in ("generate", "score"):
        text = " ".join(tilelli(command, "--help").stdout.split())
        assert "more speed" not in text and "nano is fastest in fp32" in text
    assert "ninth" not in tilelli("pack", "--help").stdout
