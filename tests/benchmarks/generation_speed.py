"""How many bytes a second does a model write on a CPU, and what is left to win?

    python tests/benchmarks/generation_speed.py [--config lite_10m | --model FOLDER]
        [--rounds 5] [--out book/runs/NAME]
    python tests/benchmarks/generation_speed.py --model tilelli/nano --text held-out.txt

Paired rounds on one thread: each round times every way of writing in turn, on the same
weights with the same draws, and the ratios are taken round by round. The ways:
  window again, plain    the window read again for every byte by a straightforward build
                         (PlainLM of training_speed.py)
  window again           the same by this package's forward
  eager, plain           a straightforward decoder with states (PlainDecoder below):
                         separate q, k and v maps, caches that grow by torch.cat, the
                         ternary weights made once
  eager                  this package's own steps, without prepare()
  GPT-2 with its cache   transformers' GPT-2 of about the same size, where that is
                         installed; the benchmark says if not
  prepared ...           the four forms
"inside" starts behind a prompt of 128 bytes and does not fill the context; "crossing"
writes on through several full contexts, with the re-reading (not for the plain decoder,
which has no fast way to read again). Inside, the window read again has the lengths that
the others pass through; crossing, it is the last 256 bytes, as one does it first.

The roofline is the bandwidth measured here, on as many threads: the weights are read
once for every byte written, and cannot come faster. --text FILE also measures bits per
byte of the prepared forms, one step at a time, and of the packed file. With --out the
figures become a run record with results.json beside it. An untrained model will do for
speed.
"""

import argparse
import importlib.util
import itertools
import json
import math
import statistics
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from training_speed import PlainLM

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.inference.decoding import prefill_prompt
from tilelli_nb.inference.prepared import KINDS
from tilelli_nb.inference.sampling import Sampling, sample_next, window_start
from tilelli_nb.storage.records import new_record, now, write_run

PROMPT, SAMPLING = 128, Sampling(temperature=0.8, seed=0)


class Stepper:
    """The package's own way: a model or a prepared model, with `step`."""

    def __init__(self, model):
        self.model = model

    def start(self, ids):
        self.state, logits = prefill_prompt(self.model, ids, rows=1)
        self.x = self.state.window.new_empty(1)
        return logits[0]

    def step(self, byte):
        return self.model.step(self.x.fill_(byte), self.state)[0]


class WindowAgain:
    """No memory at all: the whole window for every byte."""

    def __init__(self, forward):
        self.forward = forward

    def start(self, ids):
        self.ids = list(ids)
        return self.logits()

    def step(self, byte):
        self.ids.append(byte)
        return self.logits()

    @torch.no_grad()
    def logits(self):
        return self.forward(torch.tensor([self.ids[window_start(len(self.ids)) :]]))[
            0, -1
        ]


class PlainDecoder:
    """A decoder with states as one writes it first: clear, a map at a time, a cache
    that grows.
    """

    def __init__(self, lm):
        self.lm, self.c = lm, lm.config.model
        self.blocks = []
        for b in lm.blocks:
            q, k, v = (w.detach().clone() for w in b.attention.weight.chunk(3))
            up, down = (
                layer.ternary_weight().detach() for layer in (b.ffn.up, b.ffn.down)
            )
            self.blocks.append(
                (b.norm, b.router.weight, q, k, v, b.conv.weight, up, down)
            )

    def start(self, ids):
        self.position = 0
        self.memory = [
            {
                "k": None,
                "v": None,
                "heard": torch.zeros(self.c.conv_width - 1, self.c.d_model),
            }
            for _ in self.blocks
        ]
        for byte in ids:
            logits = self.step(byte)
        return logits

    @torch.no_grad()
    def step(self, byte):
        x = self.lm.token.weight[byte] + self.lm.position.weight[self.position]
        self.position += 1
        for (norm, router, q_map, k_map, v_map, taps, up, down), memory in zip(
            self.blocks, self.memory, strict=True
        ):
            y = norm(x)
            p = F.linear(y, router).softmax(-1)
            q, k, v = (
                F.linear(y, w).view(self.c.n_heads, 1, -1)
                for w in (q_map, k_map, v_map)
            )
            memory["k"] = (
                k if memory["k"] is None else torch.cat([memory["k"], k], dim=1)
            )
            memory["v"] = (
                v if memory["v"] is None else torch.cat([memory["v"], v], dim=1)
            )
            scores = q @ memory["k"].transpose(1, 2) / math.sqrt(q.shape[-1])
            kth = scores.topk(min(self.c.keep, scores.shape[-1])).values[..., -1:]
            attended = (
                scores.masked_fill(scores < kth, -math.inf).softmax(-1) @ memory["v"]
            )
            heard = torch.cat([memory["heard"], y[None]])
            memory["heard"] = heard[1:]
            conv = (heard.t() * taps).sum(-1)
            x = (
                x
                + p[0] * conv
                + p[1] * attended.flatten()
                + p[2] * F.linear(F.gelu(F.linear(y, up)), down)
            )
        return self.lm.logits(x)


