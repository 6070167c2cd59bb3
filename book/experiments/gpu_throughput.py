"""How many bytes a second the training loop reads at several micro-batches, and which
operations take the time.

    python book/experiments/gpu_throughput.py --config lite_10m --out DIR
        [--micro 16 32 64 128] [--seconds 6]

A part of gpu_plan.py's `finish`, in a process of its own. The steps are those of
training: batches from shards (of random bytes), the transfer, the update.
DIR/throughput-CONFIG.json is rewritten after every measurement, and
DIR/profile-CONFIG.txt is the table of torch.profiler: time on the device on CUDA, on
the CPU elsewhere.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

# the package need not be installed
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tilelli_nb.config import Config, load_config  # noqa: E402
from tilelli_nb.data.shards import Shards, Split  # noqa: E402
from tilelli_nb.files import write_atomic  # noqa: E402
from tilelli_nb.language_model import TilelliLM  # noqa: E402
from tilelli_nb.training.batches import Prefetch  # noqa: E402
from tilelli_nb.training.cpu_tuning import keep_freed_memory  # noqa: E402
from tilelli_nb.training.distributed import Processes, best_device  # noqa: E402
from tilelli_nb.training.optimizer import make_optimizer, update  # noqa: E402
from tilelli_nb.training.precision import choose_precision  # noqa: E402


def stepper(config: Config, shards: Shards, device: str) -> Callable[[], torch.Tensor]:
    """A function that takes one step as train() does, compiled and from pinned memory
    on CUDA, and returns its loss.
    """
    keep_freed_memory()
    lm, c, cuda = TilelliLM(config).to(device).train(), config.train, device == "cuda"
    precision = choose_precision(c.precision, torch.device(device))  # as train() does
    optimizer = make_optimizer(lm, c, precision)
    terms = Processes(device).loss_terms(lm, compiled=cuda)
    batches = Prefetch(
        lambda generator: shards.batch(c.batch, config.model.context, generator),
        torch.Generator().manual_seed(0).get_state(),
        pin=cuda,
    )

    def step() -> torch.Tensor:
        batch = batches.next()
        return update(lm, optimizer, batch, c, c.lr, terms, precision)["loss"]

    return step


def measure(
    config: Config, shards: Shards, seconds: float, device: str
) -> tuple[float, int | None]:
    """Bytes/s over so many seconds, after two steps that warm up; the largest memory in
    MiB on CUDA.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step, steps = stepper(config, shards, device), 0
    step()
    loss = float(step())
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        loss, steps = step(), steps + 1
        if steps % 10 == 0:
            float(loss)  # waits for the device as often as the loop does when it logs
    float(loss)
    speed = (
        steps
        * config.train.batch
        * config.model.context
        / (time.perf_counter() - start)
    )
    return round(
        speed, 1
    ), torch.cuda.max_memory_allocated() // 2**20 if device == "cuda" else None


def profile(
    config: Config, shards: Shards, device: str, path: Path, steps: int = 3
) -> list[dict]:
    """The operations that take longest, as a table in `path`; the first twelve also as
    numbers a step.
    """
    step, cuda = stepper(config, shards, device), device == "cuda"
    float(step())
    with profiler(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    ) as seen:
        for _ in range(steps):
            loss = step()
        float(loss)
    key, averages = (
        "self_device_time_total" if cuda else "self_cpu_time_total",
        seen.key_averages(),
    )
    write_atomic(
        path,
        averages.table(sort_by=key, row_limit=40, max_name_column_width=70).encode(),
    )
    longest = sorted(averages, key=lambda event: getattr(event, key), reverse=True)[:12]
    return [
        {
            "name": event.key[:100],
            "ms": round(getattr(event, key) / 1000 / steps, 3),
            "calls": round(event.count / steps, 1),
        }
        for event in longest
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--micro", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument(
        "--batch", type=int, help="sequences per step; the configuration's unless given"
    )
    parser.add_argument("--seconds", type=float, default=6, help="for each micro-batch")
    parser.add_argument("--device", help="cpu or cuda; the best one here unless given")
    args = parser.parse_args()
    config, device = load_config(args.config), args.device or best_device()
    noise = Split([np.random.default_rng(0).integers(0, 256, 2**22, dtype=np.uint8)])
    shards, best = Shards(Path("noise"), noise, noise, {}), None
    found = {
        "device": device,
        "gpu_name": torch.cuda.get_device_name() if device == "cuda" else None,
        "cpu_threads": torch.get_num_threads(),
        "batch": args.batch or config.train.batch,
        "bytes_per_s": {},
        "peak_mib": {},
        "best": None,
        "profile": [],
    }
    for micro in args.micro:
        sized = config.with_train(batch=found["batch"], micro_batch=micro)
        try:
            speed, found["peak_mib"][micro] = measure(
                sized, shards, args.seconds, device
            )
        except torch.OutOfMemoryError:
            speed = None  # does not fit
        found["bytes_per_s"][micro] = speed
        if speed and (best is None or speed > found["best"]["bytes_per_s"]):
            best, found["best"] = sized, {"micro_batch": micro, "bytes_per_s": speed}
        write_atomic(
            args.out / f"throughput-{config.name}.json",
            json.dumps(found, indent=2).encode(),
        )
        print(micro, speed, flush=True)
    if best:
        found["profile"] = profile(
            best, shards, device, args.out / f"profile-{config.name}.txt"
        )
        write_atomic(
            args.out / f"throughput-{config.name}.json",
            json.dumps(found, indent=2).encode(),
        )


if __name__ == "__main__":
    main()
