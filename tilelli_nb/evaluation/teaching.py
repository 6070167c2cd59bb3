"""Changes a chat model as an experiment of chapter 12 says: trains the router, with or
without an abstain head, or all; or puts together parts of two models.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..chat.rows import POOL
from ..errors import EvaluationError
from ..model.network import IGNORE
from ..model.router import PATHWAYS
from .abstain import AbstainHead, fit_head
from .experiments import Experiment, load_experiment
from .lessons import Lesson, Lessons, draw, make_lessons

ROUTER = ".router."  # in the name of each weight of a router
SPLICED = ("v4", "v7", "fresh")  # what a splice takes from
HEAD_ROWS = 1_000  # of each side, for a head that is fitted afterwards
CLIP = 1.0  # largest gradient norm
NEVER_ZERO = 1e-9  # a share of 0 would have an entropy without a gradient


class Variant(NamedTuple):
    """What an experiment made: a model, and the head that stands beside it."""

    lm: nn.Module
    head: AbstainHead


class Batch(NamedTuple):
    """Rows from inside the domain, and below them rows from outside."""

    x: Tensor  # (B, T) long, padded with 0
    targets: Tensor  # (B, T) long, -100 where nothing is learned
    asked: Tensor  # (B,) bytes of the prompt
    is_outside: Tensor  # (B,) 0.0 or 1.0


def make_batch(inside: Sequence[Lesson], outside: Sequence[Lesson]) -> Batch:
    """Puts rows of different lengths into one rectangle."""
    rows = [*inside, *outside]
    is_outside = torch.zeros(len(rows))
    is_outside[len(inside) :] = 1
    pad = nn.utils.rnn.pad_sequence
    return Batch(
        pad([row.ids for row in rows], batch_first=True),
        pad([row.targets for row in rows], batch_first=True, padding_value=IGNORE),
        torch.tensor([row.asked for row in rows]),
        is_outside,
    )


# ---- losses


def entropy_loss(p: Tensor, asked: Tensor, is_outside: Tensor) -> Tensor:
    """How far the router is from being decided inside the domain and undecided outside
    of it: p (B, blocks, T, 3) -> scalar.

    The entropy, as a share of ln 3 and averaged over the prompt's bytes, should be 0
    inside and 1 outside, in every block; the mean squared distance from that. The
    published loss is not known: this form is the book's choice.
    """
    p = p.clamp(min=NEVER_ZERO)
    entropy = torch.special.entr(p).sum(-1) / math.log(len(PATHWAYS))  # (B, blocks, T)
    places = torch.arange(p.shape[2])
    is_asked = (places < asked[:, None]).to(p.dtype)[:, None]  # (B, 1, T)
    mean = (entropy * is_asked).sum(-1) / is_asked.sum(-1)  # (B, blocks)
    return (mean - is_outside[:, None]).square().mean()


def abstain_loss(head: AbstainHead, h: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the head at the last byte of each prompt: h (B, T, D)."""
    last = h[torch.arange(len(h)), batch.asked - 1]  # (B, D)
    return F.binary_cross_entropy_with_logits(head(last), batch.is_outside)


def loss_of(lm, head: AbstainHead, batch: Batch, experiment: Experiment) -> Tensor:
    """The weighted sum of the losses that the experiment has."""
    h, p = lm.hidden(batch.x)
    total = h.new_zeros(())
    if experiment.cross_entropy:
        inside = int((batch.is_outside == 0).sum())  # the first rows
        logits = lm.logits(h[:inside]).flatten(0, 1)
        targets = batch.targets[:inside].flatten()
        nats = F.cross_entropy(logits, targets, ignore_index=IGNORE)
        total = total + experiment.cross_entropy * nats
    if experiment.entropy:
        distance = entropy_loss(p, batch.asked, batch.is_outside)
        total = total + experiment.entropy * distance
    if experiment.abstain:
        total = total + experiment.abstain * abstain_loss(head, h, batch)
    return total


# ---- training


@contextmanager
def only(lm, head: AbstainHead, trains: str) -> Iterator[list[Tensor]]:
    """The weights that are trained; all others get no gradient meanwhile."""
    chosen = []
    for name, weight in lm.named_parameters():
        is_chosen = trains == "all" or (ROUTER in name and "router" in trains)
        weight.requires_grad_(is_chosen)
        if is_chosen:
            chosen.append(weight)
    if "head" in trains:
        chosen += head.parameters()
    try:
        yield chosen
    finally:
        lm.requires_grad_(True)
        lm.zero_grad()


