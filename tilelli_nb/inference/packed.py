"""Packed models: ternary weights five to a byte, the other matrices as int8 rows, in
one safetensors file.
"""

from typing import Any

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
    weights = {}
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
            module.packed = True
        elif scale is not None and name + ROWS in tensors:
            weights[name] = tensors[name + ROWS] * scale[:, None]
    return weights
