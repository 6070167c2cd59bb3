"""The share of words: on small texts whose words one can count."""

import json
import sys

import pytest

import judge_words as jw  # noqa: E402


def test_words_are_runs_of_letters_with_apostrophes_inside():
    assert jw.words("It's 3 o’clock, 'DON'T' x_y 4th!") == [
        *("it's", "o'clock", "don't", "x", "y", "th")
    ]
    assert jw.words("naïve CAFÉ Ωμέγα") == ["naïve", "café", "ωμέγα"]
    assert jw.words("12 --- '' \0\n") == []


def test_half_a_character_makes_no_word():
    """b"caf\\xc3" is the first half of an é."""
    broken = "caf\xe9".encode()[:-1].decode(errors="replace")
    assert jw.words(broken) == ["caf\ufffd"]
    assert jw.share(jw.words(broken + "s caf"), {"caf", "s"}) == 0.5


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("one two thr", ["one", "two"]),
        ("one two three ", ["one", "two", "three"]),
        ("one two three.", ["one", "two"]),  # three.five?
        ("one two don'", ["one", "two"]),
        ("one two.\0", ["one", "two"]),
        ("on", []),
        ("", []),
    ],
)
def test_the_word_that_the_end_cuts_does_not_count(text, whole):
    assert jw.whole_words(text) == whole


def test_a_word_is_what_occurs_often_enough_in_any_case():
    texts = ["The cat, the dog.", "THE DOG; a catt"]
    assert jw.word_list(texts, 2) == {"the", "dog"}
    assert jw.word_list(texts, 1) == {"the", "dog", "cat", "catt", "a"}
    assert jw.word_list(texts, 4) == set()


def test_the_judgement_by_hand():
    known = {"a", "cat", "act", "sat"}
    said = jw.judge(["A cat zat. ", "a cat sat on a c"], known)
    # a, cat, zat; a, cat, sat, on, a: two of eight are none
    assert said["words"] == 8 and said["share"] == 6 / 8
    assert said["share_by_sample"] == [2 / 3, 4 / 5]
    assert said["unknown"] == {"zat": 1, "on": 1}
    assert 3 / 8 <= said["share_shuffled"] <= 6 / 8  # three a's pass as they are
    assert jw.judge(["..."], known)["share"] is None


def test_shuffled_letters_stay_the_same_letters():
    found = ["cat", "a", "reader"] * 5
    mixed = jw.shuffled(found)
    assert [sorted(word) for word in mixed] == [sorted(word) for word in found]
    assert mixed != found and mixed == jw.shuffled(found)


def test_the_script_writes_a_record(tmp_path, monkeypatch, capsys):
    (tmp_path / "corpus").mkdir()
    story = "Once upon a time there was a little girl named Lily. "
    (tmp_path / "corpus" / "train.txt").write_text(story * 100)
    (tmp_path / "corpus" / "val.txt").write_text("Once upon a hill there was a time. ")
    out = tmp_path / "runs" / "words"
    options = {"samples": 2, "bytes": 60, "least": 100, "model": "tilelli/nano"}
    options |= {"corpus": tmp_path / "corpus", "out": out}
    command = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["judge_words.py", *command])
    jw.main()
    record = json.loads((out / "run.json").read_text())
    results = json.loads((out / "results.json").read_text())
    assert (record["name"], record["kind"]) == ("words", "eval")
    assert record["config"] == {"name": "nano"} and record["finished"]
    assert record["data"]["source"] == "corpus"
    assert str(tmp_path) not in (out / "run.json").read_text()
    assert "2 samples of tilelli/nano, seeds 0 to 1, 60 bytes each" in record["notes"]
    assert results["list"] == 10 and results["share_held_out"] == 7 / 8
    assert [len(text.encode()) for text in results["samples"]] == [60, 60]
    assert results["share"] == jw.judge(results["samples"], known_of(story))["share"]
    printed = capsys.readouterr().out
    assert f"{results['share']:.2%} of {results['words']} words" in printed


def known_of(story):
    return jw.word_list([story], 1)
