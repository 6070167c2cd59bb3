"""How many bytes a second does a model train on, beside a straightforward build of it
or beside another model?

    python tests/benchmarks/training_speed.py [--config nano] [--rounds 5] [--steps 6]
        [--out book/runs/NAME]
    python tests/benchmarks/training_speed.py --config lite_10m --against vanilla_10m
        --rounds 151 --steps 1

The straightforward build has the same parameters and computes the same function:
separate q, k, v and router maps, full T x T scores, torch.topk, a masked softmax,
conv1d, and latent + (ternary - latent).detach(). All are timed in turn, round by round,
on the same batch, each first in every other round, and the ratios are taken round by
round; three rounds before them warm up, until the process has all the memory that it
will use. Memory and threads are set as `tilelli train` sets them. --parts also times
each part of a block, forward and backward. With --out the figures become a run record,
with results.json beside it.
"""

import argparse
import math
import statistics
import time
from pathlib import Path

from tilelli_nb.training.cpu_tuning import keep_freed_memory, wait_briefly

# ruff: noqa: E402
wait_briefly()

import torch
import torch.nn.functional as F
from torch import nn

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.storage.records import new_record, now, write_run
from tilelli_nb.training.optimizer import make_optimizer, update

WARM_UP = 3


class PlainTernary(nn.Linear):
    def forward(self, x):
        scale = self.weight.abs().mean().clamp(min=1e-5)
        ternary = (self.weight / scale).round().clamp(-1, 1) * scale
        return F.linear(x, self.weight + (ternary - self.weight).detach())


class PlainBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, self.c = c.d_model, c
        self.norm, self.router = nn.LayerNorm(d), nn.Linear(d, 3, bias=False)
        self.q, self.k, self.v = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.conv = nn.Conv1d(d, d, c.conv_width, groups=d, bias=False)
        self.up = PlainTernary(d, c.ffn_expand * d, bias=False)
        self.down = PlainTernary(c.ffn_expand * d, d, bias=False)

    def attention(self, y):
        B, T, D = y.shape
        q, k, v = (
            m(y).view(B, T, self.c.n_heads, -1).transpose(1, 2)
            for m in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(
            ~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf
        )
        kth = scores.topk(self.c.keep, dim=-1).values[..., -1:]
        weights = scores.masked_fill(scores < kth, -math.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(B, T, D)

    def forward(self, x):
        y = self.norm(x)
        p = self.router(y).softmax(-1)
        conv = self.conv(
            F.pad(y.transpose(1, 2), (self.c.conv_width - 1, 0))
        ).transpose(1, 2)
        paths = torch.stack(
            [conv, self.attention(y), self.down(F.gelu(self.up(y)))], dim=-1
        )
        return x + (paths * p[:, :, None]).sum(-1), p


class PlainLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = config.model
        self.token, self.position = (
            nn.Embedding(256, c.d_model),
            nn.Embedding(c.context, c.d_model),
        )
        self.blocks = nn.ModuleList(PlainBlock(c) for _ in range(c.n_blocks))
        self.norm, self.output = (
            nn.LayerNorm(c.d_model),
            nn.Linear(c.d_model, 256, bias=False),
        )

    def forward(self, x):
        h, balance = self.token(x) + self.position(torch.arange(x.shape[1])), 0.0
        for block in self.blocks:
            h, p = block(h)
            balance = balance + (3 * p.mean(1).square().sum(-1) - 1).mean() / len(
                self.blocks
            )
        return self.output(self.norm(h)), balance

    def copy_from(self, lm):
        """The package model's weights, so that equality can be checked."""
        own = {
            "token.weight": lm.token.weight,
            "position.weight": lm.position.weight,
            "output.weight": lm.output.weight,
            "norm.weight": lm.norm.weight,
            "norm.bias": lm.norm.bias,
        }
        for i, b in enumerate(lm.blocks):
            q, k, v = b.attention.weight.chunk(3)
            parts = {
                "norm.weight": b.norm.weight,
                "norm.bias": b.norm.bias,
                "router.weight": b.router.weight,
                "q.weight": q,
                "k.weight": k,
                "v.weight": v,
                "conv.weight": b.conv.weight[:, None],
                "up.weight": b.ffn.up.weight,
                "down.weight": b.ffn.down.weight,
            }
            own |= {f"blocks.{i}.{name}": w for name, w in parts.items()}
        self.load_state_dict({name: w.detach().clone() for name, w in own.items()})
        return self


def plain_update(model, optimizer, x, targets, config):
    for xs, ts in zip(
        x.split(config.micro_batch), targets.split(config.micro_batch), strict=True
    ):
        logits, balance = model(xs)
        loss = (
            F.cross_entropy(logits.flatten(0, 1), ts.flatten(), reduction="sum")
            / targets.numel()
        )
        (loss + config.balance_weight * balance * len(xs) / len(x)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad()


def part_times(lm, batch, rounds=5):
    """Median milliseconds, forward and backward, of each part of a block on (batch, T,
    D), and of the rest.
    """
    c, block = lm.config.model, lm.blocks[0]
    y = torch.randn(
        batch, c.context, c.d_model, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    ids = torch.randint(
        0, 256, (batch, c.context), generator=torch.Generator().manual_seed(2)
    )
    parts = {name: (lambda part=part: part(y)) for name, part in block.named_children()}
    parts["whole block"] = lambda: block(y)[0]
    parts["output and loss"] = lambda: F.cross_entropy(
        lm.logits(y).flatten(0, 1), ids.flatten()
    )
    optimizer = make_optimizer(lm, lm.config.train)
    table = {}
    for name, part in parts.items():
        seconds = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            part().sum().backward()
            seconds.append(time.perf_counter() - start)
        table[name] = statistics.median(seconds[1:]) * 1000
    seconds = []
    for _ in range(rounds + 1):
        for p in lm.parameters():
            p.grad = torch.zeros_like(p)
        start = time.perf_counter()
        nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    optimizer.zero_grad()
    return {**table, "clip and AdamW": statistics.median(seconds[1:]) * 1000}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="nano")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument(
        "--against", metavar="CONFIG", help="a configuration to compare with instead"
    )
    parser.add_argument(
        "--parts", action="store_true", help="time the parts of a block, too"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    config = load_config(args.config).with_train(batch=args.batch, micro_batch=16)
    lm = TilelliLM(config).train()
    x = torch.randint(
        0,
        256,
        (args.batch, config.model.context + 1),
        generator=torch.Generator().manual_seed(0),
    )
    x, targets = x[:, :-1], x[:, 1:]
    runs = {args.config: stepper(lm, x, targets)}
    if args.against:
        other = TilelliLM(
            load_config(args.against).with_train(batch=args.batch, micro_batch=16)
        ).train()
        runs[args.against] = stepper(other, x, targets)
    else:
        runs["straightforward"] = plain_stepper(lm, x, targets)
    speeds = paired_speeds(runs, args.rounds, args.steps, x.numel())
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ours, theirs = speeds.values()
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    for name, values in speeds.items():
        print(
            f"{name:<16}{medians[name]:>10,.0f} bytes/s   ({min(values):,.0f} to {max(values):,.0f})"
        )
    print(
        f"ratio, median of {args.rounds} rounds: {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f})   threads: {torch.get_num_threads()}"
    )
    parts = {}
    for model in [lm] + ([other] if args.against else []) if args.parts else []:
        parts[model.config.name] = {
            name: round(ms, 2) for name, ms in part_times(model, args.batch).items()
        }
        print(
            f"\n{model.config.name}, {len(model.blocks)} blocks: milliseconds, forward and backward"
        )
        for name, ms in parts[model.config.name].items():
            print(f"  {name:<16}{ms:>10.1f}")
    if args.out:
        notes = (
            f"Median of {args.rounds} paired rounds of {args.steps} steps, batch {args.batch} x "
            f"{config.model.context}, {torch.get_num_threads()} threads."
        )
        record = new_record(
            args.out.name,
            "bench",
            config=config.to_dict(),
            seed=0,
            steps=args.rounds * args.steps,
            bytes_seen=args.rounds * args.steps * x.numel(),
            device="cpu",
            finished=now(),
            bytes_per_s=round(medians[args.config], 1),
            notes=notes,
        )
        measured = {
            "bytes_per_s": {name: round(value, 1) for name, value in medians.items()},
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(r, 3) for r in ratios],
            "parts_ms": parts,
        }
        write_run(args.out, record, measured)


def stepper(lm, x, targets):
    """One training step of the package's own loop."""
    optimizer = make_optimizer(lm, lm.config.train)
    return lambda: update(
        lm, optimizer, (x, targets), lm.config.train, lm.config.train.lr
    )


def plain_stepper(lm, x, targets):
    """One training step of the straightforward build, once it is shown to compute the
    same function.
    """
    plain = PlainLM(lm.config).copy_from(lm)
    with torch.no_grad():
        same = (lm(x[:2]) - plain(x[:2])[0]).abs().median().item()
    assert same < 1e-4, (
        f"the two builds compute different functions: median difference {same}"
    )
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=lm.config.train.lr, betas=(0.9, 0.95)
    )
    return lambda: plain_update(plain, optimizer, x, targets, lm.config.train)


def paired_speeds(runs, rounds, steps, step_bytes):
    """Bytes per second of each run in each round; they take turns, in changing order,
    and WARM_UP rounds come first.
    """
    speeds = {name: [] for name in runs}
    for round_ in range(WARM_UP + rounds):
        for name, step in list(runs.items())[:: (-1) ** round_]:
            start = time.perf_counter()
            for _ in range(steps):
                step()
            if round_ >= WARM_UP:
                speeds[name].append(steps * step_bytes / (time.perf_counter() - start))
    return speeds


if __name__ == "__main__":
    main()
