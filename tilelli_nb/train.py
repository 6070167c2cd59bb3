"""Training: one loop for the notebook, the command line and the tests. It can be stopped and killed at any moment."""

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from . import checkpoint, inference, records
from .allocator import keep_freed_memory
from .config import Config, TrainConfig
from .errors import ConfigError, DataError, TrainingError
from .records import write_atomic
from .shards import Shards

FINAL_EVAL_BYTES = 2 ** 20  # held-out bytes of the last evaluation, at most


def train(lm, shards: Shards, out: str | Path, *, resume: bool = False, stop_at: int | None = None,
          minutes: float | None = None, prompt: str = "", device: str | None = None, progress: bool = True,
          notes: str = "", on_log: Callable[[dict], None] | None = None) -> dict[str, Any]:
    """Trains `lm` as its configuration says and returns the run record; the folder `out` holds everything.

    run.json, metrics.jsonl, samples.jsonl (at 1%, 10% and 100%), checkpoints/ and, at the end, model.safetensors.
    `resume` goes on from the newest whole checkpoint, bit for bit as if nothing had happened. `stop_at` ends early on
    the same schedule; `minutes` times some steps on a copy and fixes the length of the schedule from them. SIGTERM and
    SIGINT write a checkpoint and return. `on_log` gets each metrics line. Raises TrainingError, DataError,
    ConfigError, CheckpointError.
    """
    keep_freed_memory()
    run = Run(lm, shards, Path(out), device, prompt, on_log)
    run.begin(resume, minutes, notes)
    steps = run.config.steps
    last = min(steps, stop_at or steps)
    with stop_signals() as stopped, tqdm(total=steps * run.step_bytes, initial=run.step * run.step_bytes, unit="B",
                                         unit_scale=True, disable=not progress) as bar:
        while run.step < last and not stopped.is_set():
            run.train_step()
            bar.update(run.step_bytes)
            if run.is_due(run.config.log_every) or run.is_due(run.config.eval_every) or run.step == 1:
                bar.set_postfix_str(run.log())
            if run.step in (math.ceil(steps / 100), math.ceil(steps / 10), steps):
                run.sample()
            if run.is_due(run.config.checkpoint_every) or run.step == last:
                run.save()
    run.save()
    return run.finish()


