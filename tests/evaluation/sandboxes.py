"""Sandboxes for the tests, made once, by each way that this machine has."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from paddlenlp_codegen_task.evaluation.sandbox import Limits, Sandbox, SandboxUnavailable

ADD = 'def add(a, b):\n    """The sum."""\n'
CHECK_ADD = "def check(candidate):\n    assert candidate(1, 2) == 3\n"


@functools.cache
def _sandbox(way: str | None, limits: tuple[tuple[str, Any], ...]) -> Sandbox | str:
    try:
        return Sandbox(Limits(**dict(limits)), way=way)
    except SandboxUnavailable as error:
        return str(error)


def sandbox(way: str | None = None, **limits: Any) -> Sandbox:
    """By this way, or the test is skipped: a machine may have none, or bubblewrap not installed."""
    limits.setdefault("seconds", 30.0)  # of a machine that does other things, too
    made = _sandbox(way, tuple(sorted(limits.items())))
    if isinstance(made, str):
        pytest.skip(made)
    return made
