from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task.evaluation.problems import (
    CODEX_STOPS,
    fill,
    fingerprint,
    human_eval_problems,
    read_problems,
    read_turns_problems,
)

FUNCTION: dict[str, Any] = {
    "task_id": "T/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "canonical_solution": "    return 2 * x\n",
}
MULTIPL_E: dict[str, Any] = {
    "name": "HumanEval_0_double",
    "language": "py",
    "prompt": "def double(x):\n",
    "tests": "def check(candidate):\n    assert candidate(2) == 4\n\n"
    "def test_check():\n    check(double)\n\ntest_check()\n",
    "stop_tokens": ["\ndef", "\n#"],
}
TURNS: dict[str, Any] = {
    "id": "7",
    "prompts": ['Assign "{A}" to a.', "Print a."],
    "inputs": [{"A": "x"}, {"A": [1, 2]}],
    "outputs": ["x", [1, 2], "left out"],
    "max_gen_length": 64,
}


def written(folder: Path, *lines: Any, name: str = "problems.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


def test_humaneval_is_read_from_its_package():
    problems = human_eval_problems()
    assert len(problems) == 164
    assert problems[0].task_id == "HumanEval/0"
    assert problems[0].entry_point == "has_close_elements"
    assert problems[0].stop == CODEX_STOPS
    assert all(problem.canonical_solution for problem in problems)


def test_humaneval_format(tmp_path: Path):
    [problem] = read_problems(written(tmp_path, FUNCTION))
    assert (problem.task_id, problem.entry_point) == ("T/0", "double")
    assert problem.canonical_solution == "    return 2 * x\n"
    packed = tmp_path / "problems.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(FUNCTION).encode()))
    assert read_problems(packed) == [problem]


def test_multipl_e_format(tmp_path: Path):
    [problem] = read_problems(written(tmp_path, MULTIPL_E))
    assert (problem.task_id, problem.entry_point) == ("HumanEval_0_double", "double")
    assert problem.stop == ("\ndef", "\n#")
    assert problem.test.rstrip() == "def check(candidate):\n    assert candidate(2) == 4"


def test_turns(tmp_path: Path):
    [problem] = read_turns_problems(written(tmp_path, TURNS))
    assert problem.outputs == ("x", [1, 2])
    assert problem.max_length == 64
    assert fill(problem.prompts[0], problem.inputs[1]) == 'Assign "[1, 2]" to a.'


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task_id": 5}, "task_id"),
        ({"prompt": ""}, "prompt"),
        ({"test": "assert True"}, "check(candidate)"),
        ({"test": None}, "test"),
        ({"entry_point": "a.b"}, "entry_point"),
        ({"canonical_solution": 3}, "canonical_solution"),
        ({"stop_tokens": "x"}, "stop_tokens"),
    ],
)
def test_what_is_no_problem_is_refused(tmp_path: Path, change: dict[str, Any], said: str):
    path = written(tmp_path, FUNCTION, {**FUNCTION, "task_id": "T/1", **change})
    with pytest.raises(ValueError, match=r"problems\.jsonl, line 2 ") as error:
        read_problems(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"prompts": "x"},
        {"prompts": ["{B}"]},
        {"prompts": ["{A.__class__}"]},
        {"prompts": ["{A!r}"]},
        {"prompts": ["{A:>1000000000}"]},
        {"prompts": ["{"]},
        {"prompts": ["{}"]},
        {"inputs": [3]},
        {"inputs": []},
        {"outputs": ["x"]},
        {"max_gen_length": True},
        {"max_gen_length": 0},
    ],
)
def test_what_is_no_problem_of_turns_is_refused(tmp_path: Path, change: dict[str, Any]):
    with pytest.raises(ValueError, match=r"problems\.jsonl, line 1 "):
        read_turns_problems(written(tmp_path, {**TURNS, **change}))


def test_files_that_are_none(tmp_path: Path):
    twice = written(tmp_path, FUNCTION, FUNCTION)
    with pytest.raises(ValueError, match="line 2 repeats the problem 'T/0'"):
        read_problems(twice)
    with pytest.raises(ValueError, match="has no problems"):
        read_problems(written(tmp_path))
    with pytest.raises(ValueError, match="is not a regular file"):
        read_problems(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        read_problems(tmp_path / "missing")
    (tmp_path / "half.gz").write_bytes(gzip.compress(json.dumps(FUNCTION).encode())[:-9])
    with pytest.raises(ValueError, match="is not a whole gzip file"):
        read_problems(tmp_path / "half.gz")
    (tmp_path / "long").write_bytes(b'"' + b"x" * (9 << 20))
    with pytest.raises(ValueError, match="line 1 must not have more than"):
        read_problems(tmp_path / "long")


def test_the_fingerprint_tells_problems_apart(tmp_path: Path):
    one = read_problems(written(tmp_path, FUNCTION))
    other = read_problems(written(tmp_path, {**FUNCTION, "prompt": "def double(y):\n"}))
    assert fingerprint(one) == fingerprint(list(one))
    assert fingerprint(one) != fingerprint(other)
