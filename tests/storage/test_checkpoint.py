"""Files that are whole or refused."""

import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from contextlib import suppress

import pytest
import safetensors.torch
import torch
from tiny_models import tiny

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.errors import CheckpointError
from tilelli_nb.pretrained import WEIGHTS
from tilelli_nb.storage.checkpoint import (
    latest_valid,
    read_tensors,
    weights_in,
    write_tensors,
)

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.tensor([1, 2, 255], dtype=torch.uint8),
}


def test_tensors_and_metadata_come_back(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, {"step": 3, "text": 'quotes " and \\ and é'})
    tensors, metadata = read_tensors(tmp_path / "f")
    assert metadata == {"step": 3, "text": 'quotes " and \\ and é'}
    assert tensors.keys() == TENSORS.keys() and all(
        torch.equal(tensors[k], TENSORS[k]) for k in TENSORS
    )
    assert [p.name for p in tmp_path.iterdir()] == ["f"]  # nothing temporary is left


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for i in range(10):
        write_tensors(tmp_path / str(i), TENSORS, {"a": 1, "b": {"c": 2}})
    assert len({(tmp_path / str(i)).read_bytes() for i in range(10)}) == 1


def sections(data: bytes) -> tuple[int, int]:
    """Where the header begins, and where the numbers do: worked out from the format."""
    return 8, 8 + struct.unpack("<Q", data[:8])[0]


def test_any_flipped_byte_is_refused_in_the_header_and_in_the_numbers(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, TENSORS, {"step": 3, "lr": 1e-05})
    data = path.read_bytes()
    _, numbers = sections(data)
    assert len(data) - numbers == 3 * 4 * 4 + 3  # both tensors are among them
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda t, about: (t, about | {"step": 4}),
        lambda t, about: (t | {"a": t["a"] + 1}, about),
        lambda t, about: (t | {"a": t["a"].view(4, 3)}, about),
        lambda t, about: (t | {"a": t["a"].view(torch.int32)}, about),
        lambda t, about: ({"c": t["a"], "b": t["b"]}, about),
        lambda t, about: ({"a": t["a"]}, about),
        lambda t, about: (t | {"c": torch.zeros(0)}, about),
    ],
    ids=["metadata", "numbers", "shape", "dtype", "name", "one-less", "one-more"],
)
def test_the_checksum_covers_everything_that_is_read_back(tmp_path, change):
    """The file of something else, with the checksum of the original put into it."""
    path = tmp_path / "f"
    found = []
    for tensors, about in ((TENSORS, {"step": 3}), change(TENSORS, {"step": 3})):
        write_tensors(path, tensors, about)
        data = path.read_bytes()
        start = data.index(b"sha256 ") + 7
        found.append((data, data[start : start + 64]))
    (_, first), (other, second) = found
    assert first != second
    path.write_bytes(other.replace(second, first))
    with pytest.raises(CheckpointError, match="checksum"):
        read_tensors(path)


def test_any_truncation_is_refused(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, TENSORS, {})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read_tensors(path)


def test_odd_tensors_come_back(tmp_path):
    """No elements, no dimensions, truth values, bf16, and memory with gaps."""
    odd = {
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(1.5, dtype=torch.float64),
        "bool": torch.tensor([True, False]),
        "bf16": torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16),
        "turned": torch.arange(6).view(2, 3).T,
        "weight": torch.nn.Parameter(torch.ones(2)),
    }
    write_tensors(tmp_path / "f", odd, {})
    found, _ = read_tensors(tmp_path / "f")
    for name, tensor in odd.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


# Files of other programs, and of before


