"""Compiles the attention kernels in bf16 for GPUs that need not be here, and says what
they take.

    python book/experiments/compile_kernels.py --widths 48 128 [--keeps 16 17]

A line for each: kernel, architecture, head width, keep, tensor-core instructions, bytes
of shared memory, registers a thread, bytes that a thread had to put aside, seconds of a
processor to compile. Exit code 1 if one of attention has no tensor-core instruction, or
one takes more shared memory than an RTX A6000 has (99 KiB).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tilelli_nb.model import kernel_conv, kernels  # noqa: E402

SHARED = 99 * 1024
TENSOR_CORE = r"mma\.sync|wgmma\.mma_async"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    "kept": "*i32",
    "log_sums": "*fp32",
    "means": "*fp32",
    "scale": "fp32",
    "weight": "*fp32",
    "d_weight": "*fp32",
    "HEADS": "i32",
    "T": "i32",
    "D": "i32",
}


def compile_for(kernel, capability: int, sizes: dict):
    """One kernel with bf16 tensors for one architecture, and the seconds of a
    processor that it took.

    As for a real launch, the compiler is told that addresses, T and D are multiples of 16:
    so it can load several numbers at once.
    """
    sizes = dict(sizes)
    options = {name: sizes.pop(name) for name in ("num_warps", "num_stages")}
    types = {
        name: "constexpr" if name in sizes else TYPES.get(name, "*bf16")
        for name in kernel.arg_names
    }
    multiples = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if types[name].startswith("*") or name in ("T", "D")
    }
    source = ASTSource(kernel, types, sizes, multiples)
    target, start = GPUTarget("cuda", capability, 32), processor_seconds()
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.always_compile = True  # or its cache is timed
        compiled = triton.compile(source, target=target, options=options)
    return compiled, processor_seconds() - start


def processor_seconds() -> float:
    """Of this process and of the compilers that it has started: other work on the
    machine does not count.
    """
    return sum(os.times()[:4])


def machine_code(compiled, option: str) -> str:
    """What NVIDIA's cuobjdump, which comes with Triton, says about the finished
    program.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", option, file.name]
        return subprocess.run(command, capture_output=True, text=True).stdout


def usage(compiled) -> dict[str, int]:
    """Registers and put-aside bytes of a thread, shared bytes of a program, and
    tensor-core instructions.
    """
    said = machine_code(compiled, "-res-usage")
    found = {
        name: int(re.search(rf"{word}:(\d+)", said)[1])
        for name, word in (("registers", "REG"), ("put_aside", "STACK"))
    }
    ptx = compiled.asm["ptx"]
    return found | {
        "shared": compiled.metadata.shared,
        "tensor_core": len(re.findall(TENSOR_CORE, ptx)),
    }


def jobs(width: int, keeps: list[int]) -> list[tuple]:
    """Kernel, keep (None where it makes no difference) and sizes, as a launch has
    them.
    """
    cut = kernels.sizes(width, element_size=2)
    forward = [
        (kernels.forward_kernel, keep, cut | kernels.selection(keep)) for keep in keeps
    ]
    tile = {"WIDTH": 5, "ROWS": kernel_conv.ROWS, "CHANNELS": kernel_conv.CHANNELS}
    tile |= {"num_warps": 4, "num_stages": 1}
    return [
        *forward,
        (kernels.backward_queries_kernel, None, cut),
        (kernels.backward_keys_kernel, None, cut),
        (kernel_conv.forward_kernel, None, tile),
        (kernel_conv.backward_kernel, None, tile),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[48])
    parser.add_argument("--keeps", type=int, nargs="+", default=[16])
    parser.add_argument("--capabilities", type=int, nargs="+", default=[80, 86, 90])
    args = parser.parse_args()
    good = True
    for capability in args.capabilities:
        for width in args.widths:
            for kernel, keep, cut in jobs(width, args.keeps):
                compiled, seconds = compile_for(kernel, capability, cut)
                found = usage(compiled)
                attends = kernel.__module__ == kernels.__name__
                good &= found["shared"] <= SHARED
                good &= found["tensor_core"] > 0 or not attends
                print(
                    kernel.__name__ if attends else f"conv_{kernel.__name__}",
                    f"sm_{capability}",
                    f"width {width}",
                    f"keep {keep or '-'}",
                    *(f"{name} {value}" for name, value in found.items()),
                    f"{seconds:.1f} s",
                    flush=True,
                )
    sys.exit(not good)


if __name__ == "__main__":
    main()
