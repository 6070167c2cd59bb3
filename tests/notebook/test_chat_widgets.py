"""The widgets of chapter 11: what is learned is what is coloured, and a conversation is
shown as it was, with whatever somebody typed made harmless.
"""

import re

import pytest
import torch
from tiny_models import tiny

from tilelli_nb.chat.template import encode_row
from tilelli_nb.inference.chatting import Reply, Spoken
from tilelli_nb.notebook import chat_widgets, controls
from tilelli_nb.notebook.chat_widgets import (
    chat_box,
    conversation_html,
    learned_bytes,
)


def coloured(html):
    """The characters on blue ground, and all others."""
    spans = re.findall(r'<span style="(.*?)">(.*?)</span>', html)
    on = "".join(text for style, text in spans if style)
    off = "".join(text for style, text in spans if not style)
    return on, off.replace("↵<br>", "\n")


@pytest.mark.parametrize(
    "turns",
    [
        [("Hi", "Hello.")],
        [("Was ist groß?", "Größe."), ("And é?", "Ü 🙂.")],
        [("<b>1</b> & 2", "a < b")],
    ],
)
def test_the_answers_and_their_ends_are_coloured_and_nothing_else(turns):
    on, off = coloured(learned_bytes(*encode_row(turns)))
    escaped = [answer.replace("<", "&lt;") for _, answer in turns]
    assert on == "".join(answer + "∎" for answer in escaped)
    for question, _ in turns:
        shown = question.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert f"USER: {shown}\nTILELLI: " in off


@pytest.mark.parametrize(
    ("read", "learned", "shown"),
    [
        (b"a\xffb", b"c", ("c", "a\ufffdb")),
        (b"\xe2\x88x", b"y\xffz", ("y\ufffdz", "\ufffd\ufffdx")),
        (b"\xc3", b"\xa9\0", ("∎", "é")),  # one character of two bytes
    ],
)
def test_a_byte_that_is_no_text_has_a_mark_of_its_own(read, learned, shown):
    """Each is shown as U+FFFD, which would be three bytes; a character belongs to the
    side of its first one.
    """
    whole = read + learned
    ids = torch.tensor(list(whole[:-1]))
    targets = torch.tensor([-100] * (len(read) - 1) + list(learned))
    assert coloured(learned_bytes(ids, targets)) == shown


def test_padding_is_read_and_not_learned():
    """A row of a batch: the byte behind its last place is known to nobody."""
    ids, targets = encode_row([("Hi", "Yes.")])
    padded = torch.cat([ids, torch.zeros(2, dtype=torch.long)])
    wanted = torch.cat([targets, torch.tensor([-100, -100])])
    # the byte 0 that is learned ends the answer; one more is padding
    assert coloured(learned_bytes(padded, wanted)) == (
        "Yes.∎",
        "USER: Hi\nTILELLI: ∎",
    )


def test_a_conversation_is_shown_and_nothing_in_it_runs():
    sure = Reply("Paris.", [Spoken(80, 0.9, 0.1)] * 4)
    held = Reply("I don't know.", [Spoken(80, 0.5, 0.4)], ("a note",), "<script>")
    html = conversation_html([("<i>Where?</i>", sure), ("And?", held)])
    assert "&lt;i&gt;Where?&lt;/i&gt;" in html and "<i>" not in html
    assert "sure 0.80" in html and "width:4.80em" in html
    assert "sure 0.10; a note; its answer began: &lt;script&gt;" in html
    assert "nothing said yet" in conversation_html([])


def test_the_box_asks_remembers_and_forgets(monkeypatch):
    widgets = pytest.importorskip("ipywidgets")
    made, pages = [], []
    monkeypatch.setattr(chat_widgets, "show_widget", made.append)
    monkeypatch.setattr(
        chat_widgets, "show_html", lambda html: pages.append(html) or pages.append
    )
    chat_box(tiny(dtype=torch.float32, context=256), ["One?"])
    box, slider, buttons = made[0].children
    ask, forget = buttons.children
    assert isinstance(ask, widgets.Button) and pages[-1].count("USER:") == 1
    box.value, slider.value = "Two?", 0.7
    ask.click()
    assert pages[-1].count("USER:") == 2 and "Two?" in pages[-1] and box.value == ""
    forget.click()
    assert "nothing said yet" in pages[-1]


def test_without_ipywidgets_the_conversation_stands_alone(monkeypatch):
    pages = []
    monkeypatch.setattr(controls, "ipywidgets", lambda: None)
    monkeypatch.setattr(chat_widgets, "ipywidgets", lambda: None)
    monkeypatch.setattr(chat_widgets, "show_html", pages.append)
    chat_box(tiny(dtype=torch.float32, context=256), ["One?", "Two?"])
    assert len(pages) == 1 and pages[0].count("TILELLI:") == 2
