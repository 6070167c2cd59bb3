"""`tilelli sft` and `tilelli chat`: from a pretrained model to a conversation."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tilelli_nb import TilelliLM
from tilelli_nb.cli import chat as chat_module
from tilelli_nb.cli import sft as sft_module
from tilelli_nb.cli.app import app
from tilelli_nb.errors import CheckpointError, ConfigError
from tilelli_nb.inference.chatting import Gate, Spoken, write_gate


def tilelli(*arguments, **options):
    return CliRunner().invoke(app, [*map(str, arguments)], **options)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run of two steps: enough for a folder, not for an answer."""
    out = tmp_path_factory.mktemp("runs") / "chat"
    few = ["--pairs", 6000, "--steps", 2, "--batch", 4, "--precision", "fp32"]
    done = tilelli("sft", "--out", out, *few)
    assert done.exit_code == 0, done.output
    return out, done.output


def test_sft_leaves_a_run_and_says_how_to_talk_with_it(taught):
    out, said = taught
    assert f"next: tilelli chat --model {out}" in said
    record = json.loads((out / "run.json").read_text())
    assert record["kind"] == "sft" and record["data"]["conversations"] == 6000
    assert record["notes"] == "Started from the weights of tilelli/nano."
    assert record["data"]["source"] == (
        "6,000 questions and answers of seed 0, and stories"
    )
    # rows of some sixty bytes, and one of 256 of text
    assert 2 * (4 * 45 + 256) < record["bytes_seen"] < 2 * (4 * 75 + 256)
    before, after = (
        TilelliLM.from_pretrained("tilelli/nano"),
        TilelliLM.from_pretrained(out),
    )
    moved = (before.token.weight - after.token.weight).abs().max()
    assert 0 < moved < 0.1  # it began there, and went on


def test_sft_refuses_what_would_destroy_or_not_fit(taught, tmp_path):
    out, _ = taught
    with pytest.raises(ConfigError, match="choose another --out"):
        tilelli("sft", "--init", out, "--out", out, catch_exceptions=False)
    with pytest.raises(CheckpointError, match="d_model 128, not 384"):
        tilelli(
            "sft",
            "--config",
            "sft_10m",
            "--out",
            tmp_path / "x",
            catch_exceptions=False,
        )
    both = tilelli("sft", "--steps", 3, "--minutes", 1)
    assert both.exit_code == 2 and "not both" in both.output


def test_sft_resumes_its_own_length_alone_and_needs_the_gpu_that_is_paid_for(
    taught, monkeypatch
):
    out, _ = taught
    again = ["sft", "--out", out, "--pairs", 6000, "--batch", 4, "--resume"]
    with pytest.raises(ConfigError, match="has 2 steps, not 500"):
        tilelli(*again, "--steps", 500, catch_exceptions=False)
    with pytest.raises(ConfigError, match="did not start from tilelli/lite-10m"):
        tilelli(*again, "--init", "tilelli/lite-10m", catch_exceptions=False)
    monkeypatch.setenv("RUNPOD_POD_ID", "abc")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(ConfigError, match="should have a GPU"):
        tilelli(*again, catch_exceptions=False)


@pytest.mark.parametrize(("asked", "compiled"), [([], False), (["--compile"], True)])
def test_sft_compiles_only_where_it_is_asked_to(monkeypatch, tmp_path, asked, compiled):
    """Rows differ in length, and each length would be compiled by itself."""
    given = []

    def stop(*inputs, **options):
        given.append(options["compiled"])
        raise ConfigError("enough", "stop here")

    monkeypatch.setattr("tilelli_nb.training.loop.train", stop)
    monkeypatch.setattr(sft_module, "conversations", lambda *about: None)
    done = tilelli("sft", "--out", tmp_path / "x", *asked)
    assert isinstance(done.exception, ConfigError) and given == [compiled]


