"""Shards: the stream, the split, the manifest, resuming a killed writer, and refusing
what was altered.
"""

import hashlib
import json
import threading
import time

import pytest
import torch

from tilelli_nb import open_shards, prepare_shards
from tilelli_nb.data import documents
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.data.shards import is_held_out
from tilelli_nb.errors import DataError


def numbered(n=200):
    return [
        f"document {i}: " + "words and more words. " * (i % 7 + 1) for i in range(n)
    ]


def held_out(document):
    return int(hashlib.sha1(document.encode()).hexdigest()[:8], 16) % 20 == 0


def test_the_stream_is_document_zero_document_zero(tmp_path):
    texts = numbered()
    shards = prepare_shards(texts, tmp_path / "s", "made here")
    assert shards.train.read() == b"".join(
        t.encode() + b"\0" for t in texts if not held_out(t)
    )
    assert shards.val.read() == b"".join(
        t.encode() + b"\0" for t in texts if held_out(t)
    )
    assert len(shards.val.read(10)) == 10
    assert any(map(is_held_out, texts)) and [is_held_out(t) for t in texts] == [
        held_out(t) for t in texts
    ]


def test_many_small_shards_hold_the_same_stream(tmp_path):
    one = prepare_shards(numbered(), tmp_path / "one", "x")
    many = prepare_shards(numbered(), tmp_path / "many", "x", shard_bytes=1000)
    assert len(many.manifest["shards"]) > 10
    assert many.train.read() == one.train.read() and many.val.read() == one.val.read()
    assert many.train.read(1234) == one.train.read(1234)


def test_nuls_are_dropped_and_empty_documents_leave_no_separator(tmp_path):
    shards = prepare_shards(
        ["a\0b", "", "\0", "c", "d"], tmp_path / "s", "x", val_documents=["v"]
    )
    assert shards.train.read() == b"ab\0c\0d\0" and shards.val.read() == b"v\0"


@pytest.mark.parametrize("side", [True, False])
def test_a_small_corpus_has_a_document_on_each_side(tmp_path, side):
    texts = [t for t in numbered(400) if held_out(t) is side][:3]
    shards = prepare_shards(texts, tmp_path / "s", "x")
    sizes = {shard["split"]: shard["documents"] for shard in shards.manifest["shards"]}
    assert sizes == ({"train": 1, "val": 2} if side else {"train": 2, "val": 1})


@pytest.mark.parametrize("texts", [[], ["only one"], ["", "one"]])
def test_fewer_than_two_documents_are_an_error(tmp_path, texts):
    with pytest.raises(DataError, match="at least two"):
        prepare_shards(texts, tmp_path / "s", "x")


def test_a_killed_writer_goes_on_and_ends_with_the_same_bytes(tmp_path):
    texts = numbered(300)
    prepare_shards(texts, tmp_path / "whole", "x", shard_bytes=2000)

    def killed(after):
        for i, text in enumerate(texts):
            if i == after:
                raise KeyboardInterrupt
            yield text

    for after in (120, 121, 250):
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(killed(after), tmp_path / "resumed", "x", shard_bytes=2000)
    prepare_shards(texts, tmp_path / "resumed", "x", shard_bytes=2000)
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "resumed").iterdir())
    assert all(
        (tmp_path / "whole" / f).read_bytes() == (tmp_path / "resumed" / f).read_bytes()
        for f in files
    )


def test_a_second_writer_waits_for_the_first_and_writes_nothing(tmp_path):
    texts, second = numbered(), []

    def unread():
        raise AssertionError("the second writer has read a document")
        yield

    def first_documents():
        yield from texts[:100]
        thread = threading.Thread(
            target=lambda: second.append(
                prepare_shards(unread(), tmp_path / "s", "made here", shard_bytes=1000)
            )
        )
        thread.start()
        patience = time.monotonic() + 60
        while not caught.list and time.monotonic() < patience:
            time.sleep(0.05)  # it waits, and says so after two seconds
        assert thread.is_alive() and not second
        threads.append(thread)
        yield from texts[100:]

    threads = []
    with pytest.warns(UserWarning, match="another process prepares s: waiting") as caught:
        first = prepare_shards(
            first_documents(), tmp_path / "s", "made here", shard_bytes=1000
        )
    threads[0].join(20)
    assert second[0].train.read() == first.train.read()
    assert first.train.read() == b"".join(
        t.encode() + b"\0" for t in texts if not held_out(t)
    )


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write into"):
        prepare_shards(numbered(), tmp_path / "file" / "s", "made here")


def test_the_manifest_says_what_the_files_are(tmp_path):
    shards = prepare_shards(numbered(), tmp_path / "s", "made here", revision="r1")
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert (manifest["source"], manifest["revision"], manifest["complete"]) == (
        "made here",
        "r1",
        True,
    )
    for shard in manifest["shards"]:
        data = (tmp_path / "s" / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["documents"]) == (len(data), data.count(b"\0"))
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    assert shards.describe()["train_bytes"] == len(shards.train.read())


