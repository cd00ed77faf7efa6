"""The static graph on disk: what Paddle reads back, what it changes, and what making it takes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
import pytest
from checkpoints import TINY
from random_models import spread_tensors, write_model

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import paddle_graph
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.paddle_inference import StaticGraph

CONFIG = dataclasses.replace(TINY, vocab_size=257)
PROMPTS = ["def f(x):", "a", "return 1 + "]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"), CONFIG, spread_tensors(CONFIG))


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> Iterator[FusedWeights]:
    with open_checkpoint(checkpoint) as opened:
        yield FusedWeights(opened, CONFIG)


@pytest.fixture(scope="module")
def graph_folder(weights: FusedWeights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    paddle_graph.save_graph(weights, folder)
    return folder


def open_generator(folder: Path, home_path: Path) -> CodeGenerator:
    return CodeGenerator.from_pretrained(folder, home_path=home_path, device="cpu", num_threads=1)


def greedy(generator: CodeGenerator) -> list[tuple[int, ...]]:
    completions = generator.generate(
        PROMPTS, decode_strategy="greedy_search", max_length=40, truncation=None
    )
    return [completion.token_ids for (completion,) in completions]


# What is in the files


def test_paddle_reads_the_parameters_bit_for_bit(weights: FusedWeights, graph_folder: Path) -> None:
    scope = paddle.static.Scope()
    with paddle_graph.paddle_mode(static=True), paddle.static.scope_guard(scope):
        executor = paddle.static.Executor(paddle.CPUPlace())
        prefix = str(graph_folder / "model")
        _, inputs, outputs = paddle.static.load_inference_model(prefix, executor)
        found = {
            name: np.array(scope.find_var(name).get_tensor())
            for name in paddle_graph.parameter_shapes(CONFIG)
        }
    assert inputs == [one[0] for one in paddle_graph.inputs(CONFIG, "float32")]
    assert len(outputs) == 4  # and no copies of the caches
    assert_parameters(found, weights, "float32")


def assert_parameters(found: dict[str, np.ndarray], weights: FusedWeights, dtype: str) -> None:
    expected = dict(paddle_graph.parameters(weights))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        stored = "float32" if "ln_" in name else dtype  # LayerNorm is computed in float32
        assert found[name].dtype == stored, name
        np.testing.assert_array_equal(found[name], value.astype(stored), err_msg=name)


def test_float16_takes_half_the_room(
    weights: FusedWeights, graph_folder: Path, tmp_path: Path
) -> None:
    # The parameters only: Paddle 3 does not build a float16 program without a GPU's kernels.
    half = tmp_path / "half.pdiparams"
    with half.open("wb") as file:
        paddle_graph._save_parameters(file, weights, "float16")
    shapes = paddle_graph.parameter_shapes(CONFIG)
    values = sum(math.prod(shape) for name, shape in shapes.items() if "ln_" not in name)
    single = graph_folder / paddle_graph.PARAMETERS_FILE
    assert single.stat().st_size - half.stat().st_size == 2 * values
    normal = sum(math.prod(shape) for name, shape in shapes.items() if "ln_" in name)
    said_of_tensors = half.stat().st_size - 2 * values - 4 * normal
    assert said_of_tensors < 64 * len(shapes)

    scope = paddle.static.Scope()
    tensors = {name: scope.var(name).get_tensor() for name in shapes}
    for tensor in tensors.values():
        tensor.set(np.zeros(1, np.float16), paddle.CPUPlace())
    paddle.base.core.load_combine_func(
        str(half), list(tensors), list(tensors.values()), False, paddle.CPUPlace()
    )
    assert_parameters({k: np.array(v) for k, v in tensors.items()}, weights, "float16")


def test_parameters_come_in_the_order_of_their_names(weights: FusedWeights) -> None:
    names = [name for name, _ in paddle_graph.parameters(weights)]
    assert names == sorted(names)
    shapes = {name: list(value.shape) for name, value in paddle_graph.parameters(weights)}
    assert shapes == paddle_graph.parameter_shapes(CONFIG)


# What a step changes


def test_caches_are_written_in_place(weights: FusedWeights, graph_folder: Path) -> None:
    capacity, heads, width = 16, CONFIG.n_head, CONFIG.head_dim
    token_ids = np.array([[3, 1, 4], [1, 5, 0]])  # the second row has two tokens
    past_lengths = np.array([0, 0])
    graph = StaticGraph(graph_folder, CONFIG, None, 1)
    marked = np.full([2 * heads * capacity, width], 7, np.float32)
    caches = [paddle.to_tensor(marked, place="cpu") for _ in range(2 * CONFIG.n_layer)]
    addresses = [cache.data_ptr() for cache in caches]
    graph.bind(caches)
    output = graph.run(token_ids, past_lengths, np.array([2, 4]))

    assert [cache.data_ptr() for cache in caches] == addresses
    for cache in caches:
        rows = cache.numpy().reshape([2, heads, capacity, width])
        assert (rows[:, :, 3:] == 7).all()
        assert (rows[:, :, :3] != 7).all()
    logits = output.logits()
    assert logits.shape == (2, CONFIG.vocab_size)
    assert output.candidates.shape == output.candidate_ids.shape == (2, 64)
    for row, tokens in enumerate(([3, 1, 4], [1, 5])):
        expected = reference.forward(weights, tokens)[-1]
        np.testing.assert_allclose(logits[row], expected, atol=1e-4 * expected.std())
        best = np.sort(logits[row])[::-1][:64]
        np.testing.assert_array_equal(output.candidates[row], best)
        np.testing.assert_array_equal(logits[row][output.candidate_ids[row]], best)

    # The next step reads what the first one wrote, and padding is overwritten.
    following = graph.run(np.array([[1], [9]]), np.array([3, 2]), np.array([0, 1])).logits()
    for row, tokens in enumerate(([3, 1, 4, 1], [1, 5, 9])):
        expected = reference.forward(weights, tokens)[-1]
        np.testing.assert_allclose(following[row], expected, atol=1e-4 * expected.std())


def test_rows_of_a_larger_buffer(weights: FusedWeights, graph_folder: Path) -> None:
    """A graph bound to part of a buffer leaves the rest of it alone."""
    capacity = 8
    size = CONFIG.n_head * capacity
    whole = np.full([3 * size, CONFIG.head_dim], 7, np.float32)
    buffers = [paddle.to_tensor(whole, place="cpu") for _ in range(2 * CONFIG.n_layer)]
    graph = StaticGraph(graph_folder, CONFIG, None, 1)
    graph.bind([buffer._slice(size, 2 * size) for buffer in buffers])
    logits = graph.run(np.array([[3, 1]]), np.array([0]), np.array([1])).logits()
    expected = reference.forward(weights, [3, 1])[-1]
    np.testing.assert_allclose(logits[0], expected, atol=1e-4 * expected.std())
    for buffer in buffers:
        slots = buffer.numpy().reshape([3, -1])
        assert (slots[[0, 2]] == 7).all()
        assert (slots[1] != 7).any()


# What making it takes

MEASURE = """
import json, sys
from pathlib import Path
import paddlenlp_codegen_task
from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import paddle_graph
from paddlenlp_codegen_task.loading import LoadOptions, load_model
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights

