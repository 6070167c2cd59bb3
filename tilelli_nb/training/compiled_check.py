"""Whether torch.compile computes what the model does: before the first step of a
compiled run, all gradients are compared.

A fault there is rarely an error: PyTorch 2.11 once trained the last matrix alone, with
the right loss and nothing else moving.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import TrainingError
from .optimizer import add_gradients

# Relative error of a parameter's gradient. Rounding in bf16 alone was seen to make
# 0.05, in first weights on text; a gradient that is lost makes 1.
LIMIT = 0.15
ROWS = 8  # sequences at once in the eager pass, which takes more memory for each


def check_compiled(run: Any) -> None:
    """Compares gradients on the first micro-batch that a `run` will read, which stays
    in its queue; afterwards the run is as before. Raises TrainingError where they
    disagree.
    """
    x = run.batches.peek()[0][: run.settings.micro_batch]
    with run.clock.aside():  # most of it is compiling, and that is no training
        check_gradients(run.lm, run.loss_terms, x, run.precision)


def check_gradients(
    lm, compiled: Callable, x: Tensor, precision: str
) -> dict[str, float]:
    """Compares, on bytes x (rows, T), the gradients of `compiled`, which stands in for
    lm.loss_terms, with those of lm.loss_terms itself. Returns the relative error of
    each parameter's, 0 for none. Raises TrainingError, which names the worst one, if
    that is above LIMIT.

    Weights, and all generators, are afterwards as they were; gradients are None.
    """
    with first_weights(lm):
        found = gradients(lm, compiled, x, precision, len(x))
        wanted = gradients(lm, lm.loss_terms, x, precision, ROWS)
    errors = {name: distance(found[name], wanted[name]) for name in wanted}
    worst = max(errors, key=errors.get)
    if not errors[worst] <= LIMIT:
        raise TrainingError(
            f"compiled and eager gradients disagree: {worst} by {errors[worst]:.2g} of "
            f"its norm, more than {LIMIT}; this PyTorch, {torch.__version__}, would "
            "train another model",
            "the same command with --resume and --no-compile trains without "
            "torch.compile, more slowly; another version of PyTorch may be right",
        )
    return errors


@contextmanager
def first_weights(lm) -> Iterator[None]:
    """Gives the model's maps and tables, for a while, weights as in a run that begins.

    A trained model has sharp attention: in bf16, another rounding then keeps other
    bytes, and moves a gradient by more than its norm. In first weights it hardly does.
    """
    own = lm.state_dict()  # the parameters' own memory
    kept = {name: value.clone() for name, value in own.items()}
    lm.init_weights(torch.Generator(lm.device).manual_seed(0))
    try:
        yield
    finally:
        for name, value in own.items():
            value.copy_(kept[name])


def gradients(
    lm, compute: Callable, x: Tensor, precision: str, rows: int
) -> dict[str, Tensor]:
    """Returns each parameter's gradient in a step on bytes x (B, T), `rows` sequences
    at once, by name. Where there is none at all, zeros.
    """
    settings = lm.config.with_train(batch=len(x), micro_batch=rows).train
    targets = x.roll(-1, 1)  # (B, T): every place predicts, in each process as many
    # not the last part of a step: no process waits for the gradients of others
    lm.zero_grad()
    add_gradients(lm, compute, x, targets, settings, precision, is_last=False)
    found = {}
    for name, parameter in lm.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            gradient = torch.zeros_like(parameter)
        found[name] = gradient.detach().clone()  # a CUDA graph would write over it
    lm.zero_grad()
    return found


def distance(found: Tensor, wanted: Tensor) -> float:
    """Returns the norm of the difference of two tensors, relative to the second's;
    infinite if a number is not finite.
    """
    found, wanted = found.detach().float(), wanted.detach().float()
    error = float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
    return error if error == error else float("inf")
