"""The Triton kernel against float64 NumPy over every shape that the book promises:
output and three gradients.

    python tests/slow/kernel_grid.py --out runs/kernel-grid

In Triton's interpreter, or on the GPU where there is one. A near-tie among the scores
is set aside by another seed.
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

import torch  # noqa: E402
from test_kernels import DEVICE, agrees  # noqa: E402

from tilelli_nb.storage import records

LENGTHS, WIDTHS, KEEPS = (1, 15, 16, 17, 100, 256), (16, 40, 48, 64), (1, 4, 16, 300)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    began, started, failures, cases = records.now(), time.perf_counter(), [], 0
    for T, width, keep, integers in product(LENGTHS, WIDTHS, KEEPS, (False, True)):
        cases += 1
        try:
            agrees((1, 2, T, width), keep, integers=integers)
        except AssertionError as error:
            failures.append(
                {
                    "T": T,
                    "width": width,
                    "keep": keep,
                    "integers": integers,
                    "error": str(error)[:200],
                }
            )
            print(failures[-1], flush=True)
    seconds = time.perf_counter() - started
    print(
        f"{cases - len(failures)} of {cases} cases within 1e-5 on {DEVICE}, {seconds:.0f} s"
    )
    if args.out:
        gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else None
        record = records.new_record(
            args.out.name,
            "eval",
            config={},
            seed=0,
            data=None,
            device=DEVICE,
            gpu_name=gpu,
            notes="Triton kernel against float64 NumPy; on a CPU in Triton's interpreter.",
        )
        record |= {
            "wall_s": round(seconds, 1),
            "started": began,
        }
        results = {
            "cases": cases,
            "failures": failures,
            "tolerance": 1e-5,
            "lengths": LENGTHS,
            "widths": WIDTHS,
            "keeps": KEEPS,
        }
        records.write_run(args.out, record, results)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
