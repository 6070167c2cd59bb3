"""Files that a crash cannot spoil: whole ones, and .jsonl files that grow by a line."""

import json

import pytest

from tilelli_nb.errors import DataError
from tilelli_nb.files import append_line, keep_lines, load_lines, write_atomic

# What str.splitlines() takes for the end of a line, though a .jsonl file does not:
# vertical tab, form feed, three separators, next line, and U+2028 and U+2029.
ENDS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
SAMPLE = f"a model wrote this:{ENDS}and this: \r\n \u20ac"


def test_a_line_ends_at_the_byte_10_alone(tmp_path):
    path = tmp_path / "samples.jsonl"
    lines = [{"step": step, "text": f"{step} {SAMPLE}"} for step in (1, 2, 3)]
    for line in lines:
        append_line(path, line)
    # the odd characters stand in the file as they are, and one byte 10 a line
    data = path.read_bytes()
    assert data.count(b"\n") == 3 and "\u2028".encode() in data
    assert load_lines(path) == lines
    keep_lines(path, last_step=2)
    assert path.read_bytes() == data[: data.index(b'{"step": 3')]
    assert load_lines(path) == lines[:2]
    append_line(path, lines[2])
    assert path.read_bytes() == data


@pytest.mark.parametrize("missing", range(1, 60))
def test_a_line_that_was_cut_off_is_dropped_and_its_neighbours_are_not(
    tmp_path, missing
):
    path = tmp_path / "samples.jsonl"
    for step in (1, 2):
        append_line(path, {"step": step, "text": SAMPLE})
    whole = path.read_bytes()
    path.write_bytes(whole[:-missing])
    keep_lines(path, last_step=2)
    # a line that lacks nothing but its end is whole, and gets one
    kept = whole if missing == 1 else whole[: whole.index(b'{"step": 2')]
    assert path.read_bytes() == kept
    append_line(path, {"step": 9})
    assert load_lines(path)[-1] == {"step": 9}


def test_a_missing_file_is_made(tmp_path):
    keep_lines(tmp_path / "new.jsonl", last_step=5)
    assert (tmp_path / "new.jsonl").read_bytes() == b""
    assert load_lines(tmp_path / "new.jsonl") == []


def test_a_file_is_old_or_new_and_nothing_temporary_stays(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "f"
    write_atomic(path, b"old")
    with monkeypatch.context() as patched:

        def full(*_):
            raise OSError(28, "No space left on device")

        patched.setattr("os.fsync", full)
        with pytest.raises(DataError, match=r"cannot write f \(3 bytes\): No space"):
            write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


def test_what_is_appended_is_plain_utf8(tmp_path):
    append_line(tmp_path / "f", {"text": "caf\xe9"})
    assert (tmp_path / "f").read_bytes() == b'{"text": "caf\xc3\xa9"}\n'
    assert json.loads((tmp_path / "f").read_bytes()) == {"text": "caf\xe9"}


@pytest.mark.parametrize("half", [b'{"step"', b'{"step": 2}x', b"\xff"])
def test_a_line_that_is_being_written_is_left_out(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + half)
    assert load_lines(path) == [{"step": 1}]
    path.write_bytes(b'{"step": 1}\n' + half + b'\n{"step": 3}\n')
    with pytest.raises(DataError, match="metrics.jsonl, line 2 is not JSON"):
        load_lines(path)


def test_a_file_of_lines_that_is_not_there(tmp_path):
    for path in (
        tmp_path / "metrics.jsonl",
        tmp_path / "x" / "metrics.jsonl",
        tmp_path,
    ):
        with pytest.raises(DataError, match="cannot read"):
            load_lines(path)


@pytest.mark.parametrize("line", [b"[1]", b"3", b'{"text": "mine"}', b'{"step": "x"}'])
def test_lines_of_somebody_else_are_not_dropped(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    before = b'{"step": 1}\n' + line + b'\n{"step": 2}\n'
    path.write_bytes(before)
    with pytest.raises(DataError, match="that no run has written"):
        keep_lines(path, 1)
    assert path.read_bytes() == before
