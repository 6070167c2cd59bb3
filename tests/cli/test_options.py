"""Every option that is given is used or refused; numbers that mean nothing are refused."""

import math

import pytest
import torch
from tiny_models import tiny
from typer.testing import CliRunner

from tilelli_nb import TilelliError
from tilelli_nb.cli import launch
from tilelli_nb.cli import sft as sft_module
from tilelli_nb.cli.app import app
from tilelli_nb.cli.launch import TrainOptions, precision_of
from tilelli_nb.config import load_config
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import ConfigError, DataError
from tilelli_nb.storage import records

GIB = ["data", "fineweb-edu", "--files", "there"]
RUN = ["train", "--corpus", "mine.txt", "--steps", "1", "--out", "run"]
UP = ["runpod", "up"]
REFUSED = [
    # nothing that the corpus could use
    (["data", "stories", "--gigabytes", "1"], "--gigabytes is for fineweb-edu"),
    (["data", "stories", "--gigabytes", "0"], "--gigabytes 0"),
    (["data", "stories", "--min-score", "0"], "--min-score is for fineweb-edu"),
    (["data", "stories", "--rank", "0"], "--rank is for fineweb-edu"),
    (["data", "stories", "--world", "1"], "--world is for fineweb-edu"),
    (
        ["data", "mine.txt", "--megabytes", "1", "--seed", "0"],
        "--megabytes, --seed are",
    ),
    (["data", "mine.txt", "--seed", "3"], "--seed is for text that is made here"),
    (["data", "docs", "--seed", "3"], "--seed is for stories, not for docs"),
    ([*GIB, "--gigabytes", "1", "--megabytes", "1"], "--megabytes is not for --gig"),
    (["data", "fineweb-edu", "--seed", "0"], "--seed is not for fineweb-edu"),
    # numbers that mean nothing
    (["data", "stories", "--megabytes", "0"], "--megabytes 0"),
    (["data", "stories", "--megabytes", "nan"], "--megabytes nan"),
    (["data", "stories", "--megabytes", "inf"], "--megabytes inf"),
    (["data", "stories", "--seed", "-1"], "--seed -1"),
    ([*GIB, "--gigabytes", "-1"], "--gigabytes -1"),
    ([*GIB, "--gigabytes", "nan"], "--gigabytes nan"),
    ([*GIB, "--min-score", "6"], "--min-score 6"),
    ([*GIB, "--min-score", "nan"], "--min-score nan"),
    ([*GIB, "--world", "0"], "rank 0 of 0 nodes"),
    ([*GIB, "--world", "4"], "--world 4 without --rank"),
    (["train", "--corpus", "fineweb-edu", "--gigabytes", "nan"], "--gigabytes nan"),
    (["train", "--corpus", "fineweb-edu", "--gigabytes", "0"], "--gigabytes 0"),
    ([*RUN, "--min-score", "0"], "--min-score is for fineweb-edu that is"),
    ([*RUN, "--config", "sft_10m"], "train.text_weight = 0.5 in pretraining"),
    ([*RUN, "--lr", "inf"], "train.lr = inf"),
    ([*RUN, "--lr", "nan"], "train.lr = nan"),
    ([*RUN, "--seed", str(2**63)], f"train.seed = {2**63}"),
    ([*RUN, "--usd-per-hour", "nan"], "nan is not a price"),
    ([*RUN, "--usd-per-hour", "-1"], "-1.0 is not a price"),
    ([*RUN, "--wandb", ""], "--wandb has no project"),
    ([*RUN, "--config", ""], "there is no configuration ''"),
    ([*RUN, "--init", ""], "the name of the model is empty"),
    (["train", "--corpus", ""], "'' is no corpus"),
    (["generate", "hi", "--temperature", "nan"], "temperature = nan"),
    (["generate", "hi", "--max-new", "-1"], "max_new = -1"),
    (["generate", "hi", "--top-k", "0"], "top_k = 0"),
    (["generate", "hi", "--top-p", "0"], "top_p = 0"),
    (["generate", "hi", "--seed", str(2**63)], f"seed = {2**63}"),
    (["cost", "--usd-per-hour", "nan"], "nan is not a price"),
    (["cost", "--bytes-per-s", "nan"], "nan bytes a second"),
    (["cost", "--bytes-per-s", "inf"], "inf bytes a second"),
    (["cost", "--bytes-per-s", "0"], "0.0 bytes a second"),
    (["cost", "--steps", "0"], "train.steps = 0"),
    ([*UP, "--stop-after", "-1"], "--stop-after -1"),
    ([*UP, "--stop-after", "nan"], "--stop-after nan"),
    ([*UP, "--volume", "-1"], "--volume -1"),
    ([*UP, "--cloud", "SECRUE"], "--cloud SECRUE"),
    (["runpod", "fetch", "p", "/etc", "--yes"], "'/etc' is no folder inside"),
    (["runpod", "fetch", "p", "../x", "--yes"], "'../x' is no folder inside"),
]


