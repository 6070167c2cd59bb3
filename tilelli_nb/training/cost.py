"""The bill: what a card costs an hour, what a run has cost so far, when it will be
done, and what others have cost.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..config import Config, ModelConfig, require
from ..errors import ConfigError, DataError
from ..storage.records import load_record, runs_folder

TABLE = Path(__file__).with_name("prices.yaml")


# the recipe's run, 50,000 steps in five hours on an A6000, used this share of the
# card's peak
ASSUMED_MFU = 0.04


VOCAB = 256


@dataclass(frozen=True)
class Card:
    """A graphics card as its data sheet has it; None is not known. Every field has its
    comment in data/prices.yaml.
    """

    name: str
    pattern: str
    memory_gb: float
    bf16_tflops: float | None = None
    usd_per_hour: float | None = None
    read: str = ""

    def __post_init__(self) -> None:
        re.compile(self.pattern)
        for value in (self.memory_gb, self.bf16_tflops or 0, self.usd_per_hour or 0):
            require(
                type(value) in (int, float) and 0 <= value < math.inf,
                f"{self.name}: {value!r} in the table",
                "give a number that is not negative, or null where it is not known",
            )


def load_cards(path: str | Path | None = None) -> list[Card]:
    """The table of cards: of the package, or of another file in its format that `path`
    or TILELLI_PRICES names.
    """
    path = Path(path or os.environ.get("TILELLI_PRICES") or TABLE)
    try:
        return list(_read_cards(path, path.stat().st_mtime_ns))
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        KeyError,
        TypeError,
        re.error,
    ) as error:
        raise ConfigError(
            f"{path.name} is no table of prices ({type(error).__name__})",
            "write it like tilelli_nb/data/prices.yaml: a list `cards` with name, pattern, memory_gb",
        ) from error


@lru_cache(maxsize=4)
def _read_cards(path: Path, changed: int) -> tuple[Card, ...]:
    return tuple(
        Card(**row) for row in yaml.safe_load(path.read_text(encoding="utf-8"))["cards"]
    )


def find_card(gpu_name: str | None) -> Card | None:
    """The card that torch.cuda.get_device_name() or a person calls so; None when the
    table has none.
    """
    matches = (
        card
        for card in load_cards()
        if re.fullmatch(card.pattern, gpu_name or "", re.IGNORECASE)
    )
    return next(matches, None)


def hourly_price(
    gpu_name: str | None, usd_per_hour: float | None = None
) -> float | None:
    """Dollars an hour: what is given, else TILELLI_USD_PER_HOUR, else the table's; None
    when nobody knows.
    """
    given = (
        usd_per_hour
        if usd_per_hour is not None
        else os.environ.get("TILELLI_USD_PER_HOUR") or None
    )
    if given is None:
        card = find_card(gpu_name)
        return card and card.usd_per_hour
    return dollars(given, "a price an hour")


def dollars(value: Any, what: str) -> float:
    """The value as a number of dollars. Raises ConfigError for anything that is not
    one.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    require(
        0 <= number < math.inf,
        f"{value!r} is not {what}",
        "give dollars as a number, like 0.40",
    )
    return number


class Bill:
    """What a run costs while it runs: its seconds times the price, and whether that is
    more than it may cost.
    """

    def __init__(
        self, usd_per_hour: float | None, max_dollars: float | None = None
    ) -> None:
        require(
            max_dollars is None or usd_per_hour is not None,
            "a limit in dollars needs a price",
            "give --usd-per-hour: what you pay for the machine in an hour",
        )
        self.usd_per_hour = usd_per_hour
        self.max_dollars = (
            math.inf
            if max_dollars is None
            else dollars(max_dollars, "a limit in dollars")
        )

    def spent(self, seconds: float) -> float | None:
        """Dollars so far."""
        return None if self.usd_per_hour is None else self.usd_per_hour * seconds / 3600

    def at_end(self, seconds: float, share_done: float) -> float | None:
        """Dollars that the whole run will cost if the rest of it goes like the share
        that is done; 0 < share <= 1.
        """
        return (
            None
            if self.usd_per_hour is None or share_done <= 0
            else self.spent(seconds) / share_done
        )

    def is_over(self, seconds: float) -> bool:
        """Whether the limit is reached."""
        return self.usd_per_hour is not None and self.spent(seconds) >= self.max_dollars

    def text(self, seconds: float, share_done: float) -> str:
        """For a progress line: "$0.42 of about $1.98", or nothing without a price."""
        if self.usd_per_hour is None:
            return ""
        end = self.at_end(seconds, share_done)
        return f"${self.spent(seconds):.2f}" + (
            f" of about ${end:.2f}" if end is not None else ""
        )


def training_flops(model: ModelConfig) -> float:
    """Floating-point operations for each byte that a model is trained on: forward, and
    twice as many backward.

    A multiply-add counts as 2. Counted are the matrices, the convolution and, for each
    byte, scores and weighted values over the whole context: top-k attention computes
    every score too, and the causal half is not taken off. That is the convention of
    Chowdhery et al. 2022, arXiv:2204.02311, and of PyTorch's counter. Elementwise work
    is not counted.
    """
    d, T = model.d_model, model.context
    matrices = (3 + 2 * model.ffn_expand) * d * d  # q, k, v; FFN up and down
    # projection; router, convolution
    matrices += d * d if model.block == "vanilla" else 3 * d + model.conv_width * d
    return 3 * 2 * (model.n_blocks * (matrices + 2 * T * d) + VOCAB * d)


def mfu(bytes_per_s: float, model: ModelConfig, gpu_name: str | None) -> float | None:
    """Model FLOP utilisation: the share of the card's bf16 peak that goes into the
    model; None for an unknown card.
    """
    card = find_card(gpu_name)
    return (
        bytes_per_s * training_flops(model) / (card.bf16_tflops * 1e12)
        if card and card.bf16_tflops
        else None
    )


