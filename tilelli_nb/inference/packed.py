"""Packed models: ternary weights five to a byte, the other matrices as int8 rows, in
one safetensors file.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.attention import TopKAttention
from ..model.ternary import TernaryLinear, pack, unpack
from .prepared import int8_rows

VERSION = 1  # of what the names and numbers below mean

# what follows the name of a weight
CODES, ROWS, SCALE = ".codes", ".rows", ".scale"


def pack_weights(lm: nn.Module) -> dict[str, Tensor]:
    """Makes the tensors of a packed file. A name stands for itself (fp32), for codes
    and one scale, or for rows and scales.

    Codes are exact, and their scale stays beside them in fp32. The latent weights that
    training moves are not kept.
    """
    tensors = {}
    for name, tensor in lm.state_dict().items():
        tensors[name] = tensor.detach().float()
    for path, module in lm.named_modules():
        name = f"{path}.weight"
        if isinstance(module, TernaryLinear):
            del tensors[name]
            codes, scale = module.codes()
            tensors[name + CODES] = pack(codes)
            tensors[name + SCALE] = scale.float()
        elif isinstance(module, (nn.Embedding, nn.Linear, TopKAttention)):
            codes, scales = int8_rows(tensors.pop(name))
            tensors[name + ROWS] = codes
            tensors[name + SCALE] = scales
    return tensors


def unpack_weights(
    tensors: dict[str, Tensor], about: dict[str, Any], lm: nn.Module
) -> dict[str, Tensor]:
    """The inverse: named fp32 weights for `lm`, whose ternary layers are told that
    theirs are never rounded again. `about` is what the file says about packing.

    Raises CheckpointError for a version that this package does not know.
    """
    if about["version"] != VERSION:
        raise CheckpointError(
            f"the model is packed as version {about['version']}, and this package "
            f"reads {VERSION}",
            "update tilelli-nb, or pack the model again with this version",
        )
    weights, ternary = {}, []
    for name, tensor in tensors.items():
        if not name.endswith((CODES, ROWS, SCALE)):
            weights[name] = tensor
    for path, module in lm.named_modules():
        name = f"{path}.weight"
        scale = tensors.get(name + SCALE)
        # A part that is missing is not named here: load_weights says which it was.
        if scale is not None and name + CODES in tensors:
            codes = unpack(tensors[name + CODES], module.weight.shape)
            weights[name] = codes * scale
            ternary.append(module)
        elif scale is not None and name + ROWS in tensors:
            weights[name] = tensors[name + ROWS] * scale[:, None]
    for module in ternary:  # now that nothing can fail any more
        module.packed = True
    return weights


def are_codes(weight: Tensor) -> bool:
    """Whether a ternary matrix is alpha * codes, as in a packed model: all that is not
    0 has one size, and some is 0.
    """
    sizes = weight.abs()
    alpha = sizes.max()
    is_zero = sizes == 0
    return bool(alpha > 0 and is_zero.any() and (is_zero | (sizes == alpha)).all())


def trainable_weights(
    tensors: dict[str, Tensor], about: dict[str, Any], lm: nn.Module
) -> dict[str, Tensor]:
    """Named fp32 weights of a packed file that `lm` can be trained from, with new
    latent weights behind the codes. They are drawn from a fixed seed.

    Raises CheckpointError for a version that this package does not know.
    """
    weights = unpack_weights(tensors, about, lm)
    generator = torch.Generator().manual_seed(0)
    for path, module in lm.named_modules():
        if isinstance(module, TernaryLinear) and module.packed:
            name = f"{path}.weight"
            weights[name] = draw_latent(weights[name], generator)
            del module.packed  # as in the class: the weight is a latent one again
    return weights


def draw_latent(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Latent weights with the codes and the scale of `weight` = alpha * codes: spread
    evenly over all the values that round to their code.

    Were they all at alpha * codes, each would be far from the next code, and training
    would have to push for long before the first one changed.
    """
    codes, alpha = weight.sign(), weight.abs().max()
    # whatever PyTorch's defaults are, it is drawn where the generator is
    drawn = torch.rand(
        weight.shape, generator=generator, device="cpu", dtype=torch.float32
    )
    even = drawn.to(weight.device)
    # 0 up to half of alpha, on both sides; a little less, so that none is rounded away
    zeros = (2 * even - 1) * 0.49 * alpha
    # 1 and -1 from there on, as far as it takes for a mean size of alpha
    is_zero = codes == 0
    nearest = 0.51 * alpha
    rest = (
        alpha * weight.numel() - zeros[is_zero].abs().sum() - nearest * (~is_zero).sum()
    )
    others = codes * (nearest + even * rest / even[~is_zero].sum())
    return torch.where(is_zero, zeros, others)
