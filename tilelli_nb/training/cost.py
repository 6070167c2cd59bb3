"""The bill: what a card costs an hour, what a run has cost so far, when it will be
done, and what others have cost.
"""

import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..config import Config, ModelConfig, require
from ..data.tokenizer import ByteTokenizer
from ..errors import ConfigError, DataError
from ..storage.records import load_record, runs_folder

TABLE = Path(__file__).with_name("prices.yaml")

# the recipe's run, 50,000 steps in five hours on an A6000, used this share of the
# card's peak
ASSUMED_MFU = 0.04


@dataclass(frozen=True)
class Card:
    """A graphics card as its data sheet has it; None is not known. Every field has its
    comment in training/prices.yaml.
    """

    name: str
    pattern: str
    memory_gb: float
    bf16_tflops: float | None = None
    usd_per_hour: float | None = None
    read: str = ""

    def __post_init__(self) -> None:
        re.compile(self.pattern)  # a broken one is an error now, not when it is used
        for value in (self.memory_gb, self.bf16_tflops or 0, self.usd_per_hour or 0):
            require(
                type(value) in (int, float) and 0 <= value < math.inf,
                f"{self.name}: {value!r} in the table",
                "give a number that is not negative, or null where it is not known",
            )


def load_cards(path: str | Path | None = None) -> list[Card]:
    """Reads the table of cards: the package's, or another file in its format that
    `path` or TILELLI_PRICES names. Raises ConfigError.
    """
    path = Path(path or os.environ.get("TILELLI_PRICES") or TABLE)
    # what a file can be instead of a table: missing, not text, not YAML, without
    # `cards`, with other fields, with a pattern that is none
    kinds = (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, re.error)
    try:
        return list(_read_cards(path, path.stat().st_mtime_ns))
    except kinds as error:
        raise ConfigError(
            f"{path.name} is no table of prices ({type(error).__name__})",
            "write it like tilelli_nb/training/prices.yaml: "
            "a list `cards` with name, pattern, memory_gb",
        ) from error


@lru_cache(maxsize=4)
def _read_cards(path: Path, changed: int) -> tuple[Card, ...]:
    """Reads a table once; `changed`, its time, makes a new version of it another
    entry of the cache.
    """
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))["cards"]
    return tuple(Card(**row) for row in rows)


def find_card(gpu_name: str | None) -> Card | None:
    """Finds the card that torch.cuda.get_device_name() or a person calls so; None when
    the table has none.
    """
    # the whole name must match: an "A100" is not every card that begins so
    for card in load_cards():
        if re.fullmatch(card.pattern, gpu_name or "", re.IGNORECASE):
            return card
    return None


def hourly_price(
    gpu_name: str | None, usd_per_hour: float | None = None
) -> float | None:
    """Returns dollars an hour: what is given, else TILELLI_USD_PER_HOUR, else the
    table's; None when nobody knows. Raises ConfigError for a price that is none.
    """
    if usd_per_hour is not None:
        return dollars(usd_per_hour, "a price an hour")
    setting = os.environ.get("TILELLI_USD_PER_HOUR")
    if setting:
        return dollars(setting, "a price an hour")
    card = find_card(gpu_name)
    return None if card is None else card.usd_per_hour


