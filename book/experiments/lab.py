"""The lab: every study of the book that takes several seeds, in one command.

    python book/experiments/lab.py [parts lite_vanilla longer fast] [--corpus FOLDER]
        [--minutes 150] [--workers 2] [--out book/runs] [--plan | --table]
    python book/experiments/lab.py --again book/runs/lab-parts/no-conv-s1

A study is a file in book/experiments/studies/; lab_study.py explains it, lab_variants.py
says what is exchanged in a model. A run takes one thread, and two go side by side. Each
leaves OUT/lab-STUDY/ARM-sSEED/ with its run record; a run that is there is passed over,
so the same command goes on where it was stopped, and one that was stopped in the middle
begins anew. OUT/lab-STUDY/results.json then has means, 95% intervals and paired tests.

--minutes is what all runs of all studies may take of a processor, those before included:
when it is spent, no run is begun. --plan times a few steps of each arm and says how long
everything would take. --again repeats one run from its record and compares every bit.
Nothing else should run meanwhile: losses do not mind, times do.

The book's records were made in two calls: `fast` from a folder of openly licensed prose,
the others from a slice of TinyStories. `make studies` reads the book's own stories,
which are there on every machine, and writes into runs/studies.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab_results import (
    arm_results,
    best_value,
    claimed,
    comparisons,
    helpful,
    read,
    table,
    time_to_target,
)
from lab_run import (
    again,
    folder_of,
    open_text,
    prepare_process,
    run,
    score_seconds,
    step_seconds,
)
from lab_study import (
    STUDIES,
    Arm,
    Job,
    Study,
    jobs_of,
    load_study,
    tuning_jobs,
)
from tilelli_nb.config import Config
from tilelli_nb.data.shards import Shards
from tilelli_nb.errors import ConfigError, TilelliError
from tilelli_nb.storage import records

ORDER = ("parts", "lite_vanilla", "longer", "fast")
BUSY = 0.5  # processors' worth of other work: times are not to be trusted


class BudgetSpent(Exception):
    """The next run would not fit into the minutes that are left."""


class Lab:
    """A place where runs are made: the text, the folder, the processes, the budget."""

    def __init__(self, shards: Shards, out: Path, minutes: float, workers: int) -> None:
        self.shards, self.out = shards, out
        self.minutes, self.workers = minutes, workers
        self.longest = 0.0  # seconds of a processor, of the runs made here
        self.load = os.getloadavg()[0]

    def spent(self) -> float:
        """Seconds of a processor that all runs in the folder have taken."""
        files = self.out.glob("lab-*/*/results.json")
        return sum(read(file.parent)["cpu_s"] for file in files)

    def is_done(self, job: Job) -> bool:
        """Whether the run is there. Raises ConfigError where one of its name was made
        with other settings or from another text.
        """
        folder = folder_of(job, self.out)
        if not (folder / "results.json").is_file():
            return False
        record = records.load_record(folder)
        # read as a configuration: older records lack the newest settings
        same = Config.from_dict(record["config"]) == job.config
        same &= read(folder)["variants"] == list(job.variants)
        same &= record["data"]["sha256"] == self.shards.describe()["sha256"]
        if not same:
            raise ConfigError(
                f"{record['name']} was made with other settings or from another text",
                "choose another --out; or remove the folders of the study",
            )
        return True

    def make(self, jobs: list[Job]) -> None:
        """Makes the runs that are not there yet, as many at once as there are workers.

        Raises BudgetSpent, once those that had begun are done.
        """
        todo = iter([job for job in jobs if not self.is_done(job)])
        if self.workers == 1:
            for job in todo:
                self.check_budget(running=0)
                self.note(job, run(job, self.shards.folder, self.out))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self.workers, mp_context=context, initializer=prepare_process
        ) as pool:
            self.side_by_side(pool, todo)

    def side_by_side(self, pool: ProcessPoolExecutor, todo: Iterator[Job]) -> None:
        """Keeps every worker busy until no job is left or the budget is spent."""
        running: dict[Future, Job] = {}
        spent: BudgetSpent | None = None
        while True:
            while spent is None and len(running) < self.workers:
                job = next(todo, None)
                if job is None:
                    break
                try:
                    self.check_budget(len(running))
                except BudgetSpent as reason:
                    spent = reason
                    break
                future = pool.submit(run, job, self.shards.folder, self.out)
                running[future] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                self.note(running.pop(future), future.result())
        if spent:
            raise spent

    def check_budget(self, running: int) -> None:
        """Raises BudgetSpent if one more run as long as the longest would not fit."""
        expected = self.spent() + (running + 1) * self.longest
        if expected > self.minutes * 60:
            raise BudgetSpent

    def note(self, job: Job, results: dict[str, Any]) -> None:
        """Prints a line about a run that is done."""
        self.longest = max(self.longest, results["cpu_s"])
        bits = results["val_bpb"]
        said = f"{bits:.4f} bits per byte" if bits is not None else results["failed"]
        print(
            f"{job.study} {job.name}: {said}, {results['cpu_s']:.0f} s;",
            f"{self.spent() / 60:.1f} of {self.minutes:g} CPU minutes",
            flush=True,
        )

    def study(self, study: Study) -> dict[str, Any]:
        """Makes the runs of a study and writes what they say together."""
        self.make(tuning_jobs(study))
        tuned, tried = self.best_values(study)
        jobs = {arm.name: jobs_of(study, arm, tuned) for arm in study.arms}
        self.make([job for some in jobs.values() for job in some])
        pairs = list(study.arms)
        arms = {name: arm_results(study, some, self.out) for name, some in jobs.items()}
        found = comparisons(study, arms, pairs)
        chosen = helpful(study, found) if study.together else []
        if len(chosen) > 1:  # one alone has been measured already
            arm = combined(study, chosen)
            some = jobs_of(study, arm, tuned)
            self.make(some)
            arms[arm.name] = arm_results(study, some, self.out)
            found = comparisons(study, arms, [*pairs, arm])
        folder = self.out / f"lab-{study.name}"
        cpu_s = sum(read(f.parent)["cpu_s"] for f in folder.glob("*/results.json"))
        results = {
            "study": study.name,
            "question": study.question,
            "corpus": self.shards.describe()["source"],
            "held_out_bytes": min(len(self.shards.val), 2**20),
            "bytes": study.bytes,
            "seeds": list(study.seeds),
            "base": study.base,
            "load": round(self.load, 2),
            "cpu_minutes": round(cpu_s / 60, 2),
            "arms": arms,
            "tuned": tried,
            "comparisons": found,
            "claims": claimed(study, arms),
        }
        if study.together:
            results["together"] = [arm.name for arm in chosen]
        if study.target:
            results["target"] = study.target
            results["to_target"] = time_to_target(study, arms)
        record = self.record(study, jobs)
        records.write_run(folder, record, results)
        return results

    def best_values(self, study: Study) -> tuple[dict[str, dict], dict[str, dict]]:
        """By arm: the settings that were best, and all that were tried."""
        tuned, tried = {}, {}
        for arm in study.arms:
            if arm.tuning is None:
                continue
            mine = [job for job in tuning_jobs(study) if job.arm == arm.name]
            bits = [read(folder_of(job, self.out))["val_bpb"] for job in mine]
            values = dict(zip(arm.tuning.values, bits, strict=True))
            tuned[arm.name], tried[arm.name] = best_value(arm, values)
        return tuned, tried

    def record(self, study: Study, jobs: dict[str, list[Job]]) -> dict[str, Any]:
        """The run record of the study as a whole; its time is that of all its runs."""
        folder = self.out / f"lab-{study.name}"
        files = sorted(folder.glob("*/run.json"))
        made = [records.load_record(file.parent) for file in files]
        first = next(iter(jobs.values()))[0]
        return records.new_record(
            folder.name,
            "bench",
            config=first.config.to_dict(),
            data=self.shards.describe(),
            started=min(run["started"] for run in made),
            finished=records.now(),
            # a run that broke down has not said how long it took
            wall_s=round(sum(run["wall_s"] or 0 for run in made), 1),
            threads=1,
            notes=f"{len(made)} runs of {study.bytes:,} bytes: results.json. "
            f"{study.question}",
        )


def combined(study: Study, chosen: list[Arm]) -> Arm:
    """The arm that does everything that helped."""
    changes = {}
    for arm in chosen:
        changes |= arm.changes
    variants = tuple(name for arm in chosen for name in arm.variants)
    first = replace(chosen[0], name="together", factor=None)
    return replace(first, changes=changes, variants=variants)


def plan(studies: list[Study], shards: Shards) -> float:
    """Prints how many minutes of a processor each study would take, from a few timed
    steps of each arm and one timed evaluation; returns the sum.
    """
    total = 0.0
    for study in studies:
        seconds, count = 0.0, 0
        for arm in study.arms:
            jobs = jobs_of(study, arm, {})
            tried = len(arm.tuning.values) if arm.tuning else 0
            runs, settings = len(jobs) + tried, jobs[0].config.train
            step, scored = step_seconds(jobs[0], shards), score_seconds(jobs[0], shards)
            evaluations = -(-settings.steps // settings.eval_every)
            each = settings.steps * step + evaluations * scored
            print(f"{study.name} {arm.name:24}{runs:3} runs of {each:5.1f} s")
            seconds += runs * each
            count += runs
        print(f"{study.name}: {count} runs, {seconds / 60:.0f} CPU minutes", flush=True)
        total += seconds / 60
    print(f"all: {total:.0f} CPU minutes")
    return total


def warn_of_load(load: float) -> None:
    """Says so when the machine is doing something else."""
    if load > BUSY:
        print(
            f"Something else runs here (load {load:.1f}): losses will be right, "
            "times will not.",
            file=sys.stderr,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", default=list(ORDER))
    parser.add_argument("--corpus", default="stories", help="stories, docs or a folder")
    parser.add_argument("--megabytes", type=float, default=1.0, help="of it")
    parser.add_argument("--minutes", type=float, default=150.0, help="of a processor")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side")
    parser.add_argument("--out", type=Path, default=STUDIES.parents[1] / "runs")
    parser.add_argument(
        "--plan", action="store_true", help="say how long it would take"
    )
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--again", type=Path, metavar="RUN", help="repeat one run")
    args = parser.parse_args()
    if args.workers < 1:
        parser.error("--workers counts runs side by side: 1 or more")
    return args


def main() -> int:
    args = arguments()
    prepare_process()
    if args.again:
        return 0 if again(args.again, args.corpus, args.megabytes) else 1
    studies = [load_study(name) for name in args.studies]
    if args.table:
        for study in studies:
            folder = args.out / f"lab-{study.name}"
            is_there = (folder / "results.json").is_file()
            print(
                table(read(folder)) if is_there else f"{study.name}: not measured yet"
            )
        return 0
    shards = open_text(args.corpus, args.megabytes)
    if args.plan:
        plan(studies, shards)
        return 0
    lab = Lab(shards, args.out, args.minutes, args.workers)
    warn_of_load(lab.load)
    try:
        for study in studies:
            print(table(lab.study(study)), end="\n\n", flush=True)
    except BudgetSpent:
        print(
            f"The {args.minutes:g} CPU minutes are spent; more with --minutes: the same "
            "command goes on from here.",
            file=sys.stderr,
        )
        return 1
    print(f"All studies: {lab.spent() / 60:.1f} CPU minutes.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TilelliError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped. The same command goes on.")
