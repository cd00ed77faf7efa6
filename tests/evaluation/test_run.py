from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.evaluation import functions
from paddlenlp_codegen_task.evaluation import run as running
from paddlenlp_codegen_task.evaluation.benchmark import Result
from paddlenlp_codegen_task.evaluation.functions import Functions
from paddlenlp_codegen_task.evaluation.problems import Problem
from paddlenlp_codegen_task.evaluation.run import Run
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.evaluation.sandbox import Limits, Sandbox

NAMES = ("add", "double", "count", "first")
PROBLEMS = [
    Problem(
        f"T/{number}",
        f'def {name}(x):\n    """Return {name} of x."""\n',
        name,
        "def check(candidate):\n    assert candidate(2) == 4\n",
        "    return 4\n",
    )
    for number, name in enumerate(NAMES)
]
SAMPLING = Sampling(3, (0.2, 0.8), max_length=24, seed=1)
SANDBOX = Sandbox(unsafe=True)  # in which nothing is run here


def quiet(*_: int) -> None:
    pass


def test_samples_are_in_human_evals_format_and_in_order(builtin: CodeGenerator, tmp_path: Path):
    benchmark = Functions("mine", PROBLEMS)
    run = Run.of_model(benchmark, tmp_path / "run", builtin, SAMPLING)
    seen: list[tuple[int, int]] = []
    run.complete(builtin, SAMPLING, lambda *more: seen.append(more))
    samples = run.samples()
    assert [benchmark.key_of(one) for one in samples] == benchmark.keys(SAMPLING)
    assert all({"task_id", "completion"} < set(one) for one in samples)
    assert len({one["completion"] for one in samples}) > len(PROBLEMS)
    assert seen[0] == (0, 0)
    assert sum(count for count, _ in seen) == len(samples)
    assert sum(tokens for _, tokens in seen) == sum(one["tokens"] for one in samples)


def test_greedy_search_has_one_sample(builtin: CodeGenerator):
    benchmark = Functions("mine", PROBLEMS[:1])
    [[line]] = benchmark.complete(builtin, Sampling(5, (0.0,), max_length=16), set())
    [[alone]] = builtin.generate(
        PROBLEMS[0].prompt,
        decode_strategy="greedy_search",
        repetition_penalty=1.0,
        max_length=16,
        truncation=None,
        stop=PROBLEMS[0].stop,
    )
    assert line["completion"] == alone.text


def test_a_sample_depends_on_nothing_but_its_own(
    builtin: CodeGenerator, monkeypatch: pytest.MonkeyPatch
):
    """Not on the other problems, nor on what is done, nor on how many samples there are."""
    everything = by_key(Functions("mine", PROBLEMS), builtin, SAMPLING, ())
    some = by_key(Functions("mine", PROBLEMS[2:]), builtin, SAMPLING, ())
    assert some.items() <= everything.items()
    keys = list(everything)
    left = by_key(Functions("mine", PROBLEMS), builtin, SAMPLING, set(keys[1:-2]))
    assert set(left) == {keys[0], *keys[-2:]}
    assert left.items() <= everything.items()
    other = Sampling(3, (0.8,), max_length=24, seed=2)
    assert not by_key(Functions("mine", PROBLEMS), builtin, other, ()).items() <= everything.items()
    monkeypatch.setattr(functions, "GROUP", 2)
    few = Sampling(2, (0.8,), max_length=24, seed=1)
    more = Sampling(5, (0.8,), max_length=24, seed=1)
    benchmark = Functions("mine", PROBLEMS)
    assert (
        by_key(benchmark, builtin, few, ()).items() <= by_key(benchmark, builtin, more, ()).items()
    )


def by_key(
    benchmark: Functions, generator: CodeGenerator, sampling: Sampling, done: Any
) -> dict[Any, str]:
    found = benchmark.complete(generator, sampling, done)
    return {benchmark.key_of(one): one["completion"] for lines in found for one in lines}


