"""Compiles the attention kernels in bf16 for GPUs that need not be here, and says what
they take.

    python tests/scripts/compile_kernels.py --widths 48 128 --lengths 256 1024

A line for each: kernel, architecture, T, head width, tensor-core instructions, bytes of
shared memory. Exit code 1 if one has no tensor-core instruction or takes more shared
memory than an RTX A6000 has (99 KiB).
"""

import argparse
import os
import re
import sys

os.environ["TRITON_INTERPRET"] = "0"

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tilelli_nb import kernels  # noqa: E402

SHARED = 99 * 1024
TYPES = {
    "kept": "*i32",
    "log_sums": "*fp32",
    "means": "*fp32",
    "scale": "fp32",
    "HEADS": "i32",
    "T": "i32",
    "keep": "i32",
    "first": "i32",
}


def compile_for(kernel, capability: int, sizes: dict):
    """One kernel with bf16 tensors for one architecture."""
    sizes = dict(sizes)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    types = {
        name: "constexpr"
        if name in sizes
        else ("i32",) * 4
        if name.endswith("strides")
        else TYPES.get(name, "*bf16")
        for name in kernel.arg_names
    }
    source = ASTSource(kernel, types, sizes)
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=options
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[48])
    parser.add_argument("--lengths", type=int, nargs="+", default=[256])
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 86, 90])
    args = parser.parse_args()
    good = True
    for capability in args.capabilities:
        for T in args.lengths:
            for width in args.widths:
                backward = kernels.backward_sizes(T, width, element_size=2)
                jobs = [
                    (
                        kernels.forward_kernel,
                        kernels.forward_sizes(T, width, kernels.bands(T)[-1][1]),
                    ),
                    (kernels.backward_queries_kernel, backward),
                    (kernels.backward_keys_kernel, backward),
                ]
                for kernel, sizes in jobs:
                    compiled = compile_for(kernel, capability, sizes)
                    tensor_core = len(
                        re.findall(r"mma\.sync|wgmma\.mma_async", compiled.asm["ptx"])
                    )
                    shared = compiled.metadata.shared
                    good &= tensor_core > 0 and shared <= SHARED
                    print(
                        kernel.__name__,
                        f"sm_{capability}",
                        T,
                        width,
                        tensor_core,
                        shared,
                        flush=True,
                    )
    sys.exit(not good)


if __name__ == "__main__":
    main()
