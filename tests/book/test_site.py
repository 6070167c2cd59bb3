"""The site builds without a warning, and its pages behave in Chromium: wide and narrow,
light and dark, offline.
"""

import re
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

import checks
import offline
import pairs

PAGES = checks.toc_files()
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
# A4 between its margins, at 96 pixels an inch, and the least that the body keeps there.
PAPER = {"width": 680, "height": 980}
# Code and printed text that is cut off: it, or a box around it, would have to scroll.
CUT_OFF = """() => [...document.querySelectorAll('.bd-article pre')]
    .filter(pre => {
        const output = pre.closest('.output');
        const boxes = [pre, pre.parentElement, ...(output ? [output] : [])];
        return boxes.some(box => box.scrollWidth > box.clientWidth);
    })
    .map(pre => pre.textContent.split('\\n').sort((a, b) => b.length - a.length)[0])"""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in PAGES],
)
def page(request, chromium, site):
    """Every page, loaded once, wide and light. Nothing outside the site is reachable.

    It carries its `name` and two lists: `asked`, the addresses outside that it wanted,
    and `errors`, what the console said. A test that changes the window or the scheme
    puts them back.
    """
    context = chromium.new_context(
        viewport=WIDE, color_scheme="light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(180_000)  # two browsers at once, on a busy machine
    page.name, page.asked, page.errors = request.param, [], []

    def gate(route):
        if route.request.url.startswith((site, "data:", "blob:")):
            return route.continue_()
        page.asked.append(route.request.url)
        return route.abort()

    context.route("**/*", gate)
    page.on(
        "response",
        lambda answer: page.errors.append(answer.url) if answer.status >= 400 else None,
    )
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            page.errors.append(message.text) if message.type == "error" else None
        ),
    )
    page.goto(f"{site}/{page.name}.html", wait_until="load")
    page.wait_for_load_state("networkidle")
    # look inside hints too
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    yield page
    context.close()


def test_the_build_is_clean(build):
    done, html = build
    warnings = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if re.search(r"WARNING|ERROR", line)
    ]
    assert warnings == [] and done.returncode == 0
    assert all((html / f"{page}.html").exists() for page in PAGES)


def test_nothing_but_the_book_is_in_the_site(build):
    _, html = build
    made = {
        p.relative_to(html).with_suffix("").as_posix()
        for p in html.rglob("*.html")
        if "_static" not in p.parts
    }
    assert made - set(PAGES) <= {"index", "genindex", "search"}


def test_the_front_door_leads_to_the_first_page(chromium, site):
    page = chromium.new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{site}/index.html")
    page.wait_for_url(f"**/{PAGES[0]}.html")
    page.close()


def test_page_loads_quietly_and_asks_nothing_of_the_network(page):
    if not offline.present():
        pytest.skip("the pages use a CDN: npm could not fetch the copies")
    assert page.asked == []
    assert page.errors == []


def test_maths_is_typeset(page):
    formulas = page.locator(".math").count()
    if not formulas:
        pytest.skip("no maths on this page")
    if not offline.present():
        pytest.skip("MathJax comes from a CDN")
    page.wait_for_function(
        "window.MathJax && MathJax.startup && MathJax.startup.promise"
    )
    page.evaluate("MathJax.startup.promise.then(() => true)")
    assert page.locator(".math mjx-container").count() >= formulas
    assert page.locator("mjx-merror").count() == 0


def test_widgets_are_shown(page):
    notebook = pairs.ROOT / f"{page.name}.ipynb"
    views = 0
    if notebook.exists():
        cells = pairs.read_notebook(notebook).cells
        views = sum(
            "application/vnd.jupyter.widget-view+json" in output.get("data", {})
            for cell in cells
            for output in cell.get("outputs", [])
        )
    if not views:
        pytest.skip("no widget on this page")
    page.wait_for_function(f"""() => document.querySelectorAll(
        '.bd-article .live[data-live], .bd-article .live-still[inert]').length === {views}""")
    still = page.locator(".bd-article .live-still").count()
    assert page.locator(".bd-article .live-note", has_text="make lab").count() >= still
    if not still:
        return  # what is alive is looked at in test_live.py
    if not offline.present():
        pytest.skip("the widget manager comes from a CDN")
    page.wait_for_selector(".live-still .jupyter-widgets", state="visible")
    assert page.locator(".live-still .jupyter-widgets").count() >= still


