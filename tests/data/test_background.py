"""A corpus that grows while it is trained on, and the process that writes it."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from test_fineweb import write_files

from tilelli_nb import prepare_shards
from tilelli_nb.cli.launch import TrainOptions, corpus
from tilelli_nb.data import background
from tilelli_nb.data.background import fineweb_in_background
from tilelli_nb.data.shards import ShardWriter, open_shards
from tilelli_nb.errors import ConfigError, DataError


def texts(n):
    return [f"page {i}: " + "one more sentence. " * 5 for i in range(n)]


def write_part(folder, documents):
    """The writer of `texts(600)`, stopped behind so many documents."""

    def some():
        yield from texts(600)[:documents]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ShardWriter(folder, "pages", None, 20_000).write(
            (text, None) for text in some()
        )


def split(count):
    """Train and val bytes of the first documents, worked out with hashlib alone."""
    sides = {True: b"", False: b""}
    for text in texts(600)[:count]:
        sides[int(hashlib.sha1(text.encode()).hexdigest()[:8], 16) % 20 == 0] += (
            text.encode() + b"\0"
        )
    return sides[False], sides[True]


@pytest.fixture
def half(tmp_path):
    write_part(tmp_path / "pages", 450)
    return open_shards(tmp_path / "pages")


def test_new_shards_join_the_training_side_alone(half):
    read = half.manifest["documents_read"]
    assert 300 < read <= 450 and (half.train.read(), half.val.read()) == split(read)
    assert half.grown() is None
    whole = prepare_shards(texts(600), half.folder, "pages", shard_bytes=20_000)
    grown = half.grown()
    assert (grown.train.read(), grown.val.read()) == (split(600)[0], split(read)[1])
    assert grown.grown() is None and len(whole.val) > len(grown.val)
    assert half.train.read() == split(read)[0]  # the old view is what it was
    one_more = half.grown(len(half.train.shards) + 1)
    assert len(one_more.train.shards) == len(half.train.shards) + 1
    assert grown.train.read().startswith(one_more.train.read())


def test_only_new_shards_are_checked_and_an_altered_one_is_refused(half):
    prepare_shards(texts(600), half.folder, "pages", shard_bytes=20_000)
    old, new = (
        half.folder / "train-00000.bin",
        half.folder / f"train-{len(half.train.shards):05d}.bin",
    )
    old.write_bytes(b"?" * old.stat().st_size)
    half.grown()
    new.write_bytes(b"?" * new.stat().st_size)
    with pytest.raises(DataError, match=f"{new.name} was altered"):
        half.grown()


def test_a_resumed_run_gets_the_shards_that_it_had(half):
    counted, batch = (
        half.describe(),
        half.batch(8, 64, torch.Generator().manual_seed(3)),
    )
    prepare_shards(texts(600), half.folder, "pages", shard_bytes=20_000)
    later = half.grown()
    again = open_shards(half.folder).as_described(counted)
    assert (again.train.read(), again.val.read()) == (
        half.train.read(),
        half.val.read(),
    )
    assert again.describe() == counted != later.describe()
    assert torch.equal(
        again.batch(8, 64, torch.Generator().manual_seed(3))[0], batch[0]
    )
    assert (
        open_shards(half.folder).as_described(later.describe()).train.read()
        == later.train.read()
    )
    digests = "".join(
        hashlib.sha256((half.folder / shard["file"]).read_bytes()).hexdigest()
        for shard in half.manifest["shards"]
    )
    assert counted["sha256"] == hashlib.sha256(digests.encode()).hexdigest()


def test_other_data_than_that_of_the_run_is_refused(half, tmp_path):
    counted = half.describe()
    other = prepare_shards(
        texts(599)[::-1], tmp_path / "other", "pages", shard_bytes=20_000
    )
    with pytest.raises(
        DataError, match="does not hold the data that the run was started on"
    ):
        other.as_described(counted)
    few = prepare_shards(texts(100), tmp_path / "few", "pages", shard_bytes=20_000)
    with pytest.raises(DataError, match="does not hold the data"):
        few.as_described(counted)
    older = {
        key: value
        for key, value in few.describe().items()
        if not key.endswith("_shards")
    }
    # a record from before shards were counted
    assert few.as_described(older).train.read() == few.train.read()


def test_training_starts_while_a_process_writes(tmp_path):
    """24 MB in 8 MB shards, from a process of its own: what comes out is what one
    writer alone would have written.
    """
    pages = [f"page {i} of many. " * 5000 for i in range(270)]
    write_files(tmp_path / "files", pages, per_file=90)
    options = {"files": tmp_path / "files", "limit_bytes": 10**9}
    with fineweb_in_background(tmp_path / "shards", **options) as shards:
        start, deadline = shards.train.read(), time.time() + 60
        while (
            not open_shards(tmp_path / "shards").manifest["complete"]
            and time.time() < deadline
        ):
            time.sleep(0.05)
        shards = shards.grown() or shards
    assert not multiprocessing.active_children()
    whole = prepare_shards(pages, tmp_path / "alone", "x", shard_bytes=8 * 2**20)
    assert shards.train.read() == whole.train.read() and len(shards.train.shards) == 3
    assert whole.train.read().startswith(start) and whole.val.read().startswith(
        shards.val.read()
    )
    with fineweb_in_background(tmp_path / "shards", **options) as complete:
        assert not multiprocessing.active_children()
    assert complete.train.read() == whole.train.read()
    with (
        pytest.raises(DataError, match="holds shards of 'fineweb-edu'"),
        fineweb_in_background(tmp_path / "shards", min_score=3.0, **options),
    ):
        pass


def test_no_writer_is_left_when_its_parent_is_killed(tmp_path):
    """run() comes back when every process that holds its standard output has ended."""
    (tmp_path / "parent.py").write_text(
        "import multiprocessing, os, signal, sys, time\n"
        "from tilelli_nb.data.fineweb import FineWebEdu\n"
        "class Slow(FineWebEdu):\n"
        "    def __iter__(self):\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(600)\n"
        "def child(tell):\n"
        "    from tilelli_nb.data.background import Path, run_writer\n"
        "    run_writer(tell, Path('shards'), Slow(limit_bytes=1, commit='none'))\n"
        "if __name__ == '__main__':\n"
        "    told, tell = multiprocessing.Pipe(duplex=False)\n"
        "    multiprocessing.get_context('spawn').Process(target=child, args=(tell,)).start()\n"
        "    sys.stdin.readline()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py"],
        cwd=tmp_path,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert parent.stdout.readline() == "writing\n"
    parent.communicate("now\n", timeout=60)
    assert parent.returncode == -9


def test_a_writer_that_ends_too_soon_says_why(tmp_path, capsys):
    for message, expected in (
        ((("the hub is away", "wait"),), "the hub is away"),
        ((), "ended with exit code -9"),
    ):
        told, tell = multiprocessing.Pipe(duplex=False)
        for each in message:
            tell.send(each)
        tell.close()
        with pytest.raises(DataError, match=expected):
            background.wait_for_shards(tmp_path, SimpleNamespace(exitcode=-9), told)


@pytest.mark.parametrize(
    "code, stopping, said",
    [
        (-9, False, True),
        (1, False, True),
        (0, False, False),
        (-15, False, False),
        (-9, True, False),
    ],
)
def test_a_writer_that_dies_later_is_reported_once(capsys, code, stopping, said):
    told, tell = multiprocessing.Pipe(duplex=False)
    tell.close()
    event = threading.Event()
    if stopping:
        event.set()
    background.report_death(SimpleNamespace(sentinel=told, exitcode=code), told, event)
    assert ("training goes on with what is there" in capsys.readouterr().err) == said


def test_gigabytes_are_for_fineweb_alone():
    with (
        pytest.raises(
            ConfigError, match="--gigabytes is for fineweb-edu, not for stories"
        ),
        corpus(TrainOptions(gigabytes=1.0, corpus="stories"), None),
    ):
        pass
