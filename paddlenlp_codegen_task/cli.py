"""The command line. Each command imports what it needs itself: `--help` is to be there at once."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="paddlenlp-codegen",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Code completion with Salesforce CodeGen."""


@app.command()
def serve(
    model: Annotated[str | None, typer.Option(help="Name or folder of the model.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any.")] = 8978,
    batch_size: Annotated[int, typer.Option(help="Most sequences that run at once.")] = 32,
) -> None:
    """Serve completions over HTTP, as OpenAI's API has them."""
    from paddlenlp_codegen_task.generator import CodeGenerator
    from paddlenlp_codegen_task.serving.app import create_app
    from paddlenlp_codegen_task.serving.run import Server, listen
    from paddlenlp_codegen_task.serving.settings import Settings

    settings = Settings()
    listener = listen(host, port)
    with CodeGenerator.from_pretrained(model, batch_size=batch_size) as generator:
        where = listener.getsockname()
        typer.echo(f"serving {generator.name} at http://{where[0]}:{where[1]}")
        Server(
            create_app(generator, settings), settings.drain_seconds, listener
        ).serve_until_stopped()


if __name__ == "__main__":
    app()
