"""A batch from file to file: every row once, wherever it was left, and never of something else."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_probe import until
from fake_generator import LETTERS, fake_generator

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.batch import results
from paddlenlp_codegen_task.batch.results import paths
from paddlenlp_codegen_task.batch.rows import Refused, Row, row_seed
from paddlenlp_codegen_task.batch.run import Batch, Summary, complete_batch
from paddlenlp_codegen_task.batch.source import Source
from paddlenlp_codegen_task.json_lines import JsonLines

BAD = {3: b"nothing", 10: b'{"id": "r4"}', 17: b'{"prompt": "\xff"}', 30: b'{"prompt": ""}'}
TOTAL = 40


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def contents(out: Path) -> tuple[list[str], list[str]]:
    """The lines of completions and of errors, in an order of their own."""
    assert all(path.read_bytes().endswith(b"\n") for path in paths(out)[:2] if path.stat().st_size)
    done, errors, _ = (path.read_text(encoding="utf-8").splitlines() for path in paths(out))
    return sorted(done), sorted(errors)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[CodeGenerator]:
    with fake_generator(tmp_path / "fake") as generator:
        yield generator


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Rows of which some are none."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b"".join(
            BAD.get(n, json.dumps({"id": f"r{n}", "prompt": LETTERS[n : n + 5]}).encode()) + b"\n"
            for n in range(1, TOTAL + 1)
        )
    )
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def expected(fake: CodeGenerator, source: Path, tmp_path: Path) -> tuple[list[str], list[str]]:
    """What one undisturbed run gives."""
    complete_batch(fake, source, tmp_path / "expected.jsonl", seed=1)
    return contents(tmp_path / "expected.jsonl")


def test_files(fake: CodeGenerator, source: Path, out: Path):
    summary = complete_batch(fake, source, out, num_return_sequences=2)
    assert (summary.completed, summary.refused, summary.before) == (TOTAL - len(BAD), len(BAD), 0)
    assert not summary.stopped
    done = {one["id"]: one["completions"] for one in lines(out)}
    assert set(done) == {f"r{n}" for n in range(1, TOTAL + 1) if n not in BAD}
    for row_id, completions in done.items():
        n = int(row_id[1:])
        assert completions == [
            {"text": one.text, "finish_reason": one.finish_reason, "tokens": len(one.token_ids)}
            for one in fake.generate(LETTERS[n : n + 5], num_return_sequences=2)[0]
        ]
    assert summary.tokens == sum(one["tokens"] for several in done.values() for one in several)
    errors = lines(out.with_name("out.errors.jsonl"))
    assert {one["line"]: one.get("id") for one in errors} == {3: None, 10: "r4", 17: None, 30: 30}
    assert all(set(one) <= {"line", "id", "error"} for one in errors)
    meta = json.loads(out.with_name("out.meta.json").read_bytes())
    assert meta["input"]["rows"] == TOTAL
    assert meta["model"]["name"] == "fake"
    assert meta["options"]["num_return_sequences"] == 2


def test_reports_are_written(builtin: CodeGenerator, tmp_path: Path, out: Path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "def f(x):"}\n')
    options: dict[str, Any] = {"logprobs": 2, "prompt_logprobs": 1, "output_scores": True}
    options |= {"max_length": 5, "suppress_tokens": [1, 2], "seed": 4}
    complete_batch(builtin, source, out, **options)
    [[found]] = [one["completions"] for one in lines(out)]
    seed = json.loads(out.with_name("out.meta.json").read_bytes())["options"]["seed"]
    assert seed == 4
    [[completion]] = builtin.generate("def f(x):", **{**options, "seed": row_seed(4, 1)})
    assert found["score"] == completion.score
    assert [{int(k): v for k, v in one.items()} for one in found["logprobs"]] == list(
        completion.logprobs or ()
    )
    assert found["prompt_logprobs"][0] is None
    assert len(found["prompt_logprobs"]) == completion.prompt_tokens
    assert complete_batch(builtin, source, out, **options).before == 1


def test_a_folder(fake: CodeGenerator, tmp_path: Path, out: Path):
    folder = tmp_path / "folder"
    for name, content in (("a.py", b"ABC"), ("b/c.py", b"DE"), ("bad", b"\xff"), ("empty", b"")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for before in (0, 4):
        summary = complete_batch(fake, folder, out)
        assert (summary.completed, summary.refused, summary.before) == (2, 2, before)
    assert {one["id"]: one["completions"][0]["text"] for one in lines(out)} == {
        "a.py": fake.generate("ABC")[0][0].text,
        "b/c.py": fake.generate("DE")[0][0].text,
    }
    errors = {one["id"]: one["error"] for one in lines(out.with_name("out.errors.jsonl"))}
    assert errors["empty"] == "the prompt must not be empty"
    assert errors["bad"].startswith("the file is not UTF-8: ")


@pytest.mark.parametrize("seed", range(4))
def test_files_that_end_anywhere_are_gone_on_with(
    fake: CodeGenerator, source: Path, out: Path, expected: Any, seed: int
):
    """As a process leaves them that is killed: the last line may have no end."""
    draw = random.Random(seed)
    complete_batch(fake, source, out, seed=1)
    for _ in range(12):
        for path in paths(out)[:2]:
            size = path.stat().st_size
            os.truncate(path, draw.choice([0, size, draw.randrange(size + 1)]))
        before = sum(path.read_bytes().count(b"\n") for path in paths(out)[:2])
        summary = complete_batch(fake, source, out, seed=1)
        assert (summary.before, summary.completed + summary.refused) == (before, TOTAL)
        assert contents(out) == expected


def test_a_run_that_is_stopped_is_gone_on_with(
    fake: CodeGenerator, source: Path, out: Path, expected: Any
):
    whole = Source.of_path(source)
    running: list[Batch] = []

    def rows(taken: int) -> Iterator[Row | Refused]:
        for n, row in enumerate(whole.rows()):
            if n == taken:
                running[-1].stop()
            yield row

    before = 0
    for taken in range(3, TOTAL, 3):
        source_now = replace(whole, pieces=partial(iter, [partial(rows, taken)]))
        running.append(Batch(fake, source_now, out, seed=1))
        summary = running[-1].run()
        assert summary.stopped
        assert summary.before == before
        before = summary.completed + summary.refused
    assert before < TOTAL
    assert complete_batch(fake, source, out, seed=1).before == before
    assert contents(out) == expected


def test_nothing_is_left_to_do(fake: CodeGenerator, source: Path, out: Path):
    complete_batch(fake, source, out)
    before = [path.read_bytes() for path in paths(out)]
    calls = len(fake.runtime.calls)  # type: ignore[attr-defined]
    summary = complete_batch(fake, source, out)
    assert (summary.before, summary.tokens) == (TOTAL, 0)
    assert len(fake.runtime.calls) == calls  # type: ignore[attr-defined]
    assert [path.read_bytes() for path in paths(out)] == before


def refused(run: Callable[[], Summary], out: Path, message: str) -> None:
    """Assert that something is refused in one line, and that nothing has changed."""
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, OSError), match=message) as caught:
        run()
    assert str(caught.value).isprintable()
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


def test_results_of_something_else_are_left_alone(
    fake: CodeGenerator, source: Path, out: Path, tmp_path: Path
):
    complete_batch(fake, source, out, seed=1)
    with open(out, "ab") as file:
        file.write(b'{"id": "r')  # not even this is taken away
    end = ": choose another file, or begin anew with overwrite=True$"

    def run(generator: CodeGenerator = fake, seed: int = 1, **options: Any) -> Summary:
        return complete_batch(generator, source, out, seed=seed, **options)

    refused(lambda: run(seed=2), out, rf"out.jsonl is of other options \(seed 1, not 2\){end}")
    refused(lambda: run(max_length=9), out, rf"other options \(max_length 8, not 9\){end}")
    with fake_generator(tmp_path / "fake", precision="int8") as other:
        what = r"another model or precision \(precision 'fp32', not 'int8'\)"
        refused(lambda: run(other), out, rf"out.jsonl is of {what}{end}")
    with fake_generator(tmp_path / "another") as other:
        refused(lambda: run(other), out, rf"of another model or precision \(folder .*\){end}")
    content = source.read_bytes()
    source.write_bytes(content + b"\n")
    refused(run, out, rf"out.jsonl is of another input \(sha256 .*\){end}")
    source.write_bytes(content)
    assert run().before == TOTAL
    meta = paths(out)[2]
    for broken, message in ((b"{", "is not valid JSON"), (b"[]", "must hold a JSON object")):
        meta.write_bytes(broken)
        refused(run, out, f"out.meta.json {message}")
    meta.write_bytes(b"{}")
    refused(run, out, rf"out.jsonl is of another version of this package{end}")
    meta.unlink()
    refused(run, out, rf"out.jsonl: it or out.errors.jsonl is there, without out.meta.json{end}")
    assert run(overwrite=True).before == 0
    assert run(seed=5, max_length=3, overwrite=True).completed == TOTAL - len(BAD)
    assert run(seed=5, max_length=3).before == TOTAL


@pytest.mark.parametrize("content", [b"precious", b"precious\n", b"\n", b"{}"])
@pytest.mark.parametrize("name", ["out.jsonl", "out.errors.jsonl"])
def test_a_file_of_somebody_else_s_is_left_alone(
    fake: CodeGenerator, source: Path, out: Path, content: bytes, name: str
):
    out.with_name(name).write_bytes(content)
    refused(lambda: complete_batch(fake, source, out), out, "without out.meta.json: choose anoth")


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"{}",
        b"[]",
        b'{"id": }',
        b'{"id": 1.5, ',
        b'{"id": null, ',
        b'{"id": "a',
        b"\xff",
        b"",
    ],
)
def test_lines_that_are_no_results(fake: CodeGenerator, source: Path, out: Path, line: bytes):
    complete_batch(fake, source, out)
    out.write_bytes(line + b"\n" + out.read_bytes())
    message = "out.jsonl, line 1 is no result of a batch$"
    refused(lambda: complete_batch(fake, source, out), out, message)


def test_lines_that_are_no_errors(fake: CodeGenerator, source: Path, out: Path):
    complete_batch(fake, source, out)
    with paths(out)[1].open("ab") as file:
        file.write(out.read_bytes()[:100].partition(b"\n")[0] + b"\n")
    message = "out.errors.jsonl holds a line that is no error of a batch$"
    refused(lambda: complete_batch(fake, source, out), out, message)


def test_a_row_that_is_there_twice(fake: CodeGenerator, source: Path, out: Path):
    complete_batch(fake, source, out)
    out.write_bytes(out.read_bytes() * 2)
    refused(lambda: complete_batch(fake, source, out), out, "out.jsonl has id 'r[0-9]+' twice$")


def test_results_that_are_gone_are_begun_anew(fake: CodeGenerator, source: Path, out: Path):
    """Whatever of it, as a user may remove one file of three."""
    complete_batch(fake, source, out, seed=1)
    for path in paths(out)[:2]:
        path.unlink()
    assert complete_batch(fake, source, out, seed=2).before == 0
    out.unlink()
    assert complete_batch(fake, source, out, seed=2).before == len(BAD)


def test_one_at_a_time(fake: CodeGenerator, source: Path, out: Path):
    batch = Batch(fake, Source.of_path(source), out, seed=1)
    for overwrite in (False, True):
        with pytest.raises(OSError, match=r"out.jsonl: another process is writing to it$"):
            complete_batch(fake, source, out, seed=1, overwrite=overwrite)
    assert batch.run().completed == TOTAL - len(BAD)
    assert complete_batch(fake, source, out, seed=1).before == TOTAL


def test_one_that_came_in_between_is_seen(
    fake: CodeGenerator, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another run has begun and ended after a look at the files, and before they are held."""

    def late(path: Path) -> JsonLines:
        monkeypatch.undo()
        complete_batch(fake, source, out, seed=2)
        return JsonLines(path)

    monkeypatch.setattr(results, "JsonLines", late)
    with pytest.raises(ValueError, match=r"out.jsonl is of other options \(seed 2, not 1\)"):
        complete_batch(fake, source, out, seed=1)
    assert complete_batch(fake, source, out, seed=2).before == TOTAL