def test_a_file_of_the_library_itself_loads_and_says_that_it_is_unchecked(tmp_path):
    others = {"format": "pt", "modelspec.hash_sha256": "0xab", "base": "tilelli"}
    for about in (None, {"format": "pt"}, others):
        safetensors.torch.save_file(TENSORS, tmp_path / "f", about)
        with pytest.warns(UserWarning, match="f carries no checksum"):
            tensors, metadata = read_tensors(tmp_path / "f")
        assert metadata == {} and tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_model_of_the_library_itself_loads_with_the_configuration_beside_it(tmp_path):
    lm = TilelliLM(load_config("nano").with_model(n_blocks=1))
    lm.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(dict(lm.state_dict()), file)
    with pytest.warns(UserWarning, match="no checksum"):
        again = TilelliLM.from_pretrained(tmp_path)
    assert again.config == lm.config
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, lm.state_dict()[name]), name
    for text in (None, "[]", "not JSON", '{"model_type": "bert"}'):
        (tmp_path / "config.json").unlink(missing_ok=True)
        if text:
            (tmp_path / "config.json").write_text(text)
        with (
            pytest.warns(UserWarning, match="no checksum"),
            pytest.raises(CheckpointError, match="what model .*\n.*config.json"),
        ):
            TilelliLM.from_pretrained(tmp_path)


def write_as_before(path, tensors, metadata):
    """The format of before: the sha256 of the whole file, written into it where 64
    zeros had stood.
    """
    about = json.dumps({**metadata, "file_sha256": "0" * 64}, sort_keys=True)
    data = safetensors.torch.save(tensors, {"tilelli": about})
    place = data.index(b"0" * 64)
    digest = hashlib.sha256(data).hexdigest().encode()
    path.write_bytes(data[:place] + digest + data[place + 64 :])


def test_a_file_of_before_loads_without_a_warning_and_is_checked(tmp_path, recwarn):
    path = tmp_path / "f"
    write_as_before(path, TENSORS, {"step": 3, "lr": 1e-05})
    tensors, metadata = read_tensors(path)
    assert metadata == {"step": 3, "lr": 1e-05}
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    data = path.read_bytes()
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)
    assert not recwarn.list