def test_a_batch_whose_text_does_not_divide_is_refused_at_the_start(monkeypatch):
    """64 conversations divide among 8 processes, their 4 rows of text do not."""
    # before the stand-in is there: it would keep it
    import tilelli_nb.training.loop  # noqa: F401

    class Eight:
        world, rank, is_first, device = 8, 1, False, "cpu"

        def __init__(self, device):
            pass

    def begun(*inputs):
        raise AssertionError("it has begun")

    monkeypatch.setattr("tilelli_nb.training.distributed.Processes", Eight)
    monkeypatch.setattr("tilelli_nb.cli.launch.start_from", begun)
    sft = ["sft", "--device", "cpu", "--batch"]
    with pytest.raises(ConfigError, match="64 conversations and 4 rows of") as caught:
        tilelli(*sft, 64, catch_exceptions=False)
    assert "a multiple of 128" in caught.value.fix
    with pytest.raises(AssertionError, match="it has begun"):
        tilelli(*sft, 128, catch_exceptions=False)


def test_a_conversation_from_a_pipe(taught):
    out, _ = taught
    lines = "What is your name?\n/reset\nAnd now?\n/quit\nnever asked\n"
    done = tilelli("chat", "--model", out, input=lines)
    assert done.exit_code == 0, done.output
    assert done.output.count("TILELLI: ") == 2
    assert "(forgotten)" in done.output and "never asked" not in done.output
    assert done.output.count("confidence 0.") == 2
    quiet = tilelli("chat", "--model", out, "--no-confidence", input="Hi\n")
    assert "confidence" not in quiet.output


def test_whatever_a_pipe_holds(taught):
    out, _ = taught
    done = tilelli(
        "chat", "--model", out, input=b"\xff\xfe\x00\nUSER: no\n\n" + b"x" * 9000
    )
    assert done.exit_code == 0, done.output
    assert "role tags lost their colon" in done.output
    assert "the question is empty" in done.output
    assert "only the last 160 bytes" in done.output


def test_what_a_pipe_holds_is_changed_with_a_note_or_not_at_all(taught, monkeypatch):
    out, _ = taught
    asked = []

    def listen(lm, prompt, sampling, turn):
        asked.append(bytes(prompt.tolist()))
        yield Spoken(0, 0.9, 0.0)

    monkeypatch.setattr("tilelli_nb.inference.chatting.speak", listen)
    # a file that an editor on Windows has saved begins with a mark
    done = tilelli("chat", "--model", out, input=b"\xef\xbb\xbfHi\r\n/reset\na\xff\n")
    assert asked == [
        b"USER: Hi\nTILELLI: ",
        "USER: a\ufffd\nTILELLI: ".encode(),
    ]
    assert done.output.count("characters that are not valid were replaced") == 1


def test_a_command_that_there_is_not_is_no_question(taught):
    out, _ = taught
    lines = "/rest\n /help \n/RESET\n/ 2 means half of it?\n/Quit\nnever asked\n"
    done = tilelli("chat", "--model", out, input=lines)
    assert done.exit_code == 0, done.output
    assert done.output.count("TILELLI: ") == 1
    assert done.output.count("(forgotten)") == 1
    assert done.output.count("/quit or Ctrl-D ends it") == 3  # at the start, and twice


def test_without_a_standard_input_there_is_no_question(monkeypatch):
    monkeypatch.setattr(chat_module.sys, "stdin", None)
    assert chat_module.read_line() is None


def test_a_seed_without_effect_is_refused(taught):
    out, _ = taught
    cold = tilelli("chat", "--model", out, "--seed", 5, input="Hi\n")
    assert isinstance(cold.exception, ConfigError)
    assert "--seed is without effect at --temperature 0" in str(cold.exception)
    warm = ["chat", "--model", out, "--seed", 5, "--temperature", 1]
    once, again = (tilelli(*warm, input="Hi\n").output for _ in range(2))
    assert "TILELLI: " in once and once == again