def test_another_run_in_the_same_folder_is_refused(builtin: CodeGenerator, tmp_path: Path):
    benchmark = Functions("mine", PROBLEMS)
    Run.of_model(benchmark, tmp_path, builtin, SAMPLING)
    Run.of_model(benchmark, tmp_path, builtin, SAMPLING)
    with pytest.raises(ValueError, match=r"has a run with sampling .*, and this one has") as error:
        Run.of_model(benchmark, tmp_path, builtin, Sampling(3, (0.2,)))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="has a run with problems"):
        Run.of_model(Functions("mine", PROBLEMS[1:]), tmp_path, builtin, SAMPLING)
    other = tmp_path / "other"
    other.mkdir()
    (other / "samples.jsonl").touch()
    with pytest.raises(ValueError, match=r"has a samples\.jsonl of something else"):
        Run.of_model(benchmark, other, builtin, SAMPLING)


class Judge(Functions):
    """Judges without running anything."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("mine", problems)
        self.judged: list[str] = []
        self.lock = threading.Lock()

    def check(self, sandbox: Any, line: Any) -> Result:
        with self.lock:
            self.judged.append(line["completion"])
        passed = line["completion"] == "    return 4\n"
        time.sleep(0.002 * (hash(line["completion"]) % 3))  # in another order than they came
        return Result(passed, "passed" if passed else "failed: AssertionError")


def samples_file(folder: Path, *completions: str) -> Path:
    path = folder / "given.jsonl"
    lines = [
        {"task_id": problem.task_id, "completion": completion}
        for completion in completions
        for problem in PROBLEMS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_samples_of_others_are_scored_each_program_once(tmp_path: Path):
    judge = Judge(PROBLEMS)
    given = samples_file(tmp_path, "    return 4\n", "    return 5\n", "    return 4\n")
    run = Run.of_samples(judge, tmp_path / "run", given)
    results = run.score(SANDBOX, 3, quiet)
    assert len(judge.judged) == 2 * len(PROBLEMS)
    assert [one["passed"] for one in results] == [*[True] * 4, *[False] * 4, *[True] * 4]
    assert [one["sample"] for one in results] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(one["temperature"] is None for one in results)
    written = (tmp_path / "run" / "results.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in written.splitlines()] == results
    again = Run.of_samples(judge, tmp_path / "run", given)
    assert again.score(SANDBOX, 3, quiet) == results
    assert len(judge.judged) == 2 * len(PROBLEMS)
    with pytest.raises(ValueError, match="has a run with samples"):
        Run.of_samples(judge, tmp_path / "run", samples_file(tmp_path, "    return 4\n"))


def test_scoring_goes_on_where_it_was(tmp_path: Path):
    given = samples_file(tmp_path, *(f"    return {number}\n" for number in range(6)))
    whole = Run.of_samples(Judge(PROBLEMS), tmp_path / "whole", given)
    results = whole.score(SANDBOX, 2, quiet)
    content = (tmp_path / "whole" / "results.jsonl").read_bytes()
    judge = Judge(PROBLEMS)
    run = Run.of_samples(judge, tmp_path / "run", given)
    path = tmp_path / "run" / "results.jsonl"
    path.write_bytes(content[: len(content) // 2])  # in the middle of a line
    shutil.copy(tmp_path / "whole" / "judged_by.json", path.parent)
    assert run.score(SANDBOX, 2, quiet) == results
    assert path.read_bytes() == content
    assert 0 < len(judge.judged) <= 13


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Sandbox(Limits(seconds=20), unsafe=True), "seconds 5.0, and is judged again with 20$"),
        (Sandbox(Limits(memory_bytes=1 << 31), unsafe=True), "with memory_bytes 1073741824, and"),
        (SANDBOX, "was judged with unsafe None, and is judged again with True"),
    ],
    ids=["seconds", "memory", "unknown"],
)
def test_verdicts_of_another_kind_are_given_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: Sandbox, said: str
):
    given = samples_file(tmp_path, "    return 4\n", "    return 5\n")
    out = tmp_path / "run"
    results = Run.of_samples(Judge(PROBLEMS), out, given).score(SANDBOX, 2, quiet)
    assert caplog.messages == []
    if other is SANDBOX:
        (out / "judged_by.json").unlink()  # as in a folder of a version that did not note it
    content = {name: (out / name).read_bytes() for name in ("samples.jsonl", "settings.json")}
    judge = Judge(PROBLEMS)
    run = Run.of_samples(judge, out, given)
    assert run.score(other, 2, quiet) == results
    assert len(judge.judged) == 2 * len(PROBLEMS)
    [line] = caplog.messages
    assert re.search(said, line), line
    assert run.judged_by["seconds"] == other.limits.seconds
    assert content == {name: (out / name).read_bytes() for name in content}
    assert len((out / "results.jsonl").read_bytes().splitlines()) == len(results)
    assert Run.of_samples(judge, out, given).score(other, 2, quiet) == results
    assert len(judge.judged) == 2 * len(PROBLEMS)


def test_no_verdict_passes_for_one_of_another_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even where noting the new kind fails."""
    given = samples_file(tmp_path, "    return 4\n")
    out = tmp_path / "run"
    Run.of_samples(Judge(PROBLEMS), out, given).score(SANDBOX, 2, quiet)
    run = Run.of_samples(Judge(PROBLEMS), out, given)
    with monkeypatch.context() as patched:

        def fails(*_: Any) -> None:
            raise OSError("no space left")

        patched.setattr(running, "write_file", fails)
        with pytest.raises(OSError, match="no space left"):
            run.score(Sandbox(Limits(seconds=20), unsafe=True), 2, quiet)
    judge = Judge(PROBLEMS)
    assert all(one["passed"] for one in Run.of_samples(judge, out, given).score(SANDBOX, 2, quiet))
    assert len(judge.judged) == len(PROBLEMS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"task_id": "T/9", "completion": ""}', "line 1 has no known problem as task_id"),
        ('{"task_id": "T/0"}', "line 1 must have a text as completion"),
        ('{"task_id": "T/0", "completion": 5}', "line 1 must have a text as completion"),
        ('{"task_id": "T/0", "completion": "", "temperature": "x"}', "temperature"),
        ('["T/0"]', "line 1 must hold a JSON object"),
        ("T/0", "line 1 is not valid JSON"),
    ],
)
def test_samples_that_are_none(tmp_path: Path, line: str, said: str):
    path = tmp_path / "given.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        Run.of_samples(Judge(PROBLEMS), tmp_path / "run", path)
    assert not (tmp_path / "run").exists()


