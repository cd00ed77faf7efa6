"""`paddlenlp-codegen batch`: what it writes where, how it ends, and what it says."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_probe import until
from typer.testing import CliRunner

from paddlenlp_codegen_task import CodeGenerator, cli
from paddlenlp_codegen_task.batch.rows import row_seed

RUNNER = CliRunner()
BATCH = [sys.executable, "-m", "paddlenlp_codegen_task", "batch"]


@pytest.fixture
def options(home_path: Path) -> list[str]:
    """How the built-in model runs here."""
    options = ["--model=builtin", "--home-path", str(home_path), "--engine=onnxruntime"]
    return [*options, "--num-threads=1", "--max-length=8", "--no-truncation"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"id": "{n}", "prompt": "def f_{n}(x):"}}\n' for n in range(6)))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def run(*arguments: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BATCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        **settings,
    )


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the command itself has said on standard error."""
    lines = done.stderr.splitlines()
    assert all(line.startswith("paddlenlp-codegen: ") for line in lines), done.stderr
    return [line.removeprefix("paddlenlp-codegen: ") for line in lines]


def test_a_batch(source: Path, out: Path, options: list[str], builtin: CodeGenerator):
    done = run(source, out, *options, "--seed=7")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert re.fullmatch(r"6 rows completed, 0 refused; [0-9]+ tokens/s", said(done)[-1])
    found = {one["id"]: one["completions"] for one in map(json.loads, out.open())}
    for n in range(6):
        [[completion]] = builtin.generate(
            f"def f_{n}(x):", max_length=8, truncation=None, seed=row_seed(7, str(n))
        )
        assert found[str(n)] == [
            {
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "tokens": len(completion.token_ids),
            }
        ]
    again = run(source, out, *options, "--seed=7")
    assert again.returncode == 0
    assert said(again)[-1].startswith("6 rows completed, 0 refused (6 of 6 before); ")
    other = run(source, out, *options, "--seed=8")
    assert other.returncode == 2
    end = "choose another file, or begin anew with --overwrite"
    assert said(other) == [f"{out} is of other options (seed 7, not 8): {end}"]
    assert run(source, out, *options, "--seed=8", "--overwrite").returncode == 0


def test_bad_rows_are_told(source: Path, out: Path, options: list[str]):
    with source.open("a") as file:
        file.write('{"prompt": 5}\n{"id": "0", "prompt": "x"}\n')
    for before in ("", r" \(8 of 8 before\)"):
        done = run(source, out, *options)
        assert done.returncode == 1
        assert re.fullmatch(rf"6 rows completed, 2 refused{before}; .*", said(done)[-1])
    errors = list(map(json.loads, (out.parent / "out.errors.jsonl").open()))
    assert errors == [
        {"line": 7, "error": "prompt must be a string, got 5"},
        {"line": 8, "id": "0", "error": "an earlier row has the same id"},
    ]


def test_a_folder(tmp_path: Path, out: Path, options: list[str]):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("def f(x):\n")
    assert run(tmp_path / "src", out, *options).returncode == 0
    assert [json.loads(line)["id"] for line in out.open()] == ["a.py"]


def test_standard_input_and_output(options: list[str]):
    text = '{"prompt": "def f(x):"}\nbad\n{"id": "b", "prompt": "x ="}\n'
    done = run("-", "-", *options, input=text)
    assert done.returncode == 1
    assert {json.loads(line)["id"] for line in done.stdout.splitlines()} == {1, "b"}
    lines = said(done)
    assert lines[-1].startswith("2 rows completed, 1 refused; ")
    assert [one for one in lines if one.startswith("line 2: ")] == [
        "line 2: the line is not valid JSON: Expecting value: line 1 column 1 (char 0)"
    ]


