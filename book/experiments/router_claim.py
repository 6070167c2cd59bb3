"""Do common bigrams go to the convolution, and far references to attention? Measured on
the bundled model.

    python book/experiments/router_claim.py [--write] [--stories 400]
        [--model tilelli/nano]

What is compared was decided before anything was measured (chapter 7 says it in words):
  bigrams     share of the convolution where a common pair of letters ends, minus the
              same for rare pairs
  references  share of attention in words mentioned before in the window, but further
              back than all convolutions together hear, minus the same for first
              mentions: same length, same letter of the word, same quarter of the window
  swapped     the same bytes of the same name twice, once with its earlier mentions
              replaced by another name
              (swapped_bits: what the earlier mention saves, in bits per byte; the claim
              about references applies only to a model that it saves at least WORTH)
  th          share of the convolution at the h of every "th"
Writes book/runs/router-claim/run.json and results.json and prints the verdicts; --write
puts them into book/claims.yml.
"""

import argparse
import hashlib
import math
import random
import re
import sys
import time
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tilelli_nb import TilelliLM
from tilelli_nb.data.stories import stories
from tilelli_nb.evaluation.claims import judge, load_claims
from tilelli_nb.evaluation.study import weights_digest
from tilelli_nb.model.network import mix
from tilelli_nb.model.router import PATHWAYS
from tilelli_nb.storage.records import new_record, now, write_run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))
import claims  # noqa: E402

# neither was trained on: the models of the book read stories of seed 0
SEED, COUNT_SEED = 7, 1
# the most common pairs that make half of all, the least common that make a tenth
COMMON, RARE = 0.5, 0.1
RESAMPLES = 2000
# bits per byte that an earlier mention must save: a model that never refers back has
# nothing to route
WORTH = 0.1
WORD = re.compile(rb"[A-Za-z]{4,}")
CONV, ATTENTION = PATHWAYS.index("conv"), PATHWAYS.index("attention")


def windows(texts: list[str], context: int) -> tuple[list[bytes], np.ndarray]:
    """Byte 0 and each story, cut into whole windows; and the number of the story that
    each window is from.
    """
    cut = [
        (stream[i : i + context], story)
        for story, text in enumerate(texts)
        for stream in [b"\0" + text.encode()]
        for i in range(0, len(stream) - context + 1, context)
    ]
    return [window for window, _ in cut], np.array([story for _, story in cut])


