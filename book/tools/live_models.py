"""The models that talk in the pages: every bundled one, as a packed file beside the
pages, and a list of them with sizes and checksums.

Standard library alone, because the environment that renders the site has no PyTorch. A
model that is bundled packed is copied; one with latent weights is packed here, by the
rules of `tilelli_nb/inference/packed.py` (chapter 13), and a test compares the two.
"""

import hashlib
import json
import math
import struct
from array import array
from pathlib import Path
from typing import NamedTuple

WEIGHTS = Path(__file__).parents[2] / "tilelli_nb" / "weights"
FOLDER = "models"  # under _static
VERSION = 1  # of the packed form, as in packed.py
SMALLEST_SCALE = 1e-5  # as in ternary.py
TINY = 2.0**-126  # the smallest normal fp32

# which matrices are kept how; all else stays fp32
TERNARY = (".up.weight", ".down.weight")
ROWS = ("token.weight", "position.weight", "output.weight", ".attention.weight")


class Raw(NamedTuple):
    """A tensor as a safetensors file holds it."""

    dtype: str  # F32, BF16, I8 or U8
    shape: list[int]
    data: bytes


def read(data: bytes) -> tuple[dict[str, Raw], dict]:
    """The tensors of a safetensors file and the book's own metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = header.pop("__metadata__")["tilelli"]
    about = json.loads(text[text.index("{") :])  # a checksum may stand before it
    numbers = data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = Raw(entry["dtype"], entry["shape"], numbers[start:stop])
    return tensors, about


def write(tensors: dict[str, Raw], about: dict) -> bytes:
    """A safetensors file with the checksum of `tilelli_nb/storage/checkpoint.py`."""
    names = {"F32": "float32", "I8": "int8", "U8": "uint8"}
    metadata = json.dumps(about, sort_keys=True)
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        digest.update(f"\n{name} torch.{names[dtype]} {shape}\n".encode() + data)
    text = f"sha256 {digest.hexdigest()} {metadata}"
    header: dict = {"__metadata__": {"tilelli": text}}
    place = 0
    # numbers of four bytes first, so that each starts at a multiple of four
    order = sorted(tensors, key=lambda name: (tensors[name].dtype != "F32", name))
    for name in order:
        dtype, shape, data = tensors[name]
        offsets = [place, place + len(data)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        place += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    numbers = b"".join(tensors[name].data for name in order)
    return len(head).to_bytes(8, "little") + head + numbers


def floats(tensor: Raw) -> array:
    """The numbers of an F32 or BF16 tensor."""
    data = tensor.data
    if tensor.dtype == "BF16":  # the upper half of an fp32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        data = bytes(wide)
    return array("f", data)


def fp32(value: float) -> float:
    """The nearest number that fp32 has."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def ternarize(values: array) -> tuple[list[int], float]:
    """Codes -1, 0 and 1, and their scale, the mean of |w|."""
    scale = fp32(max(math.fsum(map(abs, values)) / len(values), SMALLEST_SCALE))
    # half rounds to even, so exactly a half becomes 0
    limit = scale / 2
    codes = [(value > limit) - (value < -limit) for value in values]
    return codes, scale


def pack(codes: list[int]) -> bytes:
    """Five codes a byte, the first lowest, each as the digit code + 1."""
    digits = [code + 1 for code in codes] + [1] * (-len(codes) % 5)
    fives = zip(*(digits[i::5] for i in range(5)), strict=True)
    return bytes(a + 3 * b + 9 * c + 27 * d + 81 * e for a, b, c, d, e in fives)


def int8_rows(values: array, width: int) -> tuple[bytes, bytes]:
    """Whole numbers of which each row's largest is 127, and the rows' fp32 scales."""
    codes, scales = array("b"), array("f")
    for start in range(0, len(values), width):
        row = values[start : start + width]
        scale = fp32(max(fp32(max(map(abs, row)) / 127), TINY))
        scales.append(scale)
        quotients = array("f", [value / scale for value in row])
        codes.extend(map(round, quotients))  # half to even, as in PyTorch
    return codes.tobytes(), scales.tobytes()


def packed(data: bytes) -> bytes:
    """A model file in packed form; one that is packed comes back as it is."""
    tensors, about = read(data)
    if "packed" in about:
        return data
    out = {}
    for name, tensor in tensors.items():
        values = floats(tensor)
        if name.endswith(TERNARY):
            codes, scale = ternarize(values)
            bytes_of_codes = pack(codes)
            shape = [len(bytes_of_codes)]
            out[f"{name}.codes"] = Raw("U8", shape, bytes_of_codes)
            out[f"{name}.scale"] = Raw("F32", [], struct.pack("<f", scale))
        elif name.endswith(ROWS):
            rows, scales = int8_rows(values, tensor.shape[1])
            out[f"{name}.rows"] = Raw("I8", tensor.shape, rows)
            out[f"{name}.scale"] = Raw("F32", tensor.shape[:1], scales)
        else:
            out[name] = Raw("F32", tensor.shape, values.tobytes())
    about.pop("file_sha256", None)  # of the file that it was packed from
    return write(out, {**about, "packed": {"version": VERSION}})


def read_json(path: Path) -> dict | None:
    """What a JSON file holds, or None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def entry(folder: Path, data: bytes) -> dict:
    """What the pages have to know of a model before they fetch it."""
    sampling = read_json(folder / "generation_config.json") or {}
    greedy = sampling.get("do_sample") is False
    return {
        "name": folder.name,
        "file": f"{folder.name}.safetensors",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "temperature": 0 if greedy else sampling.get("temperature", 0.8),
        "chat": folder.name.endswith("-chat"),
        "gate": read_json(folder / "gate.json"),
    }


def write_models(target: Path, weights: Path = WEIGHTS) -> list[dict]:
    """Writes the packed files and models.json into the folder `target`, and returns the
    list. nano comes first: it is the smallest to fetch.
    """
    target.mkdir(parents=True, exist_ok=True)
    models = []
    for path in sorted(weights.glob("*/model.safetensors")):
        data = packed(path.read_bytes())
        model = entry(path.parent, data)
        (target / model["file"]).write_bytes(data)
        models.append(model)
    models.sort(key=lambda model: (model["bytes"], model["name"]))
    text = json.dumps({"models": models}, indent=1)
    (target / "models.json").write_text(text, encoding="utf-8")
    return models
