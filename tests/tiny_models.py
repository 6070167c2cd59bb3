"""Models small enough for a test, and the definition that decoding is held against."""

import torch

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.inference.sampling import window_start


def tiny(seed=0, dtype=torch.float64, **sizes):
    """A model of two blocks; a router, where there is one, is not at its even start."""
    config = load_config("nano").with_model(
        **{"d_model": 24, "n_blocks": 2, "n_heads": 3, "keep": 4, **sizes}
    )
    lm = TilelliLM(config, seed).to(dtype).eval()
    routed = lm.blocks if lm.config.model.block == "routed" else []
    for block in routed:
        block.router.weight.data.normal_(
            0, 0.5, generator=torch.Generator().manual_seed(seed + 1)
        )
    return lm


def random_ids(n, seed=0):
    return torch.randint(
        0, 256, (n,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


def oracle(lm, ids):
    """Logits (256,) after ids by the definition: the window read from scratch."""
    with torch.no_grad():
        return lm(
            torch.tensor([ids[window_start(len(ids), lm.config.model.context) :]])
        )[0, -1]
