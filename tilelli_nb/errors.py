"""One family of errors. Each says what was wrong and what to do about it."""


class TilelliError(Exception):
    """Base of every error this package raises on purpose.

    `problem` is what was found, `fix` is what the reader can do next. The command line
    prints both without a traceback; in a notebook they are the last two lines of the
    message.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}\n  What to do: {fix}")
        self.problem = problem
        self.fix = fix


class TokenError(TilelliError):
    """A token that is not a byte (0..255)."""


class ConfigError(TilelliError):
    """A configuration that names an unknown key, has a value of the wrong type, or
    cannot be built.
    """


class DataError(TilelliError):
    """A corpus or shard that is missing, too small, or altered since it was written."""


class CheckpointError(TilelliError):
    """A checkpoint that is missing, truncated, altered, or of another shape."""


class TrainingError(TilelliError):
    """A run that cannot go on: NaN in the loss, or nowhere to write."""


class RunInterrupted(KeyboardInterrupt):
    """A training run that Ctrl-C has stopped, and that was saved first. `record` is its
    record so far.
    """

    def __init__(self, record: dict) -> None:
        steps, planned = record["steps"], record["config"]["train"]["steps"]
        super().__init__(
            f"stopped and saved at step {steps:,} of {planned:,}: resume=True goes on"
        )
        self.record = record


class GenerationError(TilelliError):
    """Sampling settings outside their range."""


class RentalError(TilelliError):
    """A rented machine that cannot be had, found or reached."""


class MissingDependency(TilelliError):
    """A library that this one function needs and that is not installed."""


class EvaluationError(TilelliError):
    """A measure that is undefined for what it was given."""
