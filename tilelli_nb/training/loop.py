"""Training: one loop for the notebook, the command line and the tests. It can be
stopped and killed at any moment.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import files
from ..config import Config, TrainConfig
from ..data.shards import Shards
from ..data.tokenizer import ByteTokenizer
from ..errors import ConfigError, TrainingError
from ..files import write_atomic
from ..inference import scoring
from ..storage import checkpoint, records
from .batches import Prefetch
from .cost import Bill, hourly_price, mfu
from .cpu_tuning import keep_freed_memory
from .distributed import Processes, stop_signals
from .gpu_memory import clear_gpu_errors
from .optimizer import learning_rate, load_moments, make_optimizer, moments_of, update
from .precision import choose_precision

# Settings that a resumed run may change.
CHANGES_NO_RESULT = (
    "micro_batch",
    "checkpoint_minutes",
    "keep_checkpoints",
)


TIMED_STEPS = 5  # before the expected end is said


FINAL_EVAL_BYTES = 2**20  # held-out bytes of the last evaluation, at most


SPIKE = 1.5  # nats above the median of the last 20 logged losses: not noise any more


def train(
    lm,
    shards: Shards,
    out: str | Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    minutes: float | None = None,
    prompt: str = "",
    device: str | None = None,
    compiled: bool | None = None,
    usd_per_hour: float | None = None,
    max_dollars: float | None = None,
    progress: bool = True,
    notes: str = "",
    on_log: Callable[[dict], None] | None = None,
) -> dict[str, Any]:
    """Trains `lm` as its configuration says and returns the run record; the folder
    `out` holds everything.

    run.json, metrics.jsonl, samples.jsonl (at 1%, 10% and 100%), checkpoints/ and, at
    the end, model.safetensors. `resume` goes on from the newest whole checkpoint, bit
    for bit as if nothing had happened. `stop_at` ends early on the same schedule;
    `minutes` times some steps on a copy and fixes the length of the schedule from them.
    SIGTERM, SIGINT and a bill above `max_dollars` write a checkpoint and return.
    `compiled` (on CUDA unless told otherwise) takes the step through torch.compile.
    `on_log` gets each metrics line. Under torchrun every process calls this. Raises
    TrainingError, DataError, ConfigError, CheckpointError.
    """
    keep_freed_memory()
    run = Run(lm, shards, Path(out), device, prompt, on_log)
    run.bill = Bill(hourly_price(run.gpu_name, usd_per_hour), max_dollars)
    run.begin(resume, minutes, notes)
    say = tqdm.write if progress and run.processes.is_first else lambda text: None
    say(run.introduction())
    begun, begun_at = run.step, time.perf_counter()
    steps, last = run.config.steps, min(run.config.steps, stop_at or run.config.steps)
    bar = tqdm(
        total=steps * run.step_bytes,
        initial=run.step * run.step_bytes,
        unit="B",
        unit_scale=True,
        disable=not (progress and run.processes.is_first),
    )
    with stop_signals() as stopped, bar, run.ready(compiled):
        while run.step < last and not run.processes.any(
            stopped.is_set() or run.bill.is_over(run.gpu_seconds())
        ):
            run.train_step()
            bar.update(run.step_bytes)
            if run.step == begun + TIMED_STEPS:
                step_s = (time.perf_counter() - begun_at) / TIMED_STEPS
                say(run.expected_end(step_s, last))
            grown = (
                run.is_due(run.config.checkpoint_every)
                and run.step < last
                and run.grow()
            )
            if (
                grown
                or run.is_due(run.config.log_every)
                or run.is_due(run.config.eval_every)
                or run.step == 1
            ):
                bar.set_postfix_str(run.log(grown))
            if run.step in (math.ceil(steps / 100), math.ceil(steps / 10), steps):
                run.sample()
            if run.step == last or run.should_save():
                run.save()
        run.save()
    return run.finish()


class Run:
    """A training run: the model, what the optimizer and the batches need to go on, and
    the folder it all lands in.
    """

    def __init__(
        self,
        lm,
        shards: Shards,
        out: Path,
        device: str | None,
        prompt: str,
        on_log: Callable | None,
    ) -> None:
        self.lm, self.out, self.prompt, self.on_log = lm, out, prompt, on_log
        self.opened = self.shards = shards  # all that was there; what the run reads
        self.processes = Processes(device)
        self.device = self.processes.device
        self.gpu_name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else None
        )
        lm.to(self.device).train()
        self.step, self.saved_step = 0, 0
        self.saved_at = time.perf_counter()
        self.precision = "fp32"  # of the products; begin() decides
        # of the parts before this one; of evaluation, samples and files
        self.wall_s, self.aside_s = 0.0, 0.0
        self.started = time.perf_counter()
        # what the latest step came to; batches made ahead, while training
        self.last, self.batches = {}, None
        self.losses: list[float] = []
        self.final_bpb: float | None = None

    @property
    def config(self) -> TrainConfig:
        return self.lm.config.train

    @property
    def step_bytes(self) -> int:
        return self.config.batch * self.lm.config.model.context

    def is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def should_save(self) -> bool:
        """Whether a checkpoint is due, by steps or by the clock."""
        minutes = (time.perf_counter() - self.saved_at) / 60
        return (
            self.is_due(self.config.checkpoint_every)
            or minutes >= self.config.checkpoint_minutes
        )

    def seconds(self) -> float:
        """Wall time of the run so far, over all its parts."""
        return self.wall_s + time.perf_counter() - self.started

    def gpu_seconds(self) -> float:
        """What is paid for: every process has a GPU of its own."""
        return self.seconds() * self.processes.world

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not counted as training."""
        start = self.seconds()
        yield
        self.aside_s += self.seconds() - start

    def introduction(self) -> str:
        """What is about to run, on what, in one line."""
        processes = self.processes.world
        where = self.gpu_name or self.device.type
        if self.device.type == "cpu":
            where += f" with {torch.get_num_threads()} threads"
        if processes > 1:
            where += f" in each of {processes} processes"
        parameters = sum(p.numel() for p in self.lm.parameters())
        return (
            f"{self.lm.config.name}: {parameters:,} parameters on {where}, "
            f"in {self.precision}; {self.config.steps:,} steps of "
            f"{self.step_bytes:,} bytes, {self.step:,} of them done"
        )

    def expected_end(self, step_s: float, last: int) -> str:
        """When step number `last` will be done, at the pace of the first steps."""
        seconds = step_s * (last - self.step)
        end = time.localtime(time.time() + seconds)
        day = "" if seconds < 86_400 else time.strftime("%d %B, ", end)
        return (
            f"{step_s:.2f} s a step: done in about {seconds / 3600:.1f} h, "
            f"at {day}{time.strftime('%H:%M', end)}"
        )

    # Beginning and resuming

    def begin(self, resume: bool, minutes: float | None, notes: str) -> None:
        exists = self.processes.any((self.out / "run.json").is_file())
        if exists and not resume:
            raise TrainingError(
                f"{self.out.name} already holds a run",
                "go on with --resume, or choose another --out",
            )
        if exists:
            self.record = records.load_record(self.out)
            self.continue_record()
        else:
            self.grow()
            self.precision = self.processes.agree(
                choose_precision(self.config.precision, self.device)
            )
            if minutes:
                self.set_steps(minutes)
            self.record = records.new_record(
                self.out.resolve().name,
                "train",
                config=self.lm.config.to_dict(),
                seed=self.config.seed,
                notes=notes,
                data=self.shards.describe(),
                device=self.device.type,
                gpu_name=self.gpu_name,
                precision=self.precision,
            )
        self.optimizer = make_optimizer(self.lm, self.config, self.precision)
        self.data_state = torch.Generator().manual_seed(self.config.seed).get_state()
        if resume:
            self.load()
        if self.processes.is_first:
            write_atomic(self.out / "run.json", records.dumps(self.record))
            for name in ("metrics.jsonl", "samples.jsonl"):
                files.keep_lines(self.out / name, self.step)
            self.losses = [line["loss"] for line in records.load_metrics(self.out)]

    def continue_record(self) -> None:
        """The run's own configuration counts: --minutes fixed its steps once.
        Everything else must be the same.

        Only what changes no result may differ: how many sequences fit at once, and when
        checkpoints are written and how many stay.
        """
        stored, given = Config.from_dict(self.record["config"]), self.lm.config
        here = stored.with_train(
            **{name: getattr(given.train, name) for name in CHANGES_NO_RESULT}
        )
        recorded = self.record.get("precision")  # records of before had none
        if recorded is None:
            recorded = "bf16" if self.record["device"] == "cuda" else "fp32"
        same_steps = given.with_train(steps=stored.train.steps)
        differing = differences(here.to_dict(), same_steps.to_dict())
        wanted = given.train.precision
        if wanted not in ("auto", stored.train.precision, recorded):
            differing.append(f"precision {recorded}, not {wanted}")
        if differing:
            raise ConfigError(
                f"the run in {self.out.name} was started with {', '.join(differing)}",
                "resume with the same --config and options, or choose another --out",
            )
        self.shards = self.opened.as_described(self.record["data"])
        self.lm.config = here
        self.precision = recorded

    def set_steps(self, minutes: float) -> None:
        """Times some steps and an evaluation on a copy: as many steps as fit into
        `minutes`, all else included.
        """
        lm = copy.deepcopy(self.lm)
        optimizer = make_optimizer(lm, self.config, self.precision)
        generator = torch.Generator().manual_seed(self.config.seed)
        seconds = []
        while len(seconds) < 4 or (sum(seconds) < 6 and len(seconds) < 30):
            start = time.perf_counter()
            batch = self.draw(generator)
            out = update(
                lm, optimizer, batch, self.config, lr=0.0, precision=self.precision
            )
            float(out["loss"])  # waits for a GPU
            seconds.append(time.perf_counter() - start)
        step_s = sorted(seconds[1:])[len(seconds[1:]) // 2]  # the first one warms up
        sample = self.shards.val.read(min(self.config.eval_bytes, 16_384))
        start = time.perf_counter()
        scoring.score(lm, sample)
        byte_s = (time.perf_counter() - start) / len(sample)
        per_step = (
            step_s * 1.02
            + byte_s
            * min(self.config.eval_bytes, len(self.shards.val))
            / self.config.eval_every
        )
        left = (
            minutes * 60
            - self.seconds()
            - byte_s * min(FINAL_EVAL_BYTES, len(self.shards.val))
            - 2
        )
        steps = int(self.processes.maximum(torch.tensor(max(1, int(left / per_step)))))
        self.lm.config = self.lm.config.with_train(steps=steps)

    def load(self) -> None:
        found = checkpoint.latest_valid(self.out / "checkpoints")
        if found is None:
            return  # killed before the first checkpoint: begin again
        tensors, state = found
        self.lm.load_weights(
            {key[6:]: t for key, t in tensors.items() if key.startswith("model.")}
        )
        load_moments(self.optimizer, tensors)
        self.data_state = tensors["generator"]
        self.shards = (
            self.opened.as_described(state["data"]) if "data" in state else self.shards
        )
        self.step, self.wall_s, self.aside_s = (
            state["step"],
            state["wall_s"],
            state["wall_s"] - state["train_s"],
        )
        self.saved_step = self.step

    # Steps

    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The next batch of the run, or this process's share of it."""
        return self.processes.share(
            self.shards.batch(
                self.config.batch, self.lm.config.model.context, generator
            )
        )

    @contextmanager
    def ready(self, compiled: bool | None) -> Iterator[None]:
        """For the time of the training: the loss as it is computed here, and batches
        made ahead.
        """
        on_gpu = self.device.type == "cuda"
        self.loss_terms = self.processes.loss_terms(
            self.lm, on_gpu if compiled is None else compiled
        )
        self.batches = Prefetch(self.draw, self.data_state, pin=on_gpu)
        try:
            with clear_gpu_errors(self.config.micro_batch):
                yield
        finally:
            self.batches.close()

    def train_step(self) -> None:
        lr = learning_rate(self.step, self.config)
        self.last = update(
            self.lm,
            self.optimizer,
            self.batches.next(),
            self.config,
            lr,
            self.loss_terms,
            self.precision,
        )
        self.step += 1

    def grow(self) -> bool:
        """Takes in the training shards that were written since, in all processes the
        same. True if there are any.
        """
        here = (self.shards.grown() if self.processes.is_first else None) or self.shards
        count = int(self.processes.maximum(torch.tensor(len(here.train.shards))))
        if count == len(self.shards.train.shards):
            return False
        self.shards = self.shards.grown(count)
        if self.batches:
            self.batches.restart()
        return True

    def log(self, grown: bool = False) -> str:
        """Appends a line to metrics.jsonl and returns the few figures that the progress
        bar shows.
        """
        means = {name: self.processes.mean(value) for name, value in self.last.items()}
        if not self.processes.is_first:
            return ""
        loss = self.check_loss(float(means["loss"]))
        self.losses.append(loss)
        line = {
            "step": self.step,
            "bytes_seen": self.step * self.step_bytes,
            "loss": loss,
            "lr": learning_rate(self.step - 1, self.config),
            "grad_norm": float(means["grad_norm"]),
            "balance": float(means["balance"]),
            "router_use": means["router_use"].tolist(),
            "zero_share": self.lm.zero_shares(),
        }
        if grown:
            line["train_shards"] = len(self.shards.train.shards)
        if self.is_due(self.config.eval_every):
            line["val_bpb"] = self.evaluate()
        line["wall_s"] = round(self.seconds(), 3)
        files.append_line(self.out / "metrics.jsonl", line)
        if self.on_log:
            self.on_log(line)
        held_out = (
            f", held out {line['val_bpb']:.3f} bits per byte"
            if "val_bpb" in line
            else ""
        )
        return f"loss {loss:.3f}{held_out} {self.bill.text(self.gpu_seconds(), self.step / self.config.steps)}"

    def evaluate(self) -> float:
        finished = self.step == self.config.steps
        held_out = self.shards.val.read(
            FINAL_EVAL_BYTES if finished else self.config.eval_bytes
        )
        with self.aside():
            val_bpb = scoring.score(self.lm, held_out)
        self.final_bpb = val_bpb if finished else None
        return val_bpb

    def check_loss(self, loss: float) -> float:
        """The loss, if it and the gradient are numbers and it has not jumped above what
        was usual.
        """
        usual = (
            statistics.median(self.losses[-20:]) if len(self.losses) > 4 else math.inf
        )
        if math.isfinite(loss + float(self.last["grad_norm"])) and loss < usual + SPIKE:
            return loss
        start = (
            f" from its checkpoint of step {self.saved_step:,} (--init {self.out})"
            if self.saved_step
            else ""
        )
        usually = f"; {usual:.4g} was usual" if usual < math.inf else ""
        raise TrainingError(
            f"the loss is {loss:.4g} at step {self.step:,}{usually}",
            f"begin another run{start}, with a lower --lr (now {self.config.lr:g}) or a longer warm-up",
        )

    def sample(self) -> None:
        if not self.processes.is_first:
            return
        # no samples of a model that is broken
        self.check_loss(float(self.last["loss"]))
        tokenizer = ByteTokenizer()
        with self.aside():
            self.lm.eval()
            ids = self.lm.generate(
                tokenizer.encode(self.prompt),
                max_new=400,
                temperature=0.8,
                seed=self.config.seed,
            )
            self.lm.train()
        files.append_line(
            self.out / "samples.jsonl",
            {"step": self.step, "text": tokenizer.decode(ids)},
        )

    # Files

    def save(self) -> None:
        """A checkpoint of everything a resumed run needs, unless this step already has
        one; older ones are dropped.
        """
        if self.step == self.saved_step or not self.processes.is_first:
            return
        self.check_loss(float(self.last["loss"]))
        tensors = {f"model.{name}": t for name, t in self.lm.state_dict().items()}
        tensors |= moments_of(self.optimizer) | {"generator": self.batches.state}
        folder = self.out / "checkpoints"
        with self.aside():
            about = {
                "config": self.lm.config.to_dict(),
                "step": self.step,
                "wall_s": self.seconds(),
                "train_s": self.seconds() - self.aside_s,
                "data": self.shards.describe(),
            }
            checkpoint.write_tensors(
                folder / f"step-{self.step:08d}.safetensors", tensors, about
            )
        self.saved_step, self.saved_at = self.step, time.perf_counter()
        for old in sorted(folder.glob("step-*.safetensors"))[
            : -self.config.keep_checkpoints
        ]:
            old.unlink()

    def finish(self) -> dict[str, Any]:
        """Completes run.json; a run at its last step also leaves the model for
        from_pretrained.
        """
        if not self.processes.is_first:
            return self.record
        done = self.step == self.config.steps
        if done and self.final_bpb is None:  # resumed after its last step
            self.final_bpb = records.load_metrics(self.out)[-1]["val_bpb"]
        seen, train_s = self.step * self.step_bytes, self.seconds() - self.aside_s
        self.record |= {
            "config": self.lm.config.to_dict(),
            "data": self.shards.describe(),
            "steps": self.step,
            "bytes_seen": seen,
            "wall_s": round(self.seconds(), 3),
            "bytes_per_s": round(seen / train_s, 1),
            "mfu": mfu(
                seen / train_s / self.processes.world,
                self.lm.config.model,
                self.gpu_name,
            ),
            "usd_per_hour": self.bill.usd_per_hour,
            "usd": self.bill.spent(self.gpu_seconds()),
            "val_bpb": self.final_bpb,
            "finished": records.now() if done else None,
        }
        if done:
            self.lm.eval().save_pretrained(self.out, val_bpb=self.final_bpb)
        write_atomic(self.out / "run.json", records.dumps(self.record))
        about = {
            "processes": self.processes.world,
            "data_wait_share": self.batches.waited_s / train_s,
        }
        write_atomic(self.out / "results.json", records.dumps(about))
        return self.record


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """What two configurations differ in, in words; precision is compared elsewhere."""
    found = []
    for section in ("model", "train"):
        for name, value in stored[section].items():
            other = given[section][name]
            if value != other and name != "precision":
                found.append(f"{name} {value}, not {other}")
    return found


def branch(source: Path, out: Path, steps: int) -> Config:
    """Prepares `out` for a run that begins where the one in `source` stands now and
    finishes it: the learning rate falls to its end over `steps` more steps.

    The run in `source` is not disturbed and may go on. Returns the configuration of the
    new run, which is then resumed. Raises TrainingError, CheckpointError.
    """
    if (out / "run.json").is_file():
        raise TrainingError(
            f"{out.name} already holds a run", "choose another --out for the branch"
        )
    record = records.load_record(source)
    found = checkpoint.latest_valid(source / "checkpoints")
    if found is None:
        raise TrainingError(
            f"{source.name} has no checkpoint to go on from", "wait for its first one"
        )
    tensors, state = found
    total = state["step"] + steps
    config = Config.from_dict(record["config"]).with_train(
        schedule="wsd", decay_ratio=steps / total, steps=total
    )
    came_from = f"Decays from step {state['step']:,} of {record['name']}."
    record |= {
        "name": out.resolve().name,
        "config": config.to_dict(),
        "notes": f"{came_from} {record['notes']}".strip(),
        "finished": None,
    }
    path = out / "checkpoints" / f"step-{state['step']:08d}.safetensors"
    checkpoint.write_tensors(path, tensors, state | {"config": config.to_dict()})
    for name in ("metrics.jsonl", "samples.jsonl"):
        write_atomic(out / name, (source / name).read_bytes())
        files.keep_lines(out / name, state["step"])
    write_atomic(out / "run.json", records.dumps(record))
    return config
