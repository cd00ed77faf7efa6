"""What all commands share: how they end, what they say, and sizes."""

from __future__ import annotations

import logging
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from paddlenlp_codegen_task import checks

logger = logging.getLogger(__name__)

# Typer has click's exceptions, in some versions as a copy of its own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_BYTES = re.compile(r"([0-9]+)\s*(|[kmgt])(?:i?b)?", re.IGNORECASE)

# The options of loading in errors, as they are called here; those that are words, at the beginning.
_NAMES = {
    **dict.fromkeys(("name_or_path", "task_path"), "--model"),
    **{
        name: "--" + name.replace("_", "-")
        for name in (
            *("batch_size", "kv_cache_bytes", "prefix_cache_bytes", "draft_model", "home_path"),
            *(
                "num_threads",
                "engine",
                "precision",
                "device",
                "overflow",
                "truncation",
                "log_level",
            ),
        )
    },
}
_OPTION = re.compile(
    rf"^(?:{'|'.join(_NAMES)})\b|\b(?:{'|'.join(name for name in _NAMES if '_' in name)})\b"
)


class Commands(TyperGroup):
    """Commands whose errors are one line each, and help where none is named."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line."""
        given = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except _UsageError as error:
            fail(error.format_message())  # type: ignore[attr-defined]
        except typer.Abort:
            code = 130
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def fail(message: str) -> NoReturn:
    """End with an error, on one line."""
    typer.echo(f"paddlenlp-codegen: {checks.line(message, 600)}", err=True)
    raise SystemExit(2)


def bytes_of(given: str | int) -> int:
    """A number of bytes: "1000000", "512M", "8GiB"."""
    text = str(given)
    match = _BYTES.fullmatch(text.strip())
    if match is None or len(match[1]) > 15:
        raise typer.BadParameter(f"{checks.shown(text)} is no size, such as 1000000, 512M or 8G")
    return int(match[1]) << _UNITS[match[2].lower()]


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have a signal end the process in order: loading takes back what it had half written."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(0)

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def told() -> Iterator[None]:
    """End with one line where something cannot be, its options named as on the command line."""
    try:
        yield
    except ImportError as error:
        fail(f"{error}: pip install 'paddlenlp_codegen_task[serve]' brings what the server needs")
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # as loading raises them
        logger.debug("this has failed", exc_info=True)
        message = str(error).replace("draft_model: task_path", "draft_model")
        message = message.replace("from_hf_hub=True", "--from-hf-hub")
        fail(_OPTION.sub(lambda found: _NAMES[found[0]], message))


def log(level: str) -> None:
    """Write what happens to standard error, from this level on."""
    levels = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    number = levels[checks.choice("log_level", level, list(levels))]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=max(number, 30))
    logging.getLogger("paddlenlp_codegen_task").setLevel(number)
