"""`tilelli eval`: one experiment with one command."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny
from typer.testing import CliRunner

from tilelli_nb.cli.app import app
from tilelli_nb.cli.eval import folder_of
from tilelli_nb.errors import ConfigError, EvaluationError
from tilelli_nb.evaluation import experiments, rule, study
from tilelli_nb.evaluation.probes import load_probes


def tilelli(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a small model and a text; few probes and resamples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rule, "RESAMPLES", 10)
    monkeypatch.setattr(study, "ASKED", 2)
    few = [
        probe for n, probe in enumerate(load_probes()) if n % 30 in (0, 1, 2, 28, 29)
    ]
    monkeypatch.setattr(study, "load_probes", lambda: few)
    tiny(dtype=torch.float32).save_pretrained("model")
    texts = [f"The fox {n} lived in a wood, and was glad of it.\n" for n in range(400)]
    Path("fox.txt").write_text("\n".join(texts))
    return tmp_path


def test_an_experiment_leaves_a_record(here):
    arguments = ["eval", "v4", "--model", "model", "--text", "fox.txt", "--seeds", 1]
    done = tilelli(*arguments)
    assert done.exit_code == 0, done.output
    assert "v4 seed 0: router against in-domain" in done.output
    assert "v4: the hypothesis holds with 0 of 1 seeds" in done.output
    assert "CPU minutes for 1 records" in done.output
    record = json.loads((here / "runs" / "eval-v4" / "run.json").read_text())
    assert record["kind"] == "eval" and record["finished"]
    results = json.loads((here / "runs" / "eval-v4" / "results.json").read_text())
    assert results["model"] == "model" and len(results["seeds"]) == 1
    again = tilelli(*arguments)
    assert "seed 0" not in again.output and "v4: the hypothesis" in again.output


def test_all_runs_every_experiment_and_a_packed_model_stops_at_v5(here, monkeypatch):
    tiny(dtype=torch.float32).save_packed("packed")
    monkeypatch.setattr(experiments, "NAMES", ("v4", "v5"))
    with pytest.raises(EvaluationError, match="v5 trains the network.*packed"):
        tilelli("eval", "all", "--model", "packed", "--text", "fox.txt", "--seeds", 1)
    assert (here / "runs" / "eval-v4" / "run.json").is_file()
    assert not (here / "runs" / "eval-v5").exists()


def test_where_the_records_go():
    assert folder_of("sweep_5", "sweep_5", None) == Path("runs/eval-sweep-5")
    assert folder_of("v7", "v7", Path("mine")) == Path("mine")
    assert folder_of("v7", "all", Path("mine")) == Path("mine/eval-v7")


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["v9"], "there is no experiment 'v9'"),
        (["v7", "--seeds", 0], "--seeds 0"),
    ],
)
def test_what_is_wrong_is_said(arguments, problem):
    with pytest.raises(ConfigError, match=problem):
        tilelli("eval", *arguments)


def test_the_names_in_the_help_are_those_that_exist():
    said = tilelli("eval", "--help").output
    for name in experiments.NAMES:
        assert name in said
