"""Configurations: what is read, what is refused, and that the message names the way
out.
"""

import pytest

from tilelli_nb import load_config
from tilelli_nb.config import Config
from tilelli_nb.errors import ConfigError


def test_the_recipes_configuration():
    config = load_config("lite_10m")
    assert (
        config.model.d_model,
        config.model.n_blocks,
        config.model.n_heads,
        config.model.keep,
    ) == (384, 6, 8, 16)
    train = config.train
    assert (train.steps, train.batch * config.model.context) == (50_000, 32_768)
    assert (train.lr, train.weight_decay) == (3e-4, 0.01)
    assert (train.beta1, train.beta2, train.eps, train.clip, train.balance_weight) == (
        0.9,
        0.95,
        1e-8,
        1.0,
        0.01,
    )


def test_a_configuration_survives_its_dictionary():
    config = load_config("nano").with_train(lr=1e-2, steps=7).with_model(keep=3)
    assert Config.from_dict(config.to_dict()) == config
    assert (config.train.steps, config.train.lr, config.model.keep) == (7, 0.01, 3)


def test_numbers_that_yaml_reads_as_text_are_floats(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train:\n  lr: 3e-4\n  clip: 2\n")
    config = load_config(path)
    assert (config.name, config.train.lr, config.train.clip) == ("mine", 3e-4, 2.0)


@pytest.mark.parametrize(
    "text,expected",
    [
        (
            "model:\n  n_head: 4\n",
            r"unknown configuration key model\.n_head\n.*did you mean model\.n_heads\?",
        ),
        (
            "trian:\n  lr: 1\n",
            r"unknown configuration key trian\n.*did you mean train\?",
        ),
        ("model:\n  keep: sixteen\n", r"model\.keep = 'sixteen' is a str\n.*an int"),
        ("model:\n  keep: 2.5\n", r"model\.keep = 2\.5 is a float\n.*an int"),
        ("train:\n  lr: fast\n", r"train\.lr = 'fast' is a str\n.*a float"),
        (
            "model:\n  keep: 300\n",
            r"keep = 300 keys of a context of 256 bytes\n.*at most 256",
        ),
        ("model:\n  n_heads: 5\n", r"d_model = 384 does not divide into 5 heads"),
        ("model:\n  n_blocks: 0\n", r"model\.n_blocks = 0"),
        ("train:\n  steps: -1\n", r"train\.steps = -1"),
        ("train:\n  lr: 0\n", r"train\.lr = 0"),
        ("train:\n  beta2: 1.5\n", r"train\.beta2 = 1\.5"),
        ("train:\n  beta1: 1.0\n", r"train\.beta1 = 1\.0\n.*below 1"),
        ("train:\n  text_weight: -1.0\n", r"train\.text_weight = -1"),
        ("train:\n  qk_scale: 0.0\n", r"train\.qk_scale = 0"),
        ("model: 3\n", r"model = 3 is not a dict"),
        ("- 1\n", r"bad\.yaml holds list"),
        ("model: [\n", r"bad\.yaml is not YAML, line 2"),
    ],
)
def test_what_cannot_work_is_named_with_its_fix(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_config(path)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'lite_10m'"):
        load_config("lite10m")
