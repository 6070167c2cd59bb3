"""Corpora: generated stories, installed documentation, files and folders."""

import hashlib
import importlib.util
import json
import re
from itertools import islice
from pathlib import Path

import pytest

from tilelli_nb.data import documents, stories
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import DataError


def read(path) -> list[str]:
    return list(documents.read_documents(path))


@pytest.fixture(scope="module")
def many() -> list[str]:
    return list(islice(stories.stories(0), 20_000))


# --- stories
# ---------------------------------------------------------------------------------------------------


def test_stories_are_the_same_everywhere(many):
    first = list(islice(stories.stories(0), 100))
    assert first == many[:100]
    digest = hashlib.sha256("\0".join(first).encode()).hexdigest()
    frozen = "61f9852b6f0c8461ebd03494a4d501a2a24d9e757a26c36839590766cc73b696"
    assert digest == frozen, (
        "the stories changed: models trained on them no longer match their records"
    )
    assert first != list(islice(stories.stories(1), 100))


def test_stories_are_distinct_and_short(many):
    # the shortest plots, told in 24 houses, repeat now and then
    assert len(set(many)) >= 19_800
    sizes = sorted(len(story) for story in many)
    assert sizes[0] >= 300 and sizes[-1] <= 600 and 400 < sizes[len(sizes) // 2] < 470


@pytest.mark.parametrize(
    "wrong",
    [
        r"\b[Aa] [aeiou]\w*",  # a apple
        r"\b[Aa]n (?!hour|honest)[^aeiou]\w*",  # an pear
        r"[{}<>|\[\]]",  # an unfilled slot, rule or choice
        r"  | \n|\n | [.,!?]|\n\n",  # stray spaces
        r"[^.!?\"]\n|[.!?]\.",  # a paragraph that does not end
        r"(?<![A-Z][a-z])[.] [a-z]",  # a sentence that begins small
        r"\b(the|a|an|and|to|was|he|she) \1\b",  # said twice
        r"[^\x20-\x7e\n]",  # not plain ASCII
    ],
)
def test_stories_read_like_english(many, wrong):
    found = [
        match.group() for story in many[:3000] for match in re.finditer(wrong, story)
    ]
    assert not found, sorted(set(found))[:10]


def test_stories_close_what_they_open(many):
    for story in many[:3000]:
        assert story == story.strip() and story[-1] in '.!?"'
        assert all(paragraph.count('"') % 2 == 0 for paragraph in story.split("\n")), (
            story
        )


def test_a_thing_keeps_its_looks(many):
    """The red kite stays red: in a story no kite has two colours."""
    told = 0
    for story in many:
        colors = set(
            re.findall(r"\b(red|blue|yellow|green|striped|purple|orange) kite", story)
        )
        told += bool(colors)
        assert len(colors) <= 1, story
    assert told > 50


def test_snow_and_summer_do_not_meet(many):
    snowy = [s for s in many if re.search(r"\bsnow(?:y|balls|)\b(?! globe)", s)]
    assert len(snowy) > 500
    assert not [
        s for s in snowy if re.search(r"\b(summer|autumn|sunny day|rainy|puddles)\b", s)
    ]


def test_pronouns_follow_the_name():
    for story in islice(stories.stories(3), 2000):
        if match := re.match(r".*?\b(girl|boy)\b.*?\. (He|She) ", story.split("\n")[0]):
            assert (match.group(1) == "girl") == (match.group(2) == "She"), story


@pytest.fixture(scope="module")
def judge():
    """The script that reads a story back into its plot and its words: from the tables,
    not with the code that tells.
    """
    path = Path(__file__).parents[2] / "book" / "experiments" / "judge_stories.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = module.plots()
    return lambda story: module.judge(story, known)[0]


def test_a_story_is_one_plot_with_the_same_people_and_things_throughout(many, judge):
    assert {judge(story) for story in many[:1000]} == {"whole"}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda story: story, "whole"),
        # two girls where there was one
        (lambda story: story.replace("Lily", "Emma", 1), "slip"),
        # the thing changes on the way
        (lambda story: story.replace("drum", "kite", 2), "slip"),
        (lambda story: story.replace("She lived", "He lived"), "slip"),
        (lambda story: story.replace(" Lily ran\nthrough the house.", ""), "lost"),
        (lambda story: story[:-20], "lost"),  # it breaks off
        (lambda story: story + " Lily laughed with joy.", "lost"),  # it does not stop
    ],
)
def test_the_judge_sees_what_is_wrong_with_a_story(judge, change, verdict):
    story = """Lily was a little girl. She lived in a yellow house at the end of the lane. One sunny day, Lily ran
through the house. Crash! Grandma's red drum fell down and broke. Lily was afraid and hid the drum under the bed.
"Where is my drum?" asked Grandma. "I broke the drum," said Lily. "I am sorry." "Thank you for telling me the truth,"
said Grandma. They took some glue and mended the drum together. Lily never ran through the house again."""
    assert judge(change(story)) == verdict


