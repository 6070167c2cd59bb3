"""The page that `reproduce.py` writes: every row of the published recipe, what came out
here, and the file that says so. One file, without scripts, fonts or addresses.
"""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from tilelli_nb.training.cost import recipe_bill

CHANCE = 8.0  # bits per byte of somebody who knows nothing

STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --soft: #595959;
  --line: #c8c8c8; --accent: #0b5394; --ground: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #16181b;
  --soft: #b4b4b4; --line: #4a4d52; --accent: #8cc1f5; --ground: #22262b; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { line-height: 1.2; margin-bottom: .3em; } h2 { margin-top: 2em; }
a { color: var(--accent); } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding: .4em 0; color: var(--soft); }
th, td { text-align: left; vertical-align: top; padding: .55em .7em;
  border-bottom: 1px solid var(--line); } tbody th { font-weight: 600; }
td { min-width: 9rem; overflow-wrap: break-word; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
blockquote { margin: 1em 0; padding: .6em 1em; background: var(--ground);
  border-left: 4px solid var(--accent); white-space: pre-wrap; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .5em 1em; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) { dl { display: block; } dd { margin: 0 0 .7em; } }
figure { margin: 1.5em 0; } svg { width: 100%; height: auto; max-width: 44rem; }
"""


class Row(NamedTuple):
    """A row of the recipe: its step, what was published, what came out, the receipt."""

    step: str
    published: str
    ours: str
    receipt: str  # a file beside the report


def page(found: dict[str, Any], curve: Sequence[dict[str, Any]], folder: str) -> str:
    """The whole report as HTML; `folder` is where the runs lie."""
    pretrain, chat = found["pretrain"], found["chat"]
    minutes = (pretrain["wall_s"] + chat["wall_s"]) / 60
    bits = pretrain["val_bpb"]
    held = found["evaluation"]["held_out"]
    body = f"""
<h1>Tilelli's recipe, at laptop size</h1>
<p>A language model was trained on this computer in {minutes:.1f} minutes, from random
numbers, and then taught to answer questions and to say &ldquo;I don&rsquo;t know&rdquo;.
It follows the recipe of Tilelli, an open model of ten million parameters, with a model
of {found["running"]["parameters"]:,} and a fraction of the text. So every step can be
compared with the published one; a number can be, where its row says
&ldquo;the same&rdquo;.</p>
<p><strong>What came out:</strong> it predicts text that it has not seen with
{bits:.2f} bits per byte (a guess in the dark needs {CHANCE:.0f}). Of questions in
wordings that it has not seen, {percent(held["phrasings"]["right"])} are answered
rightly; of those that nobody could answer, {percent(held["unanswerable"]["refused"])}
are refused.</p>
<h2>The recipe, row by row</h2>
{table(rows(found))}
<h2>How it learned</h2>
{figure(curve)}
<h2>What it writes</h2>
<p>The first words are ours, the rest is the model&rsquo;s.</p>
<blockquote>{escape(found["running"]["story"])}</blockquote>
<h2>What it answers</h2>
{talk(found["evaluation"]["talk"])}
<p class="soft">The last two have no answer that the model could know. These five questions
were fixed before the model was trained.</p>
<h2>Words</h2>
{words()}
<h2>Where to go on</h2>
<p>Talk with it: <code>tilelli chat --model {escape(folder)}/chat</code>.
Train it longer: <code>make train</code>. The full size on a rented card:
<code>make pretrain</code>, and chapter 10. Every published claim, judged: chapter 14.</p>
"""
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Tilelli's recipe, at laptop size</title>\n<style>{STYLE}</style>\n"
    )
    return f"{head}</head>\n<body>\n<main>{body}</main>\n</body>\n</html>\n"


def percent(interval: dict[str, float]) -> str:
    """A share with its 95% interval."""
    low, high = interval["low"], interval["high"]
    return f"{interval['value']:.0%} (between {low:.0%} and {high:.0%})"


def rows(found: dict[str, Any]) -> list[Row]:
    """The rows of the recipe, in its order."""
    text, running = found["data"], found["running"]
    pretrain, chat = found["pretrain"], found["chat"]
    return [
        Row(
            "1. Data",
            "FineWeb-Edu, filtered for quality; about 2 GB is enough.",
            f"{text['train_bytes'] / 1e6:.1f} MB of {text['source']}, and "
            f"{text['val_bytes'] / 1e3:.0f} KB held out. FineWeb-Edu is one option away.",
            "data.json",
        ),
        Row(
            "2. GPU",
            "A rented A6000 at $0.40 an hour, about 5 hours, about $2.",
            f"None. {pretrain['wall_s'] / 60:.1f} minutes on this processor "
            f"(threads: {pretrain['threads']}).",
            "pretrain/run.json",
        ),
        Row(
            "3. Tokens",
            "Bytes as they are, 256 of them; hello is 104, 101, 108, 108, 111.",
            f"The same: {', '.join(map(str, text['hello']))}.",
            "data.json",
        ),
        Row("4. Model", *model_cells(running), "running.json"),
        Row("5. Training", *training_cells(pretrain), "pretrain/run.json"),
        Row("6. Chat", *chat_cells(found), "evaluation.json"),
        Row("7. Metacognition", *probe_cells(found["evaluation"]), "evaluation.json"),
        Row(
            "8. Running it",
            "PyTorch alone, on a processor; loading takes about a second.",
            f"The same: loaded in {running['load_s']:.2f} s, writes "
            f"{running['bytes_per_s']:,.0f} bytes a second. A smaller model.",
            "running.json",
        ),
        Row(
            "9. The five lines",
            "Load a model, encode a prompt, generate, decode, print.",
            "They work with this model too; what they print stands below.",
            "running.json",
        ),
        Row("10. The bill", *bill_cells(pretrain, chat), "chat/run.json"),
        Row(
            "11. The promise",
            "No pretrained weights, no shortcuts, no hidden steps.",
            f"The weights began as random numbers of seed {pretrain['seed']}, under "
            f"{'commit ' + pretrain['git'] if pretrain['git'] else 'this version'}; "
            "the record has everything that is needed to do it again.",
            "pretrain/run.json",
        ),
    ]


def model_cells(running: dict[str, Any]) -> tuple[str, str]:
    """The architecture."""
    return (
        "6 blocks: a convolution, attention of 8 heads that keeps 16 bytes, a ternary "
        "network, and a router that mixes them. About 10.1 million parameters.",
        f"4 such blocks with 4 heads: {running['parameters']:,} parameters. The "
        f"network's weights in use have {running['weights_in_use']} different values. "
        f"Built at the recipe's size, it has {running['recipe_parameters']:,}.",
    )


def training_cells(record: dict[str, Any]) -> tuple[str, str]:
    """Pretraining."""
    train = record["config"]["train"]
    size = train["batch"] * record["config"]["model"]["context"]
    return (
        "AdamW, learning rate 3e-4 with a cosine, decay 0.01; 50,000 steps of about "
        "32,000 bytes.",
        f"The same method at {train['lr']:g}: {record['steps']:,} steps of {size:,} "
        f"bytes, {record['bytes_seen'] / 1e6:.1f} MB in all. Held-out text: "
        f"{record['val_bpb']:.3f} bits per byte.",
    )


def chat_cells(found: dict[str, Any]) -> tuple[str, str]:
    """Fine-tuning, and what it was worth."""
    held, gate = found["evaluation"]["held_out"], found["evaluation"]["gate"]
    ours = (
        f"{found['chat']['wall_s'] / 60:.1f} minutes. In new wordings "
        f"{percent(held['phrasings']['right'])} right, and "
        f"{percent(held['phrasings']['refused'])} wrongly refused; without an answer "
        f"{percent(held['unanswerable']['refused'])} refused."
    )
    if gate:
        behind = gate["held_out"]["unanswerable"]["refused"]
        ours += f" With a gate for doubtful answers {percent(behind)}."
    return (
        "About 50,000 pairs, some of them to be answered with I don't know; an hour or "
        "two of GPU. Published: 7 of 20 answerable questions wrongly refused.",
        ours,
    )


def probe_cells(evaluation: dict[str, Any]) -> tuple[str, str]:
    """What the router's confidence knows."""
    probes = evaluation["probes"]
    names = {
        "router_conf": "the router's confidence",
        "max_softmax_mean": "the largest probability",
        "margin_last": "the lead of the likeliest byte",
    }
    said = []
    for signal, name in names.items():
        interval = probes[signal]
        if interval:
            low, high = interval["low"], interval["high"]
            said.append(f"{name} {interval['value']:.2f} ({low:.2f} to {high:.2f})")
    measured = "; ".join(said) or "undefined, because all replies are of one kind"
    return (
        "Does the router's entropy show what the model does not know? In 0 of 7 kinds "
        "of prompts.",
        f"{probes['right']} of {probes['prompts']} replies are right. How well each "
        f"signal tells them from the others, 0.5 being a coin: {measured}. Chapter 12 "
        "has the whole experiment.",
    )


def bill_cells(pretrain: dict[str, Any], chat: dict[str, Any]) -> tuple[str, str]:
    """Dollars."""
    theirs = ", ".join(f"{part} ${cost:.2f}" for part, cost in recipe_bill().items())
    minutes = (pretrain["wall_s"] + chat["wall_s"]) / 60
    return (
        f"About $7: {theirs}.",
        f"$0 for {minutes:.1f} minutes of your own computer. What the full size costs "
        "is not measured here.",
    )


def table(found: list[Row]) -> str:
    """The rows as an HTML table."""
    cells = "".join(
        f'<tr><th scope="row">{escape(row.step)}</th><td>{escape(row.published)}</td>'
        f"<td>{escape(row.ours)}</td>"
        f'<td><a href="{escape(row.receipt)}">{escape(row.receipt)}</a></td></tr>\n'
        for row in found
    )
    titles = ("Step", "The recipe says", "Here", "Receipt")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        '<div class="wide" role="region" aria-label="The recipe, row by row" '
        'tabindex="0"><table>\n<caption>A receipt is a file beside this page that holds '
        f"the numbers of its row.</caption>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{cells}</tbody></table></div>"
    )