def test_other_documents_do_not_go_into_the_same_folder(tmp_path):
    prepare_shards(numbered(), tmp_path / "s", "first")
    with pytest.raises(DataError, match="holds shards of 'first'"):
        prepare_shards(numbered(), tmp_path / "s", "second")
    with pytest.raises(DataError, match=r"'first' \(None\), not of 'first' \(r1\)"):
        prepare_shards(numbered(), tmp_path / "s", "first", revision="r1")


def test_shards_of_another_size_or_format_are_refused_by_that(tmp_path):
    prepare_shards(numbered(), tmp_path / "s", "first", shard_bytes=1000)
    with pytest.raises(DataError, match="s was written with shard_bytes 1000, not 999"):
        prepare_shards(numbered(), tmp_path / "s", "first", shard_bytes=999)
    path = tmp_path / "s" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(DataError, match="s was written with format 7, not 1"):
        prepare_shards(numbered(), tmp_path / "s", "first", shard_bytes=1000)


def test_an_altered_truncated_or_missing_shard_is_refused(tmp_path):
    prepare_shards(numbered(), tmp_path / "s", "x")
    path = tmp_path / "s" / "train-00000.bin"
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(DataError, match="altered"):
        open_shards(tmp_path / "s")
    path.write_bytes(data[:-1])
    with pytest.raises(DataError, match="bytes instead of"):
        open_shards(tmp_path / "s")
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        open_shards(tmp_path / "s")
    with pytest.raises(DataError, match="no shards"):
        open_shards(tmp_path / "nothing")


def test_batches_are_windows_of_the_training_side(tmp_path):
    shards = prepare_shards(numbered(), tmp_path / "s", "x", shard_bytes=1500)
    streams = [shard.tobytes() for shard in shards.train.shards]
    generator = torch.Generator().manual_seed(3)
    x, targets = shards.batch(40, 32, generator)
    assert x.shape == targets.shape == (40, 32) and x.dtype == torch.long
    for row, ahead in zip(x.tolist(), targets.tolist(), strict=True):
        assert row[1:] == ahead[:-1] and any(
            bytes([*row, ahead[-1]]) in stream for stream in streams
        )
    again, _ = shards.batch(40, 32, torch.Generator().manual_seed(3))
    assert torch.equal(x, again) and not torch.equal(
        x, shards.batch(40, 32, generator)[0]
    )


def test_every_window_can_be_drawn(tmp_path):
    shards = prepare_shards(["abcdefgh", "x"], tmp_path / "s", "x", val_documents=["v"])
    drawn = {
        bytes(row)
        for row in shards.batch(2000, 8, torch.Generator().manual_seed(0))[0].tolist()
    }
    # 11 bytes: three windows of 8 + 1
    assert drawn == {b"abcdefgh", b"bcdefgh\0", b"cdefgh\0x"}


def test_a_corpus_shorter_than_the_context_is_an_error(tmp_path):
    shards = prepare_shards(["too short", "to train"], tmp_path / "s", "x")
    with pytest.raises(DataError, match="256 \\+ 1 at once"):
        shards.batch(1, 256, torch.Generator())


def test_a_file_opens_as_a_corpus_and_a_changed_one_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("\n\n".join(numbered()))
    first = prepare_corpus("mine.txt")
    assert first.folder.parent.name == "data" and first.manifest["source"] == "mine.txt"
    assert (
        prepare_corpus("mine.txt").folder
        == first.folder
        == prepare_corpus(first.folder).folder
    )
    (tmp_path / "mine.txt").write_text("\n\n".join(numbered(300)))
    assert prepare_corpus("mine.txt").folder != first.folder


def test_a_folder_with_its_own_split_keeps_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, texts in (("train", ["one", "two"]), ("val", ["three"])):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in texts)
        )
    shards = prepare_corpus(folder)
    assert (shards.train.read(), shards.val.read()) == (b"one\0two\0", b"three\0")


def test_about_one_document_in_twenty_is_held_out():
    assert not is_held_out("abc") and not is_held_out("")
    assert 0.04 < sum(is_held_out(str(i)) for i in range(10_000)) / 10_000 < 0.06


def test_stories_that_have_changed_make_new_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = {"word": "fox"}
    monkeypatch.setattr(
        documents,
        "stories",
        lambda seed: (f"The {told['word']} told story {i}." for i in range(10**6)),
    )
    first = prepare_corpus("stories", megabytes=0.01)
    assert prepare_corpus("stories", megabytes=0.01).folder == first.folder
    told["word"] = "owl"
    second = prepare_corpus("stories", megabytes=0.01)
    assert b"The owl" in second.train.read() and b"The fox" not in second.train.read()
    assert b"The fox" in prepare_corpus(first.folder).train.read()
