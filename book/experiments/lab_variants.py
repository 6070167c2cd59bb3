"""What the lab exchanges in a model or in its text, where no setting of the package says
it. The taught modules know nothing of this: a model is built and its weights are drawn
as always, and then one part in each block is replaced.

| variant | what is replaced | by what |
|---|---|---|
| no-conv, no-attention, no-ffn | the pathway, and the router | a pathway without weights that adds nothing; a router whose softmax runs over the other two |
| uniform-router | the router | a third for each pathway and every byte, nothing to learn |
| fp32-ffn | up and down of the FFN | the same matrices, used as they are instead of rounded |
| small-init | first values of all maps | the same draws, scaled to a standard deviation of 0.02 |
| zero-output | first values of the output matrix | zeros: the first loss is ln 256 |
| curriculum | the batches | for the first half of the steps each sequence is cut into four: the same bytes |
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tilelli_nb import TilelliLM
from tilelli_nb.config import Config
from tilelli_nb.data.shards import Shards
from tilelli_nb.model.router import PATHWAYS, Router
from tilelli_nb.model.ternary import TernaryLinear

SMALL = 0.02  # standard deviation of GPT-2's first weights
PIECES = 4  # of a sequence, in the first half of the curriculum


class Removed(nn.Module):
    """A pathway that adds nothing, has no weights and remembers nothing."""

    def forward(self, y: Tensor, state: "Removed | None" = None) -> Tensor:
        """(B, T, D) -> zeros of that shape."""
        return torch.zeros_like(y)

    def new_state(self, *sizes: int) -> "Removed":
        """Itself: there is nothing to keep."""
        return self

    def restart(self) -> None:
        """Forgets nothing, as attention's state is asked to."""

    zero_ = restart  # and as the convolution's is


class RouterOfOthers(Router):
    """A router that never gives anything to one of the pathways: its softmax runs over
    the others.
    """

    def __init__(self, d_model: int, without: int) -> None:
        super().__init__(d_model)
        self.without = without

    def forward(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., 3), with exact zeros where the pathway is missing."""
        logits = nn.functional.linear(y, self.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        is_missing = torch.arange(len(PATHWAYS), device=y.device) == self.without
        return logits.masked_fill(is_missing, -torch.inf).softmax(-1)


class UniformRouter(nn.Module):
    """A third for each pathway, whatever the byte."""

    def forward(self, y: Tensor) -> Tensor:
        """(..., D) -> (..., 3)."""
        return y.new_full((*y.shape[:-1], len(PATHWAYS)), 1 / len(PATHWAYS))


class PlainLinear(TernaryLinear):
    """The same matrix, multiplied by as it is."""

    def ternary_weight(self) -> Tensor:
        """The weight that is used: the latent one itself."""
        return self.weight


class LabLM(TilelliLM):
    """A model of which parts may be missing."""

    def zero_shares(self) -> list[float]:
        """Share of the ternary weights that are 0; none where none are ternary."""
        linears = [m for m in self.modules() if isinstance(m, TernaryLinear)]
        if not linears or isinstance(linears[0], PlainLinear):
            return []
        return super().zero_shares()


def remove(lm: LabLM, pathway: str) -> None:
    """Takes one pathway out of every block."""
    for block in lm.blocks:
        setattr(block, pathway, Removed())
        width = block.router.weight.shape[1]
        block.router = RouterOfOthers(width, PATHWAYS.index(pathway))


def even_routers(lm: LabLM) -> None:
    """Replaces the router of every block."""
    for block in lm.blocks:
        block.router = UniformRouter()


def plain_ffn(lm: LabLM) -> None:
    """Leaves the FFN's weights unrounded."""
    for block in lm.blocks:
        for name in ("up", "down"):
            ternary = getattr(block.ffn, name)
            plain = PlainLinear(*reversed(ternary.weight.shape))
            plain.weight = ternary.weight  # the same first values
            setattr(block.ffn, name, plain)


@torch.no_grad()
def small_init(lm: LabLM) -> None:
    """Scales every map's first values down to GPT-2's."""
    for name, weight in lm.named_parameters():
        is_map = weight.dim() > 1 and "router" not in name
        if is_map and not name.startswith(("token", "position")):
            weight.mul_(SMALL * weight.shape[1] ** 0.5)  # they were fan_in^-0.5


@torch.no_grad()
def zero_output(lm: LabLM) -> None:
    """Begins with every byte equally probable."""
    lm.output.weight.zero_()


@dataclass(frozen=True)
class Curriculum(Shards):
    """The same windows in the same order, but for the first steps each is cut into
    pieces that do not see each other: (B, T) becomes (B * 4, T / 4).
    """

    short_steps: int = 0
    drawn: Iterator[int] = field(default_factory=itertools.count)

    def batch(
        self, rows: int, context: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """x and targets, with as many bytes as ever."""
        x, targets = super().batch(rows, context, generator)
        if next(self.drawn) >= self.short_steps:
            return x, targets
        shape = (rows * PIECES, context // PIECES)
        return x.reshape(shape), targets.reshape(shape)


CHANGES: dict[str, Callable[[LabLM], None]] = {
    "no-conv": lambda lm: remove(lm, "conv"),
    "no-attention": lambda lm: remove(lm, "attention"),
    "no-ffn": lambda lm: remove(lm, "ffn"),
    "uniform-router": even_routers,
    "fp32-ffn": plain_ffn,
    "small-init": small_init,
    "zero-output": zero_output,
}
VARIANTS = (*CHANGES, "curriculum")


def build(config: Config, variants: tuple[str, ...]) -> TilelliLM:
    """The model of a configuration, with the variants' parts exchanged after its weights
    were drawn: so what is left of it begins as in the model with all parts.
    """
    if not variants:
        return TilelliLM(config)
    lm = LabLM(config)
    for name in variants:
        if name in CHANGES:
            CHANGES[name](lm)
    return lm


def text_for(shards: Shards, config: Config, variants: tuple[str, ...]) -> Shards:
    """The text as a run with these variants reads it."""
    if "curriculum" not in variants:
        return shards
    return Curriculum(
        shards.folder,
        shards.train,
        shards.val,
        shards.manifest,
        short_steps=config.train.steps // 2,
    )
