from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task.evaluation import report
from paddlenlp_codegen_task.evaluation.functions import Functions
from paddlenlp_codegen_task.evaluation.pass_at_k import mean_pass_at, pass_at
from paddlenlp_codegen_task.evaluation.problems import Problem, TurnsProblem
from paddlenlp_codegen_task.evaluation.run import Run
from paddlenlp_codegen_task.evaluation.turns import Turns

PROBLEMS = [Problem(f"T/{number}", "def f():\n", "f", "def check(c): pass") for number in range(2)]
TURNS = [TurnsProblem("1", ("Print {A}.",), ({"A": 1},), (1,), 8)]


def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass():
    assert pass_at(1, 20, 5) == pytest.approx(0.25)
    assert pass_at(10, 20, 0) == 0
    assert pass_at(10, 20, 11) == 1
    assert pass_at(2, 4, 1) == pytest.approx(3 / 6)
    assert mean_pass_at(1, [(4, 1), (4, 3)]) == pytest.approx(0.5)
    for wrong in ((0, 4, 1), (5, 4, 1), (1, 4, 5), (1, 4, -1)):
        with pytest.raises(ValueError, match="no estimate"):
            pass_at(*wrong)


def function_results(temperature: float, *passed: bool) -> list[dict[str, Any]]:
    return [
        {
            "task_id": problem.task_id,
            "temperature": temperature,
            "sample": number,
            "completion": "",
            "tokens": 10,
            "finish_reason": "stop",
            "passed": one and problem.task_id == "T/0",
            "result": "passed" if one and problem.task_id == "T/0" else "failed: TypeError: x",
        }
        for number, one in enumerate(passed)
        for problem in PROBLEMS
    ]


def test_functions(tmp_path: Path):
    asked = {
        "model": "Salesforce/codegen-350M-mono",
        "precision": "fp32",
        "sampling": {"top_p": 0.95, "seed": 0},
    }
    run = Run(Functions("human-eval", PROBLEMS), tmp_path, asked)
    results = [
        *function_results(0.2, True, True, False, False),
        *function_results(0.8, True, False, False, False),
    ]
    found = report.report(run, results, (1, 2, 10))
    cold, hot = found["results"]
    assert cold["pass@k"] == {"1": 0.25, "2": pytest.approx(5 / 12, abs=1e-6)}
    assert hot["pass@k"] == {"1": 0.125, "2": 0.25}
    assert found["best"] == cold["pass@k"]
    assert (cold["samples"], cold["passed"], cold["solved"], cold["problems"]) == (8, 2, 1, 2)
    assert cold["tokens"] == 80
    assert cold["finish_reasons"] == {"stop": 8}
    assert cold["verdicts"] == {"failed: TypeError": 6, "passed": 2}
    assert found["published"]["percent"]["1"] == 12.76
    report.write(run, found)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == found
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| 0.2 | 8 | 2 | 1 of 2 | 25.00% | 41.67% |" in written
    assert "| published |  |  |  | 12.76% |  |" in written
    drawn = (tmp_path / "pass_at_k.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    report.write(run, found)
    assert (tmp_path / "pass_at_k.png").read_bytes() == drawn


def test_programs(tmp_path: Path):
    asked = {
        "model": "Salesforce/codegen-16B-mono",
        "precision": "int8",
        "sampling": {"top_p": 0.95, "seed": 0},
    }
    run = Run(Turns(TURNS), tmp_path, asked)
    results = [
        {
            "task_id": "1",
            "input": 0,
            "mode": mode,
            "temperature": 0.2,
            "sample": number,
            "completion": "",
            "tokens": 5,
            "prompt_tokens": [2, 2],
            "prompt_log_probs": [-2.0, -4.0 if passed else -8.0],
            "passed": passed,
            "result": "passed" if passed else "failed: another value: 3",
        }
        for mode in ("multi-turn", "single-turn")
        for number, passed in enumerate((True, mode == "multi-turn", False))
    ]
    found = report.report(run, results)
    many, one = found["results"]
    assert (many["pass_rate"], one["pass_rate"]) == (0.666667, 0.333333)
    assert many["perplexity_by_turn"] == [2.7183, pytest.approx(14.3919)]
    assert many["perplexity_of_passed"] == pytest.approx(4.4817)
    assert many["verdicts"] == {"passed": 2, "failed: another value": 1}
    report.write(run, found)
    written = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| multi-turn | 0.2 | 3 | 2 | 66.67% |" in written
    assert "| single-turn | published |  |  | 38.74% |  |" in written
    assert (tmp_path / "pass_at_k.png").read_bytes().startswith(b"\x89PNG")


def test_samples_of_others_have_no_temperature(tmp_path: Path):
    run = Run(Functions("human-eval", PROBLEMS), tmp_path, {"samples": "0123"})
    results = [
        {
            "task_id": one.task_id,
            "temperature": None,
            "sample": 0,
            "passed": True,
            "result": "passed",
        }
        for one in PROBLEMS
    ]
    found = report.report(run, results)
    assert "published" not in found
    assert found["best"] == {"1": 1.0}
    assert "|  | 2 | 2 | 2 of 2 | 100.00% |" in report.table(found)
    report.write(run, found)
