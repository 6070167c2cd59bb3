"""Run records: their keys, where they are found, and that every committed one is
whole.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tilelli_nb import load_record
from tilelli_nb.errors import DataError
from tilelli_nb.files import write_atomic
from tilelli_nb.storage import records
from tilelli_nb.storage.records import (
    KEYS,
    KINDS,
    dumps,
    load_metrics,
    new_record,
    package_sha256,
    processor,
    runs_folder,
    write_run,
)

RUNS = Path(__file__).parents[2] / "book" / "runs"


def test_a_new_record_has_every_key_in_order():
    record = new_record("a", "bench", steps=3)
    assert tuple(record) == KEYS and (
        record["name"],
        record["kind"],
        record["steps"],
    ) == ("a", "bench", 3)
    assert record["mfu"] is None and re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["started"]
    )
    assert (
        re.fullmatch(r"[0-9a-f]{64}", record["package_sha256"])
        and "torch" in record["versions"]
    )


def test_a_record_names_the_processor(tmp_path, monkeypatch):
    assert new_record("a", "bench")["processor"].endswith(f", {os.cpu_count()} cores")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : amx\nmodel: 8\n")
    assert processor() == "arm64, 3 cores"
    said = (
        "processor\t: 0\nmodel name\t: A Chip @ 2 GHz\nmodel name\t: A Chip @ 2 GHz\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: said)
    assert processor() == "A Chip @ 2 GHz, 3 cores"


def test_a_record_is_written_last_and_says_when(tmp_path, monkeypatch):
    record = new_record("a", "bench", wall_s=2.0)
    write_run(tmp_path / "a", record, {"found": 1})
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == {"found": 1}
    kept = load_record(tmp_path / "a")
    assert kept | {"finished": None} == record
    assert kept["finished"] >= record["started"]
    said = record | {"finished": "2030-01-01T00:00:00Z"}
    write_run(tmp_path / "b", said, {})
    assert load_record(tmp_path / "b") == said

    def killed(path, data):
        if path.name == "results.json":
            raise KeyboardInterrupt
        write_atomic(path, data)

    monkeypatch.setattr("tilelli_nb.storage.records.write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        write_run(tmp_path / "c", record, {})
    assert not (tmp_path / "c" / "run.json").exists()


def test_unknown_keys_and_kinds_are_refused():
    with pytest.raises(DataError, match="no key 'step'"):
        new_record("a", "bench", step=3)
    with pytest.raises(DataError, match="unknown kind of run 'dream'"):
        new_record("a", "dream")


def test_the_package_digest_follows_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr("tilelli_nb.storage.records.PACKAGE", tmp_path)
    digests = []
    for name, text in (
        ("a.py", "x = 1"),
        ("a.py", "x = 2"),
        ("b.py", "x = 2"),
        ("notes.txt", "not code"),
    ):
        (tmp_path / name).write_text(text)
        digests.append(package_sha256())
    assert len(set(digests[:3])) == 3 and digests[3] == digests[2]


def test_records_are_found_from_inside_the_checkout(tmp_path, monkeypatch):
    run = tmp_path / "book" / "runs" / "mine"
    run.mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "claims.yml").write_text("claims: []\n")
    write_atomic(run / "run.json", dumps(new_record("mine", "eval")))
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.chdir(tmp_path / "notebooks")
    assert runs_folder() == tmp_path / "book" / "runs"
    assert load_record("mine")["name"] == "mine" and load_metrics("mine")[-1] == {
        "step": 2
    }
    with pytest.raises(DataError, match="yours does not exist\n.*the records are mine"):
        load_record("yours")


def test_a_foreign_folder_of_the_same_name_is_not_the_book(tmp_path, monkeypatch):
    (tmp_path / "book" / "runs" / "a-shop").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert (runs_folder() / "nano-stories" / "run.json").is_file()


def test_writing_leaves_the_old_file_when_it_fails(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write run.json \\(3 bytes\\)"):
        write_atomic(tmp_path / "file" / "run.json", b"new")
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    "path", sorted(RUNS.glob("*/run.json")), ids=lambda p: p.parent.name
)
def test_committed_records_are_whole(path):
    record = json.loads(path.read_text())
    # the first ones had no precision, or no id, or no threads
    assert tuple(record) in (KEYS, KEYS[:-1], KEYS[:-2], KEYS[:-3], KEYS[:-4])
    assert record["name"] == path.parent.name and record["kind"] in KINDS
    assert record["git"]
    if record["finished"] is None:  # a run that was stopped before its last step
        assert record["kind"] in ("sft", "train") and record["val_bpb"] is None
        assert record["steps"] < record["config"]["train"]["steps"]
    else:
        assert record["finished"] >= record["started"]
    assert not re.search(r'"/(home|root|tmp|work)', path.read_text())
    lines = load_metrics(path.parent) if record["kind"] == "train" else []
    if lines and record["finished"] is None:
        assert "stopped" in record["notes"] and lines[-1]["step"] <= record["steps"]
    elif record["kind"] == "train":
        assert (
            lines[-1]["step"] == record["steps"] == record["config"]["train"]["steps"]
        )
        assert (
            lines[-1]["bytes_seen"] == record["bytes_seen"]
            and lines[-1]["val_bpb"] == record["val_bpb"]
        )
        assert [a["step"] for a in lines] == sorted({a["step"] for a in lines})


def test_there_are_records():
    assert any(RUNS.glob("*/run.json"))


def run_git(folder, *arguments):
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "place,added,counts",
    [
        ("tilelli_nb", True, True),  # the book's checkout
        ("tilelli_nb", False, False),  # pip install --target .
        (".venv/lib/python3.11/site-packages/tilelli_nb", False, False),
        ("vendored/tilelli_nb", True, False),  # a copy in somebody's project
    ],
)
def test_the_commit_is_that_of_the_books_own_checkout(
    tmp_path, monkeypatch, place, added, counts
):
    package = tmp_path / place
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "app.py").touch()
    run_git(tmp_path, "init", "-q")
    run_git(tmp_path, "add", "." if added else "app.py")
    run_git(tmp_path, "commit", "-q", "-m", "first")
    commit = run_git(tmp_path, "rev-parse", "--short=12", "HEAD")
    monkeypatch.setattr(records, "PACKAGE", package)
    assert records.git_commit() == (commit if counts else None)
    if counts:
        (package / "__init__.py").write_text("changed = True\n")
        assert records.git_commit() == f"{commit}+"
