"""The command line, in a folder of its own, as a newcomer would type it."""

import json
import os
import subprocess
import sys
import warnings

import pyarrow
import pytest
import torch
from pyarrow import parquet
from typer.testing import CliRunner

from tilelli_nb import ByteTokenizer, TilelliLM, load_record
from tilelli_nb.cli.app import app, main
from tilelli_nb.errors import ConfigError


def tilelli(*arguments, folder, stdin=b""):
    code = "from tilelli_nb.cli.app import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reader")
    paragraphs = (
        f"This is paragraph {i} of my own text, about nothing much." for i in range(400)
    )
    (path / "mine.txt").write_text("\n\n".join(paragraphs))
    (path / "scored.txt").write_bytes((path / "mine.txt").read_bytes()[:1500])
    (path / "small.yaml").write_text(
        "model: {d_model: 16, n_blocks: 1, n_heads: 2, keep: 4, context: 32}\n"
        "train: {steps: 20, batch: 4, micro_batch: 4, lr: 1e-2, eval_every: 10, checkpoint_every: 10}\n"
    )
    return path


def test_train_stop_resume_generate_and_info(folder):
    train = [
        "train",
        "--config",
        "small.yaml",
        "--corpus",
        "mine.txt",
        "--out",
        "runs/mine",
    ]
    first = tilelli(*train, "--stop-at", "10", folder=folder)
    assert first.returncode == 0 and b"stopped after 10 of 20 steps" in first.stdout, (
        first.stderr
    )
    again = tilelli(*train, "--resume", folder=folder)
    assert again.returncode == 0 and b"bits per byte held out" in again.stdout, (
        again.stderr
    )
    assert load_record(folder / "runs" / "mine")["data"]["source"] == "mine.txt"

    tok, lm = ByteTokenizer(), TilelliLM.from_pretrained(folder / "runs" / "mine")
    expected = tok.decode(
        lm.generate(tok.encode("This"), max_new=20, temperature=0.8, seed=3)
    )
    options = ["--model", "runs/mine", "--max-new", "20", "--seed", "3"]
    for extra, stdin in (
        (["This"], b""),
        (["This", "--stream"], b""),
        (["-"], b"This"),
    ):
        out = tilelli("generate", *extra, *options, folder=folder, stdin=stdin)
        assert out.returncode == 0 and out.stdout.decode() == expected + "\n", (
            out.stderr
        )

    out = tilelli("info", "runs/mine", folder=folder).stdout.decode()
    assert (
        f"{sum(p.numel() for p in lm.parameters()):,} parameters" in out
        and "bits per byte" in out
    )


