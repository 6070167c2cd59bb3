"""The network: bytes in, logits of the next byte out. Six (or four) routed blocks
between two tables and a matrix; tensors alone, nothing of files or training.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ModelConfig
from ..errors import TokenError
from .attention import KVCache, TopKAttention
from .conv import CausalConv
from .router import Router, sequence_balance
from .ternary import TernaryFFN, TernaryLinear
from .vanilla import VanillaBlock

IGNORE = -100  # a target that is not predicted
VOCAB = 256


class BlockState(NamedTuple):
    """What one block keeps between two calls, while it writes a text."""

    conv: Tensor  # (B, conv_width - 1, D): the last vectors that it heard
    attention: KVCache  # keys and values of the window's bytes
    ffn: tuple[Tensor, Tensor]  # its two matrices, rounded once: of no byte

    def restart(self) -> None:
        """Forgets all bytes; the rounded matrices stay."""
        self.conv.zero_()
        self.attention.restart()


class RoutedBlock(nn.Module):
    """One block: three pathways read the same normalised vectors, and a router says how
    much of each is added to the residual stream.

    x + p_conv conv(y) + p_attention attention(y) + p_ffn ffn(y), where y = LayerNorm(x)
    and p = router(y).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.router = Router(config.d_model)
        self.conv = CausalConv(config.d_model, config.conv_width)
        self.attention = TopKAttention(config.d_model, config.n_heads, config.keep)
        self.ffn = TernaryFFN(config.d_model, config.ffn_expand)

    def forward(
        self, x: Tensor, state: BlockState | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> the same, and the router's p (B, T, 3). With a `state`, T bytes
        more, after those that it remembers.
        """
        conv_state, attention_state, ffn_state = state or (None, None, None)
        y = self.norm(x)  # (B, T, D), as are the three pathways
        p = self.router(y)  # (B, T, 3), sums to 1
        conv = self.conv(y, conv_state)
        attention = self.attention(y, attention_state)
        ffn = self.ffn(y, ffn_state)
        return mix(x, p, conv, attention, ffn), p

    def new_state(self, batch: int, context: int) -> BlockState:
        """Room for what the pathways remember of `context` bytes."""
        return BlockState(
            self.conv.new_state(batch),
            self.attention.new_state(batch, context),
            self.ffn.new_state(),
        )


def mix(x: Tensor, p: Tensor, conv: Tensor, attention: Tensor, ffn: Tensor) -> Tensor:
    """Adds the weighted pathways to the residual: (..., D) each; p is (..., 3)."""
    # A residual of 16 bits stays one; the router's shares are in fp32 at least.
    return Mix.apply(x, p.to(x.dtype), conv, attention, ffn)


class Mix(torch.autograd.Function):
    """x + p_conv * conv + p_attention * attention + p_ffn * ffn, by hand for speed
    alone: autograd gives the same gradients with twice as many passes over memory.

    For a pathway f with share s, and the gradient g of the output: the gradient of f is
    s * g, that of s is the sum of g * f over D, and that of x is g itself.
    """

    @staticmethod
    def forward(ctx, x: Tensor, p: Tensor, *pathways: Tensor) -> Tensor:
        ctx.save_for_backward(p, *pathways)
        # Never in place: torch.compile of PyTorch 2.11 would lose all gradients here.
        out = x
        for share, pathway in zip(p.split(1, dim=-1), pathways, strict=True):
            out = torch.addcmul(out, share, pathway)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        p, *pathways = ctx.saved_tensors
        d_shares, d_pathways = [], []  # (..., 1) and (..., D) for each pathway
        for share, pathway in zip(p.split(1, dim=-1), pathways, strict=True):
            d_shares.append((grad * pathway).sum(-1, keepdim=True))
            d_pathways.append((share * grad).to(pathway.dtype))
        return grad, torch.cat(d_shares, dim=-1), *d_pathways


class LossTerms(NamedTuple):
    """The parts of the loss as sums, so that micro-batches of different sizes add up
    exactly.
    """

    nats: Tensor  # cross-entropy, summed over the predicted bytes
    predicted: Tensor  # how many bytes were predicted
    balance: Tensor  # balance loss, averaged over blocks and summed over sequences
    use: Tensor  # (blocks, 3): the router's p, mean over bytes, sum over sequences

    def objective(
        self, balance_weight: float, all_predicted: int | Tensor, all_sequences: int
    ) -> Tensor:
        """Adds up what training makes smaller: nats per byte and the weighted balance
        loss.

        Divided by the counts of the whole batch, so that the parts of its micro-batches
        add up to it. Where nothing is predicted there is nothing to learn: 0.
        """
        nothing = all_predicted == 0
        cross_entropy = self.nats / (all_predicted + nothing)
        return cross_entropy + balance_weight * self.balance / all_sequences


def check_tokens(x: Tensor, context: int) -> None:
    """Raises TokenError for what is not (B, T) whole numbers, not a byte, or more of
    them than `context`.
    """
    if x.dim() != 2 or x.dtype not in (torch.long, torch.int):
        raise TokenError(
            f"the bytes come as {x.dtype}, in the shape {tuple(x.shape)}",
            "give (B, T) long: torch.tensor([ids]) for one text",
        )
    if x.shape[-1] == 0:
        raise TokenError(
            "there are no bytes to read",
            "give at least one: a text begins with an implied byte 0",
        )
    if x.shape[-1] > context:
        raise TokenError(
            f"{x.shape[-1]} bytes at once, but the model sees {context}",
            "pass fewer, or use generate() and score(), which move the window on",
        )
    # Values are looked at on a CPU only: a GPU would have to be waited for, and a
    # compiled graph cannot branch on them.
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not x.numel():
        return
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= VOCAB:
        raise TokenError(
            f"a token outside 0..255: they go from {low} to {high}",
            "encode text with ByteTokenizer",
        )


def check_targets(targets: Tensor, x: Tensor) -> None:
    """Raises TokenError unless there is a target for each place of x: a byte, or IGNORE
    where nothing is predicted.
    """
    if targets.shape != x.shape or targets.dtype != torch.long:
        raise TokenError(
            f"the targets come as {targets.dtype}, in the shape {tuple(targets.shape)}",
            f"give long ones in the shape of x, {tuple(x.shape)}",
        )
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    is_byte = (targets >= 0) & (targets < VOCAB)
    if not (is_byte | (targets == IGNORE)).all():
        raise TokenError(
            "a target is neither a byte, 0..255, nor -100",
            "set -100 where nothing is to be predicted, at padding for example",
        )


class Network(nn.Module):
    """The parameters, from bytes to logits: two tables, blocks, a norm, a matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.context = config.context
        width = config.d_model
        block = VanillaBlock if config.block == "vanilla" else RoutedBlock
        # PyTorch draws first values here, which init_weights replaces: on a forked
        # generator, so that making a network does not move the caller's numbers. And on
        # the CPU, where the generator of init_weights is: `to` moves it on.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            self.token = nn.Embedding(VOCAB, width)
            self.position = nn.Embedding(config.context, width)
            self.blocks = nn.ModuleList(block(config) for _ in range(config.n_blocks))
            self.norm = nn.LayerNorm(width)
            self.output = nn.Linear(width, VOCAB, bias=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token.weight.device

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draws the tables and all maps from normal distributions, of standard
        deviation 0.02 for tables and fan_in^-0.5 for maps. The rest keeps its first
        values: norms ones and zeros, the router zeros: a third for each pathway.

        Unlike GPT-2's: the output is not tied to the token table, nothing is scaled by
        depth, and logits begin with variance 1, so the first loss is near ln 256 + 1/2.
        """
        maps = (nn.Linear, TernaryLinear, TopKAttention, CausalConv)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, maps):
                # (out, in) of a map, (D, width) of the convolution
                fan_in = module.weight.shape[1]
                module.weight.normal_(0, fan_in**-0.5, generator=generator)

    def hidden(
        self, x: Tensor, states: list[Any] | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Takes bytes (B, T) through all blocks: the last one's output (B, T, D) and
        the router's p (B, blocks, T, 3), or None where there is no router.

        Training leaves `states` out. Generation passes one for each block (from its
        new_state) and the T new bytes alone, the first of which stands at position
        `start` of the window. With start = 0 all states are emptied first.
        """
        positions = self.position.weight[start : start + x.shape[1]]  # (T, D)
        h = self.token(x) + positions  # (B, T, D): the residual stream
        if states is None:
            states = [None] * len(self.blocks)
        elif start == 0:
            for state in states:
                state.restart()
        all_p = []  # of each block (B, T, 3), or None
        for block, state in zip(self.blocks, states, strict=True):
            h, p = block(h, state)
            all_p.append(p)
        if all_p[0] is None:
            return h, None
        return h, torch.stack(all_p, dim=1)

    def logits(self, h: Tensor) -> Tensor:
        """Turns a block's output into logits: (..., D) -> (..., 256)."""
        return self.output(self.norm(h))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T) long -> logits (B, T, 256). Raises TokenError for more than
        `context` tokens and, on a CPU, for one outside 0..255.
        """
        check_tokens(x, self.context)
        h, _ = self.hidden(x)
        return self.logits(h)

    def loss_terms(self, x: Tensor, targets: Tensor) -> LossTerms:
        """Computes the parts of the loss, as sums: x and targets (B, T). Where a target
        is -100 (padding, and what a person says to a chat model) a place counts neither
        for the loss nor for the balance; the router's use is that of all places.
        """
        h, p = self.hidden(x)
        logits = self.logits(h).flatten(0, 1)  # (B * T, 256)
        # Sums of thousands of bytes would drown in the 8 bits of bf16.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        mask = targets != IGNORE
        if p is None:  # vanilla blocks have no router
            balance, use = nats.new_zeros(()), nats.new_zeros(0, 3)
        else:
            balance = sequence_balance(p, mask).mean(1).sum()  # (B, blocks) -> scalar
            use = p.detach().mean(2).sum(0)  # (B, blocks, T, 3) -> (blocks, 3)
        return LossTerms(nats, mask.sum(), balance, use)

    def zero_shares(self) -> list[float]:
        """Share of the ternary weights that are 0, for each block that has them."""
        ffns = [block.ffn for block in self.blocks if isinstance(block, RoutedBlock)]
        return [(ffn.up.zero_share() + ffn.down.zero_share()) / 2 for ffn in ffns]

    def parameter_table(self) -> dict[str, int]:
        """Parameters by part; the values sum to the model's size."""
        parts = {
            "token": "token.",
            "position": "position.",
            "conv": ".conv.",
            "attention": ".attention.",
            "ffn": ".ffn.",
            "router": ".router.",
            "norms": "norm.",
            "output": "output.",
        }
        table = dict.fromkeys(parts, 0)
        for name, parameter in self.named_parameters():
            part = next(part for part, mark in parts.items() if mark in name)
            table[part] += parameter.numel()
        return table
