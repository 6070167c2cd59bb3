"""Options that several commands share, and the words in which they explain
themselves.
"""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError, DataError
from ..files import at_home

CORPUS_HELP = (
    "`stories` (generated here), `docs` (documentation installed here), "
    "or a .txt, .jsonl, .parquet or folder"
)
FINEWEB = "fineweb-edu"  # the one corpus that is streamed
FINEWEB_HELP = f"`{FINEWEB}` (streamed from the Hugging Face hub), "
MODEL_HELP = (
    "A bundled name such as tilelli/nano, the folder of a run or of a packed model, "
    "or a Hub's OWNER/NAME"
)

# a type for each option, so that a command's signature can be read
ConfigName = Annotated[str, typer.Option(help="nano, lite_10m, or a YAML file")]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP)]
ModelOption = Annotated[str, typer.Option(help=MODEL_HELP)]
Weights = Annotated[
    str,
    typer.Option(
        help="fp32, bf16, int8 or ternary: fewer bytes for each weight, and a little "
        "less exact. At the size of lite_10m int8 and ternary are faster on a CPU; "
        "nano is fastest in fp32"
    ),
]

# FineWeb-Edu alone has these
ParquetFiles = Annotated[
    Path | None,
    typer.Option(help=f"{FINEWEB}: parquet files to read in place of the hub"),
]
MinScore = Annotated[
    float | None,
    typer.Option(help=f"{FINEWEB}: only pages at least this educational, 0 to 5"),
]


def refuse(given: dict[str, object], problem: str, fix: str) -> None:
    """Raises ConfigError if an option was given that could have no effect.

    `given` has the value of each such option by its name, None (or False) where the
    command did not have it; `problem` goes on after the names: "--files, --rank are
    for ...".
    """
    names = []
    for name, value in given.items():
        if value is not None and value is not False:  # 0 and "" were given, too
            names.append(f"--{name}")
    if names:
        verb = "is" if len(names) == 1 else "are"
        raise ConfigError(f"{', '.join(names)} {verb} {problem}", fix)


def check_range(name: str, value: float | None, low: float, high: float) -> None:
    """Raises ConfigError unless the value of an option lies between `low` and `high`,
    both included, or was not given. NaN lies nowhere.
    """
    if value is None or low <= value <= high:
        return
    limits = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
    raise ConfigError(f"--{name} {value:g}", f"give {limits}, or leave it out")


def check_size(name: str, value: float | None) -> None:
    """Raises ConfigError unless the value of an option is a number above 0, or was not
    given.
    """
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"--{name} {value:g}", "give more than 0, or leave it out")


def read_text(file: Path) -> bytes:
    """Returns a text as a model would be trained on it: decoded, with a newline at the
    end of each line and a byte 0 between documents that the file keeps apart. `-` is
    the standard input. Raises DataError.
    """
    from ..data import documents
    from ..data.encoding import text_of

    path = at_home(file)
    if str(file) == "-":
        text = text_of(read_input(), "the standard input")
    elif path.suffix.lower() in (".jsonl", ".parquet") and path.is_file():
        text = documents.SEPARATOR.join(documents.read_documents(path))
    else:
        text = text_of(read_bytes(path), path.name)
    # a byte 0 of the text's own would end a document, so shards have none either
    parts = [part.replace("\0", "") for part in text.split(documents.SEPARATOR)]
    if len(parts) > 1:
        parts = [part.strip("\n") for part in parts if part.strip()]
    return "\0".join(parts).encode("utf-8", "replace")


def read_input() -> bytes:
    """Returns what the standard input holds. Raises DataError where it is closed."""
    if sys.stdin is None:  # whoever started the program has closed it
        raise DataError("there is no standard input", "give the text itself, or a file")
    return sys.stdin.buffer.read()


def read_bytes(file: Path) -> bytes:
    """Returns the bytes of a file. Raises DataError."""
    # a folder, a missing file, one that may not be read
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}",
            "give the path of a text file, or -",
        ) from None