@pytest.mark.parametrize(
    ("given", "spins"),
    [
        ({}, "20000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_train_lets_idle_threads_sleep_before_pytorch_is_loaded(given, spins):
    code = (
        "import os, sys, types\n"
        "def launch(options):\n"
        "    assert options['steps'] == 1 and options['corpus'] == 'stories'\n"
        "    print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
        "    return None, None\n"
        "fake = types.SimpleNamespace(launch=launch, TrainOptions=dict)\n"
        "sys.modules['tilelli_nb.cli.launch'] = fake\n"
        "from tilelli_nb.cli.app import app\n"
        "app(['train', '--steps', '1'])"
    )
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [spins, "False"]


def test_init_starts_from_the_weights_of_another_run(folder):
    train = ["train", "--config", "small.yaml", "--corpus", "mine.txt", "--lr", "1e-12"]
    for run, options in (
        ("old", ["--seed", "5"]),
        ("new", ["--steps", "1", "--init", "runs/old"]),
    ):
        out = tilelli(*train, *options, "--out", f"runs/{run}", folder=folder)
        assert out.returncode == 0, out.stderr
    old, new = (
        TilelliLM.from_pretrained(folder / "runs" / run).state_dict()
        for run in ("old", "new")
    )
    for name, tensor in old.items():
        assert torch.allclose(new[name], tensor, rtol=0, atol=1e-9), name
    assert (
        load_record(folder / "runs" / "new")["notes"]
        == "Started from the weights of runs/old."
    )


def test_data_makes_shards_that_train_takes(folder):
    out = tilelli(
        "data", "stories", "--megabytes", "0.05", "--out", "shards", folder=folder
    )
    assert (
        out.returncode == 0
        and b"next: tilelli train --config nano --corpus shards" in out.stdout
    ), out.stderr
    manifest = json.loads((folder / "shards" / "manifest.json").read_text())
    assert (
        manifest["source"] == "stories"
        and sum(s["bytes"] for s in manifest["shards"]) < 60_000
    )
    out = tilelli(
        "train",
        "--config",
        "small.yaml",
        "--corpus",
        "shards",
        "--steps",
        "2",
        folder=folder,
    )
    assert (
        out.returncode == 0
        and (folder / "runs" / "small-shards" / "model.safetensors").is_file()
    ), out.stderr


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_a_readers_own_200_kb_train_with_one_command(folder, kind):
    documents = [
        f"Page {i}. "
        + f"It is about the number {i}, its double {2 * i} and little else. " * 20
        for i in range(170)
    ]
    path = folder / f"own.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(documents))
    elif kind == "jsonl":
        path.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in documents)
        )
    else:
        parquet.write_table(pyarrow.table({"text": documents}), path)
    out = tilelli(
        "train",
        "--config",
        "small.yaml",
        "--corpus",
        path.name,
        "--steps",
        "5",
        "--out",
        f"runs/{kind}",
        folder=folder,
    )
    assert out.returncode == 0, out.stderr
    record, text = load_record(folder / "runs" / kind), "\0".join(documents).encode()
    assert len(text) > 200_000
    assert record["steps"] == 5 and record["data"]["source"] == path.name
    # the stream has a byte 0 behind each document, and one part of it is held out
    assert record["data"]["train_bytes"] + record["data"]["val_bytes"] == len(text) + 1
    assert 0 < record["data"]["val_bytes"] < record["data"]["train_bytes"] / 8


def inside(*arguments, stdin=b""):
    """The same in this process, which is quicker: what it prints."""
    result = CliRunner().invoke(
        app, list(map(str, arguments)), input=stdin, catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def test_score_says_how_it_measured(folder):
    lm, text = (
        TilelliLM.from_pretrained("tilelli/nano"),
        (folder / "scored.txt").read_bytes(),
    )
    for options, expected, way in (
        ([], lm.score(text), "in chunks of 256: tilelli/nano, fp32"),
        (["--sliding"], lm.score(text, True), "in a window that moves on by 128"),
    ):
        for out in (
            inside("score", folder / "scored.txt", *options),
            inside("score", "-", *options, stdin=text),
        ):
            assert way in out and "1,500 bytes" in out
            assert float(out.split()[0]) == pytest.approx(expected, abs=1e-3)


def test_pack_info_and_generate_from_a_packed_model(folder):
    packed = folder / "packed"
    out = inside(
        "pack", "tilelli/nano", "--out", packed, "--text", folder / "scored.txt"
    )
    assert "before, on 1,500 bytes of" in out and "scored.txt" in out
    about = inside("info", packed)
    assert (
        "824,576 parameters" in about
        and "for inference only" in about
        and "held out" in about
    )
    options = ["--model", packed, "--weights", "ternary", "--max-new", 20, "--seed", 1]
    expected = (
        ByteTokenizer().decode(
            TilelliLM.from_pretrained(packed)
            .prepare("ternary")
            .generate(list(b"Once"), max_new=20, seed=1)
        )
        + "\n"
    )
    assert inside("generate", "Once", *options) == expected
    assert inside("generate", "-", "--stream", *options, stdin=b"Once") == expected


def test_a_run_is_finished_by_another_that_keeps_its_configuration(folder):
    settings = (folder / "small.yaml").read_text()
    stable = settings.replace("steps: 20", "steps: 20, schedule: wsd")
    (folder / "stable.yaml").write_text(stable)
    options = ["--config", "stable.yaml", "--corpus", "mine.txt", "--lr", "5e-3"]
    options += ["--batch", "8", "--keep-checkpoints", "1", "--precision", "fp32"]
    first = ["train", *options, "--stop-at", "10", "--out", "runs/long"]
    assert tilelli(*first, folder=folder).returncode == 0
    end = ["train", "--corpus", "mine.txt", "--decay-from", "runs/long", "--steps", "6"]
    out = tilelli(*end, "--stop-at", "12", folder=folder)
    assert b"stopped after 12 of 16 steps" in out.stdout, out.stderr
    # without --resume it would be begun again
    again = tilelli(*end, folder=folder).stderr.decode()
    assert "long-decayed already holds a run" in again
    for option, value in (("--steps", "7"), ("--decay-from", "runs/other")):
        other = [*end, option, value, "--out", "runs/long-decayed", "--resume"]
        said = tilelli(*other, folder=folder).stderr.decode()
        assert "does not finish" in said and "Decays from step 10 of long." in said
    out = tilelli(*end, "--resume", folder=folder)
    assert b"16 steps" in out.stdout, out.stderr
    record = load_record(folder / "runs" / "long-decayed")
    settings = record["config"]["train"]
    assert (settings["lr"], settings["batch"]) == (5e-3, 8)
    assert record["notes"] == "Decays from step 10 of long."
    assert len(list((folder / "runs" / "long" / "checkpoints").iterdir())) == 1


OWN = ["train", "--decay-from", "runs/x"]


@pytest.mark.parametrize(
    "arguments,problem",
    [
        (OWN, "--decay-from goes with --steps"),
        *(
            ([*OWN, "--steps", "3", option, value], f"{option} is not for a run that")
            for option, value in {
                "--config": "nano",
                "--lr": "0.1",
                "--batch": "4",
                "--seed": "0",
                "--precision": "fp32",
                "--init": "tilelli/nano",
                "--notes": "hi",
            }.items()
        ),
        ([*OWN, "--minutes", "3"], "--minutes is not for a run that"),
        (["train", "--files", "x"], "--files is for fineweb-edu that is written"),
        (["train", "--min-score", "3"], "--min-score is for fineweb-edu that is"),
        (["train", "--gigabytes", "1"], "--gigabytes is for fineweb-edu, not for"),
        (["data", "stories", "--rank", "1"], "--rank is for fineweb-edu, not for"),
        (
            ["data", "docs", "--gigabytes", "1", "--files", "x"],
            "--gigabytes, --files are for fineweb-edu, not for docs",
        ),
        (["data", "fineweb-edu", "--seed", "1"], "--seed is not for fineweb-edu"),
    ],
)
def test_an_option_that_could_have_no_effect_is_refused(arguments, problem):
    with pytest.raises(ConfigError) as error:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert error.value.problem.startswith(problem) and error.value.fix


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["score", "nothing.txt"], "cannot read nothing.txt"),
        (
            ["generate", "hi", "--weights", "int4"],
            "use one of fp32, bf16, int8, ternary",
        ),
        (["train", "--config", "nanoo"], "did you mean 'nano'?"),
        (["train", "--corpus", "storys"], "stories"),
        (["train", "--corpus", "missing.txt"], "missing.txt"),
        (["generate", "--model", "tilelli/huge"], "tilelli/huge is not bundled"),
        (["info", "tilelli/nano_chat"], "did you mean tilelli/nano-chat?"),
        (["info", "tilelli/vanilla-10m"], "tilelli train --config vanilla_10m"),
        (
            ["generate", "hi", "--temperature", "-1"],
            "temperature is 0 (greedy) or more",
        ),
        (["info", "nowhere"], "there is no model 'nowhere'"),
    ],
)
def test_a_mistake_is_two_lines_and_exit_code_1(
    folder, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["tilelli", *arguments])
    monkeypatch.setattr(
        warnings, "formatwarning", warnings.formatwarning
    )  # main sets it
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert message in error and error.count("\n") == 2


def test_a_mistake_ends_the_process(folder):
    out = tilelli("score", "nothing.txt", folder=folder)
    assert out.returncode == 1 and out.stderr.count(b"\n") == 2
    assert b"cannot read nothing.txt" in out.stderr


def test_help_teaches(folder):
    out = tilelli("--help", folder=folder).stdout.decode()
    assert all(
        name in out
        for name in ("data", "train", "generate", "info", "Once upon a time")
    )
    assert "--resume" in tilelli("train", "--help", folder=folder).stdout.decode()


# How long one waits for the first byte


def imports(*arguments, folder):
    """The names of all modules that a command has imported when it ends."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from tilelli_nb.cli.app import main; main()"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_a_command_imports_what_it_needs(folder):
    assert "torch" not in imports("--help", folder=folder)
    found = imports("generate", "hi", "--max-new", "1", folder=folder)
    assert "tilelli_nb.language_model" in found
    slow = (
        "torch._dynamo triton rich huggingface_hub datasets pyarrow matplotlib IPython "
        "tilelli_nb.training.loop tilelli_nb.data.documents tilelli_nb.data.shards tilelli_nb.model.kernels"
    )
    assert not found & set(slow.split())
