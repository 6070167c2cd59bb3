"""How many steps fit into the time that somebody has."""

import copy
import statistics
import time
from typing import Any

import torch

from ..inference import scoring
from .distributed import loss_terms_alone
from .optimizer import make_optimizer, update

FINAL_EVAL_BYTES = 2**20  # held-out bytes of the last evaluation, at most
FEWEST, MOST, SECONDS = 3, 29, 6.0  # steps to time after a first, and for how long


def steps_in(minutes: float, run: Any) -> int:
    """How many steps of a `run` fit into so many minutes, evaluation included.

    Some steps and an evaluation are timed on a copy of the model, compiled if the run
    will be.
    """
    trial = copy.deepcopy(run.lm)
    settings = run.settings
    first_s, step_s = time_steps(trial, run)
    held_out = run.shards.val
    sample = held_out.read(min(settings.eval_bytes, 16_384))
    start = time.perf_counter()
    scoring.score(trial, sample)
    byte_s = (time.perf_counter() - start) / len(sample)
    eval_s = byte_s * min(settings.eval_bytes, len(held_out))
    last_eval_s = byte_s * min(FINAL_EVAL_BYTES, len(held_out))
    # Two per cent for lines and bars; two seconds for the files at the end.
    per_step = step_s * 1.02 + eval_s / settings.eval_every
    left = minutes * 60 - run.clock.seconds() - last_eval_s - 2
    if run.compiled:
        left -= first_s  # the run compiles once more, for its own model
    steps = max(1, int(left / per_step))
    # The slowest of the processes sets the pace: the smallest number counts.
    return run.processes.minimum(steps)


def time_steps(trial: Any, run: Any) -> tuple[float, float]:
    """Seconds of the first step of a `run`, which warms up or compiles, and of one of
    those after it: the median of a few, by `trial`, a copy of its model.
    """
    settings, precision = run.settings, run.precision
    loss_terms = loss_terms_alone(trial, run.compiled)
    optimizer = make_optimizer(trial, settings, precision)
    generator = torch.Generator().manual_seed(settings.seed)

    def step() -> float:
        start = time.perf_counter()
        batch = run.draw(generator)
        out = update(trial, optimizer, batch, settings, 0.0, loss_terms, precision)
        float(out["loss"])  # waits for a GPU, so that the time is the step's
        return time.perf_counter() - start

    first_s = step()
    seconds = []
    while len(seconds) < FEWEST or (sum(seconds) < SECONDS and len(seconds) < MOST):
        seconds.append(step())
    return first_s, statistics.median_high(seconds)
