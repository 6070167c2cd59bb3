"""Judges a model's answers: right, refused, or wrong, and how sure it was of each."""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..chat.pairs import UNANSWERABLE, Pair, accepts, is_refusal
from ..inference.chatting import Gate
from .statistics import (
    Interval,
    auroc,
    bootstrap,
    risk_coverage,
    share,
    share_interval,
    threshold_at,
)

GIVE_UP = 0.01  # of the right answers: what a gate may cost


class Judged(NamedTuple):
    """One question, what the model said, and what that was worth."""

    pair: Pair
    said: str
    right: bool  # the answer, or where there is none a refusal
    refused: bool
    margin: float
    max_softmax: float


def judge(lm, pairs: Iterable[Pair]) -> list[Judged]:
    """Asks a model all questions at temperature 0, each with its earlier turns."""
    found = []
    for pair in pairs:
        earlier = [text for turn in pair.history for text in turn]
        reply = lm.chat([*earlier, pair.question])
        refused = is_refusal(reply.text)
        right = accepts(pair.answer, reply.text) if pair.answerable else refused
        found.append(
            Judged(pair, reply.text, right, refused, reply.margin, reply.max_softmax)
        )
    return found


def shares(judged: Sequence[Judged]) -> dict[str, Any]:
    """How many questions there are, and with 95% intervals which shares are right and
    refused. The intervals say how far other questions in the same wordings would
    differ: a wording can fail as a whole, see `shares_of_set`.
    """
    return {
        "questions": len(judged),
        "right": share_interval([one.right for one in judged])._asdict(),
        "refused": share_interval([one.refused for one in judged])._asdict(),
    }


def cluster_of(pair: Pair) -> str:
    """What a question stands or falls with: a hopeless one with its wording, any other
    with its domain, which has a few held-out wordings.
    """
    return pair.group if pair.kind in UNANSWERABLE else pair.group.split("/")[0]


def shares_of_set(judged: Sequence[Judged]) -> dict[str, Any]:
    """The same for a whole set of questions, with intervals for which whole clusters
    are drawn again.
    """
    clusters = [cluster_of(one.pair) for one in judged]
    right = bootstrap(share, [one.right for one in judged], clusters=clusters)
    refused = bootstrap(share, [one.refused for one in judged], clusters=clusters)
    return {
        "questions": len(judged),
        "clusters": len(set(clusters)),
        "right": right._asdict(),
        "refused": refused._asdict(),
    }


def by_kind(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """`shares` of each kind of question, in the order of their names."""
    kinds: dict[str, list[Judged]] = {}
    for one in judged:
        kinds.setdefault(one.pair.kind, []).append(one)
    return {kind: shares(kinds[kind]) for kind in sorted(kinds)}


def calibrate(judged: Sequence[Judged], signal: str, give_up: float = GIVE_UP) -> Gate:
    """The strictest gate that holds back at most the share `give_up` of the right
    answers. Refusals are no answers. Raises EvaluationError where nothing was right.
    """
    given = [one for one in judged if not one.refused]
    confidence = [getattr(one, signal) for one in given]
    right = [one.right for one in given]
    return Gate(signal, threshold_at(confidence, right, give_up))


def through(gate: Gate, judged: Sequence[Judged]) -> list[Judged]:
    """What the same answers are worth when the gate stands before them."""
    found = []
    for one in judged:
        if one.refused or getattr(one, gate.signal) >= gate.threshold:
            found.append(one)
            continue
        right = not one.pair.answerable
        found.append(one._replace(right=right, refused=True))
    return found


def knows_when_it_is_right(
    judged: Sequence[Judged], signal: str, shuffled: int | None = None
) -> Interval:
    """AUROC of a confidence for "the answer that was given is right", refusals left
    out. With a seed in `shuffled` the outcomes are dealt out anew: a control, which
    must come to 0.5. For the interval, whole clusters are drawn again.
    """
    given = [one for one in judged if not one.refused]
    right = [one.right for one in given]
    if shuffled is not None:
        random.Random(shuffled).shuffle(right)
    confidence = [getattr(one, signal) for one in given]
    clusters = [cluster_of(one.pair) for one in given]
    return bootstrap(auroc, confidence, right, clusters=clusters)


def curve(judged: Sequence[Judged], signal: str, points: int = 50) -> dict[str, Any]:
    """Risk against coverage of the answers that were given, thinned to at most so many
    points; the last one is where all are given.
    """
    given = [one for one in judged if not one.refused]
    found = risk_coverage(
        [getattr(one, signal) for one in given], [one.right for one in given]
    )
    step = max(1, math.ceil(len(given) / points))
    # counted from the end, so that coverage 1 is among them
    kept = slice((len(given) - 1) % step, None, step)
    return {
        "coverage": found.coverage[kept].tolist(),
        "risk": found.risk[kept].tolist(),
        "area": found.area,
    }