def test_the_bundled_weights_are_of_before_and_load_bit_for_bit(recwarn):
    path = WEIGHTS / "nano" / "model.safetensors"
    data = path.read_bytes()
    assert b"file_sha256" in data[: sections(data)[1]]
    expected = safetensors.torch.load(data)  # by the library alone
    tensors, metadata = read_tensors(path)
    assert "file_sha256" not in metadata and metadata["config"]["name"] == "nano"
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
    assert not recwarn.list


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    """save_model writes two files. Whatever instant it is killed at, what is there
    loads: as it was, or as it is now.
    """
    old = TilelliLM(load_config("nano").with_model(n_blocks=1), seed=1)
    new = TilelliLM(load_config("nano").with_model(n_blocks=2), seed=2)
    real, seen = os.replace, []

    class Killed(BaseException):
        pass

    def instants(kill_at):
        calls = []

        def replace(source, target):
            calls.append(target)
            if len(calls) == kill_at:
                raise Killed
            real(source, target)

        return replace

    for kill_at in (1, 2, 3):
        old.save_pretrained(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr("os.replace", instants(kill_at))
            with suppress(Killed):
                new.save_pretrained(tmp_path)
        seen.append(TilelliLM.from_pretrained(tmp_path).config.model.n_blocks)
    assert seen == [1, 2, 2]


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    folder = tmp_path / "model"
    folder.mkdir()
    for write in (
        lambda p: torch.save({"w": torch.ones(2)}, p),
        lambda p: p.write_bytes(pickle.dumps(Bomb())),
    ):
        write(folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="pickle"):
            TilelliLM.from_pretrained(folder)


def test_a_truncated_file_is_never_called_a_pickle(tmp_path):
    """A safetensors file begins with the length of its header. One header in 32 has
    a length whose first byte is 128, as that of a pickle is.
    """
    first_bytes = set()
    for spaces in range(0, 256, 8):
        path = tmp_path / f"{spaces}.safetensors"
        write_tensors(path, TENSORS, {"note": " " * spaces})
        data = path.read_bytes()
        first_bytes.add(data[0])
        path.write_bytes(data[:-10])
        with pytest.raises(CheckpointError, match="damaged"):
            read_tensors(path)
    assert 128 in first_bytes and len(first_bytes) == 32


def test_weights_of_another_shape_are_refused(tmp_path):
    lm = TilelliLM(load_config("nano").with_model(n_blocks=1))
    other = TilelliLM(load_config("nano").with_model(n_blocks=1, d_model=64))
    with pytest.raises(CheckpointError, match="do not fit"):
        lm.load_weights(other.state_dict())


def test_the_latest_valid_checkpoint_is_used(tmp_path):
    for step in (10, 20, 30):
        write_tensors(
            tmp_path / f"step-{step:08d}.safetensors", TENSORS, {"step": step}
        )
    assert latest_valid(tmp_path)[1]["step"] == 30
    (tmp_path / "step-00000030.safetensors").write_bytes(b"half a fi")
    with pytest.warns(UserWarning, match="trying the one before"):
        assert latest_valid(tmp_path)[1]["step"] == 20
    safetensors.torch.save_file(TENSORS, tmp_path / "step-00000040.safetensors")
    with pytest.warns(UserWarning, match="no checkpoint of a run; trying the one"):
        assert latest_valid(tmp_path)[1]["step"] == 20
    assert latest_valid(tmp_path / "nothing") is None


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        TilelliLM.from_pretrained(tmp_path)


def test_no_name_is_not_the_folder_one_stands_in(tmp_path, monkeypatch):
    TilelliLM(load_config("nano")).save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert TilelliLM.from_pretrained(".").config.name == "nano"
    with pytest.raises(CheckpointError, match="the name of the model is empty"):
        TilelliLM.from_pretrained("")


def test_the_weights_among_the_tensors_of_a_checkpoint():
    a, b = TENSORS["a"], TENSORS["b"]
    found = weights_in({"model.x.weight": a, "optimizer.0.model.": b, "generator": b})
    assert list(found) == ["x.weight"] and found["x.weight"] is a


# What would make a first load slow, where nothing has been imported or done before.
# How long it takes is measured by tests/benchmarks/first_load.py.

FIRST_LOAD = """
import sys
import torch
from tilelli_nb import TilelliLM
before = torch.get_rng_state()
lm = TilelliLM.from_pretrained(sys.argv[1])
assert torch.equal(torch.get_rng_state(), before), "loading drew random numbers"
assert "torch._dynamo" not in sys.modules, "loading imported the compiler"
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models of random weights, of the sizes and in the forms that are bundled."""
    place = tmp_path_factory.mktemp("models")
    lm = TilelliLM(load_config("lite_10m"))
    lm.save_packed(place / "packed")
    lm.save_pretrained(place / "bf16", dtype=torch.bfloat16)
    return {"nano": "tilelli/nano", "packed": place / "packed", "bf16": place / "bf16"}


@pytest.mark.parametrize("form", ["nano", "packed", "bf16"])
def test_a_first_load_draws_nothing_and_imports_no_compiler(folders, form):
    """Either would take more than a second, for weights that are replaced at once."""
    command = [sys.executable, "-c", FIRST_LOAD, str(folders[form])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_room_for_weights_is_filled_by_load_weights():
    config = load_config("nano").with_model(n_blocks=1)
    drawn, room = TilelliLM(config), TilelliLM(config, draw=False)
    room.load_weights(drawn.state_dict())
    for name, weight in room.state_dict().items():
        assert torch.equal(weight, drawn.state_dict()[name]), name


def test_a_model_is_saved_at_home_where_the_path_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lm = TilelliLM(load_config("nano").with_model(n_blocks=1))
    lm.save_pretrained("~/whole")
    lm.save_packed("~/packed")
    for name in ("whole", "packed"):
        assert (tmp_path / name / "model.safetensors").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["./tilelli/nano", "./tilelli/mine"])
def test_a_folder_here_is_not_taken_for_a_bundled_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = tiny(dtype=torch.float32)
    lm.save_pretrained(name)
    assert TilelliLM.from_pretrained(name).config == lm.config
