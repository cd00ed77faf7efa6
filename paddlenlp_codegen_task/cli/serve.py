"""`serve`: completions over HTTP."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.cli.base import bytes_of, ended_by_signals, log, output, told
from paddlenlp_codegen_task.cli.loading import load
from paddlenlp_codegen_task.cli.options import with_options
from paddlenlp_codegen_task.cli.ray import PANEL, Address

if TYPE_CHECKING:
    from paddlenlp_codegen_task.serving.settings import Settings


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found <= 1e6:
        raise typer.BadParameter(f"{checks.shown(text)} is no number of seconds from 0 to 1000000")
    return found


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", text):
        raise typer.BadParameter(
            f"{checks.shown(text)} is no origin, such as https://example.com or *"
        )
    return text


_LISTEN, _LIMITS, _LOG = "Where to listen, and who may ask", "Limits", "Log"
_BATCH_SIZE = 32
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@with_options(
    loading=True,
    shown={
        "batch_size": str(_BATCH_SIZE),
        "prefix_cache_bytes": "a quarter of what the model leaves free on the host",
    },
)
def serve(
    loading: dict[str, Any],
    host: Annotated[
        str, typer.Option(help="Address to listen on.", rich_help_panel=_LISTEN)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            help="Port to listen on; 0 for any.",
            metavar="N",
            min=0,
            max=65535,
            rich_help_panel=_LISTEN,
        ),
    ] = 8978,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that lets a client in; may be given several times. Whoever can list "
            "processes sees it: better in a file, or in the environment variable "
            "PADDLENLP_CODEGEN_API_KEY (several apart by commas).",
            rich_help_panel=_LISTEN,
            show_default=False,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with a key a line; lines that begin with # do not count.",
            rich_help_panel=_LISTEN,
        ),
    ] = None,
    no_api_key: Annotated[
        bool,
        typer.Option(
            "--no-api-key",
            help="Let everybody in who can reach the address, on other machines too.",
            rich_help_panel=_LISTEN,
        ),
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            parser=_origin,
            metavar="ORIGIN",
            help="A web page's origin that may ask from a browser, * for all; may be given several "
            "times.",
            rich_help_panel=_LISTEN,
            show_default=False,
        ),
    ] = None,
    max_waiting: Annotated[
        int,
        typer.Option(
            help="Sequences that may wait beyond those that run; whoever comes then gets 429.",
            metavar="N",
            min=0,
            rich_help_panel=_LIMITS,
        ),
    ] = 256,
    request_timeout: Annotated[
        float | None,
        typer.Option(
            parser=_seconds,
            metavar="SECONDS",
            help="That a request may take, waiting included; then 504.",
            show_default="any",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    drain_seconds: Annotated[
        float,
        typer.Option(
            parser=_seconds,
            metavar="SECONDS",
            help="That running requests have to end once the server is to stop.",
            rich_help_panel=_LIMITS,
        ),
    ] = 30.0,
    overflow: Annotated[
        str,
        typer.Option(
            help="Prompts that do not fit: error (400), or truncate_left (their beginning is "
            "dropped).",
            rich_help_panel=_LIMITS,
        ),
    ] = "error",
    truncation: Annotated[
        str | None,
        typer.Option(
            help="Preset that ends completions where a request names none, such as python.",
            show_default="none",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    no_token_healing: Annotated[
        bool,
        typer.Option(
            "--no-token-healing",
            help="Complete prompts as they are, also where they end within a word, where a request "
            "does not say.",
            rich_help_panel=_LIMITS,
        ),
    ] = False,
    max_body_bytes: Annotated[
        int,
        typer.Option(
            parser=bytes_of,
            metavar="BYTES",
            help="Most bytes of a request.",
            show_default="4M",
            rich_help_panel=_LIMITS,
        ),
    ] = 4 << 20,
    max_prompts: Annotated[
        int,
        typer.Option(
            help="Most prompts of a request.", metavar="N", min=1, rich_help_panel=_LIMITS
        ),
    ] = 256,
    max_n: Annotated[
        int, typer.Option(help="Most n and best_of.", metavar="N", min=1, rich_help_panel=_LIMITS)
    ] = 64,
    log_level: Annotated[
        str,
        typer.Option(
            help="debug, info (a line a request), warning or error.", rich_help_panel=_LOG
        ),
    ] = "info",
    ray: Address = None,
    replicas: Annotated[
        str | None,
        typer.Option(
            help="How many replicas of the model, or MIN:MAX for as many as what waits needs. Each "
            "takes as many CPUs as --num-threads says, by default all of the smallest node's; with "
            "--device=gpu a GPU.",
            metavar="N",
            rich_help_panel=PANEL,
            show_default="as many as there is room for",
        ),
    ] = None,
) -> None:
    """Serve completions over HTTP.

    OpenAI's API, and what FauxPilot's, TGI's and Ollama's clients send.

    SIGTERM or Ctrl+C ends it once what runs has ended; a second one ends it at once.
    """
    with ended_by_signals():
        with told():
            from paddlenlp_codegen_task.serving import keys
            from paddlenlp_codegen_task.serving.settings import Settings

            if replicas is not None and ray is None:
                raise ValueError("replicas: goes with --ray alone")
            log(log_level)
            settings = Settings(
                keys.collect(api_key or (), api_key_file, os.environ.get(keys.VARIABLE, "")),
                overflow=overflow,  # type: ignore[arg-type]  # which checks it
                max_waiting=max_waiting,
                request_timeout=request_timeout or None,
                drain_seconds=drain_seconds,
                max_body_bytes=max_body_bytes,
                max_prompts=max_prompts,
                max_n=max_n,
                cors_origins=tuple(cors_origin or ()),
                truncation=truncation,
                token_healing=not no_token_healing,
            )
        if ray is None:
            _serve_here(loading, settings, host, port, no_api_key)
        else:
            _serve_on_ray(ray, replicas, loading, settings, host, port, no_api_key, log_level)


def _serve_here(
    loading: dict[str, Any], settings: Settings, host: str, port: int, no_api_key: bool
) -> None:
    with told():
        from paddlenlp_codegen_task.serving import run
        from paddlenlp_codegen_task.serving.app import create_app

        listener = run.listen(host, port)
        public = run.is_public(listener)
        _check_key(host, public, settings, no_api_key)
        generator = load({"batch_size": _BATCH_SIZE, **loading})
        if "prefix_cache_bytes" not in loading:
            run.keep_prefixes(generator)
    with listener, generator:
        _say_who(public, settings)
        typer.echo(f"serving {generator.name} at {run.url(listener)}")
        server = run.Server(create_app(generator, settings), settings.drain_seconds, listener)
        server.serve_until_stopped()


def _serve_on_ray(
    address: str,
    replicas: str | None,
    loading: dict[str, Any],
    settings: Settings,
    host: str,
    port: int,
    no_api_key: bool,
    log_level: str,
) -> None:
    with told("ray"):
        from paddlenlp_codegen_task.distributed import application, cluster, running

        if not port:
            raise ValueError("port must be given with --ray: every node listens at it")
        public = host not in _LOOPBACK
        _check_key(host, public, settings, no_api_key)
        results = output()  # of this command: while Ray is there, it has standard output
        with cluster.connected(address):
            built = application.build(loading, settings, replicas, log_level)
            # Again, as Ray has taken SIGTERM.
            with ended_by_signals(), running.deployed(built, host, port):
                _say_who(public, settings)
                name = loading.get("model", "the default model")
                typer.echo(f"serving {name} on {address} at http://{host}:{port}", file=results)
                running.wait()


def _check_key(host: str, public: bool, settings: Settings, no_api_key: bool) -> None:
    if public and not (settings.api_keys or no_api_key):
        raise ValueError(
            f"--host {host}: other machines can reach it, and there is no key: give "
            "--api-key-file, --api-key or PADDLENLP_CODEGEN_API_KEY, or --no-api-key to "
            "let everybody in"
        )


def _say_who(public: bool, settings: Settings) -> None:
    if not settings.api_keys:
        who = "everybody who reaches it" if public else "this machine alone, without a key"
        typer.echo(f"open to {who}", err=True)
