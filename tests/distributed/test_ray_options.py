"""What `--ray` and `--ray-workers` may be, and what is said where there is no cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from engine_probe import until
from fake_generator import fake_generator
from typer.testing import CliRunner

from paddlenlp_codegen_task import CodeGenerator, cli
from paddlenlp_codegen_task.batch.completing import Completed
from paddlenlp_codegen_task.batch.rows import Refused, Row
from paddlenlp_codegen_task.distributed import cluster
from paddlenlp_codegen_task.distributed.blocks import Stoppable
from paddlenlp_codegen_task.distributed.worker import RowWorker, table_of, values_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def refused(tmp_path: Path, *options: str) -> tuple[int, str]:
    """The exit code and the line of a batch that cannot be."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "def f(x):"}')
    arguments = ["batch", str(source), str(tmp_path / "out.jsonl"), *options]
    done = CliRunner().invoke(cli.app, arguments)
    assert not (tmp_path / "out.jsonl").exists()
    [line] = done.stderr.splitlines()
    return done.exit_code, line.removeprefix("paddlenlp-codegen: ")


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", init)
    message = "--ray: there is no Ray cluster on this machine: start one with `ray start --head`"
    assert refused(tmp_path, "--ray=auto") == (1, message)


def test_nothing_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would ask for ever."""
    with socket.socket() as bound:  # and nobody listens
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        code, line = refused(tmp_path, f"--ray={address}")
        assert code == 1
        assert line.startswith(f"--ray: nothing answers at {address} ([Errno 111] ")
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert refused(tmp_path, "--ray=auto") == (code, line)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray=here"], "--ray must be auto or HOST:PORT, got 'here'"),
        (["--ray="], "--ray must be auto or HOST:PORT, got ''"),
        (["--ray=ray://a:1"], "--ray: 'ray://a:1' is a client's address: run the command on a "),
        (["--ray-workers=2"], "--ray-workers: goes with --ray alone"),
    ],
    ids=" ".join,
)
def test_what_cannot_be(tmp_path: Path, options: list[str], message: str) -> None:
    code, line = refused(tmp_path, *options)
    assert code == 2
    assert line.startswith(message)


def test_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\")")
    (tmp_path / "in.jsonl").touch()
    command = [sys.executable, "-m", "paddlenlp_codegen_task", "batch", "in.jsonl", "out.jsonl"]
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, "--ray=auto"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "paddlenlp-codegen: No module named 'ray': pip install 'paddlenlp_codegen_task[ray]' "
        "brings what is needed\n"
    )


@pytest.mark.parametrize(
    ("given", "expected"), [("3", (3, 3)), (2, (2, 2)), ("1:4", (1, 4)), ("4:4", (4, 4))]
)
def test_numbers_of_workers(given: str | int, expected: tuple[int, int]) -> None:
    assert cluster.parsed_workers(given) == expected


@pytest.mark.parametrize("given", ["0", "", "4:2", "-1", "2:", "1:2:3", "x", "1.5"])
def test_what_is_no_number_of_workers(given: str) -> None:
    with pytest.raises(ValueError, match=r"^ray_workers must be N or MIN:MAX, from 1 up, got "):
        cluster.parsed_workers(given)


@pytest.mark.parametrize(
    ("workers", "threads", "on_gpu", "expected"),
    [
        (None, None, False, cluster.Pool(5, 5, 4, 0, 4)),
        (None, 1, False, cluster.Pool(20, 20, 1, 0, 16)),
        (None, None, True, cluster.Pool(2, 2, 1, 1, 2)),
        ("2:9", 2, False, cluster.Pool(2, 9, 2, 0, 8)),
        (2, 1, False, cluster.Pool(2, 2, 1, 0, 2)),
        (None, 32, False, cluster.Pool(1, 1, 32, 0, 1)),
    ],
)
def test_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
    workers: str | int | None,
    threads: int | None,
    on_gpu: bool,
    expected: cluster.Pool,
) -> None:
    """Nodes of 16 CPUs and two GPUs, of 4 CPUs, a head of none, and one that is gone."""
    resources: list[dict[str, float]] = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}, {}]
    nodes = [{"Alive": True, "Resources": one} for one in resources]
    nodes.append({"Alive": False, "Resources": {"CPU": 64.0}})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert cluster.Pool.of(workers, threads, on_gpu) == expected


def test_what_waits_can_be_stopped() -> None:
    closed = []

    def values() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    outcomes = Stoppable(values())  # type: ignore[arg-type]
    found = iter(outcomes)
    assert next(found) == 1
    outcomes.stop()
    assert list(found) in ([], [2])  # what has come by then
    assert outcomes.stopped
    until(lambda: closed)
    assert list(Stoppable(values())) == [1, 2]  # type: ignore[arg-type]


def test_an_error_of_what_is_read_ahead() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise OSError("it broke")

    found = iter(Stoppable(values()))  # type: ignore[arg-type]
    assert next(found) == 1
    with pytest.raises(OSError, match="it broke"):
        next(found)


def given_by(worker: RowWorker, *rows: Row) -> Any:
    """What a worker gives for a block."""
    [found] = values_of(worker(table_of(list(rows))))
    return found


def test_a_worker_s_errors_are_told_and_not_raised(tmp_path: Path) -> None:
    """Raised, they would be Ray's to wrap, or a reason to start the worker again."""

    def fail() -> CodeGenerator:
        raise OSError("no such\nfolder")

    failure = given_by(RowWorker(fail, {}), Row(1, "AB"))
    assert (failure.message, failure.usage) == ("cannot load the model: no such folder", False)
    with fake_generator(tmp_path) as generator:
        failure = given_by(RowWorker(lambda: generator, {"max_length": 5000}), Row(1, "AB"))
        assert failure.message.startswith("max_length must be below the model's context of 2048")
        assert failure.usage
        rows = [Row("a", "AB"), Row(7, ""), Row("7", "\ud800"), Row("b", "AB", {"seed": "x"})]
        found = given_by(RowWorker(lambda: generator, {"seed": 1}), *rows)
        assert [type(one) for one in found] == [Completed, Refused, Refused, Refused]
        assert [one.id for one in found[1:]] == [7, "7", "b"]
