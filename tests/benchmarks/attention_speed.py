"""Top-k attention, every version of it, beside dense attention: milliseconds, bytes/s,
FLOP/s and memory.

    python tests/benchmarks/attention_speed.py [--lengths 128 256 512 1024]
        [--out book/runs/NAME] [--quick]

On CUDA at full size (B 128, H 8, width 48, bf16) with the Triton kernel; on a CPU small
(B 4, fp32) and without it: in the interpreter it computes, but its time means nothing.
All versions of one length take turns, round by round; a figure is the median of the
rounds. Each is timed forward, and forward with backward; memory and threads are set as
`tilelli train` sets them. What is compared:

    kernel      tilelli_nb/model/kernels.py (CUDA)
    blocked     tilelli_nb/model/attention.py (CPU)
    reference   the plain rule of tilelli_nb/model/attention.py
    compiled    the same through torch.compile (CUDA)
    flex        FlexAttention, dense and causal (CUDA)
    sdpa        F.scaled_dot_product_attention, dense and causal

The ceilings are measured, too: a copy of 1 GB (64 MB on a CPU) and a product of two
large matrices.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tilelli_nb.training.cpu_tuning import keep_freed_memory, wait_briefly

# ruff: noqa: E402
wait_briefly()

import torch
import torch.nn.functional as F
from torch import Tensor

from tilelli_nb.model.attention import topk_attention
from tilelli_nb.storage.records import new_record, now, write_run

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)


def versions(T: int, keep: int) -> dict[str, Callable]:
    """Every version that can be timed on this machine, as a function of q, k, v; the
    kernel takes them in one piece, as the model gives them.
    """
    found = {
        "reference": lambda q, k, v: topk_attention(q, k, v, keep, "reference"),
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    if not CUDA:
        return found | {
            "blocked": lambda q, k, v: topk_attention(q, k, v, keep, "blocked")
        }
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    from tilelli_nb.model.kernels import packed_attention

    mask = create_block_mask(
        lambda b, h, row, key: row >= key, None, None, T, T, device=DEVICE
    )
    flex = torch.compile(flex_attention)
    return found | {
        "kernel": lambda qkv: packed_attention(qkv, keep).transpose(1, 2),
        "compiled": torch.compile(found["reference"]),
        "flex": lambda q, k, v: flex(q, k, v, block_mask=mask),
    }


def seconds_of(call: Callable, repeats: int) -> float:
    """Mean seconds of one call. On CUDA the clock is the card's."""
    if not CUDA:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def peak_memory(call: Callable) -> int | None:
    """Bytes allocated at the most during a call, beyond what was there before; None on
    a CPU.
    """
    if not CUDA:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def ceilings() -> dict[str, float]:
    """What this machine reaches at best: bytes read and written per second, FLOP/s of a
    matrix product.
    """
    numbers = torch.empty((1 << 30 if CUDA else 1 << 26) // 4, device=DEVICE)
    target = torch.empty_like(numbers)
    n = 8192 if CUDA else 1024
    a = torch.randn(n, n, device=DEVICE, dtype=DTYPE)
    copy = min(seconds_of(lambda: target.copy_(numbers), 5) for _ in range(4))
    product = min(seconds_of(lambda: a @ a, 5) for _ in range(4))
    return {
        "bytes_per_s": 2 * 4 * numbers.numel() / copy,
        "flop_per_s": 2 * n**3 / product,
    }


def work(B: int, H: int, T: int, width: int, backward: bool) -> tuple[float, float]:
    """(bytes, FLOP) that no version can do without: inputs and outputs once; the
    products over visible pairs.

    Forward: q, k, v, out, two products. Backward: q, k, v, out, d_out, dq, dk, dv, and
    five products.
    """
    one, pairs = (
        B * H * T * width * torch.empty(0, dtype=DTYPE).element_size(),
        B * H * T * (T + 1) / 2,
    )
    product = 2 * pairs * width
    return ((4 + 8) * one, (2 + 5) * product) if backward else (4 * one, 2 * product)


def measure(
    B: int, H: int, T: int, width: int, keep: int, rounds: int, repeats: int
) -> dict[str, dict]:
    """Each version at one length: milliseconds of forward and of both passes, with
    their bytes/s, FLOP/s, memory.
    """
    generator = torch.Generator(DEVICE).manual_seed(0)
    q, k, v, d_out = (
        torch.randn(
            B, T, H, width, device=DEVICE, dtype=DTYPE, generator=generator
        ).transpose(1, 2)
        for _ in range(4)
    )
    inputs = tuple(x.requires_grad_() for x in (q, k, v))
    packed = torch.stack([x.detach().transpose(1, 2) for x in inputs], dim=2)
    calls: dict[tuple[str, str], Callable] = {}
    for name, version in versions(T, keep).items():
        given = (packed.requires_grad_(),) if name == "kernel" else inputs
        calls[name, "forward"] = partial(forward, version, *given)
        calls[name, "both"] = partial(both, version, given, d_out)
    for call in calls.values():
        call()  # compiles what is to be compiled
    seconds = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            seconds[key].append(seconds_of(call, repeats))
    table: dict[str, dict] = {}
    for (name, passes), times in seconds.items():
        moved, flop = work(B, H, T, width, passes == "both")
        median = statistics.median(times)
        table.setdefault(name, {})[passes] = {
            "ms": round(median * 1000, 4),
            "fastest_ms": round(min(times) * 1000, 4),
            "slowest_ms": round(max(times) * 1000, 4),
            "bytes_per_s": moved / median,
            "flop_per_s": flop / median,
            "peak_bytes": peak_memory(calls[name, passes]),
        }
    return table


@torch.no_grad()
def forward(version: Callable, *inputs: Tensor) -> Tensor:
    """The forward pass alone."""
    return version(*inputs)


def both(version: Callable, inputs: tuple[Tensor, ...], d_out: Tensor) -> tuple:
    """Forward, and backward to the gradients of the inputs."""
    return torch.autograd.grad(version(*inputs), inputs, d_out)


def report(T: int, table: dict[str, dict], best: dict[str, float]) -> None:
    """Prints one length as a table, each figure beside its share of the measured
    ceiling.
    """
    print(
        f"\nT = {T}: milliseconds (share of the copy's bytes/s, share of the product's FLOP/s)"
    )
    for name, passes in sorted(table.items(), key=lambda item: item[1]["both"]["ms"]):
        cells = [
            f"{key} {row['ms']:9.3f} ({row['bytes_per_s'] / best['bytes_per_s']:.1%}, "
            f"{row['flop_per_s'] / best['flop_per_s']:.1%})"
            for key, row in passes.items()
        ]
        peak = passes["both"]["peak_bytes"]
        print(
            f"  {name:<10}",
            "   ".join(cells),
            f"  peak {peak / 2**20:,.0f} MiB" if peak else "",
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[128, 256, 512, 1024] if CUDA else [128, 256],
    )
    parser.add_argument("--batch", type=int, default=128 if CUDA else 4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--keep", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="one length of 256, three rounds"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    lengths, rounds = ([256], 3) if args.quick else (args.lengths, args.rounds)
    started, best = now(), ceilings()
    print(
        f"{torch.cuda.get_device_name() if CUDA else 'CPU'}, B {args.batch}, H {args.heads}, width {args.width}, "
        f"keep {args.keep}: copy {best['bytes_per_s'] / 1e9:,.0f} GB/s, "
        f"product {best['flop_per_s'] / 1e12:,.2f} TFLOP/s"
    )
    results = {
        "batch": args.batch,
        "heads": args.heads,
        "width": args.width,
        "keep": args.keep,
        "dtype": str(DTYPE),
        "threads": None if CUDA else torch.get_num_threads(),
        "ceilings": best,
        "lengths": {},
    }
    for T in lengths:
        table = measure(
            args.batch, args.heads, T, args.width, args.keep, rounds, 10 if CUDA else 1
        )
        assert all(
            math.isfinite(row["ms"])
            for passes in table.values()
            for row in passes.values()
        )
        results["lengths"][T] = table
        report(T, table, best)
    if args.out:
        record = new_record(
            args.out.name,
            "bench",
            config={},
            seed=0,
            device=DEVICE,
            gpu_name=torch.cuda.get_device_name() if CUDA else None,
            notes=f"Median of {rounds} rounds in which all versions take turns.",
        )
        write_run(args.out, record | {"started": started, "finished": now()}, results)


if __name__ == "__main__":
    main()
