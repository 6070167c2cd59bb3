"""`tilelli generate` at its edges: bytes that are no text, half a character at the end of
the prompt, a closed standard input.
"""

import os
import subprocess
import sys

import pytest
import torch
from tiny_models import tiny
from typer.testing import CliRunner

from tilelli_nb.cli import generate as generate_module
from tilelli_nb.cli.app import app


@pytest.fixture
def generate(monkeypatch):
    """Runs `tilelli generate` with a model that goes on as it is told; returns what is
    printed, and notes the prompts that the model was given.
    """

    def run(*arguments, stdin=b"", new=b""):
        class Model:
            sampling_defaults = {}

            def sampling(self):
                return tiny(dtype=torch.float32).sampling()

            def generate(self, ids, **_):
                run.read.append(bytes(ids))
                return [*ids, *new]

            def stream(self, ids, **settings):
                run.read.append(bytes(ids))
                return iter(new)

        monkeypatch.setattr(generate_module, "load", lambda *_: Model())
        done = CliRunner().invoke(app, ["generate", *arguments], input=stdin)
        assert done.exit_code == 0, done.output
        return done.stdout

    run.read = []
    return run


@pytest.mark.skipif(sys.platform == "win32", reason="arguments are text there")
def test_a_prompt_of_bytes_that_are_no_text_stays_what_it_is(generate):
    generate(os.fsdecode(b"caf\xe9"))
    generate("café")
    assert generate.read == [b"caf\xe9", "café".encode()]


@pytest.mark.parametrize("options", [[], ["--stream"]])
def test_a_character_that_the_prompt_begins_and_the_model_ends(generate, options):
    printed = generate("-", *options, stdin=b"caf\xc3", new=b"\xa9 noir")
    assert printed == "café noir\n"


@pytest.mark.skipif(sys.platform == "win32", reason="closes file 0 in the child")
@pytest.mark.parametrize("command", ["generate", "score"])
def test_without_a_standard_input_a_command_says_so(command):
    code = "from tilelli_nb.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, command, "-"],
        capture_output=True,
        preexec_fn=lambda: os.close(0),
    )
    assert done.returncode == 1
    assert b"no standard input" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="closes file 1 in the child")
def test_without_a_standard_output_a_stream_is_no_traceback():
    code = "from tilelli_nb.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "generate", "hi", "--stream", "--max-new", "2"],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.close(1),
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr


def test_nothing_is_printed_before_a_setting_is_refused():
    done = CliRunner().invoke(app, ["generate", "abc", "--stream", "--top-p", "5"])
    assert done.exit_code != 0
    assert done.stdout == ""
