"""FineWeb-Edu from local parquet files of its schema: odd documents, limits, nodes, and
a writer that was stopped.
"""

import json
import subprocess
import sys
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from tilelli_nb.cli.app import app
from tilelli_nb.data import corpus, fineweb, shards
from tilelli_nb.data.fineweb import prepare_fineweb
from tilelli_nb.data.shards import open_shards, prepare_shards
from tilelli_nb.errors import DataError

ODD = [
    "",
    None,
    "x" * 300_000,
    "naïve café – 日本語 🙂",
    "two\0NULs\0inside",
    "the same page",
    "the same page",
    "\ud7ff ends a plane",
    " \n",
]


def write_files(folder, texts, scores=None, per_file=40):
    folder.mkdir()
    scores = scores or [3.0 + i % 2 for i in range(len(texts))]
    for number, start in enumerate(range(0, len(texts), per_file)):
        part = slice(start, start + per_file)
        columns = {
            "text": pa.array(texts[part], pa.string()),
            "id": [f"<urn:{i}>" for i in range(len(texts[part]))],
            "dump": ["CC-MAIN-2024-10"] * len(texts[part]),
            "score": scores[part],
            "int_score": [round(s) for s in scores[part]],
        }
        parquet.write_table(
            pa.table(columns), folder / f"train-{number:05d}.parquet", row_group_size=16
        )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """100 pages, some odd, in three files of several row groups."""
    texts = [
        ODD[i // 10]
        if i % 10 == 0 and i // 10 < len(ODD)
        else f"Page {i}. " + "word " * (i % 17 + 1)
        for i in range(100)
    ]
    folder = tmp_path_factory.mktemp("hub") / "pages"
    write_files(folder, texts)
    return folder, texts


def stream_of(shards):
    return sorted((shards.train.read() + shards.val.read()).split(b"\0")[:-1])


def bytes_of(texts):
    return sorted(text.encode().replace(b"\0", b"") for text in texts if text)


def test_every_document_arrives_once(pages, tmp_path):
    folder, texts = pages
    found = prepare_fineweb(
        tmp_path / "shards", files=folder, limit_bytes=10**9, progress=False
    )
    assert stream_of(found) == bytes_of(texts)
    assert "train-00002.parquet" in found.manifest["revision"]


def test_a_score_and_a_size_limit_what_is_taken(pages, tmp_path):
    folder, texts = pages
    good = prepare_fineweb(
        tmp_path / "good",
        files=folder,
        limit_bytes=10**9,
        min_score=3.5,
        progress=False,
    )
    assert stream_of(good) == bytes_of(texts[1::2])
    few = prepare_fineweb(
        tmp_path / "few", files=folder, limit_bytes=500, progress=False
    )
    sizes = np.cumsum([len((text or "").encode()) for text in texts])
    assert stream_of(few) == bytes_of(texts[: int(np.searchsorted(sizes, 500)) + 1])


# of three files: every second row to a node, or a file to each
@pytest.mark.parametrize("world", [2, 3])
def test_nodes_share_the_pages_without_overlap(pages, tmp_path, world):
    folder, texts = pages
    shares = [
        stream_of(
            prepare_fineweb(
                tmp_path / f"node{rank}",
                files=folder,
                limit_bytes=10**9,
                rank=rank,
                world=world,
                progress=False,
            )
        )
        for rank in range(world)
    ]
    assert sorted(sum(shares, [])) == bytes_of(texts) and min(map(len, shares)) > 15


@pytest.mark.parametrize("stop", [1, 25, 41, 80])
def test_a_stopped_writer_goes_on_where_it_was(pages, tmp_path, monkeypatch, stop):
    """Stopped after `stop` documents, and again on the way: the files are those of a
    run that was never stopped.
    """
    folder, _ = pages

    class Stopped(fineweb.FineWebEdu):
        def __iter__(self):
            for number, text in enumerate(super().__iter__()):
                if number == stop:
                    raise KeyboardInterrupt
                yield text

    def write(kind, out):
        source = kind(folder, limit_bytes=10**9)
        return prepare_shards(
            source, out, "fineweb-edu", revision=source.revision, shard_bytes=700
        )

    for _ in range(3):
        try:
            write(Stopped, tmp_path / "stopped")
        except KeyboardInterrupt:
            continue
    write(fineweb.FineWebEdu, tmp_path / "stopped")
    write(fineweb.FineWebEdu, tmp_path / "whole")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert (
        files == sorted(path.name for path in (tmp_path / "stopped").iterdir())
        and len(files) > 8
    )
    assert all(
        (tmp_path / "whole" / f).read_bytes() == (tmp_path / "stopped" / f).read_bytes()
        for f in files
    )


class Hub:
    """Stands for the hub: it counts how often it was asked, and moves on to another
    commit each time.
    """

    def __init__(self, monkeypatch, folder):
        self.asked, self.opened = 0, []
        monkeypatch.setattr(fineweb, "newest_commit", self.newest)
        monkeypatch.setattr(fineweb, "load_hub", self.load)
        self.rows = fineweb.load_local(fineweb.list_files(folder))

    def newest(self):
        self.asked += 1
        return f"sample-10BT at commit{self.asked}"

    def load(self, commit):
        self.opened.append(commit)
        return self.rows


def test_shards_stay_with_the_commit_they_were_begun_at(pages, tmp_path, monkeypatch):
    hub, half = Hub(monkeypatch, pages[0]), fineweb.FineWebEdu(limit_bytes=10**9)

    def stopped():
        yield from islice(half, 40)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.ShardWriter(tmp_path, "fineweb-edu", half.revision, 500).write(
            ((t, None) for t in stopped()), half
        )
    monkeypatch.setattr(fineweb, "FINEWEB_SHARD_BYTES", 500)
    found = prepare_fineweb(tmp_path, limit_bytes=10**9, progress=False)
    assert stream_of(found) == bytes_of(pages[1])
    assert found.manifest["revision"].startswith("sample-10BT at commit1,")
    assert hub.asked == 1 and hub.opened == ["sample-10BT at commit1"] * 2


def test_complete_shards_open_without_the_hub_and_without_datasets(
    pages, tmp_path, monkeypatch
):
    hub = Hub(monkeypatch, pages[0])
    whole = prepare_fineweb(tmp_path, limit_bytes=10**9, progress=False)
    monkeypatch.setattr(fineweb, "import_datasets", None)
    # nothing is written, so room is not asked for
    monkeypatch.setattr(fineweb.shutil, "disk_usage", None)
    again = prepare_fineweb(tmp_path, limit_bytes=10**9, progress=False)
    assert again.describe() == whole.describe() and hub.asked == len(hub.opened) == 1
    with pytest.raises(DataError, match="not of 'fineweb-edu' .*score 2 or more"):
        prepare_fineweb(tmp_path, limit_bytes=10**9, min_score=2.0)


def test_shards_begun_from_files_are_not_gone_on_with_from_the_hub(pages, tmp_path):
    begun = fineweb.FineWebEdu(pages[0], limit_bytes=10**9)
    writer = shards.ShardWriter(
        tmp_path, "fineweb-edu", begun.revision, fineweb.FINEWEB_SHARD_BYTES
    )
    writer.cursor = None
    writer.commit(0)
    with pytest.raises(
        DataError,
        match=r"was begun from files \(train-00000\.parquet .*\n.*the same --files",
    ):
        prepare_fineweb(tmp_path, limit_bytes=10**9)


def test_another_corpus_that_is_not_finished_is_called_by_its_name(tmp_path):
    revision = "seed 0, 10 MB, 0123abcd"
    writer = shards.ShardWriter(tmp_path, "stories", revision, shards.SHARD_BYTES)
    writer.commit(0)
    with pytest.raises(DataError, match="holds shards of 'stories', not of 'fineweb"):
        prepare_fineweb(tmp_path, limit_bytes=10**9)


def test_what_is_written_already_needs_no_room_again(pages, tmp_path, monkeypatch):
    Hub(monkeypatch, pages[0])
    prepare_fineweb(tmp_path, limit_bytes=10**9, progress=False)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["complete"] = False
    manifest["shards"][0]["bytes"] = 9 * 10**8
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(
        fineweb.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2 * 10**8})()
    )
    assert fineweb.fineweb_source(tmp_path, limit_bytes=10**9)[0] == tmp_path
    monkeypatch.setattr(
        fineweb.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**8})()
    )
    with pytest.raises(
        DataError, match=r"0\.10 GB are asked for and 0\.10 GB of disk are free"
    ):
        fineweb.fineweb_source(tmp_path, limit_bytes=10**9)


