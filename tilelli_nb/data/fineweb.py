"""FineWeb-Edu: educational web pages, streamed from the Hugging Face hub or read from
parquet files of its schema.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..errors import DataError, MissingDependency
from ..files import at_home
from .shards import MANIFEST, Shards, ShardWriter, prepare_shards, read_manifest

REPO = "HuggingFaceFW/fineweb-edu"
SUBSET = "sample-10BT"  # ten billion tokens, the smallest sample that it has
COLUMNS = ["text", "score"]  # score: how educational, by a classifier

# smaller than others: a run that does not wait for the writer begins after its first
# commit
FINEWEB_SHARD_BYTES = 8 * 2**20

ON_THE_HUB = (
    f"the hub cannot be reached for {REPO}",
    "check the network and give the same command again, or give --files; "
    "on a laptop `stories` will do",
)
ON_DISK = (
    "the parquet files are not in the format of FineWeb-Edu",
    "the columns `text` and `score` are needed in every file; "
    "for text alone name the folder as the corpus",
)


class FineWebEdu:
    """An iterator of documents that can say where it is, so that a writer that was
    killed goes on from there.

    `files` is a folder of .parquet files to read in place of the hub. Documents below
    `min_score` (how educational, 0 to 5) are passed over. Of several nodes, number
    `rank` of `world` reads its own share. The document that reaches `limit_bytes` of
    UTF-8 is the last. `commit` pins the dataset on the hub; the newest one unless
    given. Raises MissingDependency without `datasets`, DataError for what cannot be
    read. After Penedo et al. 2024, arXiv:2406.17557.
    """

    def __init__(
        self,
        files: str | Path | None = None,
        *,
        limit_bytes: int,
        min_score: float = 0.0,
        rank: int = 0,
        world: int = 1,
        progress: bool = False,
        commit: str | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise DataError(
                f"rank {rank} of {world} nodes does not exist",
                "ranks go from 0 to world - 1",
            )
        self.limit_bytes = limit_bytes
        self.min_score = min_score
        self.rank = rank
        self.world = world
        self.progress = progress
        self.read_bytes = 0
        self.files = list_files(at_home(files)) if files else []
        if self.files:
            # their names and sizes stand for the commit
            sizes = [(file.name, file.stat().st_size) for file in self.files]
            self.commit = " ".join(f"{name} ({size} bytes)" for name, size in sizes)
        else:
            self.commit = commit or newest_commit()

    @cached_property
    def rows(self) -> Any:
        """The dataset, opened when the first document is wanted: shards that are
        complete need no network.
        """
        rows = load_local(self.files) if self.files else load_hub(self.commit)
        if self.world == 1:
            return rows
        from datasets.distributed import split_dataset_by_node

        return split_dataset_by_node(rows, self.rank, self.world)

    @property
    def revision(self) -> str:
        """Everything that decides which documents come, for the manifest."""
        megabytes = self.limit_bytes / 1e6
        share = f", node {self.rank} of {self.world}" if self.world > 1 else ""
        return (
            f"{self.commit}, score {self.min_score:g} or more, {megabytes:g} MB{share}"
        )

    def state(self) -> dict[str, Any]:
        """Where the iterator is, as JSON."""
        return {"rows": self.rows.state_dict(), "read_bytes": self.read_bytes}

    def resume(self, state: dict[str, Any]) -> None:
        """Goes on behind the document that was the last when `state` was taken."""
        self.rows.load_state_dict(state["rows"])
        self.read_bytes = state["read_bytes"]

    def __iter__(self) -> Iterator[str]:
        if self.read_bytes >= self.limit_bytes:
            return  # resumed behind the last document
        rows = self.rows
        bar = tqdm(
            total=self.limit_bytes,
            initial=self.read_bytes,
            unit="B",
            unit_scale=True,
            disable=not self.progress,
        )
        with bar, as_data_error(*(ON_DISK if self.files else ON_THE_HUB)):
            for row in rows:
                text, score = row["text"], row["score"]
                if not text or score is None or score < self.min_score:
                    continue
                size = utf8_bytes(text)
                # before the yield: a state that is taken meanwhile counts this document
                self.read_bytes += size
                bar.update(size)
                yield text
                if self.read_bytes >= self.limit_bytes:
                    return


def utf8_bytes(text: str) -> int:
    """The size of a text in bytes; most pages are ASCII and need not be encoded."""
    if text.isascii():
        return len(text)
    return len(text.encode("utf-8", errors="replace"))


def newest_commit() -> str:
    """The subset, and the commit that the dataset on the hub is at now."""
    import_datasets()
    from huggingface_hub import HfApi

    with as_data_error(*ON_THE_HUB):
        return f"{SUBSET} at {HfApi().dataset_info(REPO).sha}"


def load_hub(commit: str) -> Any:
    """The streamed rows of the dataset on the hub at a commit. Nothing is stored but
    what the writer writes.
    """
    datasets = import_datasets()
    sha = commit.split()[-1]  # of "sample-10BT at SHA"
    with as_data_error(*ON_THE_HUB):
        rows = datasets.load_dataset(
            REPO, SUBSET, split="train", streaming=True, revision=sha
        )
    return rows.select_columns(COLUMNS)


def load_local(files: list[Path]) -> Any:
    """The streamed rows of parquet files."""
    datasets = import_datasets()
    names = [str(file) for file in files]
    with as_data_error(*ON_DISK):
        rows = datasets.load_dataset(
            "parquet", data_files=names, split="train", streaming=True
        )
        rows = rows.select_columns(COLUMNS)
        # read one: a column that is missing is only found out then
        next(iter(rows), None)
    return rows


def list_files(folder: Path) -> list[Path]:
    """The .parquet files of a folder, or the one file. Raises DataError for none."""
    files = sorted(folder.glob("**/*.parquet"))
    if folder.is_file():
        files = [folder]
    if not files:
        raise DataError(
            f"{folder.name} holds no .parquet file",
            "give --files the folder that the files were put into",
        )
    return files


@contextmanager
def as_data_error(problem: str, fix: str) -> Iterator[None]:
    """Whatever the libraries below raise, each its own kinds, as one DataError."""
    try:
        yield
    except Exception as error:  # Ctrl-C is none, and goes through
        raise DataError(f"{problem} ({type(error).__name__})", fix) from error


def import_datasets() -> Any:
    """The library; it takes two seconds to import, so only who needs it waits."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            "FineWeb-Edu is read with the library datasets", "pip install datasets"
        ) from error
    datasets.disable_progress_bars()
    return datasets


