from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paddlenlp_codegen_task.cli import app

RUNNER = CliRunner()
PROBLEM = {
    "task_id": "T/0",
    "prompt": "def double(x):\n",
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n"
    "    assert candidate('a') == 'aa'\n",
}
TURNS = {
    "id": "1",
    "prompts": ["Assign {A} to a.", "Print a."],
    "inputs": [{"A": 3}, {"A": 4}],
    "outputs": [3, 4],
    "max_gen_length": 8,
}


def lines(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in values), encoding="utf-8")
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return lines(tmp_path / "problems.jsonl", PROBLEM)


def test_completions_of_others(tmp_path: Path, problems: Path, caplog: pytest.LogCaptureFixture):
    given = lines(
        tmp_path / "given.jsonl",
        {"task_id": "T/0", "completion": "    return 2 * x\n"},
        {"task_id": "T/0", "completion": "    return x + x\n"},
        {"task_id": "T/0", "completion": "    return x\n"},
        {"task_id": "T/0", "completion": "    raise SystemExit(0)\n"},
    )
    out = tmp_path / "out"
    command = ["evaluate", str(problems), "--from", str(given), "--out", str(out), "--k", "1"]
    done = RUNNER.invoke(app, [*command, "--k", "2", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    [found] = report["results"]
    assert (found["samples"], found["passed"]) == (4, 2)
    assert found["pass@k"] == {"1": 0.5, "2": pytest.approx(5 / 6, abs=1e-6)}
    again = RUNNER.invoke(app, command)
    assert again.stdout.startswith("# problems.jsonl\n")
    assert "| 50.00% |" in again.stdout
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [one["passed"] for one in results] == [True, True, False, False]
    other = RUNNER.invoke(app, [*command, "--unsafe", "--json"])
    assert "results.jsonl was judged with unsafe False, and is judged again" in caplog.text
    kinds = [json.loads(one.stdout)["judged_by"] for one in (done, other)]
    assert [(one["unsafe"], one["seconds"]) for one in kinds] == [(False, 3.0), (True, 3.0)]


def test_turns_of_the_builtin_model(tmp_path: Path, home_path: Path):
    mtpb = lines(tmp_path / "mtpb.jsonl", TURNS)
    out = tmp_path / "out"
    options = ["--model", "builtin", "--home-path", str(home_path), "--device", "cpu"]
    command = ["evaluate", "mtpb", "--problems", str(mtpb), "--out", str(out), *options]
    done = RUNNER.invoke(app, [*command, "--temperature", "0", "--no-score"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out / "samples.jsonl")
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [one["mode"] for one in samples] == ["multi-turn"] * 2 + ["single-turn"] * 2
    done = RUNNER.invoke(app, [*command, "--temperature", "0", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["results"]
    assert [one["mode"] for one in found] == ["multi-turn", "single-turn"]
    assert len(found[0]["perplexity_by_turn"]) == 2
    assert all(one["perplexity"] > 1 for one in found)


def test_programs_of_turns_are_run(tmp_path: Path):
    """Those that print what is expected pass, however they come by it."""
    mtpb = lines(tmp_path / "mtpb.jsonl", TURNS)
    programs = [
        "a = 3\nprint(a)\n",
        "a = 3\na\n",
        "a = 3\nprint(a + 1)\n",
        "print(1 / 0)\n",
        "a = 3",  # the benchmark prints the value of a last statement that has one
        "import math",
    ]
    given = lines(
        tmp_path / "given.jsonl",
        *({"task_id": "1", "input": 0, "completion": program} for program in programs),
    )
    command = ["evaluate", "mtpb", "--problems", str(mtpb), "--from", str(given)]
    done = RUNNER.invoke(app, [*command, "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    [found] = json.loads(done.stdout)["results"]
    assert (found["passed"], found["samples"]) == (3, 6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.jsonl", "--out", "out"), "BENCHMARK must be human-eval, mtpb or a file"),
        (("mtpb", "--out", "out"), "--problems: give mtpb.jsonl"),
        (("{problems}", "--problems", "x", "--out", "out"), "--problems: the benchmark is a file"),
        (("{problems}",), "--out"),
        (("{problems}", "--out", "out", "--samples", "0"), "--samples"),
        (("{problems}", "--out", "out", "--temperature", "11"), "temperature must be"),
        (("{problems}", "--out", "out", "--temperature", "1", "--temperature", "1"), "twice"),
        (("{problems}", "--out", "out", "--top-p", "2"), "top-p must be"),
        (("{problems}", "--out", "{problems}"), "File exists"),
        (("{problems}", "--out", "out", "--from", "nowhere"), "No such file"),
    ],
)
def test_what_cannot_be(
    tmp_path: Path,
    problems: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
):
    monkeypatch.chdir(tmp_path)
    done = RUNNER.invoke(
        app,
        ["evaluate", *(one.format(problems=problems) for one in arguments), "--model", "builtin"],
    )
    assert done.exit_code in (1, 2)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
