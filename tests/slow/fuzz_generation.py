"""Hostile input for generation: random bytes as prompts, random settings. Nothing may
crash, or write half a character.

    python tests/slow/fuzz_generation.py [--prompts 10000] [--settings 1000] [--model
    tilelli/nano] [--seed 0]

Prompts are of 0 to 2,000 bytes, a few of 100 KB: random bytes, NULs, cut and invalid
UTF-8, one repeated byte. Each is continued by the model as it is or prepared in one of
the four forms, alone or as a batch, and read back through the tokenizer's stream.
Settings are drawn from their ranges and far outside: what is inside must work, what is
outside must be one GenerationError that names the setting. Prints what was done; exit
code 1 and the seed of the case otherwise.
"""

import argparse
import math
import random
import sys
import time
import traceback

import torch

from tilelli_nb import ByteTokenizer, TilelliLM
from tilelli_nb.errors import GenerationError
from tilelli_nb.inference.prepared import KINDS

CHARACTERS = ["a", "é", "漢", "🦁", "\u202e", "\ufeff", "\x00", "\n"]
FINE = {
    "max_new": lambda r: r.choice([None, *range(5)]),
    "temperature": lambda r: r.choice(
        [None, 0, 0.0, 5e-324, 1e-9, r.uniform(0, 3), 1e308]
    ),
    "top_k": lambda r: r.choice([None, 1, r.randint(1, 256), 256]),
    "top_p": lambda r: r.choice([None, 1e-300, 1 - r.random(), 1]),
    "seed": lambda r: r.choice([None, 0, r.getrandbits(61), 2**62]),
    "stop": lambda r: r.choice([(), (0,), [10, 0], range(256), b"\n", {1, 2}]),
}
WRONG = {
    "max_new": [-1, 2.5, "3", math.inf],
    "temperature": [-1e-9, math.nan, math.inf, -math.inf, "hot", 1j],
    "top_k": [0, -5, 257, 10**9, 1.5, "4"],
    "top_p": [0, -0.1, 1.0000001, math.nan, "all", 2],
    "seed": [-1, 2**62 + 1, 0.5, "x"],
    "stop": [(256,), (-1,), (0.5,), None, 3, ("a",)],
}


def prompt(r: random.Random) -> list[int]:
    """A hostile prompt: one in a thousand is 100 KB long."""
    n = r.randint(0, r.choice([1, 5, 127, 128, 129, 255, 256, 257, 2000]))
    characters = "".join(r.choices(CHARACTERS, k=n // 2)).encode()
    broken = [b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5", b"\xe2\x82"]
    texts = {
        b"": 5,
        r.randbytes(n): 30,
        bytes(n): 10,
        bytes([r.randrange(256)]) * n: 10,
        characters: 15,
        characters[1:-1]: 15,
        r.choice(broken) * n: 15,
    }
    return list(
        r.randbytes(100_000)
        if r.random() < 0.001
        else r.choices(list(texts), list(texts.values()))[0]
    )


def check_text(ids: list[int]) -> None:
    """The pieces of the stream are valid Unicode and join to the whole."""
    pieces = list(ByteTokenizer().stream(ids))
    for piece in pieces:
        piece.encode("utf-8")  # fails for half a character
    assert "".join(pieces) == bytes(ids).decode("utf-8", errors="replace")


def try_prompts(
    models: dict, count: int, seed: int, max_new: int = 3
) -> dict[str, int]:
    """Continues `count` hostile prompts; returns how many each model had. Raises at the
    first that goes wrong.
    """
    done = dict.fromkeys(models, 0)
    for number in range(count):
        r = random.Random(f"{seed} prompt {number}")
        name = r.choice(list(models))
        lm, ids, settings = (
            models[name],
            prompt(r),
            {"max_new": max_new, "seed": number, "stop": ()},
        )
        try:
            if r.random() < 0.2:
                out = lm.generate([ids, prompt(r)[:300]], **settings)[0]
            elif r.random() < 0.5:
                out = [*ids, *lm.stream(ids, **settings)]
            else:
                out = lm.generate(ids, **settings)
            assert out[: len(ids)] == ids and len(out) == len(ids) + max_new
            assert all(0 <= byte < 256 for byte in out)
            check_text(out)
        except Exception as error:
            raise AssertionError(
                f"prompt {number} of seed {seed} with {name}: {len(ids)} bytes, {ids[:20]}"
            ) from error
        done[name] += 1
    return done


def try_settings(lm, count: int, seed: int) -> tuple[int, int]:
    """`count` random settings: how many were inside their ranges, and how many were
    refused by one clear error.
    """
    inside = refused = 0
    for number in range(count):
        r = random.Random(f"{seed} settings {number}")
        settings = {name: make(r) for name, make in FINE.items() if r.random() < 0.7}
        wrong = r.choice(list(WRONG)) if r.random() < 0.5 else None
        if wrong:
            settings[wrong] = r.choice(WRONG[wrong])
        try:
            out = lm.generate([104, 105], **settings)
            assert not wrong, "it was accepted"
            limit = settings.get("max_new")
            assert out[:2] == [104, 105]
            assert len(out) <= 2 + (128 if limit is None else limit)
            inside += 1
        except GenerationError as error:
            assert wrong and error.problem.startswith(f"{wrong} = ") and error.fix, (
                settings,
                error,
            )
            refused += 1
        except Exception as error:
            raise AssertionError(
                f"settings {number} of seed {seed}: {settings}"
            ) from error
    return inside, refused


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--settings", type=int, default=1_000)
    parser.add_argument("--model", default="tilelli/nano")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lm = TilelliLM.from_pretrained(args.model)
    models = {"the model itself": lm, **{kind: lm.prepare(kind) for kind in KINDS}}
    start = time.perf_counter()
    try:
        done = try_prompts(models, args.prompts, args.seed)
        middle = time.perf_counter()
        inside, refused = try_settings(models["fp32"], args.settings, args.seed)
    except AssertionError:
        traceback.print_exc()
        sys.exit(1)
    counts = ", ".join(f"{n:,} {name}" for name, n in done.items())
    print(f"{args.prompts:,} prompts in {middle - start:.0f} s: {counts}")
    print(
        f"{args.settings:,} settings in {time.perf_counter() - middle:.0f} s: {inside:,} worked, {refused:,} were "
        "refused, each by one error that names the setting"
    )


if __name__ == "__main__":
    main()
