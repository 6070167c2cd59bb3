"""One experiment of chapter 12 from the model to its record: makes the variant for each
seed, measures what it knows and what that has cost, and says what the rule says.
"""

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import pretrained
from ..chat.pairs import accepts, is_refusal
from ..errors import EvaluationError
from ..files import write_atomic
from ..inference.chatting import Reply
from ..storage import records
from ..storage.checkpoint import MODEL_FILE, written_in
from ..training import cpu_tuning
from . import rule
from .experiments import Experiment, load_experiment
from .lessons import taught
from .probes import Probe, load_probes
from .signals import measure
from .statistics import Interval, auroc, bootstrap, share
from .teaching import Variant, Workshop

FRAMED, RAW = "matched", "raw"  # the two versions of a prompt
ALL = "all"  # beside the seven regimes: everything together
ASKED = 100  # held-out questions that are asked before and after
HELD_OUT_BYTES = 32_768
# those with an interval in the record; of the others a value at most
MEASURED = (
    "router_conf",
    "router_entropy_variance",
    "max_softmax_last",
    "max_softmax_mean",
    "neg_abstain_p",
    "margin_last",
    "neg_entropy_last",
    "random_router_conf",
    "length",
    "has_framing",
)
DIGITS = 5  # of every number in a record

# three times the same piece of 2 to 30 characters
LOOP = re.compile(r"(.{2,30}?)\1\1", re.DOTALL)

Tables = dict[str, dict[str, Any]]  # signal -> regime -> interval, or None


# ---- what an answer is worth


def loops(reply: Reply) -> bool:
    """Whether an answer never ended, or says a piece three times in a row."""
    ended = bool(reply.spoken) and reply.spoken[-1].byte == 0
    return not ended or LOOP.search(reply.text) is not None


def price(lm, text: bytes, probes: Sequence[Probe]) -> tuple[dict[str, Any], list]:
    """What a variant costs, and its replies to the probes: bits per byte of held-out
    text; of a hundred held-out questions with an answer the share that is right and
    that is refused; of all answers the share that loops.
    """
    replies = [lm.chat(probe.prompt) for probe in probes]
    asked = [pair for pair in taught().phrasings if not pair.history][:ASKED]
    answers = [lm.chat(pair.question) for pair in asked]
    right = [
        accepts(pair.answer, reply.text)
        for pair, reply in zip(asked, answers, strict=True)
    ]
    found = {
        "bits_per_byte": lm.score(text),
        "right": share(right),
        "refused": share([is_refusal(reply.text) for reply in answers]),
        "looping": share([loops(reply) for reply in [*replies, *answers]]),
    }
    return {name: round(value, DIGITS) for name, value in found.items()}, replies


# ---- what the signals are worth


class Measured(NamedTuple):
    """All columns of a variant: version -> regime -> cases of the rule."""

    cases: dict[str, dict[str, rule.Cases]]
    columns: dict[str, dict[str, list[float]]]  # version -> signal -> (n,)
    right: list[bool]  # (n,), in the order of the probes


def measure_all(
    variant: Variant, probes: Sequence[Probe], right: list[bool], seed: int
) -> Measured:
    """Every signal on every probe, bare and in the format of the chat."""
    prompts = {
        FRAMED: [probe.in_chat for probe in probes],
        RAW: [probe.raw for probe in probes],
    }
    columns, cases = {}, {}
    for version, texts in prompts.items():
        found = measure(variant.lm, texts, variant.head.probability, seed)
        columns[version], cases[version] = found, {}
        for regime in rule.REGIMES:
            rows = [n for n, probe in enumerate(probes) if probe.regime == regime]
            cases[version][regime] = rule.Cases(
                [right[n] for n in rows],
                {name: [values[n] for n in rows] for name, values in found.items()},
            )
    return Measured(cases, columns, right)


def against_home(measured: Measured, version: str) -> dict[str, rule.Cases]:
    """The cases for the AUROC between regimes. A chat is always asked in its format: so
    in-domain prompts stay in it when those of the other regimes come bare.
    """
    at_home = measured.cases[FRAMED][rule.IN_DOMAIN]
    return measured.cases[version] | {rule.IN_DOMAIN: at_home}


def interval_of(
    scores: Sequence[float], positive: Sequence[bool], seed: int
) -> Interval:
    """An AUROC with the rule's bootstrap."""
    return bootstrap(auroc, scores, positive, resamples=rule.RESAMPLES, seed=seed)


