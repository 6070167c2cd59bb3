"""The language model: a network that also writes, scores, and can be saved and
loaded.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from . import pretrained
from .config import Config
from .data.tokenizer import ByteTokenizer
from .errors import CheckpointError
from .files import at_home, write_atomic
from .inference import decoding, generation_config, packed
from .inference.chatting import Gate, Talker, write_gate
from .inference.prepared import Prepared
from .model.network import Network, check_targets, check_tokens
from .model.ternary import TernaryLinear
from .storage import checkpoint, hub

NOT_TRAINABLE = (
    "a packed model cannot be trained: the latent weights behind its codes are gone",
    "begin a run from it with --init, which draws new ones with the same codes, or "
    "train the model that it was packed from",
)


class FastForm(NamedTuple):
    """The prepared form behind a model's own `generate`."""

    made_of: list[Tensor]  # copies of the weights as they were then
    prepared: Prepared


# Beside the models, not in them, so that copies and files do not carry it; a model that
# is gone takes its form along.
FORMS: WeakKeyDictionary["TilelliLM", FastForm] = WeakKeyDictionary()


# what may change in a part that computes the same
NOT_SETTINGS = ("training", "is_softened")


def all_equal(weights: list[Tensor], others: list[Tensor]) -> bool:
    """Whether the tensors (fp32, on the CPU) hold the same numbers. Takes about as long
    as writing two bytes.
    """
    for weight, other in zip(weights, others, strict=True):
        if not np.array_equal(weight.numpy(), other.numpy()):
            return False
    return True


def make_of(part: nn.Module) -> tuple[type, Callable, list[str], dict[str, Any]]:
    """The class of a part, what it computes by, which weights it has of its own (a bias
    may have been given to it, or taken away), and its settings: the plain values that
    it holds, such as how many keys are kept.
    """
    weights = [
        name for name, _ in part.named_parameters(recurse=False, remove_duplicate=False)
    ]
    settings = {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, int | float | str) and name not in NOT_SETTINGS
    }
    return type(part), type(part).forward, weights, settings


