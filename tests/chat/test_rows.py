"""Conversations as batches: what is padding, what is predicted, and that a row's loss is
its own.
"""

import hashlib
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from test_train import shards, small  # noqa: F401  (a fixture)
from tiny_models import tiny

from tilelli_nb import TilelliLM, prepare_shards
from tilelli_nb.chat.rows import ChatRows
from tilelli_nb.chat.template import encode_row
from tilelli_nb.config import TrainConfig
from tilelli_nb.errors import DataError
from tilelli_nb.storage.records import load_metrics
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import make_optimizer, update

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CONVERSATIONS = [
    *([(f"What comes after {a}?", f"{b}.")] for a, b in pairwise(NUMBERS)),
    *([("Hi" + "!" * n, "Hello.")] for n in range(20)),
    [("Say it", "Yes."), ("Again", "Yes, again.")],
]


@pytest.fixture
def rows(shards):  # noqa: F811
    return ChatRows(CONVERSATIONS, shards, "a few words")


def learner(**settings):
    """A model of a context that holds the longest row."""
    return TilelliLM(small(**settings).config.with_model(context=96))


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_batch_is_whole_rows_padding_and_text(rows):
    known = {tuple(ids.tolist()): wanted.tolist() for ids, wanted in rows.rows}
    for seed in range(20):
        x, targets, text, text_targets = rows.batch(8, 64, dice(seed))
        assert x.shape == targets.shape and len(x) == 8
        assert text.shape == text_targets.shape == (1, 64)
        assert torch.equal(text[:, 1:], text_targets[:, :-1])
        for ids, wanted in zip(x.tolist(), targets.tolist(), strict=True):
            (row,) = [row for row in known if row == tuple(ids[: len(row)])][-1:]
            assert ids[len(row) :] == [0] * (len(ids) - len(row))
            assert wanted == known[row] + [-100] * (len(ids) - len(row))
        assert any(len(row) == x.shape[1] for row in known)  # no column is all padding
        assert (targets[:, -1] != -100).any()


def test_rows_of_like_length_come_together_and_all_of_them_come(rows):
    seen, padding, places = set(), 0, 0
    for seed in range(200):
        x, targets, *_ = rows.batch(4, 64, dice(seed))
        for ids in x.tolist():
            seen.add(bytes(ids).rstrip(b"\0"))
        padding += sum(
            int(x.shape[1] - len(bytes(i).rstrip(b"\0"))) for i in x.tolist()
        )
        places += x.numel()
    assert len(seen) == len(CONVERSATIONS)
    assert padding / places < 0.15  # at random it would be a third


def test_the_same_generator_gives_the_same_batch(rows):
    for a, b in zip(
        rows.batch(4, 64, dice(3)), rows.batch(4, 64, dice(3)), strict=True
    ):
        assert torch.equal(a, b)


