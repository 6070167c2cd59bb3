"""Scripts of long measurements: a run that was stopped is not kept as a finished one, and
a mistyped name is refused before the work.
"""

import sys

import pytest

import fast_recipe
import judge_chat
import lab
import reproduce
import scaling_runs
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import TilelliError
from tilelli_nb.storage import records


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\n\n" + "two " * 900 + "\n\n" + "three " * 900)
    return prepare_corpus(str(path), tmp_path / "shards")


def test_a_recipe_that_was_stopped_is_not_kept(tmp_path, text, monkeypatch):
    monkeypatch.setattr(fast_recipe, "TilelliLM", lambda config: None)
    monkeypatch.setattr(fast_recipe, "train", lambda *a, **b: {"finished": None})
    with pytest.raises(SystemExit, match="stopped, and not kept"):
        fast_recipe.run("muon-16-0.02", 9, text, tmp_path)
    assert not (tmp_path / "recipe-muon-16-0.02").exists()


def test_a_recipe_of_other_text_is_not_passed_over(tmp_path, text):
    record = records.new_record(
        "recipe-muon-16-0.02",
        "train",
        config=fast_recipe.config_of("muon-16-0.02", 9).to_dict(),
        data=text.describe() | {"sha256": "0" * 64},
    )
    records.write_run(tmp_path / "recipe-muon-16-0.02", record, {})
    with pytest.raises(SystemExit, match="was trained on other text"):
        fast_recipe.run("muon-16-0.02", 9, text, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [["--text", "storis"], ["--before", "tilelli/nanoo"], ["--outside", "nowhere"]],
    ids=lambda wrong: wrong[0],
)
def test_a_judge_looks_names_up_before_it_asks(monkeypatch, tmp_path, wrong):
    class Loaded(Exception):
        """It would begin to ask now."""

    def load(name):
        raise Loaded

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judge_chat.TilelliLM, "from_pretrained", load)
    given = {"--text": "stories", "--before": "tilelli/nano"} | dict([wrong])
    out = ["--model", "tilelli/nano-chat", "--out", str(tmp_path / "out")]
    words = [word for pair in given.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["judge_chat.py", *out, *words])
    with pytest.raises((TilelliError, OSError)):
        judge_chat.main()


def test_no_questions_are_refused_before_the_training():
    with pytest.raises(SystemExit):
        reproduce.arguments(["--questions", "0"])


def test_a_point_of_the_scaling_curve_that_was_stopped_is_not_kept(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(scaling_runs, "prepare_corpus", lambda name: None)
    monkeypatch.setattr(scaling_runs, "TilelliLM", lambda config: None)
    monkeypatch.setattr(scaling_runs, "train", lambda *a, **b: {"finished": None})
    monkeypatch.setattr(sys, "argv", ["scaling_runs.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="scaling-d032: stopped, and not kept"):
        scaling_runs.main()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_a_lab_without_workers_is_refused(workers, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lab.py", "any.yaml", "--workers", workers])
    with pytest.raises(SystemExit):
        lab.main()
    assert "--workers" in capsys.readouterr().err
