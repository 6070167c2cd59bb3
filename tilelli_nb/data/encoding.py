"""What the bytes of a text file stand for: UTF-8, or what a byte order mark says. What
is no text is refused, before a model learns it without a word.
"""

import codecs
import io
import re
import threading
import warnings
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import DataError

# The longer marks first: that of UTF-32 begins like that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# No text holds these, but for the odd one: NUL and its like, without backspace, tab,
# the ends of lines and pages, and escape.
CONTROL = re.compile("[\0-\x07\x0e-\x1a\x1c-\x1f\x7f]")

FEW = 3  # so many broken places are no reason to refuse a file, however short it is
LARGEST_SHARE = 0.005  # of broken places among the bytes; French in Latin-1 has 3%
CHUNK = 2**20  # bytes


class Found(NamedTuple):
    """What was found in a file."""

    encoding: str  # a name that Python knows, and that drops the mark
    size: int  # in bytes
    broken: int  # sequences that spell no character
    controls: int  # characters of CONTROL
    first: int | None  # where in the file the first of either stands

    @property
    def is_text(self) -> bool:
        """Whether there are few enough of both."""
        most = max(FEW, LARGEST_SHARE * self.size)
        return self.broken <= most and self.controls <= most


def encoding_of(file: Path) -> str:
    """The encoding to open a text file with: UTF-8, or UTF-16 or UTF-32 with a byte
    order mark.

    Raises DataError for a file that cannot be read, or where more than one byte in 200
    is out of place; warns of fewer.
    """
    try:
        status = file.stat()
        found = _look_into(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(
            f"cannot read {file.name}: {error.strerror}", "check path and permissions"
        ) from None
    return approved(found, file.name)


@lru_cache(maxsize=1024)
def _look_into(file: Path, size: int, changed: int) -> Found:
    """Looks through a file once; size and time make another version another entry."""
    with file.open("rb") as stream:
        return look_through(stream)


def look_through(stream: BinaryIO) -> Found:
    """Reads bytes to their end and counts what is no text in them."""
    chunk = stream.read(CHUNK)
    mark = next((mark for mark in MARKS if chunk.startswith(mark)), b"")
    # the mark is dropped here, so that places can be counted
    codec = MARKS.get(mark, "utf-8").removesuffix("-sig")
    if codec != "utf-8":
        codec += "-le" if mark.startswith(b"\xff") else "-be"
    size, chunk = len(mark), chunk.removeprefix(mark)
    waiting = 0  # bytes of a character that the chunk before has begun
    broken, controls = [], []  # places in the file

    def note(error: UnicodeDecodeError) -> tuple[str, int]:
        broken.append(size - waiting + error.start)
        return "\ufffd", error.end

    # each thread has its own, so that two can read at once
    name = f"tilelli-note-{threading.get_ident()}"
    codecs.register_error(name, note)
    decoder = codecs.getincrementaldecoder(codec)(name)
    count = 0  # of control characters
    while chunk:
        text = decoder.decode(chunk)
        found = CONTROL.findall(text)
        if found and not controls:
            before = text[: text.index(found[0])]
            controls.append(size - waiting + len(before.encode(codec, "replace")))
        count += len(found)
        size += len(chunk)
        waiting = len(decoder.getstate()[0])
        chunk = stream.read(CHUNK)
    decoder.decode(b"", final=True)  # a character that was cut off
    first = min(broken[:1] + controls, default=None)
    return Found(MARKS.get(mark, "utf-8"), size, len(broken), count, first)


def approved(found: Found, name: str) -> str:
    """The encoding of what was found under this name. Raises DataError where it is no
    text; warns where a few places are broken.
    """
    if not found.broken and not found.controls:
        return found.encoding
    what = f"{found.broken:,} broken sequences, {found.controls:,} control characters"
    spelling = found.encoding.removesuffix("-sig").upper()
    problem = (
        f"{name} is not {spelling} text: {what} in {found.size:,} bytes, the first at "
        f"byte {found.first:,}"
    )
    if not found.is_text:
        raise DataError(
            problem,
            "convert it: `iconv -f ENCODING -t UTF-8 FILE`, where ENCODING is what it "
            "was written in (CP1251, SHIFT-JIS, UTF-16LE, ...); unpack what is packed; "
            "leave out what is no text",
        )
    warnings.warn(
        f"{name}: {what}, the first at byte {found.first:,}; what is broken becomes "
        "U+FFFD, NUL is dropped",
        stacklevel=3,
    )
    return found.encoding


def open_text(file: Path, newline: str | None = None) -> io.TextIOWrapper:
    """Opens a text file in its encoding; what is broken becomes U+FFFD. Raises
    DataError for what is no text.

    Every end of a line is read as \\n; with newline="\\n" nothing else ends one.
    """
    encoding = encoding_of(file)
    return file.open(encoding=encoding, errors="replace", newline=newline)


def text_of(data: bytes, name: str) -> str:
    """The same for bytes that are in memory already."""
    encoding = approved(look_through(io.BytesIO(data)), name)
    stream = io.BytesIO(data)
    return io.TextIOWrapper(stream, encoding=encoding, errors="replace").read()
