"""A stand-in for FineWeb-Edu of 20,000 documents: prepared, killed with SIGKILL and
resumed, byte for byte the same.

    python tests/slow/kill_fineweb.py [--documents 20000] [--kills 5] [--out
    book/runs/kill-fineweb]

The documents are random words of FineWeb-Edu's lengths (a few KB, some much longer),
some odd: empty, doubled, with NULs or far from ASCII. Reports the bytes/s of the
uninterrupted run, too.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tilelli_nb.storage.records import new_record, now, write_run

WRITE = """
import sys, time
from tilelli_nb.data import fineweb
from tilelli_nb.data.shards import prepare_shards
start = time.perf_counter()
source = fineweb.FineWebEdu(sys.argv[1], limit_bytes=10**12)
prepare_shards(source, sys.argv[2], "fineweb-edu", revision=source.revision, shard_bytes=2**22)
print(time.perf_counter() - start)
"""


def write_files(folder: Path, documents: int, seed: int) -> int:
    """Parquet files of FineWeb-Edu's schema, 2,500 documents each. Returns the bytes of
    text.
    """
    rnd, total = random.Random(seed), 0
    words = [
        "".join(rnd.choices("etaoinshrdlucmfwypvbgkéß語🙂", k=rnd.randint(2, 9)))
        for _ in range(5000)
    ]
    folder.mkdir(parents=True)
    for number in range(0, documents, 2500):
        count = min(2500, documents - number)
        texts = [
            " ".join(rnd.choices(words, k=min(int(rnd.lognormvariate(6, 1)), 60_000)))
            for _ in range(count)
        ]
        for place in range(0, count - 1, 97):
            texts[place] = rnd.choice(["", "\0a NUL\0", texts[place + 1]])
        scores = [rnd.uniform(2.5, 5) for _ in texts]
        table = pa.table(
            {
                "text": texts,
                "id": [f"<{number + i}>" for i in range(count)],
                "score": scores,
                "int_score": [round(score) for score in scores],
                "token_count": [len(t) // 4 for t in texts],
            }
        )
        parquet.write_table(
            table, folder / f"train-{number // 2500:05d}.parquet", row_group_size=500
        )
        total += sum(len(text.encode()) for text in texts)
    return total


def start(files: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, files, out], stdout=subprocess.PIPE
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def arguments(doc: str, documents: int, kills: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=documents)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def report(out: Path | None, record: dict, results: dict, begun: float) -> None:
    """Prints the results and, with --out, leaves them as a record."""
    print(json.dumps(results, indent=2))
    if out:
        record |= {
            "name": out.name,
            "finished": now(),
            "wall_s": round(time.perf_counter() - begun, 1),
        }
        write_run(out, record, results)


def main() -> None:
    args = arguments(__doc__, documents=20_000, kills=5)
    record = new_record(
        "kill-fineweb",
        "eval",
        seed=args.seed,
        notes="A stand-in for FineWeb-Edu, its writer killed and resumed: results.json.",
    )
    begun, rnd = time.perf_counter(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as root:
        files, whole, killed = (
            Path(root) / name for name in ("files", "whole", "killed")
        )
        text_bytes = write_files(files, args.documents, args.seed)
        seconds = float(start(files, whole).communicate()[0])  # without the imports
        kills = finished = 0
        while kills < args.kills:
            if finished == 10:
                raise SystemExit("too few documents to be stopped among: --documents")
            process, before = start(files, killed), len(list(killed.glob("*.bin")))
            while process.poll() is None and len(
                list(killed.glob("*.bin"))
            ) < before + 2 * rnd.randint(1, 3):
                time.sleep(0.002)
            time.sleep(rnd.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                kills += 1
            else:  # it was done before: from the beginning
                finished += 1
                shutil.rmtree(killed)
        assert start(files, killed).wait() == 0
        same = digests(whole) == digests(killed)
        results = {
            "documents": args.documents,
            "text_bytes": text_bytes,
            "kills": kills,
            "identical": same,
            "shards": len(digests(whole)) - 1,
            "seconds": round(seconds, 2),
            "bytes_per_s": round(text_bytes / seconds),
        }
    report(args.out, record, results, begun)
    sys.exit(not same)


if __name__ == "__main__":
    main()
