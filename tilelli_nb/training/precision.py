"""Thirty-two bits or sixteen: which one this machine multiplies matrices in."""

import time

import torch

WORTH_IT = 1.3  # times as fast: below this, sixteen bits are not worth their rounding


SECONDS = 0.25  # of looking


def choose_precision(wanted: str, device: torch.device) -> str:
    """Decides between "fp32" and "bf16": what was asked for, or for "auto" what is fast
    on `device`.

    A GPU takes bf16, if it has it. Processors differ by a factor of a thousand,
    whatever they are called: some have instructions for bf16, others imitate it. So one
    product is timed.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        # older cards, such as a T4, only imitate bf16, and slowly
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "fp32"
    if device.type == "cpu" and bf16_gain() >= WORTH_IT:
        return "bf16"
    return "fp32"


def bf16_gain(seconds: float = SECONDS) -> float:
    """How many times as fast a product of matrices is in bf16 as in fp32, on the
    CPU.
    """
    generator = torch.Generator().manual_seed(0)
    # The size of a small micro-batch of the ten-million model: long enough to time,
    # short enough where a processor imitates bf16 a thousand times more slowly.
    exact = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are
    a = torch.randn(512, 384, generator=generator, **exact)
    b = torch.randn(384, 384, generator=generator, **exact)
    operands = {"fp32": (a, b), "bf16": (a.bfloat16(), b.bfloat16())}
    fastest = {name: product_seconds(*pair) for name, pair in operands.items()}
    # By turns, and the fastest of each: whatever else the machine does hits both.
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, pair in operands.items():
            fastest[name] = min(fastest[name], product_seconds(*pair))
    return fastest["fp32"] / fastest["bf16"]


def product_seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    """How long one product takes."""
    start = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - start
