"""Every claim of book/claims.yml: its keys, its chapter, its pointer, and the verdict
that its own rule gives.
"""

import hashlib
import json

import pytest

import claims
from pairs import ROOT
from tilelli_nb.evaluation.claims import (
    VERDICTS,
    at_least,
    at_most,
    covers,
    follow,
    load_claims,
    within,
)

CLAIMS = load_claims()
NAMES = [claim["id"] for claim in CLAIMS]


@pytest.mark.parametrize("claim", CLAIMS, ids=NAMES)
def test_the_verdict_is_the_one_that_the_rule_gives(claim):
    assert claims.problems(claim) == []


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES) > 0


@pytest.mark.parametrize("claim", CLAIMS, ids=NAMES)
def test_every_key_is_known_and_a_claim_says_something(claim):
    assert (
        set(claim) == set(claims.KEYS)
        and len(claim["claim"].split()) > 5
        and claim["unit"]
    )
    assert claim["published"] is None or type(claim["published"]) in (int, float)


@pytest.mark.parametrize("claim", CLAIMS, ids=NAMES)
def test_the_evidence_is_about_the_weights_that_are_bundled(claim):
    """A record that names a bundled model must have measured the weights that the book
    ships now.
    """
    pointer = claim["ours"] or {}
    if not pointer.get("file", "").endswith(".json"):
        pytest.skip("no record of measured values")
    results = json.loads(
        (ROOT / "book" / "runs" / pointer["run"] / pointer["file"]).read_text()
    )
    if "model" not in results:
        pytest.skip("a study: it trained models of its own")
    weights = (
        ROOT
        / "tilelli_nb"
        / "weights"
        / results["model"].removeprefix("tilelli/")
        / "model.safetensors"
    )
    assert (
        results["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    ), (
        "the bundled weights are newer than the record: measure again (router_claim.py "
        "--write, judge_chat.py, tilelli eval all)"
    )


# --- the rules, at their edges ---


@pytest.mark.parametrize(
    "ours, verdict",
    [(98, "confirmed"), (102, "confirmed"), (97.9, "refuted"), (200, "refuted")],
)
def test_within(ours, verdict):
    assert within(ours, 100, 0.02) == verdict


@pytest.mark.parametrize(
    "ours, verdict", [(0.1, "confirmed"), (3, "confirmed"), (3.01, "refuted")]
)
def test_at_most(ours, verdict):
    assert at_most(ours, 2, 0.5) == verdict


@pytest.mark.parametrize(
    "ours, verdict",
    [
        ({"low": 0.5, "high": 0.6}, "confirmed"),
        ({"low": 0.56, "high": 0.6}, "confirmed"),  # 0.54, give or take 0.02
        ({"low": 0.561, "high": 0.6}, "not shown"),
        ({"low": 0.4, "high": 0.519}, "not shown"),
        (0.55, "confirmed"),
        (0.57, "not shown"),
    ],
)
def test_covers(ours, verdict):
    assert covers(ours, 0.54, 0.02000001) == verdict


@pytest.mark.parametrize(
    "low, high, verdict, of_a_published_number",
    [
        (0.1, 0.2, "confirmed", "confirmed"),
        (0.11, 0.2, "confirmed", "confirmed"),
        (0.0, 0.2, "not shown", "not shown"),
        (-0.2, 0.0999, "not shown", "refuted"),
        (-0.2, 0.1, "not shown", "not shown"),
    ],
)
def test_at_least(low, high, verdict, of_a_published_number):
    ours = {"low": low, "high": high}
    assert at_least(ours, None, 0.1) == verdict
    assert at_least(ours, 0.3, 0.1) == of_a_published_number
    does_not_apply = ours | {"applies": False}
    assert at_least(does_not_apply, None, 0.1) == "not tested"


# --- the checks find what they are for ---

GOOD = {
    "id": "heavy",
    "claim": "it weighs five",
    "source": "someone2026",
    "published": 5,
    "unit": "kg",
    "ours": {"run": "scales", "key": "seen.0.kg"},
    "rule": "within",
    "tolerance": 0.1,
    "verdict": "confirmed",
    "chapter": "01_scales",
}


@pytest.fixture
def shelf(tmp_path):
    """A book of one record and one chapter."""
    (tmp_path / "book" / "runs" / "scales").mkdir(parents=True)
    (tmp_path / "book" / "runs" / "scales" / "run.json").write_text(
        '{"seen": [{"kg": 5.2}]}'
    )
    (tmp_path / "book" / "01_scales.md").write_text("# Scales")
    (tmp_path / "book" / "references.bib").write_text("@misc{someone2026,\n}")
    return tmp_path


def test_a_claim_in_order_has_no_problems(shelf):
    assert claims.problems(GOOD, shelf) == []
    assert claims.problems(GOOD | {"ours": None, "verdict": "not tested"}, shelf) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"verdict": "refuted"}, "its rule gives 'confirmed'"),
        ({"published": 6}, "its rule gives 'refuted'"),
        ({"tolerance": 0.01}, "its rule gives 'refuted'"),
        ({"ours": None}, "its rule gives 'not tested'"),
        ({"ours": {"run": "scales", "key": "seen.0.lb"}}, "cannot be followed"),
        ({"ours": {"run": "scales", "key": "seen.7.kg"}}, "cannot be followed"),
        (
            {"ours": {"run": "scale", "key": "seen"}},
            "there is no scale/run.json among the records",
        ),
        ({"rule": "at_least"}, "cannot be followed"),
        ({"rule": "feels_right"}, "the rule 'feels_right' is none of"),
        ({"verdict": "probably"}, "'probably' is none of"),
        ({"chapter": "02_missing"}, "there is no chapter book/02_missing.md"),
        ({"source": "nobody1900"}, "does not have its source nobody1900"),
    ],
    ids=str,
)
def test_what_is_wrong_is_found(shelf, change, said):
    assert said in " ".join(claims.problems(GOOD | change, shelf))


def test_missing_keys_are_named(shelf):
    assert claims.problems({"id": "heavy"}, shelf) == [
        "heavy: it has no claim, source, published, unit, ours, rule, "
        "tolerance, verdict, chapter"
    ]


def test_the_size_of_a_configuration_is_counted():
    assert follow({"config": "lite_10m", "key": "parameters"}) == 10_050_816


def test_a_verdict_is_written_without_touching_anything_else(tmp_path):
    file = tmp_path / "claims.yml"
    before = claims.FILE.read_text(encoding="utf-8")
    file.write_text(before, encoding="utf-8")
    name, old = CLAIMS[1]["id"], CLAIMS[1]["verdict"]
    new = next(verdict for verdict in VERDICTS if verdict != old)
    assert claims.write_verdict(name, new, file)
    assert [c["verdict"] for c in load_claims(file)] == [
        new if c["id"] == name else c["verdict"] for c in CLAIMS
    ]
    assert (
        claims.write_verdict(name, old, file)
        and file.read_text(encoding="utf-8") == before
    )
    assert not claims.write_verdict(name, old, file)
    with pytest.raises(KeyError, match="0 claims called 'heavier'"):
        claims.write_verdict("heavier", new, file)
