"""The model: bytes in, logits of the next byte out. Six (or four) routed blocks between
two matrices.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import pretrained
from .config import Config
from .data.tokenizer import ByteTokenizer
from .errors import CheckpointError, TokenError
from .files import write_atomic
from .inference import decoding, generation_config, packed
from .inference.prepared import Kept, Prepared
from .model.attention import TopKAttention
from .model.conv import CausalConv
from .model.network import IGNORE, VOCAB, LossTerms, RoutedBlock
from .model.router import Router, sequence_balance
from .model.ternary import TernaryFFN, TernaryLinear
from .model.vanilla import VanillaBlock
from .storage import checkpoint, hub

NOT_TRAINABLE = (
    "a packed model cannot be trained: the latent weights behind its codes are gone",
    "train the model that it was packed from, or begin with --init from that one",
)


class TilelliLM(nn.Module, decoding.Decoder):
    """The byte-level language model. Build it from a Config, or load it with
    `from_pretrained`.
    """

    def __init__(
        self, config: Config, seed: int | None = None, draw: bool = True
    ) -> None:
        """Weights are drawn from `seed` (the configuration's unless given) and leave
        the global generator alone.

        Without `draw` there is only room for them, filled with whatever was there:
        for who is about to call `load_weights`.
        """
        super().__init__()
        self.config, self.kept = config, Kept()
        # how it is sampled when nobody says how, such as {"temperature": 0.3}
        self.sampling_defaults: dict[str, Any] = {}
        c = config.model
        # PyTorch draws the embeddings and the output, which init_weights replaces
        with torch.random.fork_rng(devices=[]):
            self.token = nn.Embedding(VOCAB, c.d_model)
            self.position = nn.Embedding(c.context, c.d_model)
            block = VanillaBlock if c.block == "vanilla" else RoutedBlock
            self.blocks = nn.ModuleList(block(c) for _ in range(c.n_blocks))
            self.norm = nn.LayerNorm(c.d_model)
            self.output = nn.Linear(c.d_model, VOCAB, bias=False)
        if draw:
            seed = config.train.seed if seed is None else seed
            self.init_weights(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal: embeddings 0.02, linear maps fan_in^-0.5, convolution width^-0.5. The
        router stays at zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(
                module, (nn.Linear, TernaryLinear, TopKAttention, CausalConv)
            ):
                # a convolution channel hears `width` bytes
                fan_in = module.weight.shape[1]
                module.weight.normal_(0, fan_in**-0.5, generator=generator)

    def hidden(
        self, x: Tensor, states: list[Any] | None = None, start: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Bytes (B, T) -> the last block's output (B, T, D) and the router's p (B,
        blocks, T, 3) or None.

        With `states`, which the blocks keep between two calls, the bytes stand at
        positions start to start + T of a window; 0 begins a new one.
        """
        h = self.token(x) + self.position.weight[start : start + x.shape[1]]
        all_p = []
        for i, block in enumerate(self.blocks):
            if states is not None and start == 0:
                states[i].restart()
            h, p = block(h, states[i] if states is not None else None)
            all_p.append(p)
        return h, None if all_p[0] is None else torch.stack(all_p, dim=1)

    def logits(self, h: Tensor) -> Tensor:
        """(..., D) -> (..., 256)."""
        return self.output(self.norm(h))

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """x (B, T) long -> logits (B, T, 256); with targets (B, T), the scalar loss in
        nats instead.

        Targets of -100 are ignored. In train() the loss is cross-entropy plus the
        weighted balance term, in eval() cross-entropy alone. Raises TokenError for a
        token outside 0..255 or more than `context` of them.
        """
        self.check_tokens(x)
        if targets is None:
            return self.logits(self.hidden(x)[0])
        terms = self.loss_terms(x, targets)
        loss = terms.nats / terms.predicted
        return (
            loss + self.config.train.balance_weight * terms.balance / len(x)
            if self.training
            else loss
        )

    def loss_terms(self, x: Tensor, targets: Tensor) -> LossTerms:
        """The parts of the loss as sums: x and targets (B, T); a sequence's padding is
        where its target is -100.
        """
        h, p = self.hidden(x)
        logits = self.logits(h).flatten(0, 1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        mask = targets != IGNORE
        if p is None:
            return LossTerms(nats, mask.sum(), nats.new_zeros(()), nats.new_zeros(0, 3))
        return LossTerms(
            nats,
            mask.sum(),
            sequence_balance(p, mask).mean(1).sum(),
            p.detach().mean(2).sum(0),
        )

    def zero_shares(self) -> list[float]:
        """Share of the ternary weights that are 0, for each block that has them."""
        ffns = [block.ffn for block in self.blocks if isinstance(block, RoutedBlock)]
        return [(ffn.up.zero_share() + ffn.down.zero_share()) / 2 for ffn in ffns]

    def check_tokens(self, x: Tensor) -> None:
        if x.shape[-1] > self.config.model.context:
            raise TokenError(
                f"{x.shape[-1]} bytes at once, but the model sees {self.config.model.context}",
                "pass fewer, or use generate() and score(), which move the window along",
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
            table[next(part for part, mark in parts.items() if mark in name)] += (
                parameter.numel()
            )
        return table

    # One byte at a time: see inference.py for the rule of the window.

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.token.weight.device

    def new_state(self, batch: int = 1) -> decoding.State:
        """An empty memory for `step`."""
        context = self.config.model.context
        blocks = [block.new_state(batch, context) for block in self.blocks]
        return decoding.State(
            blocks, torch.zeros(batch, context, dtype=torch.long, device=self.device)
        )

    def step_blocks(self, x_t: Tensor, position: int, states: list[Any]) -> Tensor:
        """One byte through all the blocks, with nothing re-read: (B,) -> logits (B,
        256).
        """
        h, _ = self.hidden(x_t[:, None], states, position)
        return self.logits(h[:, 0])

    def prepare(self, weights: str = "fp32") -> Prepared:
        """The model for fast generation on a CPU, with weights in "fp32", "bf16",
        "int8" or "ternary"; see prepared.py.

        Raises ConfigError for another word, or where the blocks are not routed ones.
        """
        return Prepared(self, weights)

    def writer(self) -> decoding.Decoder:
        """What `generate` and `stream` write with: the prepared form, which is kept in
        memory beside the weights and as large as they are, or the model itself.

        The prepared form says the same sooner, where there is one: in fp32 on a CPU,
        not in train() or under autocast, and with the parts that it was built with.
        """
        is_fp32 = all(
            weight.device.type == "cpu" and weight.dtype == torch.float32
            for weight in self.parameters()
        )
        is_quiet = not self.training and not torch.is_autocast_enabled("cpu")
        if not (is_fp32 and is_quiet and self.is_as_built):
            return self
        return self.kept.of(self)

    @property
    def is_as_built(self) -> bool:
        """Whether this is a model of routed blocks that nobody has put another part,
        another method or a hook into, as one does to see what happens.
        """
        block = [RoutedBlock, nn.LayerNorm, Router, CausalConv, TopKAttention]
        block += [TernaryFFN, TernaryLinear, TernaryLinear]
        parts = [TilelliLM, nn.Embedding, nn.Embedding, nn.ModuleList]
        parts += [*block * len(self.blocks), nn.LayerNorm, nn.Linear]
        found = list(self.modules())
        if [type(part) for part in found] != parts:
            return False
        keeps = {block.attention.keep for block in self.blocks}
        methods = {"forward", "step", "hidden", "logits", "step_blocks"}
        is_touched = any(
            part._forward_hooks
            or part._forward_pre_hooks
            or methods & vars(part).keys()
            for part in found
        )
        return not is_touched and keeps == {self.config.model.keep}

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "TilelliLM":
        """A bundled model ("tilelli/nano"), a folder (of save_pretrained, save_packed,
        a run), a Hub id; in eval(), with the sampling defaults that lie beside it.
        """
        folder = pretrained.resolve(name)
        lm = cls.from_tensors(*pretrained.load_model(folder))
        lm.sampling_defaults = generation_config.read_defaults(folder)
        return lm

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], metadata: dict[str, Any]
    ) -> "TilelliLM":
        """The model that a file holds, packed or not; in eval()."""
        lm = cls(Config.from_dict(metadata["config"]), draw=False).eval()
        if "packed" in metadata:
            tensors = packed.unpack_weights(tensors, metadata["packed"], lm)
        lm.load_weights(tensors)
        return lm

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Copies named tensors into the model. Raises CheckpointError when a name or a
        shape does not fit.
        """
        if any(name.endswith(packed.CODES) for name in tensors):
            raise CheckpointError(*NOT_TRAINABLE)
        own = self.state_dict()
        wrong = [
            name
            for name in own.keys() | tensors.keys()
            if name not in own
            or name not in tensors
            or own[name].shape != tensors[name].shape
        ]
        if wrong:
            raise CheckpointError(
                f"the weights do not fit this model: {sorted(wrong)[0]} and {len(wrong) - 1} others",
                "load them with the configuration they were trained with",
            )
        self.load_state_dict(tensors)

    def train(self, mode: bool = True) -> "TilelliLM":
        """For training or not. Raises CheckpointError when the model is packed: its
        latent weights are gone.
        """
        if mode and self.is_packed:
            raise CheckpointError(*NOT_TRAINABLE)
        if mode:
            self.kept = Kept()  # of weights that are about to change
        return super().train(mode)

    @property
    def is_packed(self) -> bool:
        """Whether the ternary weights came from a packed file."""
        return any(
            isinstance(module, TernaryLinear) and module.packed
            for module in self.modules()
        )

    def save_pretrained(
        self, folder: str | Path, dtype: torch.dtype | None = None, **about: Any
    ) -> None:
        """Writes model.safetensors, config.json and, if the model has sampling defaults,
        generation_config.json; `dtype` (e.g. torch.bfloat16) makes the file smaller.
        """
        if self.is_packed:
            raise CheckpointError(
                "a packed model has no latent weights to save", "use save_packed()"
            )
        tensors = {
            name: tensor.to(dtype) if dtype else tensor
            for name, tensor in self.state_dict().items()
        }
        checkpoint.save_model(
            folder, tensors, {"config": self.config.to_dict(), **about}
        )
        generation_config.write_defaults(folder, self.sampling_defaults)

    def save_packed(
        self, folder: str | Path, text: str | bytes | None = None, **about: Any
    ) -> dict[str, Any]:
        """The same in a ninth of the bytes, for inference only: five ternary codes a
        byte, the other matrices in int8.

        With a held-out `text`, the file notes the bits per byte before and after.
        Returns what it says about packing.
        """
        tensors, note = (
            packed.pack_weights(self),
            {"version": packed.VERSION, "note": NOT_TRAINABLE[0]},
        )
        metadata = {"config": self.config.to_dict(), **about, "packed": note}
        if text:
            again = type(self).from_tensors(tensors, metadata)
            note |= {
                "bits_per_byte_before": self.score(text),
                "bits_per_byte": again.score(text),
                "text_bytes": len(ByteTokenizer().encode(text)),
            }
        checkpoint.save_model(folder, tensors, metadata)
        generation_config.write_defaults(folder, self.sampling_defaults)
        return note

    def push_to_hub(
        self, name: str, record: dict[str, Any] | None = None, private: bool = False
    ) -> str:
        """Publishes the model as OWNER/NAME on the Hugging Face Hub, with a card from
        its run record: its address.
        """
        with tempfile.TemporaryDirectory() as folder:
            (self.save_packed if self.is_packed else self.save_pretrained)(folder)
            card = hub.model_card(
                name,
                self.config.to_dict(),
                sum(p.numel() for p in self.parameters()),
                record,
            )
            write_atomic(Path(folder) / "README.md", card.encode())
            return hub.upload(Path(folder), name, private)
