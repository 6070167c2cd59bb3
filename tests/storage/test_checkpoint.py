"""Files that are whole or refused."""

import pickle
import random
import subprocess
import sys

import pytest
import torch

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.errors import CheckpointError
from tilelli_nb.storage.checkpoint import latest_valid, read_tensors, write_tensors

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


def test_any_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, TENSORS, {"step": 3})
    data = path.read_bytes()
    rng = random.Random(0)
    for position in range(len(data)):
        path.write_bytes(
            data[:position]
            + bytes([data[position] ^ (1 << rng.randrange(8))])
            + data[position + 1 :]
        )
        with pytest.raises(CheckpointError):
            read_tensors(path)


def test_any_truncation_is_refused(tmp_path):
    path = tmp_path / "f"
    write_tensors(path, TENSORS, {})
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 50, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read_tensors(path)


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


def test_weights_of_another_shape_are_refused(tmp_path):
    lm = TilelliLM(load_config("nano").with_model(n_blocks=1))
    other = TilelliLM(load_config("nano").with_model(n_blocks=1, d_model=64))
    with pytest.raises(CheckpointError, match="do not fit"):
        lm.load_weights(other.state_dict())


def test_the_newest_whole_checkpoint_is_used(tmp_path):
    for step in (10, 20, 30):
        write_tensors(
            tmp_path / f"step-{step:08d}.safetensors", TENSORS, {"step": step}
        )
    assert latest_valid(tmp_path)[1]["step"] == 30
    (tmp_path / "step-00000030.safetensors").write_bytes(b"half a fi")
    with pytest.warns(UserWarning, match="trying the one before"):
        assert latest_valid(tmp_path)[1]["step"] == 20
    assert latest_valid(tmp_path / "nothing") is None


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        TilelliLM.from_pretrained(tmp_path)


# What a first load costs, where nothing has been imported or done before

FIRST_LOAD = """
import sys, time
import torch
from tilelli_nb import TilelliLM
torch.set_num_threads(1)
start, before = time.process_time(), torch.get_rng_state()
lm = TilelliLM.from_pretrained(sys.argv[1])
spent = time.process_time() - start
assert torch.equal(torch.get_rng_state(), before), "loading drew random numbers"
assert "torch._dynamo" not in sys.modules, "loading imported the compiler"
print(spent)
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
def test_a_first_load_draws_nothing_and_takes_less_than_0_3_seconds(folders, form):
    """In seconds of the processor, so that a busy machine does not matter."""
    command = [sys.executable, "-c", FIRST_LOAD, str(folders[form])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3


def test_room_for_weights_is_filled_by_load_weights():
    config = load_config("nano").with_model(n_blocks=1)
    drawn, room = TilelliLM(config), TilelliLM(config, draw=False)
    room.load_weights(drawn.state_dict())
    for name, weight in room.state_dict().items():
        assert torch.equal(weight, drawn.state_dict()[name]), name
