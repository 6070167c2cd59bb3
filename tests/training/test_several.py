"""Several processes, and runs whose surroundings have changed: gradients are averaged
once a step, and all take one micro-batch.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from test_train import TEXT, small
from tiny_models import tiny

from tilelli_nb import load_record, prepare_shards
from tilelli_nb.errors import ConfigError
from tilelli_nb.storage.checkpoint import latest_valid, write_tensors
from tilelli_nb.training.distributed import Processes
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import make_optimizer, update


@pytest.fixture
def group(tmp_path):
    """A group of one process, which averages as several do."""
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 6])
def test_gradients_are_averaged_once_a_step(group, micro_batch):
    x = torch.randint(0, 256, (6, 33), generator=torch.Generator().manual_seed(0))
    batch = x[:, :-1], x[:, 1:]
    lm = small(batch=6, micro_batch=6).double().train()
    update(lm, make_optimizer(lm, lm.config.train), batch, lm.config.train, lr=0.01)
    expected = lm.state_dict()

    lm = small(batch=6, micro_batch=micro_batch).double().train()
    wrapped = torch.nn.parallel.DistributedDataParallel(
        Processes("cpu").loss_terms(lm, compiled=False)
    )
    averaged = []

    def hook(state, bucket):
        averaged.append(bucket.buffer().numel())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, hook)
    for _ in range(2):
        averaged.clear()
        optimizer = make_optimizer(lm, lm.config.train)
        update(lm, optimizer, batch, lm.config.train, lr=0.01, loss_terms=wrapped)
        # every gradient once, in however many buckets
        assert sum(averaged) == sum(p.numel() for p in lm.parameters())
    lm = small(batch=6, micro_batch=micro_batch).double().train()
    wrapped = torch.nn.parallel.DistributedDataParallel(
        Processes("cpu").loss_terms(lm, compiled=False)
    )
    optimizer = make_optimizer(lm, lm.config.train)
    update(lm, optimizer, batch, lm.config.train, lr=0.01, loss_terms=wrapped)
    for name, tensor in lm.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-9), name


WORKER = """
import os
from tilelli_nb.cli import launch
from tilelli_nb.training.distributed import Processes
rank = int(os.environ["RANK"])
launch.fit_micro_batch = lambda lm, rows, precision: (4, 2)[rank]  # cards of two sizes
seen = []
def train(lm, *_, **__):
    seen.append(lm.config.train.micro_batch)
launch.train = train
launch.launch(launch.TrainOptions(corpus="shards", device="cpu", batch=8, out="run"))
assert Processes("cpu").minimum(7 - rank) == 6
open(f"taken by {rank}", "w").write(str(seen))
"""


def run_in_two_processes(program, folder):
    (folder / "worker.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node=2", "worker.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_all_processes_take_what_fits_everywhere(tmp_path):
    prepare_shards(TEXT, tmp_path / "shards", "cats")
    run_in_two_processes(WORKER, tmp_path)
    taken = [(tmp_path / f"taken by {rank}").read_text() for rank in (0, 1)]
    assert taken == ["[2]", "[2]"]


ADDING = """
import sys
sys.path[:0] = {paths!r}
import torch
from test_several import answers_of_two_lengths
from tiny_models import tiny
from tilelli_nb.config import TrainConfig
from tilelli_nb.training.distributed import Processes
from tilelli_nb.training.optimizer import add_gradients
processes = Processes("cpu")
lm = tiny(context=32).train()
compute = processes.loss_terms(lm, compiled=False)
config = TrainConfig(micro_batch=1, balance_weight=0.0)
x, targets = processes.share(answers_of_two_lengths())
total = add_gradients(lm, compute, x, targets, config, "fp32", is_last=True)
gradients = {{name: p.grad for name, p in lm.named_parameters()}}
gradients["loss"] = processes.mean(total["loss"])
torch.save(gradients, f"of {{processes.rank}}.pt")
"""


def answers_of_two_lengths():
    """x and targets (4, 32): 3 bytes are predicted in each of the first two rows, 30 in
    each of the others.
    """
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 256, (4, 33), generator=generator)
    x, targets = ids[:, :-1], ids[:, 1:].clone()
    targets[:2, :-3] = -100
    targets[2:, :-30] = -100
    return x, targets


def test_bytes_of_short_and_long_answers_count_the_same_in_two_processes(tmp_path):
    """The one process has the short ones, the other has the long ones. Against the mean
    over all 66 predicted bytes at once, in float64.
    """
    here = os.path.dirname(__file__)
    paths = [here, os.path.dirname(here)]
    run_in_two_processes(ADDING.format(paths=paths), tmp_path)
    lm = tiny(context=32).train()
    x, targets = answers_of_two_lengths()
    loss = F.cross_entropy(lm(x).flatten(0, 1), targets.flatten())
    expected = torch.autograd.grad(loss, list(lm.parameters()))
    for rank in (0, 1):
        made = torch.load(tmp_path / f"of {rank}.pt")
        for (name, _), wanted in zip(lm.named_parameters(), expected, strict=True):
            assert torch.allclose(made[name], wanted, rtol=1e-9, atol=1e-12), name
        assert made["loss"].item() == pytest.approx(loss.item(), rel=1e-9)


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "-1"},
        {"WORLD_SIZE": "2", "RANK": "", "LOCAL_RANK": "0"},
        # another launcher's shell: nobody says where the processes meet
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_variables_of_processes_that_do_not_fit(monkeypatch, variables):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        Processes("cpu")
    monkeypatch.setenv("WORLD_SIZE", "")
    assert Processes("cpu").world == 1


@pytest.mark.parametrize("name", ["cpu:", "cuda:", "cpu:00", "tpu", "cpu:1:2", ""])
def test_names_of_devices_that_are_none(name):
    if not name:
        assert Processes(name).device.type in ("cpu", "cuda", "mps")
        return
    with pytest.raises(ConfigError, match=f"--device {name}"):
        Processes(name)


def test_a_finished_run_whose_curve_is_gone_is_measured_again(tmp_path):
    shards = prepare_shards(TEXT, tmp_path / "shards", "cats")
    record = train(small(), shards, tmp_path / "run", progress=False)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"finished": None}))
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = train(small(), shards, tmp_path / "run", resume=True, progress=False)
    assert again["val_bpb"] == record["val_bpb"] and again["finished"]


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path):
    """99,999,999 is one digit shorter than 100,000,000, and comes later in a list of
    words.
    """
    for step in (99_999_999, 100_000_000):
        name = f"step-{step:08d}.safetensors"
        write_tensors(tmp_path / name, {"a": torch.ones(1)}, {"step": step})
    (tmp_path / "step-mine.safetensors").touch()
    assert latest_valid(tmp_path)[1]["step"] == 100_000_000
    assert latest_valid(tmp_path, 99_999_999)[1]["step"] == 99_999_999


STOPPED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from test_train import small
from tilelli_nb import open_shards
from tilelli_nb.training import loop
real = loop.Run.train_step
def train_step(run):
    real(run)
    if run.step == 5 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
loop.Run.train_step = train_step
loop.train(small(), open_shards("shards"), "run", device="cpu", progress=False)
"""


def test_why_a_run_stops_is_noted_whichever_process_was_told(tmp_path):
    prepare_shards(TEXT, tmp_path / "shards", "cats")
    run_in_two_processes(STOPPED.format(paths=sys.path), tmp_path)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["stopped_by"] == "SIGTERM"
    assert load_record(tmp_path / "run")["steps"] == 5
