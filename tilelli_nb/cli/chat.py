"""`tilelli chat`: questions at the keyboard, answers as they come."""

import sys
from typing import Annotated

import typer

from .options import ModelOption

HELP = "Ask something. /reset forgets the conversation, /quit or Ctrl-D ends it."

Temperature = Annotated[
    float, typer.Option(help="0 gives the likeliest answer, more makes it vary")
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answers")]
Confidence = Annotated[
    bool, typer.Option(help="Say beside each answer how sure the model was of it")
]
UseGate = Annotated[
    bool,
    typer.Option(
        "--gate/--no-gate",
        help="Answer I don't know where the model is less sure than its threshold",
    ),
]


def chat(
    model: ModelOption,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    confidence: Confidence = True,
    gate: UseGate = False,
) -> None:
    """Talks with a model that was trained to chat. Ctrl-C ends an answer, Ctrl-D the
    conversation.
    """
    from .. import pretrained
    from ..errors import CheckpointError
    from ..inference.chatting import Conversation, read_gate
    from ..language_model import TilelliLM

    lm = TilelliLM.from_pretrained(model)
    found = read_gate(pretrained.resolve(model)) if gate else None
    if gate and found is None:
        raise CheckpointError(
            f"{model} has no gate", "leave --gate out, or use a model that has one"
        )
    conversation = Conversation(lm, found, temperature, seed)
    typer.echo(HELP, err=True)
    while True:
        question = read_line()
        if question is None or question.strip() == "/quit":
            return
        if question.strip() == "/reset":
            conversation.reset()
            typer.echo("(forgotten)", err=True)
            continue
        answer(conversation, question, confidence)


def read_line() -> str | None:
    """A line from the keyboard, or from a file that stands for it; None at its end and
    at Ctrl-C.
    """
    try:
        # input() shows its prompt, and knows the keys that edit a line
        if sys.stdin.isatty():
            return input("USER: ")
        line = sys.stdin.buffer.readline()  # whatever bytes a pipe holds
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return None
    if not line:
        return None
    return line.decode("utf-8", errors="replace").rstrip("\r\n")


def answer(conversation, question: str, with_confidence: bool) -> None:
    """Prints an answer as it comes, then what there is to say about it."""
    typer.echo("TILELLI: ", nl=False)
    pieces = conversation.stream(question)  # nothing is computed yet
    try:
        for piece in pieces:
            typer.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # what was said stays in the history
        typer.echo(" ...", nl=False)
    typer.echo()
    reply = conversation.reply
    about = list(reply.notes)
    if reply.held_back is not None:
        about.append("the model was not sure of its answer")
    if with_confidence and reply.spoken:
        about.append(f"confidence {reply.margin:.2f}")
    if about:
        typer.echo(f"  ({'; '.join(about)})", err=True)
