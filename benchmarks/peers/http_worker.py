"""What the servers of the comparison have in common: how they start, and where they listen."""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn


def arguments() -> argparse.ArgumentParser:
    """The command line: a folder that the peer's `prepare` wrote, and how to run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("precision")
    parser.add_argument("threads", type=int)
    return parser


def take_stdout() -> Any:
    """Keep standard output for answers; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def ready(answers: Any, listener: socket.socket) -> None:
    """Say where the server listens."""
    print(json.dumps({"port": listener.getsockname()[1]}), file=answers, flush=True)


def main(load: Callable[[Path, str, int], Any]) -> None:
    """Serve what `load` (folder, precision, threads) returns, at a free port that is printed."""
    answers = take_stdout()
    options = arguments().parse_args()
    app = load(options.folder, options.precision, options.threads)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        ready(answers, listener)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])
