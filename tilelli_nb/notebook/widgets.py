"""Things to play with. Each shows its default result as plain output, so that a page
without Python has it too; the controls above it replace it when they change.
"""

from collections.abc import Iterator
from html import escape
from itertools import groupby
from math import exp

from ..data.tokenizer import ByteTokenizer
from ..errors import TilelliError
from .controls import WHOLE_NAME, Control, counted, mixture, play, play_writer

INK = "color:#222222"
# lines of a text that is looked at byte by byte: they break anywhere, as bytes do
READABLE = (
    "font-family:monospace;line-height:1.6;white-space:pre-wrap;overflow-wrap:anywhere"
)
BAR_GREY = "#ABABAB"
# blue, red and grey of figures.py, which would bring matplotlib along
UP, DOWN, LINE = "#0072B2", "#D55E00", "#8A8A8A"


def byte_explorer(text: str = "héllo 😀") -> None:
    """Shows a text box and, for each character typed into it, its code point and its
    UTF-8 bytes.
    """
    play(byte_table, Control("Text", text, "Text:"))


def byte_table(text: str) -> str:
    """Returns an HTML table: character, code point, bytes in decimal, hexadecimal and
    binary (marker bits in bold).
    """
    rows = []
    for character in text:
        # half a surrogate pair can be typed, but is no UTF-8
        data = character.encode("utf-8", errors="surrogatepass")
        name = repr(character)  # what cannot be seen, in Python's way
        if character.isprintable() and character != " ":
            name = escape(character)
        # one line for each byte
        decimal = "<br>".join(str(byte) for byte in data)
        hexadecimal = "<br>".join(f"{byte:02X}" for byte in data)
        binary = "<br>".join(_binary(byte) for byte in data)
        cells = f'<th scope="row">{name}</th>'
        for cell in (f"U+{ord(character):04X}", decimal, hexadecimal, binary):
            cells += f"<td>{cell}</td>"
        rows.append(f"<tr>{cells}</tr>")
    heads = ""
    for head in ("text", "code point", "dec", "hex", "binary"):
        heads += f'<th scope="col">{head}</th>'
    size = len(ByteTokenizer().encode(text))
    caption = f"{counted(len(text), 'character')}, {counted(size, 'byte')}"
    return (
        '<div style="overflow-x:auto"><table>'
        f"<caption>{caption}</caption><thead><tr>{heads}</tr></thead>"
        f'<tbody style="font-family:monospace">{"".join(rows)}</tbody></table></div>'
    )


def _binary(byte: int) -> str:
    """Returns eight bits with UTF-8's marker in bold: 0, 10, 110, 1110 or 11110."""
    bits = f"{byte:08b}"
    marker = bits.find("0") + 1
    return f"<b>{bits[:marker]}</b>{bits[marker:]}"


def continue_text(
    lm,
    prompt: str = "Once upon a time",
    max_new: int = 160,
    seed: int = 0,
    temperature: float | None = None,
) -> None:
    """Shows a prompt, a temperature and a button: the model `lm` goes on writing. Each
    press takes the next seed. The temperature is the model's own unless given.

    Calls `lm.generate(ids, max_new=, temperature=, seed=)`, which returns prompt + new
    bytes as list[int].
    """
    if temperature is None:
        temperature = lm.sampling().temperature

    def pages(prompt: str, temperature: float, seed: int) -> Iterator[str]:
        yield continuation(lm, prompt, max_new, seed, temperature)

    play_writer(pages, prompt, temperature, seed, name="Prompt:")


def continuation(lm, prompt: str, max_new: int, seed: int, temperature: float) -> str:
    """Returns the prompt in bold and what the model makes of it, as HTML; or what a
    TilelliError said.
    """
    tok = ByteTokenizer()
    ids = tok.encode(prompt)
    # the reader may ask for what cannot be
    try:
        out = lm.generate(ids, max_new=max_new, temperature=temperature, seed=seed)
    except TilelliError as error:
        return f"<pre>{escape(str(error))}</pre>"
    new = out[len(ids) :]
    said = f"temperature {temperature:g}, seed {seed}, {counted(len(new), 'new byte')}"
    return (
        '<p style="white-space:pre-wrap">'
        f"<b>{escape(tok.decode(ids))}</b>{escape(tok.decode(new))}</p>"
        f"<p><small>{said}</small></p>"
    )


def routed_text(
    text: str,
    shares: list,
    names: tuple[str, ...],
    colours: tuple[str, ...],
    block: int = 1,
) -> None:
    """Shows `text`, each byte on the mixture of the pathways' colours, and a list to
    choose the block (1 is the first).

    shares[block - 1][byte] are that byte's weights, one for each of `names`.
    """

    def page(number: int) -> str:
        weights = shares[number - 1]
        return coloured_text(text, weights, names, colours, f"Block {number}")

    blocks = [(f"block {i}", i) for i in range(1, len(shares) + 1)]
    play(page, Control("Dropdown", block, "Router of:", {"options": blocks}))


