"""The whole recipe at laptop size, in about ten minutes on two cores: data, pretraining,
chat, evaluation, and a report of one page.

    python book/experiments/reproduce.py [--out runs/reproduce] [--pretrain-minutes 4]
        [--chat-minutes 3] [--questions 100]

Each stage prints the command that it runs, or says what it does, and leaves its results
in --out. A stage that is done is passed over, and a training run that was stopped goes on
from its checkpoint, so the same command can be given again at any time. With another
--questions the evaluation is made anew; other options of training want another --out. At
the end, report.html stands beside the runs: every row of the published recipe, what came
out here and the file that says so.
"""

import argparse
import json
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

import reproduce_report
from tilelli_nb import ByteTokenizer, TilelliLM, load_config
from tilelli_nb.chat.pairs import make_pairs
from tilelli_nb.data.corpus import prepare_corpus
from tilelli_nb.errors import ConfigError, EvaluationError, TilelliError
from tilelli_nb.evaluation.answers import calibrate, judge, shares, through
from tilelli_nb.evaluation.probes import load_probes
from tilelli_nb.evaluation.signals import signals
from tilelli_nb.evaluation.statistics import auroc, bootstrap
from tilelli_nb.files import write_atomic
from tilelli_nb.inference.chatting import write_gate
from tilelli_nb.storage import records

HELD_OUT = ("phrasings", "entities", "templates", "unanswerable")
SIGNALS = ("router_conf", "max_softmax_mean", "margin_last")
TALK = (
    "What is the capital of France?",
    "What is the opposite of hot?",
    "How many legs does a spider have?",
    "What is the capital of Zorvania?",
    "What did I eat this morning?",
)
PROMPT = "Once upon a time"


class StageFailed(Exception):
    """A command of a stage ended with an error, which it has printed itself."""


def say(text: str) -> None:
    """Prints at once, so that the order is right beside what commands print."""
    print(text, flush=True)


def tilelli(command: str, **options: Any) -> None:
    """Runs `tilelli COMMAND --option value ...` and shows it. Raises StageFailed."""
    arguments = [command]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        elif value is not None:
            arguments += [flag, str(value)]
    say(f"$ tilelli {shlex.join(arguments)}")
    code = run_and_wait([sys.executable, "-m", "tilelli_nb.cli", *arguments])
    if code != 0:
        raise StageFailed(f"tilelli {command} ended with code {code}")


def run_and_wait(command: list[str]) -> int:
    """Runs a command to its end: its exit code. Stopped, it saves its run first, and is
    waited for. Raises KeyboardInterrupt after Ctrl-C, SystemExit after SIGTERM.
    """
    process = None
    is_stopped = False

    def pass_on(number: int, frame: Any) -> None:
        nonlocal is_stopped
        is_stopped = True
        if process is not None:
            process.send_signal(number)

    # Ctrl-C goes from a terminal to both, SIGTERM to this process alone.
    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        process = subprocess.Popen(command)
        if is_stopped:  # while it was being started
            process.terminate()
        code = process.wait()
    except KeyboardInterrupt:
        if process is not None:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if is_stopped:
        end_as_stopped(signal.SIGTERM)
    return code


def end_as_stopped(number: int) -> NoReturn:
    """Ends with the code that shells have for a signal. Raises SystemExit."""
    print("Stopped. The same command goes on.", file=sys.stderr)
    sys.exit(128 + number)