def dollars(value: Any, what: str) -> float:
    """Returns the value as a number of dollars. Raises ConfigError for anything that is
    not one; `what` says what it should have been.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    require(
        0 <= number < math.inf,  # false for nan, too
        f"{value!r} is not {what}",
        "give dollars as a number, like 0.40",
    )
    return number


class Bill:
    """What a run costs while it runs: its seconds times the price, and whether that is
    more than it may cost. Without a price (None) there is no bill.

    The seconds that its methods are given are those of the present part of the run;
    `before` is what the parts before it have cost, at the prices of their machines.
    """

    def __init__(
        self, usd_per_hour: float | None, max_dollars: float | None = None
    ) -> None:
        self.usd_per_hour = usd_per_hour
        self.before = 0.0
        self.max_dollars = math.inf  # no limit
        if max_dollars is not None:
            require(
                usd_per_hour is not None,
                "a limit in dollars needs a price",
                "give --usd-per-hour: what you pay for one card in an hour",
            )
            self.max_dollars = dollars(max_dollars, "a limit in dollars")

    def spent(self, seconds: float) -> float | None:
        """Returns the dollars so far."""
        if self.usd_per_hour is None:
            return self.before or None  # what other machines have cost stays
        return self.before + self.usd_per_hour * seconds / 3600

    def go_on(self, state: dict[str, Any], processes: int) -> None:
        """Goes on from what a checkpoint says of the parts before."""
        spent = state.get("usd")
        if spent is None:  # there was no price, or nothing that kept it: today's counts
            spent = self.spent(state["wall_s"] * processes)
        self.before = spent or 0.0

    def at_end(self, seconds: float, share_done: float) -> float | None:
        """Returns the dollars that the whole run will cost if the rest of it goes like
        the share that is done, 0 to 1; None while nothing is done.
        """
        if self.usd_per_hour is None or share_done <= 0:
            return None
        return self.spent(seconds) / share_done

    def is_over(self, seconds: float) -> bool:
        """Says whether the limit is reached."""
        if self.usd_per_hour is None:
            return False
        return self.spent(seconds) >= self.max_dollars

    def text(self, seconds: float, share_done: float) -> str:
        """Returns "$0.42 of about $1.98" for a progress line, or nothing without a
        price.
        """
        if self.usd_per_hour is None:
            return ""
        so_far = f"${self.spent(seconds):.2f}"
        end = self.at_end(seconds, share_done)
        return so_far if end is None else f"{so_far} of about ${end:.2f}"


def time_and_price(run: Any) -> dict[str, Any]:
    """Returns what the record of a run says of its time and its price."""
    # The rate is of training alone: without evaluation, samples and files.
    seen = run.step * run.step_bytes
    bytes_per_s = seen / run.clock.training_seconds()
    used = None
    if run.record["gpu_name"] == run.gpu_name:  # else its parts had different cards
        used = mfu(bytes_per_s / run.processes.world, run.config.model, run.gpu_name)
    return {
        "wall_s": round(run.clock.seconds(), 3),
        "bytes_per_s": round(bytes_per_s, 1),
        "mfu": used,
        "usd_per_hour": run.bill.usd_per_hour,
        "usd": run.bill.spent(run.gpu_seconds()),
    }


def training_flops(model: ModelConfig) -> float:
    """Counts the floating-point operations for each byte that a model is trained on:
    forward, and twice as many backward.

    A multiply-add counts as 2. Counted are the matrices, the convolution and, for each
    byte, scores and weighted values over the whole context: top-k attention computes
    every score too, and the causal half is not taken off. That is the convention of
    Chowdhery et al. 2022, arXiv:2204.02311, and of PyTorch's counter. Elementwise work
    is not counted.
    """
    D = model.d_model
    T = model.context
    # multiply-adds of a block for one byte
    block = 3 * D * D  # q, k, v
    block += 2 * model.ffn_expand * D * D  # up and down
    block += 2 * T * D  # scores and weighted values
    if model.block == "vanilla":
        block += D * D  # output projection of its attention
    else:
        block += 3 * D + model.conv_width * D  # router, convolution
    # the embeddings are looked up, not multiplied; the output is a matrix
    forward = 2 * (model.n_blocks * block + ByteTokenizer.vocab_size * D)
    return 3 * forward


def mfu(bytes_per_s: float, model: ModelConfig, gpu_name: str | None) -> float | None:
    """Returns the model FLOP utilisation: the share of the card's bf16 peak that goes
    into the model; None for an unknown card.
    """
    card = find_card(gpu_name)
    if card is None or not card.bf16_tflops:
        return None
    return bytes_per_s * training_flops(model) / (card.bf16_tflops * 1e12)


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
    """Makes the plan of a whole training run on a card, at a speed and a price of your
    own or at those that are known. Raises ConfigError for a speed of 0 or less.
    """
    # a speed of your own is believed
    why = "given"
    if bytes_per_s is None:
        bytes_per_s, why = expected_speed(gpu_name, config.model, records)
    require(
        bytes_per_s is None or 0 < bytes_per_s < math.inf,
        f"{bytes_per_s} bytes a second",
        "give a speed above 0",
    )
    price = hourly_price(gpu_name, usd_per_hour)
    # without a speed there are no hours, without a price no dollars
    hours = None
    usd = None
    if bytes_per_s is not None:
        total = config.train.steps * config.train.batch * config.model.context
        hours = total / bytes_per_s / 3600
        if price is not None:
            usd = hours * price
    card = find_card(gpu_name)
    name = card.name if card else gpu_name or "this machine"
    return Plan(name, bytes_per_s, why, price, hours, usd)


def expected_speed(
    gpu_name: str | None, model: ModelConfig, records: Iterable[dict] = ()
) -> tuple[float | None, str]:
    """Returns bytes a second and why: as in the newest record of this model on this
    card, else an assumption, and it says so.
    """
    card = find_card(gpu_name)
    if card is None:
        return None, "not known: measure it"
    # the newest first: code gets faster
    for record in sorted(records, key=lambda record: record["started"], reverse=True):
        if record["kind"] != "train" or not record["bytes_per_s"]:
            continue
        if find_card(record["gpu_name"]) != card:
            continue
        if ModelConfig(**record["config"]["model"]) != model:
            continue
        why = f"measured: {record['name']}"
        # several cards share the record's bytes_per_s, but its mfu is that of one
        if record["mfu"]:
            return planned_bytes_per_s(card, model, record["mfu"]), why
        return record["bytes_per_s"], why
    if card.bf16_tflops is None:
        return None, "not known: measure it"
    return planned_bytes_per_s(card, model), f"assumed: {ASSUMED_MFU:.0%} of the peak"


def planned_bytes_per_s(
    card: Card, model: ModelConfig, mfu: float = ASSUMED_MFU
) -> float:
    """Returns bytes a second at an assumed share of the card's peak."""
    return mfu * card.bf16_tflops * 1e12 / training_flops(model)


