"""Has attention a choice? Of some models: how far a query's scores lie apart, and how
many queries give their best byte less than 99% of the softmax; before q and k are made
smaller, and after. For chapter 4, going deeper.

    python book/experiments/attention_choice.py "NAME=MODEL" ... [--out
        book/runs/attention-choice]

A MODEL is a bundled name or a folder. The text is the chapter's: stories that no model
has read.
"""

import argparse
import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tilelli_nb import TilelliLM
from tilelli_nb.data.stories import stories
from tilelli_nb.storage.records import new_record, write_run
from tilelli_nb.training.soften import soften_attention

SCALE = 0.05  # of q and k, as in sft_10m.yaml
FIRST = 64  # queries before it see few bytes
SURE = 0.99  # of the softmax: who gives its best byte more has no choice left


def scores_of(lm: TilelliLM, ids: Tensor) -> Tensor:
    """The scores of all heads: ids (1, T) -> (blocks, H, T, T)."""
    h, found = lm.token(ids) + lm.position.weight[: ids.shape[1]], []
    for block in lm.blocks:
        qkv = F.linear(block.norm(h), block.attention.weight)
        qkv = qkv.unflatten(-1, (3, block.attention.n_heads, -1))
        q, k, _ = qkv.permute(2, 0, 3, 1, 4)  # (1, H, T, D_h) each
        found.append((q @ k.mT / math.sqrt(q.shape[-1]))[0])
        h, _ = block(h)
    return torch.stack(found)


@torch.no_grad()
def look(lm: TilelliLM, text: bytes) -> dict[str, Any]:
    """For each block the standard deviation of its scores and the share of queries that
    have a choice; and the bits per byte of the text.
    """
    context = lm.context
    ids = torch.tensor(list(text[:context]))[None]
    scores = scores_of(lm, ids)[..., FIRST:, :]  # (blocks, H, T - FIRST, T)
    visible = torch.ones(context, context, dtype=torch.bool).tril()[FIRST:]
    keep = lm.config.model.keep
    kept = scores.masked_fill(~visible, -math.inf).topk(keep).values
    best = kept.softmax(-1)[..., 0]
    return {
        "spread": [round(row[:, visible].std().item(), 2) for row in scores],
        "choice": [round(x, 4) for x in (best < SURE).double().mean((1, 2)).tolist()],
        "bits_per_byte": round(lm.score(text[:4096]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--out", type=Path, default=Path("book/runs/attention-choice"))
    args = parser.parse_args()
    text = "\0".join(islice(stories(seed=404), 8)).encode()
    record = new_record(
        args.out.name,
        "eval",
        seed=404,
        notes=f"Scores of attention as they are, and with q and k times {SCALE}.",
    )
    results = {}
    for named in args.models:
        name, _, model = named.partition("=")
        lm = TilelliLM.from_pretrained(model)
        found = {"as it is": look(lm, text)}
        soften_attention(lm, SCALE)
        found["softened"] = look(lm, text)
        results[name] = found
        print(name, found)
    write_run(args.out, record, results)


if __name__ == "__main__":
    main()
