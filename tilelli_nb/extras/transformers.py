"""The model for `transformers`: AutoModelForCausalLM, a tokenizer of bytes, pipelines,
and what is built on them.

Importing this module registers them; it needs the library transformers. After it, every
name that TilelliLM.from_pretrained takes works in AutoModelForCausalLM.from_pretrained;
for a bundled one give the folder that pretrained.resolve finds.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..errors import MissingDependency, TokenError
from ..inference.sampling import window_start
from ..language_model import TilelliLM
from ..model.network import IGNORE, VOCAB

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizer,
    )
    from transformers.modeling_outputs import CausalLMOutput
except ImportError as missing:
    raise MissingDependency(
        "this module needs the library transformers", "pip install 'transformers>=5'"
    ) from missing


class TilelliConfig(PreTrainedConfig):
    """A Config, under the names that transformers looks for."""

    model_type = "tilelli"

    def __init__(
        self,
        name: str = "unnamed",
        model: dict | None = None,
        train: dict | None = None,
        **kwargs: Any,
    ):
        self.name = name
        self.model = model or {}
        self.train = train or {}
        self.vocab_size = VOCAB
        self.max_position_embeddings = self.config.model.context
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(token, 0)  # byte 0 separates documents
        super().__init__(**kwargs)

    @property
    def config(self) -> Config:
        """Makes the book's own."""
        values = {"name": self.name, "model": self.model, "train": self.train}
        return Config.from_dict(values)


class TilelliForCausalLM(PreTrainedModel, GenerationMixin):
    """A TilelliLM as transformers calls it. It re-reads the window for each byte:
    TilelliLM.generate is much faster.
    """

    config_class = TilelliConfig
    base_model_prefix = "lm"
    main_input_name = "input_ids"

    def __init__(self, config: TilelliConfig) -> None:
        super().__init__(config)
        self.lm = TilelliLM(config.config)
        self.generation_config.use_cache = False
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Does nothing: TilelliLM has drawn them."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *args: Any, **kwargs: Any
    ) -> "TilelliForCausalLM":
        """Loads what TilelliLM.from_pretrained takes: a folder, packed or not, or the
        Hub. Other arguments are passed over.
        """
        lm = TilelliLM.from_pretrained(name)
        model = cls(TilelliConfig(**lm.config.to_dict()))
        model.lm = lm
        return model.eval()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """(B, T) long -> logits (B, T, 256); of more bytes than the context, only those
        of the window that is left.

        `labels` are the bytes themselves, shifted here; -100 is ignored. Raises
        TokenError for padding on the left.
        """
        if attention_mask is not None and not bool(attention_mask[:, :1].all()):
            raise TokenError(
                "a batch that is padded on the left",
                "pad on the right, or pass one text at a time",
            )
        start = window_start(input_ids.shape[1], self.lm.config.model.context)
        logits = self.lm(input_ids[:, start:])  # (B, the window's bytes, 256)
        loss = None
        if labels is not None:
            predicted = logits[:, :-1].flatten(0, 1)
            wanted = labels[:, start + 1 :].flatten()
            loss = F.cross_entropy(predicted, wanted, ignore_index=IGNORE)
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Passes the whole text each time: nothing is cached."""
        return {"input_ids": input_ids}


class TilelliTokenizer(PreTrainedTokenizer):
    """Bytes as tokens: number 104 is written chr(104). Byte 0 begins, ends and pads."""

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, **kwargs: Any) -> None:
        for token in ("bos_token", "eos_token", "pad_token"):
            kwargs.setdefault(token, "\0")
        kwargs.setdefault("padding_side", "right")
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *args: Any, **kwargs: Any
    ) -> "TilelliTokenizer":
        """Makes one: there is nothing to load."""
        return cls()

    @property
    def vocab_size(self) -> int:
        return VOCAB

    def get_vocab(self) -> dict[str, int]:
        return {chr(byte): byte for byte in range(VOCAB)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [chr(byte) for byte in text.encode("utf-8", errors="replace")]

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return bytes(map(ord, tokens)).decode("utf-8", errors="replace")

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[()]:
        return ()  # there is none to save


AutoConfig.register("tilelli", TilelliConfig)
AutoModelForCausalLM.register(TilelliConfig, TilelliForCausalLM)
AutoTokenizer.register(TilelliConfig, slow_tokenizer_class=TilelliTokenizer)
