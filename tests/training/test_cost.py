"""The bill: prices and where they come from, the limit, the arithmetic of a training
step, plans and the ledger.
"""

import math

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tilelli_nb import TilelliLM, load_config
from tilelli_nb.cli.app import app
from tilelli_nb.errors import ConfigError
from tilelli_nb.storage.records import new_record
from tilelli_nb.training.cost import (
    TABLE,
    Bill,
    Card,
    all_records,
    expected_speed,
    find_card,
    hourly_price,
    ledger,
    load_cards,
    mfu,
    plan,
    planned_bytes_per_s,
    recipe_bill,
    report,
    training_flops,
)

LITE = load_config("lite_10m")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path):
    for name in ("TILELLI_PRICES", "TILELLI_USD_PER_HOUR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def record(
    name="run", gpu_name=None, started="2026-11-24T12:00:00Z", config=LITE, **values
):
    values = {
        "steps": 100,
        "bytes_seen": 3_276_800,
        "wall_s": 36.0,
        "bytes_per_s": 100_000.0,
    } | values
    return new_record(
        name,
        values.pop("kind", "train"),
        config=config.to_dict(),
        gpu_name=gpu_name,
        **values,
    ) | {"started": started}


# --- the table ---


@pytest.mark.parametrize(
    "said, card",
    [
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("a6000", "RTX A6000"),
        ("RTX A6000", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe"),
        ("Tesla T4", "T4"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA B200", "B200"),
        # other cards, slices of a card and no card are not taken for one that they only
        # begin like
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 3060 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A10G", None),
        ("", None),
        (None, None),
        ("H100", None),
    ],
)
def test_a_card_is_found_by_the_name_that_the_driver_gives(said, card):
    found = find_card(said)
    assert (found and found.name) == card


def test_the_table_is_whole():
    cards = load_cards()
    assert len({card.name for card in cards}) == len(cards)
    for card in cards:
        assert find_card(card.name) == card and 6 <= card.memory_gb <= 200
        assert bool(card.read) == (card.usd_per_hour is not None), (
            "a price has a date, and no date stands without one"
        )
    prices = {
        card.name: card.usd_per_hour for card in cards if card.usd_per_hour is not None
    }
    assert prices == {
        "RTX A6000": 0.40,
        "A100 PCIe": 1.59,
        "H100 SXM": 3.49,
        "H200": 4.59,
    }
    assert find_card("T4").bf16_tflops is None  # it has no bfloat16


def test_a_table_of_your_own(tmp_path, monkeypatch):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "cards:\n- {name: Mine, pattern: My .*, memory_gb: 8, bf16_tflops: 10, usd_per_hour: 0.05}\n"
    )
    assert load_cards(path) == [Card("Mine", "My .*", 8, 10, 0.05)]
    monkeypatch.setenv("TILELLI_PRICES", str(path))
    assert hourly_price("My card") == 0.05 and find_card("NVIDIA H200") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cards: 3",
        "cards: [{name: A}]",
        "cards: [{nam: A}]",
        ": :",
        "[1]",
        "cards: [{name: A, pattern: A, memory_gb: 8, usd_per_hour: free}]",
        "cards: [{name: A, pattern: A, memory_gb: -8}]",
        "cards: [{name: A, pattern: '(', memory_gb: 8}]",
    ],
)
def test_a_damaged_table_is_one_clear_error(text, tmp_path, monkeypatch):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_cards(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="none.yaml is no table of prices"):
        load_cards(tmp_path / "none.yaml")


# --- the price and the bill ---


def test_who_knows_the_price(monkeypatch):
    assert (
        hourly_price("NVIDIA RTX A6000") == 0.40
        and hourly_price("NVIDIA RTX A6000", 0.33) == 0.33
    )
    assert (
        hourly_price(None) is None
        and hourly_price("NVIDIA L4") is None
        and hourly_price(None, 0) == 0
    )
    monkeypatch.setenv("TILELLI_USD_PER_HOUR", "0.79")
    assert hourly_price("NVIDIA RTX A6000") == 0.79 and hourly_price(None, 2) == 2
    for bad in ("-1", "nan", "inf", "forty cents"):
        monkeypatch.setenv("TILELLI_USD_PER_HOUR", bad)
        with pytest.raises(ConfigError, match="not a price an hour\n.*0.40"):
            hourly_price(None)
    with pytest.raises(ConfigError):
        hourly_price(None, -0.1)


