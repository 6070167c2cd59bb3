"""The rule of chapter 12, on made cases whose outcome is known, against scikit-learn
and against a count of all pairs.
"""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tilelli_nb.errors import EvaluationError
from tilelli_nb.evaluation import rule
from tilelli_nb.evaluation.rule import (
    BASELINES,
    REGIMES,
    ROUTER_SIGNALS,
    Cases,
    contest,
    cross_regime,
    verdict,
)

RIGHT = np.arange(30) % 2 == 0  # 15 and 15
PERFECT = RIGHT.astype(float)
LEVEL = np.zeros(30)  # AUROC 0.5, all tied


def cases(right=RIGHT, conf=LEVEL, variance=LEVEL, baseline=LEVEL, **more):
    signals = dict.fromkeys(BASELINES, LEVEL[: len(right)])
    signals["max_softmax_mean"] = baseline
    signals |= dict(zip(ROUTER_SIGNALS, (conf, variance), strict=True))
    return Cases(right, signals | more)


def all_but(*changed, of=None, rest=None):
    """The seven regimes: `of` in those named, `rest` elsewhere."""
    return {name: (of if name in changed else rest or cases()) for name in REGIMES}


def count_pairs(scores, right):
    """The AUROC as an exact fraction, by looking at every pair."""
    won, pairs = Fraction(0), 0
    for up, is_up in zip(scores, right, strict=True):
        for down, is_down in zip(scores, right, strict=True):
            if is_up and not is_down:
                pairs += 1
                won += Fraction(int(up > down)) + Fraction(int(up == down), 2)
    return won / pairs


def test_the_rule_is_the_published_one():
    assert set(REGIMES) == {
        "in_domain",
        "off_topic",
        "off_style",
        "misleading",
        "long_input",
        "neo",
        "gibberish",
    }
    assert (rule.MARGIN, rule.RESAMPLES, rule.LEAST_CASES, rule.LEAST_WINS) == (
        0.02,
        1000,
        3,
        4,
    )
    assert set(rule.HARD) == {"gibberish", "misleading", "neo"}
    assert ROUTER_SIGNALS == ("router_conf", "router_entropy_variance")
    assert BASELINES == ("max_softmax_last", "max_softmax_mean", "neg_abstain_p")
    for word in ("0.02", "1000", "fewer than 3", "4 of the 7", "paired", "refusal"):
        assert word in verdict.__doc__


def test_a_perfect_signal_against_level_baselines_wins():
    found = contest(RIGHT, PERFECT, {"a": LEVEL})
    assert found == (1.0, "a", 0.5, (0.5, 0.5, 0.5), True)


def test_a_tie_and_a_loss():
    # the same order on another scale: never any difference
    tie = contest(RIGHT, 3 * PERFECT - 7, {"a": PERFECT})
    assert tie.difference == (0, 0, 0) and not tie.won
    loss = contest(RIGHT, LEVEL, {"a": PERFECT})
    assert loss.difference.value == -0.5 and not loss.won
    # the wrong way round is not "useful all the same"
    upside_down = contest(RIGHT, -PERFECT, {"a": LEVEL})
    assert upside_down.auroc == 0 and not upside_down.won


def test_the_best_baseline_counts_and_the_first_of_equals():
    found = contest(RIGHT, PERFECT, {"a": -PERFECT, "b": PERFECT, "c": LEVEL})
    assert found.baseline == "b" and not found.won
    found = contest(RIGHT, PERFECT, {"a": -PERFECT, "b": LEVEL, "c": LEVEL + 1})
    assert found.baseline == "b" and found.won


def two_levels(count, right=RIGHT):
    """Scores with `count` of the right ones raised to 1, all others 0: the AUROC is
    (1 + count / rights) / 2.
    """
    scores = np.zeros(len(right))
    scores[np.flatnonzero(right)[:count]] = 1
    return scores


def test_exactly_two_hundredths_are_enough_where_the_interval_says_so():
    """2,500 right replies: 2,250 raised make 0.95, 2,150 raised 0.93, and each resample
    has some of the 100 between them.
    """
    right = np.arange(2600) < 2500
    signal, baseline = two_levels(2250, right), two_levels(2150, right)
    found = contest(right, signal, {"a": baseline})
    assert found.auroc == 0.95 and found.baseline_auroc == 0.93
    # in floating point it is less: the reason for the tolerance
    assert found.auroc - found.baseline_auroc < 0.02
    assert found.difference.low > 0.01 and found.won
    fewer = contest(right, two_levels(2249, right), {"a": baseline})
    assert fewer.difference.value == pytest.approx(99 / 5000)
    assert fewer.difference.low > 0.01 and not fewer.won


