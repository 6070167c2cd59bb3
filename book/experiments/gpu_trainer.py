"""The process that trains for gpu_plan.py, which starts it, watches it and replaces it.

It reads DIR/job.json and says in DIR/state.json what it is doing. Unpacks the text
while it checks (gpu_smoke.py) and compiles, times some steps, says "ready" and waits
for DIR/go.json with the moment at which it has to be done. Then it knows how many steps
fit and trains them. One process tries one way of computing: after an error of CUDA no
other can be tried in it.
"""

import json
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from pathlib import Path

# the package need not be installed
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402

import gpu_carry  # noqa: E402
import gpu_smoke  # noqa: E402
from tilelli_nb import TilelliLM  # noqa: E402
from tilelli_nb.config import Config  # noqa: E402
from tilelli_nb.data.shards import Shards, open_shards  # noqa: E402
from tilelli_nb.files import write_atomic  # noqa: E402
from tilelli_nb.storage import checkpoint, records  # noqa: E402
from tilelli_nb.training.batches import Prefetch  # noqa: E402
from tilelli_nb.training.distributed import Processes, best_device  # noqa: E402
from tilelli_nb.training.loop import train  # noqa: E402
from tilelli_nb.training.optimizer import make_optimizer, update  # noqa: E402
from tilelli_nb.training.precision import choose_precision  # noqa: E402

SPARE = 0.97  # of the time: a GPU that gets warm gets slower


class Trainer:
    """One attempt: a job, a way of computing, a folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.job = out, json.loads((out / "job.json").read_text())
        self.mode, self.said = self.job["mode"], dict(self.job["known"])
        self.config = Config.from_dict(self.job["config"])
        self.device = self.job["device"] or best_device()
        self.run = out / self.job["run"]

    def tell(self, phase: str, **facts: object) -> None:
        """Writes down where it stands; the command that watches reads it."""
        self.said |= facts
        state = {"mode": self.mode["name"], "pid": os.getpid(), "phase": phase}
        state |= {"at": time.time(), **self.said}
        write_atomic(self.out / "state.json", json.dumps(state, indent=1).encode())

    def work(self) -> None:
        """From nothing, or from the newest checkpoint, to a finished run."""
        self.tell("starting")
        with ThreadPoolExecutor(1) as pool:
            text = pool.submit(self.text)
            lm = TilelliLM(self.config).to(self.device).train()
            first = {name: value.clone() for name, value in lm.state_dict().items()}
            known = self.job["known"]
            terms = None if known else self.check(lm)
            shards = text.result()
        ms = known.get("step_ms") or self.time_steps(lm, terms, shards) * 1000
        self.tell("ready", step_ms=round(ms, 3))
        end = self.deadline()
        lm.load_state_dict(first)  # as if nothing had been tried
        lm.config = self.config.with_train(steps=self.steps(end, ms / 1000))
        self.tell("training", step=0, steps=lm.config.train.steps)
        record = train(
            lm,
            shards,
            self.run,
            resume=True,
            device=self.device,
            compiled=self.mode["compiled"],
            progress=False,
            notes=f"In the minutes of a lent GPU, as: {self.mode['name']}.",
            on_log=lambda line: self.tell("training", step=line["step"]),
        )
        self.tell("finished" if record["finished"] else "stopped")

    def text(self) -> Shards:
        """The shards, unpacked unless they are there."""
        packed = Path(self.job["shards"])
        if packed.is_dir():
            return open_shards(packed)
        gpu_carry.unpack(packed, self.out / "text")
        return open_shards(self.out / "text" / packed.name.removesuffix(".tar.xz"))

    def check(self, lm):
        """The smoke test. Returns the step as it will be computed."""
        c = self.config.train
        if self.mode["kernel"]:
            self.tell("starting", kernels=gpu_smoke.kernel_errors(self.device))
        terms = Processes(self.device).loss_terms(lm, self.mode["compiled"])
        if self.mode["compiled"]:
            bf16 = choose_precision(c.precision, torch.device(self.device)) == "bf16"
            errors = gpu_smoke.gradient_errors(lm, terms, c.micro_batch, bf16)
            worst = max(errors, key=errors.get)
            self.tell("starting", gradients={"worst": worst, "error": errors[worst]})
        return terms

    def time_steps(self, lm, terms, shards: Shards) -> float:
        """Seconds of one whole step, from batch to optimizer, after three that warm
        up.
        """
        c = self.config.train
        precision = choose_precision(c.precision, torch.device(self.device))
        optimizer = make_optimizer(lm, c, precision)
        batches = Prefetch(
            lambda draw: shards.batch(c.batch, self.config.model.context, draw),
            torch.Generator().manual_seed(c.seed).get_state(),
            pin=self.device == "cuda",
        )

        def step() -> torch.Tensor:
            out = update(lm, optimizer, batches.next(), c, 0.0, terms, precision)
            return out["loss"]

        try:
            for _ in range(3):
                float(step())
            start, steps = time.perf_counter(), 0
            while time.perf_counter() - start < self.job["timing_s"]:
                loss, steps = step(), steps + 1
                if steps % 10 == 0:
                    float(loss)  # waits for the GPU
            float(loss)
            return (time.perf_counter() - start) / steps
        finally:
            batches.close()

    def deadline(self) -> float:
        """When training has to be over, as seconds of the clock; waits to be told."""
        while not (self.out / "go.json").is_file():
            time.sleep(0.05)
        return json.loads((self.out / "go.json").read_text())["deadline"]

    def steps(self, end: float, step_s: float) -> int:
        """How long the schedule is: what fits, and not more than the configuration's.

        A run that goes on after an accident keeps its schedule if that still fits, else
        it is cut: the learning rate then falls from here on faster than planned.
        """
        left = SPARE * (end - time.time() - self.job["margin"])
        fits = max(1, int(left / step_s))
        if not (self.run / "run.json").is_file():
            return min(self.config.train.steps, fits)
        record = records.load_record(self.run)
        found = checkpoint.latest_valid(self.run / "checkpoints")
        done = found[1]["step"] if found else 0
        planned = record["config"]["train"]["steps"]
        steps = min(planned, done + fits)
        if steps < planned:
            record["config"]["train"]["steps"] = steps
            record["notes"] += f" At step {done} cut from {planned} steps to {steps}."
            write_atomic(self.run / "run.json", records.dumps(record))
        return steps


def main() -> None:
    trainer = Trainer(Path(sys.argv[1]))
    if compiler := trainer.job["compiler"]:  # another than Inductor, for a rehearsal
        torch.nn.Module.compile = partialmethod(
            torch.nn.Module.compile, backend=compiler
        )
    try:
        trainer.work()
    except Exception as error:
        traceback.print_exc()
        trainer.tell("failed", error=f"{type(error).__name__}: {error}"[:500])
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
