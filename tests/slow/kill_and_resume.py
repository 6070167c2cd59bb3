"""Kills a training run and a shard writer at random moments, resumes, and compares with
runs that were never killed.

    python tests/slow/kill_and_resume.py [--trials 20] [--seed 0] [--out
    book/runs/kill-and-resume]

Each trial starts afresh, is killed with SIGKILL up to three times at random moments of
its life, is then let to finish, and must leave the same bytes as the uninterrupted run:
weights, metrics (times aside) and samples; shards and manifest. The third kind of run
trains in two processes that average their gradients, and both are killed together.
Exits 1 if any trial differs. With --out it leaves a run record, and what happened in
results.json beside it.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from pathlib import Path

import torch

from tilelli_nb import TilelliLM, load_config, prepare_shards
from tilelli_nb.data.documents import documents
from tilelli_nb.storage.checkpoint import MODEL_FILE, read_tensors
from tilelli_nb.storage.records import load_metrics, new_record, now, write_run
from tilelli_nb.training.distributed import Processes
from tilelli_nb.training.loop import train

# one thread before and after fork: the children start in milliseconds
torch.set_num_threads(1)


def training_run(folder: Path) -> None:
    texts = documents("stories", limit_bytes=60_000)
    shards = Processes("cpu").first_alone(
        lambda: prepare_shards(texts, folder / "shards", "stories")
    )
    config = load_config("nano").with_model(
        d_model=32, n_blocks=2, n_heads=2, keep=8, context=64
    )
    config = config.with_train(
        steps=120,
        batch=4,
        micro_batch=4,
        log_every=1,
        eval_every=30,
        eval_bytes=2000,
        checkpoint_every=9,
    )
    train(
        TilelliLM(config),
        shards,
        folder / "run",
        resume=True,
        device="cpu",
        progress=False,
    )


def in_two_processes(folder: Path) -> None:
    """training_run twice, as torchrun would start it: the second process is forked from
    this one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = int(os.fork() == 0)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    training_run(folder)
    if rank == 0 and os.waitstatus_to_exitcode(os.wait()[1]):
        raise RuntimeError("the second process failed")


def training_result(folder: Path) -> dict[str, object]:
    metrics = [
        {k: v for k, v in line.items() if k != "wall_s"}
        for line in load_metrics(folder / "run")
    ]
    tensors, _ = read_tensors(folder / "run" / MODEL_FILE)
    weights = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return {
        "metrics": metrics,
        "samples": (folder / "run" / "samples.jsonl").read_bytes(),
        **weights,
    }


def shard_writer(folder: Path) -> None:
    prepare_shards(
        documents("stories", limit_bytes=3_000_000),
        folder / "shards",
        "stories",
        shard_bytes=25_000,
    )


def shard_result(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "shards").iterdir()}


def run_child(job, folder: Path, kill_after: float | None) -> bool:
    """Runs job(folder) in a forked child, killed after so many seconds; True if it was
    killed before it ended.
    """
    child = os.fork()
    if child == 0:
        os.setpgrp()  # what it starts is killed with it
        try:
            job(folder)
            os._exit(0)
        except BaseException as error:
            print(f"the child failed: {error}", flush=True)
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit("a child failed without being killed: see above")
    return False


def trials(
    name: str, job, result, count: int, rng: random.Random, root: Path
) -> dict[str, int]:
    start = time.perf_counter()
    run_child(job, root / "whole", None)
    life, expected, identical, kills = (
        time.perf_counter() - start,
        result(root / "whole"),
        0,
        0,
    )
    for trial in range(count):
        folder = root / str(trial)
        before = kills
        for _ in range(rng.randint(1, 3)):
            kills += run_child(job, folder, rng.uniform(0.02, 0.8) * life)
        run_child(job, folder, None)
        same = result(folder) == expected
        identical += same
        verdict = "identical" if same else "DIFFERENT"
        print(
            f"{name} {trial + 1:2}: killed {kills - before} times, {verdict}",
            flush=True,
        )
        shutil.rmtree(folder)
    print(
        f"{name}: {identical} of {count} identical after {kills} kills (life of a run: {life:.1f} s)",
        flush=True,
    )
    return {"trials": count, "identical": identical, "kills": kills}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng, found, start = random.Random(args.seed), {}, time.perf_counter()
    record = new_record(
        args.out.name if args.out else "kill-and-resume",
        "eval",
        seed=args.seed,
        notes="Runs killed with SIGKILL at random moments, against runs that never were: results.json.",
    )
    jobs = [
        ("training", training_run, training_result),
        ("writer", shard_writer, shard_result),
        ("two processes", in_two_processes, training_result),
    ]
    with tempfile.TemporaryDirectory() as root:
        for name, job, result in jobs:
            found[name] = trials(name, job, result, args.trials, rng, Path(root) / name)
    if args.out:
        record |= {"finished": now(), "wall_s": round(time.perf_counter() - start, 1)}
        write_run(args.out, record, found)
    identical = sum(kind["identical"] for kind in found.values())
    total = len(jobs) * args.trials
    print(f"{identical} of {total} identical")
    raise SystemExit(identical != total)


if __name__ == "__main__":
    main()
