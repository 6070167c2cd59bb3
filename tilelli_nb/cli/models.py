"""`tilelli pack`, `push` and `info`: what one does with a model that is trained."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from ..files import at_home, is_file, write_atomic
from .options import ModelArgument, read_text

PackedFolder = Annotated[Path, typer.Option(help="Folder for the packed model")]
Text = Annotated[
    Path | None,
    typer.Option(help="To measure what it costs; one that the model has not read"),
]
HubName = Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face Hub")]
Private = Annotated[bool, typer.Option("--private", help="Only for you")]


def pack(model: ModelArgument, out: PackedFolder, text: Text = None) -> None:
    """Writes a model in far fewer bytes, for inference only: five ternary codes a byte,
    the rest in int8.
    """
    from .. import pretrained
    from ..inference import generation_config
    from ..inference.chatting import read_gate
    from ..language_model import TilelliLM
    from ..storage.checkpoint import MODEL_FILE, SOURCES_FILE, refuse_to_lose_weights

    out = at_home(out)
    refuse_to_lose_weights(out)  # before anything is measured
    if is_file(out / "run.json"):
        raise ConfigError(
            f"--out {out} is the folder of a run",
            "choose another folder: the packed model would take the place of its own",
        )
    measured = read_text(text) if text else None
    # from_pretrained would drop the metadata, which the packed model keeps
    tensors, metadata = pretrained.load_model(model)
    lm = TilelliLM.from_tensors(tensors, metadata)
    folder = pretrained.resolve(model)
    lm.sampling_defaults = generation_config.read_defaults(folder)
    # save_packed writes the configuration itself; all else that is known goes along,
    # also what was measured when a packed model was packed
    about = dict(metadata)
    about.pop("config", None)
    note = lm.save_packed(out, measured, gate=read_gate(folder), **about)
    # a licence may ask that the authors of the text are named wherever the weights go
    sources = sources_beside(folder)
    if sources is None:
        (out / SOURCES_FILE).unlink(missing_ok=True)  # of another model
    else:
        write_atomic(out / SOURCES_FILE, sources.encode())
    before = sum(tensor.nbytes for tensor in tensors.values())  # as they are stored
    after = (out / MODEL_FILE).stat().st_size
    typer.echo(
        f"{out}: {after:,} bytes, {before / after:.1f} times fewer than the {before:,} "
        "of its weights before"
    )
    if text:
        typer.echo(
            f"{note['bits_per_byte']:.4f} bits per byte, "
            f"{note['bits_per_byte_before']:.4f} before, on "
            f"{note['text_bytes']:,} bytes of {text}"
        )
    else:
        typer.echo(
            "what it costs in bits per byte was not measured: give --text FILE, a text "
            "like those that the model was trained on, but not one of them"
        )
    typer.echo(f"next: tilelli generate --model {out} --weights ternary --stream")


def info(model: ModelArgument = "tilelli/nano") -> None:
    """Says what a model is: its sizes, its parameters part by part, and how well it
    does.
    """
    from .. import pretrained
    from ..inference import generation_config
    from ..language_model import TilelliLM

    tensors, metadata = pretrained.load_model(model)
    lm = TilelliLM.from_tensors(tensors, metadata)
    parameters = sum(parameter.numel() for parameter in lm.parameters())
    size = sum(tensor.nbytes for tensor in tensors.values())  # as they are stored
    typer.echo(
        f"{model}: configuration {lm.config.name}, "
        f"{parameters:,} parameters in {size:,} bytes"
    )
    for part, count in lm.parameter_table().items():
        typer.echo(f"  {part:<12}{count:>12,}")
    typer.echo(f"sizes: {listed(lm.config.to_dict()['model'])}")
    defaults = generation_config.read_defaults(pretrained.resolve(model))
    if defaults:
        typer.echo(f"sampled, unless told otherwise, with {listed(defaults)}")
    # what follows is known of some models only
    if metadata.get("val_bpb") is not None:
        typer.echo(f"held out: {metadata['val_bpb']:.4f} bits per byte")
    if "step" in metadata:
        of = lm.config.train.steps
        typer.echo(f"a checkpoint at step {metadata['step']:,} of {of:,}")
    note = metadata.get("packed")
    if note:
        cost = "what it costs was not measured"
        if "bits_per_byte" in note:
            more = note["bits_per_byte"] - note["bits_per_byte_before"]
            cost = f"{more:+.4f} bits per byte for it, "
            cost += f"measured on {note['text_bytes']:,} bytes"
        typer.echo(f"packed, format {note['version']}, for inference only: {cost}")


def listed(values: dict[str, object]) -> str:
    """Returns "d_model 128, n_blocks 4" for {"d_model": 128, "n_blocks": 4}."""
    return ", ".join(f"{name} {value}" for name, value in values.items())


def push(model: ModelArgument, name: HubName, private: Private = False) -> None:
    """Publishes a model on the Hugging Face Hub, with its gate and a card made from its
    run record if its folder holds them.
    """
    from .. import pretrained
    from ..inference import generation_config
    from ..inference.chatting import read_gate
    from ..language_model import TilelliLM
    from ..storage.records import load_record

    folder = pretrained.resolve(model)
    # a model without a run, such as a packed one, gets a shorter card
    record = None
    if is_file(folder / "run.json"):
        record = load_record(folder)
    # from_pretrained would drop the metadata, which goes along
    tensors, metadata = pretrained.load_from(folder)
    lm = TilelliLM.from_tensors(tensors, metadata)
    lm.sampling_defaults = generation_config.read_defaults(folder)
    about = dict(metadata)
    about.pop("config", None)  # the model has it
    gate, sources = read_gate(folder), sources_beside(folder)
    typer.echo(lm.push_to_hub(name, record, private, about, gate, sources))


def sources_beside(folder: Path) -> str | None:
    """What a model's folder says about whose text it was trained on, if it does."""
    from ..storage.checkpoint import SOURCES_FILE

    path = folder / SOURCES_FILE
    return path.read_text(encoding="utf-8") if is_file(path) else None