@pytest.mark.parametrize(
    ("source_name", "out_name", "message"),
    [
        ("in.jsonl", "in.jsonl", "in.jsonl would be written, and is what is read$"),
        ("link.jsonl", "in.jsonl", "in.jsonl would be written, and is what is read$"),
        ("in.errors.jsonl", "in.jsonl", "in.errors.jsonl would be written, and is what is read$"),
        ("in.meta.json", "in.jsonl", "in.meta.json would be written, and is what is read$"),
        (".", "out.jsonl", "out.jsonl must not be in the folder that is read$"),
        ("fake", "fake/../fake/x.jsonl", "x.jsonl must not be in the folder that is read$"),
        ("in.jsonl", "no/out.jsonl", "out: there is no folder .*no$"),
        ("in.jsonl", "in.jsonl/out.jsonl", "out: there is no folder .*in.jsonl$"),
        ("in.jsonl", "fake", "out: .*fake must be a file's path with .jsonl$"),
        ("in.jsonl", ".", "out: .* must be a file's path with .jsonl$"),
        ("in.jsonl", "out", "out: .*out must be a file's path with .jsonl$"),
        ("in.jsonl", "out.json", "out: .*out.json must be a file's path with .jsonl$"),
        ("in.jsonl", ".jsonl", "out: .*.jsonl must be a file's path with .jsonl$"),
        ("in.jsonl", "folder.jsonl", "folder.jsonl is not a regular file$"),
        ("in.jsonl", "fifo.jsonl", "fifo.jsonl is not a regular file$"),
        ("fifo", "out.jsonl", "fifo is not a regular file$"),
        ("no.jsonl", "out.jsonl", "No such file or directory: .*no.jsonl"),
    ],
)
def test_paths_that_cannot_be(
    fake: CodeGenerator, source: Path, tmp_path: Path, source_name: str, out_name: str, message: str
):
    for name in ("in.errors.jsonl", "in.meta.json"):
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    for name in ("fifo", "fifo.jsonl"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder.jsonl").mkdir()
    run = lambda: complete_batch(fake, tmp_path / source_name, tmp_path / out_name)  # noqa: E731
    refused(run, tmp_path / "out.jsonl", message)


def test_rows_that_come_once_cannot_be_gone_on_with(fake: CodeGenerator, source: Path, out: Path):
    def run(**options: Any) -> Summary:
        with source.open("rb") as file:
            return Batch(fake, Source.of_stream(file), out, **options).run()

    assert run().completed == TOTAL - len(BAD)
    refused(run, out, "nothing can be gone on with: choose another file, or begin anew with overw")
    assert run(overwrite=True).completed == TOTAL - len(BAD)


def test_a_full_disk_leaves_whole_lines(source: Path, tmp_path: Path, out: Path):
    """Files may have so many bytes here, which is what a full disk comes to."""
    program = """
import resource, sys
from pathlib import Path
from fake_generator import fake_generator
from paddlenlp_codegen_task.batch.run import complete_batch
with fake_generator(Path("fake")) as generator:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    try:
        complete_batch(generator, "in.jsonl", "out.jsonl", seed=1)
    except OSError as error:
        sys.exit(str(error))
"""
    before = 0
    for most in (1300, 1500, 1501, 1700, 10**6):
        ran = subprocess.run(
            [sys.executable, "-c", program, str(most)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if most < 10**6:
            assert ran.stderr.endswith("File too large: 'out.jsonl'\n"), ran.stderr
            assert len(ran.stderr.splitlines()) == 1
            assert out.read_bytes().endswith(b"\n")
            assert before <= len(lines(out)) < TOTAL - len(BAD)
            before = len(lines(out))
        else:
            assert ran.returncode == 0, ran.stderr
    with fake_generator(tmp_path / "fake") as generator:
        assert complete_batch(generator, source, out, seed=1).before == TOTAL
        complete_batch(generator, source, tmp_path / "expected.jsonl", seed=1)
    assert contents(out) == contents(tmp_path / "expected.jsonl")


def test_processes_that_are_killed_at_any_moment(home_path: Path, tmp_path: Path):
    """Of the command line, on the built-in model."""
    source, out, expected = (tmp_path / f"{name}.jsonl" for name in ("in", "out", "expected"))
    rows = [
        json.dumps({"prompt": f"def f_{n}(x):\n", "options": {"max_length": 2 + n % 9}})
        for n in range(150)
    ]
    rows[::10] = ["bad"] * 15
    source.write_text("\n".join(rows))

    def start(target: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "paddlenlp_codegen_task", "batch", str(source)]
        command += [str(target), "--model=builtin", "--home-path", str(home_path), "--seed=3"]
        command += ["--num-threads=1", "--temperature=1.5", "--no-truncation", "--batch-size=8"]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    assert start(expected).wait(300) == 1
    draw = random.Random(0)
    killed = 0
    for n in range(5):
        child = start(out)
        goal = draw.randrange(1 + n * 22, 22 + n * 22)
        try:
            until(
                lambda child=child, goal=goal: (
                    child.poll() is not None
                    or (out.exists() and out.read_bytes().count(b"\n") >= goal)
                )
            )
            time.sleep(draw.random() / 500)
        finally:
            child.kill()
        killed += child.wait() == -9
    assert killed >= 4
    assert start(out).wait(300) == 1
    assert contents(out) == contents(expected)
    assert len(lines(out)) == 135
