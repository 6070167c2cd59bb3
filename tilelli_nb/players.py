"""The widgets of chapter 13: how the next byte is drawn, and a text that shows what each of its bytes was made of."""

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from html import escape
from itertools import count
from math import log2

import torch

from .errors import TilelliError
from .figures import DENSE, LOCAL, RED, SPARSE
from .inference import Sampling, draw, probabilities, window_start
from .router import PATHWAYS
from .tokenizer import ByteTokenizer
from .widgets import _ipywidgets, _show_html, _show_widget


def sampling_player(lm, prompt: str, temperature: float = 0.8, top_k: int = 256, top_p: float = 1.0) -> None:
    """A prompt, and sliders for temperature, top-k and top-p: how probable each next byte is before and after them."""
    def page(prompt: str, temperature: float, top_k: int, top_p: float) -> str:
        ids = ByteTokenizer().encode(prompt) or [0]
        with torch.no_grad():
            logits = lm(torch.tensor([ids[window_start(len(ids), lm.config.model.context):]]))[0, -1]
        return sampling_bars(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))

    controls, values = [], (prompt, temperature, top_k, top_p)
    if widgets := _ipywidgets():
        same = {"layout": widgets.Layout(width="auto", max_width="32em"), "style": {"description_width": "7em"}}
        controls = [widgets.Text(value=prompt, description="Prompt:", **same),
                    widgets.FloatSlider(temperature, min=0.05, max=2, step=0.05, description="Temperature:", **same),
                    widgets.IntSlider(top_k, min=1, max=256, description="top-k:", **same),
                    widgets.FloatSlider(top_p, min=0.01, max=1, step=0.01, description="top-p:", **same)]
        _show_widget(widgets.VBox(controls))
    update = _show_html(page(*values))
    for control in controls:
        control.observe(lambda _: update(page(*(c.value for c in controls))), names="value")


def sampling_bars(logits: torch.Tensor, sampling: Sampling, rows: int = 14) -> str:
    """SVG: for the most probable bytes, what the model believes in grey and how often each is drawn in colour."""
    believed, drawn, bars = logits.double().softmax(-1), probabilities(logits, sampling), []
    for row, byte in enumerate(believed.topk(rows).indices.tolist()):
        y, name = 24 * row, escape(chr(byte)) if 32 < byte < 127 else {32: "space"}.get(byte, f"byte {byte}")
        bars.append(f'<text x="66" y="{y + 16}" text-anchor="end">{name}</text><rect x="74" y="{y + 2}" height="9" '
                    f'width="{260 * believed[byte]:.1f}" fill="#ABABAB"/><rect x="74" y="{y + 11}" height="9" '
                    f'width="{260 * drawn[byte]:.1f}" fill="{RED}"/><text x="400" y="{y + 16}" text-anchor="end">'
                    f'{f"{drawn[byte]:.1%}" if drawn[byte] else "never"}</text>')
    can, bits = int((drawn > 0).sum()), float(-(drawn * drawn.clamp(min=1e-300).log2()).sum())
    said = f"{can} of 256 bytes can be drawn; the choice holds {max(bits, 0):.2f} bits."
    return (f'<svg role="img" aria-label="The {rows} most probable next bytes. {said}" viewBox="0 0 404 {24 * rows + 2}"'
            f' style="width:100%;max-width:32em;background:#FFFFFF" fill="#222222" font-size="14">{"".join(bars)}</svg>'
            f"<p>Grey: what the model believes. Red: how often the byte is drawn. {said}</p>")


@torch.no_grad()
def trace(model, ids: Sequence[int], sampling: Sampling) -> Iterator[tuple[int, float, list[float]]]:
    """The bytes of `model.stream`, each with the model's probability for it and the pathways' weights (3,) behind that.

    `model` is a prepared one, whose state holds the routers' weights; they are averaged over the blocks.
    """
    def read() -> tuple:  # byte by byte, which leaves the routers' weights in the state
        state = model.new_state(1)
        for byte in text[window_start(len(text), context):]:
            logits = model.step(torch.tensor([byte]), state)
        return state, logits

    context, text, generator = model.config.model.context, list(ids) or [0], sampling.generator(0)
    state, logits = read()
    for _ in range(sampling.max_new):
        byte = draw(logits[0], sampling, generator)
        if byte in sampling.stop:
            return
        yield byte, float(logits[0].softmax(-1)[byte]), state.blocks.p[:, 0, 0].mean(0).tolist()
        text.append(byte)
        if state.length == context:
            state, logits = read()
        else:
            logits = model.step(torch.tensor([byte]), state)