def test_a_network_that_fails_on_the_way_is_one_clear_error(
    pages, tmp_path, monkeypatch
):
    hub = Hub(monkeypatch, pages[0])
    hub.rows = broken_rows()
    with pytest.raises(
        DataError,
        match=r"the hub cannot be reached .*\(TimeoutError\)\n.*same command again",
    ):
        list(fineweb.FineWebEdu(limit_bytes=10**9))


def broken_rows():
    yield {"text": "a page", "score": 3.0}
    raise TimeoutError


def test_fineweb_without_a_size_is_one_hint():
    with pytest.raises(DataError, match="give --gigabytes 2"):
        corpus.prepare_corpus("fineweb-edu")


def test_ctrl_c_keeps_what_is_written_and_says_so(pages, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fineweb, "prepare_fineweb", interrupted)
    done = CliRunner().invoke(app, ["data", "fineweb-edu", "--gigabytes", "1"])
    assert done.exit_code == 130 and "the same command goes on" in done.output


def test_resuming_does_not_read_the_beginning_again(pages, tmp_path):
    folder, texts = pages
    source = fineweb.FineWebEdu(folder, limit_bytes=10**9)
    first = list(islice(source, 60))
    state = json.loads(json.dumps(source.state()))
    again = fineweb.FineWebEdu(folder, limit_bytes=10**9)
    again.resume(state)
    rest = list(again)
    assert first + rest == [text for text in texts if text]


