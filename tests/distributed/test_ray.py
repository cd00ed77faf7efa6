"""Batches and evaluations on two nodes: the same as without Ray, whatever is killed meanwhile.

All in one file, as there is one cluster.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from engine_probe import until
from fake_generator import fake_generator
from ray.cluster_utils import Cluster
from ray_cluster import CountingFiles, FakeLoading, Receiver, lose_node, two_nodes
from typer.testing import CliRunner

from paddlenlp_codegen_task import CodeGenerator, cli
from paddlenlp_codegen_task.batch.results import Files, paths
from paddlenlp_codegen_task.batch.run import Summary, complete_batch
from paddlenlp_codegen_task.batch.source import Source
from paddlenlp_codegen_task.distributed.batch import RayBatch
from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.distributed.model import Shipped
from paddlenlp_codegen_task.export import store

PATIENCE = 300.0  # seconds, for workers that start on a machine which is at work
ROWS = 300
BAD = ['{"prompt": 5}', "no JSON", '{"id": "r3", "prompt": "SAME"}', '{"prompt": ""}']


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    rows = [
        {"id": f"r{n}", "prompt": "PROMPT" + "ABCDEFGHIJ"[n % 10] * (n % 7 + 1)}
        for n in range(ROWS)
    ]
    rows[7]["options"] = {"max_length": 3, "num_return_sequences": 2}
    path.write_text("\n".join([*map(json.dumps, rows), *BAD]) + "\n")
    return path


@pytest.fixture
def expected(source: Path, tmp_path: Path) -> Any:
    """What it comes to without Ray."""
    (tmp_path / "alone").mkdir()
    with fake_generator(tmp_path / "alone") as generator:
        complete_batch(generator, source, tmp_path / "alone.jsonl", seed=1)
    return contents(tmp_path / "alone.jsonl")


def contents(out: Path) -> list[list[str]]:
    """The lines of results, each of which must be there once; in an order of their own."""
    found = [sorted(path.read_text().splitlines()) for path in paths(out)[:2]]
    assert all(len(set(lines)) == len(lines) for lines in found)
    return found


def has_lines(out: Path, count: int) -> bool:
    return out.exists() and out.read_bytes().count(b"\n") >= count


def ray_batch(
    source: Source, out: Path, load: FakeLoading, workers: int, **options: Any
) -> RayBatch:
    """A batch on workers with fake generators."""
    load.folder.mkdir(exist_ok=True)
    pool = Pool(least=workers, most=workers, cpus=1, gpus=0, on_a_node=1)
    results = Files(out, {}, overwrite=False)
    return RayBatch(load, pool, 4, source, results, {"seed": 1, **options})


@pytest.mark.parametrize("workers", [1, 2])
def test_texts_are_those_without_ray(
    cluster: Cluster, source: Path, tmp_path: Path, expected: Any, workers: int
) -> None:
    load = FakeLoading(tmp_path / "workers")
    # Read by the driver's node alone, or by any.
    rows = Source.of_path(source) if workers == 1 else Source.of_uri(source.as_uri())
    summary = ray_batch(rows, tmp_path / "out.jsonl", load, workers).run()
    assert (summary.completed, summary.refused, summary.before) == (ROWS, len(BAD), 0)
    assert summary.tokens > ROWS
    assert contents(tmp_path / "out.jsonl") == expected
    assert len(set(load.workers().values())) == workers  # a node each
    again = ray_batch(rows, tmp_path / "out.jsonl", load, workers).run()
    assert (again.before, again.tokens) == (ROWS + len(BAD), 0)


def test_what_dies_is_replaced(
    cluster: Cluster, source: Path, tmp_path: Path, expected: Any
) -> None:
    """A worker's process, and then a node with all that runs there."""
    load = FakeLoading(tmp_path / "workers", seconds=0.01)
    out = tmp_path / "out.jsonl"
    batch = ray_batch(Source.of_path(source), out, load, 2)
    found: list[Summary] = []
    thread = threading.Thread(target=lambda: found.append(batch.run()))
    thread.start()
    try:
        until(lambda: has_lines(out, 10) and len(load.workers()) == 2, PATIENCE)
        os.kill(min(load.workers()), signal.SIGKILL)
        until(partial(has_lines, out, 60), PATIENCE)
        assert not has_lines(out, ROWS)
        lose_node(cluster)
    finally:
        thread.join(PATIENCE)
    assert found
    assert not found[0].stopped
    assert contents(out) == expected
    assert len(load.workers()) > 2


