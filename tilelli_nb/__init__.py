"""tilelli_nb: the support package of the book. Its folders are
named after what a byte meets: data, model, training, inference. Names load when they
are first used.
"""

from importlib import import_module

__version__ = "0.1.0"

# name -> module that defines it; importing the package itself costs nothing
_EXPORTS = {
    "ByteTokenizer": "data.tokenizer",
    "CausalConv": "model.conv",
    "topk_attention": "model.attention",
    "TopKAttention": "model.attention",
    "ternarize": "model.ternary",
    "TernaryLinear": "model.ternary",
    "TernaryFFN": "model.ternary",
    "pack": "model.ternary",
    "unpack": "model.ternary",
    "Router": "model.router",
    "balance_loss": "model.router",
    "router_confidence": "model.router",
    "load_config": "config",
    "RoutedBlock": "model.network",
    "TilelliLM": "language_model",
    "prepare_shards": "data.shards",
    "open_shards": "data.shards",
    "load_record": "storage.records",
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