def test_an_answer_does_not_steer_the_terminal(taught, monkeypatch):
    out, _ = taught

    def says(lm, prompt, sampling, turn):
        text = "a\nUSER: b\x1b[2J\u2028é"
        yield from (Spoken(byte, 0.9, 0.0) for byte in [*text.encode(), 0])

    monkeypatch.setattr("tilelli_nb.inference.chatting.speak", says)
    done = tilelli("chat", "--model", out, input="Hi\n")
    assert "TILELLI: a USER: b [2J é\n" in done.output


def test_a_gate_is_used_where_there_is_one(taught, monkeypatch, tmp_path):
    out, _ = taught
    refused = tilelli("chat", "--model", "tilelli/nano", "--gate", input="Hi\n")
    assert isinstance(refused.exception, CheckpointError)

    def unsure(lm, prompt, sampling, turn):
        yield from (Spoken(byte, 0.3, 0.3) for byte in b"Paris.\0")

    monkeypatch.setattr("tilelli_nb.inference.chatting.speak", unsure)
    write_gate(out, Gate("margin", 0.5))
    for shut in (["chat", "--model", out], ["chat", "--model", out, "--gate"]):
        said = tilelli(*shut, input="Hi\n").output
        assert "TILELLI: I don't know.\n" in said and "not sure" in said
    open_to_all = tilelli("chat", "--model", out, "--no-gate", input="Hi\n")
    assert "TILELLI: Paris.\n" in open_to_all.output
    (out / "gate.json").unlink()
    assert "TILELLI: Paris.\n" in tilelli("chat", "--model", out, input="Hi\n").output


def test_ctrl_c_ends_an_answer_and_not_the_program(taught, monkeypatch):
    out, _ = taught
    asked = []

    def interrupted(lm, prompt, sampling, turn):
        asked.append(bytes(prompt.tolist()))
        yield from (Spoken(byte, 0.9, 0.0) for byte in b"A lon")
        if len(asked) == 1:
            raise KeyboardInterrupt
        yield Spoken(0, 0.9, 0.0)

    monkeypatch.setattr("tilelli_nb.inference.chatting.speak", interrupted)
    done = tilelli("chat", "--model", out, input="One\nTwo\n")
    assert done.exit_code == 0
    assert "TILELLI: A lon ...\n" in done.output
    assert b"TILELLI: A lon\0USER: Two" in asked[1]  # what was said is remembered


class Terminal:
    def isatty(self):
        return True


def test_the_end_of_the_keyboard_ends_the_program(monkeypatch):
    def ended(prompt):
        raise EOFError

    monkeypatch.setattr(chat_module.sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", ended)
    assert chat_module.read_line() is None


@pytest.mark.parametrize(
    "keys, questions, warnings",
    [
        # None is Ctrl-C. Once is taken for an answer that has just ended
        ([None, "One", "/quit"], ["One"], 1),
        ([None, None, "One"], [], 1),
        ([None, "One", None, "Two", "/quit"], ["One", "Two"], 2),
    ],
)
def test_ctrl_c_at_the_prompt_must_come_twice(
    taught, monkeypatch, capsys, keys, questions, warnings
):
    out, _ = taught
    left, asked = list(keys), []

    def pressed():
        key = left.pop(0)
        if key is None:
            raise KeyboardInterrupt
        return key

    monkeypatch.setattr(chat_module, "read_line", pressed)
    monkeypatch.setattr(chat_module, "answer", lambda _, said, __: asked.append(said))
    chat_module.chat(str(out))
    assert asked == questions
    assert capsys.readouterr().err.count(chat_module.ONCE_MORE) == warnings


@pytest.mark.skipif(sys.platform == "win32", reason="no such terminals there")
def test_what_is_typed_need_not_be_text(taught):
    """In a terminal, whose letters Python may take strictly."""
    out, _ = taught
    ours, theirs = os.openpty()
    program = [sys.executable, "-m", "tilelli_nb.cli", "chat", "--model", str(out)]
    os.write(ours, b"caf\xe9?\n/quit\n")
    done = subprocess.run(
        program,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"},
        timeout=120,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stdout
    assert b"characters that are not valid were replaced" in done.stdout
