"""`tilelli chat`: questions at the keyboard, answers as they come."""

import re
import sys
from typing import Annotated

import typer

from .options import ModelOption, refuse

HELP = "Ask something. /reset forgets the conversation, /quit or Ctrl-D ends it."
ONCE_MORE = "Ctrl-C once more, Ctrl-D or /quit ends the conversation."
COMMAND = re.compile(r"/[a-z]+")

Temperature = Annotated[
    float, typer.Option(help="0 gives the likeliest answer, more makes it vary")
]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answers")]
Confidence = Annotated[
    bool, typer.Option(help="Say beside each answer how sure the model was of it")
]
UseGate = Annotated[
    bool | None,
    typer.Option(
        "--gate/--no-gate",
        help="Answer I don't know where the model is less sure than its gate asks "
        "for; yes where it has one",
        show_default=False,
    ),
]


def chat(
    model: ModelOption,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    confidence: Confidence = True,
    gate: UseGate = None,
) -> None:
    """Talks with a model that was trained to chat. Ctrl-C ends an answer, Ctrl-D (or
    Ctrl-C twice) the conversation. With --no-gate every answer is given.
    """
    from .. import pretrained
    from ..errors import CheckpointError
    from ..inference.chatting import Conversation, read_gate
    from ..language_model import TilelliLM

    if temperature == 0:
        refuse(
            {"seed": seed},
            "without effect at --temperature 0, which always takes the likeliest byte",
            "leave it out, or give a temperature above 0",
        )
    lm = TilelliLM.from_pretrained(model)
    # None, neither of the two options: a gate is used where there is one
    found = None if gate is False else read_gate(pretrained.resolve(model))
    if gate and found is None:
        raise CheckpointError(
            f"{model} has no gate", "leave --gate out, or use a model that has one"
        )
    conversation = Conversation(lm, found, temperature, seed)
    typer.echo(HELP, err=True)
    is_warned = False
    while True:
        try:
            question = read_line()
        except KeyboardInterrupt:  # often meant for an answer that has just ended
            typer.echo()
            if is_warned:
                return
            is_warned = True
            typer.echo(ONCE_MORE, err=True)
            continue
        is_warned = False
        command = "" if question is None else question.strip().lower()
        if question is None or command == "/quit":
            return
        if command == "/reset":
            conversation.reset()
            typer.echo("(forgotten)", err=True)
        elif COMMAND.fullmatch(command):  # a misspelt one is no question
            typer.echo(HELP, err=True)
        else:
            answer(conversation, question, confidence)


def read_line() -> str | None:
    """A line from the keyboard, or from a file that stands for it; None at its end."""
    if sys.stdin is None:  # whoever started the program has closed it
        return None
    try:
        # input() shows its prompt, and knows the keys that edit a line
        if sys.stdin.isatty():
            return input("USER: ")
        line = sys.stdin.buffer.readline()  # whatever bytes a pipe holds
    except EOFError:
        typer.echo()
        return None
    if not line:
        return None
    # the conversation says what it makes of bytes that are no text; "sig" is the mark
    # that editors on Windows begin a file with
    return line.decode("utf-8-sig", errors="surrogateescape").rstrip("\r\n")


def answer(conversation, question: str, with_confidence: bool) -> None:
    """Prints an answer as it comes, then what there is to say about it."""
    from ..chat.template import is_break

    typer.echo("TILELLI: ", nl=False)
    pieces = conversation.stream(question)  # nothing is computed yet
    try:
        for piece in pieces:
            # the model will read it so, and a terminal would take it for orders
            shown = "".join(" " if is_break(letter) else letter for letter in piece)
            typer.echo(shown, nl=False)
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
