"""One step of training: the schedule of the learning rate, AdamW, and the update over
micro-batches.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of update number `step` (from 0): linear warm-up, then a cosine down to
    min_lr_ratio at the last step.
    """
    warmup = max(1, round(config.warmup_ratio * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(lm: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on the matrices of attention, FFN and output alone."""
    groups = [
        {"params": [], "weight_decay": config.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]
    for name, parameter in lm.named_parameters():
        is_matrix = (
            name.startswith("output") or ".attention." in name or ".ffn." in name
        )
        groups[0 if is_matrix else 1]["params"].append(parameter)
    fused = next(lm.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )


def update(
    lm,
    optimizer: torch.optim.Optimizer,
    batch: tuple,
    config: TrainConfig,
    lr: float,
    loss_terms: Callable | None = None,
) -> dict[str, Tensor]:
    """One step on x and targets (batch, T): gradients summed over micro-batches,
    clipped, applied.

    The loss and balance of the step, its gradient norm and the router's use (blocks, 3)
    come back as tensors: nothing here waits for a GPU. `loss_terms` stands in for the
    model's own: compiled, or averaging between processes.
    """
    x, targets = batch
    device, compute = next(lm.parameters()).device, loss_terms or lm.loss_terms
    total = {"loss": 0.0, "balance": 0.0, "router_use": 0.0}
    for xs, ts in zip(
        x.split(config.micro_batch), targets.split(config.micro_batch), strict=True
    ):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = compute(
                xs.to(device, non_blocking=True), ts.to(device, non_blocking=True)
            )
        loss, balance = terms.nats / targets.numel(), terms.balance / len(x)
        (loss + config.balance_weight * balance).backward()
        for key, part in (
            ("loss", loss),
            ("balance", balance),
            ("router_use", terms.use / len(x)),
        ):
            total[key] = total[key] + part.detach()
    norm = nn.utils.clip_grad_norm_(lm.parameters(), config.clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return {**total, "grad_norm": norm}


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The two averages and the step of every parameter, named for a checkpoint."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{index}.{name}": t
        for index, moments in state.items()
        for name, t in moments.items()
    }


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of moments_of; other tensors are passed over."""
    state: dict[int, dict[str, Tensor]] = {}
    for key in (key for key in tensors if key.startswith("optimizer.")):
        _, index, name = key.split(".")
        state.setdefault(int(index), {})[name] = tensors[key]
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