def test_the_bill_ticks():
    bill = Bill(1.80, max_dollars=0.5)  # half a cent every ten seconds
    assert bill.spent(0) == 0 and bill.spent(600) == pytest.approx(0.30)
    assert bill.at_end(600, 0.25) == pytest.approx(1.20) and bill.at_end(10, 0) is None
    assert not bill.is_over(999.9) and bill.is_over(1000)
    assert bill.text(840, 0.2) == "$0.42 of about $2.10" and bill.text(60, 0) == "$0.03"


def test_a_bill_goes_on_from_what_the_parts_before_have_cost():
    """Ten hours at 0.40, then one at 3.00 on two cards."""
    bill = Bill(3.00, max_dollars=10)
    bill.go_on({"usd": 4.0, "wall_s": 36_000}, processes=2)
    assert bill.spent(0) == 4 and bill.spent(2 * 3600) == 10
    assert not bill.is_over(7199) and bill.is_over(7200)
    old = Bill(3.00)  # the first checkpoints did not keep it: today's price
    old.go_on({"wall_s": 3600}, processes=2)
    assert old.spent(0) == 6
    free = Bill(None)
    free.go_on({"usd": None, "wall_s": 3600}, processes=1)
    assert free.spent(60) is None


def test_a_bill_outlives_a_part_without_a_price():
    """An hour at 1.20, an hour at home, and back."""
    home = Bill(None)
    home.go_on({"usd": 1.2, "wall_s": 3600}, processes=1)
    assert home.spent(3600) == 1.2
    back = Bill(1.20)
    back.go_on({"usd": home.spent(3600), "wall_s": 7200}, processes=1)
    assert back.spent(0) == 1.2 and back.spent(3600) == pytest.approx(2.4)


def test_without_a_price_there_is_no_bill():
    bill = Bill(None)
    assert (
        bill.spent(10),
        bill.at_end(10, 0.5),
        bill.is_over(1e9),
        bill.text(10, 0.5),
    ) == (None, None, False, "")
    with pytest.raises(ConfigError, match="--usd-per-hour"):
        Bill(None, max_dollars=1)
    for bad in (-1, math.nan):
        with pytest.raises(ConfigError):
            Bill(1.0, max_dollars=bad)
    assert not Bill(0.0, max_dollars=1).is_over(1e9) and not Bill(0.4).is_over(1e9)


# --- the arithmetic of training ---


def test_the_operations_of_nano_by_hand():
    # a byte of a block: q, k, v 3 x 128 x 128 = 49,152; FFN 2 x 128 x 512 = 131,072;
    # router 384; convolution 640; scores and weighted values 2 x 256 x 128 = 65,536:
    # 246,784. Four blocks 987,136 and the output's 32,768.
    assert (
        training_flops(load_config("nano").model) == 6 * (987_136 + 32_768) == 6_119_424
    )


@pytest.mark.parametrize("name", ["nano", "lite_10m", "vanilla_10m"])
def test_the_operations_as_pytorch_counts_them(name, monkeypatch):
    """Exactly, but for the backward pass of the convolution: the counter takes a
    depthwise one for a full one.
    """
    # blocks of visible keys would be counted as less
    monkeypatch.setenv("TILELLI_ATTENTION", "reference")
    config = load_config(name)
    lm, T = TilelliLM(config).train(), config.model.context
    x = torch.randint(256, (1, T))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        lm(x, x).backward()
    counts = {
        str(operation): count / T
        for operation, count in counter.get_flop_counts()["Global"].items()
    }
    if name != "vanilla_10m":
        assert counts.pop("aten.convolution_backward") > 2 * counts["aten.convolution"]
        counts["aten.convolution"] *= 3
    assert sum(counts.values()) == training_flops(config.model)


def test_the_recipes_run_used_four_percent_of_its_card():
    speed = 50_000 * 128 * 256 / (5 * 3600)  # 91,022 bytes a second
    # 66,170,880 operations a byte (PyTorch's count above) of 154.8e12 a second
    assert mfu(speed, LITE.model, "NVIDIA RTX A6000") == pytest.approx(
        0.038909, rel=1e-4
    )
    assert (
        mfu(speed, LITE.model, None) is None
        and mfu(speed, LITE.model, "Tesla T4") is None
    )


# --- plans ---


def test_a_plan_with_your_own_speed_and_price():
    p = plan(LITE, "NVIDIA L4", usd_per_hour=0.5, bytes_per_s=91_022.222222)
    assert (
        p.hours == pytest.approx(5)
        and p.usd == pytest.approx(2.5)
        and (p.card, p.why) == ("L4", "given")
    )
    p = plan(LITE.with_train(steps=10_000), None, bytes_per_s=91_022.222222)
    assert p.hours == pytest.approx(1) and p.usd is None and p.card == "this machine"
    with pytest.raises(ConfigError):
        plan(LITE, None, bytes_per_s=0)


