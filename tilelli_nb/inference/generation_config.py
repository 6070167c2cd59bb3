"""How a model is sampled when nobody says how: generation_config.json beside its
weights, the file in which the libraries of Hugging Face keep the same.
"""

import json
from numbers import Integral
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, GenerationError
from ..files import write_atomic
from .sampling import Sampling

FILE = "generation_config.json"

# the file's names for our settings
NAMES = {
    "max_new_tokens": "max_new",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}


def read_defaults(folder: str | Path) -> dict[str, Any]:
    """Reads the settings in a folder's file, under our names: {"temperature": 0.3}.
    Without a file there are none.

    What else the file says is for other programs and passed over. Raises
    CheckpointError for a file that is not JSON, or a setting outside its range.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return {}
    where = f"{path.parent.name}/{FILE}"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{where} is not a JSON object",
            'write it like {"temperature": 0.3}, or delete it',
        )
    defaults = {}
    for theirs, ours in NAMES.items():
        value = values.get(theirs)
        if value is None:
            continue
        try:
            Sampling(**{ours: value})  # only to see whether it is allowed
        except GenerationError as error:
            raise CheckpointError(
                f"{where}: {theirs} = {value!r}",
                f"{error.fix}; correct the file, or delete it",
            ) from None
        defaults[ours] = value
    if values.get("do_sample") is False:
        defaults["temperature"] = 0  # greedy, whatever else the file says
    return defaults


def to_values(defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings under the file's names, as JSON takes them.

    Raises GenerationError for a setting that there is not, or outside its range.
    """
    for name in defaults:
        if name not in NAMES.values():
            raise GenerationError(
                f"sampling_defaults holds {name!r}",
                f"its keys are {', '.join(NAMES.values())}",
            )
    is_random = bool(Sampling(**defaults).temperature > 0)  # NumPy's are no JSON
    values: dict[str, Any] = {"do_sample": is_random}
    for theirs, ours in NAMES.items():
        number = defaults.get(ours)
        # other programs do not take 0 for greedy: do_sample has said it
        is_said = ours == "temperature" and not is_random
        if number is None or is_said:  # None is no limit, and so is what is not there
            continue
        values[theirs] = int(number) if isinstance(number, Integral) else float(number)
    return values


def write_defaults(folder: str | Path, defaults: dict[str, Any]) -> None:
    """Writes the settings to a folder's file. Without settings there is no file, and an
    older model's is removed. Raises GenerationError, see to_values.
    """
    path = Path(folder) / FILE
    if not defaults:
        path.unlink(missing_ok=True)
        return
    text = json.dumps(to_values(defaults), indent=2)
    write_atomic(path, text.encode() + b"\n")