@pytest.mark.parametrize(("arguments", "problem"), REFUSED, ids=lambda x: str(x)[-60:])
def test_an_option_is_used_or_refused(tmp_path, monkeypatch, arguments, problem):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    paragraphs = [f"This is paragraph {i}, which says little." * 9 for i in range(20)]
    (tmp_path / "mine.txt").write_text("\n\n".join(paragraphs))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.parquet").touch()
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, TilelliError) and error.fix
    assert problem in error.problem
    assert not (tmp_path / "run" / "run.json").exists()


def test_what_is_given_is_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, folder in (
        (["stories", "--megabytes", "0.02", "--seed", "3"], "stories-0.02mb-seed3"),
        (["stories", "--megabytes", "0.02"], "stories-0.02mb-seed0"),
    ):
        done = CliRunner().invoke(app, ["data", *arguments])
        assert done.exit_code == 0 and f"data/{folder}" in done.stdout
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    done = CliRunner().invoke(app, [*UP, "--cloud", "secure", "--stop-after", "0"])
    assert "secure cloud" in done.stdout and "NOTHING STOPS IT" in done.stdout


class Arrived(Exception):
    """Training would begin now."""


@pytest.fixture
def arriving(tmp_path, monkeypatch):
    """Runs a command up to its training, and returns what that is called with."""
    monkeypatch.chdir(tmp_path)
    paragraphs = [f"This is paragraph {i}, which says little." * 9 for i in range(20)]
    (tmp_path / "mine.txt").write_text("\n\n".join(paragraphs))
    seen = {}

    def train(lm, shards, out, **options):
        seen.update(options, lm=lm, shards=shards, out=out)
        raise Arrived

    monkeypatch.setattr(launch, "train", train)
    monkeypatch.setattr("tilelli_nb.training.loop.train", train)

    def run(*arguments):
        seen.clear()
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert isinstance(done.exception, Arrived), (done.exception, done.output)
        return seen

    return run


def test_every_option_of_train_arrives(arriving):
    seen = arriving(
        *("train", "--config", "nano", "--corpus", "mine.txt", "--out", "run"),
        *("--steps", 9, "--stop-at", 3, "--prompt", "Hi", "--device", "cpu"),
        *("--usd-per-hour", 0.5, "--max-dollars", 2, "--notes", "A word."),
        *("--batch", 6, "--micro-batch", 2, "--lr", 0.003, "--precision", "fp32"),
        *("--seed", 4, "--keep-checkpoints", 5, "--no-compile"),
    )
    expected = {
        "resume": False,
        "stop_at": 3,
        "minutes": None,
        "prompt": "Hi",
        "device": "cpu",
        "compiled": False,
        "usd_per_hour": 0.5,
        "max_dollars": 2,
        "notes": "A word.",
    }
    assert expected.items() <= seen.items() and seen["out"].name == "run"
    settings = seen["lm"].config.train
    assert (settings.steps, settings.batch, settings.micro_batch) == (9, 6, 2)
    assert (settings.lr, settings.precision) == (0.003, "fp32")
    assert (settings.seed, settings.keep_checkpoints) == (4, 5)
    seen = arriving("train", "--corpus", "mine.txt", "--minutes", 1.5, "--compile")
    assert (seen["minutes"], seen["compiled"], seen["stop_at"]) == (1.5, True, None)
    assert seen["usd_per_hour"] is None and seen["max_dollars"] is None


def test_who_watches_a_run_is_told_and_may_fail(arriving, monkeypatch, capsys):
    lines = {"tensorboard": [], "wandb": []}

    def fails(line):
        lines["wandb"].append(line)
        raise ConnectionError("no network")

    monkeypatch.setattr(
        launch.loggers, "tensorboard", lambda out: lines["tensorboard"].append
    )
    monkeypatch.setattr(
        launch.loggers, "weights_and_biases", lambda project, out: fails
    )
    on_log = arriving("train", "--tensorboard", "--wandb", "mine")["on_log"]
    on_log("one")
    on_log("two")
    assert lines == {"tensorboard": ["one", "two"], "wandb": ["one"]}
    said = capsys.readouterr().out
    assert "ConnectionError: no network; the run goes on without it" in said


