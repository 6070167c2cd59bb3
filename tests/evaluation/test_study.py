"""A study: its controls where they must be, its record, and that it can be resumed."""

import json
import random
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny

from tilelli_nb.errors import EvaluationError
from tilelli_nb.evaluation import rule, study, teaching
from tilelli_nb.evaluation.abstain import AbstainHead
from tilelli_nb.evaluation.experiments import load_experiment
from tilelli_nb.evaluation.lessons import make_lessons
from tilelli_nb.evaluation.probes import load_probes
from tilelli_nb.evaluation.study import (
    ALL,
    FRAMED,
    RAW,
    Measured,
    Study,
    against_home,
    cross,
    loops,
    measure_all,
    over_seeds,
    shuffled,
    within,
)
from tilelli_nb.evaluation.teaching import Variant, Workshop
from tilelli_nb.inference.chatting import Reply, Spoken

TEXT = b"Once upon a time there was a fox who lived in a wood. " * 40


# ---- by hand


def said(text, ended=True):
    """A reply of these words."""
    spoken = [Spoken(byte, 1.0, 0.0) for byte in text.encode()]
    return Reply(text, spoken + [Spoken(0, 1.0, 0.0)] * ended)


@pytest.mark.parametrize(
    "reply, is_loop",
    [
        (said("Paris."), False),
        (said("Paris.", ended=False), True),
        (said("a fox and a fox and a fox and on"), True),
        (said("a fox and a fox"), False),  # twice is no loop
        (said("hahaha"), True),
        (said("1000"), False),  # one letter three times is none
        (said(""), False),
        (Reply("", []), True),  # nothing was said, and it did not end
    ],
)
def test_what_a_loop_is(reply, is_loop):
    assert loops(reply) == is_loop


def test_seeds_are_put_together():
    rows = [
        {"a": {"value": 0.5, "low": 0.4, "high": 0.6}, "b": 1.0, "c": None},
        {"a": {"value": 0.7, "low": 0.3, "high": 0.9}, "b": 0.0, "c": None},
    ]
    assert over_seeds(rows) == {
        "a": {"value": 0.6, "low": 0.3, "high": 0.9},
        "b": {"value": 0.5, "low": 0.0, "high": 1.0},
        "c": None,
    }
    rows[1]["a"] = None  # undefined for one seed: undefined
    assert over_seeds(rows)["a"] is None


def test_shuffled_labels_come_to_a_half():
    """Also where the order is perfect. For 30 against 30 the standard deviation of a
    random AUROC is sqrt(61 / (12 * 30 * 30)) = 0.0752, so 95% lie within 0.147.
    """
    found = shuffled(range(60), [n >= 30 for n in range(60)])
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert found.low == pytest.approx(0.5 - 0.147, abs=0.02)
    assert found.high == pytest.approx(0.5 + 0.147, abs=0.02)


# ---- the controls, on a model that knows nothing


@pytest.fixture(scope="module")
def blind():
    """The real probes through a small model, with outcomes that a coin decided."""
    lm = tiny(dtype=torch.float32)
    dice = random.Random(1)
    right = [dice.random() < 0.5 for _ in load_probes()]
    return measure_all(Variant(lm, AbstainHead(24)), load_probes(), right, 0)


def test_a_format_detector_explains_raw_gibberish_and_not_the_matched(blind):
    in_format = {version: cross(blind, version, 0) for version in (RAW, FRAMED)}
    raw = in_format[RAW]["has_framing"]["gibberish"]
    assert raw == {"value": 1.0, "low": 1.0, "high": 1.0}
    matched = in_format[FRAMED]["has_framing"]["gibberish"]
    assert matched == {"value": 0.5, "low": 0.5, "high": 0.5}
    # in-domain prompts are asked in their format in both
    for version in (RAW, FRAMED):
        home = against_home(blind, version)[rule.IN_DOMAIN]
        assert set(home.signals["has_framing"]) == {1.0}


def test_the_length_of_gibberish_tells_nothing(blind):
    length = cross(blind, FRAMED, 0)["length"]
    assert length["gibberish"]["value"] == 0.5
    assert length["long_input"]["value"] == 0.0  # and that of a long input all


def test_a_random_router_knows_nothing_of_a_coin(blind):
    found = within(blind, FRAMED, 0)
    interval = found["random_router_conf"][ALL]
    assert interval["low"] < 0.5 < interval["high"]
    assert found["has_framing"][ALL]["value"] == 0.5


def test_what_is_undefined_is_none(blind):
    right = [False] * len(blind.right)
    cases = {
        version: {
            regime: one._replace(right=[False] * len(one.right))
            for regime, one in regimes.items()
        }
        for version, regimes in blind.cases.items()
    }
    found = within(Measured(cases, blind.columns, right), FRAMED, 0)
    assert set(found["router_conf"].values()) == {None}


def test_a_head_that_knows_is_seen_to_know(blind):
    """A made signal that follows the outcomes, in the place of the head."""
    columns = {FRAMED: dict(blind.columns[FRAMED]), RAW: blind.columns[RAW]}
    columns[FRAMED]["neg_abstain_p"] = [float(r) for r in blind.right]
    found = within(Measured(blind.cases, columns, blind.right), FRAMED, 0)
    assert found["neg_abstain_p"][ALL]["low"] == 1.0


