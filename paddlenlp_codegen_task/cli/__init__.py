"""The command line. Each command imports what it needs itself: `--help` is to be there at once."""

from __future__ import annotations

from typing import Annotated

import typer

from paddlenlp_codegen_task import __version__
from paddlenlp_codegen_task.cli.base import Commands
from paddlenlp_codegen_task.cli.batch import batch
from paddlenlp_codegen_task.cli.complete import complete
from paddlenlp_codegen_task.cli.doctor import doctor
from paddlenlp_codegen_task.cli.evaluate import evaluate
from paddlenlp_codegen_task.cli.export import export
from paddlenlp_codegen_task.cli.models import models
from paddlenlp_codegen_task.cli.serve import serve

app = typer.Typer(
    name="paddlenlp-codegen",
    cls=Commands,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    """Code completion with Salesforce CodeGen."""


app.command()(complete)
app.command()(batch)
app.command()(evaluate)
app.command()(export)
app.command()(models)
app.command()(serve)
app.command()(doctor)