def teach(
    lm, head: AbstainHead, lessons: Lessons, experiment: Experiment, seed: int
) -> list[float]:
    """Trains a model and a head in place, as the experiment says, and returns the loss
    of each step. The learning rate falls in a straight line to 0.
    """
    dice = torch.Generator().manual_seed(seed)
    losses = []
    with only(lm, head, experiment.trains) as weights:
        optimizer = torch.optim.AdamW(weights, experiment.lr, weight_decay=0.0)
        for step in range(experiment.steps):
            part = int(torch.randint(POOL, (), generator=dice))
            inside = draw(lessons.inside, experiment.batch, part, dice)
            outside = draw(lessons.outside, experiment.batch, part, dice)
            loss = loss_of(lm, head, make_batch(inside, outside), experiment)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, CLIP)
            for group in optimizer.param_groups:
                group["lr"] = experiment.lr * (1 - step / experiment.steps)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


def splice(router_of, rest_of):
    """A copy of `rest_of` with the routers of `router_of`. Raises EvaluationError where
    they are models of different sizes.
    """
    other = copy.deepcopy(rest_of)
    routers = {n: w for n, w in router_of.state_dict().items() if ROUTER in n}
    own = {n: w for n, w in other.state_dict().items() if ROUTER in n}
    if {n: w.shape for n, w in routers.items()} != {n: w.shape for n, w in own.items()}:
        raise EvaluationError(
            "a router of another size does not fit",
            "splice two models of one configuration",
        )
    for name, weight in own.items():
        weight.copy_(routers[name])
    return other


class Workshop:
    """Makes the variants of one chat model. What a splice takes from is kept."""

    def __init__(self, lm, text: bytes) -> None:
        self.lm, self.text = lm, text
        self.kept: dict[tuple[Experiment, int], Variant] = {}
        self.cost: dict | None = None  # of the model as it came, once it is measured

    def check(self, experiment: Experiment) -> None:
        """Raises EvaluationError where this model cannot go through the experiment."""
        if self.lm.config.model.block != "routed":
            raise EvaluationError(
                "this model has no router",
                "take one with routed blocks: the question is what the router knows",
            )
        trained = experiment.trains != "nothing" or experiment.is_splice
        if trained and self.lm.is_packed:
            raise EvaluationError(
                f"{experiment.name} trains the network, and this model is packed: the "
                "latent weights behind its codes are gone",
                "take the model that it was packed from; v4 alone, which fits a head "
                "beside the network, works with a packed one",
            )

    def make(self, experiment: Experiment, seed: int) -> Variant:
        """The variant that the experiment makes with a seed; the model itself stays as
        it is. Raises EvaluationError, DataError.
        """
        self.check(experiment)
        if experiment.is_splice:
            return self.put_together(experiment, seed)
        if (experiment, seed) in self.kept:
            return self.kept[experiment, seed]
        lm = copy.deepcopy(self.lm).eval()
        head = AbstainHead(lm.config.model.d_model)
        if experiment.trains != "nothing":
            lessons = make_lessons(experiment.data, self.text, seed)
            teach(lm, head, lessons, experiment, seed)
        if "head" not in experiment.trains:
            lessons = make_lessons("semantic", self.text, seed, HEAD_ROWS)
            prompts = [[row.ids[: row.asked] for row in side] for side in lessons]
            fit_head(head, lm, *prompts)
        variant = Variant(lm, head)
        if experiment.name in SPLICED:
            self.kept[experiment, seed] = variant
        return variant

    def put_together(self, experiment: Experiment, seed: int) -> Variant:
        """The variant of a splice."""
        router_of, head_of, rest_of = (
            self.part(name, seed)
            for name in (
                experiment.router_from,
                experiment.head_from,
                experiment.rest_from,
            )
        )
        return Variant(splice(router_of.lm, rest_of.lm), head_of.head)

    def part(self, name: str, seed: int) -> Variant:
        """What a splice takes from: another experiment's variant, or with no name the
        model as it came, whose head is that of v4.
        """
        return self.make(load_experiment(name or "v4"), seed)
