"""`paddlenlp-codegen serve` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SERVE = [sys.executable, "-m", "paddlenlp_codegen_task", "serve"]


@dataclass
class Served:
    """A server that runs.

    Attributes:
        url: where.
        process: which; what it writes to standard error goes to `log`.
        log: a file.
    """

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)


def begin(home: Path, log: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start a server of the built-in model."""
    command = [*SERVE, "--model=builtin", "--home-path", str(home), "--port=0", *options]
    command += ["--engine=onnxruntime", "--num-threads=1"]
    with log.open("w") as opened:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=opened,
            text=True,
            env={**os.environ, **environment},
        )


@contextmanager
def served(home: Path, log: Path, *options: str, **environment: str) -> Iterator[Served]:
    """Start a server, and wait until it serves; it is killed at the end, if it still runs."""
    process = begin(home, log, *options, **environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving builtin at http://"), log.read_text()
        yield Served(line.split()[-1], process, log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
