"""What every system of the comparison runs in: a process that answers requests line by line.

Only the standard library is imported here, as each system has an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol


class Run:
    """One request: prompts of equal length, each to be continued by `new_tokens` tokens, greedily.

    Attributes:
        prompts: texts; all systems have the same vocabulary.
        prompt_tokens: to be set to the number of tokens that each prompt had.
        stamps: when each step's tokens were there, in seconds since the request.
        rows: how many prompts each step gave a token: all of them, unless it was told otherwise.
    """

    def __init__(self, prompts: list[str], new_tokens: int) -> None:
        self.prompts = prompts
        self.new_tokens = new_tokens
        self.prompt_tokens: list[int] = []
        self.stamps: list[float] = []
        self.rows: list[int] = []
        self._start = time.perf_counter()

    def stamp(self, rows: int | None = None) -> None:
        self.stamps.append(time.perf_counter() - self._start)
        self.rows.append(len(self.prompts) if rows is None else rows)


class Model(Protocol):
    """A loaded system."""

    def generate(self, run: Run) -> list[list[int]]:
        """Continue the prompts, calling `run.stamp()` a step; return the new tokens."""


def main(
    prepare: Callable[[Path, Path, str], None], load: Callable[[Path, str, int], Model]
) -> None:
    """Command line of a peer.

    Args:
        prepare: (checkpoint, folder, precision): convert the checkpoint into an empty folder.
        load: (folder, precision, threads): load what `prepare` wrote.
    """
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("folder", type=Path)
    command.add_argument("precision")
    command = commands.add_parser("serve")
    command.add_argument("folder", type=Path)
    command.add_argument("precision")
    command.add_argument("threads", type=int)
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.checkpoint, options.folder, options.precision)
        return
    answers = take_stdout()
    model = load(options.folder, options.precision, options.threads)
    for request in requests():
        run = Run(**request)
        tokens = model.generate(run)
        answer = {
            "prompt_tokens": run.prompt_tokens,
            "seconds": run.stamps,
            "rows": run.rows,
            "tokens": tokens,
            "peak_bytes": peak_bytes(),
        }
        print(json.dumps(answer), file=answers, flush=True)


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def take_stdout() -> Any:
    """Keep standard output for answers; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def requests() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)