class Plan(NamedTuple):
    """When a run will be done and how much it will cost; None is not known."""

    card: str
    bytes_per_s: float | None
    why: str
    usd_per_hour: float | None
    hours: float | None
    usd: float | None


def plan(
    config: Config,
    gpu_name: str | None = None,
    usd_per_hour: float | None = None,
    bytes_per_s: float | None = None,
    records: Iterable[dict] = (),
) -> Plan:
    """The plan of a whole training run on a card, at a speed and a price of your own or
    at those that are known.
    """
    why = "given"
    if bytes_per_s is None:
        bytes_per_s, why = expected_speed(gpu_name, config.model, records)
    require(
        bytes_per_s is None or bytes_per_s > 0,
        f"{bytes_per_s} bytes a second",
        "give a speed above 0",
    )
    price = hourly_price(gpu_name, usd_per_hour)
    total = config.train.steps * config.train.batch * config.model.context
    hours = bytes_per_s and total / bytes_per_s / 3600
    card = find_card(gpu_name)
    return Plan(
        card.name if card else gpu_name or "this machine",
        bytes_per_s,
        why,
        price,
        hours,
        None if hours is None or price is None else hours * price,
    )


def expected_speed(
    gpu_name: str | None, model: ModelConfig, records: Iterable[dict] = ()
) -> tuple[float | None, str]:
    """Bytes a second and why: the newest record of this model on this card, else an
    assumption, and it says so.
    """
    card = find_card(gpu_name)
    for r in sorted(records, key=lambda r: r["started"], reverse=True):
        if (
            card
            and r["kind"] == "train"
            and r["bytes_per_s"]
            and find_card(r["gpu_name"]) == card
            and ModelConfig(**r["config"]["model"]) == model
        ):
            per_card = (
                planned_bytes_per_s(card, model, r["mfu"])
                if r["mfu"]
                else r["bytes_per_s"]
            )
            # several cards share the record's bytes_per_s, not its mfu
            return per_card, f"measured: {r['name']}"
    if card is None or card.bf16_tflops is None:
        return None, "not known: measure it"
    return planned_bytes_per_s(card, model), f"assumed: {ASSUMED_MFU:.0%} of the peak"


def planned_bytes_per_s(
    card: Card, model: ModelConfig, mfu: float = ASSUMED_MFU
) -> float:
    """Bytes a second at an assumed share of the card's peak."""
    return mfu * card.bf16_tflops * 1e12 / training_flops(model)


def recipe_bill() -> dict[str, float]:
    """What the published recipe says each step costs, in dollars."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))["recipe"]


def ledger(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of training runs that have ended, in the order in which they
    began.
    """
    ended = (
        record
        for record in records
        if record["kind"] in ("train", "sft") and record["wall_s"]
    )
    return sorted(ended, key=lambda record: record["started"])


def all_records() -> list[dict[str, Any]]:
    """The records in runs/ of the working directory and, where the book is, in
    book/runs; each run once.
    """
    folders = [Path("runs")]
    with suppress(DataError):  # installed without the book
        folders.append(runs_folder())
    records = (
        load_record(path.parent)
        for folder in folders
        for path in sorted(folder.glob("*/run.json"))
    )
    return list(
        {(record["name"], record["started"]): record for record in records}.values()
    )


def report(
    config: Config,
    gpu_name: str | None = None,
    usd_per_hour: float | None = None,
    bytes_per_s: float | None = None,
) -> Iterator[str]:
    """The lines that `tilelli cost` prints: the plan of a run on one card or on all,
    then the ledger and the recipe.
    """

    def money(usd: float | None) -> str:
        return "-" if usd is None else f"{usd:.2f}"

    require(
        not gpu_name or bytes_per_s or find_card(gpu_name),
        f"{gpu_name!r} is not in the table of cards",
        f"give --bytes-per-s, or one of {', '.join(card.name for card in load_cards())}",
    )
    records, train = all_records(), config.train
    cards = (
        [gpu_name] if gpu_name or bytes_per_s else [card.name for card in load_cards()]
    )
    plans = [plan(config, card, usd_per_hour, bytes_per_s, records) for card in cards]
    yield (
        f"{config.name}: {train.steps:,} steps of {train.batch * config.model.context:,} bytes, "
        f"{training_flops(config.model) / 1e6:.1f} MFLOP a byte\n"
        f"{'card':<20}{'bytes/s':>11}{'hours':>8}{'$/hour':>8}{'$':>8}  speed"
    )
    for p in plans:
        speed, hours = (
            (f"{p.bytes_per_s:,.0f}", f"{p.hours:.1f}") if p.bytes_per_s else ("-", "-")
        )
        yield f"{p.card:<20}{speed:>11}{hours:>8}{money(p.usd_per_hour):>8}{money(p.usd):>8}  {p.why}"
    if rows := ledger(records):
        yield f"\n{'runs so far':<28}{'card':<24}{'MB read':>9}{'hours':>8}{'MFU':>7}{'$':>8}"
    for r in rows:
        share = "-" if r["mfu"] is None else f"{r['mfu']:.1%}"
        yield (
            f"{r['name']:<28}{r['gpu_name'] or r['device']:<24}{r['bytes_seen'] / 1e6:>9,.1f}"
            f"{r['wall_s'] / 3600:>8.2f}{share:>7}{money(r['usd']):>8}"
        )
    bill = recipe_bill()
    yield f"\nthe recipe: {', '.join(f'{part} ${usd:.2f}' for part, usd in bill.items())}: ${sum(bill.values()):.2f}"