def cross(measured: Measured, version: str, seed: int) -> Tables:
    """AUROC of each signal for in-domain prompts against those of each other regime,
    and against all of them together.
    """
    regimes = against_home(measured, version)
    others = [regimes[name] for name in rule.REGIMES if name != rule.IN_DOMAIN]
    found: Tables = {}
    for name in MEASURED:
        intervals = rule.cross_regime(regimes, name, seed)
        at_home = regimes[rule.IN_DOMAIN].signals[name]
        abroad = [value for cases in others for value in cases.signals[name]]
        is_at_home = [True] * len(at_home) + [False] * len(abroad)
        intervals[ALL] = interval_of([*at_home, *abroad], is_at_home, seed)
        found[name] = {key: plain(value) for key, value in intervals.items()}
    return found


def within(measured: Measured, version: str, seed: int) -> Tables:
    """AUROC of each signal for right replies against wrong ones, in each regime and
    over all of them; None where it is undefined.
    """
    regimes: Mapping[str, rule.Cases] = measured.cases[version]
    everything = rule.Cases(measured.right, measured.columns[version])
    found: Tables = {}
    for name in MEASURED:
        found[name] = {}
        for regime, (right, signals) in (regimes | {ALL: everything}).items():
            interval = None
            if rule.is_defined(right):
                interval = plain(interval_of(signals[name], right, seed))
            found[name][regime] = interval
    return found


def shuffled(
    scores: Sequence[float], positive: Sequence[bool], seed: int = 0
) -> Interval:
    """The AUROC of a signal when the labels are dealt out anew, a thousand times: the
    mean, which must be near 0.5, and the range of 95% of them. What lies inside of that
    range is no sign of knowledge.
    """
    dice = random.Random(seed)
    labels = list(positive)
    found = []
    for _ in range(rule.RESAMPLES):
        dice.shuffle(labels)
        found.append(auroc(scores, labels))
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(np.mean(found)), float(low), float(high))


def shuffled_controls(measured: Measured, seed: int) -> dict[str, Any]:
    """The first control: the router's confidence with shuffled labels, for both kinds
    of AUROC over all probes.
    """
    confidence = measured.columns[FRAMED]["router_conf"]
    home = len(measured.cases[FRAMED][rule.IN_DOMAIN].right)
    is_at_home = [number < home for number in range(len(confidence))]
    return {
        "cross": plain(shuffled(confidence, is_at_home, seed)),
        "within": (
            plain(shuffled(confidence, measured.right, seed))
            if any(measured.right) and not all(measured.right)
            else None
        ),
    }


def judged(measured: Measured, seed: int) -> dict[str, Any]:
    """The rule's verdict on the router, and the same for a router of random weights in
    its place.
    """
    regimes = measured.cases[FRAMED]
    said = rule.verdict(regimes, seed)
    blind = {}
    for regime, (right, signals) in regimes.items():
        random_ones = {name: signals[f"random_{name}"] for name in rule.ROUTER_SIGNALS}
        blind[regime] = rule.Cases(right, {**signals, **random_ones})
    return {
        "holds": said.holds,
        "won": said.won,
        "contests": {
            signal: {regime: contest_row(one) for regime, one in found.items()}
            for signal, found in said.contests.items()
        },
        "random_router_won": rule.verdict(blind, seed).won,
    }


def contest_row(contest: rule.Contest) -> dict[str, Any]:
    """A contest as a record has it."""
    row = contest._asdict()
    row["difference"] = plain(contest.difference)
    return {
        name: round(value, DIGITS) if type(value) is float else value
        for name, value in row.items()
    }


def plain(interval: Interval | None) -> dict[str, float] | None:
    """An interval as a record has it."""
    if interval is None:
        return None
    return {n: round(value, DIGITS) for n, value in interval._asdict().items()}


def by_block(measured: Measured) -> dict[str, list[float | None]]:
    """AUROC of each block's router confidence over all probes, both kinds; `within` is
    None where fewer than three replies are right or wrong.
    """
    columns = measured.columns[FRAMED]
    home = len(measured.cases[FRAMED][rule.IN_DOMAIN].right)
    is_at_home = np.arange(len(measured.right)) < home
    blocks = [n for n in columns if re.fullmatch(r"router_conf_\d+", n)]
    rows: dict[str, list[float | None]] = {"confidence": [], "cross": [], "within": []}
    for name in blocks:
        values = columns[name]
        rows["confidence"].append(round(float(np.mean(values)), DIGITS))
        rows["cross"].append(round(auroc(values, is_at_home), DIGITS))
        is_defined = rule.is_defined(measured.right)
        value = round(auroc(values, measured.right), DIGITS) if is_defined else None
        rows["within"].append(value)
    return rows


# ---- one seed