# --- documentation
# ---------------------------------------------------------------------------------------------


def test_docs_reads_without_importing(tmp_path, monkeypatch):
    package = tmp_path / "planted_package"
    (package / "tests").mkdir(parents=True)
    text = "What this module is for." * 12
    (package / "__init__.py").write_text(
        f'"""{text}"""\nraise SystemExit("imported")\n'
        'class Box:\n    """A box.\n\n    Text:\n        Indented.\n    """\n'
        '    def open(self):\n        """Opens it."""\n',
        encoding="utf-8",
    )
    (package / "a_latin.py").write_bytes(
        b"# coding: latin-1\n'''" + b"caf\xe9" * 60 + b"'''\n"
    )
    (package / "broken.py").write_text("def (:\n", encoding="utf-8")
    (package / "nul.py").write_bytes(b"'''x'''\0")
    (package / "short.py").write_text('"""Too short."""\n', encoding="utf-8")
    (package / "half.py").write_text(
        '"""\\ud800' + "y" * 300 + '"""\n', encoding="utf-8"
    )
    (package / "tests" / "test_it.py").write_text(f'"""{text}"""\n', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = list(documents.docs(["planted_package"]))
    assert found == [
        f"{text}\n\nA box.\n\nText:\n    Indented.\n\nOpens it.",
        "caf\xe9" * 60,
        "?" + "y" * 300,
    ]
    assert str(tmp_path) not in "".join(found)


def test_docs_default_starts_with_the_standard_library():
    first = list(islice(documents.docs(), 3))
    assert len(first) == 3 and all(len(text.encode()) >= 200 for text in first)
    assert first == list(islice(documents.docs(["stdlib"]), 3))


@pytest.mark.parametrize("name", ["no_such_package_here", "../etc", ""])
def test_docs_names_what_is_missing(name):
    with pytest.raises(DataError, match="no Python sources"):
        documents.docs([name])


# --- files
# -----------------------------------------------------------------------------------------------------


def test_txt_is_cut_at_endoftext(tmp_path):
    file = tmp_path / "a.txt"
    text = "one\n\nstill one\n<|endoftext|>\ntwo<|endoftext|>three\n<|endoftext|>\n<|endoftext|>\n"
    file.write_text(text, encoding="utf-8")
    assert read(file) == ["one\n\nstill one", "two", "three"]


def test_txt_is_cut_at_blank_lines_and_packed(tmp_path):
    file = tmp_path / "a.txt"
    pieces = [letter * 600 for letter in "abcde"]
    file.write_text("\n\n".join(pieces), encoding="utf-8")
    # a short rest joins the last one
    assert read(file) == ["\n\n".join(pieces[:2]), "\n\n".join(pieces[2:])]
    file.write_text("\n\n\n".join([*pieces, "f" * 600]) + "\n\n", encoding="utf-8")
    assert read(file) == [
        "\n\n".join(pieces[:2]),
        "\n\n".join(pieces[2:4]),
        f"{pieces[4]}\n\n{'f' * 600}",
    ]


def test_txt_is_cut_at_newlines_and_packed(tmp_path):
    file = tmp_path / "a.txt"
    lines = [letter * 511 for letter in "abcd"]
    # blank lines at the ends cut nothing
    file.write_text("\n" + "\n".join(lines) + "\n\n", encoding="utf-8")
    # 511 + 1 + 511 is 1023 bytes: too short by one
    assert read(file) == ["\n".join(lines[:3]) + "\n" + lines[3]]
    file.write_text("\n".join(line + "!" for line in lines), encoding="utf-8")
    assert read(file) == [f"{lines[0]}!\n{lines[1]}!", f"{lines[2]}!\n{lines[3]}!"]


def test_packing_counts_bytes_not_characters(tmp_path):
    file = tmp_path / "a.txt"
    # 342 characters are 1026 bytes
    file.write_text("\n".join(["\u20ac" * 342] * 2), encoding="utf-8")
    assert len(read(file)) == 2


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b" \n\r\n\t\n", []),
        # a byte order mark
        (b"\xef\xbb\xbfhello", ["hello"]),
        # Windows newlines
        (b"a<|endoftext|>\r\nb\r\nc", ["a", "b\nc"]),
        # not UTF-8, and UTF-8
        (b"caf\xe9<|endoftext|>\xc3\xa9", ["caf\ufffd", "\xe9"]),
        # dropped by the writer of shards, not here
        (b"nul\0inside", ["nul\0inside"]),
        # one huge line
        (b"x" * 3_000_000, ["x" * 3_000_000]),
    ],
)
def test_odd_txt(tmp_path, data, expected):
    (tmp_path / "odd.txt").write_bytes(data)
    assert read(tmp_path / "odd.txt") == expected


