"""Bits per byte of real texts by gzip, bzip2 and xz: the table of chapter 2.

    python book/experiments/compressors.py "NAME=FILE" ... [--out book/runs/compressors]

The settings are those of the chapter. The texts themselves are not part of the book:
NAME says where each is from.
"""

import argparse
import bz2
import gzip
import hashlib
import lzma
from pathlib import Path

from tilelli_nb.storage.records import new_record, write_run

COMPRESSORS = {
    "gzip": lambda data: gzip.compress(data, 9),
    "bzip2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9),
}


def measure(data: bytes) -> dict[str, float | int | str]:
    """Bits per byte of a text by each compressor, and what tells the text from
    others.
    """
    found = {name: 8 * len(f(data)) / len(data) for name, f in COMPRESSORS.items()}
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        **{name: round(bits, 4) for name, bits in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, default=Path("book/runs/compressors"))
    args = parser.parse_args()
    record = new_record(
        args.out.name,
        "bench",
        seed=0,
        notes="Real texts by three compressors: results.json.",
    )
    results = {}
    for text in args.texts:
        name, _, file = text.partition("=")
        results[name] = measure(Path(file).read_bytes())
        print(name, results[name])
    write_run(args.out, record, results)


if __name__ == "__main__":
    main()
