"""tilelli_nb: the support package of the book. One module a chapter; names load when
they are first used.
"""

from importlib import import_module

__version__ = "0.1.0"

# name -> module that defines it; importing the package itself costs nothing
_EXPORTS = {
    "ByteTokenizer": "tokenizer",
    "CausalConv": "conv",
    "topk_attention": "attention",
    "TopKAttention": "attention",
    "ternarize": "ternary",
    "TernaryLinear": "ternary",
    "TernaryFFN": "ternary",
    "pack": "ternary",
    "unpack": "ternary",
    "Router": "router",
    "balance_loss": "router",
    "router_confidence": "router",
    "load_config": "config",
    "RoutedBlock": "model",
    "TilelliLM": "model",
    "prepare_shards": "shards",
    "open_shards": "shards",
    "load_record": "records",
    "TilelliError": "errors",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tilelli_nb' has no attribute {name!r}")
    value = getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
