"""The measures of chapters 11 and 12, against values worked out by hand and against
scikit-learn.
"""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import precision_recall_curve, roc_auc_score

from tilelli_nb.errors import EvaluationError
from tilelli_nb.evaluation.statistics import (
    auroc,
    bootstrap,
    risk_coverage,
    share,
    share_interval,
    threshold_at,
)


def test_auroc_by_hand_with_ties():
    # pairs (positive, negative): (3,1) won, (3,2) won, (2,1) won, (2,2) tied
    assert auroc([3, 2, 1, 2], [True, True, False, False]) == 3.5 / 4
    assert auroc([1, 2], [True, False]) == 0.0
    assert auroc([5, 5, 5], [True, False, True]) == 0.5


@pytest.mark.parametrize("seed", range(20))
def test_auroc_is_scikit_learns(seed):
    dice = np.random.default_rng(seed)
    n = int(dice.integers(2, 200))
    scores = dice.integers(0, 12, n) / 7  # many ties
    positive = dice.random(n) < dice.random()
    positive[:2] = True, False
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


@pytest.mark.parametrize("positive", [[True, True], [False, False], []])
def test_auroc_of_one_class_is_undefined(positive):
    with pytest.raises(EvaluationError, match="no order"):
        auroc([0.5] * len(positive), positive)


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Of a share of 0.3 in samples of 100: 95% of the intervals, give or take what 200
    repetitions can tell.
    """
    dice = np.random.default_rng(7)
    held = 0
    for repetition in range(200):
        sample = dice.random(100) < 0.3
        found = bootstrap(share, sample, resamples=200, seed=repetition)
        assert found.value == sample.mean()
        held += found.low <= 0.3 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_an_interval_has_the_width_of_theory():
    sample = np.arange(400) < 100  # a share of a quarter
    found = bootstrap(share, sample, resamples=4000)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert found.low == pytest.approx(0.25 - half, abs=0.006)
    assert found.high == pytest.approx(0.25 + half, abs=0.006)
    assert bootstrap(share, sample) == bootstrap(share, sample)
    assert bootstrap(share, sample) != bootstrap(share, sample, seed=1)


def columns_of(measure):
    """Data for a measure: a mean far to one side, or an order with many ties."""
    dice = np.random.default_rng(3)
    if measure is np.mean:
        return [dice.exponential(size=60) ** 2]
    positive = np.arange(90) % 3 == 0
    return [dice.integers(0, 6, 90) + 2 * positive, positive]


@pytest.mark.parametrize("measure", [np.mean, auroc])
def test_an_interval_is_scipys(measure):
    """Two draws of 4,000 resamples each. The 2.5% point of n values of a normal
    distribution has a standard error of sqrt(0.025 * 0.975 / n) / 0.0584 standard
    deviations, 0.0584 being its density there: 0.042. The difference of two has 0.06,
    and 0.24 are four of those. The ends of a 90% interval would be 0.31 away.
    """
    columns = columns_of(measure)
    ours = bootstrap(measure, *columns, resamples=4000)
    theirs = stats.bootstrap(
        columns,
        measure,
        n_resamples=4000,
        vectorized=False,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    low, high = theirs.confidence_interval
    near = 0.24 * theirs.standard_error
    assert ours.value == measure(*columns)
    assert ours.low == pytest.approx(low, abs=near)
    assert ours.high == pytest.approx(high, abs=near)


def test_columns_are_drawn_together():
    """Rows stay rows: scores that are the outcomes keep their perfect order."""
    positive = np.arange(30) % 3 == 0
    found = bootstrap(auroc, positive.astype(float), positive, resamples=100)
    assert found == (1.0, 1.0, 1.0)


def test_a_resample_without_one_class_is_drawn_again():
    positive = np.array([True, False, False, False])
    found = bootstrap(auroc, [4.0, 1.0, 2.0, 3.0], positive, resamples=50)
    assert found == (1.0, 1.0, 1.0)


def test_risk_and_coverage_by_hand():
    # surest first: right, wrong, right, wrong
    curve = risk_coverage([0.9, 0.6, 0.8, 0.1], [True, True, False, False])
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == [0, 1 / 2, 1 / 3, 2 / 4]
    assert curve.threshold.tolist() == [0.9, 0.8, 0.6, 0.1]
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_among_ties_nobody_can_choose():
    # one sure and right; two tied, of which one is wrong: half a mistake each
    curve = risk_coverage([0.9, 0.5, 0.5], [True, False, True])
    assert curve.risk.tolist() == [0, 0.5 / 2, 1 / 3]
    other = risk_coverage([0.5, 0.5, 0.9], [True, False, True])
    assert other.risk.tolist() == curve.risk.tolist()
    level = risk_coverage([0.5] * 4, [True, False, False, False])
    assert level.risk.tolist() == [0.75] * 4
    # three tied first, one of them wrong: a third each; then two, both wrong
    curve = risk_coverage([0.3, 0.8, 0.8, 0.3, 0.8], [False, True, False, False, True])
    assert curve.coverage.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert curve.threshold.tolist() == [0.8, 0.8, 0.8, 0.3, 0.3]
    assert curve.risk == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 4, 3 / 5])
    assert curve.area == pytest.approx(2.1 / 5)


@pytest.mark.parametrize("seed", range(20))
def test_risk_and_coverage_are_scikit_learns(seed):
    """One minus its precision, where all that is at or above a threshold is answered:
    for us that is the last one of each tie.
    """
    dice = np.random.default_rng(seed)
    n = int(dice.integers(2, 200))
    confidence = dice.integers(0, 12, n) / 7  # many ties
    right = dice.random(n) < dice.random()
    right[0] = True  # without one, its recall is undefined
    found = risk_coverage(confidence, right)
    precision, _, thresholds = precision_recall_curve(right, confidence)
    assert set(thresholds) == set(found.threshold)
    last = [np.flatnonzero(found.threshold == level)[-1] for level in thresholds]
    # its own last point is of no answers at all
    assert found.risk[last] == pytest.approx(1 - precision[:-1])
    answered = [np.mean(confidence >= level) for level in thresholds]
    assert found.coverage[last] == pytest.approx(answered)


def test_confidence_without_knowledge_leaves_the_risk_as_it_is():
    dice = np.random.default_rng(0)
    right = dice.random(4000) < 0.6
    curve = risk_coverage(dice.random(4000), right)
    assert curve.area == pytest.approx(1 - right.mean(), abs=0.03)
    perfect = risk_coverage(right.astype(float), right)
    assert perfect.risk[: right.sum()].max() == 0


def test_no_answers_have_no_curve():
    with pytest.raises(EvaluationError):
        risk_coverage([], [])
    with pytest.raises(EvaluationError):
        share([])


def test_the_threshold_by_hand():
    # right with 0.9, 0.7, 0.4 and 0.3, wrong with 0.8 and 0.35
    confidence = [0.9, 0.8, 0.7, 0.4, 0.35, 0.3]
    right = [True, False, True, True, False, True]
    # for nothing, it is that of the least sure right answer: no wrong one is below it
    assert threshold_at(confidence, right, 0) == 0.3
    # for a quarter, one of four: the wrong answer of 0.35 is held back with it
    assert threshold_at(confidence, right, 0.25) == 0.4
    assert threshold_at(confidence, right, 0.49) == 0.4
    assert threshold_at(confidence, right, 0.5) == 0.7


def test_equal_confidences_are_given_or_held_back_together():
    assert threshold_at([0.5, 0.5, 0.5, 0.9], [True] * 4, 0.25) == 0.5


def test_the_share_is_counted_exactly():
    """In floats 0.29 * 100 is 28.999999999999996."""
    assert threshold_at(range(100), [True] * 100, 0.29) == 29


@pytest.mark.parametrize("give_up", [-0.1, 1, float("nan")])
def test_a_threshold_needs_a_share(give_up):
    with pytest.raises(EvaluationError, match="give_up"):
        threshold_at([0.1, 0.2], [True, True], give_up)


def test_a_threshold_needs_a_right_answer():
    with pytest.raises(EvaluationError, match="no answer was right"):
        threshold_at([0.1, 0.2], [False, False], 0.01)


@pytest.mark.parametrize("right, of", [(0, 2), (24, 24), (3, 7), (446, 1000)])
def test_the_interval_of_a_share_is_wilsons(right, of):
    found = share_interval([True] * right + [False] * (of - right))
    theirs = stats.binomtest(right, of).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((right / of, theirs.low, theirs.high), abs=1e-6)


def test_clusters_are_drawn_as_a_whole():
    outcomes = [True, True, True, False]
    # one cluster is all there is: every resample is the same
    assert bootstrap(share, outcomes, clusters="aaaa") == (0.75, 0.75, 0.75)
    alone = bootstrap(share, outcomes, clusters="abcd")
    assert alone == bootstrap(share, outcomes)
    # two of two: both halves, or the one, or the other: 1, 1/2, 3/4
    found = bootstrap(share, outcomes, clusters="aabb")
    assert found == (0.75, 0.5, 1.0)