def memory(field):
    status = Path("/proc/self/status").read_text().split(field + ":")[1]
    return 1024 * int(status.split()[0])

def growth(run):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before

warm, folder, out = map(Path, sys.argv[1:])
CodeGenerator.from_pretrained(warm, home_path=out, num_threads=1).close()
(out / "graph").mkdir()
with open_checkpoint(folder) as checkpoint:
    weights = FusedWeights(checkpoint, CodeGenConfig.from_folder(folder))
    writing = growth(lambda: paddle_graph.save_graph(weights, out / "graph"))
whole = growth(lambda: load_model(folder, LoadOptions(home_path=out, num_threads=1)))
print(json.dumps([writing, whole]))
"""


def test_memory_of_an_export(checkpoint: Path, tmp_path: Path) -> None:
    """Writing takes a layer's memory, not the model's; checking loads the model, once."""
    config = dataclasses.replace(CONFIG, n_embd=512, n_inner=2048, n_layer=16, rotary_dim=32)
    big = write_model(tmp_path / "big", config, spread_tensors(config))
    size = (big / "model.safetensors").stat().st_size
    assert size > 200e6
    tests = Path(__file__).parents[1]
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, checkpoint, big, tmp_path],
        env={**os.environ, "PYTHONPATH": str(tests.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert measured.returncode == 0, measured.stderr
    writing, whole = json.loads(measured.stdout.splitlines()[-1])
    assert writing < 0.5 * size
    assert whole < 1.7 * size


# Static mode is a switch of the whole process


@pytest.fixture
def static_program() -> Iterator[None]:
    """The user's own program is in static mode."""
    paddle.enable_static()
    yield
    paddle.disable_static()