def test_a_large_difference_that_may_be_chance_does_not_win():
    """One more of 15: a lead of 1/30 > 0.02, but a resample in three has none of it."""
    found = contest(RIGHT, two_levels(9), {"a": two_levels(8)})
    assert found.difference.value == pytest.approx(1 / 30)
    assert found.difference.low == 0 and not found.won


def one_class(count, n=30):
    """The first `count` replies are right."""
    return np.arange(n) < count


@pytest.mark.parametrize("rights", [0, 1, 2, 28, 29, 30])
def test_fewer_than_three_of_a_class_is_undefined_and_not_won(rights):
    right = one_class(rights)
    found = contest(right, right.astype(float), {"a": LEVEL})
    assert found == (None, None, None, None, False)


@pytest.mark.parametrize("rights", [3, 27])
def test_three_of_a_class_are_enough(rights):
    right = one_class(rights)
    found = contest(right, right.astype(float), {"a": LEVEL})
    # also where a resample in twenty has lost them and is drawn again
    assert found == (1.0, "a", 0.5, (0.5, 0.5, 0.5), True)


@pytest.mark.parametrize("seed", range(6))
def test_the_values_are_those_of_scikit_learn_and_of_all_pairs(seed):
    dice = np.random.default_rng(seed)
    right = dice.random(30) < 0.4
    right[:6] = [True, False] * 3
    names = ("a", "b", "c")
    signal, *baselines = dice.integers(0, 9, (4, 30)) / 3  # many ties
    found = contest(right, signal, dict(zip(names, baselines, strict=True)))
    skill = [roc_auc_score(right, baseline) for baseline in baselines]
    assert found.auroc == pytest.approx(roc_auc_score(right, signal))
    assert found.auroc == pytest.approx(float(count_pairs(signal, right)))
    assert found.baseline == names[int(np.argmax(skill))]
    assert found.baseline_auroc == pytest.approx(max(skill))
    assert found.difference.value == pytest.approx(found.auroc - max(skill))


def own_interval(signal, baseline, right, paired, seed):
    """The same interval by comparing all pairs, and with another generator."""

    def share_won(scores, rows):
        ups, downs = scores[rows][right[rows]], scores[rows][~right[rows]]
        return np.sign(ups[:, None] - downs).mean() / 2 + 0.5

    dice = np.random.RandomState(seed)
    found = []
    while len(found) < 1000:
        rows = dice.randint(0, len(right), len(right))
        others = rows if paired else dice.randint(0, len(right), len(right))
        if len(set(right[rows])) == 2 == len(set(right[others])):
            found.append(share_won(signal, rows) - share_won(baseline, others))
    return np.percentile(found, [2.5, 97.5])


def test_the_bootstrap_is_paired():
    """A signal that is the baseline with a little more: by pairs the lead is certain,
    without them it would drown.
    """
    dice = np.random.default_rng(5)
    baseline = dice.normal(size=60) + (np.arange(60) % 2 == 0)
    right = np.arange(60) % 2 == 0
    signal = baseline + 0.5 * right
    found = contest(right, signal, {"a": baseline}, seed=3)
    low, high = own_interval(signal, baseline, right, True, seed=1)
    assert found.difference.low == pytest.approx(low, abs=0.015)
    assert found.difference.high == pytest.approx(high, abs=0.015)
    assert found.won
    low, _ = own_interval(signal, baseline, right, False, seed=1)
    assert low < 0


WIN = cases(conf=PERFECT)


@pytest.fixture
def few_samples(monkeypatch):
    """For outcomes that no resample can change: the thousand would only take time."""
    monkeypatch.setattr(rule, "RESAMPLES", 20)


@pytest.mark.parametrize(
    "won, holds",
    [
        (("in_domain", "off_topic", "off_style", "long_input"), False),  # none hard
        (("in_domain", "off_topic", "off_style", "neo"), True),
        (("off_style", "long_input", "in_domain", "gibberish"), True),
        (("off_style", "long_input", "in_domain", "misleading"), True),
        (("gibberish", "misleading", "neo"), False),  # three
        (("gibberish", "misleading", "neo", "in_domain", "off_topic"), True),
        (REGIMES, True),
        ((), False),
    ],
)
def test_four_of_seven_and_one_of_the_hard_ones(won, holds, few_samples):
    found = verdict(all_but(*won, of=WIN))
    assert found.holds is holds
    assert set(found.won["router_conf"]) == set(won)
    assert found.won["router_entropy_variance"] == ()


def test_two_signals_do_not_add_up(few_samples):
    """Two regimes each: neither has four. One alone, whichever, is enough."""
    regimes = all_but("neo", "off_topic", of=WIN)
    regimes |= dict.fromkeys(("gibberish", "misleading"), cases(variance=PERFECT))
    found = verdict(regimes)
    assert [len(won) for won in found.won.values()] == [2, 2]
    assert not found.holds
    names = ("neo", "gibberish", "in_domain", "off_topic")
    assert verdict(all_but(*names, of=cases(variance=PERFECT))).holds


