"""One step of training: the schedule of the learning rate, the optimizer, and the
update over micro-batches.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..config import TrainConfig
from ..model.network import IGNORE
from .muon import Muon, MuonWithAdamW


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of update number `step` (from 0); Muon's matrices take muon_lr / lr times as
    much.

    First a linear warm-up. Then "cosine" falls along half a wave to min_lr_ratio at the
    last step; "wsd" (warm-up, stable, decay) stays at the peak and falls in a straight
    line over the last decay_ratio of the steps.
    """
    # The first gradients point anywhere, so the first steps are short.
    warmup = max(1, round(config.warmup_ratio * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    low = config.lr * config.min_lr_ratio
    last = config.steps - 1
    if config.schedule == "wsd":
        # Progress is 0 until the decay starts and 1 at the last step.
        start = config.steps - round(config.decay_ratio * config.steps)
        progress = max(0, step - start + 1) / max(1, config.steps - start)
        return config.lr + (low - config.lr) * progress
    # a single step behind the warm-up is the last one
    progress = (step - warmup) / (last - warmup) if last > warmup else 1.0
    return low + (config.lr - low) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(
    lm: nn.Module, config: TrainConfig, precision: str = "fp32"
) -> torch.optim.Optimizer:
    """AdamW with decay on the matrices of attention, FFN and output alone; or, for
    "muon", Muon on those of attention and FFN and AdamW on the rest.

    `precision` is that of Muon's own products.
    """
    # Decay pulls weights towards zero. That suits matrices, whose inputs are
    # normalised; embeddings, norms, the convolution and the router are left alone.
    stacked, matrices, others = [], [], []
    for name, parameter in lm.named_parameters():
        if holds_q_k_v(name, parameter):
            stacked.append(parameter)
        elif ".attention." in name or ".ffn." in name:
            matrices.append(parameter)
        elif not name.startswith("output"):  # which AdamW takes in any case
            others.append(parameter)
    output = [lm.output.weight]
    device = output[0].device
    use_muon = config.optimizer == "muon"
    decayed = output if use_muon else in_order(lm, [*stacked, *matrices, *output])
    adamw = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type in ("cpu", "cuda"),  # one pass over memory
    )
    if not use_muon:
        return adamw
    muon = Muon(
        [{"params": stacked, "stacked": 3}, {"params": matrices}],
        lr=config.muon_lr,
        weight_decay=config.weight_decay,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
    # One schedule serves both: update() multiplies its rate by this.
    for group in muon.param_groups:
        group["lr_ratio"] = config.muon_lr / config.lr
    return MuonWithAdamW(muon, adamw)


def holds_q_k_v(name: str, parameter: Tensor) -> bool:
    """Whether it is the matrix of q, k and v, one below the other: (3 D, D)."""
    return ".attention." in name and len(parameter) == 3 * parameter.shape[1]


def in_order(lm: nn.Module, parameters: list[Tensor]) -> list[Tensor]:
    """The parameters in the order in which the model names them."""
    chosen = {id(parameter) for parameter in parameters}
    return [parameter for parameter in lm.parameters() if id(parameter) in chosen]


def update(
    lm,
    optimizer: torch.optim.Optimizer,
    batch: tuple,
    config: TrainConfig,
    lr: float,
    loss_terms: Callable | None = None,
    precision: str = "fp32",
) -> dict[str, Tensor]:
    """One step on x and targets (batch, T): gradients summed over micro-batches,
    clipped, applied. A batch may have more such pairs, of other sizes: each is averaged
    by itself, and their gradients, times the configured `text_weight`, are added.

    The loss and balance of the step, its gradient norm and the router's use (blocks, 3)
    of the first pair come back as tensors: nothing here waits for a GPU. `loss_terms`
    stands in for the model's own: compiled, or averaging between processes. With
    `precision` "bf16" the products are in bf16; weights, sums and the optimizer stay in
    fp32.
    """
    compute = loss_terms or lm.loss_terms
    pairs = list(zip(batch[::2], batch[1::2], strict=True))
    totals = []
    for number, (x, targets) in enumerate(pairs, start=1):
        is_last = number == len(pairs)
        weight = 1.0 if number == 1 else config.text_weight
        total = add_gradients(
            lm, compute, x, targets, config, precision, is_last, weight
        )
        totals.append(total)
    # A batch that is unlike all others moves the weights no further than this.
    norm = nn.utils.clip_grad_norm_(lm.parameters(), config.clip)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return {**totals[0], "grad_norm": norm}


def add_gradients(
    lm,
    compute: Callable,
    x: Tensor,
    targets: Tensor,
    config: TrainConfig,
    precision: str,
    is_last: bool,
    weight: float = 1.0,
) -> dict[str, Tensor]:
    """Adds the gradients of x and targets (rows, T), averaged over the predicted bytes
    and times `weight`, to those that are there. Returns their loss, balance and router
    use.

    Processes average their gradients once a step, behind the last part of all. That
    average, and that of their losses, is over the predicted bytes of all processes.
    """
    device = next(lm.parameters()).device
    # Padding is not predicted. A tensor, because nobody waits for its value.
    predicted = (targets != IGNORE).sum().to(device, non_blocking=True)
    has_several = hasattr(compute, "no_sync")  # processes, as DistributedDataParallel
    if has_several:
        # Answers differ in length, so processes predict different numbers of bytes. If
        # each divided by its own, a byte of short answers would count for more. All
        # divide by the average number: then all bytes count the same.
        dist.all_reduce(predicted)  # the sum over the processes
        predicted = predicted / dist.get_world_size()
    parts_of_x = x.split(config.micro_batch)
    parts_of_targets = targets.split(config.micro_batch)
    total = {"loss": 0.0, "balance": 0.0, "router_use": 0.0}
    left = len(parts_of_x)
    for some_x, some_targets in zip(parts_of_x, parts_of_targets, strict=True):
        left -= 1
        some_x = some_x.to(device, non_blocking=True)
        some_targets = some_targets.to(device, non_blocking=True)
        autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=precision == "bf16"
        )
        more_will_come = left > 0 or not is_last
        alone = more_will_come and has_several
        with compute.no_sync() if alone else nullcontext():
            with autocast:
                terms = compute(some_x, some_targets)
            # Divided by the whole batch: the gradients of its parts add up.
            objective = terms.objective(config.balance_weight, predicted, len(x))
            (weight * objective).backward()
        # as in the objective: where nothing is predicted, 0
        total["loss"] += terms.nats.detach() / (predicted + (predicted == 0))
        total["balance"] += terms.balance.detach() / len(x)
        total["router_use"] += terms.use / len(x)
    return total


def parts_of(optimizer: torch.optim.Optimizer) -> dict[str, torch.optim.Optimizer]:
    """The optimizers in it, under the names that their state has in a checkpoint."""
    if isinstance(optimizer, MuonWithAdamW):
        muon, adamw = optimizer.parts
        return {"muon": muon, "optimizer": adamw}
    return {"optimizer": optimizer}


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The averages and the step of every parameter, named for a checkpoint."""
    tensors = {}
    # PyTorch numbers the parameters in the order in which the groups list them.
    for part, one in parts_of(optimizer).items():
        for index, moments in one.state_dict()["state"].items():
            for name, tensor in moments.items():
                tensors[f"{part}.{index}.{name}"] = tensor
    return tensors


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of moments_of; other tensors are passed over."""
    for part, one in parts_of(optimizer).items():
        state: dict[int, dict[str, Tensor]] = {}
        for key in tensors:
            if key.startswith(f"{part}."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = tensors[key]
        # Rates and decay are not taken from the file: the configuration has them.
        groups = one.state_dict()["param_groups"]
        one.load_state_dict({"state": state, "param_groups": groups})
