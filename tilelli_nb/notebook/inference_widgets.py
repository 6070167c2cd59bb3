"""The widgets of chapter 13: how the next byte is drawn, and a text that shows what
each of its bytes was made of.
"""

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from html import escape
from itertools import count
from math import log2

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..inference.decoding import prefill_prompt
from ..inference.sampling import Sampling, probabilities, sample_next
from ..model.router import PATHWAYS
from .figures import DENSE, LOCAL, RED, SPARSE
from .widgets import _ipywidgets, _mixture, _show_html, _show_widget

# for a phone
NARROW = {
    "layout": {"width": "auto", "max_width": "32em"},
    "style": {"description_width": "7em"},
}


def sampling_player(
    logits: Tensor, temperature: float = 0.8, top_k: int = 256, top_p: float = 1.0
) -> None:
    """Sliders for temperature, top-k and top-p over the logits (256,) of the next byte,
    and what they make of it.
    """
    sliders = []
    if widgets := _ipywidgets():
        sliders = [
            widgets.FloatSlider(
                temperature,
                min=0.05,
                max=2,
                step=0.05,
                description="Temperature:",
                **NARROW,
            ),
            widgets.IntSlider(top_k, min=1, max=256, description="top-k:", **NARROW),
            widgets.FloatSlider(
                top_p, min=0.01, max=1, step=0.01, description="top-p:", **NARROW
            ),
        ]
        _show_widget(widgets.VBox(sliders))
    update = _show_html(sampling_bars(logits, temperature, top_k, top_p))
    for slider in sliders:
        slider.observe(
            lambda _: update(sampling_bars(logits, *(s.value for s in sliders))),
            names="value",
        )


def sampling_bars(
    logits: Tensor, temperature: float, top_k: int, top_p: float, rows: int = 12
) -> str:
    """SVG: for the most probable bytes, what the model believes in grey and how often
    each is drawn in red.
    """
    believed, bars = logits.double().softmax(-1), []
    drawn = probabilities(
        logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    for y, byte in enumerate(believed.topk(rows).indices.tolist()):
        name = (
            "space"
            if byte == 32
            else escape(chr(byte))
            if 32 < byte < 127
            else f"byte {byte}"
        )
        share = f"{drawn[byte]:.1%}" if drawn[byte] else "never"
        bars.append(
            f'<g transform="translate(0 {24 * y})"><text x="66" y="16" text-anchor="end">{name}</text>'
            f'<rect x="74" y="2" height="9" width="{260 * believed[byte]:.1f}" fill="#ABABAB"/><rect x="74" '
            f'y="11" height="9" width="{260 * drawn[byte]:.1f}" fill="{RED}"/><text x="400" y="16" '
            f'text-anchor="end">{share}</text></g>'
        )
    bits = float(torch.special.entr(drawn).sum() / torch.tensor(2.0).log())
    said = f"{int((drawn > 0).sum())} of 256 bytes can be drawn, and a draw is worth {bits:.2f} bits."
    return (
        f'<svg role="img" aria-label="The most probable next bytes. {said}" viewBox="0 0 404 {24 * rows}" style='
        f'"width:100%;max-width:32em;background:#FFFFFF" fill="#222222" font-size="14">{"".join(bars)}</svg>'
        f"<p>Grey: what the model believes. Red: how often the byte is drawn. {said}</p>"
    )


@torch.no_grad()
def trace(
    model, ids: Sequence[int], sampling: Sampling
) -> Iterator[tuple[int, float, list[float]]]:
    """The bytes of `model.stream`, each with the model's own probability for it and the
    weights of the pathways (3,) behind that, averaged over the blocks. `model` is a
    prepared one: its state holds what the routers chose."""
    generator = sampling.generator(0)
    state, logits = prefill_prompt(model, ids, rows=1)
    for _ in range(sampling.max_new):
        byte = sample_next(logits[0], sampling, generator)
        if byte in sampling.stop:
            return
        yield (
            byte,
            float(logits[0].softmax(-1)[byte]),
            state.blocks.p[:, 0, 0].mean(0).tolist(),
        )
        logits = model.step(torch.tensor([byte]), state)


def traced_text(
    prompt: Sequence[int], traced: Sequence[tuple[int, float, list[float]]]
) -> str:
    """HTML: the prompt, then each new byte on ground that is redder the less probable
    it was, underlined in the mixture of the pathways' colours behind it."""

    def ground(chance: float) -> str:
        # full after six bits; the ink stays readable
        surprise = min(-log2(max(chance, 1e-9)) / 10, 0.6)
        return f"background:{_mixture((1 - surprise, surprise), ('#FFFFFF', RED))}"

    line, colours, body = "border-bottom:4px solid ", (LOCAL, SPARSE, DENSE), []
    decoder = getincrementaldecoder("utf-8")("replace")
    for byte, chance, shares in traced:
        # a character comes with its last byte
        piece = escape(decoder.decode(bytes([byte])))
        body.append(
            f'<span style="{ground(chance)};{line}{_mixture(shares, colours)}">{piece}</span>'
        )
    means = torch.tensor([shares for *_, shares in traced]).view(-1, 3).sum(0) / max(
        len(traced), 1
    )
    legend = " ".join(
        f'<span style="{line}{colour}">{name} {mean:.0%}</span>'
        for name, colour, mean in zip(PATHWAYS, colours, means, strict=True)
    )
    scale = " ".join(
        f'<span style="{ground(chance)}">&nbsp;{chance:.0%}&nbsp;</span>'
        for chance in (1, 0.5, 0.1, 0.01)
    )
    return (
        f'<div style="background:#FFFFFF;color:#222222;padding:.5em"><p>Ground, how probable a byte was: {scale}'
        f'<br>Line, what carried it, on average: {legend}</p><p style="font-family:monospace;line-height:1.9;'
        f'white-space:pre-wrap;overflow-wrap:anywhere"><b>{escape(ByteTokenizer().decode(prompt))}</b>'
        f"{''.join(body)}</p></div>"
    )


def stream_text(
    model,
    prompt: str,
    max_new: int = 240,
    temperature: float | None = None,
    seed: int = 0,
) -> None:
    """A text box, a temperature and a button: the prepared `model` goes on, and one
    sees it write (`traced_text`). The temperature is the model's own unless given.
    """
    if temperature is None:
        temperature = model.sampling().temperature

    def pages(prompt: str, temperature: float, seed: int) -> Iterator[str]:
        ids, traced = ByteTokenizer().encode(prompt), []
        sampling = model.sampling(max_new, temperature, seed=seed)
        for traced_byte in trace(model, ids, sampling):
            traced.append(traced_byte)
            # more often than the eye can follow would only be slower
            if len(traced) % 8 == 0:
                yield traced_text(ids, traced)
        yield traced_text(ids, traced)

    def press(_) -> None:
        # a second click while the model writes would only queue up
        button.disabled = True
        for page in pages(box.value, slider.value, next(seeds)):
            update(page)
        button.disabled = False

    if widgets := _ipywidgets():
        box = widgets.Text(prompt, description="My text:", **NARROW)
        slider = widgets.FloatSlider(
            temperature, min=0, max=1.5, step=0.05, description="Temperature:", **NARROW
        )
        button = widgets.Button(description="Continue")
        button.on_click(press)
        _show_widget(widgets.VBox([box, slider, button]))
    update, seeds = _show_html([*pages(prompt, temperature, seed)][-1]), count(seed + 1)
