"""The options of commands that may run on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "Ray"

Address = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Run on a Ray cluster: auto for the one that this machine is in, or HOST:PORT of its "
        "head.",
        metavar="ADDRESS",
        show_default="on this machine alone",
        rich_help_panel=PANEL,
    ),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--ray-workers",
        help="How many load the model, each on --num-threads CPUs or a GPU; MIN:MAX where the "
        "cluster grows.",
        metavar="N",
        show_default="as many as the cluster has room for",
        rich_help_panel=PANEL,
    ),
]


def check(ray: str | None, workers: str | None) -> None:
    """Raise an error unless the options go together."""
    if ray is None and workers is not None:
        raise ValueError("ray_workers: goes with --ray alone")
