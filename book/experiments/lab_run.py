"""One run of the lab: the model, the text, the training, and what is kept of it."""

import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from lab_study import Job
from lab_variants import build, text_for
from tilelli_nb.config import Config
from tilelli_nb.data import corpus, documents
from tilelli_nb.data.shards import Shards, holds_shards, open_shards, prepare_shards
from tilelli_nb.errors import DataError, TrainingError
from tilelli_nb.files import append_line, write_atomic
from tilelli_nb.storage import records
from tilelli_nb.training.cost import training_flops
from tilelli_nb.training.cpu_tuning import keep_freed_memory
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import make_optimizer, update
from tilelli_nb.training.precision import choose_precision

NAMED = ("stories", "docs")
HELD_OUT = 1 / 20  # of the megabytes, where a folder brings its own split


def open_text(source: str, megabytes: float) -> Shards:
    """The shards of a named corpus or, of a file or folder, its first megabytes: what a
    run of a minute reads, with held-out text that is scored in seconds.
    """
    if source in NAMED:
        return corpus.prepare_corpus(source, megabytes=megabytes)
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"there is no text in {source!r}", f"use {', '.join(NAMED)} or a folder"
        )
    if holds_shards(path):
        return open_shards(path)
    sides = corpus.sides_of(path)
    digest, _ = corpus.digest_of(path, sides)
    limit = megabytes * 1e6
    texts = documents.up_to(limit, documents.read_files(sides.train))
    own = None
    if sides.val:
        own = documents.up_to(limit * HELD_OUT, documents.read_files(sides.val))
    name = f"{path.resolve().stem}-first-{megabytes:g}mb-{digest[:8]}"
    revision = f"the first {megabytes:g} MB of {digest}"
    return prepare_shards(
        texts,
        Path("data") / name,
        path.resolve().name,
        revision=revision,
        val_documents=own,
    )


def prepare_process() -> None:
    """One thread, so that sums come out the same and two runs can go side by side. A
    worker also ends when the lab does, however that came about.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    if multiprocessing.parent_process():
        threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Waits for the lab's process to be gone: a worker would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def folder_of(job: Job, out: Path) -> Path:
    """Where the record of a run is kept."""
    return out / f"lab-{job.study}" / job.name


def run(job: Job, text: Path, out: Path) -> dict[str, Any]:
    """Trains one model and keeps run.json, the evaluations and results.json; returns
    what results.json says.

    All of it appears at once, at the end: a run that was killed has left nothing and
    begins anew. A rate at which training breaks down is a result too.
    """
    shards = open_shards(text)
    target = folder_of(job, out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / job.name
        start, failed = os.times(), None
        lm = build(job.config, job.variants)
        notes = f"Study {job.study}, arm {job.arm}: {', '.join(job.variants) or 'as configured'}."
        reading = text_for(shards, job.config, job.variants)
        try:
            record = train(lm, reading, folder, progress=False, notes=notes)
        except TrainingError as error:
            record, failed = records.load_record(folder), error.problem
        if not record["finished"] and not failed:
            raise KeyboardInterrupt  # it was told to stop
        results = about(job, record, lm, used(start), failed)
        kept = Path(scratch) / "kept"
        kept.mkdir()
        record["name"] = f"lab-{job.study}/{job.name}"
        write_atomic(kept / "run.json", records.dumps(record))
        write_atomic(kept / "results.json", records.dumps(results))
        # a run that broke down before its first evaluation has none, and a file for it
        write_atomic(kept / "metrics.jsonl", b"")
        for line in evaluations(folder):
            append_line(kept / "metrics.jsonl", line)
        appear(kept, target)
    return results


def used(start: os.times_result) -> float:
    """Seconds of a processor since then, in all threads."""
    now = os.times()
    return now.user + now.system - start.user - start.system


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run that say what it was worth."""
    return [line for line in records.load_metrics(folder) if "val_bpb" in line]


def about(
    job: Job, record: dict, lm: torch.nn.Module, cpu_s: float, failed: str | None
) -> dict[str, Any]:
    """What a run record has no key for."""
    weights = b"".join(p.detach().numpy().tobytes() for p in lm.parameters())
    return {
        "study": job.study,
        "arm": job.arm,
        "variants": list(job.variants),
        "val_bpb": None if failed else record["val_bpb"],
        "failed": failed,
        "cpu_s": round(cpu_s, 2),
        "parameters": sum(p.numel() for p in lm.parameters()),
        "operations_a_byte": training_flops(job.config.model),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def appear(made: Path, target: Path) -> None:
    """Moves a finished folder to its place: whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(made, part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def step_seconds(job: Job, shards: Shards, steps: int = 3) -> float:
    """Processor seconds of a step of this run: the least of a few, the first aside."""
    settings = job.config.train
    precision = choose_precision(settings.precision, torch.device("cpu"))
    lm = build(job.config, job.variants).train()
    optimizer = make_optimizer(lm, settings, precision)
    reading, generator = text_for(shards, job.config, job.variants), torch.Generator()
    found = []
    for _ in range(steps):
        batch = reading.batch(settings.batch, lm.context, generator)
        start = time.process_time()
        update(lm, optimizer, batch, settings, lr=0.0, precision=precision)
        found.append(time.process_time() - start)
    return min(found[1:])


def score_seconds(job: Job, shards: Shards) -> float:
    """Processor seconds of one evaluation."""
    lm = build(job.config, job.variants).eval()
    piece = shards.val.read(16_384)
    start = time.process_time()
    lm.score(piece)
    took = time.process_time() - start
    return took * min(len(shards.val), 2**20) / len(piece)


def again(folder: Path, text: str, megabytes: float) -> bool:
    """Repeats a run from its record alone, and says whether every figure comes out the
    same, bit for bit.
    """
    record = records.load_record(folder)
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    shards = open_text(text, megabytes)
    shards.as_described(record["data"])  # or the text is another one
    config = Config.from_dict(record["config"])
    job = Job(kept["study"], folder.name, kept["arm"], config, tuple(kept["variants"]))
    with tempfile.TemporaryDirectory() as scratch:
        made = run(job, shards.folder, Path(scratch))
        lines = [
            [
                {k: v for k, v in line.items() if k != "wall_s"}
                for line in evaluations(at)
            ]
            for at in (folder, folder_of(job, Path(scratch)))
        ]
    same = lines[0] == lines[1] and made["weights_sha256"] == kept["weights_sha256"]
    print(
        f"{record['name']}: recorded {kept['val_bpb']!r}, now {made['val_bpb']!r};",
        "the same to the last bit, weights too"
        if same
        else f"not the same (recorded with {record['versions']})",
    )
    return same
