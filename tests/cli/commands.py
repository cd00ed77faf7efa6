"""The command line, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from paddlenlp_codegen_task import cli

RUNNER = CliRunner()
COMMAND = [sys.executable, "-m", "paddlenlp_codegen_task"]


def of_builtin(home: Path) -> list[str]:
    """Options that load the built-in model as other tests do."""
    return ["--model=builtin", f"--home-path={home}", "--engine=onnxruntime", "--num-threads=1"]


def invoke(arguments: list[str], text: str | bytes | None = None, **environment: str) -> Result:
    """Run a command in this process."""
    return RUNNER.invoke(cli.app, arguments, input=text, env=environment)


def done(arguments: list[str], text: str | bytes | None = None) -> str:
    """What a command that goes well writes."""
    result = invoke(arguments, text)
    assert result.exit_code == 0, result.output
    assert result.exception is None
    return result.stdout


def refused(
    arguments: list[str],
    environment: dict[str, str] | None = None,
    code: int = 2,
    text: str | bytes | None = None,
) -> str:
    """The one line that says why a command line is refused, or has failed."""
    result = RUNNER.invoke(cli.app, arguments, env=environment, input=text)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("paddlenlp-codegen: ")
    return line.removeprefix("paddlenlp-codegen: ")


def in_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run([*COMMAND, *arguments], check=False, **settings)
