"""Judging answers: what counts as right, what a gate changes, and the control."""

from types import SimpleNamespace

import pytest

from tilelli_nb.chat.pairs import Pair
from tilelli_nb.evaluation.answers import (
    Judged,
    by_kind,
    calibrate,
    cluster_of,
    curve,
    judge,
    knows_when_it_is_right,
    shares,
    shares_of_set,
    through,
)
from tilelli_nb.inference.chatting import Gate

FRANCE = Pair(
    "What is the capital of France?", "Paris.", "capitals", True, "capitals/France"
)
SPAIN = Pair(
    "And of Spain?",
    "Madrid.",
    "capitals",
    True,
    "capitals/Spain",
    ((FRANCE.question, "Paris."),),
)
NOWHERE = Pair(
    "What is the capital of Zorb?", "I don't know.", "invented", False, "c/?Zorb"
)


class Parrot:
    """Says what it was told to, by question: (text, confidence)."""

    def __init__(self, answers):
        self.answers, self.heard = answers, []

    def chat(self, history):
        self.heard.append(history)
        text, sure = self.answers[history[-1]]
        return SimpleNamespace(text=text, margin=sure, max_softmax=(1 + sure) / 2)


def judged(*answers):
    pairs = [FRANCE, SPAIN, NOWHERE]
    lm = Parrot(dict(zip((pair.question for pair in pairs), answers, strict=True)))
    return judge(lm, pairs), lm


def test_what_is_right_and_what_is_refused():
    found, lm = judged(("Paris.", 0.9), ("I don't know, sorry.", 0.4), ("Zorbia.", 0.2))
    assert [(one.right, one.refused) for one in found] == [
        (True, False),
        (False, True),  # a false inability
        (False, False),  # an invention
    ]
    assert lm.heard[1] == [FRANCE.question, "Paris.", SPAIN.question]
    assert [one.max_softmax for one in found] == [0.95, 0.7, 0.6]


def test_shares_by_kind():
    found, _ = judged(("paris", 0.9), ("Lisbon.", 0.4), ("I don't know.", 0.8))
    rows = by_kind(found)
    assert list(rows) == ["capitals", "invented"]
    assert rows["capitals"]["questions"] == 2
    assert rows["capitals"]["right"]["value"] == 0.5
    refused = rows["capitals"]["refused"]
    # Wilson's formula by hand for 0 of 2: z^2 / (n + z^2)
    assert (refused["value"], refused["low"]) == (0.0, 0.0)
    assert refused["high"] == pytest.approx(3.841459 / 5.841459)
    assert rows["invented"]["right"]["value"] == 1.0
    assert shares(found)["right"]["value"] == pytest.approx(2 / 3)


def test_questions_that_fail_together_are_drawn_together():
    """Two domains of fifty, one known and one not: what a third would be like is open,
    however many questions there were.
    """
    found, _ = judged(("Paris.", 0.9), ("Madrid.", 0.3), ("Zorbia.", 0.2))
    known, unknown = found[0], found[2]
    assert cluster_of(known.pair) != cluster_of(unknown.pair)
    many = [known] * 50 + [unknown] * 50
    row = shares_of_set(many)
    assert (row["questions"], row["clusters"]) == (100, 2)
    assert row["right"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert shares(many)["right"]["low"] > 0.4


def test_what_a_question_stands_or_falls_with():
    hopeless = Pair("What will I eat?", "I don't know.", "future", False, "future/What")
    assert cluster_of(hopeless) == "future/What"
    assert cluster_of(FRANCE) == cluster_of(SPAIN) == FRANCE.group.split("/")[0]


def test_a_gate_turns_doubtful_answers_into_refusals():
    found, _ = judged(("Paris.", 0.9), ("Madrid.", 0.3), ("Zorbia.", 0.2))
    after = through(Gate("margin", 0.25), found)
    assert [(one.right, one.refused) for one in after] == [
        (True, False),
        (True, False),
        (True, True),  # the invention is held back
    ]
    strict = through(Gate("margin", 0.5), found)
    assert [one.right for one in strict] == [True, False, True]
    # a refusal stays one, however unsure
    refusal, _ = judged(("Paris.", 0.9), ("I don't know.", 0.1), ("I don't know.", 0.1))
    assert through(Gate("margin", 0.5), refusal) == refusal


def test_the_gate_is_set_by_given_answers_alone():
    found, _ = judged(("Paris.", 0.9), ("Madrid.", 0.7), ("Zorbia.", 0.8))
    # a refusal that was right, and the least sure of all: it is no answer
    refusal = found[2]._replace(refused=True, right=True, margin=0.1)
    many = [*found, refusal]
    assert calibrate(many, "margin") == Gate("margin", 0.7)
    # the one of two that is given up takes with it the invention of 0.8
    assert calibrate(many, "margin", give_up=0.5) == Gate("margin", 0.9)
    by_largest = calibrate(many, "max_softmax", give_up=0.5)
    assert by_largest == Gate("max_softmax", pytest.approx(0.95))


def test_confidence_that_knows_and_the_control_that_cannot():
    found, _ = judged(("Paris.", 0.9), ("Madrid.", 0.7), ("Zorbia.", 0.2))
    many = [
        one._replace(margin=one.margin + i / 1e4) for i in range(100) for one in found
    ]
    assert knows_when_it_is_right(many, "margin").value == 1.0
    control = knows_when_it_is_right(many, "margin", shuffled=1)
    assert control.low <= 0.5 <= control.high and control.high < 0.65
    assert curve(many, "margin")["risk"][0] == 0
    assert curve(many, "margin")["risk"][-1] == pytest.approx(1 / 3)


def test_the_interval_is_that_of_whole_clusters():
    """In each of ten groups of ten all is right or all wrong: ten tosses, no hundred."""
    many = [
        Judged(Pair("?", "Yes.", "kind", True, f"{g}/fact"), "", g % 2 > 0, False, m, m)
        for g in range(10)
        for m in [(0.9 if g % 4 < 2 else 0.3) + i / 1e4 for i in range(10)]
    ]
    found = knows_when_it_is_right(many, "margin")
    alone = [
        one._replace(pair=one.pair._replace(group=f"{i}/x"))
        for i, one in enumerate(many)
    ]
    single = knows_when_it_is_right(alone, "margin")
    assert found.value == single.value
    assert found.high - found.low > 2 * (single.high - single.low)


@pytest.mark.parametrize("given", [3, 50, 99, 125, 1037])
def test_the_thinned_curve_ends_where_all_answers_are_given(given):
    pair = Pair("Is it?", "Yes.", "small talk", True, "group")
    judged = [
        Judged(pair, "Yes.", number % 4 > 0, False, number / given, 0.5)
        for number in range(given)
    ]
    found = curve(judged, "margin", points=50)
    assert found["coverage"][-1] == 1
    assert found["risk"][-1] == sum(not one.right for one in judged) / given
    assert len(found["coverage"]) == len(found["risk"]) <= 50
