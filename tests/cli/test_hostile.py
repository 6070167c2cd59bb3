"""Everything a reader can do wrong, or a machine can do to them: one clear message, and
nothing is lost.

Each case is a function that must raise a TilelliError whose message says what was wrong
and what to do. The messages are printed as a table at the end of the test run.
"""

import json
import math
import os
import resource
from contextlib import contextmanager

import huggingface_hub
import pytest
import torch
from test_train import TEXT, assert_same_run, small

from tilelli_nb import (
    ByteTokenizer,
    TilelliError,
    TilelliLM,
    load_config,
    open_shards,
    prepare_shards,
)
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.training.loop import train


def config_file(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_config(path)


def with_corpus(folder, text, name="mine.txt"):
    (folder / name).write_text(text)
    return prepare_corpus(folder / name, folder / "shards")


def damaged_shards(folder, change):
    prepare_shards(TEXT, folder / "shards", "cats")
    path = folder / "shards" / "train-00000.bin"
    path.write_bytes(change(path.read_bytes()))
    return open_shards(folder / "shards")


def damaged_model(folder, change):
    small().save_pretrained(folder / "model")
    path = folder / "model" / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    return TilelliLM.from_pretrained(folder / "model")


def pickle_as_model(folder):
    (folder / "model").mkdir()
    torch.save({"weight": torch.ones(2)}, folder / "model" / "model.safetensors")
    return TilelliLM.from_pretrained(folder / "model")


def parent_is_a_file(folder):
    (folder / "file").write_text("in the way")
    return train(
        small(),
        prepare_shards(TEXT, folder / "shards", "cats"),
        folder / "file" / "run",
        progress=False,
    )


def nan_in_the_loss(folder):
    lm = small()
    lm.output.weight.data[0, 0] = math.nan
    return train(
        lm,
        prepare_shards(TEXT, folder / "shards", "cats"),
        folder / "run",
        progress=False,
    )


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]


CASES = {
    "unknown configuration key": (
        lambda d: config_file(d, "model:\n  head_count: 4\n"),
        "n_heads|the keys here are",
    ),
    "misspelt configuration key": (
        lambda d: config_file(d, "train:\n  warmup_ration: 0.1\n"),
        "warmup_ratio",
    ),
    "value of the wrong type": (
        lambda d: config_file(d, "model:\n  keep: many\n"),
        "model.keep = 'many' is a str",
    ),
    "keep above the context": (
        lambda d: config_file(d, "model: {keep: 300}\n"),
        "keep to at most 256",
    ),
    "configuration that is not YAML": (
        lambda d: config_file(d, "a: [1\n"),
        "is not YAML",
    ),
    "empty corpus": (lambda d: with_corpus(d, ""), "."),
    "corpus of one document": (lambda d: with_corpus(d, "Only one."), "at least two"),
    "corpus shorter than the context": (
        lambda d: train(
            small(),
            with_corpus(d, '{"text": "short"}\n{"text": "shorter"}\n', "mine.jsonl"),
            d / "run",
            progress=False,
        ),
        "32 \\+ 1 at once",
    ),
    "missing path": (lambda d: prepare_corpus("nothing.txt"), "nothing.txt"),
    "misspelt corpus": (lambda d: prepare_corpus("storis"), "stories"),
    "unknown kind of file": (lambda d: with_corpus(d, "text", "mine.docx"), "docx"),
    "line that is not JSON": (
        lambda d: with_corpus(d, '{"text": "a"}\n{"text": \n', "mine.jsonl"),
        "line 2",
    ),
    "truncated shard": (
        lambda d: damaged_shards(d, lambda b: b[:-5]),
        "bytes instead of",
    ),
    "altered shard": (lambda d: damaged_shards(d, flip), "altered"),
    "flipped bit in a checkpoint": (lambda d: damaged_model(d, flip), "checksum"),
    "truncated checkpoint": (
        lambda d: damaged_model(d, lambda b: b[:1000]),
        "damaged",
    ),
    "checkpoint of another shape": (
        lambda d: small().load_weights(TilelliLM(load_config("nano")).state_dict()),
        "do not fit",
    ),
    "pickle as a checkpoint": (pickle_as_model, "pickle"),
    "token outside 0..255": (
        lambda d: ByteTokenizer().decode([65, 300]),
        "token 300 at position 1",
    ),
    "token outside 0..255 in a batch": (
        lambda d: small()(torch.tensor([[-1]])),
        "outside 0..255",
    ),
    "too many bytes at once": (
        lambda d: small()(torch.zeros(1, 33, dtype=torch.long)),
        "33 bytes at once",
    ),
    "unknown bundled model": (
        lambda d: TilelliLM.from_pretrained("tilelli/giant"),
        "train one",
    ),
    "misspelt folder of a run": (
        lambda d: (
            ((d / "runs" / "mine").mkdir(parents=True))
            or TilelliLM.from_pretrained("runs/mime")
        ),
        "there is no model 'runs/mime'; did you mean runs/mine",
    ),
    "folder in a folder that is not there": (
        lambda d: ((d / "runs").mkdir()) or TilelliLM.from_pretrained("runs/typo"),
        "there is no model 'runs/typo'",
    ),
    "unknown model": (
        lambda d: TilelliLM.from_pretrained("somebody/model"),
        "there is no model",
    ),
    "folder without a model": (lambda d: TilelliLM.from_pretrained(d), "no checkpoint"),
    "unwritable place": (parent_is_a_file, "cannot write"),
    "NaN in the loss": (nan_in_the_loss, "loss is nan"),
}


