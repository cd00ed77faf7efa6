"""MTPB: what programs print that were written in several turns, against what they should print."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.evaluation.benchmark import (
    Key,
    Line,
    Result,
    check_temperature,
    known_problem,
)
from paddlenlp_codegen_task.evaluation.conversations import MODES, converse
from paddlenlp_codegen_task.evaluation.problems import TurnsProblem, fingerprint
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox
from paddlenlp_codegen_task.evaluation.verdict import last_printed
from paddlenlp_codegen_task.generator import CodeGenerator

TOLERANCE = 1e-6  # of floats
SECONDS = 20.0  # for a program


class Turns:
    """See Benchmark."""

    name = "mtpb"
    seconds = SECONDS

    def __init__(self, problems: Sequence[TurnsProblem]) -> None:
        """Take the problems of mtpb.jsonl, or others like them."""
        self.problems = {problem.task_id: problem for problem in problems}
        self.fingerprint = fingerprint(list(problems))

    def keys(self, sampling: Sampling) -> list[Key]:
        """See Benchmark."""
        return [
            (problem.task_id, case, mode, temperature, number)
            for mode in MODES
            for temperature in sampling.temperatures
            for problem in self.problems.values()
            for case in range(len(problem.inputs))
            for number in range(sampling.of(temperature))
        ]

    def key_of(self, line: Mapping[str, Any]) -> Key:
        """See Benchmark."""
        return tuple(line[name] for name in ("task_id", "input", "mode", "temperature", "sample"))

    def complete(
        self, generator: CodeGenerator, sampling: Sampling, done: Container[Key]
    ) -> Iterator[list[Line]]:
        """See Benchmark."""
        new = (key for key in self.keys(sampling) if key not in done)
        return converse(generator, self.problems, sampling, new)

    def checked(self, line: Mapping[str, Any]) -> Line:
        """See Benchmark."""
        problem = known_problem(self.problems, line)
        cases = len(problem.inputs)
        case = line.get("input")
        if type(case) is not int or not 0 <= case < cases:
            raise ValueError(f"must have an input from 0 to {cases - 1}, got {checks.shown(case)}")
        mode = line.get("mode", MODES[0])
        if mode not in MODES:
            raise ValueError(f"must have {' or '.join(MODES)} as mode, got {checks.shown(mode)}")
        return {**line, "mode": mode, "temperature": check_temperature(line)}

    def check(self, sandbox: Sandbox, line: Mapping[str, Any]) -> Result:
        """See Benchmark. The expected value never enters the sandbox."""
        printed = last_printed(sandbox, line["completion"])
        if not printed.printed:
            return Result(False, printed.result)
        expected = self.problems[line["task_id"]].outputs[line["input"]]
        if same(printed.value, expected):
            return Result(True, "passed")
        return Result(False, f"failed: another value: {checks.shown(printed.value)}")


def same(value: Any, expected: Any) -> bool:
    """Whether a printed value is the expected one.

    As the benchmark's own scripts compare, but dictionaries and None, on which those fail (7 test
    cases), are compared as well, and floats within lists within TOLERANCE. JSON's dictionaries
    have texts as keys, so keys are compared as texts.

    Args:
        value: plain, as the program has printed it.
        expected: as JSON has it.
    """
    try:
        if type(value) is not type(expected):
            if isinstance(expected, bool) or expected is None:
                value, expected = str(value), str(expected)
            elif isinstance(expected, dict):  # not made of pairs: keys may be chosen to take hours
                return False
            else:
                value = type(expected)(value)
        return _equal(value, expected)
    except (TypeError, ValueError, OverflowError):  # of integers too large for a float, or a text
        return False


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, float) and type(value) in (int, float):
        return bool(value == expected or abs(value - expected) < TOLERANCE)
    if isinstance(expected, list):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(expected)
            and all(map(_equal, value, expected))
        )
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return False
        named = {str(name): one for name, one in value.items()}
        return named.keys() == expected.keys() and all(
            _equal(named[name], one) for name, one in expected.items()
        )
    return bool(value == expected)


def perplexity(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Of all comments of programs, given all before each; None where no token was counted."""
    tokens = sum(sum(line["prompt_tokens"]) for line in lines)
    total = math.fsum(math.fsum(line["prompt_log_probs"]) for line in lines)
    return math.exp(-total / tokens) if tokens else None


def perplexity_by_turn(lines: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The same of each turn's comments."""
    turns = max((len(line["prompt_tokens"]) for line in lines), default=0)
    found = []
    for turn in range(turns):
        pairs = [
            (line["prompt_tokens"][turn], line["prompt_log_probs"][turn])
            for line in lines
            if turn < len(line["prompt_tokens"])
        ]
        tokens = sum(count for count, _ in pairs)
        total = math.fsum(one for _, one in pairs)
        found.append(math.exp(-total / tokens) if tokens else None)
    return found
