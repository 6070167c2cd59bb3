"""Does the router know what the model does not know? The rule that decides, written
down before the first run.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import EvaluationError
from .statistics import Interval, auroc, bootstrap

IN_DOMAIN = "in_domain"
REGIMES = (
    IN_DOMAIN,
    "off_topic",
    "off_style",
    "misleading",
    "long_input",
    "neo",  # near-miss factuals
    "gibberish",
)
HARD = ("gibberish", "misleading", "neo")  # one of these must be among those won
ROUTER_SIGNALS = ("router_conf", "router_entropy_variance")
BASELINES = ("max_softmax_last", "max_softmax_mean", "neg_abstain_p")
MARGIN = 0.02  # of AUROC
RESAMPLES = 1000
LEAST_CASES = 3  # of each class
LEAST_WINS = 4  # of the seven regimes
# AUROCs are fractions; a difference of exactly 0.02 may come out as 0.0199999999999999
ROUNDING = 1e-9


class Cases(NamedTuple):
    """The prompts of one regime: whether each got the right reply (n,), and all signals
    that were measured on it, by name, (n,) each.
    """

    right: Sequence[bool]
    signals: Mapping[str, Sequence[float]]


class Contest(NamedTuple):
    """A router signal against the best baseline of a regime. Where the AUROC is
    undefined all is None, and nothing is won.
    """

    auroc: float | None
    baseline: str | None  # the name of the best one
    baseline_auroc: float | None
    difference: Interval | None
    won: bool


class Verdict(NamedTuple):
    """What the rule says, and what it says it from."""

    holds: bool
    won: dict[str, tuple[str, ...]]  # router signal -> the regimes that it wins
    contests: dict[str, dict[str, Contest]]  # router signal -> regime -> contest
    beside: dict[str, dict[str, float | None]]  # any signal -> regime -> AUROC


def verdict(regimes: Mapping[str, Cases], seed: int = 0) -> Verdict:
    """Decides whether the router knows, by a rule that was fixed before any run.

    The hypothesis: the router's entropy is high where the model does not know. 210
    prompts in seven regimes (in-domain chat, off-topic, off-style, misleading, long
    input, near-miss factuals, gibberish) each get a reply, right or wrong; for a prompt
    without an answer the right reply is a refusal.

    1. The measure is the AUROC inside a regime: the chance that a prompt whose reply
       was right has a higher value of the signal than one whose reply was wrong. With
       fewer than 3 of either class it is undefined.
    2. The router signals are router_conf, 1 - H / ln 3, and the variance of H over the
       bytes. Each counts in the one direction that was fixed beforehand, higher is
       surer; an AUROC far below 0.5 is no win.
    3. The baselines are the largest softmax probability (at the last byte, and the mean
       over all) and the abstain head's probability, with a minus sign so that higher is
       surer here too. The best one of a regime is that with the highest AUROC in it,
       the first listed among equals.
    4. A router signal wins a regime if its AUROC is at least the best baseline's + 0.02
       and the 95% interval of the difference, from 1000 bootstrap samples, lies above
       0. The bootstrap is paired: a resample of prompts serves both, against the
       baseline that is best in the whole regime; one that has lost a class is drawn
       again. What is undefined is not won.
    5. The hypothesis holds if one router signal wins at least 4 of the 7 regimes, at
       least one of them among gibberish, misleading and near-miss factuals.

    Margin, output entropy and the controls take no part: the AUROCs of everything that
    was measured are reported beside.

    Raises EvaluationError when a regime, a router signal or a baseline is missing, for
    a regime of another name, for columns of unequal length, and for a value that is no
    number.
    """
    check(regimes)
    contests = {
        name: {
            regime: contest(
                regimes[regime].right,
                regimes[regime].signals[name],
                {b: regimes[regime].signals[b] for b in BASELINES},
                seed,
            )
            for regime in REGIMES
        }
        for name in ROUTER_SIGNALS
    }
    won = {
        name: tuple(regime for regime in REGIMES if found[regime].won)
        for name, found in contests.items()
    }
    beside: dict[str, dict[str, float | None]] = {}
    for regime in REGIMES:
        right, signals = regimes[regime]
        for name, values in signals.items():
            value = auroc(values, right) if is_defined(right) else None
            beside.setdefault(name, {})[regime] = value
    return Verdict(any(map(is_enough, won.values())), won, contests, beside)


def contest(
    right: Sequence[bool],
    signal: Sequence[float],
    baselines: Mapping[str, Sequence[float]],
    seed: int = 0,
) -> Contest:
    """One signal against the best of some baselines in one regime, all (n,): points 1
    to 4 of the rule.
    """
    if not is_defined(right):
        return Contest(None, None, None, None, False)
    # max takes the first of equals
    best = max(baselines, key=lambda name: auroc(baselines[name], right))
    difference = bootstrap(
        lead, signal, baselines[best], right, resamples=RESAMPLES, seed=seed
    )
    won = difference.value >= MARGIN - ROUNDING and difference.low > 0
    own, rival = auroc(signal, right), auroc(baselines[best], right)
    return Contest(own, best, rival, difference, won)


def lead(signal: np.ndarray, baseline: np.ndarray, right: np.ndarray) -> float:
    """By how much the signal's AUROC is above the baseline's, on the same prompts."""
    return auroc(signal, right) - auroc(baseline, right)


def is_defined(right: Sequence[bool]) -> bool:
    """Whether there are at least 3 right and 3 wrong replies."""
    rights = int(np.sum(right))
    return min(rights, len(right) - rights) >= LEAST_CASES


def is_enough(won: Sequence[str]) -> bool:
    """Whether these regimes are enough for the hypothesis: point 5 of the rule."""
    return len(won) >= LEAST_WINS and any(regime in HARD for regime in won)


def check(regimes: Mapping[str, Cases]) -> None:
    """Raises EvaluationError where the rule cannot be applied as it was written."""
    if set(regimes) != set(REGIMES):
        raise EvaluationError(
            f"the regimes are {', '.join(regimes) or 'none'}",
            f"measure these seven and no others: {', '.join(REGIMES)}",
        )
    for regime, (right, signals) in regimes.items():
        missing = [n for n in (*ROUTER_SIGNALS, *BASELINES) if n not in signals]
        if missing:
            raise EvaluationError(
                f"{regime} lacks {', '.join(missing)}",
                "measure it too: the rule was written with all of them",
            )
        for name, values in signals.items():
            if len(values) != len(right):
                raise EvaluationError(
                    f"{len(values)} values of {name} for {len(right)} prompts "
                    f"of {regime}",
                    "measure each signal once on each prompt",
                )
            if not np.isfinite(np.asarray(values, float)).all():
                raise EvaluationError(
                    f"{name} has a value in {regime} that is no number",
                    "look at the prompt it comes from: no AUROC can rank it",
                )


def cross_regime(
    regimes: Mapping[str, Cases], signal: str, seed: int = 0
) -> dict[str, Interval]:
    """The other measure, that of the published 0.50, 0.76 and 0.54: how well a signal
    tells a regime from in-domain chat, whatever the replies were.

    For each regime but in-domain: the chance that an in-domain prompt has the higher
    value, with its 95% interval. It takes no part in the rule: a detector of the format
    or the length can win it and know nothing.
    """
    at_home = np.asarray(regimes[IN_DOMAIN].signals[signal], float)
    found = {}
    for regime, cases in regimes.items():
        if regime == IN_DOMAIN:
            continue
        abroad = np.asarray(cases.signals[signal], float)
        is_at_home = np.repeat([True, False], [len(at_home), len(abroad)])
        values = np.concatenate([at_home, abroad])
        found[regime] = bootstrap(
            auroc, values, is_at_home, resamples=RESAMPLES, seed=seed
        )
    return found
