"""Where a traceback of some library used to come: two lines that say what to do."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from test_train import small
from typer.testing import CliRunner

from tilelli_nb import ByteTokenizer, TilelliError, TilelliLM, load_config
from tilelli_nb.cli.app import app
from tilelli_nb.data import documents
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.data.shards import fingerprint
from tilelli_nb.errors import ConfigError, DataError, TokenError
from tilelli_nb.storage.records import dumps, load_record, new_record
from tilelli_nb.training.cost import all_records
from tilelli_nb.training.distributed import Processes, refuse_unseen_gpu
from tilelli_nb.training.loop import train


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "xla", "meta", "cpu:1", "tpu:0"])
def test_a_device_that_nobody_knows(device):
    with pytest.raises(ConfigError, match=f"--device {device}"):
        Processes(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_here(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this Mac has it")
    with pytest.raises(ConfigError, match="PyTorch sees 0 of this kind") as error:
        train(small(), prepare_corpus("stories", megabytes=0.01), "run", device=device)
    assert "nvidia-smi" in error.value.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("sign", ["RUNPOD_POD_ID", "SLURM_JOB_GPUS", "nvidia-smi"])
def test_no_cpu_where_a_gpu_is_paid_for(here, monkeypatch, sign):
    for name in ("RUNPOD_POD_ID", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(here / "bin"))
    refuse_unseen_gpu(None)  # an ordinary laptop
    if sign == "nvidia-smi":
        (here / "bin").mkdir()
        (here / "bin" / sign).touch(mode=0o755)
    else:
        monkeypatch.setenv(sign, "1")
    error = CliRunner().invoke(app, ["train", "--steps", "1", "--out", "run"]).exception
    assert isinstance(error, ConfigError) and sign in error.problem
    assert "--device cpu" in error.fix and not (here / "run").exists()
    refuse_unseen_gpu("cpu")  # it was said
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refuse_unseen_gpu(None)  # hidden on purpose


def test_a_damaged_parquet_file(here):
    texts = [f"row {i} " * 50 for i in range(3000)]
    parquet.write_table(
        pyarrow.table({"text": texts}), "whole.parquet", compression="snappy"
    )
    data = (here / "whole.parquet").read_bytes()
    for name, damaged in (
        ("cut", data[: len(data) // 2]),
        ("zeros", data[:200] + bytes(len(data) - 1000) + data[-800:]),
        ("empty", b""),
    ):
        path = here / f"{name}.parquet"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{name}.parquet is"):
            list(documents.read_documents(path))
    assert list(documents.read_documents("whole.parquet")) == texts


def test_a_column_that_holds_no_text(here):
    parquet.write_table(pyarrow.table({"text": [1, 2, 3]}), "numbers.parquet")
    with pytest.raises(DataError, match="`text` of numbers.parquet holds int64"):
        list(documents.read_documents("numbers.parquet"))
    for rows in ([["a", "b"]], [{"string": "a"}]):
        parquet.write_table(pyarrow.table({"text": rows}), "lists.parquet")
        with pytest.raises(DataError, match="lists.parquet holds (list|struct)<"):
            list(documents.read_documents("lists.parquet"))
    for kind in (pyarrow.large_string(), pyarrow.string_view()):
        column = pyarrow.array(["a", None, "b"]).cast(kind)
        parquet.write_table(pyarrow.table({"text": column}), "long.parquet")
        assert list(documents.read_documents("long.parquet")) == ["a", "b"]
    broken = pyarrow.array([b"caf\xe9"]).cast(pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": broken}), "latin.parquet")
    with pytest.raises(DataError, match="latin.parquet is damaged"):
        list(documents.read_documents("latin.parquet"))
    column = pyarrow.array(["a", None, "b"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"text": column}), "kinds.parquet")
    assert list(documents.read_documents("kinds.parquet")) == ["a", "b"]


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux alone has it")
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_file_that_cannot_be_read(here, kind):
    """One whose every read is an error, for root too."""
    path = here / f"mine.{kind}"
    path.symlink_to("/proc/self/mem")
    for read in (prepare_corpus, fingerprint, lambda p: list(documents.documents(p))):
        with pytest.raises(DataError):
            read(path)
    done = CliRunner().invoke(app, ["score", str(path)])
    assert isinstance(done.exception, DataError), done.exception


LONG = "x" * 400


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--corpus", LONG],
        ["train", "--config", LONG],
        ["train", "--init", LONG],
        ["train", "--out", LONG, "--resume", "--steps", "1"],
        ["train", "--decay-from", LONG, "--steps", "1"],
        ["data", LONG],
        ["generate", "--model", LONG],
        ["generate", "--model", f"{LONG}/{LONG}"],
        ["info", LONG],
        ["score", LONG],
        ["pack", "tilelli/nano", "--out", LONG],
        ["push", LONG, "me/mine"],
    ],
    ids=lambda x: f"{x[0]} {x[1][:9]}",
)
def test_a_name_of_400_characters(arguments):
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, TilelliError), done.exception


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpys_numbers_are_numbers(kind):
    nano = load_config("nano").with_model(d_model=kind(16), n_heads=2, n_blocks=1)
    config = nano.with_train(seed=kind(3), lr=np.float32(0.5), steps=kind(7))
    assert (config.train.seed, config.train.lr, config.train.steps) == (3, 0.5, 7)
    json.dumps(config.to_dict())
    plain = TilelliLM(nano, seed=3)
    lm = TilelliLM(nano, seed=kind(3))
    assert torch.equal(lm.output.weight, plain.output.weight)
    lm.eval()
    given = lm.generate([72], max_new=kind(5), seed=kind(3), top_k=kind(9))
    assert given == lm.generate([72], max_new=5, seed=3, top_k=9)


def test_a_seed_too_large_for_what_follows_from_it():
    nano = load_config("nano").with_model(d_model=16, n_heads=2, n_blocks=1)
    large = np.int64(2**62)  # times a million it does not fit into 64 bits
    lm = TilelliLM(nano, seed=large).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = lm.generate([72], max_new=5, seed=large)
    assert given == lm.generate([72], max_new=5, seed=2**62)
    for seed in (-1, 2**63, 2**64, True, 1.5, "3"):
        with pytest.raises(ConfigError, match="seed"):
            TilelliLM(nano, seed=seed)
    with pytest.raises(TilelliError, match="seed") as error:
        lm.generate([72], seed=2**63)
    assert "2**62" in error.value.fix


@pytest.mark.parametrize(
    "prompt",
    [
        torch.tensor([[72], [105]]),
        torch.tensor([[72, 105]]),
        np.array([[72], [105]]),
        [torch.tensor([72]), torch.tensor([105])],
        [72.9, 105.2],
        ["72", "105"],
        [None],
    ],
)
def test_a_prompt_that_is_no_row_of_bytes(prompt):
    lm = TilelliLM(load_config("nano").with_model(d_model=16, n_heads=2)).eval()
    for use in (lm.generate, lambda ids: list(lm.stream(ids))):
        with pytest.raises(TokenError):
            use(prompt)
    with pytest.raises(TokenError):
        ByteTokenizer().decode(prompt)


def test_rows_of_numbers_stay_prompts():
    lm = TilelliLM(load_config("nano").with_model(d_model=16, n_heads=2)).eval()
    expected = lm.generate([72, 105], max_new=5, seed=1)
    for prompt in (torch.tensor([72, 105]), np.array([72, 105]), (72, 105), b"Hi"):
        found = lm.generate(prompt, max_new=5, seed=1)
        assert [int(i) for i in found] == expected


def tilelli(*arguments, **environment):
    code = "from tilelli_nb.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        # in a locale without UTF-8 the arguments themselves would be other ones
        env={**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8", **environment},
    )


def test_a_terminal_that_knows_few_characters():
    for options in ((), ("--stream",)):
        done = tilelli(
            "generate", "Ж ⵣ é", "--max-new", "1", *options, PYTHONIOENCODING="cp1252"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("? ? é".encode("cp1252"))
    done = tilelli("score", "ⵣ.txt", PYTHONIOENCODING="cp1252")
    assert done.returncode == 1 and b"cannot read ?.txt" in done.stderr


@pytest.mark.parametrize("prompt", ["- one\n- two", "-5 degrees", "--- a line"])
def test_a_prompt_may_begin_with_a_dash(prompt):
    for arguments in (
        ["generate", prompt, "--max-new", "0"],
        ["generate", "--max-new", "0", prompt],
        ["generate", "--max-new=0", "--", prompt],
        ["generate", "--model=tilelli/nano", prompt, "--max-new=0"],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0 and done.stdout == prompt + "\n", done.output
    done = CliRunner().invoke(app, ["generate", "--temprature", "0.5"])
    assert done.exit_code == 2  # a misspelt option stays one
    done = CliRunner().invoke(app, ["generate", "--model=no model here", "hi"])
    assert "there is no model 'no model here'" in str(done.exception)


def whole_record(name):
    config = load_config("nano").to_dict()
    record = new_record(name, "train", config=config, wall_s=60.0, bytes_seen=10)
    return record | {"gpu_name": None, "bytes_per_s": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"name": "x"}',
        b"\xff\xfe\0",
        {"wall_s": "long"},
        {"bytes_seen": None},
    ],
    ids=str,
)
def test_one_damaged_record_does_not_hide_the_others(here, text):
    for name in ("a", "b"):
        (here / "runs" / name).mkdir(parents=True)
        (here / "runs" / name / "run.json").write_bytes(dumps(whole_record(name)))
    if isinstance(text, dict):
        text = dumps(whole_record("a") | text)
    elif isinstance(text, str):
        text = text.encode()
    (here / "runs" / "a" / "run.json").write_bytes(text)
    with pytest.warns(UserWarning, match="runs/a/run.json"):
        assert "b" in [record["name"] for record in all_records()]
    with pytest.warns(UserWarning, match="left out"):
        done = CliRunner().invoke(app, ["cost", "--gpu", "A6000"])
    assert done.exit_code == 0 and "\nb " in done.stdout, done.exception


def test_a_record_of_something_else_is_refused_by_name(here):
    (here / "mine").mkdir()
    for text in ("{}", "[1]", "null", '{"jobs": 3}'):
        (here / "mine" / "run.json").write_text(text)
        with pytest.raises(DataError, match="mine"):
            load_record("mine")
        (here / "mine" / "checkpoints").mkdir(exist_ok=True)
        with pytest.raises(DataError, match="mine"):
            train(
                small(),
                prepare_corpus("stories", megabytes=0.01),
                "mine",
                resume=True,
                progress=False,
            )


def test_a_warning_is_one_line_for_a_reader(here):
    (here / "mine").mkdir()
    for name in ("a.txt", "b.txt", "notes.md"):
        (here / "mine" / name).write_text(name)
    done = tilelli("data", "mine")
    assert done.returncode == 0
    said = b"warning: of the folder mine this is not read: 1 .md\n"
    assert done.stderr == said
