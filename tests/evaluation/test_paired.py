"""Intervals and tests over seeds, held against scipy on made data, and at their edges."""

import numpy as np
import pytest
from scipy import stats

from tilelli_nb.errors import EvaluationError
from tilelli_nb.evaluation.paired import (
    compare,
    mean_interval,
    paired_t,
    sign_flips,
    t_bound,
    t_within,
)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30, 199])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.776, 8.0, 60.0])
def test_students_distribution(t, df):
    expected = stats.t.cdf(t, df) - stats.t.cdf(-t, df)
    assert t_within(t, df) == pytest.approx(expected, abs=1e-11)
    assert t_within(-t, df) == t_within(t, df)


@pytest.mark.parametrize("df", [1, 2, 4, 11, 100])
@pytest.mark.parametrize("inside", [0.5, 0.8, 0.95, 0.999])
def test_the_bound_is_the_quantile(df, inside):
    assert t_bound(df, inside) == pytest.approx(stats.t.ppf((1 + inside) / 2, df))


def made(seed, n, shift):
    dice = np.random.default_rng(seed)
    against = dice.normal(2.0, 0.05, n)
    return against + dice.normal(shift, 0.01, n), against


@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("shift", [0.0, 0.004, -0.03])
def test_a_comparison_against_scipy(n, shift):
    values, against = made(n, n, shift)
    found = compare(values, against)
    theirs = stats.ttest_rel(values, against)
    interval = theirs.confidence_interval(0.95)
    assert found.n == n and found.mean == pytest.approx((values - against).mean())
    assert found.p_t == pytest.approx(theirs.pvalue, abs=1e-10)
    assert (found.low, found.high) == pytest.approx(tuple(interval))
    exact = stats.permutation_test(
        (values, against),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert found.p_sign == pytest.approx(exact.pvalue)


def test_the_interval_of_a_mean_against_scipy():
    values, _ = made(0, 6, 0)
    theirs = stats.t.interval(0.95, 5, values.mean(), stats.sem(values))
    assert mean_interval(values)[1:] == pytest.approx(theirs)


def test_the_sign_flips_by_hand():
    # of the eight sums of +-1 +-2 +-4, 7 and -7 are as far as 7; of 5 also 5, -5, 7, -7
    assert sign_flips([1, 2, 4]) == 2 / 8
    assert sign_flips([-1, 2, 4]) == 4 / 8
    assert sign_flips([0.0, 0.0]) == 1.0


def test_two_arms_that_are_the_same_differ_in_nothing():
    found = compare([2.0, 2.1, 1.9], [2.0, 2.1, 1.9])
    assert found == (3, 0.0, 0.0, 0.0, 1.0, 1.0)
    assert paired_t([0.5, 0.5]) == 0.0
    # 0.1 three times, but for rounding: 1 less a share that comes out above 1
    assert 0 <= paired_t([0.3 - 0.2, 0.4 - 0.3, 0.5 - 0.4]) < 1e-9


def test_shuffled_labels_find_a_difference_as_rarely_as_chance_does():
    """A real difference, whose two labels are dealt out anew in each pair: p below
    0.05 must come up once in twenty times, and without the shuffle always.
    """
    dice, found = np.random.default_rng(0), []
    for seed in range(400):
        values, against = made(seed, 10, 0.03)
        assert compare(values, against).p_t < 0.05
        swap = dice.random(10) < 0.5
        first = np.where(swap, against, values)
        found.append(compare(first, np.where(swap, values, against)).p_t < 0.05)
    assert 0.02 < np.mean(found) < 0.08


def test_what_has_no_answer_is_refused():
    with pytest.raises(EvaluationError, match="1 measurements have no interval"):
        mean_interval([2.0])
    with pytest.raises(EvaluationError, match="3 values against 2"):
        compare([1, 2, 3], [1, 2])
    with pytest.raises(EvaluationError, match="with 0 degrees of freedom"):
        t_within(1.0, 0)
    for n in (0, 21):
        with pytest.raises(EvaluationError, match=f"{n} pairs for an exact test"):
            sign_flips([1.0] * n)
