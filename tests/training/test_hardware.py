"""Several processes, compiled steps, batches made ahead, and a run that is stopped by
its bill or by a bad loss.
"""

import errno
import json
import math
import os
import subprocess
import sys
import time
import types

import pytest
import torch
from test_train import TEXT, assert_same_run, small, timeless
from torch._dynamo.exc import Unsupported
from torch._inductor.exc import InductorError
from torch._subclasses.fake_tensor import FakeTensorMode

from tilelli_nb import TilelliLM, load_config, prepare_shards
from tilelli_nb.cli.launch import micro_batch
from tilelli_nb.errors import ConfigError, DataError, MissingDependency, TrainingError
from tilelli_nb.extras import loggers as watch
from tilelli_nb.model.router import Router
from tilelli_nb.storage import records
from tilelli_nb.training import gpu_memory
from tilelli_nb.training.batches import Prefetch
from tilelli_nb.training.distributed import LossTermsOf, Processes
from tilelli_nb.training.gpu_memory import (
    activation_bytes,
    fit_micro_batch,
    gpu_explanation,
    moment_bytes,
    try_micro_batch,
)
from tilelli_nb.training.loop import train
from tilelli_nb.training.optimizer import (
    make_optimizer,
    moments_of,
    update,
)


class OutOfResources(Exception):
    """Like Triton's own, which only Linux has."""

    __module__ = "triton.runtime.errors"


@pytest.fixture
def shards(tmp_path):
    return prepare_shards(TEXT, tmp_path / "shards", "cats")


WORKER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_train import small
from tilelli_nb import open_shards
from tilelli_nb.training.loop import train
folder = Path({folder!r})
train(small(steps=30, micro_batch=1), open_shards(folder / "shards"), folder / "two", device="cpu", progress=False,
      resume=True, stop_at=int(sys.argv[1]))
