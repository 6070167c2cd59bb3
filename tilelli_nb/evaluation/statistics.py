"""Three measures for scores and outcomes: how well a score tells right from wrong, what
is left when the doubtful is left out, and how sure all that is.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import EvaluationError

RESAMPLES = 1000


Z = 1.959964  # 95% of a normal distribution lie within so many standard deviations


class Interval(NamedTuple):
    """A value, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """The chance that a positive case has a higher score than a negative one; a tie
    counts half. 0.5 is no knowledge, 1.0 perfect order.

    `scores` and `positive` (n,). Raises EvaluationError without a case of each class.
    """
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    ups, downs = scores[positive], np.sort(scores[~positive])
    if len(ups) == 0 or len(downs) == 0:
        raise EvaluationError(
            f"{len(ups)} positive and {len(downs)} negative cases have no order",
            "measure at least one of each",
        )
    # of each positive score: how many negative ones are below, and how many not above
    below = np.searchsorted(downs, ups, side="left")
    not_above = np.searchsorted(downs, ups, side="right")
    wins = (below + not_above) / 2  # what lies between the two is tied
    return float(wins.sum() / (len(ups) * len(downs)))


def bootstrap(
    measure: Callable[..., float],
    *columns: Sequence,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The 95% interval of measure(*columns) when the cases (rows) are drawn again, with
    replacement. Source: Efron 1979, the percentile interval.

    Cases that stand or fall together have the same name in `clusters`: then whole
    clusters are drawn again. A resample for which the measure is undefined (an
    EvaluationError) is drawn again.
    """
    arrays = [np.asarray(column) for column in columns]
    value = measure(*arrays)
    dice = np.random.default_rng(seed)
    groups: dict[Hashable, list[int]] = {}
    for row, name in enumerate(range(len(arrays[0])) if clusters is None else clusters):
        groups.setdefault(name, []).append(row)
    members = [np.array(rows) for rows in groups.values()]
    n, found = len(members), []
    while len(found) < resamples:
        drawn = dice.integers(n, size=n)
        rows = np.concatenate([members[number] for number in drawn])
        try:
            found.append(measure(*(array[rows] for array in arrays)))
        except EvaluationError:
            continue
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def share(outcomes: Sequence[bool]) -> float:
    """The share that is true. Raises EvaluationError for none at all."""
    if len(outcomes) == 0:
        raise EvaluationError("a share of no cases", "measure at least one")
    return float(np.mean(outcomes))


def share_interval(outcomes: Sequence[bool]) -> Interval:
    """The share that is true, with its 95% interval, which has a width also where all
    outcomes are alike. Source: Wilson 1927. Raises EvaluationError for none at all.
    """
    value, n = share(outcomes), len(outcomes)
    centre = value + Z**2 / (2 * n)
    half = Z * math.sqrt(value * (1 - value) / n + Z**2 / (4 * n**2))
    low, high = ((centre + side * half) / (1 + Z**2 / n) for side in (-1, 1))
    # a share of 0 or 1 is an end itself, but for rounding
    return Interval(value, min(max(low, 0.0), value), max(min(high, 1.0), value))


class RiskCoverage(NamedTuple):
    """What happens when only the surest answers are given, for each number of them."""

    coverage: np.ndarray  # (n,) share of the questions that is answered
    risk: np.ndarray  # (n,) share of those answers that is wrong
    threshold: np.ndarray  # (n,) the least confidence among them

    @property
    def area(self) -> float:
        """The average risk over all coverages: lower is better."""
        return float(self.risk.mean())


def risk_coverage(confidence: Sequence[float], right: Sequence[bool]) -> RiskCoverage:
    """Answers the surest question first, then the next: the risk after each (n,).

    Among equal confidences nobody can choose, so each of them counts as wrong as they
    are on average. Source: El-Yaniv and Wiener 2010. Raises EvaluationError without a
    case.
    """
    confidence = np.asarray(confidence, float)
    wrong = 1.0 - np.asarray(right, float)
    if len(confidence) == 0:
        raise EvaluationError("a curve of no answers", "measure at least one")
    order = np.argsort(-confidence, kind="stable")
    confidence, wrong = confidence[order], wrong[order]
    # the average of each run of equal confidences, for all of its members
    _, tie, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = (np.bincount(tie, wrong) / sizes)[tie]
    answered = np.arange(1, len(wrong) + 1)
    return RiskCoverage(
        coverage=answered / len(wrong),
        risk=np.cumsum(wrong) / answered,
        threshold=confidence,
    )


def threshold_at(
    confidence: Sequence[float], right: Sequence[bool], give_up: float
) -> float:
    """The highest threshold that holds back at most the share `give_up` of the right
    answers: those are given whose confidence reaches it.

    Raises EvaluationError where nothing was right, or for a share that is none.
    """
    if not 0 <= give_up < 1:
        raise EvaluationError(
            f"give_up = {give_up!r}", "give a share of the right answers: 0.01, say"
        )
    sure = sorted(c for c, good in zip(confidence, right, strict=True) if good)
    if not sure:
        raise EvaluationError("no answer was right", "calibrate on right answers")
    # a little more: in floats 0.29 * 100 is less than 29
    held_back = int(give_up * len(sure) + 1e-9)
    return float(sure[held_back])
