"""`tilelli generate` and `tilelli score`: what a model writes, and what it makes of a
text.
"""

import re
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .options import ModelOption, Weights, read_input, read_text, refuse

MAX_NEW = 400  # bytes, where neither the command nor the model says how many

Prompt = Annotated[
    str, typer.Argument(help="What to continue; - reads it from the standard input")
]
MaxNew = Annotated[
    int | None,
    typer.Option(
        help=f"Bytes at most; the model's own number unless given, or {MAX_NEW}"
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 is greedy, 1 is what the model believes; the model's own unless "
        "given, or 0.8"
    ),
]
TopK = Annotated[int | None, typer.Option(help="Draw from the k most probable bytes")]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw from the fewest bytes that together reach p"),
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text")]
Stream = Annotated[
    bool, typer.Option("--stream", help="Print each character as it comes")
]
File = Annotated[
    Path,
    typer.Argument(help="A text; - reads it from the standard input", allow_dash=True),
]
Sliding = Annotated[
    bool, typer.Option("--sliding", help="Let each byte see at least half a window")
]


class PromptCommand(TyperCommand):
    """A command whose argument may begin with a dash, as a line of a list does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Takes what cannot be an option, since it holds spaces, for the prompt."""
        prompts = [arg for arg in args if re.match(r"-(?!-?[a-z][\w-]*=)\S*\s", arg)]
        if prompts and "--" not in args:
            others = [arg for arg in args if arg not in prompts]
            args = [*others, "--", *prompts]  # behind -- there are no options
        return super().parse_args(ctx, args)


def generate(
    prompt: Prompt = "",
    model: ModelOption = "tilelli/nano",
    max_new: MaxNew = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stream: Stream = False,
    weights: Weights = "fp32",
) -> None:
    """Continues a text, byte by byte, until the model ends the document or --max-new is
    reached.
    """
    from ..data.tokenizer import ByteTokenizer

    tokenizer = ByteTokenizer()
    for_chance = {"top-k": top_k, "top-p": top_p, "seed": seed}
    if temperature == 0:
        refuse(
            for_chance,
            "without effect at --temperature 0, which always takes the likeliest byte",
            "leave it out, or give a temperature above 0",
        )
    lm = load(model, weights)
    # the model's own setting counts where none is given
    if temperature is None and lm.sampling().temperature == 0:
        refuse(
            for_chance,
            f"without effect at temperature 0, which {model} has of its own: it always "
            "takes the likeliest byte",
            "leave it out, or give --temperature above 0",
        )
    # bytes need not be UTF-8, and a model of bytes does not mind
    text = read_input() if prompt == "-" else typed_bytes(prompt)
    ids = tokenizer.encode(text)
    # the other settings that are not given, the model itself looks up
    if max_new is None:
        max_new = lm.sampling_defaults.get("max_new", MAX_NEW)
    settings = {
        "max_new": max_new,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
    }
    if not stream:
        typer.echo(tokenizer.decode(lm.generate(ids, **settings)))
        return
    # tokenizer.stream holds a character back until its last byte is there
    new = lm.stream(ids, **settings)  # before the prompt is shown: it may raise
    for piece in tokenizer.stream(chain(ids, new)):  # a prompt may end in half of one
        typer.echo(piece, nl=False)  # flushes, so that a pipe shows it too
    typer.echo()


def typed_bytes(text: str) -> str | bytes:
    """An argument as it was typed: bytes that are no UTF-8 came as halves of surrogate
    pairs (PEP 383), and become themselves again.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other halves, as Windows lets one type them
        return text


def score(
    file: File,
    model: ModelOption = "tilelli/nano",
    sliding: Sliding = False,
    weights: Weights = "fp32",
) -> None:
    """Says how many bits a model needs for each byte of a text: less is better, 8 is
    knowing nothing.
    """
    from ..inference.sampling import window_stride

    lm = load(model, weights)
    text = read_text(file)
    # a number of bits means little without how it was measured
    context = lm.config.model.context
    if sliding:
        way = f"a window that moves on by {window_stride(context)}"
    else:
        way = f"chunks of {context}"
    typer.echo(
        f"{lm.score(text, sliding):.4f} bits per byte over {len(text):,} bytes, "
        f"in {way}: {model}, {weights}"
    )


def load(model: str, weights: str) -> Any:
    """Returns the model with its weights in one of the forms of `TilelliLM.prepare`."""
    from ..language_model import TilelliLM

    lm = TilelliLM.from_pretrained(model)
    if weights == "fp32":
        return lm  # it prepares itself, where that is possible
    return lm.prepare(weights)