def test_jsonl(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"text": "one\n\ntwo", "id": 1}, {"text": ""}, {"text": "caf\xe9 \0"}]
    lines = b"\r\n\r\n".join(json.dumps(row).encode() for row in rows)
    file.write_bytes(b"\xef\xbb\xbf" + lines + b'\n{"text": "\\ud800"}')
    assert read(file) == ["one\n\ntwo", "caf\xe9 \0", "?"]


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "cut off',
        '{"body": "x"}',
        '["x"]',
        '{"text": 3}',
        "null",
        '{"text": "x", "id": ' + "1" * 5000 + "}",
    ],
    ids=lambda line: line[:20],
)
def test_bad_jsonl_names_file_and_line(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(
        '{"text": "fine"}\n\n' + line + "\n", encoding="utf-8"
    )
    found = documents.read_documents(tmp_path / "bad.jsonl")
    assert next(found) == "fine"
    with pytest.raises(DataError, match=r"bad\.jsonl, line 3"):
        next(found)


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = [f"row {i}" for i in range(2500)]
    pq.write_table(
        pa.table({"id": list(range(2502)), "text": [*texts, None, ""]}),
        tmp_path / "a.parquet",
    )
    assert read(tmp_path / "a.parquet") == texts
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no column `text`, only body"):
        read(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"c\.parquet is not a parquet file"):
        read(tmp_path / "c.parquet")


def test_folder_is_read_sorted_and_deep(tmp_path):
    for name, text in {
        "b.txt": "two",
        "a/z.TXT": "one",
        "c.jsonl": '{"text": "three"}',
        "d.csv": "no",
        ".cache/x.txt": "no",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert read(tmp_path) == ["one", "two", "three"]


def test_what_cannot_be_read_is_said_at_once(tmp_path):
    (tmp_path / "a.csv").write_text("x", encoding="utf-8")
    for path, problem in (
        (tmp_path / "a.csv", r"a\.csv is of an unknown kind"),
        (tmp_path, "holds no .txt"),
        (tmp_path / "b.txt", "there is no file or folder"),
    ):
        with pytest.raises(DataError, match=problem) as error:
            # not only when the first document is asked for
            documents.read_documents(path)
        assert error.value.fix


# --- one door
# --------------------------------------------------------------------------------------------------


def test_documents_stops_after_the_limit(tmp_path):
    # six bytes each
    (tmp_path / "a.jsonl").write_text(
        '{"text": "\u20ac\u20ac"}\n' * 5, encoding="utf-8"
    )
    for limit, count in ((None, 5), (0, 0), (1, 1), (6, 1), (7, 2), (100, 5)):
        assert (
            len(list(documents.documents(tmp_path / "a.jsonl", limit_bytes=limit)))
            == count
        )
    some = list(documents.documents("stories", seed=7, limit_bytes=20_000))
    assert some == list(islice(stories.stories(7), len(some)))
    assert sum(map(len, some[:-1])) < 20_000 <= sum(map(len, some))


def test_stories_have_a_limit_of_their_own(monkeypatch):
    monkeypatch.setattr(documents, "stories", lambda seed: iter(["x" * 1_000_000] * 50))
    assert len(list(documents.documents("stories"))) == 10


def test_documents_reads_docs(monkeypatch):
    monkeypatch.setattr(documents, "docs", lambda: iter(["a", "b"]))
    assert list(documents.documents("docs")) == ["a", "b"]


def test_an_unknown_name_lists_the_names(tmp_path):
    with pytest.raises(DataError, match="did you mean 'stories'") as error:
        documents.documents("storys")
    assert "stories, docs" in error.value.fix
    for name in ("", "zzz", str(tmp_path / "gone")):
        with pytest.raises(DataError, match="no corpus and no path"):
            documents.documents(name)
    with pytest.raises(DataError, match="there is no file or folder .*gone"):
        documents.documents(tmp_path / "gone")


def test_another_version_of_a_documented_package_makes_new_shards(
    tmp_path, monkeypatch
):
    """The first hundred documents are all of the first package."""
    for package in ("first_package", "second_package"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    for i in range(120):
        text = f"This is module {i}. " * 20
        (tmp_path / "first_package" / f"m{i:03}.py").write_text(f'"""{text}"""')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = ("first_package", "second_package")
    monkeypatch.setattr(documents, "DOCUMENTED", names)
    folders = []
    for version in ("1.0", "2.0", "2.0"):
        text = f"This is version {version}. " * 20
        (tmp_path / "second_package" / "m.py").write_text(f'"""{text}"""')
        shards = prepare_corpus("docs", megabytes=1)
        folders.append(shards.folder)
        everything = shards.train.read() + shards.val.read()
        assert f"version {version}".encode() in everything
    assert folders[0] != folders[1] == folders[2]