def one_seed(
    variant: Variant, text: bytes, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Everything that is measured on a variant, and a line for each probe."""
    probes = load_probes()
    cost, replies = price(variant.lm, text, probes)
    right = [p.is_right(r.text) for p, r in zip(probes, replies, strict=True)]
    measured = measure_all(variant, probes, right, seed)
    versions = (FRAMED, RAW)
    found = {
        "seed": seed,
        "after": cost,
        "right": {
            regime: round(share(cases.right), DIGITS)
            for regime, cases in measured.cases[FRAMED].items()
        },
        "verdict": judged(measured, seed),
        "cross": {version: cross(measured, version, seed) for version in versions},
        "within": {version: within(measured, version, seed) for version in versions},
        "shuffled": shuffled_controls(measured, seed),
        "blocks": by_block(measured),
    }
    return found, probe_lines(probes, replies, measured)


def probe_lines(
    probes: Sequence[Probe], replies: Sequence[Reply], measured: Measured
) -> list[dict[str, Any]]:
    """A line for each probe: what was said, whether that is right, and how sure each of
    the signals was.
    """
    lines = []
    for number, (probe, reply) in enumerate(zip(probes, replies, strict=True)):
        line = {
            "regime": probe.regime,
            "prompt": probe.prompt,
            "said": reply.text,
            "right": measured.right[number],
            "refused": is_refusal(reply.text),
            "margin": round(reply.margin, DIGITS),
            "max_softmax": round(reply.max_softmax, DIGITS),
        }
        for name in ("router_conf", "max_softmax_last", "neg_abstain_p"):
            line[name] = round(measured.columns[FRAMED][name][number], DIGITS)
        lines.append(line)
    return lines


# ---- all seeds


def over_seeds(rows: Sequence[Any]) -> Any:
    """The same tables over several seeds: of an interval the mean value between the
    lowest and the highest end, of a number its mean between the extremes; None where it
    is None for any seed.
    """
    first = rows[0]
    if any(row is None for row in rows):
        return None
    if isinstance(first, dict) and first.keys() != {"value", "low", "high"}:
        return {key: over_seeds([row[key] for row in rows]) for key in first}
    if not isinstance(first, dict):
        rows = [dict.fromkeys(("value", "low", "high"), row) for row in rows]
    return {
        "value": round(float(np.mean([row["value"] for row in rows])), DIGITS),
        "low": min(row["low"] for row in rows),
        "high": max(row["high"] for row in rows),
    }


def summary(
    seeds: Sequence[dict[str, Any]], before: dict[str, float]
) -> dict[str, Any]:
    """What a chapter and a claim point at: everything over the seeds, and under `rise`
    by how much each part of the price is higher than before.
    """
    won = [seed["verdict"]["won"] for seed in seeds]
    counts = [{name: len(regimes) for name, regimes in one.items()} for one in won]
    rises = [
        {name: round(value - before[name], DIGITS) for name, value in cost.items()}
        for cost in (seed["after"] for seed in seeds)
    ]
    keys = ("after", "right", "cross", "within")
    return {
        "holds": [seed["verdict"]["holds"] for seed in seeds],
        "regimes_won": counts,
        "most_regimes_won": max(max(one.values()) for one in counts),
        "rise": over_seeds(rises),
        **{key: over_seeds([seed[key] for seed in seeds]) for key in keys},
    }


class Study:
    """One experiment on one model, in a folder: run.json, results.json and probes.jsonl
    (of the first seed). What is finished there is not run again.
    """

    def __init__(self, experiment: str, model: str, out: Path) -> None:
        self.experiment: Experiment = load_experiment(experiment)
        self.model, self.out = model, out
        self.digest = weights_digest(model)
        self.results: dict[str, Any] = {}
        self.record: dict[str, Any] = {}

    def settings(self, text: bytes) -> dict[str, Any]:
        """What makes two studies the same one."""
        return {
            "experiment": self.experiment.to_dict(),
            "model": self.model,
            "weights_sha256": self.digest,
            "text_sha256": hashlib.sha256(text).hexdigest(),
        }

    def begin(self, lm, text: bytes, about_text: dict[str, Any]) -> None:
        """Starts a study, or goes on. EvaluationError where another one lies there."""
        settings, path = self.settings(text), self.out / "results.json"
        has_record = (self.out / "run.json").is_file()
        # a study writes its results first, so a record alone is that of another run
        if has_record and not path.is_file():
            raise EvaluationError(
                f"{self.out.name} holds a run that is no study",
                "choose another --out: its record would be overwritten",
            )
        if path.is_file():
            try:
                self.results = dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise EvaluationError(
                    f"{self.out.name}/{path.name} is not JSON, or damaged",
                    "mend it, or remove that folder: the study then begins anew",
                ) from None
            for key, value in settings.items():
                if self.results.get(key) != value:
                    raise EvaluationError(
                        f"{self.out.name} is another study: its {key} is not the same",
                        "choose another --out, or remove that folder",
                    )
        else:
            self.results = {**settings, "cpu_s": 0.0, "seeds": []}
        if has_record:
            self.record = records.load_record(self.out)
            # the text to learn from; the held-out one is among the settings
            if self.record["data"].get("sha256") != about_text.get("sha256"):
                raise EvaluationError(
                    f"{self.out.name} holds a study with another text",
                    "choose another --out, or give the same --text",
                )
            cpu_tuning.keep_threads(self.record)
            return
        self.record = records.new_record(
            self.out.resolve().name,
            "eval",
            config=lm.config.to_dict(),
            seed=0,
            data=about_text,
            wall_s=0.0,
            threads=torch.get_num_threads(),
            notes=f"{self.experiment.name} on {self.model}: {self.experiment.says}",
        )

    def missing(self, seeds: int) -> list[int]:
        """The seeds that were not run yet."""
        done = {row["seed"] for row in self.results["seeds"]}
        return [seed for seed in range(seeds) if seed not in done]

    def run(
        self, workshop: Workshop, held_out: bytes, seeds: int, say: Callable = print
    ) -> None:
        """Runs the seeds that are missing, and writes each down as soon as it is done.
        Raises EvaluationError.
        """
        workshop.check(self.experiment)
        for seed in self.missing(seeds):
            cpu, wall = time.process_time(), time.perf_counter()
            if workshop.cost is None:
                workshop.cost, _ = price(workshop.lm, held_out, load_probes())
            self.results["before"] = workshop.cost
            variant = workshop.make(self.experiment, seed)
            row, lines = one_seed(variant, held_out, seed)
            row["cpu_s"] = round(time.process_time() - cpu, 1)
            self.results["seeds"].append(row)
            self.record["wall_s"] += round(time.perf_counter() - wall, 1)
            if seed == 0:
                text = "".join(
                    json.dumps(line, ensure_ascii=False) + "\n" for line in lines
                )
                write_atomic(self.out / "probes.jsonl", text.encode())
            self.write(is_finished=not self.missing(seeds))
            say(seed_line(self.experiment.name, row, self.results["before"]))
        if self.record["finished"] is None:  # fewer seeds are wanted than before
            self.write(is_finished=True)

    def write(self, is_finished: bool) -> None:
        """Writes the record as it is now: the results first, for they are what cannot
        be made again quickly.
        """
        rows = self.results["seeds"]
        self.results["summary"] = summary(rows, self.results["before"])
        self.results["cpu_s"] = round(sum(row["cpu_s"] for row in rows), 1)
        self.record["val_bpb"] = self.results["summary"]["after"]["bits_per_byte"][
            "value"
        ]
        self.record["finished"] = records.now() if is_finished else None
        write_atomic(self.out / "results.json", by_lines(self.results))
        write_atomic(self.out / "run.json", records.dumps(self.record))


def by_lines(results: dict[str, Any]) -> bytes:
    """JSON with a line for each key: thousands of numbers, one a line, would be a file
    of a hundred pages.
    """
    lines = [f"{json.dumps(key)}: {json.dumps(results[key])}" for key in results]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def weights_digest(model: str) -> str:
    """sha256 of the file that a model's weights lie in, or of its newest checkpoint."""
    folder = pretrained.resolve(model)
    files = [folder / MODEL_FILE]
    if not files[0].is_file():
        files = written_in(folder / "checkpoints")[-1:]
    if not files:
        raise EvaluationError(f"{model} holds no model", "name the folder of a run")
    return hashlib.sha256(files[0].read_bytes()).hexdigest()


def seed_line(name: str, row: dict[str, Any], before: dict[str, Any]) -> str:
    """What the terminal shows of one seed."""
    confidence = row["cross"][FRAMED]["router_conf"][ALL]["value"]
    won = max(map(len, row["verdict"]["won"].values()))
    after = row["after"]
    return (
        f"{name} seed {row['seed']}: router against in-domain {confidence:.2f}, wins "
        f"{won} of 7; right {before['right']:.0%} -> {after['right']:.0%}, looping "
        f"{before['looping']:.0%} -> {after['looping']:.0%}, "
        f"{before['bits_per_byte']:.3f} -> {after['bits_per_byte']:.3f} bits per byte; "
        f"{row['cpu_s']:.0f} CPU seconds"
    )