def figure(curve: Sequence[dict[str, Any]]) -> str:
    """The loss over the bytes read, as a drawing with words beside it."""
    points = [(line["bytes_seen"] / 1e6, line["loss"] / 0.693147) for line in curve]
    held = [
        (line["bytes_seen"] / 1e6, line["val_bpb"])
        for line in curve
        if line.get("val_bpb") is not None
    ]
    end = points[-1][0]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return 60 + 600 * point[0] / end, 250 - 230 * min(point[1], 9) / 9

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return (
            f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="13" '
            f'fill="currentColor">{words}</text>'
        )

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" '
        'stroke="currentColor" stroke-width="2"/>'
        for x, y in map(place, held)
    )
    lines = "".join(
        f'<line x1="60" x2="660" y1="{250 - 230 * bits / 9:.0f}" '
        f'y2="{250 - 230 * bits / 9:.0f}" stroke="currentColor" opacity=".25"/>'
        + text(52, 254 - 230 * bits / 9, str(bits), "end")
        for bits in (0, 2, 4, 6, 8)
    )
    first, last = points[0][1], held[-1][1]
    words = (
        f"The loss falls from {first:.1f} bits per byte at the first step to "
        f"{last:.2f} on held-out text at the end, after {end:.1f} megabytes."
    )
    return (
        f'<figure><svg viewBox="0 0 680 300" role="img" aria-label="{escape(words)}">'
        f'{lines}<polyline points="{path}" fill="none" stroke="var(--accent)" '
        f'stroke-width="2"/>{dots}{text(360, 290, "megabytes read")}'
        f"{text(60, 270, '0')}{text(660, 270, f'{end:.1f}')}"
        f"{text(60, 14, 'bits per byte', 'start')}</svg>"
        f"<figcaption>{escape(words)} Circles: held-out text.</figcaption></figure>"
    )


def talk(answers: list[dict[str, str]]) -> str:
    """Questions and what was said."""
    lines = "".join(
        f"<dt>{escape(one['question'])}</dt><dd>{escape(one['said']) or '(nothing)'}</dd>"
        for one in answers
    )
    return f"<dl>{lines}</dl>"


def words() -> str:
    """The terms of this page, for somebody who reads nothing else."""
    terms = {
        "Bits per byte": "How many yes-or-no answers the model needs, on average, to "
        "learn the next byte. Lower is better; 8 is no knowledge.",
        "Held out": "Kept aside before training, so that the model has never seen it.",
        "Between": "The range in which 95% of the results lie when the questions are "
        "drawn again: how sure the figure is.",
        "Ternary": "Each weight is minus one, zero or plus one, times one number.",
        "Router": "For each byte it says how much of each of three pathways is used.",
        "Gate": "An answer of which the model was not sure becomes I don't know.",
    }
    lines = "".join(f"<dt>{term}</dt><dd>{said}</dd>" for term, said in terms.items())
    return f"<dl>{lines}</dl>"
