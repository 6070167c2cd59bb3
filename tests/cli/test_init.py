"""`--init`: weights go into a model of the sizes that they were trained with."""

import pytest
from test_train import TEXT
from typer.testing import CliRunner

from tilelli_nb import TilelliLM, load_config, load_record, prepare_shards
from tilelli_nb.cli.app import app
from tilelli_nb.cli.launch import check_start
from tilelli_nb.errors import CheckpointError, ConfigError, TrainingError

SIZES = {"d_model": 16, "n_blocks": 1, "n_heads": 2, "keep": 4, "context": 32}


@pytest.fixture
def begin(tmp_path):
    """Runs `tilelli train --init` with some sizes changed; returns what came of it."""
    prepare_shards(TEXT, tmp_path / "shards", "cats")
    lm = TilelliLM(load_config("nano").with_model(**SIZES))
    lm.save_pretrained(tmp_path / "old")

    def run(train="steps: 1, batch: 2", **sizes):
        lines = [f"  {name}: {value}" for name, value in {**SIZES, **sizes}.items()]
        config = "\n".join(["model:", *lines, f"train: {{{train}}}", ""])
        (tmp_path / "new.yaml").write_text(config)
        arguments = ["train", "--corpus", tmp_path / "shards", "--init"]
        arguments += [tmp_path / "old", "--config", tmp_path / "new.yaml"]
        arguments += ["--device", "cpu", "--out", tmp_path / "run"]
        return CliRunner().invoke(app, [*map(str, arguments)])

    return run


@pytest.mark.parametrize(
    ("size", "there", "here"),
    [
        ("n_heads", 2, 4),  # no tensor shows it
        ("block", "routed", "vanilla"),
        ("context", 32, 64),
        ("conv_width", 5, 3),
    ],
)
def test_weights_for_another_model_are_refused_by_name(
    begin, tmp_path, size, there, here
):
    error = begin(**{size: here}).exception
    assert isinstance(error, CheckpointError)
    assert f"were trained with {size} {there}, not {here}" in error.problem
    assert not (tmp_path / "run" / "run.json").exists()


def test_all_that_differs_is_named(begin):
    error = begin(n_heads=1, n_blocks=2, keep=3).exception
    assert "n_blocks 1, not 2, n_heads 2, not 1" in error.problem


def test_another_keep_is_a_choice_that_is_written_down(begin, tmp_path):
    done = begin(keep=8)
    assert done.exit_code == 0, done.exception
    notes = load_record(tmp_path / "run")["notes"]
    assert "trained with keep 4, not 8" in notes and "keep 4, not 8" in done.stderr


def test_what_a_vanilla_block_does_not_have_cannot_differ(begin, tmp_path):
    vanilla = load_config("nano").with_model(**SIZES, block="vanilla")
    TilelliLM(vanilla).save_pretrained(tmp_path / "old")
    assert begin(block="vanilla", keep=8, conv_width=3).exit_code == 0


def test_the_same_sizes_need_no_word(begin, tmp_path):
    done = begin()
    assert done.exit_code == 0, done.exception
    notes = load_record(tmp_path / "run")["notes"]
    assert notes == f"Started from the weights of {tmp_path / 'old'}."


def test_a_keep_that_nobody_asked_for_is_refused(tmp_path):
    """Without --config the sizes are those of nano, which is nobody's choice."""
    lm = TilelliLM(load_config("nano").with_model(keep=5))
    lm.save_pretrained(tmp_path / "old")
    prepare_shards(TEXT, tmp_path / "shards", "cats")
    arguments = ["train", "--corpus", tmp_path / "shards", "--init", tmp_path / "old"]
    arguments += ["--steps", "1", "--device", "cpu", "--out", tmp_path / "run"]
    error = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(error, CheckpointError) and "keep 5, not 16" in error.problem


def test_a_packed_model_can_be_trained_on(begin, tmp_path):
    lm = TilelliLM.from_pretrained(tmp_path / "old")
    lm.save_packed(tmp_path / "packed")
    (tmp_path / "packed" / "model.safetensors").replace(
        tmp_path / "old" / "model.safetensors"
    )
    done = begin()
    assert done.exit_code == 0, done.exception
    notes = load_record(tmp_path / "run")["notes"]
    assert notes.endswith("their latent weights were drawn anew.")
    assert "drawn anew" in done.stderr
    trained = TilelliLM.from_pretrained(tmp_path / "run")
    assert not trained.is_packed
    # latent weights again: more than the three values of a packed matrix
    assert len(trained.blocks[0].ffn.up.weight.unique()) > 100


def test_attention_is_softened_once_along_a_chain_of_runs(begin, tmp_path):
    soft = load_config("nano").with_model(**SIZES).with_train(qk_scale=0.25)
    lm = TilelliLM(soft)
    lm.save_pretrained(tmp_path / "old")
    still = "steps: 1, batch: 2, lr: 1.0e-12, qk_scale: 0.25"
    done = begin(train=still)
    assert done.exit_code == 0, done.exception
    assert "softened before" in load_record(tmp_path / "run")["notes"]
    after = TilelliLM.from_pretrained(tmp_path / "run")
    old, new = (m.blocks[0].attention.weight for m in (lm, after))
    assert (old - new).abs().max() < 1e-6


def test_a_run_goes_on_with_the_weights_that_it_began_with(begin, tmp_path):
    done = begin()
    assert done.exit_code == 0, done.exception
    arguments = ["train", "--corpus", tmp_path / "shards", "--resume"]
    arguments += ["--config", tmp_path / "new.yaml", "--out", tmp_path / "run"]
    arguments = [*map(str, arguments)]

    def go_on(*more):
        return CliRunner().invoke(app, [*arguments, *map(str, more)])

    assert go_on("--init", tmp_path / "old").exit_code == 0
    assert go_on().exit_code == 0  # the weights are in its checkpoint
    other = go_on("--init", "tilelli/nano").exception
    assert isinstance(other, ConfigError) and "did not start from" in other.problem
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.unlink()
    unknown = go_on().exception
    assert isinstance(unknown, ConfigError) and "no checkpoint yet" in unknown.problem


def test_a_name_that_begins_another_name_is_not_it(begin, tmp_path):
    done = begin()
    assert done.exit_code == 0, done.exception
    record = (tmp_path / "run" / "run.json").read_text()
    with_dot = record.replace(f"{tmp_path / 'old'}.", f"{tmp_path / 'old'}.v2.")
    assert with_dot != record
    (tmp_path / "run" / "run.json").write_text(with_dot)
    with pytest.raises(ConfigError, match="did not start from"):
        check_start(str(tmp_path / "old"), tmp_path / "run")
    check_start(str(tmp_path / "old.v2"), tmp_path / "run")


def test_a_fine_tuning_is_not_finished_on_text(tmp_path):
    few = ["--pairs", 6000, "--steps", 4, "--stop-at", 1, "--batch", 4]
    begun = ["sft", "--out", tmp_path / "chat", *few, "--precision", "fp32"]
    assert CliRunner().invoke(app, [*map(str, begun)]).exit_code == 0
    end = ["train", "--decay-from", tmp_path / "chat", "--steps", 2]
    end += ["--out", tmp_path / "end"]
    error = CliRunner().invoke(app, [*map(str, end)]).exception
    assert isinstance(error, TrainingError) and "of kind sft" in error.problem
    assert not (tmp_path / "end" / "run.json").exists()