def unreachable(*args, **kwargs):
    """The hub, asked from a machine without a network."""
    raise ConnectionError("no route")


@pytest.mark.parametrize("name", CASES)
def test_one_clear_message(name, tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    case, expected = CASES[name]
    with pytest.raises(TilelliError, match=expected) as caught:
        case(tmp_path)
    assert caught.value.problem and caught.value.fix
    record_property("hostile", name)
    record_property(
        "told", " ".join(str(caught.value).split()).replace("What to do:", "->")
    )


@contextmanager
def full_disk(room: int):
    """No file of this process may grow beyond `room` bytes: what a full disk does,
    without filling one.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(
    tmp_path, record_property
):
    shards = prepare_shards(TEXT, tmp_path / "shards", "cats")
    train(small(), shards, tmp_path / "whole", progress=False)
    train(small(), shards, tmp_path / "run", stop_at=4, progress=False)
    before = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    with (
        full_disk(20_000),
        pytest.raises(
            TilelliError, match="cannot write step-00000008.safetensors"
        ) as caught,
    ):
        train(small(), shards, tmp_path / "run", resume=True, progress=False)
    assert (
        sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == before
    )
    train(small(), shards, tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    record_property("hostile", "full disk")
    record_property(
        "told", " ".join(str(caught.value).split()).replace("What to do:", "->")
    )


def test_a_full_disk_does_not_hurt_the_shards(tmp_path):
    with full_disk(1000), pytest.raises(TilelliError, match="cannot write"):
        prepare_shards(TEXT, tmp_path / "shards", "cats")
    assert (
        prepare_shards(TEXT, tmp_path / "shards", "cats").train.read().endswith(b"\0")
    )
    assert not list((tmp_path / "shards").glob("*.tmp"))


def test_a_saved_model_survives_a_failed_overwrite(tmp_path):
    lm = small()
    lm.save_pretrained(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    lm.output.weight.data.zero_()
    with (
        full_disk(1000),
        pytest.raises(TilelliError, match="cannot write model.safetensors"),
    ):
        lm.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.skipif(
    os.geteuid() == 0,
    reason="root may write into a read-only folder; the case above covers it",
)
def test_a_read_only_folder_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(TilelliError, match="cannot write"):
        train(
            small(),
            prepare_shards(TEXT, tmp_path / "shards", "cats"),
            tmp_path / "closed" / "run",
            progress=False,
        )


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_a_readers_own_file_trains_with_one_cell(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    texts = [f"{i}. {text}" for i in range(40) for text in TEXT]  # about 120 KB
    path = tmp_path / f"mine.{suffix}"
    if suffix == "txt":
        path.write_text("\n\n".join(texts))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            pyarrow.table({"text": texts, "id": list(range(len(texts)))}), path
        )
    record = train(small(), prepare_corpus(path), "runs/mine", progress=False)
    assert (
        record["finished"]
        and record["data"]["source"] == path.name
        and record["val_bpb"] < 9
    )