class TilelliLM(Network, Talker):
    """The byte-level language model. Build it from a Config, or load it with
    `from_pretrained`.
    """

    def __init__(
        self, config: Config, seed: int | None = None, draw: bool = True
    ) -> None:
        """Draws the weights from `seed` (the configuration's unless given), and leaves
        the global generator alone.

        Without `draw` there is only room for them, filled with whatever was there:
        for who is about to call `load_weights`. Raises ConfigError for a seed that is
        no whole number from 0.
        """
        super().__init__(config.model)
        self.config = config
        self.built_from = [make_of(part) for part in self.modules()]  # see is_as_built
        # whether q and k have been made small for a training already: training/soften
        self.is_softened = False
        # how it is sampled when nobody says how, such as {"temperature": 0.3}
        self.sampling_defaults: dict[str, Any] = {}
        if draw:
            if seed is not None:  # as in a configuration: numpy's numbers, and a range
                config = config.with_train(seed=seed)
            seed = config.train.seed
            self.init_weights(torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        """x (B, T) long -> logits (B, T, 256); with targets (B, T), the scalar loss in
        nats instead.

        Targets of -100 are ignored. In train() the loss is cross-entropy plus the
        weighted balance term, in eval() cross-entropy alone. Raises TokenError for a
        token or target that is no byte, or more than `context` of them.
        """
        if targets is None:
            return super().forward(x)
        check_tokens(x, self.context)
        check_targets(targets, x)
        terms = self.loss_terms(x, targets)
        weight = self.config.train.balance_weight if self.training else 0.0
        return terms.objective(weight, terms.predicted, len(x))

    # One byte at a time: inference/decoding.py has the rule of the window.

    def new_state(self, batch: int = 1) -> decoding.DecodeState:
        """Makes an empty memory for `step`."""
        context = self.config.model.context
        blocks = [block.new_state(batch, context) for block in self.blocks]
        window = torch.zeros(batch, context, dtype=torch.long, device=self.device)
        return decoding.DecodeState(blocks, window)

    def step_blocks(self, x_t: Tensor, position: int, states: list[Any]) -> Tensor:
        """Reads one byte through all the blocks: (B,) -> logits (B, 256)."""
        h, _ = self.hidden(x_t[:, None], states, position)  # (B, 1, D)
        return self.logits(h[:, 0])

    # A faster form for generation.

    def prepare(self, weights: str = "fp32") -> Prepared:
        """Copies the model into a form for fast generation on a CPU, with weights in
        "fp32", "bf16", "int8" or "ternary"; see inference/prepared.py.

        Raises ConfigError for another word, where the blocks are not routed ones, or
        where the output was given a bias.
        """
        return Prepared(self, weights)

    def fast_form(self) -> decoding.Decoder:
        """Returns what `generate` and `stream` compute with: the prepared form, if it
        writes the same text as this model, else the model itself.

        The form is made when it is first needed and kept, beside a copy of the weights
        by which a later call sees whether they have changed: together twice the memory
        of the weights.
        """
        if not (self.is_ready_for_fast_form() and self.is_as_built()):
            return self
        # by their names: one that two parts share counts for both
        named = self.named_parameters(remove_duplicate=False)
        weights = [weight.detach() for _, weight in named]
        if self not in FORMS or not all_equal(weights, FORMS[self].made_of):
            copies = [weight.clone() for weight in weights]
            FORMS[self] = FastForm(copies, self.prepare())
        return FORMS[self].prepared

    def is_ready_for_fast_form(self) -> bool:
        """Whether a form in fp32 would say the same now: the model is in fp32 on a CPU,
        not in train(), not under autocast.
        """
        if self.training or torch.is_autocast_enabled("cpu"):
            return False
        for weight in self.parameters():
            if weight.device.type != "cpu" or weight.dtype != torch.float32:
                return False
        return True

    def is_as_built(self) -> bool:
        """Whether this is a routed model with the parts of its constructor, unchanged:
        people replace them, give them other settings, or hook into them, to see what
        happens.
        """
        if type(self) is not TilelliLM or self.config.model.block != "routed":
            return False
        parts = list(self.modules())
        if [make_of(part) for part in parts] != self.built_from:
            return False
        for part in parts:
            # the form would not call them
            if part._forward_hooks or part._forward_pre_hooks:
                return False
            # a method that was set on this one object
            if any(callable(value) for value in vars(part).values()):
                return False
        return True

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "TilelliLM":
        """Loads a bundled model ("tilelli/nano"), a folder (of save_pretrained,
        save_packed, a run) or a Hub id: in eval(), with the sampling defaults that lie
        beside it. Raises CheckpointError where there is none, or it is damaged.
        """
        folder = pretrained.resolve(name)
        lm = cls.from_tensors(*pretrained.load_from(folder))
        lm.sampling_defaults = generation_config.read_defaults(folder)
        return lm

    @classmethod
    def from_tensors(
        cls, tensors: dict[str, Tensor], metadata: dict[str, Any]
    ) -> "TilelliLM":
        """Builds the model that a file holds, packed or not; in eval()."""
        lm = cls(Config.from_dict(metadata["config"]), draw=False).eval()
        if "packed" in metadata:
            weights = packed.unpack_weights(tensors, metadata["packed"], lm)
            lm.copy_in(weights)
            # a layer that came from codes knows it: that is how this model is built
            lm.built_from = [make_of(part) for part in lm.modules()]
        else:
            lm.load_weights(tensors)
        lm.is_softened = lm.config.train.qk_scale != 1
        return lm

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Copies named tensors into the model, which can then be trained. Raises
        CheckpointError when a name or a shape does not fit, or where they are those of
        a packed model: to round its ternary weights again would give another model.
        """
        # codes of a packed file: from_tensors unpacks them
        if any(name.endswith(packed.CODES) for name in tensors):
            raise CheckpointError(*NOT_TRAINABLE)
        layers = {
            f"{path}.weight": module
            for path, module in self.named_modules()
            if isinstance(module, TernaryLinear)
        }
        ternary = [tensors[name] for name in layers if name in tensors]
        if ternary and all(map(packed.are_codes, ternary)):
            raise CheckpointError(*NOT_TRAINABLE)
        self.copy_in(tensors)
        if self.is_packed:  # it was, and has latent weights now
            for layer in layers.values():
                layer.packed = False
            self.built_from = [make_of(part) for part in self.modules()]
        self.is_softened = False  # who loads softened ones says so afterwards

    def copy_in(self, tensors: dict[str, Tensor]) -> None:
        """Copies named tensors into the model, whatever they are. Raises
        CheckpointError when a name or a shape does not fit.
        """
        own = self.state_dict()
        wrong = own.keys() ^ tensors.keys()  # names that only one of the two has
        for name in own.keys() & tensors.keys():
            if own[name].shape != tensors[name].shape:
                wrong.add(name)
        if wrong:
            raise CheckpointError(
                f"the weights do not fit this model: {min(wrong)} and "
                f"{len(wrong) - 1} others",
                "load them with the configuration they were trained with",
            )
        self.load_state_dict(tensors)

    def train(self, mode: bool = True) -> "TilelliLM":
        """Sets the mode, training or not. Raises CheckpointError when the model is
        packed: its latent weights are gone.
        """
        if mode and self.is_packed:
            raise CheckpointError(*NOT_TRAINABLE)
        if mode:
            FORMS.pop(self, None)  # the weights are about to change
        return super().train(mode)

    @property
    def is_packed(self) -> bool:
        """Whether the ternary weights came from a packed file."""
        return any(
            isinstance(module, TernaryLinear) and module.packed
            for module in self.modules()
        )

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        gate: Gate | None = None,
        **about: Any,
    ) -> None:
        """Writes model.safetensors, config.json and, with sampling defaults,
        generation_config.json; `dtype` (e.g. torch.bfloat16) makes the file smaller. A
        chat model may have a `gate`, for which there is gate.json. Raises
        CheckpointError for a packed model, GenerationError for sampling defaults that
        cannot be.
        """
        if self.is_packed:
            raise CheckpointError(
                "a packed model has no latent weights to save", "use save_packed()"
            )
        folder = at_home(folder)
        generation_config.to_values(self.sampling_defaults)  # raises before all writing
        tensors = self.state_dict()
        if dtype is not None:
            tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        metadata = {"config": self.config.to_dict(), **about}
        checkpoint.save_model(folder, tensors, metadata)
        generation_config.write_defaults(folder, self.sampling_defaults)
        write_gate(folder, gate)

    def save_packed(
        self,
        folder: str | Path,
        text: str | bytes | None = None,
        gate: Gate | None = None,
        **about: Any,
    ) -> dict[str, Any]:
        """Writes the same files with far fewer bytes, for inference only: five ternary
        codes a byte, the other matrices in int8. A lite_10m takes a ninth.

        With a held-out `text`, the file notes the bits per byte before and after; None
        alone means that nothing is measured. Returns what it says about packing. Raises
        TokenError for an empty text, before anything is written, and CheckpointError
        for a folder that holds the latent weights.
        """
        folder = at_home(folder)
        generation_config.to_values(self.sampling_defaults)  # raises before all writing
        tensors = packed.pack_weights(self)
        # of a model that is packed again: it stays the same, and so what was measured
        earlier = about.get("packed", {})
        note = {**earlier, "version": packed.VERSION, "note": NOT_TRAINABLE[0]}
        metadata = {"config": self.config.to_dict(), **about, "packed": note}
        if text is not None:
            unpacked = type(self).from_tensors(tensors, metadata)  # as it is loaded
            # metadata holds this very dictionary, so that the file will say it
            note["bits_per_byte_before"] = self.score(text)
            note["bits_per_byte"] = unpacked.score(text)
            note["text_bytes"] = len(ByteTokenizer().encode(text))
        checkpoint.save_model(folder, tensors, metadata)
        generation_config.write_defaults(folder, self.sampling_defaults)
        write_gate(folder, gate)
        return note

    def push_to_hub(
        self,
        name: str,
        record: dict[str, Any] | None = None,
        private: bool = False,
        about: dict[str, Any] | None = None,
        gate: Gate | None = None,
        sources: str | None = None,
    ) -> str:
        """Publishes the model as OWNER/NAME on the Hugging Face Hub, with a card from
        its run record, and returns its address.

        `about` is what else its file notes, such as {"val_bpb": 1.2}; `gate` is put
        beside the weights of a chat model, and so is what its licence may ask for,
        `sources`: whose text it was trained on, in Markdown. Raises CheckpointError
        where the Hub does not take it.
        """
        about = about or {}
        parameters = sum(p.numel() for p in self.parameters())
        card = hub.model_card(name, self.config.to_dict(), parameters, record)
        with tempfile.TemporaryDirectory() as folder:
            # a packed vanilla model has no codes to tell it by, but its file notes it
            if self.is_packed or "packed" in about:
                self.save_packed(folder, gate=gate, **about)
            else:
                self.save_pretrained(folder, gate=gate, **about)
            write_atomic(Path(folder) / "README.md", card.encode())
            if sources is not None:
                path = Path(folder) / checkpoint.SOURCES_FILE
                write_atomic(path, sources.encode())
            return hub.upload(Path(folder), name, private)