def test_a_rows_loss_does_not_depend_on_its_batch():
    """In float64: alone, and beside a longer one that makes it padding."""
    lm = tiny(context=64)
    short, long = (encode_row(turns) for turns in (CONVERSATIONS[0], CONVERSATIONS[-1]))
    missing = len(long[0]) - len(short[0])
    assert missing > 0
    both = lm.loss_terms(
        torch.stack([F.pad(short[0], (0, missing)), long[0]]),
        torch.stack([F.pad(short[1], (0, missing), value=-100), long[1]]),
    )
    alone = [lm.loss_terms(ids[None], wanted[None]) for ids, wanted in (short, long)]
    for name in ("nats", "predicted", "balance"):
        parts = [getattr(terms, name) for terms in alone]
        assert getattr(both, name).item() == pytest.approx(sum(parts).item(), abs=1e-12)
    # "two." and its end, "Yes." and "Yes, again." and theirs
    assert both.predicted == 5 + 5 + 12


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_an_update_averages_conversations_and_text_each_by_itself(rows, weight):
    """Against the gradient of the two means, weighted and added by hand, in float64."""
    config = TrainConfig(
        batch=4, micro_batch=2, clip=1e9, balance_weight=0.0, text_weight=weight
    )
    lm = tiny(context=64).train()
    batch = rows.batch(4, 64, dice(1))
    x, targets, text, text_targets = batch
    objective = 0.0
    for ids, wanted, times in ((x, targets, 1), (text, text_targets, weight)):
        logits = lm(ids).flatten(0, 1)
        objective = objective + times * F.cross_entropy(logits, wanted.flatten())
    expected = torch.autograd.grad(objective, list(lm.parameters()))
    norm = torch.stack([g.square().sum() for g in expected]).sum().sqrt()
    out = update(lm, make_optimizer(lm, config), batch, config, lr=0.0)
    assert out["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-9)
    chat = F.cross_entropy(lm(x).flatten(0, 1), targets.flatten())
    assert out["loss"].item() == pytest.approx(chat.item(), rel=1e-9)


def test_a_run_learns_to_answer_is_recorded_and_resumes_to_the_bit(rows, tmp_path):
    settings = {"steps": 60, "batch": 8, "micro_batch": 8, "lr": 1e-2, "log_every": 5}

    def run(folder, **options):
        lm = learner(**settings)
        return lm, train(lm, rows, tmp_path / folder, progress=False, **options)

    lm, record = run("whole")
    assert record["kind"] == "sft"
    assert record["data"]["conversations"] == len(CONVERSATIONS)
    assert record["data"]["source"] == "a few words, and cats"
    losses = [line["loss"] for line in load_metrics(tmp_path / "whole")]
    assert losses[-1] < losses[0] / 2
    run("parts", stop_at=20)
    again, _ = run("parts", resume=True)
    for name, weight in lm.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_other_conversations_do_not_go_on_with_a_run(rows, shards, tmp_path):  # noqa: F811
    settings = {"steps": 4, "batch": 4, "micro_batch": 4}
    train(learner(**settings), rows, tmp_path, stop_at=2, progress=False)
    others = ChatRows(CONVERSATIONS[1:], shards, "a few words")
    with pytest.raises(DataError, match="not the conversations"):
        train(learner(**settings), others, tmp_path, resume=True, progress=False)


def test_a_model_of_too_short_a_context_is_told_so(rows):
    with pytest.raises(DataError, match="bytes, and a context of 16"):
        rows.batch(8, 16, dice())


def test_one_row_that_is_too_long_is_found_before_anything_is_trained(rows, tmp_path):
    """Whichever rows the first batch draws."""
    longest = max(len(ids) for ids, _ in rows.rows)
    assert sum(len(ids) == longest for ids, _ in rows.rows) == 1
    for seed in range(20):
        with pytest.raises(DataError, match=f"of {longest} bytes, and a context of"):
            rows.batch(1, longest - 1, dice(seed))
    lm = TilelliLM(small().config.with_model(context=longest - 1))
    with pytest.raises(DataError, match=f"a context of {longest - 1}"):
        train(lm, rows, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "run.json").exists()


def test_no_conversations_are_an_error(shards):  # noqa: F811
    with pytest.raises(DataError, match="no conversations"):
        ChatRows([], shards, "nothing")


def test_a_run_goes_on_with_the_text_that_it_began_with(tmp_path):
    """Both sides of the text have grown since: what is measured stays the same."""
    texts = [f"document {number}, of a few words" for number in range(300)]
    grown = prepare_shards(texts, tmp_path, "words", shard_bytes=2000)
    listed = grown.manifest["shards"]
    first = {}
    for shard in listed:
        first.setdefault(shard["split"], shard)
    digests = "".join(shard["sha256"] for shard in listed if shard in first.values())
    rows = ChatRows(CONVERSATIONS, grown, "a few words")
    began_with = {
        "sha256": hashlib.sha256(digests.encode()).hexdigest(),
        "train_shards": 1,
        "val_shards": 1,
        "conversations_sha256": rows.fingerprint,
    }
    before = (rows.train.read(), rows.val.read())
    again = rows.as_described(began_with)
    for side in ("train", "val"):
        expected = (tmp_path / first[side]["file"]).read_bytes()
        assert getattr(again, side).read() == expected != getattr(grown, side).read()
    # those that were given are as they were
    assert (rows.train.read(), rows.val.read()) == before
    assert rows.describe()["sha256"] == grown.describe()["sha256"]
    assert again.describe()["sha256"] == began_with["sha256"]