# ---- the record


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """A small model, two steps, six probes of a regime, few resamples."""

    def short(name):
        return replace(load_experiment(name), steps=2, batch=2)

    few = []
    for regime in rule.REGIMES:
        of_it = [probe for probe in load_probes() if probe.regime == regime]
        few += of_it[:3] + of_it[-3:]
    monkeypatch.setattr(study, "load_probes", lambda: tuple(few))
    monkeypatch.setattr(study, "load_experiment", short)
    monkeypatch.setattr(study, "ASKED", 2)
    monkeypatch.setattr(rule, "RESAMPLES", 20)
    monkeypatch.setattr(teaching, "load_experiment", short)
    monkeypatch.setattr(
        teaching, "make_lessons", lambda *a: make_lessons(*a[:3], rows=20)
    )
    tiny(dtype=torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path


def carry_out(folder, out, seeds, name="v7", about=None):
    lm = tiny(dtype=torch.float32)
    one = Study(name, str(folder / "model"), folder / out)
    one.begin(lm, TEXT, about or {"source": "a fox"})
    lines = []
    one.run(Workshop(lm, TEXT), TEXT, seeds, lines.append)
    return one, lines


def without_times(results):
    """What must be the same each time."""
    seeds = [{k: v for k, v in row.items() if k != "cpu_s"} for row in results["seeds"]]
    return {**results, "seeds": seeds, "cpu_s": None}


def test_a_resumed_study_equals_an_unbroken_one(quick):
    whole, lines = carry_out(quick, "whole", 2)
    assert len(lines) == 2 and "v7 seed 0: router against in-domain" in lines[0]
    carry_out(quick, "broken", 1)
    begun = json.loads((quick / "broken" / "results.json").read_text())
    assert [row["seed"] for row in begun["seeds"]] == [0]
    broken, lines = carry_out(quick, "broken", 2)
    assert len(lines) == 1 and "seed 1" in lines[0]  # the first is not run again
    for name in ("probes.jsonl",):
        texts = [(quick / run / name).read_text() for run in ("whole", "broken")]
        assert texts[0] == texts[1] and len(texts[0].splitlines()) == 42
    found = [
        json.loads((quick / run / "results.json").read_text())
        for run in ("whole", "broken")
    ]
    assert without_times(found[0]) == without_times(found[1])
    assert found[0]["summary"]["most_regimes_won"] in range(8)
    assert found[0]["model"] == str(quick / "model")
    record = json.loads((quick / "broken" / "run.json").read_text())
    assert record["kind"] == "eval" and record["finished"]
    assert record["notes"].startswith("v7 on ")


def test_a_killed_study_goes_on_from_its_results(quick):
    """Between the two files of a record: the results are there, run.json is not."""
    carry_out(quick, "killed", 1)
    (quick / "killed" / "run.json").unlink()
    _, lines = carry_out(quick, "killed", 1)
    assert lines == []
    assert json.loads((quick / "killed" / "run.json").read_text())["finished"]


def test_what_is_finished_is_left_alone(quick):
    carry_out(quick, "done", 2, "v4")
    files = sorted((quick / "done").iterdir())
    before = [file.read_bytes() for file in files]
    _, lines = carry_out(quick, "done", 1, "v4")
    assert lines == [] and [file.read_bytes() for file in files] == before


def test_another_study_in_the_folder_is_refused(quick):
    carry_out(quick, "mine", 1, "v4")
    with pytest.raises(EvaluationError, match="its experiment is not the same"):
        carry_out(quick, "mine", 1, "v8b")
    tiny(seed=5, dtype=torch.float32).save_pretrained(quick / "model")
    with pytest.raises(EvaluationError, match="its weights_sha256 is not the same"):
        carry_out(quick, "mine", 1, "v4")


def test_another_text_to_learn_from_is_refused(quick):
    carry_out(quick, "mine", 1, "v4", {"source": "a fox", "sha256": "1"})
    carry_out(quick, "mine", 1, "v4", {"source": "a fox", "sha256": "1"})
    with pytest.raises(EvaluationError, match="mine holds a study with another text"):
        carry_out(quick, "mine", 2, "v4", {"source": "a fox", "sha256": "2"})


def test_the_record_of_another_run_is_left_alone(quick):
    (quick / "model" / "run.json").write_text('{"kind": "sft"}')
    with pytest.raises(EvaluationError, match="model holds a run that is no study"):
        carry_out(quick, "model", 1, "v4")
    assert (quick / "model" / "run.json").read_text() == '{"kind": "sft"}'


@pytest.mark.parametrize("text", ['{"experiment": ', "[1]", "3"])
def test_damaged_results_are_named(quick, text):
    (quick / "hurt").mkdir()
    (quick / "hurt" / "results.json").write_text(text)
    with pytest.raises(EvaluationError, match="hurt/results.json is not JSON"):
        carry_out(quick, "hurt", 1, "v4")


def test_a_study_of_v4_has_no_price(quick):
    one, _ = carry_out(quick, "free", 1, "v4")
    assert one.results["seeds"][0]["after"] == one.results["before"]
    assert len(one.results["seeds"][0]["blocks"]["cross"]) == 2  # of two blocks