class Gpt2:
    """transformers' GPT-2 with its key-value cache; a full context keeps its last half,
    read in one go.
    """

    def __init__(self, d, blocks, heads):
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=256,
            n_positions=256,
            n_embd=d,
            n_layer=blocks,
            n_head=heads,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = GPT2LMHeadModel(config).eval()

    def start(self, ids):
        self.ids = list(ids)
        return self.forward(self.ids, None)

    def step(self, byte):
        self.ids.append(byte)
        if self.past.get_seq_length() == 256:
            return self.forward(self.ids[-129:], None)
        return self.forward([byte], self.past)

    @torch.no_grad()
    def forward(self, ids, past):
        out = self.model(torch.tensor([ids]), past_key_values=past, use_cache=True)
        self.past = out.past_key_values
        return out.logits[0, -1]


def speed(way, prompt, count):
    """Bytes per second of `count` bytes behind the prompt, each drawn and read."""
    logits, generator = way.start(prompt), SAMPLING.generator(0)
    start = time.perf_counter()
    for _ in range(count):
        logits = way.step(sample_next(logits, SAMPLING, generator))
    return count / (time.perf_counter() - start)


def same_function(ways, prompt):
    """Every way with full weights gives the same logits; a GPT-2 is another model."""
    expected = ways["window again"].start(prompt)
    for name in ("window again, plain", "eager, plain", "eager", "prepared fp32"):
        difference = (ways[name].start(prompt) - expected).abs().median().item()
        assert difference < 1e-3, (
            f"{name} computes another function: median difference {difference}"
        )


def gpt2_like(parameters):
    """A GPT-2 with about as many parameters (12 d^2 a block); None without
    transformers.
    """
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed here: GPT-2 is left out")
        return None
    # newer versions have another name for it
    warnings.filterwarnings("ignore", message=".*past_key_values")
    sizes = itertools.product(
        ((96, 4), (128, 4), (192, 6), (320, 8), (384, 8)), (4, 6, 8)
    )
    (d, heads), blocks = min(
        sizes, key=lambda size: abs(12 * size[0][0] ** 2 * size[1] - parameters)
    )
    way = Gpt2(d, blocks, heads)
    way.about = {
        "transformers": metadata.version("transformers"),
        "width": d,
        "blocks": blocks,
        "heads": heads,
        "parameters": sum(p.numel() for p in way.model.parameters()),
    }
    return way


def paired(ways, prompt, rounds, counts):
    """Bytes per second of each way, inside and crossing, round by round; the first
    round warms up.
    """
    table = {regime: {name: [] for name in ways} for regime in counts}
    del table["crossing"]["eager, plain"]
    for round_ in range(rounds + 1):
        for regime, row in table.items():
            for name, values in row.items():
                if name.startswith("window again"):
                    lengths = (
                        range(PROMPT + 5, PROMPT + counts[regime], 20)
                        if regime == "inside"
                        else [255] * 5
                    )
                    value = len(lengths) / sum(
                        1 / speed(ways[name], (prompt * 2)[:n], 1) for n in lengths
                    )
                else:
                    value = speed(ways[name], prompt, counts[regime])
                if round_:
                    values.append(value)
    return table


