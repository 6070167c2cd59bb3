"""One style for every figure of the book, and the drawings that chapters share."""

import matplotlib.pyplot as plt
from matplotlib import font_manager, ft2font

# The Okabe-Ito palette: told apart with every common kind of colour blindness, and in
# print.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#8A8A8A"
INK, PAPER = "#222222", "#FFFFFF"

# the three pathways keep their colours through the whole book
LOCAL, SPARSE, DENSE = SKY, ORANGE, GREEN

# inches; wide enough for a desktop page, and its text is still readable scaled down to
# a phone
WIDTH = 6.4


def use_style() -> None:
    """Sets matplotlib's defaults for a chapter: opaque paper (readable in dark mode),
    palette, sizes, 120 dpi.
    """
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.dpi": 120,
            "savefig.dpi": 120,
            "figure.constrained_layout.use": True,
            "figure.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "savefig.transparent": False,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.prop_cycle": plt.cycler(
                color=[BLUE, ORANGE, GREEN, RED, PURPLE, SKY]
            ),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#DDDDDD",
            "grid.linewidth": 0.7,
            "lines.linewidth": 2,
            "lines.markersize": 5,
            "font.family": "DejaVu Sans",
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "svg.hashsalt": "tilelli",
        }
    )


def byte_strip(ax, text: str) -> None:
    """Draws `text` on `ax`: a row of characters, and under each of them the UTF-8 bytes
    that spell it.

    The colour of a character says how many bytes it takes (1 to 4). A character the
    font lacks shows its code point.
    """
    colours = {1: SKY, 2: YELLOW, 3: ORANGE, 4: PURPLE}
    x = 0  # in bytes: each is one unit wide
    for character in text:
        data = character.encode("utf-8", errors="surrogatepass")
        colour = colours[len(data)]
        _cell(ax, x, 1.15, len(data), _visible(character), colour, size=15)
        for offset, value in enumerate(data):
            _cell(ax, x + offset, 0, 1, str(value), colour, size=11)
        x += len(data)
    ax.set(xlim=(-0.05, x + 0.05), ylim=(-0.1, 2.25))
    ax.set_axis_off()


def _cell(
    ax, x: float, y: float, width: float, label: str, colour: str, size: float
) -> None:
    """Draws a box of height 1 with its lower left corner at (x, y), and the label in
    its middle.
    """
    box = plt.Rectangle(
        (x + 0.03, y), width - 0.06, 1, facecolor=colour, alpha=0.45, edgecolor=INK
    )
    ax.add_patch(box)
    if len(label) >= 4:  # a code point, which would not fit
        size = 8
    middle = (x + width / 2, y + 0.48)
    ax.text(*middle, label, ha="center", va="center", fontsize=size)


def _visible(character: str) -> str:
    """Returns what to draw for one character: itself, a mark for a space, or its code
    point when the font cannot draw it.
    """
    if character == " ":
        return "␣"
    font = ft2font.FT2Font(font_manager.findfont("DejaVu Sans"))
    if character.isprintable() and font.get_char_index(ord(character)):
        return character
    return f"U+{ord(character):04X}"
