"""The language model: a network that also decodes, scores, and can be saved and loaded."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import pretrained
from .config import Config
from .data.tokenizer import ByteTokenizer
from .errors import CheckpointError
from .files import write_atomic
from .inference import decoding, generation_config, packed
from .inference.prepared import Kept, Prepared
from .model.attention import TopKAttention
from .model.conv import CausalConv
from .model.network import Network, RoutedBlock
from .model.router import Router
from .model.ternary import TernaryFFN, TernaryLinear
from .storage import checkpoint, hub

NOT_TRAINABLE = (
    "a packed model cannot be trained: the latent weights behind its codes are gone",
    "train the model that it was packed from, or begin with --init from that one",
)


class TilelliLM(Network, decoding.Decoder):
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
        super().__init__(config.model)
        self.config, self.kept = config, Kept()
        # how it is sampled when nobody says how, such as {"temperature": 0.3}
        self.sampling_defaults: dict[str, Any] = {}
        if draw:
            seed = config.train.seed if seed is None else seed
            self.init_weights(torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """x (B, T) long -> logits (B, T, 256); with targets (B, T), the scalar loss in
        nats instead.

        Targets of -100 are ignored. In train() the loss is cross-entropy plus the
        weighted balance term, in eval() cross-entropy alone. Raises TokenError for a
        token outside 0..255 or more than `context` of them.
        """
        if targets is None:
            return super().forward(x)
        self.check_tokens(x)
        terms = self.loss_terms(x, targets)
        weight = self.config.train.balance_weight if self.training else 0.0
        return terms.objective(weight, terms.predicted, len(x))

    # One byte at a time: see inference.py for the rule of the window.

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
