"""`tilelli cost`: a plan for your card and your price, and the ledger of the runs."""

from typing import Annotated

import typer

from .options import ConfigName

Gpu = Annotated[
    str | None,
    typer.Option(help='A card, such as A6000 or "H100 SXM"; all of them if none'),
]
Price = Annotated[
    float | None, typer.Option(help="What you pay; the table's price unless given")
]
Steps = Annotated[
    int | None,
    typer.Option(help="Length of the run; the configuration's unless given"),
]
Speed = Annotated[float | None, typer.Option(help="A speed that you have measured")]


def cost(
    config: ConfigName = "lite_10m",
    gpu: Gpu = None,
    usd_per_hour: Price = None,
    steps: Steps = None,
    bytes_per_s: Speed = None,
) -> None:
    """Says how long a run will take on which card and what it will cost, and what the
    runs so far have cost.
    """
    from ..config import load_config
    from ..training.cost import report

    # a card costs the same whatever it trains; the configuration says for how long
    settings = load_config(config)
    if steps is not None:
        settings = settings.with_train(steps=steps)
    for line in report(settings, gpu, usd_per_hour, bytes_per_s):
        typer.echo(line)