def test_every_option_of_sft_arrives(arriving, monkeypatch):
    """But for the pairs and the text, which the next test has."""
    monkeypatch.setattr(sft_module, "conversations", lambda *about: None)
    seen = arriving(
        *("sft", "--out", "run", "--steps", 9, "--stop-at", 3, "--batch", 6),
        *("--lr", 0.003, "--seed", 4, "--precision", "fp32", "--device", "cpu"),
        *("--keep-checkpoints", 5, "--compile", "--notes", "A word."),
    )
    expected = {
        "resume": False,
        "stop_at": 3,
        "minutes": None,
        "device": "cpu",
        "compiled": True,
        "notes": "Started from the weights of tilelli/nano. A word.",
    }
    assert expected.items() <= seen.items() and seen["out"].name == "run"
    settings = seen["lm"].config.train
    assert (settings.steps, settings.batch, settings.seed) == (9, 6, 4)
    assert (settings.lr, settings.precision) == (0.003, "fp32")
    assert settings.keep_checkpoints == 5
    seen = arriving("sft", "--minutes", 1.5, "--resume", "--no-compile")
    assert (seen["minutes"], seen["resume"], seen["compiled"]) == (1.5, True, False)
    assert (seen["stop_at"], seen["device"]) == (None, None)
    # what is not given is as the configuration has it
    assert seen["lm"].config == load_config("sft_nano")


def test_other_pairs_and_another_text_arrive_at_sft(arriving):
    start = ("sft", "--init", "tilelli/nano", "--text", "mine.txt", "--steps", 2)
    seen = arriving(*start, "--pairs", 6000, "--pairs-seed", 3, "--notes", "A word.")
    assert "6,000 questions and answers of seed 3" in str(seen["shards"].source)
    assert seen["notes"].endswith("A word.")
    assert seen["shards"].text.describe()["source"] == "mine.txt"


@pytest.mark.parametrize("wanted", ["0", "-1", "x", "1.5"])
def test_a_micro_batch_is_a_number_of_sequences(tmp_path, monkeypatch, wanted):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--steps", "2", "--micro-batch", wanted, "--out", "run"]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, ConfigError)
    assert f"--micro-batch {wanted}" in error.problem


@pytest.mark.parametrize("size", [0, -1.0, math.nan, math.inf])
def test_no_size_from_python(tmp_path, monkeypatch, size):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="megabytes of stories"):
        prepare_corpus("stories", megabytes=size)


def test_a_price_of_nothing_is_a_price():
    done = CliRunner().invoke(app, ["cost", "--usd-per-hour", "0", "--gpu", "A6000"])
    assert done.exit_code == 0 and not isinstance(done.exception, ConfigError)


@pytest.mark.parametrize("option", ["--top-k=5", "--top-p=0.9", "--seed=1"])
def test_what_cannot_matter_at_temperature_0_is_refused(option):
    arguments = ["generate", "hi", "--max-new", "1", "--temperature", "0", option]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, ConfigError)
    assert option.split("=")[0] in str(done.exception)


@pytest.mark.parametrize("option", ["--top-k=5", "--top-p=0.9", "--seed=1"])
def test_a_temperature_of_0_that_the_model_brings_counts_as_well(tmp_path, option):
    lm = tiny(dtype=torch.float32)
    lm.sampling_defaults = {"temperature": 0, "top_k": 3}
    lm.save_pretrained(tmp_path / "greedy")
    greedy = ["generate", "hi", "--max-new=1", "--model", str(tmp_path / "greedy")]
    done = CliRunner().invoke(app, [*greedy, option])
    assert isinstance(done.exception, ConfigError), done.output
    name = option.split("=")[0]
    assert done.exception.problem.startswith(f"{name} is without effect at temp")
    assert "greedy has of its own" in done.exception.problem
    # what the model brings was not given, and a temperature that is given wins
    for arguments in ([], [option, "--temperature=1"]):
        assert CliRunner().invoke(app, [*greedy, *arguments]).exit_code == 0


def test_a_resumed_run_is_tried_in_the_precision_that_it_has(tmp_path):
    """Not in that of a command which leaves it to the machine."""
    settings = load_config("nano").with_train(precision="auto")
    out = tmp_path / "run"
    resumed = TrainOptions(resume=True)
    assert precision_of(resumed, out, settings) == "auto"  # nothing is there yet
    out.mkdir()
    record = records.new_record(
        "run", "train", config=settings.to_dict(), precision="fp32", device="cuda"
    )
    (out / "run.json").write_bytes(records.dumps(record))
    assert precision_of(resumed, out, settings) == "fp32"
    assert precision_of(TrainOptions(decay_from=out), out, settings) == "fp32"
    assert precision_of(TrainOptions(), out, settings) == "auto"
