"""Everything a page loads comes from the site itself: MathJax, require.js and the
widget manager, fetched from npm.

`fetch()` copies them into `_static/vendor/` (about 6 MB, ignored by git), and pages.py
points the site at the copies when they are there. Without them the pages use the public
CDN, and all else stays the same.
"""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parents[1] / "_static" / "vendor"

FONTS = (
    "1551f4f60c37af51121f.woff2",
    "7a3337626410ca2f4071.woff2",
    "d878b0a6a1144760244f.woff2",
)
# package: (file that npm writes, its sha256, {path inside the package: place under
# vendor/}); a folder ends in /
PACKAGES = {
    "mathjax@3.2.2": (
        "mathjax-3.2.2.tgz",
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
        {
            "es5/tex-chtml.js": "mathjax/tex-chtml.js",
            "LICENSE": "mathjax/LICENSE",
            "es5/output/chtml/fonts/woff-v2/": "mathjax/output/chtml/fonts/woff-v2/",
        },
    ),
    "requirejs@2.3.7": (
        "requirejs-2.3.7.tgz",
        "31f3330c978fb28684622fe71165dc946432cf0210b2ea8a1ca0233e70f2737d",
        {"require.js": "require.js"},
    ),
    "@jupyter-widgets/html-manager@1.0.6": (
        "jupyter-widgets-html-manager-1.0.6.tgz",
        "6c198ceb99ba7e7526990a1de16e8147ad7d3a714e3fb06741183623c04b5f6e",
        {
            "dist/embed-amd.js": "html-manager/embed-amd.js",
            "LICENSE": "html-manager/LICENSE",
            # the icons of buttons and sliders
            **{f"dist/{font}": f"html-manager/{font}" for font in FONTS},
        },
    ),
}
WANTED = json.dumps(PACKAGES, sort_keys=True)
QUICK_TO_GIVE_UP = [
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
    "--fetch-timeout=20000",
]


def present() -> bool:
    """Are the copies here, and of the versions named above?"""
    marker = VENDOR / "contents.json"
    return marker.is_file() and marker.read_text(encoding="utf-8") == WANTED


def fetch() -> str:
    """Puts the copies in place unless they are there. Returns one line that says what
    happened; never raises.
    """
    if present():
        return "Offline assets: already here."
    if not shutil.which("npm"):
        return (
            "Offline assets: npm is not installed, so the pages load MathJax and the "
            "widget manager from a CDN."
        )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _assemble(Path(scratch))
    except (OSError, subprocess.SubprocessError, ValueError, tarfile.TarError) as error:
        return (
            f"Offline assets: npm could not fetch them ({_reason(error)}), "
            "so the pages use a CDN."
        )
    return "Offline assets: copied into book/_static/vendor."


def _assemble(scratch: Path) -> None:
    fresh = scratch / "vendor"
    subprocess.run(
        ["npm", "pack", "--silent", *QUICK_TO_GIVE_UP, *PACKAGES],
        cwd=scratch,
        check=True,
        timeout=180,
        capture_output=True,
        text=True,
    )
    for file, digest, places in PACKAGES.values():
        archive = scratch / file
        if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{file} is not the file this book was tested with")
        _extract(archive, places, fresh)
    shutil.rmtree(VENDOR, ignore_errors=True)
    shutil.copytree(fresh, VENDOR)
    # last: with it, present() takes the copies for whole
    (VENDOR / "contents.json").write_text(WANTED, encoding="utf-8")


def _extract(archive: Path, places: dict[str, str], target: Path) -> None:
    """Copies only the files named in `places`; each must be found."""
    found = set()
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix("package/")
            source = _named(name, places)
            if source is None or not member.isfile():
                continue
            found.add(source)
            file = target / (places[source] + name.removeprefix(source))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(tar.extractfile(member).read())
    missing = set(places) - found
    if missing:
        raise ValueError(f"{archive.name} has no {', '.join(sorted(missing))}")


def _named(name: str, places: dict[str, str]) -> str | None:
    """Returns the file, or the folder that ends in /, by which `places` names it."""
    for place in places:
        if name == place or (place.endswith("/") and name.startswith(place)):
            return place
    return None


def _reason(error: Exception) -> str:
    """Returns one line that says what went wrong: npm's own if it said something."""
    said = getattr(error, "stderr", None) or str(error)
    lines = said.strip().splitlines()
    return lines[0] if lines else type(error).__name__