def test_an_undefined_regime_is_not_won_and_says_so(few_samples):
    few = one_class(2)
    lost = cases(few, conf=few.astype(float))
    regimes = all_but("in_domain", "off_topic", "off_style", of=WIN)
    found = verdict(regimes | {"gibberish": lost})
    assert found.contests["router_conf"]["gibberish"].auroc is None
    assert found.beside["router_conf"]["gibberish"] is None
    assert not found.holds
    enough = one_class(3)
    defined = cases(enough, conf=enough.astype(float))
    assert verdict(regimes | {"gibberish": defined}).holds


def test_margin_and_entropy_take_no_part(few_samples):
    """However good: neither as a rival nor as a winner."""
    more = {"margin_mean": PERFECT, "neg_entropy_last": PERFECT, "length": -PERFECT}
    found = verdict(all_but(rest=cases(**more)))
    assert not found.holds
    found = verdict(all_but(rest=cases(conf=PERFECT, **more)))
    assert found.holds
    assert found.beside["margin_mean"]["neo"] == 1.0
    assert found.beside["length"]["neo"] == 0.0
    assert found.beside["max_softmax_last"]["neo"] == 0.5


def test_each_baseline_is_a_rival(few_samples):
    for name in BASELINES:
        rest = cases(conf=PERFECT, **{name: PERFECT})
        found = verdict(all_but(rest=rest))
        assert not found.holds
        assert found.contests["router_conf"]["neo"].baseline == name


def test_the_same_seed_the_same_verdict(few_samples):
    dice = np.random.default_rng(0)
    noisy = cases(conf=dice.random(30), baseline=dice.random(30))
    regimes = all_but(rest=noisy)
    assert verdict(regimes) == verdict(regimes)
    low = verdict(regimes).contests["router_conf"]["neo"].difference.low
    assert low != verdict(regimes, seed=1).contests["router_conf"]["neo"].difference.low


@pytest.mark.parametrize("name", [*ROUTER_SIGNALS, *BASELINES])
def test_a_missing_signal_is_not_passed_over(name):
    regimes = all_but()
    signals = {k: v for k, v in regimes["neo"].signals.items() if k != name}
    regimes["neo"] = Cases(RIGHT, signals)
    with pytest.raises(EvaluationError, match=f"neo lacks {name}"):
        verdict(regimes)


def test_what_the_rule_cannot_be_applied_to():
    regimes = all_but()
    with pytest.raises(EvaluationError, match="these seven"):
        verdict({k: v for k, v in regimes.items() if k != "neo"})
    with pytest.raises(EvaluationError, match="these seven"):
        verdict(regimes | {"more": cases()})
    with pytest.raises(EvaluationError, match="29 values of router_conf"):
        verdict(regimes | {"neo": cases(conf=LEVEL[1:])})
    for value in (np.nan, np.inf):
        broken = LEVEL.copy()
        broken[4] = value
        with pytest.raises(EvaluationError, match="margin_last has a value in neo"):
            verdict(regimes | {"neo": cases(margin_last=broken)})


def test_cross_regime_by_hand():
    """In-domain prompts score 3 and 1, those of neo 2 and 1: (3,2) (3,1) won, (1,2)
    lost, (1,1) tied.
    """
    two = np.array([True, False])
    regimes = {name: Cases(two, {"s": [0.0, 0.0]}) for name in REGIMES}
    regimes |= {
        "in_domain": Cases(two, {"s": [3.0, 1.0]}),
        "neo": Cases(two, {"s": [2.0, 1.0]}),
    }
    found = cross_regime(regimes, "s")
    assert found["neo"].value == 2.5 / 4
    assert found["gibberish"].value == 1.0
    assert "in_domain" not in found and len(found) == 6
    # whatever the replies were
    regimes["neo"] = regimes["neo"]._replace(right=~two)
    assert cross_regime(regimes, "s")["neo"] == found["neo"]


def test_cross_regime_is_scikit_learns():
    dice = np.random.default_rng(2)
    regimes = all_but(rest=cases(conf=dice.integers(0, 5, 30)))
    regimes["in_domain"] = cases(conf=dice.integers(1, 6, 30))
    found = cross_regime(regimes, "router_conf")
    values = [regimes[name].signals["router_conf"] for name in ("in_domain", "neo")]
    labels = np.repeat([1, 0], 30)
    expected = roc_auc_score(labels, np.concatenate(values))
    assert found["neo"].value == pytest.approx(expected)
    assert found["neo"].low < expected < found["neo"].high
