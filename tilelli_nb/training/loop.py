"""Training: one loop for the notebook, the command line and the tests. It can be
stopped and killed at any moment.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ..config import Config, TrainConfig
from ..data.shards import Shards
from ..errors import RunInterrupted, TrainingError
from ..files import append_line, at_home, keep_lines, write_atomic
from ..inference import scoring
from ..storage import checkpoint, records
from .batches import Prefetch
from .clock import Clock
from .compiled_check import check_compiled
from .cost import Bill, hourly_price, time_and_price
from .cpu_tuning import keep_freed_memory, keep_threads
from .distributed import Processes, stop_signals
from .gpu_memory import explain_gpu_errors
from .guard import LossGuard, go_back, has_broken_weights, not_finite
from .optimizer import learning_rate, load_moments, make_optimizer, update
from .planning import FINAL_EVAL_BYTES, steps_in
from .precision import choose_precision
from .progress import Pace, introduction, progress_bar, say, write_sample
from .resuming import (
    JSONL_FILES,
    add_notes,
    check_kind,
    check_limits,
    check_same_run,
    check_stop,
    facts_of_part,
    refuse_damaged,
    refuse_leftovers,
    settings_to_resume,
    sole_writer,
    write_checkpoint,
)
from .soften import soften_attention


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
    `out` holds run.json, metrics.jsonl, samples.jsonl (at 1%, 10% and 100%),
    checkpoints/ and, at the end, model.safetensors.

    `resume` goes on from the newest whole checkpoint, bit for bit as if nothing had
    happened. `stop_at` ends early on the same schedule; `minutes` times some steps and
    fixes the length of the schedule from them. SIGTERM, SIGHUP and a bill above
    `max_dollars` write a checkpoint and return; Ctrl-C writes one and then raises
    RunInterrupted, a KeyboardInterrupt. `compiled` (on CUDA unless told otherwise)
    takes the step through torch.compile, once its gradients have been compared with
    those of a step without. `on_log` gets each metrics line. Under torchrun every
    process calls this. A run that is finished is left as it is. Raises TrainingError,
    DataError, ConfigError, CheckpointError.
    """
    check_limits(stop_at=stop_at, minutes=minutes, max_dollars=max_dollars)
    keep_freed_memory()  # the system would clear its pages before it gave them back
    run = Run(lm, shards, at_home(out), device, prompt, on_log)
    if compiled is not None:
        run.compiled = compiled
    run.bill = Bill(hourly_price(run.gpu_name, usd_per_hour), max_dollars)
    with sole_writer(run.out, run.processes.is_first):
        run.begin(resume, minutes, notes, stop_at)
        if run.record["finished"]:  # it is never touched
            lm.eval()
        else:
            run_steps(run, stop_at or run.settings.steps, progress)
            run.finish()
    if run.stopped_by == "SIGINT":
        raise RunInterrupted(run.record)
    return run.record


