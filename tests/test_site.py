"""The site builds without a warning, and its pages behave in Chromium: wide and narrow, light and dark, offline."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import checks
import offline
import pairs

PAGES = checks.toc_files()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
every_page = pytest.mark.parametrize("page_name", PAGES)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The finished build process and the folder with the site, made anew with every warning an error."""
    offline.fetch()
    out = tmp_path_factory.mktemp("site")
    program = Path(sys.executable).with_name("jupyter-book")
    command = [program, "build", pairs.ROOT, "--path-output", out, "-n", "-W", "--keep-going"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done, out / "_build" / "html"


@pytest.fixture(scope="module")
def site(build):
    """The address of the site, served on this machine."""
    done, html = build
    assert (html / "index.html").exists(), done.stdout[-2000:] + done.stderr[-4000:]
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    """A running Chromium. Without one the browser tests are skipped, but with CI=true they fail."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        reason = "the browser tests need Chromium: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, site):
    """visit(page_name, viewport, scheme) opens a page. Nothing outside the site is reachable.

    The page gets two lists: `asked`, the addresses outside that it wanted, and `errors`, what the console said.
    """
    contexts = []

    def open_page(page_name, viewport=WIDE, scheme="light"):
        context = chromium.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.asked, page.errors = [], []

        def gate(route):
            if route.request.url.startswith((site, "data:", "blob:")):
                return route.continue_()
            page.asked.append(route.request.url)
            return route.abort()

        context.route("**/*", gate)
        page.on("response", lambda answer: page.errors.append(answer.url) if answer.status >= 400 else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{site}/{page_name}.html", wait_until="load")
        page.wait_for_load_state("networkidle")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")  # look inside hints too
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_the_build_is_clean(build):
    done, html = build
    warnings = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"WARNING|ERROR", line)]
    assert warnings == [] and done.returncode == 0
    assert all((html / f"{page}.html").exists() for page in PAGES)


def test_nothing_but_the_book_is_in_the_site(build):
    _, html = build
    made = {p.relative_to(html).with_suffix("").as_posix() for p in html.rglob("*.html") if "_static" not in p.parts}
    assert made - set(PAGES) <= {"index", "genindex", "search"}


def test_the_front_door_leads_to_the_first_page(chromium, site):
    page = chromium.new_page()
    page.goto(f"{site}/index.html")
    page.wait_for_url(f"**/{PAGES[0]}.html")
    page.close()


@every_page
def test_page_loads_quietly_and_asks_nothing_of_the_network(visit, page_name):
    page = visit(page_name)
    if not offline.present():
        pytest.skip("the pages use a CDN: npm could not fetch the copies")
    assert page.asked == []
    assert page.errors == []


@every_page
def test_maths_is_typeset(visit, page_name):
    page = visit(page_name)
    formulas = page.locator(".math").count()
    if not formulas:
        pytest.skip("no maths on this page")
    if not offline.present():
        pytest.skip("MathJax comes from a CDN")
    page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
    page.evaluate("MathJax.startup.promise.then(() => true)")
    assert page.locator(".math mjx-container").count() >= formulas
    assert page.locator("mjx-merror").count() == 0


@every_page
def test_widgets_are_shown(visit, page_name):
    notebook = pairs.ROOT / f"{page_name}.ipynb"
    views = 0
    if notebook.exists():
        cells = pairs.read_notebook(notebook).cells
        views = sum("application/vnd.jupyter.widget-view+json" in output.get("data", {})
                    for cell in cells for output in cell.get("outputs", []))
    if not views:
        pytest.skip("no widget on this page")
    if not offline.present():
        pytest.skip("the widget manager comes from a CDN")
    page = visit(page_name)
    page.wait_for_selector(".bd-article .jupyter-widgets", state="visible")
    assert page.locator(".bd-article .jupyter-widgets").count() >= views


@every_page
def test_a_narrow_page_does_not_scroll_sideways(visit, page_name):
    page = visit(page_name, NARROW)
    wide = page.evaluate("""() => [...document.querySelectorAll('.bd-article *')]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1
            && !e.closest('table, pre, .output, .math'))
        .map(e => e.outerHTML.slice(0, 120))""")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= NARROW["width"], wide


@every_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_readable_in_both_schemes(visit, page_name, scheme):
    """The page follows the reader's scheme, and axe finds nothing serious: contrast, names, labels, structure."""
    from axe_playwright_python.sync_playwright import Axe

    page = visit(page_name, scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    red, green, blue = map(float, re.findall(r"[\d.]+", page.evaluate(
        "getComputedStyle(document.body).backgroundColor"))[:3])
    assert (0.2126 * red + 0.7152 * green + 0.0722 * blue > 128) == (scheme == "light")
    found = [violation for violation in Axe().run(page).response["violations"]
             if violation["impact"] in ("serious", "critical")]
    assert [(v["id"], [n["html"][:200] for n in v["nodes"][:4]]) for v in found] == []


@every_page
def test_every_picture_is_described(visit, page_name):
    page = visit(page_name)
    bare = page.evaluate("[...document.querySelectorAll('.bd-article img')].filter(i => !i.alt.trim()).map(i => i.src)")
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert bare == [] and broken == []


def test_no_folder_of_this_machine_is_named_in_the_site(build):
    _, html = build
    for page in PAGES:
        text = (html / f"{page}.html").read_text(encoding="utf-8")
        assert str(Path.home()) + "/" not in text and str(pairs.ROOT) not in text
