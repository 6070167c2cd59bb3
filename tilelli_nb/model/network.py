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
    """What the three pathways of one block remember between bytes."""

    conv: Tensor
    attention: KVCache
    ffn: tuple[Tensor, Tensor]

    def restart(self) -> None:
        """Forgets all bytes."""
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
        y = self.norm(x)  # (B, T, D)
        p = self.router(y)  # (B, T, 3)
        local = self.conv(y, conv_state)
        sparse = self.attention(y, attention_state)
        dense = self.ffn(y, ffn_state)
        return mix(x, p, local, sparse, dense), p

    def new_state(self, batch: int, context: int) -> BlockState:
        """Room for what the pathways remember of `context` bytes."""
        return BlockState(
            self.conv.new_state(batch),
            self.attention.new_state(batch, context),
            self.ffn.new_state(),
        )


def mix(x: Tensor, p: Tensor, conv: Tensor, attention: Tensor, ffn: Tensor) -> Tensor:
    """Adds the weighted pathways to the residual: (..., D) each; p is (..., 3)."""
    return Mix.apply(x, p, conv, attention, ffn)


class Mix(torch.autograd.Function):
    """x + p_conv * conv + p_attention * attention + p_ffn * ffn, in half as many passes
    over memory as term by term.

    Autograd would also be right; by hand, each product is made once.
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
        self, balance_weight: float, predicted: int | Tensor, sequences: int
    ) -> Tensor:
        """Adds up what training makes smaller: nats per byte and the weighted balance
        loss, of a batch with so many predicted bytes and sequences.

        The terms may be those of one of the micro-batches that the batch is made of.
        """
        return self.nats / predicted + balance_weight * self.balance / sequences


class Network(nn.Module):
    """The parameters, from bytes to logits: two tables, blocks, a norm, a matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.context = config.context
        width = config.d_model
        block = VanillaBlock if config.block == "vanilla" else RoutedBlock
        # PyTorch draws the tables and the output, which init_weights replaces.
        with torch.random.fork_rng(devices=[]):
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
        """Draws every weight from a normal distribution. Its standard deviation is 0.02
        for the two tables and fan_in^-0.5 for all maps. The router stays at zero: at
        the start each pathway gets a third.
        """
        maps = (nn.Linear, TernaryLinear, TopKAttention, CausalConv)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, maps):
                fan_in = module.weight.shape[1]  # of a convolution: the bytes it hears
                module.weight.normal_(0, fan_in**-0.5, generator=generator)

    def hidden(
        self, x: Tensor, states: list[Any] | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Takes bytes (B, T) through all blocks: the last one's output (B, T, D) and
        the router's p (B, blocks, T, 3), or None where there is no router.

        With `states`, which the blocks keep between two calls, the bytes stand at
        positions start to start + T of a window; 0 begins a new one.
        """
        position = self.position.weight[start : start + x.shape[1]]  # (T, D)
        h = self.token(x) + position  # (B, T, D): the residual stream
        all_p = []
        for number, block in enumerate(self.blocks):
            state = None
            if states is not None:
                state = states[number]
                if start == 0:
                    state.restart()
            h, p = block(h, state)
            all_p.append(p)
        if all_p[0] is None:
            return h, None
        return h, torch.stack(all_p, dim=1)

    def logits(self, h: Tensor) -> Tensor:
        """Turns a block's output into logits: (..., D) -> (..., 256)."""
        return self.output(self.norm(h))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T) long -> logits (B, T, 256). Raises TokenError for a token outside
        0..255 or more than `context` of them.
        """
        self.check_tokens(x)
        h, _ = self.hidden(x)
        return self.logits(h)

    def loss_terms(self, x: Tensor, targets: Tensor) -> LossTerms:
        """Computes the parts of the loss, as sums: x and targets (B, T). A sequence's
        padding is where its target is -100.
        """
        h, p = self.hidden(x)
        logits = self.logits(h).flatten(0, 1)  # (B * T, 256)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        mask = targets != IGNORE
        if p is None:  # vanilla blocks have no router
            balance, use = nats.new_zeros(()), nats.new_zeros(0, 3)
        else:
            balance = sequence_balance(p, mask).mean(1).sum()
            use = p.detach().mean(2).sum(0)
        return LossTerms(nats, mask.sum(), balance, use)

    def zero_shares(self) -> list[float]:
        """Share of the ternary weights that are 0, for each block that has them."""
        ffns = [block.ffn for block in self.blocks if isinstance(block, RoutedBlock)]
        return [(ffn.up.zero_share() + ffn.down.zero_share()) / 2 for ffn in ffns]

    def check_tokens(self, x: Tensor) -> None:
        """Raises TokenError for what is not a byte, or too many bytes."""
        if x.shape[-1] > self.context:
            raise TokenError(
                f"{x.shape[-1]} bytes at once, but the model sees {self.context}",
                "pass fewer, or use generate() and score(), which move the window on",
            )
        if x.device.type != "cpu" or not x.numel() or torch.compiler.is_compiling():
            # on a GPU looking would make it wait, and a compiled graph cannot branch on
            # values
            return
        low, high = int(x.min()), int(x.max())
        if low < 0 or high >= VOCAB:
            raise TokenError(
                f"a token outside 0..255: they go from {low} to {high}",
                "encode text with ByteTokenizer",
            )

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
