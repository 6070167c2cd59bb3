"""How many steps fit into given minutes, and how fast a run is when it does nothing
else.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from test_train import shards, small  # noqa: F401  (a fixture)

from tilelli_nb.storage.records import load_metrics
from tilelli_nb.training import planning
from tilelli_nb.training.clock import steady_bytes_per_s
from tilelli_nb.training.distributed import LossTermsOf
from tilelli_nb.training.loop import train

COMPILE_S, STEP_S = 40.0, 0.25


class Watch:
    """Stands for the module time: a clock that others move."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def watch(monkeypatch):
    """A clock on which evaluation takes no time and any step STEP_S, a compiled one a
    tenth of it, behind a first one of COMPILE_S.
    """
    watch, calls = Watch(), []

    def compile_(self, dynamic):
        eager = self.forward

        def forward(x, targets):
            watch.now += COMPILE_S if not calls else STEP_S / 10
            calls.append(self.lm)
            terms = eager(x, targets)
            watch.now -= STEP_S  # which the model itself has taken
            return terms

        self.forward = forward

    class Slow(type(small())):
        def loss_terms(self, x, targets):
            watch.now += STEP_S
            return super().loss_terms(x, targets)

    watch.model, watch.calls = Slow(small().config), calls
    monkeypatch.setattr(LossTermsOf, "compile", compile_)
    monkeypatch.setattr(planning, "time", watch)
    monkeypatch.setattr(planning.scoring, "score", lambda lm, text: 2.0)
    return watch


def steps_in(minutes, watch, shards, compiled):  # noqa: F811
    lm = watch.model
    run = SimpleNamespace(
        lm=lm,
        settings=lm.config.train,
        precision="fp32",
        compiled=compiled,
        shards=shards,
        draw=lambda draw: shards.batch(4, 32, draw),
        clock=SimpleNamespace(seconds=lambda: watch.now),
        processes=SimpleNamespace(minimum=lambda steps: steps),
    )
    return planning.steps_in(minutes, run)


def test_eager_steps_are_timed_for_an_eager_run(watch, shards):  # noqa: F811
    steps = steps_in(5, watch, shards, compiled=False)
    # a first one and 24 more make six seconds and a quarter
    assert watch.now == 25 * STEP_S and watch.calls == []
    assert steps == int((300 - 25 * STEP_S - 2) / (1.02 * STEP_S))


def test_compiled_steps_are_timed_for_a_compiled_run(watch, shards):  # noqa: F811
    """Without what the first one takes to compile, which comes once more."""
    before = [parameter.clone() for parameter in watch.model.parameters()]
    steps = steps_in(5, watch, shards, compiled=True)
    spent = COMPILE_S + planning.MOST * STEP_S / 10
    assert watch.now == pytest.approx(spent) and len(watch.calls) == planning.MOST + 1
    assert steps == int((300 - spent - COMPILE_S - 2) / (1.02 * STEP_S / 10))
    # on a copy: the run's own weights have not been touched
    assert watch.model not in watch.calls
    for value, parameter in zip(before, watch.model.parameters(), strict=True):
        assert torch.equal(value, parameter) and parameter.grad is None


def lines(*figures):
    found = []
    for bytes_seen, wall_s, *evaluated in figures:
        line = {"bytes_seen": bytes_seen, "wall_s": wall_s}
        found.append(line | ({"val_bpb": 2.0} if evaluated else {}))
    return found


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([], None),
        ([(100, 50.0)], None),
        ([(100, 50.0), (200, 51.0)], None),  # the first line has compiling behind it
        ([(100, 50.0), (200, 51.0), (300, 52.0)], 100.0),
        # an evaluation lies before its own line, and not before the next one
        ([(0, 5.0), (100, 6.0), (200, 9.0, True), (400, 10.0)], 200.0),
        ([(0, 5.0), (100, 6.0), (200, 9.0, True)], None),
        # one pause among three: the median
        ([(0, 0.0), (10, 1.0), (20, 2.0), (30, 99.0), (50, 100.0)], 10.0),
        # two lines within one tick of the clock say nothing
        ([(0, 0.0), (10, 1.0), (20, 1.0), (30, 2.0)], 10.0),
    ],
)
def test_the_steady_rate(figures, expected):
    assert steady_bytes_per_s(lines(*figures)) == expected


def test_results_say_how_fast_this_part_of_the_run_was(tmp_path, shards):  # noqa: F811
    """The lines of the first part are made a million times as fast: the second does not
    count them.
    """

    def part(**options):
        train(small(steps=16, eval_every=16), shards, tmp_path / "run", **options)
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        return results["steady_bytes_per_s"]

    options = {"progress": False, "device": "cpu"}
    first = part(stop_at=8, **options)
    before = load_metrics(tmp_path / "run")
    assert first == round(steady_bytes_per_s(before), 1)
    hurried = [line | {"wall_s": line["wall_s"] / 1e6} for line in before]
    text = "".join(json.dumps(line) + "\n" for line in hurried)
    (tmp_path / "run" / "metrics.jsonl").write_text(text)
    second = part(resume=True, **options)
    after = load_metrics(tmp_path / "run")[8:]
    assert second == round(steady_bytes_per_s(after), 1) and len(after) == 8
    # at the last step already, a part has no lines of its own
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"finished": None}))
    assert part(resume=True, **options) is None