def test_a_program_that_cannot_be_judged_ends_the_run(tmp_path: Path):
    class Broken(Judge):
        def check(self, sandbox: Any, line: Any) -> Result:
            if line["task_id"] == "T/2":
                raise OSError("no sandbox any more")
            return super().check(sandbox, line)

    given = samples_file(tmp_path, "    return 4\n")
    run = Run.of_samples(Broken(PROBLEMS), tmp_path / "run", given)
    with pytest.raises(OSError, match="no sandbox any more"):
        run.score(SANDBOX, 2, quiet)
    assert len((tmp_path / "run" / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    results = Run.of_samples(Judge(PROBLEMS), tmp_path / "run", given).score(SANDBOX, 2, quiet)
    assert [one["passed"] for one in results] == [True] * 4


@pytest.fixture
def evaluate(home_path: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command on four problems."""
    problems = tmp_path / "problems.jsonl"
    lines = [
        {
            "task_id": one.task_id,
            "prompt": one.prompt,
            "entry_point": one.entry_point,
            "test": one.test,
        }
        for one in PROBLEMS
    ]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def start(out: Path, *more: str) -> subprocess.Popen[str]:
        command = [
            *(sys.executable, "-m", "paddlenlp_codegen_task", "evaluate", str(problems)),
            *("--out", str(out), "--model", "builtin", "--home-path", str(home_path)),
            *("--device", "cpu", "--precision", "fp32", "--num-threads", "1"),
            *("--samples", "6", "--temperature", "0.2", "--temperature", "0.8"),
            *("--max-length", "32", "--k", "1", *more),
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def test_a_run_that_is_killed_goes_on(
    builtin: CodeGenerator, evaluate: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    whole = evaluate(tmp_path / "whole")
    said, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    assert said.startswith("# problems.jsonl\n")
    for name, size in (("samples", 1), ("samples", 4000), ("results", 1)):
        killed = evaluate(tmp_path / "killed")  # when a file has so many bytes
        file = tmp_path / "killed" / f"{name}.jsonl"
        while killed.poll() is None and not (file.exists() and file.stat().st_size >= size):
            time.sleep(0.001)
        killed.kill()
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
    last = evaluate(tmp_path / "killed")
    again, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert again == said
    files = {one.name for one in (tmp_path / "whole").iterdir()}
    assert {"settings.json", "samples.jsonl", "report.json", "report.md"} <= files
    assert {"results.jsonl", "judged_by.json"} <= files
    assert files == {one.name for one in (tmp_path / "killed").iterdir()}
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
