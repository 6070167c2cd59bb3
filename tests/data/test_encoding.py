"""What is no text is refused by name; what has a mark is decoded; a few broken bytes
stop nobody. Training and `tilelli score` see the same bytes.
"""

import gzip
import json
import random
import struct
import warnings
import zlib
from itertools import islice

import pytest
from typer.testing import CliRunner

from tilelli_nb import TilelliLM
from tilelli_nb.cli.app import app
from tilelli_nb.data import documents
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.data.stories import stories
from tilelli_nb.errors import DataError

RUSSIAN = "Мой дядя самых честных правил, когда не в шутку занемог.\n\n" * 60
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたか見当がつかぬ。\n\n" * 60
GERMAN = "Über den Wäldern hört man nachts die Grüße größerer Vögel.\n\n" * 60
ENGLISH = "\n\n".join(islice(stories(0), 60))


def png() -> bytes:
    """A small picture of noise, by the format's own rules."""
    rows = b"".join(b"\0" + random.Random(0).randbytes(64 * 3) for _ in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in (
        (b"IHDR", header),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        crc = zlib.crc32(kind + body)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)
    return data


NO_TEXT = {
    "cp1251": (RUSSIAN.encode("cp1251"), 0),
    "koi8-r": (RUSSIAN.encode("koi8-r"), 0),
    "shift-jis": (JAPANESE.encode("shift-jis"), 0),
    "latin-1": (GERMAN.encode("latin-1"), 0),
    "utf-16 without a mark": (ENGLISH.encode("utf-16-le"), 1),
    "utf-32 without a mark": (ENGLISH.encode("utf-32-be"), 0),
    "gzip": (gzip.compress(ENGLISH.encode(), mtime=0), 0),
    "png": (png(), 0),
    "random": (random.Random(0).randbytes(5000), None),
    "text, then something else": (
        b"plain text\n" * 2000 + random.Random(1).randbytes(5000),
        None,
    ),
}


@pytest.mark.parametrize("name", NO_TEXT)
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_what_is_no_text_is_refused(tmp_path, monkeypatch, name, suffix):
    monkeypatch.chdir(tmp_path)
    data, first = NO_TEXT[name]
    path = tmp_path / f"mine.{suffix}"
    path.write_bytes(data)
    for read in (prepare_corpus, lambda path: next(documents.read_documents(path))):
        with pytest.raises(DataError, match=r"mine\.\w+ is not UTF-8 text") as error:
            read(path)
        assert "iconv" in error.value.fix
        assert first is None or f"the first at byte {first}" in error.value.problem
    assert not (tmp_path / "data").exists()


def first_wrong_byte(data):
    """By Python's own decoder, and by hand."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return next(i for i, byte in enumerate(data) if byte < 8)


def test_the_first_place_is_right_far_into_a_file(tmp_path):
    """Behind the first chunk, and with characters cut in two by its end."""
    text = ("é" * 700_001).encode()
    path = tmp_path / "mine.txt"
    for wrong in (b"\xff" * 20_000, b"\0" * 20_000):
        data = b"a" + text + wrong + text
        path.write_bytes(data)
        place = f"{first_wrong_byte(data):,}"
        with pytest.raises(DataError, match=f"the first at byte {place}"):
            next(documents.read_documents(path))
    data = ("a" * 600_001 + "\0" * 9000).encode("utf-16")
    path.write_bytes(data)
    with pytest.raises(DataError, match="not UTF-16 text.* byte 1,200,004"):
        next(documents.read_documents(path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("text", [RUSSIAN, JAPANESE, ENGLISH, "a𝄞b\n" * 400])
def test_a_mark_says_what_it_is(tmp_path, encoding, text):
    (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
    (tmp_path / "marked.txt").write_text(text, encoding=encoding)
    plain, marked = (
        list(documents.read_documents(tmp_path / f"{name}.txt"))
        for name in ("plain", "marked")
    )
    assert marked == plain and len(plain) > 1


@pytest.mark.parametrize("order", ["le", "be"])
def test_both_orders_of_bytes(tmp_path, order):
    for width in (16, 32):
        data = f"\ufeff{RUSSIAN}".encode(f"utf-{width}-{order}")
        (tmp_path / "mine.txt").write_bytes(data)
        (first, *_) = documents.read_documents(tmp_path / "mine.txt")
        assert first.startswith("Мой дядя")


def test_jsonl_with_a_mark_ends_its_lines_at_newlines_alone(tmp_path):
    texts = ["one\u2028two", "Пушкин\u0085"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-16")
    assert list(documents.read_documents(tmp_path / "a.jsonl")) == texts


@pytest.mark.parametrize(
    "data",
    [
        ENGLISH.encode() + b"caf\xe9 " * 20,  # a few pages of the web
        JAPANESE.encode()[:-4],  # cut in the middle of a character
        b"\xe3" + ENGLISH.encode(),
        b"short \xe9",
        ENGLISH.encode() + b"\0",
    ],
)
def test_a_few_broken_bytes_are_read_with_a_warning(tmp_path, data):
    (tmp_path / "mine.txt").write_bytes(data)
    with pytest.warns(
        UserWarning, match=r"mine\.txt: \d+ broken sequences, \d+ con"
    ):
        found = list(documents.read_documents(tmp_path / "mine.txt"))
    assert len("".join(found)) > len(data) * 0.3


def test_plain_text_has_no_warning(tmp_path):
    # terminals' colours, pages, tabs, overstrikes; and U+FFFD that somebody else wrote
    text = ENGLISH + "\x1b[31mred\x1b[0m\f\tm\bm\v" * 50 + "\ufffd" * 500
    (tmp_path / "mine.txt").write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(documents.read_documents(tmp_path / "mine.txt"))


def test_shards_from_before_do_not_hide_what_a_file_is(tmp_path, monkeypatch):
    """Shards of the same bytes lie in data/ already, made when nobody looked."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.txt"
    path.write_text(ENGLISH)
    shards = prepare_corpus(path)
    path.write_text(ENGLISH, encoding="utf-16")
    assert prepare_corpus(path).train.read() == shards.train.read()
    with_mark = prepare_corpus(path).folder
    assert with_mark != shards.folder and "utf-16" in with_mark.name


def scored(path, stdin=None):
    """What `tilelli score` says of a file or of its standard input."""
    arguments = ["score", "-" if stdin else str(path)]
    done = CliRunner().invoke(app, arguments, input=stdin, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_score_sees_the_bytes_that_training_sees(tmp_path, encoding):
    text = "Das Mädchen hört zu.\r\n" * 30
    data = text.encode(encoding)
    (tmp_path / "mine.txt").write_bytes(data)
    seen = text.replace("\r\n", "\n").encode()
    (document,) = documents.read_documents(tmp_path / "mine.txt")
    assert seen.rstrip(b"\n") == document.encode()
    bits = TilelliLM.from_pretrained("tilelli/nano").score(seen)
    for said in (scored(tmp_path / "mine.txt"), scored(None, stdin=data)):
        assert f"over {len(seen):,} bytes" in said
        assert float(said.split()[0]) == pytest.approx(bits, abs=1e-3)


def test_score_reads_documents_as_training_does(tmp_path):
    rows = [{"text": "one story"}, {"text": "another\0 one"}, {"text": ""}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    stream = b"one story\0another one"
    assert f"over {len(stream)} bytes" in scored(tmp_path / "a.jsonl")
    (tmp_path / "a.txt").write_text("one story<|endoftext|>another one\n")
    assert f"over {len(stream)} bytes" in scored(tmp_path / "a.txt")


def test_score_refuses_what_training_refuses(tmp_path):
    (tmp_path / "mine.txt").write_bytes(NO_TEXT["cp1251"][0])
    for arguments, stdin in (
        (["score", str(tmp_path / "mine.txt")], None),
        (["score", "-"], NO_TEXT["png"][0]),
    ):
        done = CliRunner().invoke(app, arguments, input=stdin)
        assert isinstance(done.exception, DataError), done.output
