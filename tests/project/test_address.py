"""The book's address: in one place, written everywhere from there, and nowhere while
nobody has set it.
"""

import re
import shutil
import subprocess

import pytest

import address
import pairs
from tilelli_nb import address as of_the_package
from tilelli_nb.errors import RentalError
from tilelli_nb.extras import runpod

URL = "https://example.org/somebody/their-book"
OTHER = "https://git.example.net/a/b"


@pytest.fixture
def copy(tmp_path):
    """The files of the repository as git knows them, in a folder of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=pairs.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        source = pairs.ROOT / name
        if name.startswith(("notebooks/", "tilelli_nb/weights/", "book/runs/")):
            continue
        if source.is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / name)
    return tmp_path


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_address_is_written_everywhere_and_taken_out_again(copy):
    before = contents(copy)
    start = address.current(copy)
    address.write("", copy)
    without = contents(copy)
    names = address.write(URL, copy)
    assert address.current(copy) == URL
    written = contents(copy)
    changed = {name for name in without if written[name] != without[name]}
    assert changed == set(names)
    for name in names:
        assert URL.encode() in written[name], name
        assert URL.encode() not in without[name], name
    address.write(OTHER, copy)
    written = contents(copy)
    assert not any(URL.encode() in written[name] for name in names)
    address.write(start, copy)
    assert contents(copy) == before


def test_what_an_address_switches_on(copy):
    address.write("", copy)
    assert "launch_buttons" not in (copy / "_config.yml").read_text()
    chapters = sorted((copy / "book").glob("[0-9][0-9]_*.md"))
    assert len(chapters) == len(pairs.twins())
    for path in chapters:
        text = path.read_text()
        assert "git clone --quiet" not in text and "%pip" not in text, path.name
    address.write(URL, copy)
    assert f"url: {URL}" in (copy / "_config.yml").read_text()
    assert "colab_url" in (copy / "_config.yml").read_text()
    for path in chapters:
        assert (
            f"    !git clone --quiet --depth 1 {URL} tilelli-book\n" in path.read_text()
        )


def test_no_other_place_names_an_address_of_the_book(copy):
    """Whatever looks like one: a clone, a badge, a link to a file of a repository."""
    address.write("", copy)
    for name, text in contents(copy).items():
        if name.startswith(("book/_static/vendor/", "tests/", ".")):
            continue
        for line in text.decode(errors="replace").splitlines():
            found = re.search(r"https?://[\w.-]+/[\w/.-]*tilelli[\w.-]*", line, re.I)
            if found and "TilelliLab/Tilelli-llm" not in line:
                raise AssertionError(f"{name}: {found[0]}")


@pytest.mark.parametrize(
    "url", ["http://example.org/a/b", "example.org/a/b", "https://x/a b", "https://x"]
)
def test_an_address_that_is_none_changes_nothing(copy, url):
    before = contents(copy)
    with pytest.raises(SystemExit, match="no address"):
        address.write(url, copy)
    assert contents(copy) == before


def test_a_file_that_was_edited_by_hand_is_not_half_changed(copy):
    first = sorted((copy / "book").glob("[0-9][0-9]_*.md"))[3]
    first.write_text(first.read_text().replace("importlib.util", "importlib"))
    before = contents(copy)
    with pytest.raises(SystemExit, match=first.name):
        address.write(URL, copy)
    assert contents(copy) == before


def test_a_pod_is_told_the_address_or_refused(monkeypatch):
    monkeypatch.setattr(of_the_package, "REPOSITORY", "")
    with pytest.raises(RentalError, match="address is not set"):
        runpod.start_command(1, "make pretrain")
    runpod.start_command(1, "")  # a pod without the book is nobody's concern
    monkeypatch.setattr(of_the_package, "REPOSITORY", URL)
    assert f"git clone {URL} tilelli-book)" in runpod.start_command(1, "make pretrain")