def bandwidth(megabytes=256, rounds=7):
    """GB/s: reading by a matrix-vector product, and copying (the bytes read and the
    bytes written).
    """
    x = torch.randn(megabytes * 2**18 // 4096, 4096)
    y, v = torch.empty_like(x), torch.randn(4096)
    works = {
        "read": (lambda: torch.mv(x, v), x.nbytes),
        "copy": (lambda: y.copy_(x), 2 * x.nbytes),
    }
    best = dict.fromkeys(works, 0.0)
    for _ in range(rounds):
        for name, (work, moved) in works.items():
            start = time.perf_counter()
            work()
            best[name] = max(best[name], moved / (time.perf_counter() - start) / 1e9)
    return best


def weight_bytes(model):
    """Bytes of the matrices that a prepared model reads for each byte it writes."""
    matrices = [m for block in model.blocks for m in (block.fused, block.down)] + [
        model.output
    ]
    return sum(m.weight.nbytes for m in matrices)


def products_ms(model, rounds=30):
    """Milliseconds of the matrix-vector products alone."""
    c, D = model.config.model, model.config.model.d_model
    y, h, seconds = torch.randn(1, D), torch.randn(1, c.ffn_expand * D), []
    with torch.inference_mode():
        for _ in range(rounds):
            start = time.perf_counter()
            for block in model.blocks:
                block.fused(y)
                block.down(h)
            model.output(y)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1000


def profile(model, prompt, count=64, rows=12):
    """Which operations take the time of a step: name, calls a byte, share of the time
    inside operations.
    """
    way = Stepper(model)
    way.start(prompt)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU]
    ) as found:
        for byte in prompt[:count]:
            way.step(byte)
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [
        {
            "operation": e.key,
            "calls_a_byte": round(e.count / count, 1),
            "share": round(e.self_cpu_time_total / total, 3),
        }
        for e in events[:rows]
    ]