def coloured_text(
    text: str,
    weights: list,
    names: tuple[str, ...],
    colours: tuple[str, ...],
    title: str,
) -> str:
    """Returns HTML: a legend with each pathway's average, then the text; a byte's
    background mixes `colours` by its weights.
    """
    # weights (bytes, pathways): the mean over the bytes
    means = [sum(column) / len(weights) for column in zip(*weights, strict=True)]
    style = f"{INK};background:"
    legend = []
    for name, colour, mean in zip(names, colours, means, strict=True):
        label = f"{escape(name)} {mean:.0%}"
        legend.append(f'<span style="{style}{colour};padding:0 .4em">{label}</span>')
    body = ""
    for character, _, stop in byte_places(text):
        # a character has the colour of its last byte, with which it is complete
        colour = mixture(weights[stop - 1], colours)
        body += f'<span style="{style}{colour}">{escape(character)}</span>'
    return (
        f"<p><b>{escape(title)}</b>, on average: {' '.join(legend)}</p>"
        f'<p style="{READABLE}">{body}</p>'
    )


def byte_places(text: str) -> Iterator[tuple[str, int, int]]:
    """Yields each character with the places of its bytes, from `start` up to `stop`."""
    start = 0
    for character in text:
        stop = start + len(character.encode("utf-8"))
        yield character, start, stop
        start = stop


def ternary_explorer(
    weights: list[float], colours: tuple[str, str, str], factor: float = 1.0
) -> None:
    """Shows `weights` as bars, what ternary rounding makes of them, and a slider that
    multiplies the scale mean|w|.

    `colours` are those of the codes -1, 0 and +1.
    """

    def page(factor: float) -> str:
        return ternary_bars(weights, colours, factor)

    options = {"min": 0.1, "max": 3, "step": 0.05, "style": WHOLE_NAME}
    play(page, Control("FloatSlider", factor, "Scale, in means of |w|:", options))


def ternary_bars(
    weights: list[float], colours: tuple[str, str, str], factor: float
) -> str:
    """Returns HTML: each weight as a grey bar, its ternary value as a coloured line,
    the band that becomes 0, and a summary.
    """
    mean = max(sum(abs(w) for w in weights) / len(weights), 1e-5)
    scale = factor * mean
    # round() takes the even one of two as near, as PyTorch does in chapter 6
    codes = [max(-1, min(1, round(w / scale))) for w in weights]
    errors = [w - scale * code for w, code in zip(weights, codes, strict=True)]
    # the sum of squares that rounding leaves over, as a share of the weights' own
    squares = sum(w * w for w in weights)
    left_over = sum(error * error for error in errors) / max(squares, 1e-30)
    zeros = codes.count(0) / len(codes)

    # pixels; zero lies at a height of 110, and the slider does not change the unit
    unit = 100 / max(*(abs(w) for w in weights), 3 * mean)
    step = 600 / len(weights)
    bars = ""
    for i, (w, code) in enumerate(zip(weights, codes, strict=True)):
        x = 20 + i * step
        top = 110 - max(w, 0) * unit
        level = 110 - scale * code * unit
        sign = "-0+"[code + 1] + ("1" if code else "")
        bars += (
            f'<rect x="{x + step / 4:.1f}" y="{top:.1f}" width="{step / 2:.1f}" '
            f'height="{abs(w) * unit:.1f}" fill="{BAR_GREY}"/>'
            f'<path d="M{x:.1f} {level:.1f}h{0.9 * step:.1f}" '
            f'stroke="{colours[code + 1]}" stroke-width="4"/>'
            f'<text x="{x + step / 2:.1f}" y="236" text-anchor="middle">{sign}</text>'
        )
    band = (
        f'<rect x="16" y="{110 - scale * unit / 2:.1f}" width="608" '
        f'height="{scale * unit:.1f}" fill="#E4E4E4"/>'
    )
    said = (
        f"Scale {factor:.2f} × mean |w| = {scale:.4f}: "
        f"{zeros:.0%} of the codes are 0, the squared error is "
        f"{left_over:.1%} of the weights' own squares."
    )
    label = f"{len(weights)} weights as bars, with their codes. {said}"
    return (
        f'<svg role="img" aria-label="{label}" fill="#222222" viewBox="0 0 640 244" '
        'style="width:100%;max-width:40em;background:#FFFFFF" font-size="18">'
        f"{band}{bars}</svg><p>{said}</p>"
    )


def attended_text(
    text: str, scores, colour: str, keep: int = 16, block: int = 1, head: int = 1
) -> None:
    """Shows `text` as one of its bytes sees it (the last at first), with sliders for
    that byte and for how many it keeps.

    scores[block - 1][head - 1][t][j] is what byte t gives byte j before the choice.
    """
    # scores (blocks, heads, T, T)
    blocks = len(scores)
    heads = len(scores[0])
    T = len(scores[0][0])

    def page(keep: int, byte: int, block: int, head: int) -> str:
        visible = scores[block - 1][head - 1][byte][: byte + 1]
        title = f"Block {block}, head {head}"
        return kept_text(text, [float(s) for s in visible], keep, colour, title)

    play(
        page,
        Control("IntSlider", keep, "keep:", {"min": 1, "max": T}),
        Control("IntSlider", T - 1, "byte:", {"min": 0, "max": T - 1}),
        Control("Dropdown", block, "block:", {"options": range(1, blocks + 1)}),
        Control("Dropdown", head, "head:", {"options": range(1, heads + 1)}),
    )