def run_steps(run: "Run", stop_at: int, progress: bool) -> None:
    """Trains to step `stop_at` or to the end of the schedule, if nobody stops it."""
    last_step = min(run.settings.steps, stop_at)
    shows = progress and run.processes.is_first
    if shows:
        say(introduction(run))
    with (
        stop_signals(say if shows else None) as stopped,
        progress_bar(run, shows) as bar,
        run.ready(),
    ):
        pace = Pace(run.step, last_step)
        while run.step < last_step:
            # Processes average their gradients: one that left alone would leave the
            # others waiting for its part. So they agree.
            over_budget = run.bill.is_over(run.gpu_seconds())
            run.stopped_by = run.processes.why_to_stop(stopped, over_budget)
            if run.stopped_by:
                break
            run.train_step()
            bar.update(run.step_bytes)
            expected_end = pace.expected_end(run.step)
            if shows and expected_end:
                say(expected_end)
            # Shards that another program has added since are trained on from here.
            has_grown = run.may_grow(last_step) and run.grow()
            is_log_step = has_grown or run.is_log_step()
            is_save_due = run.processes.any(run.is_save_due())
            if not (is_log_step or is_save_due or run.is_sample_step()):
                continue
            trouble = run.check_loss(is_log_step)
            if trouble:
                go_back(run, trouble)
                bar.update(run.step * run.step_bytes - bar.n)
                continue
            if is_log_step:
                bar.set_postfix_str(run.log(has_grown))
            if run.is_sample_step():
                write_sample(run)
            if is_save_due:
                run.save_unless_troubled()
        run.save()  # the last step, or the one at which it was stopped


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
        self.config: Config = lm.config  # of this run: begin() may change its steps
        self.opened = shards  # all the text that was there
        self.shards = shards  # what the run reads of it
        self.processes = Processes(device)
        self.device = self.processes.device
        self.gpu_name = None
        self.compiled = self.device.type == "cuda"  # unless train() is told otherwise
        if self.device.type == "cuda":
            self.gpu_name = torch.cuda.get_device_name(self.device)
        lm.to(self.device).train()
        self.clock = Clock()
        self.step = 0
        self.saved_step = 0
        self.saved_at = time.perf_counter()
        self.precision = "fp32"  # of the products: begin() decides
        self.last: dict[str, Tensor] = {}  # loss, balance, ... of the latest step
        # the same over all processes, when looked at
        self.means: dict[str, Tensor] = {}
        self.batches: Prefetch | None = None  # made ahead, while training
        self.guard = LossGuard()
        self.save_waits = False  # until the loss is as usual again
        self.final_bpb: float | None = None
        self.stopped_by: str | None = None  # a signal's name, or "budget"
        # begin() sets these, and ready() the last one:
        self.record: dict[str, Any]
        self.optimizer: torch.optim.Optimizer
        self.data_state: Tensor  # of the generator, before the next batch
        self.loss_terms: Callable  # (x, targets) -> LossTerms, for this machine

    @property
    def settings(self) -> TrainConfig:
        """How this run trains."""
        return self.config.train

    @property
    def step_bytes(self) -> int:
        """Bytes that one step reads, in all processes together."""
        context = self.config.model.context
        return self.shards.step_bytes(self.settings.batch, context)

    def gpu_seconds(self) -> float:
        """What is paid for in this part: every process has a GPU of its own."""
        return self.clock.part_seconds() * self.processes.world

    # When something is due

    def is_every(self, steps: int) -> bool:
        """Whether this is one of every so many steps, or the last of all."""
        return self.step % steps == 0 or self.step == self.settings.steps

    def is_log_step(self) -> bool:
        """Whether a line of metrics.jsonl is due."""
        is_due = self.is_every(self.settings.log_every)
        return is_due or self.is_every(self.settings.eval_every) or self.step == 1

    def is_sample_step(self) -> bool:
        """Whether a sample is due: at 1%, 10% and 100% of the schedule."""
        steps = self.settings.steps
        return self.step in (math.ceil(steps / 100), math.ceil(steps / 10), steps)

    def may_grow(self, last_step: int) -> bool:
        """Whether to look for training text that was written meanwhile."""
        return self.is_every(self.settings.checkpoint_every) and self.step < last_step

    def is_save_due(self) -> bool:
        """Whether a checkpoint is due, by steps or by the clock."""
        minutes = (time.perf_counter() - self.saved_at) / 60
        is_late = minutes >= self.settings.checkpoint_minutes
        is_due = is_late or self.is_every(self.settings.checkpoint_every)
        return is_due or self.save_waits

    # Beginning and resuming

    def begin(
        self, resume: bool, minutes: float | None, notes: str, stop_at: int | None
    ) -> None:
        """Starts a new run in an empty folder, or goes on with the one in it. Nothing
        is written before all is known to fit.
        """
        # One process may see the file before the others do.
        exists = self.processes.any((self.out / "run.json").is_file())
        if exists and not resume:
            raise TrainingError(
                f"{self.out.name} already holds a run",
                "go on with --resume, or choose another --out",
            )
        if exists:
            self.record = records.load_record(self.out)
            check_kind(self.record, self.shards.kind, self.out)
            self.config, self.precision = settings_to_resume(self.record, self.config)
            keep_threads(self.record)
            self.shards = self.opened.as_described(self.record["data"])
            add_notes(self.record, notes)
        else:
            refuse_leftovers(self.out)
            self.start_record(minutes, notes)
        # Made anew: load() then fills in the moments and the generator's state.
        self.optimizer = make_optimizer(self.lm, self.settings, self.precision)
        generator = torch.Generator().manual_seed(self.settings.seed)
        self.data_state = generator.get_state()
        # once: those of a checkpoint, or of a run that did it, have it behind them
        if self.settings.qk_scale != 1 and not self.lm.is_softened:
            soften_attention(self.lm, self.settings.qk_scale)
        if exists:
            self.load()
        else:
            self.draw(torch.Generator())  # raises where the text is too short
        check_stop(stop_at, self.settings.steps)
        # a finished run is never touched
        if self.processes.is_first and not self.record["finished"]:
            write_atomic(self.out / "run.json", records.dumps(self.record))
            # Lines of steps after the checkpoint will be written again.
            for name in JSONL_FILES:
                keep_lines(self.out / name, self.step)

    def start_record(self, minutes: float | None, notes: str) -> None:
        """Decides what a new run leaves open, and notes it."""
        self.grow()
        wanted = choose_precision(self.settings.precision, self.device)
        self.precision = self.processes.agree(wanted)
        if minutes:
            with self.clock.aside(), explain_gpu_errors(self.settings.micro_batch):
                steps = steps_in(minutes, self)
            self.config = self.config.with_train(steps=steps)
        self.record = records.new_record(
            self.out.resolve().name,
            self.shards.kind,
            config=self.config.to_dict(),
            seed=self.settings.seed,
            notes=notes,
            data=self.shards.describe(),
            device=self.device.type,
            gpu_name=self.gpu_name,
            precision=self.precision,
            threads=torch.get_num_threads(),
            run_id=uuid4().hex,
        )

    def load(self) -> None:
        """Goes on from the newest checkpoint, if the run was not killed before it."""
        state = self.take_up()
        if state:
            check_same_run(self.record, state, self.out)
            self.clock.go_on(state["wall_s"], state["train_s"])
            self.bill.go_on(state, self.processes.world)
            self.saved_step = self.step
        elif self.record["finished"]:  # and its checkpoints have been removed
            self.lm.load_weights(checkpoint.read_model(self.out)[0])
            self.lm.is_softened = self.settings.qk_scale != 1
        else:
            refuse_damaged(self.out)

    def take_up(self) -> dict[str, Any] | None:
        """Takes everything but the time from the newest whole checkpoint, and returns
        what it says; None where there is none.
        """
        found = checkpoint.latest_valid(self.out / "checkpoints")
        if found is None:
            return None
        tensors, state = found
        self.lm.load_weights(checkpoint.weights_in(tensors))
        self.lm.is_softened = self.settings.qk_scale != 1
        load_moments(self.optimizer, tensors)
        self.data_state = tensors["generator"]
        # Shards may have been added since the run began: those of the checkpoint count.
        if "data" in state:
            self.shards = self.opened.as_described(state["data"])
        self.step = state["step"]
        self.guard = LossGuard()
        # the first checkpoints said nothing of what was usual
        self.guard.go_on(state.get("guard", {"good_step": self.step}))
        self.save_waits = False
        return state

    # Steps

    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The next batch of the run, or this process's share of it."""
        context = self.config.model.context
        batch = self.shards.batch(self.settings.batch, context, generator)
        return self.processes.share(batch)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Sets up what the loop alone needs, and ends it afterwards: the loss function,
        compiled, checked and averaged over processes, and a thread that draws the next
        batches while the present one is computed.
        """
        on_gpu = self.device.type == "cuda"
        self.loss_terms = self.processes.loss_terms(self.lm, self.compiled)
        self.batches = Prefetch(self.draw, self.data_state, pin=on_gpu)
        try:
            with explain_gpu_errors(self.settings.micro_batch):
                if self.compiled and self.step < self.settings.steps:
                    check_compiled(self)
                yield
        finally:
            self.batches.close()

    def train_step(self) -> None:
        """Reads a batch and moves every weight once. update() does what a step usually
        does: micro-batches, autocast, backward pass, clipping, the optimizer.
        """
        self.last = update(
            self.lm,
            self.optimizer,
            self.batches.next(),
            self.settings,
            lr=learning_rate(self.step, self.settings),
            loss_terms=self.loss_terms,
            precision=self.precision,
        )
        self.step += 1

    def grow(self) -> bool:
        """Takes in the training shards that were written since, in all processes the
        same. True if there are any.
        """
        # The first process alone looks, so that all take the same number of shards.
        seen = self.shards
        if self.processes.is_first:
            seen = self.shards.grown() or self.shards  # None: nothing new
        count = int(
            self.processes.maximum(torch.tensor(len(seen.train.shards), device="cpu"))
        )
        if count == len(self.shards.train.shards):
            return False
        self.shards = self.opened = self.shards.grown(count)
        if self.batches:  # those made ahead came from the smaller corpus
            self.batches.restart()
        return True

    # Looking at the run

    def check_loss(self, is_logged: bool) -> str | None:
        """Looks at the loss and the gradient of the latest step. The words for what is
        wrong with them, in all processes the same, or None.
        """
        # Every process has its share of the batch: the mean is that of all of it.
        self.means = {n: self.processes.mean(value) for n, value in self.last.items()}
        loss, grad_norm = float(self.means["loss"]), float(self.means["grad_norm"])
        trouble = not_finite(self.step, loss, grad_norm)
        if trouble is None and is_logged:
            trouble = self.guard.judge(self.step, loss)
        # before they are saved or sampled from, the weights themselves are looked at
        must_look = self.is_sample_step() or not is_logged
        if must_look and self.processes.any(has_broken_weights(self.lm)):
            trouble = trouble or f"the weights are no numbers after step {self.step:,}"
        return trouble

    def log(self, has_grown: bool = False) -> str:
        """Appends a line to metrics.jsonl and returns what the progress bar shows."""
        if not self.processes.is_first:
            return ""
        means, loss = self.means, float(self.means["loss"])
        line = {
            "step": self.step,
            "bytes_seen": self.step * self.step_bytes,
            "loss": loss,
            "lr": learning_rate(self.step - 1, self.settings),
            "grad_norm": float(means["grad_norm"]),
            "balance": float(means["balance"]),
            "router_use": means["router_use"].tolist(),
            "zero_share": self.lm.zero_shares(),
        }
        figures = f"loss {loss:.3f}"
        if has_grown:
            line["train_shards"] = len(self.shards.train.shards)
        setback = self.guard.note()
        if setback:
            line["went_back"] = setback
        if self.is_every(self.settings.eval_every):
            line["val_bpb"] = self.evaluate()
            figures += f", held out {line['val_bpb']:.3f} bits per byte"
        line["wall_s"] = round(self.clock.seconds(), 3)
        append_line(self.out / "metrics.jsonl", line)
        if self.on_log:
            self.on_log(line)
        share = self.step / self.settings.steps
        return f"{figures} {self.bill.text(self.gpu_seconds(), share)}"

    def evaluate(self) -> float:
        """Bits per byte of held-out text: of more of it at the last step."""
        is_last = self.step == self.settings.steps
        limit = FINAL_EVAL_BYTES if is_last else self.settings.eval_bytes
        with self.clock.aside():
            val_bpb = scoring.score(self.lm, self.shards.val.read(limit))
        self.final_bpb = val_bpb if is_last else None
        return val_bpb

    # Files

    def save_unless_troubled(self) -> None:
        """Writes a checkpoint, or waits with it while the loss is too high: the one
        before may be needed.
        """
        self.save_waits = bool(self.guard.row)
        if not self.save_waits:
            self.save()

    def save(self) -> None:
        """Writes a checkpoint, unless this step already has one. Where the loss is no
        number, the run goes back instead.
        """
        if self.step == self.saved_step:
            return
        trouble = self.check_loss(is_logged=False)
        if trouble:
            go_back(self, trouble)
            return
        if self.processes.is_first:
            write_checkpoint(self)
        self.saved_step = self.step
        self.saved_at = time.perf_counter()

    def finish(self) -> None:
        """Completes run.json; a run at its last step also leaves the model for
        from_pretrained.
        """
        if not self.processes.is_first:
            return
        is_done = self.step == self.settings.steps
        if is_done and self.final_bpb is None:  # resumed after its last step
            self.evaluate()
        self.record |= {
            "config": self.config.to_dict(),
            "data": self.shards.describe(),
            "steps": self.step,
            "bytes_seen": self.step * self.step_bytes,
            **time_and_price(self),
            "val_bpb": self.final_bpb,
            "finished": records.now() if is_done else None,
        }
        if is_done:
            about = {"config": self.config.to_dict(), "val_bpb": self.final_bpb}
            self.lm.eval().save_pretrained(self.out, **about)
        write_atomic(self.out / "results.json", records.dumps(facts_of_part(self)))
        # last: once it says that the run is finished, nobody writes the others again
        write_atomic(self.out / "run.json", records.dumps(self.record))
