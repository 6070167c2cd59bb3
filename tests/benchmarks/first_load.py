"""How long a first load takes, in a process that has done nothing but import torch and
the package: `python tests/benchmarks/first_load.py [MODEL ...]`.

Prints the best and the median of some fresh processes, in seconds. The bound that we
set ourselves is 0.3 s on an idle machine.
"""

import statistics
import subprocess
import sys

LOAD = """
import sys, time
import torch
from tilelli_nb import TilelliLM
start = time.perf_counter()
TilelliLM.from_pretrained(sys.argv[1])
print(time.perf_counter() - start)
"""
PROCESSES = 7


def first_load(model: str) -> list[float]:
    """Seconds that from_pretrained takes in each of some fresh processes."""
    command = [sys.executable, "-c", LOAD, model]
    seconds = []
    for _ in range(PROCESSES):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout))
    return seconds


for name in sys.argv[1:] or ["tilelli/nano"]:
    seconds = first_load(name)
    median = statistics.median(seconds)
    print(f"{name:24} best {min(seconds):.3f} s, median {median:.3f} s")