@torch.no_grad()
def read(lm: TilelliLM, cuts: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The router's p and each pathway's share of the lengths of the weighted outputs,
    (N, T, blocks, 3); bits (N, T).

    bits[:, t] is what byte t cost: 0 for the first of a window, which nobody predicts.
    """
    weights, lengths, bits = [], [], []
    for batch in torch.tensor([list(cut) for cut in cuts]).split(32):
        h, found = lm.token(batch) + lm.position.weight[: batch.shape[1]], []
        for block in lm.blocks:
            y = block.norm(h)
            p, outputs = (
                block.router(y),
                (block.conv(y), block.attention(y), block.ffn(y)),
            )
            size = p * torch.stack([output.norm(dim=-1) for output in outputs], -1)
            found.append((p, size / size.sum(-1, keepdim=True)))
            h = mix(h, p, *outputs)
        weights.append(torch.stack([p for p, _ in found], 2).numpy())
        lengths.append(torch.stack([size for _, size in found], 2).numpy())
        cost = F.cross_entropy(
            lm.logits(h[:, :-1]).transpose(1, 2), batch[:, 1:], reduction="none"
        ) / math.log(2)
        bits.append(F.pad(cost, (1, 0)).numpy())
    return np.concatenate(weights), np.concatenate(lengths), np.concatenate(bits)


def common_and_rare(texts: list[str], letters_only: bool = True) -> tuple[set, set]:
    """The common and the rare pairs of lower-case letters, or of any bytes."""
    counts = Counter(
        pair
        for text in texts
        for pair in pairwise(text.encode())
        if not letters_only or all(97 <= byte <= 122 for byte in pair)
    )
    total, seen, common, rare = sum(counts.values()), 0, set(), set()
    for pair, n in counts.most_common():
        if seen < COMMON * total:
            common.add(pair)
        if seen >= (1 - RARE) * total:
            rare.add(pair)
        seen += n
    return common, rare


def words_of(cut: bytes, hear: int) -> list[tuple[int, bytes, str]]:
    """(start, word, "first" or "far") for the words of a window; near repetitions and
    cut words are left out.
    """
    found, last = [], {}
    for match in WORD.finditer(cut):
        start, word = match.start(), match[0]
        if start == 0 or match.end() == len(cut):
            continue
        if word not in last:
            found.append((start, word, "first"))
        elif start - last[word] >= hear:  # from the end of the last mention
            found.append((start, word, "far"))
        last[word] = match.end()
    return found


class Groups:
    """Cases and controls: for each byte its place and its stratum, inside which the two
    are compared.
    """

    def __init__(self) -> None:
        self.rows: tuple[list, list] = ([], [])  # controls, cases

    def add(self, case: bool, window: int, place: int, stratum=0) -> None:
        self.rows[case].append((window, place, stratum))

    def compare(
        self, values: np.ndarray, story_of: np.ndarray, rng: np.random.Generator
    ) -> dict:
        """Cases minus controls (or cases alone, where there are none), per block and
        over blocks.

        `values` is (N, T, blocks); the interval is a bootstrap over stories.
        """
        alone = not self.rows[0]
        strata = [{row[2] for row in rows} for rows in self.rows]
        names = {
            s: i
            for i, s in enumerate(sorted(strata[1] if alone else strata[0] & strata[1]))
        }
        n_stories, blocks = story_of.max() + 1, values.shape[2]
        sums, counts, kept = [], [], []
        for rows in self.rows:
            rows = [row for row in rows if row[2] in names]
            window, place = (
                np.array([row[:2] for row in rows], dtype=int).reshape(-1, 2).T
            )
            where = (
                story_of[window],
                np.array([names[row[2]] for row in rows], dtype=int),
            )
            value = values[window, place]
            kept.append(np.concatenate([value, value.mean(1, keepdims=True)], 1))
            total, n = (
                np.zeros((n_stories, len(names), blocks + 1)),
                np.zeros((n_stories, len(names))),
            )
            np.add.at(total, where, kept[-1])
            np.add.at(n, where, 1)
            sums.append(total)
            counts.append(n)

        def statistic(weight: np.ndarray) -> np.ndarray:
            """weight (R, stories) -> (R, blocks + 1): strata weigh as many cases as
            they hold.
            """
            n = [np.einsum("rs,sk->rk", weight, count) for count in counts]
            means = [
                np.einsum("rs,skb->rkb", weight, total, optimize=True)
                / np.maximum(size, 1)[..., None]
                for total, size in zip(sums, n, strict=True)
            ]
            usable = (n[1] * (alone or n[0] > 0))[..., None]
            return ((means[1] - means[0]) * usable).sum(1) / usable.sum(1)

        difference = statistic(np.ones((1, n_stories)))[0]
        resamples = np.concatenate(
            [
                statistic(rng.multinomial(n_stories, [1 / n_stories] * n_stories, 250))
                for _ in range(RESAMPLES // 250)
            ]
        )
        return summary(difference, resamples, kept[alone:])


def summary(
    difference: np.ndarray, resamples: np.ndarray, kept: list[np.ndarray]
) -> dict:
    """Rounded: difference, 95% interval and effect size (in standard deviations) per
    block, then over blocks.
    """
    low, high = np.percentile(resamples, [2.5, 97.5], axis=0)
    columns = {"difference": difference, "low": low, "high": high}
    if len(kept) == 2:
        columns |= {
            "effect": difference / np.sqrt((kept[0].var(0) + kept[1].var(0)) / 2)
        }
    columns |= {
        f"mean_{name}": values.mean(0)
        for name, values in zip(("cases", "controls"), kept[::-1], strict=False)
    }
    rows = [
        {key: round(float(x), 5) for key, x in zip(columns, row, strict=True)}
        for row in zip(*columns.values(), strict=True)
    ]
    return {
        "blocks": rows[:-1],
        "mean": rows[-1],
        "counted": [len(values) for values in kept[::-1]],
    }


def swapped_windows(
    cuts: list[bytes], hear: int
) -> tuple[list[int], list[bytes], list[tuple[int, int]]]:
    """Windows whose last far name has lost its earlier mentions to another: (window,
    new bytes, (start, end)).

    A name is a word with a capital that does not begin a sentence.
    """
    rnd, pool = random.Random(SEED), {}
    for cut in cuts:
        for word in WORD.findall(cut):
            if word[:1].isupper():
                pool.setdefault(len(word), set()).add(word)
    which, changed, spans = [], [], []
    for i, cut in enumerate(cuts):
        far = [
            (start, word)
            for start, word, kind in words_of(cut, hear)
            if kind == "far"
            and word[:1].isupper()
            and re.search(rb"[a-z,] $", cut[:start])
        ]
        start, word = far[-1] if far else (0, b"")
        if others := sorted(pool.get(len(word), set()) - set(WORD.findall(cut))):
            before = re.sub(rb"\b" + word + rb"\b", rnd.choice(others), cut[:start])
            which.append(i)
            changed.append(before + cut[start:])
            spans.append((start, start + len(word)))
    return which, changed, spans


def measure(lm: TilelliLM, n_stories: int) -> tuple[dict, dict]:
    """(data, results): what was read, and every number of the record."""
    context, hear = (
        lm.config.model.context,
        (lm.config.model.conv_width - 1) * len(lm.blocks),
    )
    texts = list(islice(stories(SEED), n_stories))
    cuts, story_of = windows(texts, context)
    counted = list(islice(stories(COUNT_SEED), 1000))
    (common, rare), (common_any, rare_any) = (
        common_and_rare(counted),
        common_and_rare(counted, letters_only=False),
    )
    bigrams, bigrams_next, bigrams_any, references, th = (Groups() for _ in range(5))
    for i, cut in enumerate(cuts):
        for place, pair in enumerate(pairwise(cut), start=1):
            if pair in common or pair in rare:
                bigrams.add(pair in common, i, place)
                bigrams_next.add(pair in common, i, place - 1)
            if pair in common_any or pair in rare_any:
                bigrams_any.add(pair in common_any, i, place)
            if bytes(pair) == b"th":
                th.add(True, i, place)
        for start, word, kind in words_of(cut, hear):
            for letter in range(len(word)):
                place = start + letter
                references.add(
                    kind == "far", i, place, (len(word), letter, 4 * place // context)
                )
    which, changed, spans = swapped_windows(cuts, hear)
    swapped = Groups()
    for row, (i, span) in enumerate(zip(which, spans, strict=True)):
        for place in range(*span):
            swapped.add(True, i, place)
            swapped.add(False, len(cuts) + row, place)
    stories_of = np.concatenate([story_of, story_of[which]])
    results = {
        "stories": n_stories,
        "windows": len(cuts),
        "swapped_windows": len(changed),
        "hear_bytes": hear,
        "common_pairs": len(common),
        "rare_pairs": len(rare),
    }
    *values, bits = read(lm, cuts + changed)
    rng = np.random.default_rng(SEED)
    for name, value in zip(("weight", "output"), values, strict=True):
        results[name] = {
            "use": [
                [round(float(x), 5) for x in row]
                for row in value[: len(cuts)].mean((0, 1))
            ],
            "bigrams": bigrams.compare(value[..., CONV], stories_of, rng),
            "bigrams_next": bigrams_next.compare(value[..., CONV], stories_of, rng),
            "bigrams_any": bigrams_any.compare(value[..., CONV], stories_of, rng),
            "references": references.compare(value[..., ATTENTION], stories_of, rng),
            "swapped": swapped.compare(value[..., ATTENTION], stories_of, rng),
            "th": th.compare(value[..., CONV], stories_of, rng),
        }
    results["swapped_bits"] = swapped.compare(bits[..., None], stories_of, rng)["mean"]
    results["claims"] = {
        name: {end: results["weight"][name]["mean"][end] for end in ("low", "high")}
        for name in ("bigrams", "references", "th")
    }
    results["claims"]["references"]["applies"] = (
        results["swapped_bits"]["high"] <= -WORTH
    )
    data = "\0".join(texts).encode()
    return {
        "source": f"stories, seed {SEED}, the first {n_stories}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "train_bytes": 0,
        "val_bytes": len(data),
    }, results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tilelli/nano")
    parser.add_argument("--stories", type=int, default=400)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "book" / "runs" / "router-claim"
    )
    parser.add_argument(
        "--write", action="store_true", help="put the verdicts into book/claims.yml"
    )
    args = parser.parse_args()
    started, clock = now(), time.perf_counter()
    lm = TilelliLM.from_pretrained(args.model)
    data, results = measure(lm, args.stories)
    digest = weights_digest(args.model)
    bytes_read = (
        results["windows"] + results["swapped_windows"]
    ) * lm.config.model.context
    wall = time.perf_counter() - clock
    record = new_record(
        args.out.name,
        "eval",
        config=lm.config.to_dict(),
        seed=SEED,
        data=data,
        steps=0,
        bytes_seen=bytes_read,
        started=started,
        finished=now(),
        wall_s=round(wall, 3),
        bytes_per_s=round(bytes_read / wall, 1),
        notes=f"{args.model}: which pathway for which bytes; the measured values are in results.json.",
    )
    write_run(
        args.out, record, {"model": args.model, "weights_sha256": digest, **results}
    )
    for half in (
        "bigrams",
        "bigrams_next",
        "bigrams_any",
        "references",
        "swapped",
        "th",
    ):
        row = results["weight"][half]["mean"]
        print(
            f"{half:13}{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"effect {row['effect']:+.2f}" if "effect" in row else "",
        )
    row = results["swapped_bits"]
    print(
        f"swapped_bits {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    )
    for claim in load_claims():
        if claim["ours"] and claim["ours"].get("run") == args.out.name:
            verdict = judge(claim)
            changed = args.write and claims.write_verdict(claim["id"], verdict)
            print(f"{claim['id']}: {verdict}" + (" (written)" if changed else ""))
    print(f"{wall:.0f} s")


if __name__ == "__main__":
    main()
