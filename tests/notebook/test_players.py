"""The widgets of chapter 13: the traced text is the one that stream() writes, and the
bars say what a draw would do.
"""

import math
import re

import pytest
import torch
from tiny_models import random_ids, tiny

from tilelli_nb.inference.sampling import Sampling
from tilelli_nb.notebook import controls
from tilelli_nb.notebook import inference_widgets as players


@pytest.mark.parametrize("length", [0, 1, 5, 31, 32, 33, 90])
def test_a_trace_is_the_stream_with_its_probabilities_and_pathways(length):
    """Before, at and after the moment when the window of 32 is full; p and routes as
    one forward pass has them.
    """
    lm = tiny(context=32)
    ids, settings = (
        random_ids(length),
        {"max_new": 40, "temperature": 1.0, "seed": 3, "stop": ()},
    )
    traced = list(players.trace(lm.prepare(), ids, Sampling(**settings)))
    assert [byte for byte, *_ in traced] == list(lm.stream(ids, **settings))
    text = ids or [0]
    for byte, chance, shares in traced:
        start = 0 if len(text) <= 32 else 16 * math.ceil((len(text) - 32) / 16)
        with torch.no_grad():
            h, p = lm.hidden(torch.tensor([text[start:]]))
            expected = lm.logits(h)[0, -1].softmax(-1)
        assert chance == pytest.approx(float(expected[byte]), abs=1e-9)
        assert shares == pytest.approx(p[0, :, -1].mean(0).tolist(), abs=1e-9)
        text = [*text, byte]


def test_a_trace_does_not_notice_a_default_device():
    lm = tiny(dtype=torch.float32, context=16)
    form, sampling = lm.prepare(), lm.sampling(max_new=3, seed=0)
    expected = list(players.trace(form, [1, 2], sampling))
    torch.set_default_device("meta")
    try:
        found = list(players.trace(form, [1, 2], sampling))
    finally:
        torch.set_default_device(None)
    assert found == expected


def test_a_trace_ends_at_a_stop_byte():
    settings = {"temperature": 1.0, "seed": 3}
    model = tiny(context=32).prepare()
    first = [
        byte
        for byte, *_ in players.trace(model, [7], Sampling(20, stop=(), **settings))
    ]
    assert [
        byte
        for byte, *_ in players.trace(
            model, [7], Sampling(20, stop=(first[5],), **settings)
        )
    ] == first[:5]


def test_the_text_shows_each_character_once_and_its_colours():
    traced = [(byte, 1.0, [1.0, 0.0, 0.0]) for byte in "é<".encode()] + [
        (255, 0.5, [0.0, 0.5, 0.5])
    ]
    html = players.traced_text(b"a & b", traced)
    assert "<b>a &amp; b</b>" in html
    spans = re.findall(
        r'<span style="background:(#\w+);border-bottom:4px solid (#\w+)">(.*?)</span>',
        html,
    )
    assert [text for *_, text in spans] == ["", "é", "&lt;", "\ufffd"]
    # certain is white; the convolution's own colour
    assert spans[0][:2] == ("#FFFFFF", "#56B4E9")
    assert spans[3][1] == "#739E3A"  # half of #E69F00, half of #009E73
    assert "conv 75%" in html and "attention 12%" in html
    assert "conv 0%" in players.traced_text(b"", [])


def test_the_bars_tell_what_a_draw_would_do():
    logits = torch.full((256,), -50.0)
    logits[[32, 60, 200]] = torch.tensor([4.0, 2.0, 1.0]).log()
    svg = players.sampling_bars(logits, temperature=1.0, top_k=2, top_p=1.0)
    assert re.findall(r'text-anchor="end">(.*?)</text>', svg)[:6] == [
        "space",
        "66.7%",
        "&lt;",
        "33.3%",
        "byte 200",
        "never",
    ]
    assert "2 of 256 bytes can be drawn" in svg
    assert "0.92 bits" in svg  # 2/3 log2(3/2) + 1/3 log2 3
    assert (
        "1 of 256 bytes can be drawn, and a draw is worth 0.00 bits"
        in players.sampling_bars(logits, 1.0, 256, 0.5)
    )


def test_the_controls_change_what_is_shown(monkeypatch):
    shown, made = [], []
    monkeypatch.setattr(controls, "show_widget", made.append)
    monkeypatch.setattr(
        controls, "show_html", lambda html: shown.append(html) or shown.append
    )
    players.sampling_player(torch.arange(256.0), top_k=3)
    made[0].children[1].value = 1
    assert "3 of 256" in shown[0] and "1 of 256" in shown[1]

    shown.clear()
    players.stream_text(tiny(context=32).prepare(), "ab", max_new=20)
    box, _, button = made[1].children
    box.value = "xyz"
    button.click()
    assert (
        "<b>ab</b>" in shown[0]
        and all("<b>xyz</b>" in page for page in shown[1:])
        and len(shown) >= 2
    )
    assert not button.disabled


def test_without_ipywidgets_the_result_is_shown_all_the_same(monkeypatch):
    shown = []
    monkeypatch.setattr(controls, "ipywidgets", lambda: None)
    monkeypatch.setattr(
        controls, "show_html", lambda html: shown.append(html) or shown.append
    )
    players.sampling_player(torch.arange(256.0))
    players.stream_text(tiny(context=32).prepare(), "ab", max_new=5)
    assert "<svg" in shown[0] and "<b>ab</b>" in shown[1]
