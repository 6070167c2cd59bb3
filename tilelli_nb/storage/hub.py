"""Models on the Hugging Face Hub: fetched by name, published with a card that is made
from their run record.
"""

import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingDependency

MODEL_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # OWNER/NAME

# Nothing else of a repository is fetched or published. A model need not have them all.
FILES = [
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "gate.json",
    "README.md",
    "SOURCES.md",  # whose text it was trained on
]


def download(name: str, revision: str | None = None) -> Path:
    """The folder of the model OWNER/NAME, fetched once and then kept by the Hub's own
    cache. Raises CheckpointError.
    """
    library = import_hub()
    # The Hub's cache keeps one copy for all programs, and answers without network too.
    try:
        folder = library.snapshot_download(
            name, revision=revision, allow_patterns=FILES
        )
    # offline, no such model, not yours to read: each library below has its own kinds
    except Exception as error:
        raise CheckpointError(
            f"there is no model {name!r} in a folder here, and the Hugging Face Hub "
            f"did not give one ({type(error).__name__})",
            "check the name and the network; `tilelli/nano` is bundled and needs "
            "neither",
        ) from error
    return Path(folder)


def upload(folder: Path, name: str, private: bool = False) -> str:
    """Publishes a folder as OWNER/NAME and returns its address. The token is the one of
    `hf auth login` or HF_TOKEN. Raises CheckpointError.
    """
    api = import_hub().HfApi()
    try:
        # The second time the same name is given, its files are replaced. One that is
        # not there any more is deleted: an older model's gate is none of this one.
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise CheckpointError(
                f"{name} is on the Hub already, and everybody can read it",
                "make it private in its settings there, or choose another name",
            )
        address = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=FILES,
            delete_patterns=FILES,
        )
    except CheckpointError:
        raise
    # Whatever it was, the folder here is as it was.
    except Exception as error:
        raise CheckpointError(
            f"{name} could not be published on the Hugging Face Hub "
            f"({type(error).__name__})",
            "check the network, the name (OWNER/NAME) and your token: "
            "`hf auth login`, or HF_TOKEN",
        ) from error
    return str(address)


# The part between the dashes is for the Hub's search, the rest for people.
CARD = """\
---
license: apache-2.0
library_name: tilelli-nb
pipeline_tag: text-generation
tags: [byte-level, ternary, sparse-attention]
---

# {title}

A byte-level language model of {parameters:,} parameters, configuration `{config}`: \
{blocks} {kind} blocks of width {width}, context {context}.

```python
from tilelli_nb import ByteTokenizer, TilelliLM
tok = ByteTokenizer()
lm = TilelliLM.from_pretrained("{name}")
print(tok.decode(lm.generate(tok.encode("Once upon a time"))))
```
"""


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
    card = CARD.format(
        title=name.split("/")[-1],
        parameters=parameters,
        config=config["name"],
        blocks=model["n_blocks"],
        kind=model["block"],
        width=model["d_model"],
        context=model["context"],
        name=name,
    )
    if record is None:
        return card  # nobody knows how it came to be
    # A table without a head: Markdown asks for the two empty cells.
    lines = ["", "| | |", "|---|---|"]
    for title, value in card_rows(record).items():
        if value:  # a run without notes has no line for them
            lines.append(f"| {title} | {value} |")
    return card + "\n".join(lines) + "\n"


def card_rows(record: dict[str, Any]) -> dict[str, str]:
    """What a card says of the run that made the model, which may not have finished."""
    # A figure that was not taken says so: an empty cell could mean nought.
    data = record["data"]
    bits, usd = "not measured", "not billed"
    # A run that is still training, or was killed, has not noted what it took.
    steps, time = "not finished", "not finished"
    if record["steps"] is None:
        usd = "not finished"
    else:
        steps = f"{record['steps']:,}, {record['bytes_seen']:,} bytes"
    if record["wall_s"] is not None and record["bytes_per_s"] is not None:
        minutes = f"{record['wall_s'] / 60:.0f} minutes"
        speed = f"{record['bytes_per_s']:,.0f} bytes/s"
        # a Mac's GPU has no name
        machine = {"mps": "Mac's GPU"}.get(record["device"], "CPU")
        time = f"{minutes} on a {record['gpu_name'] or machine}, {speed}"
    if record["val_bpb"] is not None:
        bits = f"{record['val_bpb']:.4f} bits per byte"
    if record["usd"] is not None:
        usd = f"${record['usd']:.2f}"
    return {
        "trained on": (
            f"{data['source']}, {data['train_bytes']:,} bytes "
            f"(sha256 {data['sha256'][:12]}…)"
        ),
        "steps": f"{steps}, seed {record['seed']}",
        "held out": f"{bits}, of {data['val_bytes']:,} bytes that are not trained on",
        "time": time,
        "cost": usd,
        "code": f"commit {record['git']}, package {record['package_sha256'][:12]}…",
        "notes": record["notes"],
    }


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
