"""How much fits into a GPU's memory, and what its errors mean."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import TrainingError
from .muon import Muon
from .optimizer import make_optimizer, parts_of
from .precision import choose_precision

# The attention kernel has a program for each sequence and head in the second dimension
# of its grid, and CUDA counts no further there.
MOST_PROGRAMS = 65_535


def fit_micro_batch(lm, rows: int, precision: str | None = None) -> int:
    """How many of `rows` sequences a GPU holds at once, forward and backward: tried,
    and halved until they fit. `precision` is the run's, where the configuration does
    not say it.

    Elsewhere the configuration's. Raises TrainingError when not even one fits.
    """
    settings = lm.config.train
    device = next(lm.parameters()).device
    if device.type != "cuda":
        return min(rows, settings.micro_batch)
    precision = choose_precision(precision or settings.precision, device)
    while rows * lm.config.model.n_heads > MOST_PROGRAMS:
        rows //= 2
    while rows:
        try:
            try_micro_batch(lm, rows, precision)
            return rows
        except torch.OutOfMemoryError:
            # Memory grows with the rows, so few trials lead to what fits; and halves of
            # a batch of 128 leave no smaller part over.
            rows //= 2
        finally:
            # What the trial has left behind must not count in the next one.
            lm.zero_grad()
            torch.cuda.empty_cache()
    raise TrainingError(
        "not even one sequence fits into the memory of this GPU",
        "use a smaller model or another card",
    )


def try_micro_batch(lm, rows: int, precision: str) -> None:
    """Two forward and backward passes of `rows` sequences in `precision`, beside as
    much memory as the optimizer will take, and some air.
    """
    device = next(lm.parameters()).device
    moments = moment_bytes(make_optimizer(lm, lm.config.train, precision))
    # Air: the allocator cannot use every gap between its pieces.
    air = sum(parameter.nbytes for parameter in lm.parameters())
    reserved = torch.empty(moments + air, dtype=torch.uint8, device=device)
    # (rows, T): memory does not depend on what the bytes are
    x = torch.zeros(rows, lm.context, dtype=torch.long, device=reserved.device)
    # The first pass makes the gradients. The second has them beside its activations and
    # needs most, as every micro-batch of a step but the first does.
    for _ in range(2):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            nats = lm.loss_terms(x, x).nats
        nats.backward()


def moment_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that the averages will take: one for each number of Muon's, two of AdamW's,
    which are there after the first step alone.
    """
    size = 0
    for part in parts_of(optimizer).values():
        averages = 1 if isinstance(part, Muon) else 2
        for group in part.param_groups:
            size += averages * sum(parameter.nbytes for parameter in group["params"])
    return size


def activation_bytes(lm, x: Tensor, targets: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass, each stored tensor once,
    the weights left out.
    """
    # A view shares its storage with what it is a view of: storages are counted.
    weights = {p.untyped_storage()._cdata for p in lm.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # held until all has been counted: a freed address is used again
        terms = lm.loss_terms(x, targets)
    del terms
    return sum(size for storage, size in kept.items() if storage not in weights)


@contextmanager
def explain_gpu_errors(micro_batch: int) -> Iterator[None]:
    """What can go wrong on a GPU alone, as TrainingError that says what to do next."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the memory of this GPU does not hold {micro_batch} sequences at once",
            "the same command with --resume and fewer at once: tilelli train with "
            "--micro-batch auto, which finds what fits; tilelli sft with a smaller "
            "train.micro_batch in a YAML file for --config, and this run's folder as "
            "--out",
        ) from error
    except Exception as error:
        if explanation := gpu_explanation(error):
            raise TrainingError(*explanation) from error
        raise


def gpu_explanation(error: BaseException) -> tuple[str, str] | None:
    """What an error of a GPU's compilers or of the GPU itself means, and what helps;
    None for any other. The first that is known counts, among it and its causes.
    """
    name = type(error).__name__
    origins = " ".join(kind.__module__ for kind in type(error).__mro__)
    words = str(error).strip().splitlines() or [""]
    # what starts a kernel raises plain RuntimeErrors, "Triton Error [CUDA]: ..."
    if "triton" in origins or words[0].startswith("Triton Error"):
        return (
            f"a Triton kernel failed ({name}: {words[-1][:200]})",
            "the same command with --resume, and TILELLI_ATTENTION=reference in the "
            "environment, trains without the kernels, more slowly",
        )
    # torch.AcceleratorError where it exists; it and its elders say "CUDA error: ..."
    if name == "AcceleratorError" or words[0].startswith("CUDA error"):
        return (
            f"the GPU reported an error ({words[0][:200]})",
            "this process cannot use it any more, a new one can: the same command with "
            "--resume; should it come again, TILELLI_ATTENTION=reference in the "
            "environment trains without the kernels",
        )
    # torch.compile wraps what its compilers raise
    inner = error.__cause__ or getattr(error, "inner_exception", None)
    if inner and (found := gpu_explanation(inner)):
        return found
    if "torch._dynamo" in origins or "torch._inductor" in origins:
        return (
            f"torch.compile failed ({name})",
            "the same command with --resume and --no-compile trains without it, more "
            "slowly",
        )
    return None
