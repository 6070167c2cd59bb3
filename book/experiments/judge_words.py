"""Lets a model write, and counts how many of the words it writes are words.

    python book/experiments/judge_words.py --corpus FOLDER [--model tilelli/nano]
    [--samples 20] [--temperature 0.7] [--least 5] [--out FOLDER]

A *word* is a run of letters that occurs in the corpus at least --least times, in
whatever case. The corpus is a .txt, .jsonl or .parquet, or a folder with train.* and
val.*: then train gives the list. The samples are not picked: seeds 0, 1, 2, ..., of
--bytes each, after nothing at all or --prompt. The word that the end of a sample cuts
is not counted.

Two more shares say what the number is worth: that of people's own text (val), above
which no model can be expected, and that of the model's words with their letters
shuffled, which is what the list lets pass by chance. With --out all three are kept as a
record, with the samples and every word that is none.
"""

import argparse
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from tilelli_nb import ByteTokenizer, TilelliLM
from tilelli_nb.data.corpus import sides_of
from tilelli_nb.data.documents import documents
from tilelli_nb.data.shards import fingerprint
from tilelli_nb.storage import records

# Letters, with apostrophes inside. U+FFFD stands for bytes that are no character: a
# word that holds it is in no list.
LETTER = r"(?:[^\W\d_]|\ufffd)"
WORD = re.compile(rf"{LETTER}+(?:['’]{LETTER}+)*")


def plain(word: str) -> str:
    """In one case and with one kind of apostrophe."""
    return word.lower().replace("’", "'")


def words(text: str) -> list[str]:
    """
    >>> words("Don't stop. DON’T!")
    ["don't", 'stop', "don't"]
    """
    return [plain(word) for word in WORD.findall(text)]


def whole_words(text: str) -> list[str]:
    """The words of a text that was cut off at some byte, without the last if nothing
    but signs follows it: who knows how it goes on.
    """
    found = list(WORD.finditer(text))
    if found and not re.search(r"[\s\0]", text[found[-1].end() :]):
        found.pop()
    return [plain(match[0]) for match in found]


def word_list(texts: Iterable[str], least: int) -> set[str]:
    """The words that occur at least `least` times."""
    counts = Counter()
    for text in texts:
        counts.update(words(text))
    return {word for word, count in counts.items() if count >= least}


def share(found: list[str], known: set[str]) -> float | None:
    """How many of the words are in the list, from 0 to 1; None if there are none."""
    return sum(word in known for word in found) / len(found) if found else None


def shuffled(found: list[str], seed: int = 0) -> list[str]:
    """The same words with the letters of each in some other order."""
    rng = random.Random(seed)
    return ["".join(rng.sample(word, len(word))) for word in found]


def judge(samples: list[str], known: set[str]) -> dict[str, Any]:
    """What to say about the samples, and which words are none."""
    found = [word for sample in samples for word in whole_words(sample)]
    unknown = Counter(word for word in found if word not in known)
    return {
        "words": len(found),
        "share": share(found, known),
        "share_shuffled": share(shuffled(found), known),
        "share_by_sample": [share(whole_words(text), known) for text in samples],
        "unknown": dict(unknown.most_common()),
        "samples": samples,
    }


def write_samples(lm, args: argparse.Namespace) -> list[str]:
    """The new text of each sample, without the prompt."""
    tok = ByteTokenizer()
    ids = tok.encode(args.prompt)
    samples = []
    for seed in range(args.samples):
        out = lm.generate(
            ids, args.bytes, args.temperature, top_k=256, top_p=1, seed=seed, stop=()
        )
        samples.append(bytes(out[len(ids) :]).decode(errors="replace"))
    return samples


def percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"


def save(results: dict, lm, args: argparse.Namespace, train: Path, **when: Any) -> None:
    """The record and the results, in the folder that --out names."""
    # of a folder the name alone: where it lies is nobody's business
    model = Path(args.model).name if Path(args.model).is_dir() else args.model
    record = records.new_record(
        args.out.name,
        "eval",
        config={"name": lm.config.name},
        data={"source": args.corpus.name, "sha256": fingerprint(train)},
        device="cpu",
        finished=records.now(),
        notes=(
            f"{args.samples} samples of {model}, seeds 0 to {args.samples - 1}, "
            f"{args.bytes} bytes each at temperature {args.temperature:g} after "
            f"{args.prompt!r}. The list: words seen at least {args.least} times."
        ),
        **when,
    )
    records.write_run(args.out, record, results)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tilelli/nano")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--least", type=int, default=5, help="times, to be a word")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--bytes", type=int, default=400, help="of each sample")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--prompt", default="")
    parser.add_argument("--out", type=Path, help="the folder of the record")
    args = parser.parse_args()
    started, begun = records.now(), time.perf_counter()
    sides = sides_of(args.corpus)
    train = sides.train[0]  # one file is enough for a list
    known = word_list(documents(train), args.least)
    lm = TilelliLM.from_pretrained(args.model)
    results = judge(write_samples(lm, args), known)
    held_out = chain.from_iterable(map(documents, sides.val))
    own = [word for text in held_out for word in words(text)]
    results = {
        "least": args.least,
        "list": len(known),
        "share_held_out": share(own, known),
        **results,
    }
    print(
        f"{percent(results['share'])} of {results['words']:,} words of {args.model} "
        f"are among the {len(known):,} of {args.corpus.name}\n"
        f"{percent(results['share_held_out'])} of held-out text, "
        f"{percent(results['share_shuffled'])} with their letters shuffled\n"
        f"not words: {', '.join(list(results['unknown'])[:20])}"
    )
    if args.out:
        wall_s = round(time.perf_counter() - begun, 3)
        save(results, lm, args, train, started=started, wall_s=wall_s)


if __name__ == "__main__":
    main()
