"""Opens notebooks in JupyterLab in headless Chromium, runs all cells as a reader would,
and reports what happened.

    python tests/slow/run_in_lab.py [NAMES ...] [--screenshots FOLDER]

Works on a copy of the checkout, so that nothing is saved into it. NAMES such as 01
choose notebooks; without any, all are run. Exits 1 when a cell raised, or did not run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PORT = 8899
STATE = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
  const code = Array.from(cells).filter(cell => cell.type === 'code' && cell.sharedModel.source.trim());
  const errors = code.flatMap(cell => cell.sharedModel.outputs.filter(o => o.output_type === 'error')
                                          .map(o => o.ename + ': ' + o.evalue));
  return {code: code.length, run: code.filter(cell => cell.executionCount !== null).length, errors};
}"""


def kernels() -> list[dict]:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{PORT}/api/kernels", timeout=10
    ) as answer:
        return json.load(answer)


def wait_for_server(seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            kernels()
            return
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(f"JupyterLab did not answer on port {PORT}") from None
            time.sleep(1)


def run_notebook(page, name: str, seconds: float) -> dict:
    """Opens one notebook, clears it, runs all its cells and waits until its kernel
    rests.
    """
    page.goto(f"http://127.0.0.1:{PORT}/lab/tree/notebooks/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function(
        "window.jupyterapp.shell.currentWidget?.context?.sessionContext?.isReady",
        timeout=60_000,
    )
    page.wait_for_function(
        "window.jupyterapp.shell.currentWidget.context.sessionContext.session?.kernel?.status"
        " === 'idle'",
        timeout=60_000,
    )
    page.evaluate(
        "window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')"
    )
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(2)
        state = page.evaluate(STATE)
        if state["errors"] or (
            state["run"] == state["code"] and kernels()[0]["execution_state"] == "idle"
        ):
            break
    return state


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--seconds", type=float, default=240, help="how long one notebook may take"
    )
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument(
        "--chromium", default=shutil.which("chromium") or shutil.which("google-chrome")
    )
    args = parser.parse_args()
    notebooks = [
        path.name
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        if not args.names or any(path.name.startswith(name) for name in args.names)
    ]
    if not notebooks:
        raise SystemExit(f"no notebook's name begins with {' or '.join(args.names)}")
    failed = []
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["git", "clone", "--quiet", ROOT, f"{place}/copy"], check=True)
        lab = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyter",
                "lab",
                "--no-browser",
                f"--port={PORT}",
                "--IdentityProvider.token=",
                "--LabApp.expose_app_in_browser=True",
                "--allow-root",
                "--ServerApp.log_level=ERROR",
            ],
            cwd=f"{place}/copy",
            env={**os.environ, "PYTHONPATH": f"{place}/copy"},
        )
        try:
            wait_for_server()
            with sync_playwright() as p:
                browser = p.chromium.launch(
                    executable_path=args.chromium,
                    args=["--no-sandbox", "--disable-gpu"],
                )
                for name in notebooks:
                    page = browser.new_page(viewport={"width": 1280, "height": 1600})
                    state = run_notebook(page, name, args.seconds)
                    fine = not state["errors"] and state["run"] == state["code"]
                    print(
                        f"{name}: {state['run']} of {state['code']} code cells ran, {state['errors'] or 'no error'}",
                        flush=True,
                    )
                    if not fine:
                        failed.append(name)
                    if args.screenshots:
                        args.screenshots.mkdir(parents=True, exist_ok=True)
                        page.screenshot(
                            path=args.screenshots / f"{Path(name).stem}.png"
                        )
                    page.evaluate(
                        "window.jupyterapp.serviceManager.sessions.shutdownAll()"
                    )
                    page.close()
                browser.close()
        finally:
            lab.terminate()
            lab.wait(timeout=20)
    print(
        f"{len(notebooks) - len(failed)} of {len(notebooks)} notebooks ran in JupyterLab without an error"
    )
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
