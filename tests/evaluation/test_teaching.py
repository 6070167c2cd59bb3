"""What an experiment changes in a model, and what it must not touch."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny

from tilelli_nb import TilelliLM
from tilelli_nb.errors import EvaluationError
from tilelli_nb.evaluation import teaching
from tilelli_nb.evaluation.abstain import AbstainHead
from tilelli_nb.evaluation.experiments import load_experiment
from tilelli_nb.evaluation.lessons import Lesson, make_lessons
from tilelli_nb.evaluation.teaching import (
    Workshop,
    entropy_loss,
    loss_of,
    make_batch,
    splice,
    teach,
)

TEXT = b"Once upon a time there was a fox who lived in a wood. " * 40


def short(name, **changes):
    return replace(load_experiment(name), **{"steps": 2, "batch": 2, **changes})


def small():
    return tiny(dtype=torch.float32)


def taught(name, lm, seed=0, **changes):
    experiment = short(name, **changes)
    head = AbstainHead(24)
    lessons = make_lessons(experiment.data, TEXT, seed, 20)
    return head, teach(lm, head, lessons, experiment, seed)


def moved(before, after):
    """The names of the weights that differ."""
    pairs = zip(before.items(), after.items(), strict=True)
    return {name for (name, a), (_, b) in pairs if not torch.equal(a, b)}


def weights(lm):
    return {name: tensor.clone() for name, tensor in lm.state_dict().items()}


EVEN, SURE = [1 / 3] * 3, [0.0, 1.0, 0.0]


def test_the_entropy_loss_by_hand():
    """One row from inside, one from outside; two blocks, two bytes, of which the second
    row's last is not of the prompt.
    """
    inside = [[SURE, SURE], [EVEN, SURE]]  # entropies 0 and 1/2 of ln 3
    outside = [[SURE, EVEN], [EVEN, SURE]]  # of the first byte: 0 and 1
    p = torch.tensor([inside, outside]).double()
    asked, is_outside = torch.tensor([2, 1]), torch.tensor([0.0, 1.0])
    expected = (0**2 + (1 / 2) ** 2 + (0 - 1) ** 2 + (1 - 1) ** 2) / 4
    assert entropy_loss(p, asked, is_outside).item() == pytest.approx(
        expected, abs=1e-5
    )
    lost = torch.full_like(p, 1 / 3)
    assert entropy_loss(lost, asked, is_outside).item() == pytest.approx(1 / 2)


def test_a_share_of_zero_still_has_a_gradient_that_is_a_number():
    logits = torch.zeros(1, 1, 1, 3)
    logits[..., 0] = 1e4  # the others underflow to 0
    logits.requires_grad_()
    loss = entropy_loss(logits.softmax(-1), torch.tensor([1]), torch.tensor([1.0]))
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_the_losses_add_up_with_their_weights():
    lm, head = small(), AbstainHead(24)
    torch.nn.init.normal_(head.linear.weight)
    lessons = make_lessons("semantic", TEXT, 0, 4)
    batch = make_batch(*lessons)
    parts = []
    for one in ("cross_entropy", "entropy", "abstain"):
        none = {"cross_entropy": 0.0, "entropy": 0.0, "abstain": 0.0}
        parts.append(loss_of(lm, head, batch, short("v7", **none | {one: 1.0})).item())
    both = short("v7", cross_entropy=2.0, entropy=20.0, abstain=0.5)
    expected = 2 * parts[0] + 20 * parts[1] + 0.5 * parts[2]
    assert loss_of(lm, head, batch, both).item() == pytest.approx(expected, rel=1e-5)
    # the cross-entropy is that of the rows from inside, and of their answers alone
    nats = count = 0
    for row in lessons.inside:
        logp = lm(row.ids[None])[0].log_softmax(-1)
        for place, target in enumerate(row.targets.tolist()):
            if target >= 0:
                nats, count = nats - logp[place, target].item(), count + 1
    assert parts[0] == pytest.approx(nats / count, rel=1e-4)
    # and the head's loss that of the byte before the answer
    wanted = 0.0
    for side, rows in enumerate(lessons):
        for row in rows:
            h = lm.hidden(row.ids[None, : row.asked])[0][0, -1]
            p = head.probability(h)
            wanted -= math.log(p if side else 1 - p)
    assert parts[2] == pytest.approx(wanted / 8, rel=1e-4)


@pytest.mark.parametrize("name", ["v5", "v6", "v7", "v8a", "v8b", "sweep_0"])
def test_the_router_is_trained_and_nothing_but_the_router(name):
    lm = small()
    before = weights(lm)
    head, losses = taught(name, lm)
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert moved(before, lm.state_dict()) == {
        "blocks.0.router.weight",
        "blocks.1.router.weight",
    }
    is_head_trained = load_experiment(name).trains == "router and head"
    assert bool(head.linear.weight.any()) == is_head_trained
    assert all(weight.requires_grad for weight in lm.parameters())
    assert all(weight.grad is None for weight in lm.parameters())


def test_where_all_is_trained_every_part_moves():
    lm = small()
    before = weights(lm)
    taught("fresh", lm, batch=8)
    left = before.keys() - moved(before, lm.state_dict())
    assert left == set()


def test_the_entropy_target_is_learned():
    """Two sides that a router can tell apart by their bytes: it must become sure of one
    and unsure of the other.
    """
    lm, head = small(), AbstainHead(24)
    rows = []
    for byte in (97, 122):
        ids = torch.full((8,), byte)
        rows.append([Lesson(ids, torch.full_like(ids, -100), 8)])
    experiment = short("v6", cross_entropy=0.0, steps=60, lr=0.05)
    losses = teach(lm, head, rows_as_lessons(rows), experiment, 0)
    assert losses[-1] < losses[0] / 4


def rows_as_lessons(rows):
    return teaching.Lessons(*rows)


def test_a_splice_takes_exactly_the_router():
    one, other = tiny(seed=1), tiny(seed=2)
    mixed = splice(one, other)
    for name, tensor in mixed.state_dict().items():
        source = one if ".router." in name else other
        assert torch.equal(tensor, source.state_dict()[name]), name
    # and it is a copy
    mixed.blocks[0].router.weight.data.zero_()
    assert one.blocks[0].router.weight.any()
    with pytest.raises(EvaluationError, match="another size"):
        splice(one, tiny(d_model=48))


@pytest.fixture
def workshop(monkeypatch):
    """Short experiments on a small model."""
    monkeypatch.setattr(teaching, "load_experiment", short)
    monkeypatch.setattr(
        teaching, "make_lessons", lambda *a: make_lessons(*a[:3], rows=20)
    )
    return Workshop(small(), TEXT)


def test_the_model_that_came_stays_as_it_is(workshop):
    before = weights(workshop.lm)
    first = workshop.make(short("v7"), 0)
    assert workshop.make(short("v7"), 0) is first  # kept for the splices
    again = Workshop(workshop.lm, TEXT).make(short("v7"), 0)
    other = workshop.make(short("v7"), 1)
    assert moved(before, workshop.lm.state_dict()) == set()
    assert moved(weights(first.lm), weights(again.lm)) == set()
    assert torch.equal(first.head.linear.weight, again.head.linear.weight)
    assert moved(weights(first.lm), weights(other.lm))


def test_v4_changes_no_weight_and_fits_a_head(workshop):
    made = workshop.make(short("v4"), 0)
    assert moved(weights(workshop.lm), weights(made.lm)) == set()
    assert made.head.linear.weight.any()


def test_the_splices_are_put_together_from_their_parts(workshop):
    v7, fresh = workshop.make(short("v7"), 3), workshop.make(short("fresh"), 3)
    whole = workshop.make(load_experiment("splice"), 3)
    assert moved(weights(whole.lm), weights(splice(v7.lm, fresh.lm))) == set()
    assert moved(weights(whole.lm), weights(fresh.lm))  # another router
    assert torch.equal(whole.head.linear.weight, v7.head.linear.weight)
    alone = workshop.make(load_experiment("splice_head"), 3)
    assert moved(weights(alone.lm), weights(workshop.lm)) == set()
    assert torch.equal(alone.head.linear.weight, v7.head.linear.weight)


def test_a_packed_model_goes_through_v4_alone(workshop, tmp_path):
    small().save_packed(tmp_path)
    packed = Workshop(TilelliLM.from_pretrained(tmp_path), TEXT)
    assert packed.make(short("v4"), 0).head.linear.weight.any()
    for name in ("v5", "v7", "fresh", "splice", "splice_head"):
        with pytest.raises(EvaluationError, match=f"{name} trains.*packed"):
            packed.make(load_experiment(name), 0)


def test_a_model_without_a_router_is_refused():
    vanilla = tiny(block="vanilla", dtype=torch.float32)
    with pytest.raises(EvaluationError, match="no router"):
        Workshop(vanilla, TEXT).make(load_experiment("v4"), 0)
