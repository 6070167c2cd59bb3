"""What is said about the bundled models is what their records say."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from model_card import card, commands, history, recipe, results_of
from tilelli_nb import load_record, pretrained
from tilelli_nb.evaluation.answers import GIVE_UP

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "tilelli_nb" / "weights"
RUN_OF = {
    path.parent.name: pretrained.load_model(path.parent)[1]["run"]
    for path in sorted(WEIGHTS.glob("*/model.safetensors"))
}
# the first one was bundled before the records kept what a card says
WITH_CARD = [
    name for name, run in RUN_OF.items() if "bundled" in results_of(load_record(run))
]


def test_all_but_the_first_have_what_a_card_needs():
    assert set(RUN_OF) - set(WITH_CARD) == {"nano"}


@pytest.mark.parametrize("name", WITH_CARD)
def test_a_card_says_what_the_record_says(name):
    text = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert text == card(name, load_record(RUN_OF[name]))


@pytest.mark.parametrize("name", WITH_CARD)
def test_a_record_speaks_of_the_file_that_is_bundled(name):
    bundled = results_of(load_record(RUN_OF[name]))["bundled"]
    size = (WEIGHTS / name / "model.safetensors").stat().st_size
    assert bundled["megabytes"] == pytest.approx(size / 1e6, abs=0.001)
    metadata = pretrained.load_model(WEIGHTS / name)[1]
    assert metadata["val_bpb"] == bundled["held_out"]["bits_per_byte"]
    assert ("packed" in metadata) == bundled["said"]["packed"]


def test_the_commands_of_a_branch_a_stopped_run_and_two_processes():
    lite = commands(load_record("lite-10m-open-text"), "open_text")
    assert "--stop-at 3574" in lite[0] and "--steps 3800 " in lite[1]
    assert all("--nproc-per-node 2" in line for line in lite)
    stopped = load_record("nano-chat") | {"finished": None, "steps": 9510}
    assert commands(stopped, "stories") == [
        "tilelli sft --init tilelli/nano --config sft_nano --text stories --seed 0 "
        "--stop-at 9510 --out runs/nano-chat"
    ]
    assert "stopped there on a schedule of 12,000" in recipe(stopped)
    whole = stopped | {"finished": "2026-11-28T18:00:00Z"}
    assert "--stop-at" not in commands(whole, "stories")[0]
    assert "--steps" not in commands(whole, "stories")[0]  # sft_nano has them
    chat = load_record("lite-10m-chat")  # and sft_10m has more
    assert f" --steps {chat['steps']} " in commands(chat, "open_text")[0]
    assert "stopped" not in recipe(whole)
    notes = load_record("lite-10m-open-text")["notes"]
    begun = "Started from the weights of tilelli/nano."
    initialised = load_record("lite-10m-open-text") | {"notes": f"{notes} {begun}"}
    assert "train --init tilelli/nano --config" in commands(initialised, "x")[0]


def test_the_command_of_a_chat_model_names_all_that_is_its_own():
    record = load_record("nano-chat")
    train = record["config"]["train"] | {"batch": 16, "lr": 5e-4, "steps": 100_000}
    other = record | {
        "config": record["config"] | {"train": train},
        "data": record["data"]
        | {"source": "20,000 questions and answers of seed 3, and stories"},
    }
    assert commands(other, "stories") == [
        "tilelli sft --init tilelli/nano --config sft_nano --text stories "
        "--steps 100000 --batch 16 --lr 0.0005 --pairs 20000 --pairs-seed 3 --seed 0 "
        "--out runs/nano-chat"
    ]


@pytest.mark.parametrize("name", ["nano-chat", "lite-10m-chat"])
def test_a_chat_card_has_the_figures_of_the_judge(name):
    text = " ".join((WEIGHTS / name / "README.md").read_text(encoding="utf-8").split())
    judged = results_of(load_record(f"{name}-judged"))
    found = judged["held_out"]["phrasings"]["all"]
    right, refused = (found[which]["value"] for which in ("right", "refused"))
    assert re.search(r"about (\S+) simple facts", text)[1] == f"{found['questions']:,}"
    assert re.search(r"it is right in (\S+),", text)[1] == f"{right:.0%}"
    assert re.search(r"refuses (\S+) and invents", text)[1] == f"{refused:.0%}"
    cheapest = judged["gate"]["margin"]["gates"][0]
    behind = cheapest["through"]
    gated = re.search(r"it is right in (\S+) of the facts, refuses (\S+), and", text)
    assert gated[1] == f"{behind['phrasings']['right']['value']:.0%}"
    assert gated[2] == f"{behind['phrasings']['refused']['value']:.0%}"
    names = re.search(r"was not taught it refuses (\S+)\. .* and (\S+) of those", text)
    known = judged["held_out"]["entities"]["all"]["refused"]["value"]
    assert names[1] == f"{known:.0%}"
    assert names[2] == f"{behind['entities']['refused']['value']:.0%}"
    # it was this file that was judged, and the gate beside it came of that
    weights = (WEIGHTS / name / "model.safetensors").read_bytes()
    assert judged["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    gate = json.loads((WEIGHTS / name / "gate.json").read_text(encoding="utf-8"))
    threshold = cheapest["threshold"]
    assert cheapest["give_up"] == GIVE_UP
    assert gate == {"signal": "margin", "threshold": threshold}


def test_a_card_says_how_many_of_its_words_are_words():
    text = " ".join((WEIGHTS / "lite-10m" / "README.md").read_text("utf-8").split())
    said = re.search(r"(\d+)% of the words that it writes are words", text)[1]
    share = results_of(load_record("lite-10m-words"))["share"]
    assert said == f"{100 * share:.0f}" and share >= 0.95


@pytest.mark.parametrize("name", ["lite-10m", "lite-10m-chat"])
def test_the_books_that_a_model_has_read_are_named_beside_it(name):
    """Each with its repository and the commit that was read; the card links there."""
    sources = (WEIGHTS / name / "SOURCES.md").read_bytes()
    assert sources == (WEIGHTS / "lite-10m" / "SOURCES.md").read_bytes()
    lines = sources.decode("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and "github.com" in line]
    assert len(rows) == 13
    for row in rows:
        assert re.search(r"\]\(https://github\.com/[\w-]+/[\w-]+\) \|", row), row
        assert re.search(r"\| `[0-9a-f]{12}` \|", row), row
    card_text = (WEIGHTS / name / "README.md").read_text(encoding="utf-8")
    assert "](SOURCES.md)" in card_text


def test_the_readme_has_the_figures_of_the_model():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    runs = history(load_record(RUN_OF["lite-10m"]))
    read = sum(run["bytes_seen"] for run in runs)
    size = (WEIGHTS / "lite-10m" / "model.safetensors").stat().st_size
    assert re.search(r"on (\S+) MB of openly", text)[1] == f"{read / 1e6:.0f}"
    assert re.search(r"packed into (\S+) MB", text)[1] == f"{size / 1e6:.1f}"
