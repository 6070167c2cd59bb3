"""`tilelli data`: makes the shards of a corpus."""

import math
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigError
from .options import (
    CORPUS_HELP,
    FINEWEB,
    FINEWEB_HELP,
    MinScore,
    ParquetFiles,
    check_range,
    check_size,
    refuse,
)

Corpus = Annotated[str, typer.Argument(help=FINEWEB_HELP + CORPUS_HELP)]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the shards; data/NAME unless given")
]
Megabytes = Annotated[
    float | None,
    typer.Option(help="How much text to make, at most (10); files are read whole"),
]
Gigabytes = Annotated[
    float | None, typer.Option(help=f"{FINEWEB}: how much text, at most")
]
Seed = Annotated[int | None, typer.Option(help="Seed of generated stories (0)")]
Rank = Annotated[int | None, typer.Option(help=f"{FINEWEB}: number of this node")]
World = Annotated[
    int | None, typer.Option(help=f"{FINEWEB}: how many nodes share the work")
]


def data(
    corpus: Corpus,
    out: Out = None,
    megabytes: Megabytes = None,
    seed: Seed = None,
    gigabytes: Gigabytes = None,
    min_score: MinScore = None,
    files: ParquetFiles = None,
    rank: Rank = None,
    world: World = None,
) -> None:
    """Turns a corpus into shards: files of raw bytes with a manifest, one document in
    twenty held out.

    Killed or stopped, the same command goes on where it was: no document twice, none
    missing.
    """
    # imported here, as in every command, so that `tilelli --help` is quick
    from ..data.corpus import prepare_corpus
    from ..data.fineweb import prepare_fineweb

    check_size("megabytes", megabytes)
    check_size("gigabytes", gigabytes)
    check_range("min-score", min_score, 0, 5)
    check_range("seed", seed, 0, math.inf)
    given = {"megabytes": megabytes, "seed": seed, "gigabytes": gigabytes}
    given |= {"min-score": min_score, "files": files, "rank": rank, "world": world}
    refuse_for(corpus, given)
    if (world or 1) > 1 and rank is None:
        raise ConfigError(
            f"--world {world} without --rank", f"say which: --rank 0 to {world - 1}"
        )
    try:
        if corpus == FINEWEB:
            limit_bytes = gigabytes * 1e9 if gigabytes else (megabytes or 10) * 1e6
            shards = prepare_fineweb(
                out,
                files=files,
                limit_bytes=int(limit_bytes),
                min_score=min_score or 0.0,
                rank=rank or 0,
                world=1 if world is None else world,
                progress=True,  # it takes minutes for each gigabyte
            )
        else:
            shards = prepare_corpus(
                corpus, out, megabytes=megabytes or 10.0, seed=seed or 0
            )
    except KeyboardInterrupt:
        said = "stopped: what is written stays, and the same command goes on from there"
        typer.echo(said, err=True)
        raise typer.Exit(130) from None  # the shell's number for Ctrl-C
    documents = sum(shard["documents"] for shard in shards.manifest["shards"])
    typer.echo(
        f"{shards.folder}: {documents:,} documents, "
        f"{len(shards.train):,} bytes to train on, {len(shards.val):,} held out"
    )
    typer.echo(f"next: tilelli train --config nano --corpus {shards.folder}")


def refuse_for(corpus: str, given: dict[str, object]) -> None:
    """Raises ConfigError for options that this corpus has no use for; `given` has the
    values of all by their names.
    """

    def chosen(*names: str) -> dict[str, object]:
        return {name: given[name] for name in names}

    if corpus == FINEWEB:
        refuse(chosen("seed"), f"not for {FINEWEB}", "leave it out")
        if given["gigabytes"] is not None:
            refuse(chosen("megabytes"), "not for --gigabytes", "give one of them")
        return
    fineweb = chosen("gigabytes", "min-score", "files", "rank", "world")
    refuse(fineweb, f"for {FINEWEB}, not for {corpus}", "leave it out")
    if corpus == "docs":
        refuse(chosen("seed"), "for stories, not for docs", "leave it out")
    elif corpus != "stories":
        whole = "for text that is made here; files are read whole"
        refuse(chosen("megabytes", "seed"), whole, "leave it out")