def test_the_command_makes_shards_that_open(pages, tmp_path):
    folder, texts = pages
    code = "from tilelli_nb.cli.app import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "data",
        "fineweb-edu",
        "--files",
        folder,
        "--gigabytes",
        "0.01",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert stream_of(open_shards(tmp_path / "data" / "fineweb-edu-10mb")) == bytes_of(
        texts
    )
    assert "next: tilelli train" in done.stdout


def test_a_small_disk_is_refused_before_anything_is_read(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(
        fineweb.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9})()
    )
    with pytest.raises(
        DataError, match=r"2\.00 GB are asked for and 1\.00 GB of disk are free"
    ):
        prepare_fineweb(tmp_path / "shards", files=pages[0], limit_bytes=2 * 10**9)
    assert not (tmp_path / "shards").exists()


def test_wrong_files_and_ranks_are_named(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.parquet file"):
        fineweb.FineWebEdu(tmp_path, limit_bytes=1)
    parquet.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="not in the format of FineWeb-Edu"):
        next(iter(fineweb.FineWebEdu(tmp_path, limit_bytes=1)))
    with pytest.raises(DataError, match="rank 2 of 2"):
        fineweb.FineWebEdu(tmp_path, limit_bytes=1, rank=2, world=2)


def test_without_a_network_there_is_one_clear_error(tmp_path):
    code = (
        "from tilelli_nb.data.fineweb import FineWebEdu\n"
        "try: FineWebEdu(limit_bytes=1)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {
        "HF_HUB_OFFLINE": "1",
        "PATH": "",
        "HOME": str(tmp_path),
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert (
        done.stdout.startswith("DataError the hub cannot be reached")
        and "--files" in done.stdout
    ), done.stderr
