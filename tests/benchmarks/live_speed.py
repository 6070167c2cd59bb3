"""How fast the models write in the page, and what the ternary product is worth there:
`python tests/benchmarks/live_speed.py [MODEL ...] [--out FOLDER]`, after
`make book`.

Two tables, made in headless Chromium. First, new bytes a second for 300 bytes after a
short prompt, greedily, reading again included, by the page's own worker: the promise is
300 for nano and 40 for lite-10m on an idle core; and the longest task that held up the
page's main thread while it wrote (promise: 100 ms). Second, the three ways of a ternary
product: a table of sums, lists of inputs to add and to subtract, fp32 numbers. Where
lite-10m is not bundled, one of that size is drawn at random.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "book" / "tools"), str(ROOT / "tests" / "book")]

from live_server import LiveServer  # noqa: E402

import live_models  # noqa: E402
from tilelli_nb.storage.records import new_record, now, write_run  # noqa: E402

HTML = ROOT / "_build" / "html"
PROMPT = "Once upon a time"
RUNS = 5

LONG_TASKS = """() => {
    window.longest = 0;
    new PerformanceObserver((list) => {
        for (const task of list.getEntries()) longest = Math.max(longest, task.duration);
    }).observe({ type: "longtask" });
}"""

WRITE = """async ([root, name, prompt]) => {
    const model = await import(`${root}/_static/live/model.js`);
    const entry = (await model.model_list()).find((each) => each.name === name);
    const ids = [...new TextEncoder().encode(prompt)];
    const sampling = { max_new: 300, temperature: 0, stop: [] };
    const end = await model.write(entry, ids, sampling, {});
    return 299 / end.seconds; // from the first new byte to the last
}"""

# Each way gets codes (out, in) and returns what computes y -> out.
PRODUCTS = """async ([root, width]) => {
    const { TernaryLinear, Matrix } = await import(`${root}/_static/live/engine.js`);
    const lists = (codes, d_in) => {
        const rows = codes.length / d_in;
        const places = (r, code) => Uint16Array.from(
            [...codes.subarray(r * d_in, (r + 1) * d_in).keys()].filter(
                (j) => codes[r * d_in + j] === code));
        const plus = Array.from({ length: rows }, (_, r) => places(r, 1));
        const minus = Array.from({ length: rows }, (_, r) => places(r, -1));
        return { forward(y, out) {
            for (let r = 0; r < rows; r++) {
                let sum = 0;
                const [added, taken] = [plus[r], minus[r]];
                for (let i = 0; i < added.length; i++) sum += y[added[i]];
                for (let i = 0; i < taken.length; i++) sum -= y[taken[i]];
                out[r] = sum;
            }
        } };
    };
    const times = {};
    for (const [d_in, d_out] of [[width, 4 * width], [4 * width, width]]) {
        const codes = Int8Array.from({ length: d_in * d_out }, () => Math.floor(3 * Math.random()) - 1);
        const y = Float32Array.from({ length: d_in }, () => Math.random() - 0.5);
        const ways = {
            "table of sums": new TernaryLinear({ codes, scale: 1 }, d_in),
            "lists to add and subtract": lists(codes, d_in),
            "fp32 numbers": new Matrix(Float32Array.from(codes), d_in),
        };
        const out = new Float32Array(d_out);
        const rounds = Math.ceil(2e7 / codes.length);
        for (let turn = 0; turn < 12; turn++) { // alternating; the first ones warm up
            for (const [name, way] of Object.entries(ways)) {
                const start = performance.now();
                for (let i = 0; i < rounds; i++) way.forward(y, out);
                const each = (performance.now() - start) / rounds;
                const key = `${d_in} -> ${d_out}, ${name}`;
                if (turn >= 2) times[key] = Math.min(times[key] ?? Infinity, each);
            }
        }
    }
    return times;
}"""


def with_a_lite(folder: Path) -> Path:
    """The bundled models, and a random lite-10m where there is none."""
    for model in live_models.WEIGHTS.iterdir():
        if (model / "model.safetensors").is_file():
            (folder / model.name).symlink_to(model)
    if not (folder / "lite-10m").exists():
        from tilelli_nb import TilelliLM, load_config

        TilelliLM(load_config("lite_10m"), seed=1).eval().save_packed(
            folder / "lite-10m"
        )
    return folder


def main() -> None:
    """Measures, prints, and with --out writes a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names such as nano (default: all)")
    parser.add_argument("--out", type=Path, help="folder for a run record")
    args = parser.parse_args()
    record = new_record("bench-live", "bench", seed=0)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        weights, models = Path(scratch, "weights"), Path(scratch, "models")
        weights.mkdir()
        listed = live_models.write_models(models, with_a_lite(weights))
        names = args.models or [each["name"] for each in listed if not each["chat"]]
        results = measure(models, names)
    if args.out:
        record["notes"] = f"Chromium {results['chromium']}, one worker; best of {RUNS}."
        record["wall_s"] = round(time.perf_counter() - start, 1)
        record["finished"] = now()
        args.out.mkdir(parents=True, exist_ok=True)
        write_run(args.out, record, results)


def measure(models: Path, names: list[str]) -> dict:
    """The speeds of these models, and the times of the products in milliseconds."""
    server = LiveServer(HTML, "", models)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    results: dict = {"speeds": {}, "products_ms": {}}
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        results["chromium"] = browser.version
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"{server.address}/book/talk.html", wait_until="load")
        page.evaluate(LONG_TASKS)
        for name in names:
            found = results["speeds"][name] = write(page, server.address, name)
            said = ", ".join(f"{key} {value:.0f}" for key, value in found.items())
            print(f"{name:12} {said}", flush=True)
        for width in (128, 384):
            times = page.evaluate(PRODUCTS, [server.address, width])
            for title, each in times.items():
                print(f"{title:44} {each:8.4f} ms", flush=True)
                results["products_ms"][title] = round(each, 4)
        browser.close()
    server.close()
    return results


def write(page, address: str, name: str) -> dict[str, float]:
    """New bytes a second of one model, and the longest task of the page meanwhile."""
    speeds = [page.evaluate(WRITE, [address, name, PROMPT]) for _ in range(RUNS)]
    option = page.locator("option", has_text=f"{name} (").first.inner_text()
    page.get_by_label("Model:").first.select_option(label=option)
    page.get_by_label("Bytes at most:").fill("1000")
    page.evaluate("window.longest = 0")
    page.get_by_role("button", name="Write").click()
    page.wait_for_selector(".live-buttons button:first-child:enabled")
    return {
        "best_bytes_per_s": round(max(speeds), 1),
        "median_bytes_per_s": round(statistics.median(speeds), 1),
        "longest_task_ms": page.evaluate("longest"),
    }


main()
