"""The experiments' settings, and the rows that they are trained on."""

import random
from collections import Counter

import pytest
import torch

from tilelli_nb import ByteTokenizer
from tilelli_nb.chat.pairs import is_refusal
from tilelli_nb.chat.rows import POOL
from tilelli_nb.chat.wording import normal_form
from tilelli_nb.errors import ConfigError, DataError
from tilelli_nb.evaluation import lessons
from tilelli_nb.evaluation.experiments import (
    NAMES,
    SWEEP,
    load_experiment,
    read_experiment,
)
from tilelli_nb.evaluation.lessons import make_lessons, questions, scramble
from tilelli_nb.evaluation.probes import load_probes

TEXT = b"Once upon a time there was a fox who lived in a wood. " * 40
decode = ByteTokenizer().decode


def test_every_experiment_can_be_read_and_says_what_it_does():
    for name in NAMES:
        experiment = load_experiment(name)
        assert experiment.name == name and experiment.says.endswith(".")


def test_the_sweep_differs_in_one_weight_alone():
    rows = [load_experiment(name).to_dict() for name in SWEEP]
    assert [row.pop("entropy") for row in rows] == [20, 5, 1, 0.2, 0]
    for row in rows:
        for key in ("name", "says", "published"):
            del row[key]
        assert row == rows[0]


GOOD = {"trains": "router", "data": "semantic", "entropy": 1.0}


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"trains": "head"}, "trains 'head'"),
        ({"data": "books"}, "data 'books'"),
        ({"entropy": -1.0}, "a weight below 0"),
        ({"steps": 0}, "no steps"),
        ({"lr": 0.0}, "no learning rate"),
        ({"router_from": "v7"}, "a splice trains nothing"),
        ({"entropy": 0.0}, "for no loss"),
        ({"trains": "nothing"}, "has a loss and trains nothing"),
        ({"abstain": 1.0}, "belong together"),
        ({"trains": "router and head"}, "belong together"),
        ({"data": "in_domain"}, "compare two sides, and in_domain has one"),
        ({"weight": 1}, "unknown configuration key"),
        ({"batch": "many"}, "is a str"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, problem):
    read_experiment("mine", GOOD)
    with pytest.raises(ConfigError, match=problem):
        read_experiment("mine", GOOD | changes)


def test_a_wrong_name_gets_the_right_ones():
    with pytest.raises(
        ConfigError, match="(?s)did you mean 'v8b'.*splice_head, or all"
    ):
        load_experiment("v8")


# ---- the rows


def learned(row):
    """What a row teaches to write."""
    return decode(row.targets[row.targets >= 0].tolist())


@pytest.mark.parametrize("kind", lessons.LESSONS)
def test_rows_are_the_same_for_the_same_seed(kind):
    first, again, other = (make_lessons(kind, TEXT, seed, 20) for seed in (0, 0, 1))
    assert len(first.inside) == 20
    assert len(first.outside) == (20 if kind in lessons.TWO_SIDED else 0)
    for side, same in zip(first, again, strict=True):
        for a, b in zip(side, same, strict=True):
            assert torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets)
    assert [decode(r.ids) for r in first.inside] != [decode(r.ids) for r in other[0]]
    for side in first:
        for row in side:
            assert len(row.ids) == len(row.targets) <= 256
            assert 1 <= row.asked <= len(row.ids)


def test_semantic_rows_have_one_format_and_no_answer_outside():
    inside, outside = make_lessons("semantic", TEXT, 0, 50)
    answers = {pair.question: pair.answer for pair in questions()[0]}
    for row in inside:
        prompt = decode(row.ids[: row.asked])
        assert prompt.startswith("USER: ") and prompt.endswith("\nTILELLI: ")
        question = prompt.removeprefix("USER: ").removesuffix("\nTILELLI: ")
        assert learned(row) == answers[question] + "\0"
    unknown = {pair.question for pair in questions()[1]}
    for row in outside:
        prompt = decode(row.ids)
        assert len(row.ids) == row.asked and learned(row) == ""
        assert prompt.removeprefix("USER: ").removesuffix("\nTILELLI: ") in unknown


def test_the_sides_are_what_they_say():
    """By the answers themselves: no question from inside is to be refused, and every
    one from outside is.
    """
    known, unknown = questions()
    assert len(known) > 20_000 and len(unknown) > 10_000
    assert not any(is_refusal(pair.answer) for pair in known)
    assert all(is_refusal(pair.answer) for pair in unknown)
    assert not any(pair.history for pair in (*known, *unknown))


def test_no_row_holds_a_probe():
    probes = {normal_form(probe.prompt) for probe in load_probes()}
    for side in questions():
        assert not probes & {normal_form(pair.question) for pair in side}


def test_scrambling_moves_letters_inside_their_words():
    text = "What is 12, dear fox-tail?"
    mixed = scramble(text, random.Random(1))
    assert mixed != text and len(mixed) == len(text)
    for old, new in zip(text.split(), mixed.split(), strict=True):
        assert Counter(old) == Counter(new)
    assert [c for c in mixed if not c.isalnum()] == [c for c in text if not c.isalnum()]


def test_raw_rows_have_no_format():
    inside, outside = make_lessons("raw_text", TEXT, 0, 10)
    for row in inside:
        whole = bytes(row.ids.tolist()) + learned(row)[-1:].encode()
        assert whole in TEXT  # every byte is learned
        assert bytes(row.targets.tolist()) == whole[1:]
    for row in outside:
        assert b"USER" not in bytes(row.ids.tolist()) and learned(row) == ""
    with pytest.raises(DataError, match="a text of 9 bytes"):
        make_lessons("raw_text", b"too short", 0, 1)


def test_a_batch_has_rows_of_nearly_equal_length():
    """Of the eight parts the first has the shortest rows of those that were drawn."""
    rows = make_lessons("semantic", TEXT, 0, 200).inside
    found = []
    for part in range(POOL):
        dice = torch.Generator().manual_seed(4)  # the same rows are drawn each time
        found.append([len(r.ids) for r in lessons.draw(rows, 5, part, dice)])
    flat = [length for part in found for length in part]
    assert len(flat) == 40 and flat == sorted(flat)
    assert lessons.draw([], 5, 0, torch.Generator()) == []
