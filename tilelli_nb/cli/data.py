"""`tilelli data`: makes the shards of a corpus."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CORPUS_HELP,
    FINEWEB,
    FINEWEB_HELP,
    MinScore,
    ParquetFiles,
    refuse,
)

Corpus = Annotated[str, typer.Argument(help=FINEWEB_HELP + CORPUS_HELP)]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the shards; data/NAME unless given")
]
Megabytes = Annotated[
    float, typer.Option(help="How much text to make, at most; files are read whole")
]
Gigabytes = Annotated[
    float | None, typer.Option(help=f"{FINEWEB}: how much text, at most")
]
Seed = Annotated[int, typer.Option(help="Seed of generated text")]
Rank = Annotated[int, typer.Option(help=f"{FINEWEB}: number of this node")]
World = Annotated[int, typer.Option(help=f"{FINEWEB}: how many nodes share the work")]


def data(
    corpus: Corpus,
    out: Out = None,
    megabytes: Megabytes = 10.0,
    seed: Seed = 0,
    gigabytes: Gigabytes = None,
    min_score: MinScore = 0.0,
    files: ParquetFiles = None,
    rank: Rank = 0,
    world: World = 1,
) -> None:
    """Turns a corpus into shards: files of raw bytes with a manifest, one document in
    twenty held out.

    Killed or stopped, the same command goes on where it was: no document twice, none
    missing.
    """
    # imported here, as in every command, so that `tilelli --help` is quick
    from ..data.corpus import prepare_corpus
    from ..data.fineweb import prepare_fineweb

    try:
        if corpus == FINEWEB:
            refuse({"seed": seed}, f"not for {FINEWEB}", "leave it out")
            # --megabytes, for a try
            limit_bytes = gigabytes * 1e9 if gigabytes else megabytes * 1e6
            shards = prepare_fineweb(
                out,
                files=files,
                limit_bytes=int(limit_bytes),
                min_score=min_score,
                rank=rank,
                world=world,
                progress=True,  # it takes minutes for each gigabyte
            )
        else:
            options = {"gigabytes": gigabytes, "min-score": min_score, "files": files}
            nodes = {"rank": rank, "world": world != 1}  # 1 is not to have given it
            refuse(options | nodes, f"for {FINEWEB}, not for {corpus}", "leave it out")
            shards = prepare_corpus(corpus, out, megabytes=megabytes, seed=seed)
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
