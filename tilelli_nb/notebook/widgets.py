"""Things to play with. Each shows its default result as plain output, so that a page
without Python has it too.

The controls sit above that output and replace it when they change. Without ipywidgets
only the output is shown.
"""

from collections.abc import Callable
from html import escape
from itertools import count, groupby
from math import exp
from operator import itemgetter

from ..data.tokenizer import ByteTokenizer
from ..errors import TilelliError


def byte_explorer(text: str = "héllo 😀") -> None:
    """A text box and, for each character typed into it, its code point and its UTF-8
    bytes.
    """
    box = None
    if widgets := _ipywidgets():
        box = widgets.Text(
            value=text,
            description="Text:",
            layout=widgets.Layout(width="auto", max_width="32em"),
        )
        _show_widget(box)
    update = _show_html(byte_table(text))
    if box:
        box.observe(lambda change: update(byte_table(change["new"])), names="value")


def byte_table(text: str) -> str:
    """An HTML table: character, code point, bytes in decimal, hexadecimal and binary
    (marker bits in bold).
    """
    rows = []
    for character in text:
        data = character.encode("utf-8", errors="surrogatepass")
        cells = [
            f"U+{ord(character):04X}",  # then one line for each byte
            *(
                "<br>".join(form(byte) for byte in data)
                for form in (str, "{:02X}".format, _binary)
            ),
        ]
        name = (
            escape(character)
            if character.isprintable() and character != " "
            else repr(character)
        )
        rows.append(
            f'<tr><th scope="row">{name}</th>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    size = len(ByteTokenizer().encode(text))
    heads = "".join(
        f'<th scope="col">{head}</th>'
        for head in ("text", "code point", "dec", "hex", "binary")
    )
    return (
        f'<div style="overflow-x:auto"><table><caption>{_count(len(text), "character")}, '
        f"{_count(size, 'byte')}</caption><thead><tr>{heads}</tr></thead>"
        f'<tbody style="font-family:monospace">{"".join(rows)}</tbody></table></div>'
    )


def continue_text(
    lm,
    prompt: str = "Once upon a time",
    max_new: int = 160,
    seed: int = 0,
    temperature: float | None = None,
) -> None:
    """A prompt, a temperature and a button: the model `lm` goes on writing. Each press
    takes the next seed. The temperature is the model's own unless given.

    Calls `lm.generate(ids, max_new=, temperature=, seed=)`, which returns prompt + new
    bytes as list[int].
    """
    if temperature is None:
        temperature = lm.sampling().temperature
    first = continuation(lm, prompt, max_new, seed, temperature)
    if not (widgets := _ipywidgets()):
        _show_html(first)
        return
    wide = widgets.Layout(width="auto", max_width="32em")
    box = widgets.Text(value=prompt, description="Prompt:", layout=wide)
    slider = widgets.FloatSlider(
        value=temperature,
        min=0,
        max=1.5,
        step=0.05,
        description="Temperature:",
        layout=wide,
        style={"description_width": "initial"},
    )
    button = widgets.Button(description="Continue")
    _show_widget(widgets.VBox([box, slider, button]))
    update = _show_html(first)
    seeds = count(seed + 1)

    def press(_) -> None:
        # a second click while the model writes would only queue up
        button.disabled = True
        try:
            update(continuation(lm, box.value, max_new, next(seeds), slider.value))
        finally:
            button.disabled = False

    button.on_click(press)


def continuation(lm, prompt: str, max_new: int, seed: int, temperature: float) -> str:
    """The prompt in bold and what the model makes of it, as HTML; or what a
    TilelliError said.
    """
    tok = ByteTokenizer()
    ids = tok.encode(prompt)
    try:
        out = lm.generate(ids, max_new=max_new, temperature=temperature, seed=seed)
    except TilelliError as error:
        return f"<pre>{escape(str(error))}</pre>"
    new = out[len(ids) :]
    return (
        f'<p style="white-space:pre-wrap"><b>{escape(tok.decode(ids))}</b>{escape(tok.decode(new))}</p>'
        f"<p><small>temperature {temperature:g}, seed {seed}, {_count(len(new), 'new byte')}</small></p>"
    )


def routed_text(
    text: str,
    shares: list,
    names: tuple[str, ...],
    colours: tuple[str, ...],
    block: int = 1,
) -> None:
    """`text`, each byte on the mixture of the pathways' colours, and a list to choose
    the block (1 is the first).

    shares[block][byte] are that byte's weights, one for each of `names`.
    """

    def page(number: int) -> str:
        return coloured_text(
            text, shares[number - 1], names, colours, f"Block {number}"
        )

    choice = None
    if widgets := _ipywidgets():
        choice = widgets.Dropdown(
            options=[(f"block {i}", i) for i in range(1, len(shares) + 1)],
            value=block,
            description="Router of:",
        )
        _show_widget(choice)
    update = _show_html(page(block))
    if choice:
        choice.observe(lambda change: update(page(change["new"])), names="value")


def coloured_text(
    text: str,
    weights: list,
    names: tuple[str, ...],
    colours: tuple[str, ...],
    title: str,
) -> str:
    """HTML: a legend with each pathway's average, then the text; a byte's background
    mixes `colours` by its weights.
    """
    means = [sum(column) / len(weights) for column in zip(*weights, strict=True)]
    style = "color:#222222;background:"
    legend = " ".join(
        f'<span style="{style}{colour};padding:0 .4em">{escape(name)} {mean:.0%}</span>'
        for name, colour, mean in zip(names, colours, means, strict=True)
    )
    body, start = [], 0
    for character in text:
        stop = start + len(character.encode("utf-8"))
        body.append(
            f'<span style="{style}{_mixture(weights[stop - 1], colours)}">{escape(character)}</span>'
        )
        start = stop
    return (
        f'<p><b>{escape(title)}</b>, on average: {legend}</p><p style="font-family:monospace;line-height:1.6;'
        f'white-space:pre-wrap;overflow-wrap:anywhere">{"".join(body)}</p>'
    )


def ternary_explorer(
    weights: list[float], colours: tuple[str, str, str], factor: float = 1.0
) -> None:
    """`weights` as bars, what ternary rounding makes of them, and a slider that
    multiplies the scale mean|w|.

    `colours` are those of the codes -1, 0 and +1.
    """
    slider = None
    if widgets := _ipywidgets():
        slider = widgets.FloatSlider(
            value=factor,
            min=0.1,
            max=3,
            step=0.05,
            description="Scale, in means of |w|:",
            layout=widgets.Layout(width="auto", max_width="32em"),
            style={"description_width": "initial"},
        )
        _show_widget(slider)
    update = _show_html(ternary_bars(weights, colours, factor))
    if slider:
        slider.observe(
            lambda change: update(ternary_bars(weights, colours, change["new"])),
            names="value",
        )


def ternary_bars(
    weights: list[float], colours: tuple[str, str, str], factor: float
) -> str:
    """HTML: each weight as a grey bar, its ternary value as a coloured line, the band
    that becomes 0, and a summary.
    """
    mean = max(sum(map(abs, weights)) / len(weights), 1e-5)
    # pixels; the slider does not change them
    scale, unit = factor * mean, 100 / max(*map(abs, weights), 3 * mean)
    codes = [max(-1, min(1, round(w / scale))) for w in weights]
    errors, squares = (
        sum(x * x for x in xs)
        for xs in (
            [w - scale * c for w, c in zip(weights, codes, strict=True)],
            weights,
        )
    )
    step, drawn = 600 / len(weights), []
    for i, (w, c) in enumerate(zip(weights, codes, strict=True)):
        x, top, level = 20 + i * step, 110 - max(w, 0) * unit, 110 - scale * c * unit
        drawn.append(
            f'<rect x="{x + step / 4:.1f}" y="{top:.1f}" width="{step / 2:.1f}" height="{abs(w) * unit:.1f}" '
            f'fill="#ABABAB"/><path d="M{x:.1f} {level:.1f}h{0.9 * step:.1f}" stroke="{colours[c + 1]}" '
            f'stroke-width="4"/><text x="{x + step / 2:.1f}" y="236" text-anchor="middle">'
            f"{'-0+'[c + 1]}{abs(c) or ''}</text>"
        )
    said = (
        f"Scale {factor:.2f} × mean |w| = {scale:.4f}: {codes.count(0) / len(codes):.0%} of the codes are 0, "
        f"the squared error is {errors / max(squares, 1e-30):.1%} of the weights' own squares."
    )
    return (
        f'<svg role="img" aria-label="{len(weights)} weights as bars, with their codes. {said}" fill="#222222" '
        f'viewBox="0 0 640 244" style="width:100%;max-width:40em;background:#FFFFFF" font-size="18"><rect x="16" '
        f'y="{110 - scale * unit / 2:.1f}" width="608" height="{scale * unit:.1f}" fill="#E4E4E4"/>'
        f"{''.join(drawn)}</svg><p>{said}</p>"
    )


def attended_text(
    text: str, scores, colour: str, keep: int = 16, block: int = 1, head: int = 1
) -> None:
    """`text` as one of its bytes sees it (the last at first), with sliders for that
    byte and for how many it keeps.

    scores[block - 1][head - 1][t][j] is what byte t gives byte j before the choice.
    """

    def page(keep: int, byte: int, block: int, head: int) -> str:
        return kept_text(
            text,
            [float(s) for s in scores[block - 1][head - 1][byte][: byte + 1]],
            keep,
            colour,
            f"Block {block}, head {head}",
        )

    T, controls = len(scores[0][0]), []
    if widgets := _ipywidgets():
        wide = widgets.Layout(width="auto", max_width="32em")
        controls = [
            widgets.IntSlider(keep, 1, T, description="keep:", layout=wide),
            widgets.IntSlider(T - 1, 0, T - 1, description="byte:", layout=wide),
            widgets.Dropdown(
                options=range(1, len(scores) + 1), value=block, description="block:"
            ),
            widgets.Dropdown(
                options=range(1, len(scores[0]) + 1), value=head, description="head:"
            ),
        ]
        _show_widget(widgets.VBox(controls))
    update = _show_html(page(keep, T - 1, block, head))
    for control in controls:
        control.observe(
            lambda _: update(page(*(c.value for c in controls))), names="value"
        )


def kept_text(
    text: str, scores: list[float], keep: int, colour: str, title: str
) -> str:
    """HTML: what the last of the scored bytes keeps on `colour` by weight, what it
    drops struck, the future on grey.
    """
    threshold, highest = sorted(scores, reverse=True)[:keep][-1], max(scores)
    weights = [exp(s - highest) if s >= threshold else 0.0 for s in scores]
    styles, start = [], 0
    for character in text:
        stop = start + len(character.encode("utf-8"))
        tag, style = "s", "#FFFFFF;color:#6B6B6B"
        if start >= len(scores):
            tag, style = "span", "#EEEEEE;color:#666666"
        elif (strongest := max(weights[start:stop])) > 0:
            mixed = (
                round(255 - strongest * (255 - int(colour[i : i + 2], 16)))
                for i in (1, 3, 5)
            )
            tag, style = "mark", "#{:02X}{:02X}{:02X};color:#222222".format(*mixed)
        outline = ";outline:2px solid #222222" if start < len(scores) <= stop else ""
        styles.append((tag, style + outline))
        start = stop
    body = [
        f'<{tag} style="background:{style}">{escape("".join(character for character, _ in run))}</{tag}>'
        for (tag, style), run in groupby(
            zip(text, styles, strict=True), key=itemgetter(1)
        )
    ]
    kept = sum(s >= threshold for s in scores)
    return (
        f"<p><b>{escape(title)}</b>: the outlined byte keeps {kept} of {_count(len(scores), 'byte')}; the largest "
        f'weight is {max(weights) / sum(weights):.0%}.</p><p style="font-family:monospace;line-height:1.6;'
        f'white-space:pre-wrap;overflow-wrap:anywhere;background:#FFFFFF;padding:.5em">{"".join(body)}</p>'
    )


KERNELS = {
    "copy": (0, 0, 0, 0, 1),
    "delay by one": (0, 0, 0, 1, 0),
    "blur": (0.2,) * 5,
    "edge": (0, 0, 0, -1, 1),
}


def kernel_player(text: str, kernel: str = "edge") -> None:
    """A list of ready-made kernels, a slider for each of their five taps, and what the
    convolution makes of `text`.
    """
    preset, sliders = None, []
    if widgets := _ipywidgets():
        wide = widgets.Layout(width="auto", max_width="32em")
        preset = widgets.Dropdown(
            options=list(KERNELS), value=kernel, description="Kernel:", layout=wide
        )
        sliders = [
            widgets.FloatSlider(
                value=tap, min=-1, max=1, step=0.1, description=name, layout=wide
            )
            for tap, name in zip(
                KERNELS[kernel],
                ("4 back", "3 back", "2 back", "1 back", "now"),
                strict=True,
            )
        ]
        _show_widget(widgets.VBox([preset, *sliders]))
    update = _show_html(kernel_strip(text, KERNELS[kernel]))

    def choose(change) -> None:
        for slider, tap in zip(sliders, KERNELS[change["new"]], strict=True):
            slider.value = tap

    for slider in sliders:
        slider.observe(
            lambda _: update(kernel_strip(text, [s.value for s in sliders])),
            names="value",
        )
    if preset:
        preset.observe(choose, names="value")


def kernel_strip(text: str, kernel) -> str:
    """SVG: for each character a bar for its signal, 1 for a letter and else 0, and
    below it one for the output.
    """
    signal = [int(character.isalpha()) for character in text]
    out = [
        sum(
            tap * signal[t - lag]
            for lag, tap in enumerate(reversed(kernel))
            if lag <= t
        )
        for t in range(len(text))
    ]
    high = max(1, *map(abs, out))
    shapes = []
    for t, character in enumerate(text):
        shapes.append(
            f'<text x="{20 * t + 70}" y="14" text-anchor="middle">{escape(character)}</text>'
        )
        for value, base, size in ((signal[t], 56, 34), (out[t], 106, 36 / high)):
            y, colour = (
                base - max(value, 0) * size,
                "#0072B2" if value > 0 else "#D55E00",
            )
            shapes.append(
                f'<rect x="{20 * t + 61}" y="{y:.1f}" width="18" height="{abs(value) * size:.1f}" '
                f'fill="{colour}"/><path d="M{20 * t + 60} {base}h20" stroke="#8A8A8A"/>'
            )
    numbers = ", ".join(f"{value:.1f}".replace("-0.0", "0.0") for value in out)
    return (
        f'<svg viewBox="0 0 {20 * len(text) + 64} 150" role="img" aria-label="output: {numbers}" style="background:'
        f'white;width:100%;max-width:{20 * len(text) + 64}px;font:14px monospace"><text x="2" y="50">input</text>'
        f'<text x="2" y="110">output</text>{"".join(shapes)}</svg>'
    )


def _binary(byte: int) -> str:
    """Eight bits with UTF-8's marker in bold: 0, 10, 110, 1110 or 11110."""
    bits = f"{byte:08b}"
    marker = bits.find("0") + 1
    return f"<b>{bits[:marker]}</b>{bits[marker:]}"


def _mixture(shares, colours) -> str:
    """The colours #RRGGBB, mixed by shares that sum to 1."""
    channels = (
        (
            share * int(colour[i : i + 2], 16)
            for share, colour in zip(shares, colours, strict=True)
        )
        for i in (1, 3, 5)
    )
    return "#" + "".join(f"{min(round(sum(parts)), 255):02X}" for parts in channels)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _ipywidgets():
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def _show_widget(widget) -> None:
    from IPython.display import display

    display(widget)


def _show_html(html: str) -> Callable[[str], None]:
    """Displays `html` as ordinary output and returns a function that replaces it in
    place.
    """
    from IPython.display import HTML, display

    handle = display(HTML(html), display_id=True)
    return lambda new: handle.update(HTML(new)) if handle else None
