"""What a selection costs in machine instructions: bisection beside a sorting network,
compiled for cards that need not be here.

    python book/experiments/kernel_selection.py [--out book/runs/kernel-compiled]

One program finds the 16th largest of each of 64 rows of 256 scores, which a tensor core
leaves in the registers of 128 threads. Nothing in it branches and all rounds are
written out, so that counting its instructions is counting what a thread does. A third
program that only looks for the largest is what both have besides. Then all kernels of
the package are compiled as they are launched: registers, numbers put aside, seconds.
No GPU is needed, and nothing here is a time on one.
"""

import argparse
import os
import re
import time
from collections import Counter
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from compile_kernels import compile_for, jobs, machine_code, usage  # noqa: E402
from tilelli_nb.model import kernels  # noqa: E402
from tilelli_nb.model.kernel_sort import (  # noqa: E402
    count_from,
    float_of,
    kth_and_highest,
    larger_half,
    lists_of,
    merge,
    sort,
)
from tilelli_nb.storage.records import new_record, now, write_run  # noqa: E402

ROWS, KEYS, WIDTH, KEEP, THREADS = 64, 256, 64, 16, 128
SIZES = {"ROWS": ROWS, "KEYS": KEYS, "WIDTH": WIDTH, "KEEP": KEEP}
CARDS = {86: "RTX A6000 and its kind", 90: "H100 and H200"}
# What the instructions are for; the rest moves numbers about.
KINDS = {
    "larger or smaller of two": r"FMNMX",
    "comparison": r"F?I?SETP|FSET",
    "count": r"V?IADD|IMAD|POPC|SEL|LEA",
    "exchange between threads": r"SHFL|LDS|STS|LDSM|BAR",
    "tensor core": r"HMMA|HGMMA",
}


@triton.jit
def scores_of(q, k, first, ROWS: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """(ROWS, N) scores of keys from `first` on, as a tensor core makes them."""
    columns = tl.arange(0, WIDTH)
    q_tile = tl.load(q + tl.arange(0, ROWS)[:, None] * WIDTH + columns[None, :])
    keys = first + tl.arange(0, N)
    k_tile = tl.load(k + keys[:, None] * WIDTH + columns[None, :])
    return tl.dot(q_tile, tl.trans(k_tile))


@triton.jit
def bisection(q, k, out, ROWS, KEYS, WIDTH, KEEP: tl.constexpr):
    scores = scores_of(q, k, 0, ROWS, KEYS, WIDTH)
    code = tl.zeros([ROWS], tl.uint32)
    for bit in tl.static_range(31, -1, -1):
        trial = code | (1 << bit)
        enough = count_from(scores, float_of(trial)) >= KEEP
        code = tl.where(enough, trial, code)
    tl.store(out + tl.arange(0, ROWS), float_of(code))


@triton.jit
def sorting(q, k, out, ROWS, KEYS, WIDTH, KEEP: tl.constexpr):
    best = sort(lists_of(scores_of(q, k, 0, ROWS, 64, WIDTH), ROWS))
    for first in tl.static_range(64, KEYS, 64):
        new = sort(lists_of(scores_of(q, k, first, ROWS, 64, WIDTH), ROWS))
        best = merge(larger_half(best, new), 16)
    kth, _ = kth_and_highest(best, ROWS, KEEP)
    tl.store(out + tl.arange(0, ROWS), kth)


@triton.jit
def largest(q, k, out, ROWS, KEYS, WIDTH, KEEP: tl.constexpr):
    scores = scores_of(q, k, 0, ROWS, KEYS, WIDTH)
    tl.store(out + tl.arange(0, ROWS), tl.max(scores, 1))


def instructions(compiled) -> Counter:
    """Instructions of a finished program by their names, the padding left out."""
    line = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)"
    names = re.findall(line, machine_code(compiled, "-sass"), re.MULTILINE)
    return Counter(name for name in names if name not in ("NOP", "BRA"))


def by_kind(counts: Counter) -> dict[str, int]:
    """How many instructions each of KINDS has, by how their names begin."""
    found = dict.fromkeys(KINDS, 0)
    for name, count in counts.items():
        for kind, pattern in KINDS.items():
            if re.match(pattern, name):
                found[kind] += count
    return found


def selection(kernel, capability: int) -> dict:
    """One way of selecting on one architecture."""
    sizes = SIZES | {"num_warps": THREADS // 32, "num_stages": 1}
    compiled, seconds = compile_for(kernel, capability, sizes)
    counts = instructions(compiled)
    kinds = by_kind(counts)
    total = sum(counts.values())
    used = usage(compiled)
    return {
        "instructions": total,
        "per_score": round(total * THREADS / (ROWS * KEYS), 2),
        "kinds": kinds | {"other": total - sum(kinds.values())},
        "registers": used["registers"],
        "put_aside": used["put_aside"],
        "compile_s": round(seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    record = new_record(
        args.out.name if args.out else "kernel-compiled",
        "bench",
        seed=0,
        notes="Kernels compiled for cards that were not there: no time on a GPU.",
    )
    start = time.perf_counter()
    found = {"rows": ROWS, "keys": KEYS, "keep": KEEP, "threads": THREADS}
    found |= {"cards": {f"sm_{c}": name for c, name in CARDS.items()}}
    found |= {"selection": {}, "kernels": {}}
    for capability in CARDS:
        card = f"sm_{capability}"
        ways = {way.__name__: selection(way, capability) for way in WAYS}
        found["selection"][card] = ways
        found["kernels"][card] = [
            {
                "kernel": kernel.__name__,
                "of": "attention"
                if kernel.__module__ == kernels.__name__
                else "convolution",
                "keep": keep,
                **usage(compiled),
                "instructions": sum(instructions(compiled).values()),
                "compile_s": round(seconds, 2),
            }
            for kernel, keep, cut in jobs(48, [16, 17])
            for compiled, seconds in [compile_for(kernel, capability, cut)]
        ]
        for name, way in ways.items():
            print(card, name, way, flush=True)
        for row in found["kernels"][card]:
            print(card, *row.values(), flush=True)
    if args.out:
        record |= {"finished": now(), "wall_s": round(time.perf_counter() - start, 1)}
        write_run(args.out, record, found)


WAYS = (largest, bisection, sorting)


if __name__ == "__main__":
    main()