def test_a_program_asks_and_is_answered(options: list[str]):
    """Row by row, over pipes: each answer comes before the next question."""
    command = [*BATCH, "-", "-", *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            for n in range(4):
                child.stdin.write(json.dumps({"id": n, "prompt": f"def f_{n}(x):"}) + "\n")
                child.stdin.flush()
                assert json.loads(child.stdout.readline())["id"] == n
            child.stdin.close()
            assert child.wait(60) == 0
        finally:
            child.kill()


def test_a_reader_that_has_seen_enough(options: list[str], source: Path):
    with subprocess.Popen(
        [*BATCH, source, "-", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        try:
            assert child.wait(60) == 141
        finally:
            child.kill()
        assert "Traceback" not in child.stderr.read()


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(f'{{"prompt": "def f_{n}(x):"}}\n' for n in range(20_000)))
    return path


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_it_in_order(
    long: Path, out: Path, options: list[str], number: int, code: int
):
    command = [*BATCH, str(long), str(out), *options, "--seed=1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        try:
            until(lambda: out.exists() and out.read_bytes().count(b"\n") > 9)
            child.send_signal(number)
            assert child.wait(60) == code
        finally:
            child.kill()
        [*_, last] = child.stderr.read().splitlines()
    count = out.read_bytes().count(b"\n")
    start = f"paddlenlp-codegen: interrupted: {count} rows completed, 0 refused; "
    assert last.startswith(start)
    assert last.endswith(" tokens/s; the same command goes on")
    assert out.read_bytes().endswith(b"\n")


def test_ctrl_c_while_nothing_comes(options: list[str]):
    """Its standard input stays open, and there is nothing to read."""
    with subprocess.Popen(
        [*BATCH, "-", "-", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            child.stdin.write('{"prompt": "x"}\n')
            child.stdin.flush()
            child.stdout.readline()
            child.send_signal(signal.SIGINT)
            assert child.wait(60) == 130
        finally:
            child.kill()
        [*_, last] = child.stderr.read().splitlines()
    assert re.fullmatch(r"paddlenlp-codegen: interrupted: 1 row completed, .* tokens/s", last)


def test_the_bar(source: Path, out: Path, options: list[str]):
    """On a terminal without being asked for; elsewhere only then."""
    quiet = run(source, out, *options)
    assert "%|" not in quiet.stderr
    asked = run(source, out, *options, "--overwrite", "--progress")
    assert "6/6" in asked.stderr
    assert re.search(r"[0-9]+ tokens/s", asked.stderr)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        done = subprocess.run(
            [*BATCH, source, out, *options, "--overwrite"], stderr=theirs, check=False, timeout=300
        )
        assert done.returncode == 0
        assert b"6/6" in os.read(ours, 1 << 16)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'IN'"),
        (["in.jsonl"], "Missing argument 'OUT.jsonl'"),
        (["in.jsonl", "out.jsonl", "x"], "unexpected extra argument"),
        (["in.jsonl", "out.jsonl", "--max-length=x"], "'--max-length': "),
        (["in.jsonl", "out.jsonl", "--max-length=0"], "--max-length must be at least 1, got 0"),
        (["in.jsonl", "out.jsonl", "--batch-size=0"], "'--batch-size': "),
        (["in.jsonl", "out.jsonl", "--top-p=2"], r"--top-p must be in \(0, 1\], got 2"),
        (["in.jsonl", "in.jsonl"], "out: in.jsonl would be written, and is what is read"),
        (["", "out.jsonl"], "IN must not be empty"),
        (["in.jsonl", ""], "OUT must not be empty"),
        (["in.jsonl", "out\0.jsonl"], "OUT: a path cannot hold a null character"),
        (["in.jsonl", "."], "out: . must be a file's path with .jsonl"),
        (["in.jsonl", "out"], "out: out must be a file's path with .jsonl"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    message: str,
    source: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(source.parent)
    if len(arguments) > 1:
        arguments = [*arguments[:2], *options, *arguments[2:]]
    before = sorted(source.parent.iterdir())
    done = RUNNER.invoke(cli.app, ["batch", *arguments])
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert re.search(message, done.stderr.splitlines()[-1])
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jsonl", "out.jsonl"], "No such file or directory: 'no.jsonl'"),
        (["in.jsonl", "no/out.jsonl"], "out: there is no folder no"),
        (["-", "out.jsonl"], "standard input is closed"),
    ],
    ids=" ".join,
)
def test_what_fails_is_one_line(
    arguments: list[str], message: str, source: Path, options: list[str]
):
    closed = {"preexec_fn": lambda: os.close(0)} if arguments[0] == "-" else {}
    done = run(*arguments, *options, cwd=source.parent, **closed)
    assert done.returncode == 1
    [line] = said(done)
    assert message in line


def test_a_full_disk_is_one_line(source: Path, out: Path, options: list[str]):
    """Files may have so many bytes here, which is what a full disk comes to."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))

    source.write_text("".join(f'{{"prompt": "def f_{n}(x):"}}\n' for n in range(40)))
    done = run(source, out, *options, preexec_fn=limit)
    assert done.returncode == 1
    assert said(done)[-1] == f"[Errno 27] File too large: '{out}'"
    assert out.read_bytes().endswith(b"\n")
    count = out.read_bytes().count(b"\n")
    assert 0 < count < 40
    again = run(source, out, *options)
    assert again.returncode == 0
    assert said(again)[-1].startswith(f"40 rows completed, 0 refused ({count} of 40 before); ")


def test_help_names_every_option(options: list[str]):
    environment = {"COLUMNS": "120", "NO_COLOR": "1"}
    done = RUNNER.invoke(cli.app, ["batch", "--help"], env=environment)
    assert done.exit_code == 0
    for name in ("--overwrite", "--progress", "--seed", "--batch-size", "--num-return-sequences"):
        assert re.search(rf"│ {name}\b", done.stdout), name


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    """As commands set it for their process."""
    import logging

    root, ours = logging.getLogger(), logging.getLogger("paddlenlp_codegen_task")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before