def test_an_error_of_the_model_ends_it(cluster: Cluster, source: Path, tmp_path: Path) -> None:
    load = FakeLoading(tmp_path / "workers", error="there is\ntoo little")
    batch = ray_batch(Source.of_path(source), tmp_path / "out.jsonl", load, 1)
    with pytest.raises(RuntimeError, match=r"^a worker at [^\n]+: id 'r[^\n]+too little$"):
        batch.run()
    assert len(load.workers()) == 1


def test_a_run_that_is_stopped_or_killed_is_gone_on_with(
    cluster: Cluster, tmp_path: Path, home_path: Path, builtin: CodeGenerator
) -> None:
    """By the command, with Ray and without."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"id": n, "prompt": f"def f_{n}(x):\n    return x"} for n in range(600)]
    source.write_text("\n".join(map(json.dumps, rows)))
    options: dict[str, Any] = {"seed": 3, "max_length": 12, "truncation": None}
    options["allow_special_tokens"] = False
    command = [sys.executable, "-m", "paddlenlp_codegen_task", "batch", source.name, out.name]
    home = os.path.relpath(home_path, tmp_path)  # the workers are in folders of their own
    command += ["--model=builtin", f"--home-path={home}", "--num-threads=1", "--seed=3"]
    command += ["--max-length=12", "--no-truncation", f"--ray={cluster.address}", "--ray-workers=1"]
    count = 0
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            try:
                until(partial(has_lines, out, count + 10), PATIENCE)
                child.send_signal(number)
                assert child.wait(PATIENCE) == code
            finally:
                child.kill()
            said = child.stderr.read().splitlines()
        count = out.read_bytes().count(b"\n")
        assert count < len(rows)
        if number == signal.SIGINT:
            assert len(said) == 1
            assert said[0].startswith(f"paddlenlp-codegen: interrupted: {count} rows completed, ")
            assert said[0].endswith("; the same command goes on")
    assert complete_batch(builtin, source, out, **options).before == count
    complete_batch(builtin, source, tmp_path / "alone.jsonl", **options)
    assert contents(out) == contents(tmp_path / "alone.jsonl")


def test_a_model_is_sent_once_to_a_node(
    cluster: Cluster, tmp_path: Path, builtin: CodeGenerator
) -> None:
    manifest = store.read_manifest(builtin.folder)
    files = ray.remote(CountingFiles).options(num_cpus=0).remote(builtin.folder)
    here = Shipped("builtin", builtin.folder, manifest, files)
    elsewhere = replace(here, folder=tmp_path / "another machine's")
    workers = [ray.remote(Receiver).options(num_cpus=0).remote() for _ in range(3)]
    homes = [tmp_path / "a", tmp_path / "b"]
    found = ray.get([one.receive.remote(elsewhere, home) for home in homes for one in workers])
    assert len({process for _, process in found}) == 3
    for path, _ in found:
        assert store.read_manifest(path) == manifest
        store.check_large_files(path)
    assert len({path for path, _ in found}) == 2
    asked, puts = ray.get(files.asked.remote())
    assert sorted(asked) == sorted([*manifest["files"]] * 2)
    assert puts == len(manifest["files"])
    assert ray.get(workers[0].receive.remote(here, tmp_path / "c"))[0] == builtin.folder
    assert not (tmp_path / "c").exists()
    assert ray.get(files.asked.remote())[1] == puts


def evaluate(command: list[str]) -> None:
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 0, result.output


def test_an_evaluation_s_lines_are_those_without_ray(
    cluster: Cluster, tmp_path: Path, home_path: Path, builtin: CodeGenerator
) -> None:
    problems = [
        {
            "task_id": f"T/{n}",
            "prompt": f"def add_{n}(x, y):\n",
            "entry_point": f"add_{n}",
            "test": "def check(f):\n    assert f(1, 2) == 3\n",
            "canonical_solution": "    return x + y\n",
        }
        for n in range(5)
    ]
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(map(json.dumps, problems)))
    command = ["evaluate", str(path), "--no-score", "--samples=3", "--temperature=0.2"]
    command += ["--temperature=0.8", "--max-length=12", f"--home-path={home_path}"]
    command += ["--model=builtin", "--engine=onnxruntime", "--num-threads=1"]
    evaluate([*command, f"--out={tmp_path / 'alone'}"])
    expected = (tmp_path / "alone" / "samples.jsonl").read_text()
    (tmp_path / "ray").mkdir()
    shutil.copy(tmp_path / "alone" / "settings.json", tmp_path / "ray")
    begun = expected.splitlines(keepends=True)[2:9]  # where another run was ended
    (tmp_path / "ray" / "samples.jsonl").write_text("".join(begun))
    evaluate([*command, f"--out={tmp_path / 'ray'}", f"--ray={cluster.address}", "--ray-workers=2"])
    assert (tmp_path / "ray" / "samples.jsonl").read_text() == expected
