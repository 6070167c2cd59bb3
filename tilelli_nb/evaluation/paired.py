"""How sure a difference is that was measured a few times: Student's interval, and an
exact test that assumes nothing about the shape of the noise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import EvaluationError
from .statistics import Interval

MOST_PAIRS = 20  # two to the power of this many signs are tried, all of them
# nodes of the integral below: more would change nothing before the twelfth place
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


class Difference(NamedTuple):
    """What one arm has more than another, over the seeds that both were run with."""

    n: int  # pairs
    mean: float
    low: float  # 95% interval of the mean
    high: float
    p_t: float  # paired t test, two-sided
    p_sign: float  # exact sign-flip test, two-sided


def t_within(t: float, df: int) -> float:
    """The chance that Student's t with `df` degrees of freedom lies within -t and t.

    With t = sqrt(df) tan(angle) the density becomes a power of the cosine, and the
    integral one over a bounded range, which is done by quadrature. Source: Student
    1908. Raises EvaluationError for less than one degree of freedom.
    """
    if df < 1:
        raise EvaluationError(
            f"Student's t with {df} degrees of freedom", "measure at least twice"
        )
    end = math.atan(abs(t) / math.sqrt(df))
    angles = end * (NODES + 1) / 2  # from (-1, 1) to (0, end)
    integral = end / 2 * float(WEIGHTS @ np.cos(angles) ** (df - 1))
    scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2)
    return 2 * math.exp(scale) / math.sqrt(math.pi) * integral


def t_bound(df: int, inside: float = 0.95) -> float:
    """The t within which `inside` of Student's distribution lies: 2.776 for 4 degrees
    of freedom and 95%.
    """
    low, high = 0.0, 1.0
    while t_within(high, df) < inside:
        high *= 2
    for _ in range(80):  # halve the range until nothing is left of it
        middle = (low + high) / 2
        if t_within(middle, df) < inside:
            low = middle
        else:
            high = middle
    return high


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of some measurements (n,) and its 95% interval by Student's t.

    Raises EvaluationError for fewer than two: one says nothing about its own noise.
    """
    found = np.asarray(values, float)
    if len(found) < 2:
        raise EvaluationError(
            f"{len(found)} measurements have no interval", "measure at least twice"
        )
    mean = float(found.mean())
    half = t_bound(len(found) - 1) * float(found.std(ddof=1)) / math.sqrt(len(found))
    return Interval(mean, mean - half, mean + half)


def paired_t(differences: Sequence[float]) -> float:
    """The two-sided p of the paired t test: how often chance alone would give a mean
    at least this far from 0. Differences (n,) that are all the same but not 0 give 0.
    """
    found = np.asarray(differences, float)
    spread = float(found.std(ddof=1)) / math.sqrt(len(found))
    if spread == 0:
        return 1.0 if found.mean() == 0 else 0.0
    # of a large t the rest of 1 is rounding, and may be negative
    return max(0.0, 1 - t_within(float(found.mean()) / spread, len(found) - 1))


def sign_flips(differences: Sequence[float]) -> float:
    """The two-sided p of the exact sign-flip test: the share of all 2^n ways to put
    signs before the differences (n,) whose sum is at least as far from 0.

    If the two arms are the same, a difference is as likely positive as negative. With
    n pairs no p below 2 / 2^n can come out. Source: Fisher 1935, section 21. Raises
    EvaluationError for none, or more pairs than can be tried.
    """
    found = np.asarray(differences, float)
    n = len(found)
    if not 1 <= n <= MOST_PAIRS:
        raise EvaluationError(
            f"{n} pairs for an exact test", f"give it 1 to {MOST_PAIRS}"
        )
    ways = np.arange(2**n)[:, None] >> np.arange(n) & 1  # (2^n, n) of 0 and 1
    sums = np.abs((1 - 2 * ways) @ found)
    # a sum in another order may differ in its last bit
    as_far = sums >= abs(found.sum()) - 1e-12 * np.abs(found).sum()
    return float(as_far.mean())


def compare(values: Sequence[float], against: Sequence[float]) -> Difference:
    """values minus against, (n,) each, in pairs of the same seed.

    Raises EvaluationError where they are no pairs, or fewer than two.
    """
    if len(values) != len(against):
        raise EvaluationError(
            f"{len(values)} values against {len(against)}", "pair them by their seeds"
        )
    differences = np.asarray(values, float) - np.asarray(against, float)
    mean, low, high = mean_interval(differences)
    p_t, p_sign = paired_t(differences), sign_flips(differences)
    return Difference(len(differences), mean, low, high, p_t, p_sign)
