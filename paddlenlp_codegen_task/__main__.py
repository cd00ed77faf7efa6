"""The command `paddlenlp-codegen`: a process of its own, made ready before anything is imported."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import NoReturn

# What Paddle's and its companions' native code say on their own account; users may set these.
_QUIET = {
    "GLOG_minloglevel": "2",  # errors, no warnings
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> None:
    """Run the command line, and end the process with its exit code."""
    _open_what_is_closed()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:  # nohup's is not
            signal.signal(signum, _end)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # they are for who writes programs
    try:
        try:
            import typer  # noqa: F401
        except ImportError as error:
            _say(f"{error}: pip install 'paddlenlp_codegen_task[serve]' brings the command line")
            sys.exit(1)
        from paddlenlp_codegen_task.cli import app

        _keep_output_for_results()
        app()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _end(signum: int, _: object) -> NoReturn:
    """End in order: what is half written is taken back."""
    sys.exit(128 + signum)


def _open_what_is_closed() -> None:
    """Take the numbers of standard streams that are closed, lest a model's file gets one.

    Reading and writing there fails, as it should, rather than reaching another file.
    """
    for descriptor, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # the lowest that is free


def _keep_output_for_results() -> None:
    """Have whatever writes to standard output behind Python's back write to standard error."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a text that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if sys.stdout is None:
        return
    sys.stdout = open(  # noqa: SIM115 (open until the process ends)
        os.dup(1),
        "w",
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
        buffering=1 if sys.stdout.isatty() else -1,
    )
    os.dup2(2, 1)


def _say(message: str) -> None:
    if sys.stderr is not None:
        print(f"paddlenlp-codegen: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
