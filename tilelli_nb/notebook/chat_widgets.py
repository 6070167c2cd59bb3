"""The widgets of chapter 11: a conversation, and a row as the model learns from it."""

from collections.abc import Sequence
from html import escape

from torch import Tensor

from ..inference.chatting import Conversation, Gate, Reply
from .controls import Control, ipywidgets, mixture, show_html, show_widget
from .figures import BLUE, PAPER, RED

SURE_TO_UNSURE = (BLUE, RED)


def chat_box(lm, questions: Sequence[str], gate: Gate | None = None) -> None:
    """Shows a conversation that begins with these questions, and below it a box for the
    next one, a temperature and two buttons.
    """
    conversation = Conversation(lm, gate, seed=0)
    turns = [(question, conversation.ask(question)) for question in questions]
    widgets = ipywidgets()
    if widgets is None:  # without ipywidgets the turns alone are shown
        show_html(conversation_html(turns))
        return
    box = Control("Text", "", "USER:").make(widgets)
    heat = {"min": 0, "max": 1.5, "step": 0.05}
    slider = Control("FloatSlider", 0.0, "Temperature:", heat).make(widgets)
    ask = widgets.Button(description="Ask")
    forget = widgets.Button(description="Forget")
    show_widget(widgets.VBox([box, slider, widgets.HBox([ask, forget])]))
    update = show_html(conversation_html(turns))

    def press_ask(_) -> None:
        nonlocal conversation
        earlier = conversation.history
        # a new one, for the slider's temperature
        conversation = Conversation(lm, gate, slider.value, seed=0, history=earlier)
        turns.append((box.value, conversation.ask(box.value)))
        box.value = ""
        update(conversation_html(turns))

    def press_forget(_) -> None:
        conversation.reset()
        turns.clear()
        update(conversation_html(turns))

    ask.on_click(press_ask)
    forget.on_click(press_forget)


def conversation_html(turns: Sequence[tuple[str, Reply]]) -> str:
    """Returns the turns as HTML: each question, the answer under it, and beside the
    answer a bar for how sure the model was.
    """
    lines = ""
    for question, reply in turns:
        sure = reply.margin
        colour = mixture((sure, 1 - sure), SURE_TO_UNSURE)
        bar = (
            '<span style="display:inline-block;width:6em;background:#DDDDDD">'
            f'<span style="display:inline-block;width:{6 * sure:.2f}em;height:.7em;'
            f'background:{colour}"></span></span>'
        )
        about = [f"sure {sure:.2f}", *reply.notes]
        if reply.held_back is not None:
            about.append(f"its answer began: {reply.held_back}")
        lines += (
            f"<p><b>USER:</b> {escape(question)}<br>"
            f"<b>TILELLI:</b> {escape(reply.text)} {bar} "
            f"<small>{escape('; '.join(about))}</small></p>"
        )
    return (
        f'<div style="background:{PAPER};color:#222222;padding:.5em;max-width:40em">'
        f"{lines or '<p>(nothing said yet)</p>'}</div>"
    )


def learned_bytes(ids: Tensor, targets: Tensor) -> str:
    """Returns a row as HTML, ids and targets (T,): what is read in plain letters, and
    on blue ground what is learned. Byte 0 is shown as ∎.
    """
    body = ""
    # the byte at each place, and whether it is the target of the place before
    all_ids = ids.tolist()
    is_learned = [False, *(targets >= 0).tolist()]
    if is_learned[-1]:
        all_ids.append(int(targets[-1]))
    is_learned = is_learned[: len(all_ids)]  # nothing is known behind padding
    text = bytes(all_ids).replace(b"\0", "∎".encode())  # one byte becomes three
    marks: list[bool] = []
    for byte, learned in zip(all_ids, is_learned, strict=True):
        marks += [learned] * (len("∎".encode()) if byte == 0 else 1)
    place = 0
    # a byte that is no UTF-8 is a character by itself, which gives the byte back
    for character in text.decode("utf-8", errors="surrogateescape"):
        data = character.encode("utf-8", errors="surrogateescape")
        learned = marks[place]
        place += len(data)
        shown = escape(data.decode("utf-8", errors="replace"))
        shown = "↵<br>" if shown == "\n" else shown
        ground = f"background:{mixture((0.3, 0.7), (BLUE, PAPER))}" if learned else ""
        body += f'<span style="{ground}">{shown}</span>'
    return (
        f'<div style="background:{PAPER};color:#222222;padding:.5em;'
        'font-family:monospace;line-height:1.9;overflow-wrap:anywhere">'
        f"{body}</div>"
    )
