"""What the runs of a study say together: means, intervals, paired tests, and a table."""

import json
import statistics
from pathlib import Path
from typing import Any

from lab_study import Arm, Job, Study
from tilelli_nb.errors import ConfigError
from tilelli_nb.evaluation.paired import compare, mean_interval
from tilelli_nb.storage import records

COLLAPSED = 0.05  # a pathway with less than this share of a block is as good as gone


def read(folder: Path) -> dict[str, Any]:
    """The results.json of a run."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def best_value(arm: Arm, tried: dict[float, float | None]) -> tuple[dict, dict]:
    """The best value of an arm that is tuned, as settings; and what was tried, with a
    word on whether the best stands at the edge, so that a better one may lie beyond.
    """
    worked = {value: bits for value, bits in tried.items() if bits is not None}
    if not worked:
        raise ConfigError(
            f"with every {arm.tuning.key} that {arm.name} tried, training broke down",
            "give it others in the file of the study",
        )
    best = min(worked, key=worked.__getitem__)
    key = arm.tuning.key
    about = {
        "key": key,
        "tried": {f"{value:g}": bits for value, bits in tried.items()},
        "best": best,
        "at_edge": best in (min(tried), max(tried)),
    }
    return {key: best}, about


def arm_results(study: Study, jobs: list[Job], out: Path) -> dict[str, Any]:
    """What came of the runs of one arm."""
    folders = [out / f"lab-{study.name}" / job.name for job in jobs]
    found = [read(folder) for folder in folders]
    record = records.load_record(folders[0])
    curves = [records.load_metrics(folder) for folder in folders]
    bits = [each["val_bpb"] for each in found]
    summary: dict[str, Any] = {
        "runs": [f"lab-{study.name}/{job.name}" for job in jobs],
        "variants": list(jobs[0].variants),
        "parameters": found[0]["parameters"],
        "operations_a_byte": found[0]["operations_a_byte"],
        "lr": record["config"]["train"]["lr"],
        "val_bpb": bits,
        "cpu_s": [each["cpu_s"] for each in found],
    }
    if None not in bits:
        summary |= mean_interval(bits)._asdict()
    summary["curve"] = curve(curves)
    if all(lines and lines[-1]["router_use"] for lines in curves):
        uses = [lines[-1]["router_use"] for lines in curves]
        least = [min(map(min, use)) for use in uses]
        summary["least_share"] = least  # of any pathway in any block, by seed
        summary["collapsed"] = sum(share < COLLAPSED for share in least)
        summary["router_use"] = mean_of(uses)
    return summary


def mean_of(tables: list[list[list[float]]]) -> list[list[float]]:
    """The mean over seeds of (blocks, 3)."""
    return [
        [round(statistics.mean(column), 5) for column in zip(*rows, strict=True)]
        for rows in zip(*tables, strict=True)
    ]


def curve(curves: list[list[dict]]) -> list[dict[str, float]]:
    """Bytes and bits per byte at each evaluation, averaged over the seeds."""
    return [
        {
            "bytes": lines[0]["bytes_seen"],
            "val_bpb": statistics.mean(line["val_bpb"] for line in lines),
        }
        for lines in zip(*curves, strict=False)
    ]


def bytes_until(points: list[dict[str, float]], target: float) -> float | None:
    """Bytes read when a curve first gets down to the target, on straight lines between
    evaluations; None when it never does.
    """
    before = None
    for point in points:
        if point["val_bpb"] <= target:
            if before is None:
                return point["bytes"]
            way = before["val_bpb"] - point["val_bpb"]
            share = (before["val_bpb"] - target) / way
            return before["bytes"] + share * (point["bytes"] - before["bytes"])
        before = point
    return None


def comparisons(study: Study, arms: dict[str, dict], pairs: list[Arm]) -> dict:
    """Each arm against the one it is compared with, seed by seed."""
    found = {}
    for arm in pairs:
        mine = arms.get(arm.name, {}).get("val_bpb", [None])
        theirs = arms.get(arm.against, {}).get("val_bpb", [None])
        if arm.against is None or None in mine or None in theirs:
            continue
        row = compare(mine, theirs)._asdict()
        found[arm.name] = {"against": arm.against, **row}
    return found


def claimed(study: Study, arms: dict[str, dict]) -> dict[str, dict]:
    """What claims.yml points at: how much more the first arm of each needs."""
    found = {}
    for name, (first, second) in study.claims.items():
        bits = [arms[arm]["val_bpb"] for arm in (first, second)]
        if None not in bits[0] + bits[1]:
            found[name] = compare(*bits)._asdict()
    return found


def time_to_target(study: Study, arms: dict[str, dict]) -> dict[str, dict] | None:
    """How many bytes, and seconds of a processor, each arm needs to the last loss of
    the target; its share of the target's own.
    """
    if study.target not in arms:
        return None
    aim = arms[study.target]
    if not aim["curve"]:  # it broke down before it was evaluated
        return None
    found = {}
    for name, arm in arms.items():
        needed = bytes_until(arm["curve"], aim["curve"][-1]["val_bpb"])
        if needed is None:
            found[name] = None
            continue
        share = needed / aim["curve"][-1]["bytes"]
        pace = statistics.median(arm["cpu_s"]) / statistics.median(aim["cpu_s"])
        found[name] = {"bytes": share, "cpu_s": share * pace}
    return found


def helpful(study: Study, found: dict[str, dict]) -> list[Arm]:
    """Of each factor the level with the lowest loss, where its whole interval lies
    below the base.
    """
    best: dict[str, Arm] = {}
    for arm in study.arms:
        row = found.get(arm.name)
        if arm.factor is None or row is None or row["high"] >= 0:
            continue
        other = best.get(arm.factor)
        if other is None or row["mean"] < found[other.name]["mean"]:
            best[arm.factor] = arm
    return list(best.values())


def table(results: dict[str, Any]) -> str:
    """The study as text, 79 columns wide."""
    lines = [
        f"{results['study']}: {results['bytes']:,} bytes of {results['corpus']} "
        f"a run, seeds {', '.join(map(str, results['seeds']))}",
        f"{'arm':24}{'bits per byte':>17} {'difference':>19} {'p':>6} {'cpu s':>6}",
    ]
    for name, arm in results["arms"].items():
        said = "broke down"
        if "value" in arm:
            half = (arm["high"] - arm["low"]) / 2
            said = f"{arm['value']:.4f} ± {half:.4f}"
        row = results["comparisons"].get(name)
        against, p = "", ""
        if row:
            half = (row["high"] - row["low"]) / 2
            against = f"{row['mean']:+.4f} ± {half:.4f}"
            p = f"{row['p_t']:.3f}"
        seconds = statistics.median(arm["cpu_s"])
        lines.append(f"{name:24}{said:>17} {against:>19} {p:>6} {seconds:6.0f}")
    for name, tuned in results["tuned"].items():
        edge = ", at the edge of what was tried" if tuned["at_edge"] else ""
        lines.append(f"  {name}: best {tuned['key']} {tuned['best']:g}{edge}")
    together = results.get("together")
    if together is not None:
        parts = ", ".join(together) or "nothing helped for sure"
        lines.append(f"  together: {parts}")
    minutes = results["cpu_minutes"]
    lines.append(f"  {minutes:.1f} CPU minutes; load before {results['load']:.2f}")
    return "\n".join(lines)
