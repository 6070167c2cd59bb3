"""The widgets of chapter 13: how the next byte is drawn, and a text that shows what
each of its bytes was made of.
"""

from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from html import escape
from math import log2

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..inference.decoding import prefill_prompt
from ..inference.sampling import Sampling, probabilities, sample_next
from ..inference.scoring import in_float64
from ..model.router import PATHWAYS
from .controls import Control, mixture, play, play_writer
from .figures import DENSE, LOCAL, RED, SPARSE
from .widgets import BAR_GREY

PATHWAY_COLOURS = (LOCAL, SPARSE, DENSE)
SAME_WIDTH = {"description_width": "7em"}  # sliders below each other begin alike

# a byte of a trace: itself, the model's probability for it, the pathways' shares (3,)
Traced = tuple[int, float, list[float]]


def sampling_player(
    logits: Tensor, temperature: float = 0.8, top_k: int = 256, top_p: float = 1.0
) -> None:
    """Shows sliders for temperature, top-k and top-p over the logits (256,) of the next
    byte, and what they make of it.
    """

    def page(temperature: float, top_k: int, top_p: float) -> str:
        return sampling_bars(logits, temperature, top_k, top_p)

    heat = {"min": 0.05, "max": 2, "step": 0.05, "style": SAME_WIDTH}
    number = {"min": 1, "max": 256, "style": SAME_WIDTH}
    share = {"min": 0.01, "max": 1, "step": 0.01, "style": SAME_WIDTH}
    play(
        page,
        Control("FloatSlider", temperature, "Temperature:", heat),
        Control("IntSlider", top_k, "top-k:", number),
        Control("FloatSlider", top_p, "top-p:", share),
    )


def sampling_bars(
    logits: Tensor, temperature: float, top_k: int, top_p: float, rows: int = 12
) -> str:
    """Returns SVG: for the most probable bytes, what the model believes in grey and how
    often each is drawn in red. `logits` (256,).
    """
    believed = in_float64(logits).softmax(-1)  # (256,)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = probabilities(logits, sampling)  # (256,)
    bars = ""
    for row, byte in enumerate(believed.topk(rows).indices.tolist()):
        # "0.0%" could be a small number; a byte that was cut off has none
        share = f"{drawn[byte]:.1%}" if drawn[byte] else "never"
        bars += (
            f'<g transform="translate(0 {24 * row})">'
            f'<text x="66" y="16" text-anchor="end">{byte_name(byte)}</text>'
            f'<rect x="74" y="2" height="9" width="{260 * believed[byte]:.1f}" '
            f'fill="{BAR_GREY}"/>'
            f'<rect x="74" y="11" height="9" width="{260 * drawn[byte]:.1f}" '
            f'fill="{RED}"/>'
            f'<text x="400" y="16" text-anchor="end">{share}</text></g>'
        )
    # the entropy of what is drawn, from nats to bits
    bits = float(torch.special.entr(drawn).sum() / torch.tensor(2.0).log())
    said = (
        f"{int((drawn > 0).sum())} of 256 bytes can be drawn, "
        f"and a draw is worth {bits:.2f} bits."
    )
    return (
        f'<svg role="img" aria-label="The most probable next bytes. {said}" '
        f'viewBox="0 0 404 {24 * rows}" style="width:100%;max-width:32em;'
        f'background:#FFFFFF" fill="#222222" font-size="14">{bars}</svg>'
        "<p>Grey: what the model believes. Red: how often the byte is drawn. "
        f"{said}</p>"
    )


def byte_name(byte: int) -> str:
    """Returns what a label calls a byte, as HTML: the ASCII character if it has one
    that can be seen, else a word or its number.
    """
    if byte == 32:
        return "space"
    if 32 < byte < 127:
        return escape(chr(byte))
    return f"byte {byte}"


@torch.no_grad()
def trace(model, ids: Sequence[int], sampling: Sampling) -> Iterator[Traced]:
    """Yields the bytes of `model.stream`, each with the model's own probability for it
    and the weights of the pathways (3,) behind that, averaged over the blocks.

    `model` is a prepared one: its state holds what the routers chose.
    """
    generator = sampling.generator(0)
    state, logits = prefill_prompt(model, ids, rows=1)  # logits (1, 256)
    for _ in range(sampling.max_new):
        byte = sample_next(logits[0], sampling, generator)
        if byte in sampling.stop:
            return
        chance = logits[0].softmax(-1)[byte]
        # (blocks, rows, bytes, 3): the one row, its one byte
        shares = state.blocks.p[:, 0, 0].mean(0)
        yield byte, float(chance), shares.tolist()
        logits = model.step(state.window.new_tensor([byte]), state)


def traced_text(prompt: Sequence[int], traced: Sequence[Traced]) -> str:
    """Returns HTML: the prompt, then each new byte on ground that is redder the less
    probable it was, underlined in the mixture of the pathways' colours behind it.
    """
    line = "border-bottom:4px solid "
    body = ""
    totals = [0.0, 0.0, 0.0]  # of the pathways
    decoder = getincrementaldecoder("utf-8")("replace")
    for byte, chance, shares in traced:
        # a character comes with its last byte; until then the piece is empty
        piece = escape(decoder.decode(bytes([byte])))
        style = f"{ground(chance)};{line}{mixture(shares, PATHWAY_COLOURS)}"
        body += f'<span style="{style}">{piece}</span>'
        totals = [total + share for total, share in zip(totals, shares, strict=True)]

    legend = []
    for name, colour, total in zip(PATHWAYS, PATHWAY_COLOURS, totals, strict=True):
        mean = total / max(len(traced), 1)
        legend.append(f'<span style="{line}{colour}">{name} {mean:.0%}</span>')
    # what certain, even, and rare look like
    scale = []
    for chance in (1, 0.5, 0.1, 0.01):
        label = f"&nbsp;{chance:.0%}&nbsp;"
        scale.append(f'<span style="{ground(chance)}">{label}</span>')
    return (
        '<div style="background:#FFFFFF;color:#222222;padding:.5em">'
        f"<p>Ground, how probable a byte was: {' '.join(scale)}"
        f"<br>Line, what carried it, on average: {' '.join(legend)}</p>"
        '<p style="font-family:monospace;line-height:1.9;white-space:pre-wrap;'
        f'overflow-wrap:anywhere"><b>{escape(ByteTokenizer().decode(prompt))}</b>'
        f"{body}</p></div>"
    )


def ground(chance: float) -> str:
    """Returns a background for a byte of this probability: white at 1, and redder with
    each bit of surprise. It is full after six, so that the ink stays readable.
    """
    surprise = min(-log2(max(chance, 1e-9)) / 10, 0.6)
    return f"background:{mixture((1 - surprise, surprise), ('#FFFFFF', RED))}"


def stream_text(
    model,
    prompt: str,
    max_new: int = 240,
    temperature: float | None = None,
    seed: int = 0,
) -> None:
    """Shows a text box, a temperature and a button: the prepared `model` goes on, and
    one sees it write (`traced_text`). The temperature is the model's own unless given.
    """
    if temperature is None:
        temperature = model.sampling().temperature

    def pages(prompt: str, temperature: float, seed: int) -> Iterator[str]:
        ids = ByteTokenizer().encode(prompt)
        sampling = model.sampling(max_new, temperature, seed=seed)
        traced = []
        for traced_byte in trace(model, ids, sampling):
            traced.append(traced_byte)
            # more often than the eye can follow would only be slower
            if len(traced) % 8 == 0:
                yield traced_text(ids, traced)
        yield traced_text(ids, traced)

    play_writer(pages, prompt, temperature, seed, name="My text:")
