"""What all commands share: how they end, what they say, and sizes."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any, NoReturn

import typer
from typer.core import TyperGroup

from paddlenlp_codegen_task import checks, interrupts
from paddlenlp_codegen_task.generation_config import GenerationConfig

logger = logging.getLogger(__name__)

# Exit codes: what was asked for has failed; it cannot be; and as shells have it where a signal ends
# a process, here Ctrl+C and a reader of the output that is gone.
FAILED, USAGE, INTERRUPTED, NO_READER = 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE

# Typer has click's exceptions, in some versions as a copy of its own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_BYTES = re.compile(r"([0-9]+)\s*(|[kmgt])(?:i?b)?", re.IGNORECASE)

# Options in errors, as they are called here. Those that are words of English, too, are told at the
# beginning of an error or before "=".
_OF_LOADING = ["batch_size", "kv_cache_bytes", "prefix_cache_bytes", "draft_model", "home_path"]
_OF_LOADING += ["num_threads", "engine", "precision", "device", "static_mode", "cuda_graph"]
_OF_LOADING += ["qkv_groups", "adapter", "kv_precision"]
_NAMES = {
    **dict.fromkeys(("name_or_path", "task_path"), "--model"),
    **{
        name: "--" + name.replace("_", "-")
        for name in (
            *(
                *_OF_LOADING,
                "from_hf_hub",
                "overflow",
                "overwrite",
                "log_level",
                "port",
                "ray",
                "ray_workers",
                "replicas",
            ),
            *GenerationConfig.field_names(),
        )
    },
}
_ANY = "|".join(_NAMES)
_SWITCHED = re.compile(rf"\b({_ANY})=(True|False)\b")
_SET = re.compile(rf"\b({_ANY})=")
_OPTION = re.compile(rf"^(?:{_ANY})\b|\b(?:{'|'.join(name for name in _NAMES if '_' in name)})\b")


class Commands(TyperGroup):
    """Commands whose errors are one line each, and help where none is named."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options before a command; those that are not given are False.

        What typer would make of None takes it a tenth of a second, whatever the command.
        """
        found = super().get_params(ctx)
        for one in found:
            if one.default is None and getattr(one, "is_flag", False):
                one.default = False
        return found

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
            flush()
        except _UsageError as error:
            fail(error.format_message(), USAGE)  # type: ignore[attr-defined]
        except (typer.Abort, KeyboardInterrupt):
            code = INTERRUPTED
        except BrokenPipeError:
            _forget_output()
            code = NO_READER
        except OSError as error:  # of help, or of what else is written before a command begins
            _fail_to_write(error)
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def say(message: str) -> None:
    """Tell the user something that is no result, on one line of standard error."""
    with suppress(OSError, ValueError):  # it may be closed: then nobody listens
        typer.echo(f"paddlenlp-codegen: {checks.line(message, 600)}", err=True)


def fail(message: str, code: int = FAILED) -> NoReturn:
    """End with an error, on one line."""
    say(message)
    raise SystemExit(code)


def write(text: str) -> None:
    """Write a result.

    Raises:
        BrokenPipeError: nobody reads them any more.
        SystemExit: it cannot be written.
    """
    try:
        output().write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        _fail_to_write(error)


def flush() -> None:
    """Have results where they belong, before a command goes on or is said to have gone well.

    Raises:
        BrokenPipeError: nobody reads them any more.
        SystemExit: they cannot be written.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _fail_to_write(error)


def output() -> IO[str]:
    """Standard output, for results.

    Raises:
        SystemExit: there is none.
    """
    if sys.stdout is None:
        fail("standard output is closed")
    return sys.stdout


def _fail_to_write(error: OSError) -> NoReturn:
    _forget_output()
    fail(f"cannot write to standard output: {error.strerror or error}")


def _forget_output() -> None:
    """Keep Python from writing at its end what could not be written, and from saying so."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def bytes_of(given: str | int) -> int:
    """A number of bytes: "1000000", "512M", "8GiB"."""
    text = str(given)
    match = _BYTES.fullmatch(text.strip())
    if match is None or len(match[1]) > 15:
        raise typer.BadParameter(f"{checks.shown(text)} is no size, such as 1000000, 512M or 8G")
    return int(match[1]) << _UNITS[match[2].lower()]


def size_of(count: int) -> str:
    """A number of bytes as one reads it: "12.3 MB"."""
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


@contextmanager
def ended_by_signals(code: int = 0) -> Iterator[None]:
    """Have a signal end the process in order, with this exit code: nothing stays half written."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(code)

    before = {one: signal.signal(one, end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def told(extra: str = "serve") -> Iterator[None]:
    """End with one line where something cannot be, its options named as on the command line.

    Args:
        extra: the extra of this package that brings what may be missing.
    """
    try:
        with interrupts.not_taken_for_errors():
            yield
        flush()
    except BrokenPipeError:  # whoever reads has seen enough
        _forget_output()
        raise SystemExit(NO_READER) from None
    except ImportError as error:
        fail(f"{error}: pip install 'paddlenlp_codegen_task[{extra}]' brings what is needed")
    except (TypeError, ValueError) as error:
        logger.debug("this cannot be", exc_info=True)
        fail(in_options(str(error)), USAGE)
    except (OSError, RuntimeError, MemoryError, FloatingPointError) as error:
        logger.debug("this has failed", exc_info=True)
        fail(in_options(str(error) or "there is too little memory"))


def in_options(message: str) -> str:
    """An error of the package, with options as they are called on the command line."""
    message = message.replace("draft_model: task_path", "draft_model")

    def switch(match: re.Match[str]) -> str:
        name = _NAMES[match[1]]
        return name if match[2] == "True" else f"--no-{name[2:]}"

    message = _SWITCHED.sub(switch, message)
    message = _SET.sub(lambda found: f"{_NAMES[found[1]]}=", message)
    return _OPTION.sub(lambda found: _NAMES[found[0]], message)


def log(level: str) -> None:
    """Write what happens to standard error, from this level on."""
    levels = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    number = levels[checks.choice("log_level", level, list(levels))]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=max(number, 30))
    logging.getLogger("paddlenlp_codegen_task").setLevel(number)


class _Plain(logging.Formatter):
    """One line, as errors are, with options as they are called on the command line."""

    def format(self, record: logging.LogRecord) -> str:
        return f"paddlenlp-codegen: {checks.line(in_options(record.getMessage()), 600)}"


def tell() -> None:
    """Write what takes long, and warnings, to standard error, and nothing of other packages."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logging.basicConfig(handlers=[handler], level=logging.ERROR)
    logging.getLogger("paddlenlp_codegen_task").setLevel(logging.INFO)
