"""A model says how it is sampled when nobody else does, in a file beside its weights."""

import json

import numpy as np
import pytest
import torch
from tiny_models import tiny
from typer.testing import CliRunner

from tilelli_nb import TilelliLM
from tilelli_nb.cli.app import app
from tilelli_nb.errors import CheckpointError, GenerationError
from tilelli_nb.inference.chatting import Gate, read_gate, write_gate
from tilelli_nb.inference.generation_config import (
    FILE,
    NAMES,
    read_defaults,
    write_defaults,
)
from tilelli_nb.inference.sampling import Sampling
from tilelli_nb.notebook import controls, widgets
from tilelli_nb.notebook import inference_widgets as players
from tilelli_nb.pretrained import resolve
from tilelli_nb.storage.records import runs_folder

ALL = {"max_new": 7, "temperature": 0.25, "top_k": 9, "top_p": 0.75}


def small(**defaults):
    lm = tiny(dtype=torch.float32, d_model=32, n_heads=4, context=32)
    lm.sampling_defaults = defaults
    return lm


@pytest.fixture
def folder(tmp_path):
    """A saved model with all four settings of its own."""
    small(**ALL).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_every_saved_form_keeps_the_settings(folder, tmp_path):
    names = {theirs: ALL[ours] for theirs, ours in NAMES.items()}
    assert json.loads((folder / FILE).read_text()) == {"do_sample": True, **names}
    lm = TilelliLM.from_pretrained(folder)
    assert lm.sampling_defaults == ALL == lm.prepare("int8").sampling_defaults
    lm.save_packed(tmp_path / "packed")
    command = ["pack", str(folder), "--out", str(tmp_path / "by-command")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    for form in ("packed", "by-command"):
        assert TilelliLM.from_pretrained(tmp_path / form).sampling_defaults == ALL
    # in the file alone, where people can change it
    assert b"0.75" not in (folder / "model.safetensors").read_bytes()


def test_the_numbers_of_numpy_are_written_as_numbers(tmp_path):
    values = {"max_new": np.int64(7), "temperature": np.float32(0.25)}
    small(**values).save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / FILE).read_text())
    assert written["max_new_tokens"] == 7 and written["temperature"] == 0.25
    small(top_k=None, top_p=0.5).save_pretrained(tmp_path / "none")  # no limit
    assert TilelliLM.from_pretrained(tmp_path / "none").sampling_defaults == {
        "top_p": 0.5
    }
    with pytest.raises(GenerationError, match="holds 'top'"):
        small(top=3).save_pretrained(tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()  # said before anything is written


def test_a_command_keeps_the_gate(folder, tmp_path):
    write_gate(folder, Gate("margin", 0.5))
    command = ["pack", str(folder), "--out", str(tmp_path / "packed")]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert read_gate(tmp_path / "packed") == Gate("margin", 0.5)


def test_a_model_without_settings_leaves_no_file_of_another(folder):
    small().save_pretrained(folder)
    assert not (folder / FILE).exists()
    assert TilelliLM.from_pretrained(folder).sampling_defaults == {}
    assert small().sampling() == Sampling()


def test_greedy_is_written_as_other_programs_have_it(tmp_path):
    write_defaults(tmp_path, {"temperature": 0, "max_new": 5})
    said = json.loads((tmp_path / FILE).read_text())
    assert said == {"do_sample": False, "max_new_tokens": 5}
    assert read_defaults(tmp_path) == {"temperature": 0, "max_new": 5}


def test_what_other_programs_say_is_passed_over(tmp_path):
    theirs = {"eos_token_id": 0, "transformers_version": "5.0.0", "top_k": None}
    (tmp_path / FILE).write_text(json.dumps({**theirs, "temperature": 0.5}))
    assert read_defaults(tmp_path) == {"temperature": 0.5}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "not a JSON object"),
        ("[0.3]", "not a JSON object"),
        ("\xff", "not a JSON object"),
        ('{"temperature": -1}', "temperature = -1"),
        ('{"temperature": "hot"}', "temperature = 'hot'"),
        ('{"temperature": NaN}', "temperature = nan"),
        ('{"max_new_tokens": 2.5}', "max_new_tokens = 2.5"),
        ('{"top_k": 1000}', "top_k = 1000"),
        ('{"top_p": 0}', "top_p = 0"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_it(folder, text, named):
    (folder / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError) as caught:
        TilelliLM.from_pretrained(folder)
    assert caught.value.problem.startswith(f"model/{FILE}")
    assert named in caught.value.problem and "delete it" in caught.value.fix


def test_settings_that_cannot_be_are_not_written(tmp_path):
    with pytest.raises(GenerationError, match="temperature"):
        small(temperature=-1).save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()


# Who uses them


def test_what_is_given_wins():
    lm = small(**ALL)
    assert lm.sampling() == Sampling(**ALL)
    assert lm.sampling(seed=3, stop=(1,)) == Sampling(**ALL, seed=3, stop=(1,))
    for name, value in (("max_new", 0), ("temperature", 0), ("top_k", 256)):
        assert lm.sampling(**{name: value}) == Sampling(**{**ALL, name: value})
    with pytest.raises(GenerationError, match="temperature = -1"):
        lm.generate([1], temperature=-1)


def test_generate_and_stream_use_them():
    lm, plain = small(max_new=30, temperature=0.05), small()
    settings = {"seed": 2, "stop": ()}
    expected = plain.generate([65], max_new=30, temperature=0.05, **settings)
    for model in (lm, lm.prepare()):
        assert model.generate([65], **settings) == expected
        assert [65, *model.stream([65], **settings)] == expected
        assert model.generate([[65], [66]], **settings)[0] == expected
    assert plain.generate([65], 30, 0.8, **settings) != expected


def test_the_command_uses_them(folder):
    def said(*options):
        command = ["generate", "abc", "--model", str(folder), *options]
        if "--temperature" not in options:
            command += ["--seed", "1"]  # at temperature 0 it is refused
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout.rstrip("\n")

    lm = TilelliLM.from_pretrained(folder)

    def text(**settings):
        ids = lm.generate(list(b"abc"), seed=1, **settings)
        return bytes(ids).decode(errors="replace")

    assert said() == said("--stream") == text(**ALL)
    assert said("--max-new", "3") == text(max_new=3)
    assert said("--temperature", "0") == text(temperature=0)
    about = CliRunner().invoke(app, ["info", str(folder)]).stdout
    assert "max_new 7, temperature 0.25, top_k 9, top_p 0.75" in about
    (folder / FILE).unlink()
    lm = TilelliLM.from_pretrained(folder)
    assert said() == text(max_new=400)


def test_the_widgets_use_them(monkeypatch):
    seen = []
    monkeypatch.setattr(controls, "ipywidgets", lambda: None)
    monkeypatch.setattr(controls, "show_html", seen.append)
    lm = small(temperature=2.5, top_k=3)
    widgets.continue_text(lm, "ab", max_new=5)
    widgets.continue_text(lm, "ab", max_new=5, temperature=0.9)
    assert ["temperature 2.5" in seen[0], "temperature 0.9" in seen[1]] == [True, True]
    traced = list(
        players.trace(lm.prepare(), list(b"ab"), Sampling(40, 2.5, top_k=3, seed=0))
    )
    players.stream_text(lm.prepare(), "ab", max_new=40)
    assert seen[2] == players.traced_text(list(b"ab"), traced)


# The bundled model


def test_nano_is_sampled_at_the_temperature_that_its_record_is_for():
    """Of 200 stories at each temperature: where are most of them whole?"""
    results = json.loads((runs_folder() / "nano-judged" / "results.json").read_text())
    whole = {float(t): count["whole"] for t, count in results["counts"].items()}
    nano = TilelliLM.from_pretrained("tilelli/nano")
    assert nano.sampling_defaults == {"temperature": max(whole, key=whole.get)}
    card = (resolve("tilelli/nano") / "README.md").read_text(encoding="utf-8")
    shares = ", ".join(f"{n / 2:.0f}% at {t:g}" for t, n in sorted(whole.items()))
    assert f"temperature {nano.sampling().temperature:g} unless" in card
    assert shares in card


def test_a_setting_that_there_is_not_is_refused(tmp_path):
    lm = small(max_new_tokens=5)
    with pytest.raises(GenerationError, match="'max_new_tokens'\n.*max_new, temp"):
        lm.generate([1])
    with pytest.raises(GenerationError, match="holds 'max_new_tokens'"):
        lm.save_pretrained(tmp_path)
