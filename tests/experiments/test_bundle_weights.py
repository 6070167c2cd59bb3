"""What is kept of a run when its weights become part of the book."""

import json

from bundle_weights import keep_record, under_its_own_name
from model_card import history
from tilelli_nb import load_record, pretrained
from tilelli_nb.storage import records

BEGUN = "Started from the weights of {}. They were packed."


def test_a_model_that_is_replaced_keeps_its_history():
    """Else the record would say that the model was made from itself, without an end."""
    before = pretrained.load_model("tilelli/lite-10m")[1]["run"]
    record = load_record(before) | {
        "name": "the-next",
        "notes": BEGUN.format("tilelli/lite-10m"),
    }
    renamed = under_its_own_name(record, "lite-10m")
    assert renamed["notes"] == BEGUN.format(f"runs/{before}")
    assert [run["name"] for run in history(renamed)][-2:] == [before, "the-next"]


def test_another_model_keeps_the_name_that_it_started_from():
    record = load_record("nano-chat")
    assert "weights of tilelli/nano." in record["notes"]
    assert under_its_own_name(record, "nano-chat") == record
    scratch = record | {"notes": ""}
    assert under_its_own_name(scratch, "nano") == scratch
    # a model of this name is not there yet
    assert under_its_own_name(record, "a-new-one") == record


def test_the_record_is_kept_with_what_was_measured(tmp_path):
    run, kept = tmp_path / "run", tmp_path / "kept"
    run.mkdir()
    lines = [{"step": step, "loss": 1.0} for step in (1, 2, 25, 50, 75)]
    lines[4]["val_bpb"] = 2.0
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text)
    (run / "results.json").write_text('{"processes": 2}')
    record = load_record("nano-stories") | {"name": "kept"}
    keep_record(run, record, kept, {"bundled": {"sliding": 1.5}})
    assert load_record(kept) == record
    results = json.loads((kept / "results.json").read_text())
    assert results == {"processes": 2, "bundled": {"sliding": 1.5}}
    steps = [line["step"] for line in records.load_metrics(kept)]
    assert steps == [1, 50, 75]  # every fiftieth, and every evaluation