def test_every_picture_is_described(page):
    bare = page.evaluate(
        "[...document.querySelectorAll('.bd-article img')].filter(i => !i.alt.trim()).map(i => i.src)"
    )
    broken = page.evaluate(
        "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    )
    assert bare == [] and broken == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_readable_in_both_schemes(page, scheme):
    """The page follows the reader's scheme, and axe finds nothing serious: names,
    labels, structure, contrast.

    Only contrast can differ between the schemes, so in the dark only that is looked at
    again. A page of source code has ten thousand coloured words in fifty colours: one
    word of each colour and background stays, the rest is plain.
    """
    page.evaluate("""() => {
        const seen = new Set();
        for (const word of document.querySelectorAll('.highlight span')) {
            const box = word.closest('.highlight');
            const kind = [word.className, box.parentElement.className, !!box.closest('.admonition, details')].join();
            if (seen.has(kind)) word.replaceWith(document.createTextNode(word.textContent));
            seen.add(kind);
        }
    }""")
    page.emulate_media(color_scheme=scheme)
    try:
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        red, green, blue = map(
            float,
            re.findall(
                r"[\d.]+",
                page.evaluate("getComputedStyle(document.body).backgroundColor"),
            )[:3],
        )
        assert (0.2126 * red + 0.7152 * green + 0.0722 * blue > 128) == (
            scheme == "light"
        )
        rules = {} if scheme == "light" else {"runOnly": ["color-contrast"]}
        answer = (
            Axe().run(page, options={"resultTypes": ["violations"], **rules}).response
        )
    finally:
        page.emulate_media(color_scheme="light")
    found = [
        violation
        for violation in answer["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"][:4]]) for v in found] == []


def test_a_narrow_page_does_not_scroll_sideways(page):
    page.set_viewport_size(NARROW)
    try:
        wide = page.evaluate("""() => [...document.querySelectorAll('.bd-article *')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1
                && !e.closest('table, pre, .output, .math'))
            .map(e => e.outerHTML.slice(0, 120))""")
        width = page.evaluate("document.documentElement.scrollWidth")
    finally:
        page.set_viewport_size(WIDE)
    assert width <= NARROW["width"], wide


def test_code_and_what_it_prints_fit_into_the_column(page):
    """A window of 1280 pixels holds 88 characters, and so every cell and every output,
    also when a scroll bar takes its 15 pixels.
    """
    page.set_viewport_size({**WIDE, "width": WIDE["width"] - 15})
    try:
        assert page.evaluate(CUT_OFF) == []
        spare = page.evaluate("""() => [...document.querySelectorAll('.bd-article pre')]
            .map(pre => {
                const line = document.createElement('span');
                line.textContent = 'x'.repeat(88);
                line.style.cssText = 'position: absolute; white-space: pre';
                pre.appendChild(line);
                const style = getComputedStyle(pre);
                const room = pre.clientWidth
                    - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
                const left = room - line.getBoundingClientRect().width;
                line.remove();
                return left;
            })""")
    finally:
        page.set_viewport_size(WIDE)
    assert all(pixels >= 0 for pixels in spare)


def test_on_paper_nothing_is_cut_off(page):
    page.set_viewport_size(PAPER)
    page.emulate_media(media="print")
    try:
        assert page.evaluate(CUT_OFF) == []
    finally:
        page.emulate_media(media="screen")
        page.set_viewport_size(WIDE)


def test_no_folder_of_this_machine_is_named_in_the_site(build):
    _, html = build
    # a folder such as / or /book would be found in any address
    own = [
        f"{folder}/" for folder in (Path.home(), pairs.ROOT) if len(folder.parts) > 2
    ]
    for page in PAGES:
        text = (html / f"{page}.html").read_text(encoding="utf-8")
        assert not [folder for folder in own if folder in text]
