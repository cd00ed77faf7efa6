"""`doctor`: what would run here, what would not, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.cli.base import FAILED, flush, output, tell, told, write

if TYPE_CHECKING:
    from paddlenlp_codegen_task.cli.findings import Finding

_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def doctor(
    home_path: Annotated[
        str | None,
        typer.Option(
            help="Folder for models and exports.",
            metavar="PATH",
            show_default="$PPNLP_HOME, else ~/.paddlenlp",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write it all as one object.")] = False,
) -> None:
    """Try what this package needs, and say what to do where something would not work.

    Exit code 1 says that something would not: a line begins with PROBLEM then.
    """
    with told():
        tell()
        output()  # before anything that takes long
        found: list[Finding] = []
        for finding in _findings(home_path):
            found.append(finding)
            if not as_json:
                write(_lines(finding))
                flush()
        works = all(one.state != "problem" for one in found)
        if as_json:
            values = {"works": works, "findings": [asdict(one) for one in found]}
            write(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    if not works:
        raise typer.Exit(FAILED)


def _findings(home_path: str | None) -> Iterator[Finding]:
    """All there is to say, what takes longest last."""
    from paddlenlp_codegen_task.cli import findings

    with ThreadPoolExecutor(1) as pool:  # hubs may take seconds to answer
        hubs = pool.submit(findings.hubs, home_path)
        yield from findings.packages()
        yield from findings.processor()
        yield from findings.memory()
        yield from findings.gpus()
        yield from findings.taskflow()
        yield from findings.places(home_path)
        yield from hubs.result()
    yield from findings.engines()


def _lines(finding: Finding) -> str:
    """A finding as one reads it: how it is, what it is of, what to do."""
    found = checks.line(finding.found, 600)
    text = f"{_MARKS[finding.state]:8} {finding.subject}: {found}\n"
    if finding.advice:
        text += f"{'':8} -> {checks.line(finding.advice, 600)}\n"
    return text
