"""One build of the site and one Chromium, for all tests that look at pages."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

import offline
import pairs
from check_environment import BROWSERS, GET_BROWSER

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # the network is cut: nothing but this machine has an address
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def build(tmp_path_factory, worker_id):
    """The finished build process and the folder with the site, made anew with every
    warning an error.

    Workers of one run share it: the first to come builds, the others wait.
    """
    shared = (
        tmp_path_factory.getbasetemp().parent
        if worker_id != "master"
        else tmp_path_factory.getbasetemp()
    )
    out, result = shared / "site", shared / "site.json"
    with FileLock(shared / "site.lock"):
        if not result.exists():
            offline.fetch()
            program = Path(sys.executable).with_name("jupyter-book")
            command = [
                program,
                "build",
                pairs.ROOT,
                "--path-output",
                out,
                "-n",
                "-W",
                "--keep-going",
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            result.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return subprocess.CompletedProcess(
        [], *json.loads(result.read_text())
    ), out / "_build" / "html"


@pytest.fixture(scope="module")
def site(build):
    """The address of the site, served on this machine."""
    done, html = build
    assert (html / "index.html").exists(), done.stdout[-2000:] + done.stderr[-4000:]
    handler = type(
        "Quiet",
        (http.server.SimpleHTTPRequestHandler,),
        {"log_message": lambda *_: None},
    )
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(html))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    """A running Chromium. Without one the browser tests are skipped, but with CI=true
    they fail.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not program:
        reason = f"the browser tests need Chromium. {GET_BROWSER}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()