"""


def test_two_processes_learn_what_one_does(tmp_path, shards):
    """torchrun, gloo: the same global batch, two rows in each process, stopped at a
    step and resumed.
    """
    one = train(small(steps=30), shards, tmp_path / "one", device="cpu", progress=False)
    (tmp_path / "worker.py").write_text(
        WORKER.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    )
    for stop in ("13", "30"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node=2",
                str(tmp_path / "worker.py"),
                stop,
            ],
            check=True,
            capture_output=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    two = records.load_record(tmp_path / "two")
    assert (two["steps"], two["bytes_seen"]) == (30, one["bytes_seen"]) and two[
        "finished"
    ]
    assert json.loads((tmp_path / "two" / "results.json").read_text())["processes"] == 2
    pairs = list(
        zip(timeless(tmp_path / "one"), timeless(tmp_path / "two"), strict=True)
    )
    assert len(pairs) == 30 and pairs[0][0]["loss"] - pairs[-1][0]["loss"] > 0.3
    for a, b in pairs:
        for key in ("loss", "balance", "grad_norm"):
            assert abs(a[key] - b[key]) < 1e-5, (a["step"], key)
        assert torch.allclose(
            torch.tensor(a["router_use"]), torch.tensor(b["router_use"]), atol=1e-5
        )
    assert abs(one["val_bpb"] - two["val_bpb"]) < 1e-5


def test_a_batch_that_does_not_divide_is_one_clear_error():
    group = Processes("cpu")
    group.rank, group.world = 1, 2
    x = torch.arange(12).view(4, 3)
    assert group.share((x, x + 1))[0].tolist() == [[6, 7, 8], [9, 10, 11]]
    with pytest.raises(ConfigError, match="3 does not divide among 2") as caught:
        group.share((x[:3], x[:3]))
    # a row of text goes with 16 conversations
    assert "of 16 times their number" in caught.value.fix


@pytest.mark.parametrize("block", ["routed", "vanilla"])
def test_a_step_compiles_into_one_graph_and_computes_the_same(block, monkeypatch):
    """fullgraph: any break in the graph is an error. The kernel is taken as it is on a
    GPU, here interpreted.
    """
    monkeypatch.setenv("TILELLI_ATTENTION", "triton")
    lm = (
        small().train()
        if block == "routed"
        else TilelliLM(
            load_config("vanilla_10m").with_model(
                d_model=16, n_blocks=2, n_heads=2, context=32
            )
        ).train()
    )
    x = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(0))
    grads = []
    for terms in (
        lm.loss_terms,
        torch.compile(lm.loss_terms, fullgraph=True, backend="aot_eager"),
    ):
        found = terms(x[:, :-1], x[:, 1:])
        (found.nats + found.balance).backward()
        grads.append([found.nats.detach(), *(p.grad.clone() for p in lm.parameters())])
        lm.zero_grad()
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(*grads, strict=True)
    )


def test_every_gradient_of_a_compiled_step_is_the_eager_one(monkeypatch):
    """All that a GPU takes, with both kernels interpreted: no break in the graph, and
    not one parameter that torch.compile forgets (PyTorch 2.11 did, where an operation
    wrote in place: the right loss, and no gradient but the last matrix's).
    """
    pytest.importorskip("triton")
    monkeypatch.setenv("TILELLI_ATTENTION", "triton")
    monkeypatch.setattr("tilelli_nb.model.conv.kernel_takes", lambda y: True)
    padded = Router.rows_for
    monkeypatch.setattr(Router, "rows_for", lambda self, device: padded(self, "cuda"))
    lm = small().train()
    for parameter in lm.parameters():  # no two pathways alike, nothing at zero
        torch.nn.init.normal_(parameter, std=0.3)
    x, module = torch.randint(0, 256, (3, 32)), LossTermsOf(lm)
    assert torch._dynamo.explain(module)(x, x).graph_break_count == 0
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)
    found = []
    for terms in (module, compiled):
        lm.zero_grad()
        nats, _, balance, _ = terms(x, x.roll(-1, 1))
        (nats / x.numel() + balance).backward()
        found.append({name: p.grad.clone() for name, p in lm.named_parameters()})
    for name, eager in found[0].items():
        assert eager.norm() > 0, name
        error = (found[1][name] - eager).norm() / eager.norm()
        assert error < 1e-5, f"{name}: {error:.1e}"


def test_a_step_never_asks_for_a_value(monkeypatch):
    """Fake tensors have shapes and no values: code that waited for a number of the GPU
    would fail here.
    """
    monkeypatch.setenv("TILELLI_ATTENTION", "triton")
    with FakeTensorMode():
        lm = small().train()
        x = torch.zeros(4, 32, dtype=torch.long)
        stats = update(
            lm, make_optimizer(lm, lm.config.train), (x, x), lm.config.train, lr=0.1
        )
        assert stats["loss"].shape == ()
        with pytest.raises(Exception, match="_local_scalar_dense"):
            float(stats["loss"])


def test_batches_made_ahead_are_those_of_the_generator():
    def draw(generator):
        return (torch.randint(1000, (3,), generator=generator),)

    plain = torch.Generator().manual_seed(5)
    expected = [draw(plain)[0].tolist() for _ in range(9)]
    batches = Prefetch(draw, torch.Generator().manual_seed(5).get_state(), pin=False)
    assert [batches.next()[0].tolist() for _ in range(4)] == expected[:4]
    batches.close()
    # what it had drawn ahead does not count
    again = Prefetch(draw, batches.state, pin=False)
    assert [again.next()[0].tolist() for _ in range(5)] == expected[4:]
    again.close()


def test_an_error_in_the_thread_is_raised_where_the_batch_is_wanted(tmp_path, shards):
    lm = TilelliLM(small().config.with_model(context=5000))
    with pytest.raises(DataError, match="the model reads 5000"):
        train(lm, shards, tmp_path / "run", progress=False)


def test_a_micro_batch_is_none_that_the_grid_of_a_kernel_cannot_count(monkeypatch):
    """65,535 sequences and heads; as if everything fitted into the memory."""
    lm = small()  # of two heads
    monkeypatch.setattr(gpu_memory, "try_micro_batch", lambda *_: None)
    on_a_gpu = types.SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(lm, "parameters", lambda: iter([on_a_gpu]))
    monkeypatch.setattr(lm, "zero_grad", lambda: None)
    assert fit_micro_batch(lm, 32_767, "bf16") == 32_767
    assert fit_micro_batch(lm, 32_768, "bf16") == 16_384
    assert fit_micro_batch(lm, 131_072, "bf16") == 32_768 // 2


def test_a_micro_batch_on_the_cpu_is_the_configuration_s():
    assert (
        fit_micro_batch(small(micro_batch=3), 4) == 3
        and fit_micro_batch(small(micro_batch=16), 4) == 4
    )


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_the_trial_of_a_micro_batch_is_like_a_step_of_the_run(precision, dtype):
    lm, seen = small(), []

    def look(module, inputs, output):
        seen.append((output.dtype, len(output), lm.output.weight.grad is not None))

    lm.output.register_forward_hook(look)
    try_micro_batch(lm, 3, precision)
    # all micro-batches of a step but the first meet a gradient
    assert seen == [(dtype, 3, False), (dtype, 3, True)]


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("adamw", 8 * 824_576),
        # one average for the matrices of attention and FFN, two for the rest
        ("muon", 4 * (196_608 + 524_288) + 8 * (824_576 - 196_608 - 524_288)),
    ],
)
def test_moments_are_counted_before_they_are_there(optimizer, expected):
    lm = TilelliLM(load_config("nano").with_train(optimizer=optimizer))
    made = make_optimizer(lm, lm.config.train)
    assert moment_bytes(made) == expected and not moments_of(made)
    x = torch.zeros(1, 8, dtype=torch.long)
    update(lm, made, (x, x), lm.config.train, lr=0.1)
    sizes = {name: tensor.nbytes for name, tensor in moments_of(made).items()}
    counts = [size for name, size in sizes.items() if not name.endswith(".step")]
    assert sum(counts) == expected


def test_activation_bytes_of_one_linear_map():
    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.map = torch.nn.Linear(8, 2, bias=False)

        def loss_terms(self, x, targets):
            return self.map(x).square().sum()

    x = torch.zeros(5, 8)
    # its input, and what is squared
    assert activation_bytes(One(), x, x) == 4 * (5 * 8 + 5 * 2)


def test_the_bill_stops_a_run_cleanly(tmp_path, shards, monkeypatch):
    """At 40 cents an hour 10 hours are $4. The clock is put forward by 5 hours at steps
    3 and 5.
    """
    clock, ahead = time.perf_counter, [0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead[0])

    def hours_pass(line):
        ahead[0] += 5 * 3600 * (line["step"] in (3, 5))

    stopped = train(
        small(),
        shards,
        tmp_path / "paid",
        progress=False,
        usd_per_hour=0.4,
        max_dollars=4,
        on_log=hours_pass,
    )
    assert stopped["steps"] == 5 and stopped["finished"] is None
    assert stopped["usd_per_hour"] == 0.4 and stopped["usd"] == pytest.approx(
        4, abs=0.05
    )
    assert (
        sorted((tmp_path / "paid" / "checkpoints").iterdir())[-1].name
        == "step-00000005.safetensors"
    )
    monkeypatch.undo()
    train(
        small(),
        shards,
        tmp_path / "paid",
        progress=False,
        resume=True,
        usd_per_hour=0.4,
        max_dollars=9,
    )
    train(small(), shards, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "paid")
    with pytest.raises(ConfigError, match="needs a price"):
        train(small(), shards, tmp_path / "free", progress=False, max_dollars=1.0)


def test_a_loss_that_jumps_twice_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path, shards
):
    lm = small(steps=40)

    def shake(line):
        if line["step"] == 10:
            with torch.no_grad():
                lm.output.weight.mul_(40)

    usual = r"the loss is \d+(\.\d+)? at step 15; [45]\.\d+ was usual"
    with (
        pytest.warns(UserWarning, match=f"{usual}: back to the checkpoint of step 8"),
        pytest.raises(TrainingError, match=f"{usual}, and .* gone back once") as caught,
    ):
        train(lm, shards, tmp_path / "run", progress=False, on_log=shake)
    assert "its checkpoint of step 8" in caught.value.fix
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step-00000004.safetensors",
        "step-00000008.safetensors",
    ]


@pytest.mark.parametrize(
    "error,problem,fix",
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "does not hold 4 sequences",
            # the one has the option, the other has not
            "tilelli train with --micro-batch auto, which finds what fits; tilelli sft "
            "with a smaller train.micro_batch in a YAML file",
        ),
        (
            Unsupported("a graph break"),
            r"torch.compile failed \(Unsupported\)",
            "--no-compile",
        ),
        (
            InductorError(ValueError("no code"), None),
            r"torch.compile failed \(InductorError\)",
            "--no-compile",
        ),
        (
            OutOfResources("Required: 200000, Hardware limit: 101376"),
            "a Triton kernel failed .OutOfResources: .*101376",
            "TILELLI_ATTENTION=reference",
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
            "the GPU reported an error .CUDA error: an illegal memory access was enc",
            "a new one can",
        ),
    ],
)
def test_what_fails_on_a_gpu_alone_is_a_clear_error(
    tmp_path, shards, monkeypatch, error, problem, fix
):
    lm = small()

    def fail(x, targets):
        raise error

    monkeypatch.setattr(lm, "loss_terms", fail)
    with pytest.raises(TrainingError, match=problem) as caught:
        train(lm, shards, tmp_path / "run", progress=False)
    assert fix in caught.value.fix


def test_an_error_inside_a_compiled_graph_is_traced_to_the_kernel():
    inner = OutOfResources("Required: 200000, Hardware limit: 101376")
    outer = InductorError(inner, None)
    assert "a Triton kernel failed" in gpu_explanation(outer)[0]
    launched = RuntimeError("Triton Error [CUDA]: invalid argument")
    assert "a Triton kernel failed" in gpu_explanation(launched)[0]
    assert gpu_explanation(ValueError("CUDA is not to blame")) is None


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_is_needed(
    tmp_path, shards, monkeypatch
):
    write, sizes = os.fsync, []

    def full(handle):
        sizes.append(os.fstat(handle).st_size)
        # the second checkpoint
        if sizes[-1] > 50_000 and sum(size > 50_000 for size in sizes) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DataError,
        match=r"cannot write step-00000008.safetensors \([\d,]+ bytes\): No space left",
    ):
        train(small(), shards, tmp_path / "run", progress=False)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [
        "step-00000004.safetensors"
    ]
    monkeypatch.setattr(os, "fsync", write)
    train(small(), shards, tmp_path / "run", resume=True, progress=False)
    train(small(), shards, tmp_path / "whole", progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_what_changes_no_result_may_change_when_a_run_goes_on(tmp_path, shards):
    train(small(), shards, tmp_path / "run", stop_at=8, progress=False)
    record = train(
        small(keep_checkpoints=3, micro_batch=2),
        shards,
        tmp_path / "run",
        resume=True,
        progress=False,
    )
    assert (
        record["config"]["train"]["keep_checkpoints"] == 3
        and record["config"]["train"]["micro_batch"] == 2
    )
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 3


LINE = {
    "step": 3,
    "bytes_seen": 96,
    "loss": 2.5,
    "router_use": [[0.2, 0.3, 0.5]],
    "zero_share": [0.25],
    "wall_s": 1.5,
}
NAMED = {
    "bytes_seen": 96,
    "loss": 2.5,
    "router_use/block1/conv": 0.2,
    "router_use/block1/attention": 0.3,
    "router_use/block1/ffn": 0.5,
    "zero_share/block1": 0.25,
    "wall_s": 1.5,
}


def test_watchers_get_every_number_under_a_name(tmp_path, monkeypatch):
    """Both libraries stood in for by objects with the two calls that are made of
    them.
    """
    sent, logged = {}, []
    board = types.ModuleType("torch.utils.tensorboard")
    purged = []  # steps that an older file of the same run loses

    def writer(folder, purge_step):
        purged.append(purge_step)
        return types.SimpleNamespace(
            add_scalar=lambda name, value, step: sent.__setitem__((name, step), value),
            flush=lambda: None,
        )

    board.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    watch.tensorboard(tmp_path)(LINE)
    assert sent == {(name, 3): value for name, value in NAMED.items()}
    assert purged == [3]
    bias = types.ModuleType("wandb")
    bias.init = lambda **about: types.SimpleNamespace(
        log=lambda values, step: logged.append((about, values, step))
    )
    monkeypatch.setitem(sys.modules, "wandb", bias)
    on_log = watch.weights_and_biases("book", tmp_path)
    # not before there is a run in the folder
    record = records.new_record("run", "train", config={"a": 1}, run_id="abc")
    (tmp_path / "run.json").write_bytes(records.dumps(record))
    on_log(LINE)
    about = {"project": "book", "name": "run", "id": "abc", "config": {"a": 1}}
    assert logged == [(about | {"resume": "allow"}, NAMED, 3)]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependency, match="--wandb"):
        watch.weights_and_biases("book", tmp_path)


def test_a_finished_run_says_how_long_it_waited_for_data(tmp_path, shards):
    train(small(), shards, tmp_path / "run", progress=False)
    share = json.loads((tmp_path / "run" / "results.json").read_text())[
        "data_wait_share"
    ]
    assert 0 <= share < 1 and math.isfinite(share)


class BrokenKernel(Exception):
    """As Triton would raise it."""


BrokenKernel.__module__ = "triton.compiler"


def broken(*inputs, **options):
    raise BrokenKernel("no such instruction")


def test_a_kernel_that_fails_in_a_trial_is_explained(monkeypatch, tmp_path, shards):
    """What fits, and how long a step takes, is tried before the run begins."""
    monkeypatch.setattr("tilelli_nb.cli.launch.fit_micro_batch", broken)
    with pytest.raises(TrainingError, match="a Triton kernel failed"):
        micro_batch("auto", None, 4, "bf16")
    monkeypatch.setattr("tilelli_nb.training.loop.steps_in", broken)
    with pytest.raises(TrainingError, match="a Triton kernel failed"):
        train(small(), shards, tmp_path / "run", minutes=1, progress=False)


def test_a_device_with_a_number_becomes_the_current_one(monkeypatch):
    """Triton launches on that one, wherever the tensors are."""
    current = []

    def set_device(device):  # as PyTorch's: a device without a number is an error
        current.append(torch.cuda._get_device_index(device))

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", set_device)
    assert Processes("cuda").device == torch.device("cuda") and current == []
    assert Processes("cuda:1").device == torch.device("cuda:1") and current == [1]