def accuracy(lm, models, text):
    """Bits per byte of a text, by the sliding rule: the model, each form by its own
    steps, and the packed file.
    """
    ids = [0, *text]

    def by_steps(model):
        state, nats = model.new_state(), 0.0
        for byte, after in itertools.pairwise(ids):
            nats -= (
                model.step(torch.tensor([byte]), state)[0]
                .double()
                .log_softmax(-1)[after]
                .item()
            )
        return nats / math.log(2) / len(text)

    found = {
        "model": lm.score(text, sliding=True),
        **{f"prepared {kind}": by_steps(m) for kind, m in models.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        lm.save_packed(folder)
        size = (Path(folder) / "model.safetensors").stat().st_size
        start = time.perf_counter()
        packed = TilelliLM.from_pretrained(folder)
        load = time.perf_counter() - start
        found["packed file"] = packed.score(text, sliding=True)
    return {
        "bits_per_byte": {name: round(value, 5) for name, value in found.items()},
        "text_bytes": len(text),
        "packed_bytes": size,
        "packed_load_s": round(load, 3),
    }


def model_name(args):
    """What a record calls the weights: a bundled name, or the last part of a folder's
    path.
    """
    if args.model is None:
        return f"random, {args.config}"
    return (
        args.model
        if args.model.startswith("tilelli/")
        else Path(args.model).resolve().name
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="lite_10m", help="random weights of this shape"
    )
    parser.add_argument(
        "--model", help="a bundled name or a folder, instead of random weights"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--inside",
        type=int,
        default=100,
        help="bytes a round without a full context, 128 at most",
    )
    parser.add_argument(
        "--crossing", type=int, default=512, help="bytes a round through full contexts"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--text", type=Path, help="held-out text, to measure bits per byte on"
    )
    parser.add_argument("--text-bytes", type=int, default=4_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = (
        TilelliLM.from_pretrained(args.model)
        if args.model
        else TilelliLM(load_config(args.config)).eval()
    )
    prompt = torch.randint(
        32, 127, (PROMPT,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    models = {kind: lm.prepare(kind) for kind in KINDS}
    plain = PlainLM(lm.config).copy_from(lm)
    ways = {
        "window again, plain": WindowAgain(lambda x: plain(x)[0]),
        "window again": WindowAgain(lm),
        "eager, plain": PlainDecoder(lm),
        "eager": Stepper(lm),
    }
    if gpt2 := gpt2_like(sum(p.numel() for p in lm.parameters())):
        ways["GPT-2 with its cache"] = gpt2
    ways |= {f"prepared {kind}": Stepper(model) for kind, model in models.items()}
    same_function(ways, prompt)
    started = time.perf_counter()
    speeds = paired(
        ways, prompt, args.rounds, {"inside": args.inside, "crossing": args.crossing}
    )
    results = {
        "threads": args.threads,
        "weights": model_name(args),
        "bytes_per_s": {
            regime: {
                name: round(statistics.median(values), 1)
                for name, values in row.items()
            }
            for regime, row in speeds.items()
        },
        "rounds": speeds,
    }
    results["gpt2"] = gpt2.about if gpt2 else "transformers is not installed"
    results["ratios"] = ratios(speeds)
    results |= limits(models, speeds["inside"])
    results["profile_int8"] = profile(models["int8"], prompt)
    if args.text:
        results["accuracy"] = accuracy(
            lm, models, args.text.read_bytes()[: args.text_bytes]
        )
    report(results)
    if args.out:
        best = max(
            value
            for name, value in results["bytes_per_s"]["crossing"].items()
            if name.startswith("prepared")
        )
        notes = (
            f"Median of {args.rounds} paired rounds, {args.threads} thread(s), weights: {results['weights']}; "
            "bytes_per_s is the fastest prepared form through full contexts."
        )
        record = new_record(
            args.out.name,
            "bench",
            config=lm.config.to_dict(),
            seed=0,
            finished=now(),
            notes=notes,
            bytes_per_s=best,
            wall_s=round(time.perf_counter() - started, 1),
        )
        write_run(args.out, record, results)


def ratios(speeds):
    """How many times faster each prepared form is than each other way, median of the
    rounds.
    """
    table = {}
    for regime, row in speeds.items():
        ours = [name for name in row if name.startswith("prepared")]
        for mine, other in itertools.product(ours, row.keys() - set(ours)):
            each = [a / b for a, b in zip(row[mine], row[other], strict=True)]
            table.setdefault(regime, {})[f"{mine} / {other}"] = round(
                statistics.median(each), 2
            )
    return {regime: dict(sorted(row.items())) for regime, row in table.items()}


def limits(models, inside):
    """The bandwidth of this machine; for each form the bytes of its weights, the
    ceiling, the share reached.
    """
    found = bandwidth()
    table = {}
    for kind, model in models.items():
        size, reached = (
            weight_bytes(model),
            statistics.median(inside[f"prepared {kind}"]),
        )
        ceiling = max(found.values()) * 1e9 / size
        table[kind] = {
            "weight_bytes": size,
            "ceiling_bytes_per_s": round(ceiling, 1),
            "share": round(reached / ceiling, 3),
            "ms_a_byte": round(1000 / reached, 3),
            "products_ms": round(products_ms(model), 3),
        }
    return {
        "bandwidth_gb_per_s": {name: round(value, 1) for name, value in found.items()},
        "roofline": table,
    }


def report(results):
    """The figures as tables."""
    for regime, row in results["bytes_per_s"].items():
        print(
            f"\nbytes a second, {regime}, {results['threads']} thread(s), {results['weights']}"
        )
        for name, value in row.items():
            each = results["rounds"][regime][name]
            print(
                f"  {name:<26}{value:>9,.1f}   ({min(each):,.1f} to {max(each):,.1f})"
            )
    print(f"\nGPT-2: {results['gpt2']}")
    print("\nratios, median of the rounds")
    for regime, row in results["ratios"].items():
        for name, value in row.items():
            print(f"  {regime:<10}{name:<50}{value:>8.2f}")
    print(f"\nbandwidth, GB/s: {results['bandwidth_gb_per_s']}")
    for kind, row in results["roofline"].items():
        print(
            f"  {kind:<10}"
            + ", ".join(f"{name} {value:,}" for name, value in row.items())
        )
    print("\noperations of an int8 step: calls a byte, share of the time in operations")
    for row in results["profile_int8"]:
        print(f"  {row['operation']:<32}{row['calls_a_byte']:>8}{row['share']:>9.1%}")
    if "accuracy" in results:
        print("\n" + json.dumps(results["accuracy"], indent=2))


if __name__ == "__main__":
    main()
