"""Things to play with. Each shows its default result as plain output, so that a page without Python has it too.

The controls sit above that output and replace it when they change. Without ipywidgets only the output is shown.
"""

from collections.abc import Callable
from html import escape
from itertools import count

from .errors import TilelliError
from .tokenizer import ByteTokenizer


def byte_explorer(text: str = "héllo 😀") -> None:
    """A text box and, for each character typed into it, its code point and its UTF-8 bytes."""
    box = None
    if widgets := _ipywidgets():
        box = widgets.Text(value=text, description="Text:", layout=widgets.Layout(width="auto", max_width="32em"))
        _show_widget(box)
    update = _show_html(byte_table(text))
    if box:
        box.observe(lambda change: update(byte_table(change["new"])), names="value")


def byte_table(text: str) -> str:
    """An HTML table: character, code point, bytes in decimal, hexadecimal and binary (marker bits in bold)."""
    rows = []
    for character in text:
        data = character.encode("utf-8", errors="surrogatepass")
        cells = [f"U+{ord(character):04X}",  # then one line for each byte
                 *("<br>".join(form(byte) for byte in data) for form in (str, "{:02X}".format, _binary))]
        name = escape(character) if character.isprintable() and character != " " else repr(character)
        rows.append(f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    size = len(ByteTokenizer().encode(text))
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("text", "code point", "dec", "hex", "binary"))
    return (f'<div style="overflow-x:auto"><table><caption>{_count(len(text), "character")}, '
            f'{_count(size, "byte")}</caption><thead><tr>{heads}</tr></thead>'
            f'<tbody style="font-family:monospace">{"".join(rows)}</tbody></table></div>')


def continue_text(lm, prompt: str = "Once upon a time", max_new: int = 160, seed: int = 0,
                  temperature: float = 0.8) -> None:
    """A prompt, a temperature and a button: the model `lm` goes on writing. Each press takes the next seed.

    Calls `lm.generate(ids, max_new=, temperature=, seed=)`, which returns prompt + new bytes as list[int].
    """
    first = continuation(lm, prompt, max_new, seed, temperature)
    if not (widgets := _ipywidgets()):
        _show_html(first)
        return
    wide = widgets.Layout(width="auto", max_width="32em")
    box = widgets.Text(value=prompt, description="Prompt:", layout=wide)
    slider = widgets.FloatSlider(value=temperature, min=0, max=1.5, step=0.05, description="Temperature:",
                                 layout=wide, style={"description_width": "initial"})
    button = widgets.Button(description="Continue")
    _show_widget(widgets.VBox([box, slider, button]))
    update = _show_html(first)
    seeds = count(seed + 1)

    def press(_) -> None:
        button.disabled = True  # a second click while the model writes would only queue up
        try:
            update(continuation(lm, box.value, max_new, next(seeds), slider.value))
        finally:
            button.disabled = False

    button.on_click(press)


def continuation(lm, prompt: str, max_new: int, seed: int, temperature: float) -> str:
    """The prompt in bold and what the model makes of it, as HTML; or what a TilelliError said."""
    tok = ByteTokenizer()
    ids = tok.encode(prompt)
    try:
        out = lm.generate(ids, max_new=max_new, temperature=temperature, seed=seed)
    except TilelliError as error:
        return f"<pre>{escape(str(error))}</pre>"
    new = out[len(ids):]
    return (f'<p style="white-space:pre-wrap"><b>{escape(tok.decode(ids))}</b>{escape(tok.decode(new))}</p>'
            f"<p><small>temperature {temperature:g}, seed {seed}, {_count(len(new), 'new byte')}</small></p>")


def _binary(byte: int) -> str:
    """Eight bits with UTF-8's marker in bold: 0, 10, 110, 1110 or 11110."""
    bits = f"{byte:08b}"
    marker = bits.find("0") + 1
    return f"<b>{bits[:marker]}</b>{bits[marker:]}"


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
    """Displays `html` as ordinary output and returns a function that replaces it in place."""
    from IPython.display import HTML, display
    handle = display(HTML(html), display_id=True)
    return lambda new: handle.update(HTML(new)) if handle else None
