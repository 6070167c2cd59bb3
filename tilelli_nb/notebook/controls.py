"""What the widgets share: controls above a result that is plain HTML. Without
ipywidgets, and on a page without Python, the result stands alone.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

# as wide as the page on a phone, and no wider than a hand on a desk
LAYOUT = {"width": "auto", "max_width": "32em"}
WHOLE_NAME = {"description_width": "initial"}  # a long name is not cut off


class Control(NamedTuple):
    """One control: a kind of ipywidgets, its value at first, its name, and what else
    that kind takes.
    """

    kind: str
    value: Any
    name: str
    options: dict[str, Any] = {}  # min, max and so on

    def make(self, widgets):
        """Makes the control with the module ipywidgets."""
        options = {"layout": LAYOUT, **self.options}
        kind = getattr(widgets, self.kind)
        return kind(value=self.value, description=self.name, **options)


def play(page: Callable[..., str], *controls: Control) -> list:
    """Displays the controls and below them the HTML of page(value, value, ...), made
    anew whenever a control changes.

    Returns the controls as widgets, in their order; none without ipywidgets.
    """
    widgets = ipywidgets()
    if widgets is None:
        show_html(page(*(control.value for control in controls)))
        return []
    made = [control.make(widgets) for control in controls]
    # a box around a single control would only be one more layer
    show_widget(made[0] if len(made) == 1 else widgets.VBox(made))
    update = show_html(page(*(control.value for control in controls)))

    def redraw(_) -> None:
        update(page(*(control.value for control in made)))

    for control in made:
        control.observe(redraw, names="value")
    return made


def play_writer(
    pages: Callable[[str, float, int], Iterator[str]],
    prompt: str,
    temperature: float,
    seed: int,
    name: str,
) -> None:
    """Displays a text box called `name`, a temperature, a button, and the last of
    pages(prompt, temperature, seed).

    Each press of the button takes the next seed and shows all pages, one after the
    other: a model that writes is seen writing.
    """
    # the page shows a text that is whole, not one that is being written
    first = ""
    for page in pages(prompt, temperature, seed):
        first = page
    widgets = ipywidgets()
    if widgets is None:
        show_html(first)
        return
    heat = {"min": 0, "max": 1.5, "step": 0.05, "style": WHOLE_NAME}
    box = Control("Text", prompt, name).make(widgets)
    slider = Control("FloatSlider", temperature, "Temperature:", heat).make(widgets)
    button = widgets.Button(description="Continue")
    show_widget(widgets.VBox([box, slider, button]))
    update = show_html(first)
    seeds = count(seed + 1)

    def press(_) -> None:
        # a second click while the model writes would only queue up
        button.disabled = True
        try:
            for page in pages(box.value, slider.value, next(seeds)):
                update(page)
        finally:  # also when the model raises
            button.disabled = False

    button.on_click(press)


def ipywidgets():
    """Returns the module ipywidgets, or None where it is not installed."""
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def show_widget(widget) -> None:
    """Displays a widget."""
    from IPython.display import display

    display(widget)


def show_html(html: str) -> Callable[[str], None]:
    """Displays `html` as ordinary output and returns a function that replaces it in
    place.
    """
    from IPython.display import HTML, display

    handle = display(HTML(html), display_id=True)

    def update(new: str) -> None:
        if handle is not None:  # outside a notebook there is none
            handle.update(HTML(new))

    return update


def mixture(shares, colours) -> str:
    """Mixes colours "#RRGGBB" by shares that sum to 1."""
    mixed = "#"
    for i in (1, 3, 5):  # where red, green and blue begin
        value = 0
        for share, colour in zip(shares, colours, strict=True):
            value += share * int(colour[i : i + 2], 16)
        mixed += f"{min(round(value), 255):02X}"
    return mixed


def counted(n: int, noun: str) -> str:
    """Returns "1 byte", "2 bytes"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
