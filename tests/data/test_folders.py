"""A folder as a corpus: what each file is for, what is not read and that it is said, and
where the folder is.
"""

import json
import warnings
from pathlib import Path

import pytest

from tilelli_nb import TilelliLM, load_config, open_shards, prepare_shards
from tilelli_nb.data import documents
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import DataError
from tilelli_nb.files import at_home


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def write(folder, **texts):
    """Files of a line each, as a.txt or, for "sub__a", as sub/a.txt."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def quiet(source):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepare_corpus(source)


@pytest.mark.parametrize(
    "name",
    [
        "val",
        "valid",
        "validation",
        "dev",
        "Validation",
        "TinyStories-valid",
        "validation-00000-of-00001",
        "val__part",
    ],
)
def test_what_is_to_be_measured_on_is_not_trained_on(folder, name):
    write(folder, a="alpha", zz="beta", **{name: "held out"})
    shards = quiet("mine")
    assert shards.train.read() == b"alpha\0beta\0"
    assert shards.val.read() == b"held out\0"


@pytest.mark.parametrize("name", ["test", "Test", "test-00000-of-00001", "test__part"])
def test_a_test_set_is_never_trained_on_and_that_is_said(folder, name):
    write(folder, train="alpha", val="held out", **{name: "secret"})
    with pytest.warns(UserWarning, match="a test set is never trained on"):
        shards = prepare_corpus("mine")
    assert b"secret" not in shards.train.read() + shards.val.read()
    write(folder / "second", a="alpha", b="beta", c="gamma", **{name: "secret"})
    shards = quiet("mine/second")
    assert b"secret" not in shards.train.read() + shards.val.read()


def test_names_that_only_look_like_it_are_read(folder):
    write(folder, testament="one", value="two", contest="three", train_station="four")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shards = prepare_corpus("mine")
    assert len(shards.train.read() + shards.val.read()) == 4 + 4 + 6 + 5


def test_all_parts_of_a_side_are_read(folder):
    parts = {f"train-{i:05d}-of-00003": f"part {i}" for i in range(3)}
    write(folder, dev="held out", **parts)
    assert quiet("mine").train.read() == b"part 0\0part 1\0part 2\0"


def test_a_folder_with_nothing_to_train_on_says_so(folder):
    write(folder, test="secret", valid="held out")
    with pytest.raises(DataError, match="nothing to train on, only test.txt, valid.t"):
        prepare_corpus("mine")


def test_what_is_not_read_is_said(folder):
    write(folder, a="alpha", b="beta")
    for name in ("notes.md", "more.md", "table.csv", "LICENSE"):
        (folder / name).write_text("not read")
    with pytest.warns(UserWarning, match=r"mine this is not read: 2 \.md, ") as caught:
        prepare_corpus("mine")
    said = str(caught[0].message)
    assert "1 .csv" in said and "1 file(s) without a suffix" in said
    write(folder, train="gamma", val="held out")
    with pytest.warns(UserWarning, match=r"2 \.txt"):
        shards = prepare_corpus("mine")
    assert shards.train.read() == b"gamma\0"


def test_linked_folders_are_read_once(folder, tmp_path):
    write(tmp_path / "elsewhere", b="beta", c="gamma")
    write(folder, a="alpha")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert list(documents.read_documents(folder)) == ["alpha", "beta", "gamma"]
    first = prepare_corpus("mine").folder
    write(tmp_path / "elsewhere", b="another beta")
    second = prepare_corpus("mine")  # a change behind a link is a change
    assert second.folder != first
    assert b"another" in second.train.read() + second.val.read()


def test_runs_and_shards_in_a_folder_are_no_text_of_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write(folder, a="alpha", b="beta", c="gamma")
    before = prepare_corpus(".")  # writes into data/
    run = folder / "runs" / "nano"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, "text": "babble"}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1}))
    with pytest.warns(UserWarning, match=r"runs/nano/ \(a run or shards\)"):
        after = prepare_corpus(".")
    assert after.folder == before.folder  # nor does a run make another corpus of it


def test_a_home_folder_is_one_place_under_two_names(tmp_path, monkeypatch):
    home = tmp_path / "home"
    write(home / "mine", train="alpha", val="held out")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    shards = prepare_corpus("~/mine", "~/shards")
    assert (shards.train.read(), shards.val.read()) == (b"alpha\0", b"held out\0")
    assert shards.folder == home / "shards"
    assert prepare_corpus("~/mine").folder == prepare_corpus(home / "mine").folder
    assert open_shards("~/shards").train.read() == b"alpha\0"
    prepare_shards(["a", "b"], "~/more", "two")
    assert (home / "more").is_dir() and not (tmp_path / "~").exists()
    (home / "mine.yaml").write_text("model: {keep: 7}\n")
    assert load_config("~/mine.yaml").model.keep == 7
    TilelliLM(load_config("nano").with_model(keep=7)).save_pretrained(home / "model")
    assert TilelliLM.from_pretrained("~/model").config.model.keep == 7
    assert at_home("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_another_programs_manifest_is_a_file_like_others(folder):
    write(folder, a="alpha", b="beta")
    for theirs in ('{"name": "my-app", "icons": []}', "[1]", "3"):
        (folder / "manifest.json").write_text(theirs)
        shards = quiet("mine")
        assert len(shards.train.read() + shards.val.read()) == 6 + 5
        with pytest.raises(DataError, match="another program's"):
            open_shards("mine")
    with pytest.raises(DataError, match="another program's"):
        prepare_shards(["a", "b"], "mine", "x")


@pytest.mark.parametrize("manifest", [None, '{"name": "my-app"}', "[]"])
def test_what_a_folder_is_called_does_not_make_it_shards(folder, manifest):
    """Nor a file of another program in it; a damaged one of ours does."""
    here = folder / "this is not JSON"
    write(here, a="alpha", b="beta")
    if manifest:
        (here / "manifest.json").write_text(manifest)
    shards = quiet(here)
    assert len(shards.train.read() + shards.val.read()) == 6 + 5
    manifest = shards.folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-30])
    with pytest.raises(DataError, match="the manifest of .* is not JSON"):
        prepare_corpus(shards.folder)


@pytest.mark.parametrize("name", ["x" * 400, "a\0b", "~nobody-of-this-name/x"])
def test_a_name_that_no_path_can_have(folder, name):
    with pytest.raises(DataError, match="no corpus and no path") as error:
        prepare_corpus(name)
    assert len(error.value.problem) < 150


@pytest.mark.parametrize("name", ["stories", "docs", "fineweb-edu"])
def test_the_word_is_the_name_and_a_path_is_a_path(folder, monkeypatch, name):
    made = {"stories": "a story that was made. ", "docs": "what a module says. "}
    monkeypatch.setattr(documents, "stories", lambda seed: iter([made["stories"]] * 9))
    monkeypatch.setattr(documents, "docs", lambda: iter([made["docs"]] * 9))
    write(folder.parent / name, a="alpha", b="beta")
    for path in (f"./{name}", Path(name)):
        assert sorted(documents.documents(path)) == ["alpha", "beta"]
        shards = quiet(path)
        both = shards.train.read() + shards.val.read()
        assert sorted(both.split(b"\0")) == [b"", b"alpha", b"beta"]
    for read in (documents.documents, prepare_corpus):
        if name == "fineweb-edu":
            with pytest.raises(DataError, match="needs a size"):
                read(name)
    if name in made:
        assert set(documents.documents(name)) == {made[name]}
        shards = quiet(name)
        both = shards.train.read() + shards.val.read()
        assert set(both.decode().split("\0")) == {made[name], ""}


@pytest.mark.parametrize("name", ["stories", "docs", "fineweb-edu"])
def test_a_path_that_is_not_there_is_not_taken_for_a_name(folder, name):
    for read in (documents.documents, prepare_corpus):
        for path in (Path(name), f"./{name}"):
            with pytest.raises(DataError, match="there is no|no corpus and no path"):
                read(path)
    assert not (folder.parent / "data").exists()