def kept_text(
    text: str, scores: list[float], keep: int, colour: str, title: str
) -> str:
    """Returns HTML: what the last of the scored bytes keeps on `colour` by weight, what
    it drops struck, the future on grey.
    """
    # the top-k rule of chapter 4: as good as the last that is kept, ties too
    threshold = sorted(scores, reverse=True)[:keep][-1]
    highest = max(scores)
    # softmax, but for its sum: the highest becomes 1, what is dropped 0
    weights = [exp(s - highest) if s >= threshold else 0.0 for s in scores]

    marked = []  # each character with its tag and style
    for character, start, stop in byte_places(text):
        strongest = max(weights[start:stop], default=0.0)
        if start >= len(scores):  # the future
            tag, style = "span", "#EEEEEE;color:#666666"
        elif strongest > 0:
            ground = mixture((strongest, 1 - strongest), (colour, "#FFFFFF"))
            tag, style = "mark", f"{ground};{INK}"
        else:
            tag, style = "s", "#FFFFFF;color:#6B6B6B"
        if start < len(scores) <= stop:  # the byte that looks
            style += ";outline:2px solid #222222"
        marked.append((character, tag, style))

    # neighbours that look the same share one tag
    body = ""
    for (tag, style), run in groupby(marked, key=lambda each: each[1:]):
        characters = "".join(character for character, *_ in run)
        body += f'<{tag} style="background:{style}">{escape(characters)}</{tag}>'
    kept = sum(s >= threshold for s in scores)
    return (
        f"<p><b>{escape(title)}</b>: the outlined byte keeps {kept} of "
        f"{counted(len(scores), 'byte')}; the largest weight is "
        f"{max(weights) / sum(weights):.0%}.</p>"
        f'<p style="{READABLE};background:#FFFFFF;padding:.5em">{body}</p>'
    )


KERNELS = {
    "copy": (0, 0, 0, 0, 1),
    "delay by one": (0, 0, 0, 1, 0),
    "blur": (0.2, 0.2, 0.2, 0.2, 0.2),
    "edge": (0, 0, 0, -1, 1),
}
TAPS = ("4 back", "3 back", "2 back", "1 back", "now")


def kernel_player(text: str, kernel: str = "edge") -> None:
    """Shows a list of ready-made kernels, a slider for each of their five taps, and
    what the convolution makes of `text`.
    """

    def page(name: str, *taps: float) -> str:
        return kernel_strip(text, taps)  # the name only moves the sliders

    controls = [Control("Dropdown", kernel, "Kernel:", {"options": list(KERNELS)})]
    for name, tap in zip(TAPS, KERNELS[kernel], strict=True):
        options = {"min": -1, "max": 1, "step": 0.1}
        controls.append(Control("FloatSlider", tap, name, options))
    made = play(page, *controls)
    if not made:
        return
    preset, *sliders = made

    # moving the sliders draws anew
    def choose(change) -> None:
        for slider, tap in zip(sliders, KERNELS[change["new"]], strict=True):
            slider.value = tap

    preset.observe(choose, names="value")


def kernel_strip(text: str, kernel) -> str:
    """Returns SVG: for each character a bar for its signal, 1 for a letter and else 0,
    and below it one for the output.
    """
    signal = [int(character.isalpha()) for character in text]
    # chapter 3's sum, spelt out
    out = []
    for t in range(len(text)):
        value = 0
        for lag, tap in enumerate(reversed(kernel)):
            if lag <= t:  # before the beginning there is nothing
                value += tap * signal[t - lag]
        out.append(value)

    # the tallest output fills its row
    tallest = max([1, *(abs(value) for value in out)])
    shapes = ""
    for t, character in enumerate(text):
        x = 20 * t + 60
        letter = escape(character)
        shapes += f'<text x="{x + 10}" y="14" text-anchor="middle">{letter}</text>'
        shapes += _bar(signal[t], x, base=56, size=34)
        shapes += _bar(out[t], x, base=106, size=36 / tallest)
    # for who listens to the page; without "minus nought"
    numbers = ", ".join(f"{value:.1f}".replace("-0.0", "0.0") for value in out)
    width = 20 * len(text) + 64
    return (
        f'<svg viewBox="0 0 {width} 150" role="img" aria-label="output: {numbers}" '
        f'style="background:white;width:100%;max-width:{width}px;font:14px monospace">'
        '<text x="2" y="50">input</text><text x="2" y="110">output</text>'
        f"{shapes}</svg>"
    )


def _bar(value: float, x: int, base: int, size: float) -> str:
    """Draws a value up or down from the line at `base`, `size` pixels for 1."""
    top = base - max(value, 0) * size
    colour = UP if value > 0 else DOWN
    return (
        f'<rect x="{x + 1}" y="{top:.1f}" width="18" '
        f'height="{abs(value) * size:.1f}" fill="{colour}"/>'
        f'<path d="M{x} {base}h20" stroke="{LINE}"/>'
    )