@pytest.mark.usefixtures("static_program")
def test_exporting_in_a_static_program(checkpoint: Path, tmp_path: Path) -> None:
    program = paddle.static.default_main_program()
    with open_generator(checkpoint, tmp_path) as generator:
        assert not paddle.in_dynamic_mode()
        found = greedy(generator)
        assert not paddle.in_dynamic_mode()
        folder = generator.folder
    with CodeGenerator.from_pretrained(
        checkpoint, home_path=tmp_path, device="cpu", static_mode=False
    ) as eager:
        assert greedy(eager) == found
    assert not paddle.in_dynamic_mode()
    assert program.global_block().ops == []
    paddle.disable_static()
    with CodeGenerator.from_export(folder, device="cpu", num_threads=1) as generator:
        assert greedy(generator) == found


def test_exporting_in_an_eager_program(checkpoint: Path, tmp_path: Path) -> None:
    with open_generator(checkpoint, tmp_path):
        assert paddle.in_dynamic_mode()


def test_a_failed_export_leaves_the_mode_as_it_was(
    weights: FusedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        assert not paddle.in_dynamic_mode()
        raise RuntimeError("no such op")

    monkeypatch.setattr(paddle_graph, "step", fail)
    with pytest.raises(RuntimeError, match="no such op"):
        paddle_graph.save_graph(weights, tmp_path)
    assert paddle.in_dynamic_mode()


def test_a_thread_waits_for_another_mode(checkpoint: Path, home_path: Path) -> None:
    with open_generator(checkpoint, home_path) as generator:
        expected = greedy(generator)
    found: list[object] = []

    def generate() -> None:
        try:
            # Buffers are made, grow and move only in a new generator.
            with open_generator(checkpoint, home_path) as fresh:
                found.append(greedy(fresh))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=generate)
    with paddle_graph.paddle_mode(static=True):
        thread.start()
        thread.join(1)
        assert not found
        assert not paddle.in_dynamic_mode()
    thread.join()
    assert found == [expected]
    assert paddle.in_dynamic_mode()


def test_generating_while_another_thread_exports(
    checkpoint: Path, weights: FusedWeights, tmp_path: Path
) -> None:
    with open_generator(checkpoint, tmp_path) as generator:
        expected = greedy(generator)
    exported = threading.Event()
    found: list[object] = []

    def generate() -> None:
        try:
            while not exported.is_set():
                with CodeGenerator.from_export(generator.folder, device="cpu") as fresh:
                    found.append(greedy(fresh))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=generate)
    thread.start()
    try:
        for number in range(10):
            folder = tmp_path / str(number)
            folder.mkdir()
            paddle_graph.save_graph(weights, folder)
    finally:
        exported.set()
        thread.join()
    assert len(found) > 1
    assert all(one == expected for one in found), found
    assert paddle.in_dynamic_mode()
