"""The model for `transformers`: AutoModelForCausalLM, a tokenizer of bytes, pipelines,
and what is built on them.

Importing this module registers them; it needs the library transformers. After it, every
name that TilelliLM.from_pretrained takes works in AutoModelForCausalLM.from_pretrained;
for a bundled one give the folder that pretrained.resolve finds.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import pretrained
from ..config import Config
from ..errors import CheckpointError, ConfigError, MissingDependency, TokenError
from ..files import at_home
from ..inference import generation_config
from ..inference.sampling import window_start
from ..language_model import TilelliLM
from ..model.network import IGNORE, VOCAB
from ..model.ternary import TernaryLinear
from ..storage import hub

try:
    from huggingface_hub import split_torch_state_dict_into_shards as split_weights
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
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


# arguments of from_pretrained that name other files, or another kind of answer
NOT_FOLLOWED = ("subfolder", "variant", "cache_dir", "token", "output_loading_info")
# arguments of save_pretrained that would make files which nobody here reads
NOT_WRITTEN = ("variant", "distributed_checkpoint")


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
        self.generation_config.use_cache = False  # forward remembers nothing
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Does nothing: TilelliLM has drawn them."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *args: Any, **kwargs: Any
    ) -> "TilelliForCausalLM":
        """Loads what TilelliLM.from_pretrained takes (a folder, packed or not, or the
        Hub), and what save_pretrained of this class has written. It samples as the
        folder's generation_config.json says. Other arguments, such as dtype and
        device_map, are those of transformers.

        Raises ConfigError for those that would change what is read, but `revision`: of
        a model on the Hub it is followed, and what lies on this machine has none.
        """
        for option in NOT_FOLLOWED:
            if kwargs.get(option):
                raise ConfigError(
                    f"{option} = {kwargs[option]!r} is not followed here",
                    "leave it out; the Hub's token comes from `hf auth login`",
                )
        folder = folder_of(name, kwargs.get("revision"))
        lm = TilelliLM.from_pretrained(folder)
        asked = kwargs.get("config")
        if asked is not None and asked.config.model != lm.config.model:
            raise ConfigError(
                "config describes another model than the one that is there",
                "leave it out; to change a setting, change it in model.lm",
            )
        if kwargs.get("generation_config") is None:
            kwargs["generation_config"] = sampling_of(folder)
        # transformers does the rest, from weights instead of a place to read them.
        kwargs["config"] = TilelliConfig(**lm.config.to_dict())
        weights = {f"lm.{key}": weight for key, weight in lm.state_dict().items()}
        model = super().from_pretrained(None, *args, state_dict=weights, **kwargs)
        for name, module in model.lm.named_modules():
            if isinstance(module, TernaryLinear):  # codes that are not rounded again
                module.packed = lm.get_submodule(name).packed
        return model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves as transformers does, with all weights in one file.

        Raises CheckpointError for a packed model, ConfigError for arguments by which
        there would be other files, or more than one.
        """
        if self.lm.is_packed:
            raise CheckpointError(
                "a packed model has no latent weights to save",
                "use model.lm.save_packed(folder)",
            )
        for option in NOT_WRITTEN:
            if kwargs.get(option):
                raise ConfigError(
                    f"{option} = {kwargs[option]!r} would write what is not read here",
                    "leave it out: the weights are one file, model.safetensors",
                )
        most = kwargs.get("max_shard_size")
        weights = kwargs.get("state_dict") or self.state_dict()
        if most and split_weights(weights, max_shard_size=most).is_sharded:
            raise ConfigError(
                f"max_shard_size = {most!r} would cut the weights into several files, "
                "which are not read here",
                "leave it out: the weights are one file, model.safetensors",
            )
        super().save_pretrained(*args, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """(B, T) long -> logits (B, T, 256), or of the last `logits_to_keep` places, or
        of those that it lists. A text longer than the context is read by the rule of
        the window.

        Padding (where `attention_mask` is 0) may stand on either side; logits there
        mean nothing. `labels` are the bytes themselves, at the places whose logits are
        kept, shifted here; -100 is ignored. The loss is cross-entropy alone, without
        the router's balance. Raises TokenError for padding inside a text, and for
        labels of other places.
        """
        T = input_ids.shape[1]
        left = padding_on_the_left(input_ids, attention_mask)  # (B, 1)
        # Each text from its own position 0; the padding goes behind it, where a causal
        # model does not see it.
        places = torch.arange(T, device=input_ids.device)
        aligned = input_ids.gather(1, (places + left) % T)
        # of 0, which stands for all, [-0:] takes all
        kept = logits_to_keep
        if isinstance(kept, int):
            kept = slice(-kept, None)
        wanted = places[kept] - left  # (B, kept); negative: padding
        if labels is not None and labels.shape != wanted.shape:
            raise TokenError(
                f"labels of shape {tuple(labels.shape)} for logits of "
                f"{tuple(wanted.shape)} places",
                "leave logits_to_keep out, or cut the labels as it cuts the logits",
            )
        logits = self.windowed_logits(aligned, wanted.clamp(min=0))
        loss = None
        if labels is not None:
            # Nothing precedes a text's first byte, least of all padding.
            labels = labels.masked_fill(wanted == 0, IGNORE)
            loss = self.loss_function(logits, labels, vocab_size=VOCAB, **kwargs)
        return CausalLMOutput(loss=loss, logits=logits)

    def windowed_logits(self, x: Tensor, wanted: Tensor) -> Tensor:
        """Reads each row of x (B, T) in windows: the logits (B, kept, 256) at the
        places `wanted` (B, kept).
        """
        context = self.lm.config.model.context
        numbers = wanted.cpu() + 1  # how many bytes have been read there
        starts = numbers.apply_(lambda n: window_start(n, context)).to(x.device)
        logits = None
        # all places that the same window serves, in whichever row, are read at once
        for start in starts.unique().tolist():
            window = x[:, start : start + context]
            read = self.lm(window)  # (B, the window's bytes, 256)
            inside = (wanted - start).clamp(0, window.shape[1] - 1)
            found = read.gather(1, inside[..., None].expand(-1, -1, VOCAB))
            in_this_window = (starts == start)[..., None]
            logits = found if logits is None else found.where(in_this_window, logits)
        return logits

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. A cache is neither made nor needed, whoever asks for one:
        evaluation harnesses do.
        """
        kwargs["use_cache"] = False
        return super().generate(*args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Passes the whole text each time: nothing is cached."""
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "logits_to_keep": 1,
        }


