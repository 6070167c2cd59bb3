"""`make reproduce`: it walks the recipe to its end, goes on where it was stopped, and
its page says what the files beside it say.
"""

import copy
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

import reproduce
import reproduce_report
from tilelli_nb import load_record
from tilelli_nb.errors import ConfigError
from tilelli_nb.evaluation.probes import load_probes


class Cells(HTMLParser):
    """The rows of the table, as lists of their texts, and all links."""

    def __init__(self):
        super().__init__()
        self.rows, self.links, self.inside = [], [], False

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th") or (self.inside and tag == "a")
        self.links += [value for key, value in attributes if key in ("href", "src")]

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = False


def read(page):
    found = Cells()
    found.feed(page)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a whole walk of a few steps, and how it was started."""
    folder = tmp_path_factory.mktemp("walk")
    text = [f"Number {i} is {i * i} when it is squared. " * 30 for i in range(60)]
    (folder / "text.txt").write_text("\n\n".join(text))
    command = ["--out", str(folder / "out"), "--corpus", str(folder / "text.txt")]
    command += ["--pretrain-steps", "2", "--chat-steps", "2", "--questions", "3"]
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(reproduce, "load_probes", lambda: load_probes()[::42])
    yield folder / "out", command, reproduce.main(command)
    patch.undo()


def test_it_ends_well_and_leaves_a_page_whose_links_exist(done):
    out, _, code = done
    page = (out / "report.html").read_text()
    found = read(page)
    assert code == 0 and len(found.rows) == 1 + 11  # the recipe has eleven rows
    assert found.rows[0] == ["Step", "The recipe says", "Here", "Receipt"]
    receipts = [row[3] for row in found.rows[1:]]
    assert sorted(found.links) == sorted(receipts)
    assert all((out / name).is_file() for name in receipts)
    assert not re.search(r"https?:|<script|@import|url\(", page)


def test_the_page_says_what_the_records_say(done):
    out, _, _ = done
    page = html.unescape((out / "report.html").read_text())
    record, found = load_record(out / "pretrain"), read(page)
    rows = {row[0]: row for row in found.rows}
    assert f"{record['val_bpb']:.3f} bits per byte" in rows["5. Training"][2]
    assert "2 steps of 2,048 bytes" in rows["5. Training"][2]
    assert "104, 101, 108, 108, 111" in rows["3. Tokens"][2]
    assert "824,576" in rows["4. Model"][2] and "10,050,816" in rows["4. Model"][2]
    assert "3 different values" in rows["4. Model"][2]
    judged = json.loads((out / "evaluation.json").read_text())
    share = judged["held_out"]["phrasings"]["refused"]["value"]
    assert f"{share:.0%} (between" in rows["6. Chat"][2]
    assert judged["held_out"]["phrasings"]["questions"] == 3
    assert judged["talk"][0]["question"] in page
    assert f"--model {out}/chat" in page


def test_the_same_command_again_trains_nothing(done, monkeypatch, capfd):
    out, command, _ = done
    files = ("pretrain/run.json", "chat/model.safetensors", "evaluation.json")
    before = [(out / name).read_bytes() for name in files]
    times = [(out / "evaluation.json").stat().st_mtime_ns]
    monkeypatch.setattr(reproduce, "evaluate", None)  # would fail if it were called
    assert reproduce.main(command) == 0
    assert [(out / name).read_bytes() for name in files] == before
    assert [(out / "evaluation.json").stat().st_mtime_ns] == times


def test_with_more_questions_the_evaluation_is_made_anew(done, monkeypatch):
    """And with nothing else: the other stages are those of before."""
    out, command, _ = done
    before = {
        name: (out / name).read_bytes() for name in ("evaluation.json", "running.json")
    }
    asked = []

    def evaluate(folder, questions):
        asked.append((folder, questions))
        return json.loads(before["evaluation.json"])

    monkeypatch.setattr(reproduce, "evaluate", evaluate)
    assert reproduce.main([*command[:-1], "4"]) == 0
    assert asked == [(out / "chat", 4)]
    assert (out / "running.json").read_bytes() == before["running.json"]
    (out / "evaluation.json").write_bytes(before["evaluation.json"])


def test_other_options_of_training_want_another_folder(done, monkeypatch):
    out, command, _ = done
    monkeypatch.setattr(reproduce, "tilelli", None)  # would fail if it were called
    before = (out / "options.json").read_bytes()
    with pytest.raises(ConfigError, match="--chat-steps 2, not 3.*\n.*another --out"):
        reproduce.main([*command, "--chat-steps", "3"])
    with pytest.raises(ConfigError, match="--pretrain-minutes 4.0, not 20.0"):
        reproduce.main([*command, "--pretrain-minutes", "20"])
    assert (out / "options.json").read_bytes() == before


def test_a_stage_that_fails_ends_the_walk_and_says_how_to_go_on(
    tmp_path, monkeypatch, capsys
):
    class Stopped:
        def __init__(self, arguments):
            pass

        def wait(self):
            return 130

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(
        "one\n\n" + "two " * 900 + "\n\n" + "three " * 900
    )
    monkeypatch.setattr(reproduce.subprocess, "Popen", Stopped)
    assert reproduce.main(["--out", "out", "--corpus", "text.txt"]) == 1
    said = capsys.readouterr().out
    assert "$ tilelli train --config nano --corpus text.txt --minutes 4.0" in said
    assert "ended with code 130. The same command goes on from here." in said
    assert not (tmp_path / "out" / "report.html").exists()


def to_all(process, number):
    os.killpg(process.pid, number)


def to_it_alone(process, number):
    process.send_signal(number)


@pytest.mark.parametrize(
    "number, send, code",
    [(signal.SIGINT, to_all, 130), (signal.SIGTERM, to_it_alone, 143)],
    ids=["Ctrl-C of a terminal", "SIGTERM of a supervisor"],
)
def test_when_stopped_it_waits_until_the_training_has_saved_itself(
    tmp_path, number, send, code
):
    """The child takes a second for its last step."""
    text, out = str(tmp_path / "text.txt"), str(tmp_path / "out")
    Path(text).write_text("one\n\n" + "two " * 900 + "\n\n" + "three " * 900)
    child = (
        "import signal, sys, time\n"
        "def save(*about):\n"
        "    time.sleep(1)\n"
        f"    open({str(tmp_path / 'saved')!r}, 'w').close()\n"
        f"    sys.exit({code})\n"
        f"signal.signal({int(number)}, save)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    # the script itself, with this child in place of `tilelli train`
    parent = (
        "import runpy, subprocess, sys\n"
        "Popen = subprocess.Popen\n"
        "def start(arguments, **options):\n"
        "    if 'tilelli_nb.cli' not in arguments:\n"
        "        return Popen(arguments, **options)\n"
        f"    return Popen([sys.executable, '-c', {child!r}])\n"
        "subprocess.Popen = start\n"
        f"script = {reproduce.__file__!r}\n"
        f"sys.path.insert(0, {str(Path(reproduce.__file__).parent)!r})\n"
        f"sys.argv = [script, '--out', {out!r}, '--corpus', {text!r}]\n"
        "runpy.run_path(script, run_name='__main__')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    send(process, number)
    _, said = process.communicate(timeout=30)
    assert (tmp_path / "saved").exists()
    assert process.returncode == code
    assert said.endswith("Stopped. The same command goes on.\n")


def test_what_a_model_says_is_text_and_what_is_undefined_is_said(done):
    out, _, _ = done
    found = {
        "data": json.loads((out / "data.json").read_text()),
        "pretrain": load_record(out / "pretrain"),
        "chat": load_record(out / "chat"),
        "evaluation": json.loads((out / "evaluation.json").read_text()),
        "running": json.loads((out / "running.json").read_text()),
    }
    changed = copy.deepcopy(found)
    changed["running"]["story"] = "<script>alert(1)</script> & more"
    changed["evaluation"]["talk"][0]["said"] = "<img src=x>"
    changed["evaluation"]["gate"] = None
    for known in reproduce.SIGNALS:
        changed["evaluation"]["probes"][known] = None
    curve = reproduce.records.load_metrics(out / "pretrain")
    page = reproduce_report.page(changed, curve, "runs/x y")
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "undefined, because all replies are of one kind" in page
    assert "gate for doubtful" not in page and "--model runs/x y/chat" in page
