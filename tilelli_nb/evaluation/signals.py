"""How sure a model is of what it reads: numbers from one pass over a prompt, and the
controls that know nothing.

Of every signal but the controls, higher is surer: entropies and the abstain head's
probability carry a minus sign, and a "neg_" in their names.
"""

import copy
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.tokenizer import ByteTokenizer
from ..errors import EvaluationError
from ..inference.scoring import in_float64
from ..model.router import Router, router_confidence

FRAMING = b"USER: "  # what a prompt in the chat template begins with


def router_signals(p: Tensor) -> dict[str, float]:
    """What the router's p (blocks, T, 3) says of a text of T bytes.

    `router_conf` is 1 - H / ln 3, averaged over bytes and blocks, with the entropy H in
    nats; `router_conf_0` and so on are those of the single blocks.

    `router_entropy_variance` is the variance of H over the bytes (the mean squared
    distance from its mean: divided by T), averaged over the blocks, and beside it that
    of each block. Higher counts as surer: a router that reads each byte its own way has
    found something in the text. That direction is this book's choice, as the published
    design names none.
    """
    p = in_float64(p)
    confidence = router_confidence(p).mean(1)  # (blocks,)
    entropy = torch.special.entr(p).sum(-1)  # (blocks, T)
    variance = entropy.var(1, correction=0)  # (blocks,)
    found = {}
    named = {"router_conf": confidence, "router_entropy_variance": variance}
    for name, blocks in named.items():
        found[name] = float(blocks.mean())
        for number, value in enumerate(blocks.tolist()):
            found[f"{name}_{number}"] = value
    return found


def output_signals(logits: Tensor) -> dict[str, float]:
    """What the prediction of the next byte says, from logits (T, 256): each at the last
    place, where the answer begins, and as the mean over all T places.

    `max_softmax` is the largest probability, `margin` its lead over the second largest,
    `neg_entropy` minus the entropy in nats.
    """
    probabilities = in_float64(logits).softmax(-1)  # (T, 256)
    top, second = probabilities.topk(2).values.unbind(-1)  # (T,) each
    places = {
        "max_softmax": top,
        "margin": top - second,
        "neg_entropy": -torch.special.entr(probabilities).sum(-1),
    }
    found = {}
    for name, values in places.items():
        found[f"{name}_last"] = float(values[-1])
        found[f"{name}_mean"] = float(values.mean())
    return found


def controls(prompt: bytes, seed: int = 0) -> dict[str, float]:
    """Signals that know nothing of the question: a random number that depends on the
    seed and the prompt, the length in bytes, and whether it has the chat framing.

    Their direction has no meaning. What one of them can tell apart (an AUROC far from
    0.5, on either side), a signal may have told by the same means.
    """
    return {
        "random": random.Random(f"{seed}-{prompt.hex()}").random(),
        "length": float(len(prompt)),
        "has_framing": 1.0 if prompt.startswith(FRAMING) else 0.0,
    }


@torch.inference_mode()
def signals(
    lm, prompt: bytes, abstain: Callable[[Tensor], float] | None = None
) -> dict[str, float]:
    """All signals of a model for a prompt, by name, from one pass over its bytes:
    nothing is generated, nothing kept between two prompts.

    `abstain` is a head that was trained to know what to refuse. It gets the last
    block's output at the last byte, (D,), before the final norm, and returns its
    probability that the question ought to be refused: `neg_abstain_p` is minus that.
    Without a head there is no such signal, and without a router (in vanilla blocks)
    none of the router's.

    Raises EvaluationError for an empty prompt, or one longer than the context.
    """
    if not 1 <= len(prompt) <= lm.context:
        raise EvaluationError(
            f"a prompt of {len(prompt)} bytes",
            f"one pass takes 1 to {lm.context}: shorten it, or fill it",
        )
    ids = ByteTokenizer().encode(prompt)
    h, p = lm.hidden(torch.tensor([ids], device=lm.device))  # (1, T, D)
    found = {} if p is None else router_signals(p[0])
    found |= output_signals(lm.logits(h)[0])
    if abstain is not None:
        found["neg_abstain_p"] = -float(abstain(h[0, -1]))
    return found


def with_random_router(lm, seed: int = 0):
    """A copy of a model whose routers' weights are drawn anew, from normal
    distributions with the standard deviations that they had: it mixes as strongly as
    before, and has learned nothing.
    """
    other = copy.deepcopy(lm)
    generator = torch.Generator().manual_seed(seed)
    for module in other.modules():
        if isinstance(module, Router):
            weight = module.weight.data
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(drawn * in_float64(weight).std().item())
    return other


def measure(
    lm,
    prompts: Sequence[bytes],
    abstain: Callable[[Tensor], float] | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """All signals and all controls of a model for some prompts: a column (n,) by name.

    The controls are those of `controls`, and the router's two signals from the same
    model with a random router, `random_router_conf` and
    `random_router_entropy_variance`.
    """
    columns: dict[str, list[float]] = {}
    randomly_routed = with_random_router(lm, seed)
    for prompt in prompts:
        found = signals(lm, prompt, abstain) | controls(prompt, seed)
        blind = signals(randomly_routed, prompt)
        for name in ("router_conf", "router_entropy_variance"):
            if name in blind:
                found[f"random_{name}"] = blind[name]
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return columns
