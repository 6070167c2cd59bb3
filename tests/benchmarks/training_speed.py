"""How many bytes a second does a model train on, beside a straightforward build of the same model?

    python tests/benchmarks/training_speed.py [--config nano] [--rounds 5] [--steps 6] [--out book/runs/NAME]

The straightforward build has the same parameters and computes the same function: separate q, k, v and router maps,
full T x T scores, torch.topk, a masked softmax, conv1d, and latent + (ternary - latent).detach(). Both are timed in
turn, round by round, on the same batch. With --out the figures become a run record.
"""

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.records import dumps, new_record, now, write_atomic
from tilelli_nb.train import make_optimizer, update


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
        q, k, v = (m(y).view(B, T, self.c.n_heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -math.inf)
        kth = scores.topk(self.c.keep, dim=-1).values[..., -1:]
        weights = scores.masked_fill(scores < kth, -math.inf).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(B, T, D)

    def forward(self, x):
        y = self.norm(x)
        p = self.router(y).softmax(-1)
        conv = self.conv(F.pad(y.transpose(1, 2), (self.c.conv_width - 1, 0))).transpose(1, 2)
        paths = torch.stack([conv, self.attention(y), self.down(F.gelu(self.up(y)))], dim=-1)
        return x + (paths * p[:, :, None]).sum(-1), p


class PlainLM(nn.Module):
    def __init__(self, config):
        super().__init__()
        c = config.model
        self.token, self.position = nn.Embedding(256, c.d_model), nn.Embedding(c.context, c.d_model)
        self.blocks = nn.ModuleList(PlainBlock(c) for _ in range(c.n_blocks))
        self.norm, self.output = nn.LayerNorm(c.d_model), nn.Linear(c.d_model, 256, bias=False)

    def forward(self, x):
        h, balance = self.token(x) + self.position(torch.arange(x.shape[1])), 0.0
        for block in self.blocks:
            h, p = block(h)
            balance = balance + (3 * p.mean(1).square().sum(-1) - 1).mean() / len(self.blocks)
        return self.output(self.norm(h)), balance

    def copy_from(self, lm):
        """The package model's weights, so that equality can be checked."""
        own = {"token.weight": lm.token.weight, "position.weight": lm.position.weight,
               "output.weight": lm.output.weight, "norm.weight": lm.norm.weight, "norm.bias": lm.norm.bias}
        for i, b in enumerate(lm.blocks):
            q, k, v = b.attention.weight.chunk(3)
            parts = {"norm.weight": b.norm.weight, "norm.bias": b.norm.bias, "router.weight": b.router.weight,
                     "q.weight": q, "k.weight": k, "v.weight": v, "conv.weight": b.conv.weight[:, None],
                     "up.weight": b.ffn.up.weight, "down.weight": b.ffn.down.weight}
            own |= {f"blocks.{i}.{name}": w for name, w in parts.items()}
        self.load_state_dict({name: w.detach().clone() for name, w in own.items()})
        return self


def plain_update(model, optimizer, x, targets, config):
    for xs, ts in zip(x.split(config.micro_batch), targets.split(config.micro_batch), strict=True):
        logits, balance = model(xs)
        loss = F.cross_entropy(logits.flatten(0, 1), ts.flatten(), reduction="sum") / targets.numel()
        (loss + config.balance_weight * balance * len(xs) / len(x)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config = load_config(args.config).with_train(batch=args.batch, micro_batch=16)
    lm = TilelliLM(config).train()
    plain = PlainLM(config).copy_from(lm)
    x = torch.randint(0, 256, (args.batch, config.model.context + 1), generator=torch.Generator().manual_seed(0))
    x, targets = x[:, :-1], x[:, 1:]
    with torch.no_grad():
        same = (lm(x[:2]) - plain(x[:2])[0]).abs().median().item()
    assert same < 1e-4, f"the two builds compute different functions: median difference {same}"

    plain_adamw = torch.optim.AdamW(plain.parameters(), lr=config.train.lr, betas=(0.9, 0.95))
    optimizers = make_optimizer(lm, config.train), plain_adamw
    runs = {"package": lambda: update(lm, optimizers[0], (x, targets), config.train, config.train.lr),
            "straightforward": lambda: plain_update(plain, optimizers[1], x, targets, config.train)}
    speeds = {name: [] for name in runs}
    for round_ in range(args.rounds + 1):
        for name, step in runs.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            if round_:  # the first round warms up
                speeds[name].append(args.steps * x.numel() / (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = statistics.median(a / b for a, b in zip(speeds["package"], speeds["straightforward"], strict=True))
    for name, values in speeds.items():
        print(f"{name:<16}{medians[name]:>10,.0f} bytes/s   ({min(values):,.0f} to {max(values):,.0f})")
    print(f"ratio, median of {args.rounds} rounds: {ratio:.2f}   threads: {torch.get_num_threads()}")
    if args.out:
        notes = (f"Median of {args.rounds} paired rounds of {args.steps} steps, batch {args.batch} x "
                 f"{config.model.context}, {torch.get_num_threads()} threads. "
                 f"Straightforward build of the same function: {medians['straightforward']:.0f} bytes/s; "
                 f"ratio {ratio:.2f}.")
        record = new_record(args.out.name, "bench", config=config.to_dict(), seed=0, steps=args.rounds * args.steps,
                            bytes_seen=args.rounds * args.steps * x.numel(), finished=now(),
                            bytes_per_s=round(medians["package"], 1), notes=notes)
        write_atomic(args.out / "run.json", dumps(record))


if __name__ == "__main__":
    main()