def traced_text(prompt: Sequence[int], traced: list[tuple[int, float, list[float]]]) -> str:
    """HTML: the prompt in bold, then each new byte on a redder ground the less probable it was, and underlined in the
    mixture of the pathways' colours that its prediction came from."""
    def mixed(colours: Sequence[str], weights: Sequence[float]) -> str:
        parts = [sum(w * int(c[i:i + 2], 16) for c, w in zip(colours, weights, strict=True)) for i in (1, 3, 5)]
        return "#" + "".join(f"{min(round(part), 255):02X}" for part in parts)

    def ground(chance: float) -> str:
        surprise = min(-log2(max(chance, 1e-9)) / 10, 0.6)  # full after six bits; the ink stays readable
        return mixed(("#FFFFFF", RED), (1 - surprise, surprise))

    colours, decoder, body = (LOCAL, SPARSE, DENSE), getincrementaldecoder("utf-8")("replace"), []
    for byte, chance, shares in traced:
        if piece := decoder.decode(bytes([byte])):  # a character comes with its last byte
            style = f"background:{ground(chance)};border-bottom:4px solid {mixed(colours, shares)}"
            body.append(f'<span style="{style}">{escape(piece)}</span>')
    means = [sum(column) / len(traced) for column in zip(*(shares for *_, shares in traced), strict=True)]
    legend = " ".join(f'<span style="border-bottom:4px solid {colour}">{name} {mean:.0%}</span>'
                      for name, colour, mean in zip(PATHWAYS, colours, means or (0, 0, 0), strict=True))
    scale = " ".join(f'<span style="background:{ground(chance)};padding:0 .4em">{chance:.0%}</span>'
                     for chance in (1, 0.5, 0.1, 0.01))
    return (f'<div style="background:#FFFFFF;color:#222222;padding:.5em"><p>Ground, the byte\'s probability: {scale}<br>'
            f'Line, what carried it, on average: {legend}</p><p style="font-family:monospace;line-height:1.9;'
            f'white-space:pre-wrap;overflow-wrap:anywhere"><b>{escape(ByteTokenizer().decode(prompt))}</b>'
            f'{"".join(body)}</p></div>')


def stream_text(model, prompt: str = "Once upon a time", max_new: int = 240, temperature: float = 0.8,
                seed: int = 0) -> None:
    """A prompt, a temperature and a button: the prepared `model` goes on, and the text appears as it is written.

    See `traced_text` for what the colours say. Each press takes the next seed.
    """
    def pages(prompt: str, temperature: float, seed: int) -> Iterator[str]:
        ids, traced = ByteTokenizer().encode(prompt), []
        try:
            for traced_byte in trace(model, ids, Sampling(max_new, temperature, seed=seed)):
                traced.append(traced_byte)
                if len(traced) % 8 == 0:  # more often than the eye can follow would only be slower
                    yield traced_text(ids, traced)
            yield traced_text(ids, traced)
        except TilelliError as error:
            yield f"<pre>{escape(str(error))}</pre>"

    button = None
    if widgets := _ipywidgets():
        same = {"layout": widgets.Layout(width="auto", max_width="32em"), "style": {"description_width": "7em"}}
        box = widgets.Text(value=prompt, description="My text:", **same)
        slider = widgets.FloatSlider(temperature, min=0, max=1.5, step=0.05, description="Temperature:", **same)
        button = widgets.Button(description="Continue")
        _show_widget(widgets.VBox([box, slider, button]))
    update, seeds = _show_html([*pages(prompt, temperature, seed)][-1]), count(seed + 1)

    def press(_) -> None:
        button.disabled = True  # a second click while the model writes would only queue up
        try:
            for page in pages(box.value, slider.value, next(seeds)):
                update(page)
        finally:
            button.disabled = False

    if button:
        button.on_click(press)