# Its shards


def prepare_fineweb(folder: str | Path | None = None, **options: Any) -> Shards:
    """The shards of FineWeb-Edu, written when missing; the options are
    fineweb_source's, `progress=True` shows bytes/s and the time left.
    """
    folder, source = fineweb_source(folder, **options)
    return write_fineweb(folder, source)


def write_fineweb(folder: Path, source: FineWebEdu) -> Shards:
    """Writes what `source` yields as shards, or goes on where a writer was stopped."""
    return prepare_shards(
        source,
        folder,
        "fineweb-edu",
        revision=source.revision,
        shard_bytes=FINEWEB_SHARD_BYTES,
    )


def fineweb_source(
    folder: str | Path | None = None,
    *,
    limit_bytes: int,
    rank: int = 0,
    world: int = 1,
    **options: Any,
) -> tuple[Path, FineWebEdu]:
    """Where the shards of FineWeb-Edu go, data/fineweb-edu-SIZE unless given, and what
    is read; see FineWebEdu.

    Shards stay with the dataset's commit that they were begun at. DataError when the
    folder holds others, or when the disk is too small for all of it.
    """
    folder = at_home(folder or default_folder(limit_bytes, rank, world))
    begun_at = None  # the commit that the shards in the folder come from
    written, is_complete = 0, False
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder)
        if found["source"] != "fineweb-edu":
            raise DataError(
                f"{folder.name} holds shards of {found['source']!r}, "
                "not of 'fineweb-edu'",
                "choose another folder, or delete this one",
            )
        begun_at = (found["revision"] or "").split(", score")[0]  # see `revision`
        written = sum(shard["bytes"] for shard in found["shards"])
        is_complete = found["complete"]
    if not is_complete:
        check_disk(folder, limit_bytes - written)
    # on the hub it is "sample-10BT at ...", else names and sizes of files
    is_from_files = begun_at and not begun_at.startswith(SUBSET)
    if is_from_files and not is_complete and not options.get("files"):
        raise DataError(
            f"{folder.name} was begun from files ({begun_at[:60]})",
            "give the same --files to go on",
        )
    source = FineWebEdu(
        limit_bytes=limit_bytes, rank=rank, world=world, commit=begun_at, **options
    )
    # refuses a folder of other shards
    ShardWriter(folder, "fineweb-edu", source.revision, FINEWEB_SHARD_BYTES)
    return folder, source


def default_folder(limit_bytes: int, rank: int = 0, world: int = 1) -> Path:
    """Where the shards go unless told otherwise."""
    name = f"fineweb-edu-{limit_bytes / 1e6:g}mb"
    if world > 1:
        name += f"-node{rank}of{world}"
    return Path("data") / name


def check_disk(folder: Path, needed: int) -> None:
    """Raises DataError before a long download when the disk has no room for it and a
    little more.
    """
    place = folder.absolute()
    while not place.exists():  # the folder itself is not made yet
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed * 1.02 + 2**26:
        raise DataError(
            f"{needed / 1e9:.2f} GB are asked for and {free / 1e9:.2f} GB of disk "
            "are free",
            "make room, or ask for fewer --gigabytes",
        )
