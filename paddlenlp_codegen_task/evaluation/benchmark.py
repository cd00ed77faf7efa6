"""What a benchmark is to those who run it."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox
from paddlenlp_codegen_task.generator import CodeGenerator

T = TypeVar("T")

Line = dict[str, Any]  # of samples.jsonl or results.jsonl
Key = tuple[Any, ...]  # tells a sample, or its result, from others


@dataclass(frozen=True)
class Result:
    """Whether a completion is right, and what was wrong with it, on one line."""

    passed: bool
    text: str


class Benchmark(Protocol):
    """Problems, how they are completed, and what tells right completions from wrong ones.

    Attributes:
        name: of the benchmark.
        fingerprint: tells its problems from others.
        seconds: for a program.
    """

    name: str
    fingerprint: str
    seconds: float

    def keys(self, sampling: Sampling) -> list[Key]:
        """All samples that there are to be, in the order of a finished run's files."""

    def key_of(self, line: Mapping[str, Any]) -> Key:
        """What tells a line from others."""

    def complete(
        self, generator: CodeGenerator, sampling: Sampling, done: Container[Key]
    ) -> Iterator[list[Line]]:
        """Complete everything that is not done, in one run; an iterator of lines as they come."""

    def checked(self, line: Mapping[str, Any]) -> Line:
        """A sample that somebody else has made, with all fields but `sample`.

        Raises:
            ValueError: it is none of this benchmark's; says what it "has no" or "must have".
        """

    def check(self, sandbox: Sandbox, line: Mapping[str, Any]) -> Result:
        """Run a sample's program, and judge it."""


def known_problem(problems: Mapping[str, T], line: Mapping[str, Any]) -> T:
    """The problem that a line is of.

    Raises:
        ValueError: there is no such problem.
    """
    task_id = line.get("task_id")
    if not isinstance(task_id, str) or task_id not in problems:
        raise ValueError(f"has no known problem as task_id, got {checks.shown(task_id)}")
    return problems[task_id]


def check_temperature(line: Mapping[str, Any]) -> float | None:
    """The temperature that a line says it was sampled at.

    Raises:
        ValueError: it is no number.
    """
    found = line.get("temperature")
    if found is None:
        return None
    if type(found) not in (int, float) or not math.isfinite(found):
        raise ValueError(f"must have a number as temperature, got {checks.shown(found)}")
    return float(found)