def test_an_assumed_speed_says_so_and_a_measured_one_takes_its_place():
    speed = 0.04 * 154.8e12 / 66_170_880
    assert planned_bytes_per_s(find_card("A6000"), LITE.model) == pytest.approx(speed)
    p = plan(LITE, "A6000")
    assert (
        p.bytes_per_s == pytest.approx(speed)
        and p.why == "assumed: 4% of the peak"
        and p.usd_per_hour == 0.40
    )
    assert p.usd == pytest.approx(0.40 * 50_000 * 32_768 / speed / 3600)

    others = [
        record("nano-run", "NVIDIA RTX A6000", config=load_config("nano")),
        record("other-card", "NVIDIA H200"),
        record("bench", "NVIDIA RTX A6000", kind="bench"),
        record("killed", "NVIDIA RTX A6000", bytes_per_s=None),
    ]
    assert expected_speed("A6000", LITE.model, others)[0] == pytest.approx(speed)
    mine = [
        record(
            "new", "NVIDIA RTX A6000", "2026-12-02T00:00:00Z", bytes_per_s=250_000.0
        ),
        record("old", "NVIDIA RTX A6000", "2026-12-01T00:00:00Z"),
    ]
    assert expected_speed("A6000", LITE.model, others + mine) == (
        250_000.0,
        "measured: new",
    )
    # two cards read 250,000 bytes a second together: each was used for 125,000 x
    # 66,170,880 of its 154.8e12 operations
    two = record(
        "two",
        "NVIDIA RTX A6000",
        "2026-12-03T00:00:00Z",
        bytes_per_s=250_000.0,
        mfu=0.0534325,
    )
    assert expected_speed("A6000", LITE.model, [*mine, two])[0] == pytest.approx(
        125_000, rel=1e-4
    )
    assert (
        expected_speed("T4", LITE.model)
        == expected_speed(None, LITE.model)
        == (None, "not known: measure it")
    )
    assert plan(LITE, "T4").usd is None and plan(LITE, "T4").hours is None


# --- the ledger ---


def test_the_ledger_lists_training_runs_in_their_order():
    gpu = record(
        "b",
        "NVIDIA H200",
        "2026-12-02T00:00:00Z",
        wall_s=1800.0,
        usd_per_hour=4.59,
        usd=2.295,
        mfu=0.2,
    )
    rows = ledger(
        [gpu, record("a"), record("c", kind="bench"), record("d", wall_s=None)]
    )
    assert [row["name"] for row in rows] == ["a", "b"] and rows[1] is gpu


def test_every_training_record_of_the_book_is_in_it():
    records = all_records()
    trained = {r["name"] for r in records if r["kind"] in ("train", "sft")}
    assert trained and {row["name"] for row in ledger(records)} == trained


def test_the_recipes_bill():
    assert recipe_bill() == {
        "data": 0,
        "pretraining": 2,
        "chat SFT": 0.5,
        "metacognition": 1.05,
        "buffer": 3,
    }
    assert round(sum(recipe_bill().values())) == 7


def test_the_report_has_the_plan_the_runs_and_the_recipe():
    text = "\n".join(report(LITE, "NVIDIA RTX A6000", bytes_per_s=91_022.222222))
    assert (
        "50,000 steps of 32,768 bytes, 66.2 MFLOP a byte" in text
        and "the recipe: data $0.00" in text
    )
    assert "RTX A6000                91,022     5.0    0.40    2.00  given" in text
    text = "\n".join(report(LITE))
    assert "\nnano-stories  " in text  # a run of the book
    assert all(
        f"\n{card['name']} " in text
        for card in yaml.safe_load(TABLE.read_text())["cards"]
    )
    with pytest.raises(
        ConfigError, match="'H1000' is not in the table of cards\n.*H100 SXM"
    ):
        list(report(LITE, "H1000"))


def test_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        app(
            [
                "cost",
                "--config",
                "nano",
                "--gpu",
                "h200",
                "--usd-per-hour",
                "3",
                "--steps",
                "1000",
            ]
        )
    out = capsys.readouterr().out
    # 0.04 x 989e12 / 6,119,424 = 6,464,661 bytes a second; 2,048,000 bytes at that
    # speed are gone in a blink
    assert not stop.value.code and "nano: 1,000 steps of 2,048 bytes" in out
    assert "H200                  6,464,661     0.0    3.00    0.00  assumed" in out