def recipe_bill() -> dict[str, float]:
    """Returns what the published recipe says each of its parts costs, in dollars."""
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))["recipe"]


def ledger(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of training runs that have ended, in the order in which they
    began.
    """
    # a run that was killed has no time yet; benchmarks are not training
    ended = []
    for record in records:
        if record["kind"] in ("train", "sft") and record["wall_s"]:
            ended.append(record)
    return sorted(ended, key=lambda record: record["started"])


def all_records() -> list[dict[str, Any]]:
    """Reads the records in runs/ of the working directory and, where the book is, in
    book/runs; each run once.
    """
    folders = [Path("runs")]
    with suppress(DataError):  # installed without the book
        folders.append(runs_folder())
    # a run that lies in both folders has the same name and start
    found = {}
    for folder in folders:
        for path in sorted(folder.glob("*/run.json")):
            try:
                record = load_record(path.parent)
                list(ledger_lines([record]))
            # one damaged record must not hide the others
            except (DataError, KeyError, TypeError, ValueError) as error:
                why = getattr(error, "problem", f"{type(error).__name__}: {error}")
                warnings.warn(f"{path}: {why}; left out", stacklevel=2)
                continue
            found[record["name"], record["started"]] = record
    return list(found.values())


def report(
    config: Config,
    gpu_name: str | None = None,
    usd_per_hour: float | None = None,
    bytes_per_s: float | None = None,
) -> Iterator[str]:
    """Yields the lines that `tilelli cost` prints: the plan of a run on one card or on
    all, then the ledger and the recipe. Raises ConfigError for an unknown card.
    """
    all_names = [card.name for card in load_cards()]
    require(
        not gpu_name or bytes_per_s or find_card(gpu_name),
        f"{gpu_name!r} is not in the table of cards",
        f"give --bytes-per-s, or one of {', '.join(all_names)}",
    )
    # one line for the card that is meant, or for a speed that belongs to none
    names = [gpu_name] if gpu_name or bytes_per_s else all_names
    records = all_records()
    step_bytes = config.train.batch * config.model.context
    yield (
        f"{config.name}: {config.train.steps:,} steps of {step_bytes:,} bytes, "
        f"{training_flops(config.model) / 1e6:.1f} MFLOP a byte"
    )
    yield f"{'card':<20}{'bytes/s':>11}{'hours':>8}{'$/hour':>8}{'$':>8}  speed"
    for name in names:
        yield plan_line(plan(config, name, usd_per_hour, bytes_per_s, records))
    runs = list(ledger_lines(records))
    if runs:
        heads = f"{'MB read':>9}{'hours':>8}{'MFU':>7}{'$':>8}"
        yield f"\n{'runs so far':<28}{'card':<24}{heads}"
    yield from runs
    bill = recipe_bill()
    parts = [f"{part} ${usd:.2f}" for part, usd in bill.items()]
    yield f"\nthe recipe: {', '.join(parts)}: ${sum(bill.values()):.2f}"


def plan_line(plan: Plan) -> str:
    """Returns a plan as a line of the table."""
    return (
        f"{plan.card:<20}{known(plan.bytes_per_s, ',.0f'):>11}"
        f"{known(plan.hours, '.1f'):>8}{known(plan.usd_per_hour, '.2f'):>8}"
        f"{known(plan.usd, '.2f'):>8}  {plan.why}"
    )


def ledger_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of the ledger."""
    for record in ledger(records):
        yield ledger_line(record)


def ledger_line(record: dict[str, Any]) -> str:
    """Returns a run as a line of the ledger."""
    return (
        f"{record['name']:<28}{record['gpu_name'] or record['device']:<24}"
        f"{record['bytes_seen'] / 1e6:>9,.1f}{record['wall_s'] / 3600:>8.2f}"
        f"{known(record['mfu'], '.1%'):>7}{known(record['usd'], '.2f'):>8}"
    )


def known(number: float | None, form: str) -> str:
    """Returns the number in this form, or "-" for None."""
    return "-" if number is None else format(number, form)