def folder_of(name: str | Path, revision: str | None) -> Path:
    """The folder of a model, fetched from the Hub if need be. One that lies here, in a
    folder or with the package, is the same with any revision, as in transformers.

    Raises CheckpointError where there is no such model.
    """
    is_bundled = str(name).startswith("tilelli/")
    is_here = is_bundled or at_home(name).is_dir()
    if revision in (None, "main") or is_here:
        folder = pretrained.resolve(name)
    else:
        folder = hub.download(str(name), revision)
    return folder.absolute()  # ./tilelli/nano, as a Path, is not the bundled model


def sampling_of(folder: Path) -> GenerationConfig | None:
    """How the model in a folder is sampled, by its generation_config.json; None where
    there is no such file. What the file leaves out is the library's default, but text
    ends at byte 0.
    """
    if not (folder / generation_config.FILE).is_file():
        return None
    found = GenerationConfig.from_pretrained(folder)
    found.use_cache = False  # forward remembers nothing
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(found, token) is None:
            setattr(found, token, 0)
    return found


def padding_on_the_left(input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """How many places before each text are padding: (B, T), and the same or None ->
    (B, 1). Raises TokenError where the mask has a hole.
    """
    if mask is None:
        return input_ids.new_zeros(len(input_ids), 1)
    is_text = mask.bool()
    # A row's text is in one piece if it begins once: 0 before, 1 here.
    before = F.pad(is_text, (1, 0))[:, :-1]
    begins = is_text & ~before
    if is_text.shape != input_ids.shape or bool((begins.sum(1) > 1).any()):
        raise TokenError(
            "an attention_mask that is not one piece of ones in each row",
            "pad texts on the left or on the right, not inside",
        )
    return begins.long().argmax(1, keepdim=True)


SPECIAL = ("bos_token", "eos_token", "pad_token")

SETTINGS = (  # of the tokenizer
    *SPECIAL,
    "padding_side",
    "truncation_side",
    "model_max_length",
    "model_input_names",
    "chat_template",
    "clean_up_tokenization_spaces",
    "split_special_tokens",
    "name_or_path",
    "verbose",
)

OF_FILES = (  # where and how transformers looks for files: the tokenizer has none
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "token",
    "revision",
    "code_revision",
    "trust_remote_code",
    "use_fast",
)


class TilelliTokenizer(PreTrainedTokenizer):
    """Bytes as tokens: number 104 is written chr(104). Byte 0 begins, ends and pads."""

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, **kwargs: Any) -> None:
        """Takes SETTINGS, which mean what they mean in transformers.

        Raises TokenError for another special token than byte 0, which would be no byte,
        and ConfigError for what is no setting.
        """
        for name, value in kwargs.items():
            is_another = name in SPECIAL and str(value) != "\0"
            is_new = name.endswith(("_token", "_tokens")) and name not in SETTINGS
            if is_another or (is_new and value):
                raise TokenError(
                    f"{name} = {value!r}",
                    "leave it out: byte 0 begins, ends and pads every text, and there "
                    "are no tokens but the 256 bytes",
                )
            if name not in SETTINGS and not is_new:
                raise ConfigError(
                    f"the tokenizer has no setting {name!r}",
                    f"leave it out; there are {', '.join(SETTINGS)}",
                )
        for token in SPECIAL:
            kwargs.setdefault(token, "\0")
        # what is written goes on at the right
        kwargs.setdefault("padding_side", "left")
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *args: Any, **kwargs: Any
    ) -> "TilelliTokenizer":
        """Makes one: there is nothing to load but the settings that save_pretrained
        wrote. Those given here win. Raises the errors of TilelliTokenizer().
        """
        saved = Path(name) / "tokenizer_config.json"
        found = json.loads(saved.read_text("utf-8")) if saved.is_file() else {}
        said = {key: found.get(key) for key in SETTINGS}
        template = Path(name) / "chat_template.jinja"
        if template.is_file():
            said["chat_template"] = template.read_text("utf-8")
        for key, value in kwargs.items():
            # transformers passes its own notes along, such as _from_auto
            is_note = key.startswith("_") or (key, value) == ("subfolder", "")
            if value is not None and key not in OF_FILES and not is_note:
                said[key] = value
        settings = {key: value for key, value in said.items() if value is not None}
        return cls(**settings)

    @property
    def vocab_size(self) -> int:
        return VOCAB

    def get_vocab(self) -> dict[str, int]:
        return {chr(byte): byte for byte in range(VOCAB)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [chr(byte) for byte in text.encode("utf-8", errors="replace")]

    def _convert_token_to_id(self, token: str) -> int:
        if len(token) != 1 or ord(token) >= VOCAB:
            raise TokenError(f"{token!r} is no token", "a token is one byte, chr(byte)")
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < VOCAB:
            raise TokenError(f"{index} is no token", "tokens are bytes: 0 to 255")
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
