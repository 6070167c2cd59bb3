"""Models on the Hugging Face Hub: fetched by name, published with a card that is made
from their run record.
"""

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingDependency

MODEL_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


FILES = ["model.safetensors", "config.json", "generation_config.json", "README.md"]


def download(name: str, revision: str | None = None) -> Path:
    """The folder of the model OWNER/NAME, fetched once and then kept by the Hub's own
    cache. Raises CheckpointError.
    """
    library = import_hub()
    try:
        return Path(
            library.snapshot_download(name, revision=revision, allow_patterns=FILES)
        )
    # offline, no such model, not yours to read: each library below has its own kinds
    except Exception as error:
        raise CheckpointError(
            f"there is no model {name!r} in a folder here, and the Hugging Face Hub did not give one "
            f"({type(error).__name__})",
            "check the name and the network; `tilelli/nano` is bundled and needs neither",
        ) from error


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Publishes a folder as OWNER/NAME and returns its address. The token is the one of
    `hf auth login` or HF_TOKEN.
    """
    api = import_hub().HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(
            api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=FILES)
        )
    except Exception as error:
        raise CheckpointError(
            f"{name} could not be published on the Hugging Face Hub ({type(error).__name__})",
            "check the network, the name (OWNER/NAME) and your token: `hf auth login`, or HF_TOKEN",
        ) from error


def model_card(
    name: str,
    config: dict[str, Any],
    parameters: int,
    record: dict[str, Any] | None = None,
) -> str:
    """README.md of a model: what it is, and from its run record (if there is one) how
    it came to be.
    """
    model = config["model"]
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: tilelli-nb",
        "pipeline_tag: text-generation",
        "tags: [byte-level, ternary, sparse-attention]",
        "---",
        "",
        f"# {name.split('/')[-1]}",
        "",
        f"A byte-level language model of {parameters:,} parameters, configuration `{config['name']}`: "
        f"{model['n_blocks']} {model['block']} blocks of width {model['d_model']}, context {model['context']}.",
        "",
        "```python",
        "from tilelli_nb import ByteTokenizer, TilelliLM",
        "tok = ByteTokenizer()",
        f'lm = TilelliLM.from_pretrained("{name}")',
        'print(tok.decode(lm.generate(tok.encode("Once upon a time"))))',
        "```",
    ]
    if record:
        data, used = record["data"], record["gpu_name"] or "CPU"
        bits = (
            f"{record['val_bpb']:.4f}"
            if record["val_bpb"] is not None
            else "not measured"
        )
        rows = {
            "trained on": f"{data['source']}, {data['train_bytes']:,} bytes (sha256 {data['sha256'][:12]}…)",
            "steps": f"{record['steps']:,}, {record['bytes_seen']:,} bytes, seed {record['seed']}",
            "held out": f"{bits} bits per byte, of {data['val_bytes']:,} bytes that are not trained on",
            "time": f"{record['wall_s'] / 60:.0f} minutes on a {used}, {record['bytes_per_s']:,.0f} bytes/s",
            "cost": f"${record['usd']:.2f}"
            if record["usd"] is not None
            else "not billed",
            "code": f"commit {record['git']}, package {record['package_sha256'][:12]}…",
            "notes": record["notes"],
        }
        lines += [
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items() if value),
        ]
    return "\n".join(lines) + "\n"


def import_hub() -> Any:
    """The library; only who needs it waits for it."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(
            "the Hugging Face Hub needs the library huggingface_hub",
            "pip install huggingface_hub",
        ) from error
    return huggingface_hub
