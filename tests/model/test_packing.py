"""Five ternary codes in a byte: the values of the contract, all 243 bytes both ways,
odd sizes, and what is refused.

Nothing here is computed with the package's own powers of three: bytes are read and
written as base-3 text.
"""

import random
from itertools import product

import pytest
import torch

import tilelli_nb
from tilelli_nb.errors import CheckpointError
from tilelli_nb.model.ternary import pack, ternarize, unpack

GOLDEN = [
    ([1, 0, -1, 1, 1], [221]),
    ([-1] * 5, [0]),
    ([1] * 5, [242]),
    ([0, 1], [124]),
    ([0] * 5, [121]),
    ([], []),
    ([0] * 6, [121, 121]),
    ([-1], [120]),
    ([1, 0, -1, 1, 1, 0, 1], [221, 124]),
]


def as_text(codes):
    """The digits as a number is written, highest first: int(..., 3) then reads them."""
    return "".join("012"[code + 1] for code in reversed(codes))


def expected_bytes(codes):
    filled = [*codes, *[0] * (-len(codes) % 5)]
    return [int(as_text(filled[i : i + 5]), 3) for i in range(0, len(filled), 5)]


@pytest.mark.parametrize("codes, packed", GOLDEN, ids=str)
def test_golden(codes, packed):
    made = pack(torch.tensor(codes, dtype=torch.int8))
    assert made.dtype == torch.uint8 and made.tolist() == packed == expected_bytes(
        codes
    )
    back = unpack(torch.tensor(packed, dtype=torch.uint8), len(codes))
    assert back.dtype == torch.int8 and back.tolist() == codes


def test_all_243_bytes_both_ways():
    rows = list(product((-1, 0, 1), repeat=5))
    packed = pack(torch.tensor(rows))
    assert packed.tolist() == [int(as_text(row), 3) for row in rows]
    assert sorted(packed.tolist()) == list(range(243))
    assert unpack(packed, (243, 5)).tolist() == [list(row) for row in rows]
    for byte in range(243):
        one = torch.tensor([byte], dtype=torch.uint8)
        codes = unpack(one, 5)
        assert int(as_text(codes.tolist()), 3) == byte and pack(codes).tolist() == [
            byte
        ]


@pytest.mark.parametrize("length", [*range(1, 23), 99, 100, 101, 1000])
def test_any_length(length):
    rng = random.Random(length)
    codes = [rng.choice((-1, 0, 1)) for _ in range(length)]
    packed = pack(torch.tensor(codes))
    assert packed.shape == (-(-length // 5),) and packed.tolist() == expected_bytes(
        codes
    )
    assert unpack(packed, length).tolist() == codes


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 7), (2, 3, 4), (5, 0), (1,), ()], ids=str
)
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64],
    ids=str,
)
def test_shapes_and_types(shape, dtype):
    codes = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )
    back = unpack(pack(codes), shape)
    assert back.shape == codes.shape and torch.equal(back.to(dtype), codes)


def test_a_transposed_matrix_is_read_row_by_row():
    codes = torch.tensor([[1, 0, -1], [0, 1, 1]])
    assert pack(codes.T).tolist() == expected_bytes([1, 0, 0, 1, -1, 1])
    assert torch.equal(unpack(pack(codes.T), (3, 2)), codes.T.to(torch.int8))


def test_codes_and_scale_give_back_the_weight_that_was_used():
    w = torch.randn(40, 33, generator=torch.Generator().manual_seed(0))
    codes, scale = ternarize(w)
    back = unpack(pack(codes), codes.shape)
    assert torch.equal(back * scale, codes * scale)


def test_ternarizing_again_shrinks_the_scale_by_the_share_of_zeros():
    codes, scale = ternarize(
        torch.randn(40, 33, generator=torch.Generator().manual_seed(0)).double()
    )
    again, smaller = ternarize(codes * scale)
    assert torch.equal(again, codes)
    assert smaller.item() == pytest.approx(
        scale.item() * (1 - (codes == 0).double().mean().item())
    )


@pytest.mark.parametrize(
    "bad", [[2.0], [0.5], [-2.0], [float("nan")], [255.0], [0.0, 1.0, 3.0]], ids=str
)
def test_what_is_no_code_is_refused(bad):
    with pytest.raises(CheckpointError, match="other than -1, 0 and 1") as error:
        pack(torch.tensor(bad))
    assert "ternarize" in error.value.fix


@pytest.mark.parametrize("byte", range(243, 256))
def test_a_byte_above_242_is_refused(byte):
    with pytest.raises(CheckpointError, match=f"a byte of {byte} .*242") as error:
        unpack(torch.tensor([0, byte, 1], dtype=torch.uint8), 15)
    assert "damaged" in error.value.fix


@pytest.mark.parametrize("count", [0, 5, 11, 16, (2, 2), (4, 4)], ids=str)
def test_a_wrong_size_is_refused(count):
    packed = pack(torch.tensor([1, 0, -1, 1, 1, 0, 1, 1, 0, -1]))  # 10 codes, 2 bytes
    with pytest.raises(CheckpointError, match="codes, five to a byte") as error:
        unpack(packed, count)
    assert "shape" in error.value.fix


@pytest.mark.parametrize("count", [6, 7, (3, 3)], ids=str)
def test_a_size_that_cuts_codes_off_is_refused(count):
    packed = pack(torch.tensor([1, 0, -1, 1, 1, 0, 1, 1, 0, -1]))
    with pytest.raises(CheckpointError, match="behind"):
        unpack(packed, count)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float32], ids=str)
def test_bytes_are_uint8(dtype):
    with pytest.raises(CheckpointError, match=str(dtype)):
        unpack(torch.tensor([0], dtype=dtype), 5)


def test_the_package_exports_them():
    assert tilelli_nb.pack is pack and tilelli_nb.unpack is unpack