def learning_rate(step: int, config: TrainConfig) -> float:
    """Of update number `step` (from 0): linear warm-up, then a cosine down to min_lr_ratio at the last step."""
    warmup = max(1, round(config.warmup_ratio * config.steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    low = config.lr * config.min_lr_ratio
    return low + (config.lr - low) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(lm: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on the matrices of attention, FFN and output alone."""
    groups = [{"params": [], "weight_decay": config.weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in lm.named_parameters():
        is_matrix = name.startswith("output") or ".attention." in name or ".ffn." in name
        groups[0 if is_matrix else 1]["params"].append(parameter)
    fused = next(lm.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=fused)


def update(lm, optimizer: torch.optim.Optimizer, batch: tuple, config: TrainConfig, lr: float) -> dict[str, Tensor]:
    """One step on x and targets (batch, T): gradients summed over micro-batches, clipped, applied.

    The loss and balance of the step, its gradient norm and the router's use (blocks, 3) come back as tensors.
    """
    x, targets = batch
    device = next(lm.parameters()).device
    total = {"loss": 0.0, "balance": 0.0, "router_use": 0.0}
    for xs, ts in zip(x.split(config.micro_batch), targets.split(config.micro_batch), strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            terms = lm.loss_terms(xs.to(device, non_blocking=True), ts.to(device, non_blocking=True))
        loss, balance = terms.nats / targets.numel(), terms.balance / len(x)
        (loss + config.balance_weight * balance).backward()
        for key, part in (("loss", loss), ("balance", balance), ("router_use", terms.use / len(x))):
            total[key] = total[key] + part.detach()
    norm = nn.utils.clip_grad_norm_(lm.parameters(), config.clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
    return {**total, "grad_norm": norm}


class Run:
    """A training run: the model, what the optimizer and the batches need to go on, and the folder it all lands in."""

    def __init__(self, lm, shards: Shards, out: Path, device: str | None, prompt: str, on_log: Callable | None) -> None:
        self.lm, self.shards, self.out, self.prompt, self.on_log = lm, shards, out, prompt, on_log
        self.device = torch.device(device or best_device())
        lm.to(self.device).train()
        self.step, self.saved_step = 0, 0
        self.wall_s, self.train_s = 0.0, 0.0  # wall_s: all; train_s: without evaluation and files
        self.started = time.perf_counter()
        self.last: dict[str, Tensor] = {}
        self.final_bpb: float | None = None

    @property
    def config(self) -> TrainConfig:
        return self.lm.config.train

    @property
    def step_bytes(self) -> int:
        return self.config.batch * self.lm.config.model.context

    def is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def seconds(self) -> float:
        """Wall time of the run so far, over all its parts."""
        return self.wall_s + time.perf_counter() - self.started

    # Beginning and resuming

    def begin(self, resume: bool, minutes: float | None, notes: str) -> None:
        exists = (self.out / "run.json").is_file()
        if exists and not resume:
            raise TrainingError(f"{self.out.name} already holds a run", "go on with --resume, or choose another --out")
        self.record = records.load_record(self.out) if exists else None
        if self.record:
            self.continue_record()
        else:
            if minutes:
                self.set_steps(minutes)
            self.record = records.new_record(
                self.out.resolve().name, "train", config=self.lm.config.to_dict(), seed=self.config.seed, notes=notes,
                data=self.shards.describe(), device=self.device.type,
                gpu_name=torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None)
            write_atomic(self.out / "run.json", records.dumps(self.record))
        self.optimizer = make_optimizer(self.lm, self.config)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        if resume:
            self.load()
        for name in ("metrics.jsonl", "samples.jsonl"):
            records.keep_lines(self.out / name, self.step)

    def continue_record(self) -> None:
        """The run's own configuration counts: --minutes fixed its steps once. Everything else must be the same."""
        stored, given = Config.from_dict(self.record["config"]), self.lm.config
        if stored.model != given.model or stored.train != given.with_train(steps=stored.train.steps).train:
            raise ConfigError(f"the run in {self.out.name} was started with another configuration",
                              "resume with the same --config and options, or choose another --out")
        if self.record["data"]["sha256"] != self.shards.describe()["sha256"]:
            raise DataError(f"the run in {self.out.name} was started on other data", "resume with the same --corpus")
        self.lm.config = stored

    def set_steps(self, minutes: float) -> None:
        """Times some steps and an evaluation on a copy: as many steps as fit into `minutes`, all else included."""
        lm = copy.deepcopy(self.lm)
        optimizer, generator = make_optimizer(lm, self.config), torch.Generator().manual_seed(self.config.seed)
        seconds = []
        while len(seconds) < 4 or (sum(seconds) < 6 and len(seconds) < 30):
            start = time.perf_counter()
            batch = self.shards.batch(self.config.batch, lm.config.model.context, generator)
            float(update(lm, optimizer, batch, self.config, lr=0.0)["loss"])
            seconds.append(time.perf_counter() - start)
        step_s = sorted(seconds[1:])[len(seconds[1:]) // 2]  # the first one warms up
        sample = self.shards.val.read(min(self.config.eval_bytes, 16_384))
        start = time.perf_counter()
        inference.score(lm, sample)
        byte_s = (time.perf_counter() - start) / len(sample)
        per_step = step_s * 1.02 + byte_s * min(self.config.eval_bytes, len(self.shards.val)) / self.config.eval_every
        left = minutes * 60 - self.seconds() - byte_s * min(FINAL_EVAL_BYTES, len(self.shards.val)) - 2
        self.lm.config = self.lm.config.with_train(steps=max(1, int(left / per_step)))

    def load(self) -> None:
        found = checkpoint.newest_good(self.out / "checkpoints")
        if found is None:
            return  # killed before the first checkpoint: begin again
        tensors, state = found
        self.lm.load_weights({key[6:]: t for key, t in tensors.items() if key.startswith("model.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.step, self.wall_s, self.train_s = state["step"], state["wall_s"], state["train_s"]
        self.saved_step = self.step

    # Steps

    def train_step(self) -> None:
        start = time.perf_counter()
        batch = self.shards.batch(self.config.batch, self.lm.config.model.context, self.generator)
        self.last = update(self.lm, self.optimizer, batch, self.config, learning_rate(self.step, self.config))
        self.step += 1
        self.train_s += time.perf_counter() - start

    def log(self) -> str:
        """Appends a line to metrics.jsonl and returns the few figures that the progress bar shows."""
        loss = self.check_finite()
        line = {"step": self.step, "bytes_seen": self.step * self.step_bytes, "loss": loss,
                "lr": learning_rate(self.step - 1, self.config), "grad_norm": float(self.last["grad_norm"]),
                "balance": float(self.last["balance"]), "router_use": self.last["router_use"].tolist(),
                "zero_share": self.lm.zero_shares()}
        if self.is_due(self.config.eval_every):
            finished = self.step == self.config.steps
            held_out = self.shards.val.read(FINAL_EVAL_BYTES if finished else self.config.eval_bytes)
            line["val_bpb"] = inference.score(self.lm, held_out)
            self.final_bpb = line["val_bpb"] if finished else None
        line["wall_s"] = round(self.seconds(), 3)
        records.append_line(self.out / "metrics.jsonl", line)
        if self.on_log:
            self.on_log(line)
        return f"loss {loss:.3f}" + (f", held out {line['val_bpb']:.3f} bits per byte" if "val_bpb" in line else "")

    def check_finite(self) -> float:
        loss = float(self.last["loss"])
        if not (math.isfinite(loss) and math.isfinite(float(self.last["grad_norm"]))):
            raise TrainingError(f"the loss is {loss} at step {self.step}",
                                "lower lr or raise warmup_ratio, then resume: the last good checkpoint is kept")
        return loss

    def sample(self) -> None:
        self.check_finite()
        tokenizer = inference.ByteTokenizer()
        self.lm.eval()
        ids = self.lm.generate(tokenizer.encode(self.prompt), max_new=400, temperature=0.8, seed=self.config.seed)
        self.lm.train()
        records.append_line(self.out / "samples.jsonl", {"step": self.step, "text": tokenizer.decode(ids)})

    # Files

    def save(self) -> None:
        """A checkpoint of everything a resumed run needs, unless this step already has one; older ones are dropped."""
        folder = self.out / "checkpoints"
        path = folder / f"step-{self.step:08d}.safetensors"
        if self.step == self.saved_step:
            return
        self.check_finite()
        tensors = {f"model.{name}": t for name, t in self.lm.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in moments.items()}
        tensors["generator"] = self.generator.get_state()
        checkpoint.write_tensors(path, tensors, {"config": self.lm.config.to_dict(), "step": self.step,
                                                 "wall_s": self.seconds(), "train_s": self.train_s})
        self.saved_step = self.step
        for old in sorted(folder.glob("step-*.safetensors"))[:-self.config.keep_checkpoints]:
            old.unlink()

    def finish(self) -> dict[str, Any]:
        """Completes run.json; a run at its last step also leaves the model for from_pretrained."""
        done = self.step == self.config.steps
        if done and self.final_bpb is None:  # resumed after its last step
            self.final_bpb = records.load_metrics(self.out)[-1]["val_bpb"]
        seen = self.step * self.step_bytes
        self.record |= {"steps": self.step, "bytes_seen": seen, "wall_s": round(self.seconds(), 3),
                        "bytes_per_s": round(seen / self.train_s, 1) if self.train_s else None,
                        "val_bpb": self.final_bpb, "finished": records.now() if done else None}
        if done:
            self.lm.eval().save_pretrained(self.out, val_bpb=self.final_bpb)
        write_atomic(self.out / "run.json", records.dumps(self.record))
        return self.record


def best_device() -> str:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one acts as it always does. Main thread only."""
    stopped, previous = threading.Event(), {}

    def stop(number, frame) -> None:
        stopped.set()
        signal.signal(number, previous[number])

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