def kept(
    path: Path, made_of: dict[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The results of a stage: from its file if they were made of the same things (a
    model, a number of questions), or made now and written there.
    """
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("made_of") == made_of:
            return found
    found = {**make(), "made_of": made_of}
    write_atomic(path, records.dumps(found))
    return found


TRAINED_WITH = (
    "corpus",
    "pretrain_minutes",
    "pretrain_steps",
    "chat_minutes",
    "chat_steps",
)


def keep_options(args: argparse.Namespace) -> None:
    """Notes what the models are trained with. Raises ConfigError where those in --out
    were trained with something else, which `--resume` would not change.
    """
    path = args.out / "options.json"
    given = {name: getattr(args, name) for name in TRAINED_WITH}
    if path.is_file() and (args.out / "pretrain" / "run.json").is_file():
        noted = json.loads(path.read_text(encoding="utf-8"))
        for name, value in given.items():
            if noted.get(name) != value:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{args.out} was made with {option} {noted.get(name)}, not {value}",
                    "give the options of before, or choose another --out",
                )
    write_atomic(path, records.dumps(given))


def weights_of(record: dict[str, Any]) -> dict[str, Any]:
    """What tells the weights of a run from others."""
    return {"run_id": record["run_id"], "steps": record["steps"]}


def data(corpus: str) -> dict[str, Any]:
    """Stage 1: the text, and what the tokenizer makes of it."""
    say(f"1 of 5, data: {corpus}, about a twentieth of it held out.")
    shards = prepare_corpus(corpus)
    return {**shards.describe(), "hello": ByteTokenizer().encode("hello")}


def pretrain(args: argparse.Namespace) -> dict[str, Any]:
    """Stage 2: a model from nothing."""
    say(f"2 of 5, pretraining: {args.pretrain_minutes:g} minutes.")
    steps = args.pretrain_steps
    tilelli(
        "train",
        config="nano",
        corpus=args.corpus,
        minutes=None if steps else args.pretrain_minutes,
        steps=steps,
        out=args.out / "pretrain",
        resume=True,
    )
    return records.load_record(args.out / "pretrain")


def learn_to_chat(args: argparse.Namespace) -> dict[str, Any]:
    """Stage 3: questions, answers, and "I don't know."."""
    say(f"3 of 5, chat: {args.chat_minutes:g} minutes.")
    steps = args.chat_steps
    tilelli(
        "sft",
        init=args.out / "pretrain",
        text=args.corpus,
        minutes=None if steps else args.chat_minutes,
        steps=steps,
        out=args.out / "chat",
        resume=True,
    )
    return records.load_record(args.out / "chat")


def evaluate(folder: Path, questions: int) -> dict[str, Any]:
    """Stage 4: held-out questions, with and without a gate, and what the router knows.

    The sets are in a random order, so the first of each are a fair sample.
    """
    say(f"4 of 5, evaluation: {questions} questions of each held-out set, 210 probes.")
    lm, pairs = TilelliLM.from_pretrained(folder), make_pairs(0)
    judged = {name: judge(lm, getattr(pairs, name)[:questions]) for name in HELD_OUT}
    found: dict[str, Any] = {
        "held_out": {name: shares(some) for name, some in judged.items()}
    }
    try:
        gate = calibrate(judge(lm, pairs.calibration[: 2 * questions]), "margin")
    except EvaluationError:  # so early that nothing is right yet
        found["gate"] = None
    else:
        write_gate(folder, gate)
        behind = {name: shares(through(gate, some)) for name, some in judged.items()}
        found["gate"] = {**gate._asdict(), "held_out": behind}
    found["probes"] = ask_probes(lm)
    found["talk"] = [
        {"question": question, "said": lm.chat(question).text} for question in TALK
    ]
    return found


def ask_probes(lm: TilelliLM) -> dict[str, Any]:
    """Which signals tell, over all 210 prompts, whether the reply will be right."""
    probes = load_probes()
    right = [probe.is_right(lm.chat(probe.prompt).text) for probe in probes]
    measured = [signals(lm, probe.in_chat) for probe in probes]
    found: dict[str, Any] = {"prompts": len(probes), "right": sum(right)}
    for name in SIGNALS:
        try:
            values = [each[name] for each in measured]
            found[name] = bootstrap(auroc, values, right)._asdict()
        except EvaluationError:  # all right, or all wrong
            found[name] = None
    return found


def run_it(folder: Path) -> dict[str, Any]:
    """Stage 5: how long it takes to load, how fast it writes, what it writes."""
    say("5 of 5, running it: loading, writing, and the five lines.")
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        lm = TilelliLM.from_pretrained(folder)
        seconds.append(time.perf_counter() - start)
    tok = ByteTokenizer()
    ids = tok.encode(PROMPT)
    lm.generate(ids, max_new=8, seed=0)  # prepares the fast form
    start = time.perf_counter()
    out = lm.generate(ids, max_new=240, temperature=0.3, seed=0, stop=())
    took = time.perf_counter() - start
    story = lm.generate(ids, max_new=400, temperature=0.3, seed=0)
    used = lm.blocks[0].ffn.up.ternary_weight()
    return {
        "load_s": statistics.median(seconds),
        "bytes_per_s": (len(out) - len(ids)) / took,
        "story": tok.decode(story),
        "weights_in_use": len(torch.unique(used)),
        "parameters": sum(p.numel() for p in lm.parameters()),
        "recipe_parameters": sum(
            p.numel() for p in TilelliLM(load_config("lite_10m")).parameters()
        ),
    }


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--corpus", default="stories", help="or text of your own")
    parser.add_argument("--pretrain-minutes", type=float, default=4.0)
    parser.add_argument("--chat-minutes", type=float, default=3.0)
    parser.add_argument("--pretrain-steps", type=int, help="instead of minutes")
    parser.add_argument("--chat-steps", type=int, help="instead of minutes")
    parser.add_argument("--questions", type=int, default=100, help="of each set")
    args = parser.parse_args(given)
    if args.questions < 1:
        parser.error("--questions counts questions: 1 or more")
    return args


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    args.out.mkdir(parents=True, exist_ok=True)
    keep_options(args)
    start = time.perf_counter()
    try:
        text = kept(
            args.out / "data.json",
            {"corpus": args.corpus},
            lambda: data(args.corpus),
        )
        pretrained = pretrain(args)
        taught = learn_to_chat(args)
        evaluation = kept(
            args.out / "evaluation.json",
            {**weights_of(taught), "questions": args.questions},
            lambda: evaluate(args.out / "chat", args.questions),
        )
        running = kept(
            args.out / "running.json",
            weights_of(pretrained),
            lambda: run_it(args.out / "pretrain"),
        )
    except StageFailed as reason:
        say(f"{reason}. The same command goes on from here.")
        return 1
    found = {
        "data": text,
        "pretrain": pretrained,
        "chat": taught,
        "evaluation": evaluation,
        "running": running,
    }
    report = args.out / "report.html"
    curve = records.load_metrics(args.out / "pretrain")
    page = reproduce_report.page(found, curve, str(args.out))
    write_atomic(report, page.encode())
    minutes = (time.perf_counter() - start) / 60
    say(f"Done in {minutes:.1f} minutes. Open {report}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TilelliError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        end_as_stopped(signal.SIGINT)
