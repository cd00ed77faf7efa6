"""What must hold on every stack: also on paddlepaddle 2.6 with paddlenlp 2.8, without PyTorch."""

import paddlenlp_codegen_task  # noqa: I001  before anything that loads Paddle, for Paddle 2.6

import contextlib
import dataclasses
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import uvicorn
from byte_tokenizer import write_byte_tokenizer
from checkpoints import TINY, write_paddle, write_safetensors
from paddlenlp import SimpleServer, Taskflow
from random_models import spread_tensors

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import paddle_graph
from paddlenlp_codegen_task.loading import LoadOptions, load_model
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.base import decode, prefill

CONFIG = dataclasses.replace(TINY, vocab_size=257)
PROMPTS = ["def f(x):\n    return", "x =", "class Queue:\n    def push(self, item):", "#"]
GREEDY = {"decode_strategy": "greedy_search", "max_length": 20, "truncation": None}


# Where Taskflow would end the process: test_taskflow_without_a_device says how.
NO_GPU_FOR_PADDLE = paddle.is_compiled_with_cuda() and not paddle.device.cuda.device_count()


@pytest.fixture(scope="module", autouse=True)
def _no_statistics() -> Iterator[None]:
    """PaddleNLP tells its server, once a process, which task is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paddlenlp.taskflow.utils.DOWNLOAD_CHECK", True)
        yield


@pytest.fixture(scope="module")
def codegen(home_path: Path) -> Any:
    return make(home_path, model="builtin")


def make(home_path: Path, **options: object) -> Any:
    if NO_GPU_FOR_PADDLE:
        options["device_id"] = -1
    return Taskflow("code_generation", home_path=str(home_path), num_threads=1, **options)


def safetensors_of_paddle(folder: Path, seed: int = 0) -> Path:
    write_safetensors(folder, spread_tensors(CONFIG, seed), CONFIG, layout="np")
    return write_byte_tokenizer(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return safetensors_of_paddle(tmp_path_factory.mktemp("small"))


def test_taskflow(codegen: Any, home_path: Path, tmp_path: Path) -> None:
    assert type(codegen.task_instance).__module__ == f"{paddlenlp_codegen_task.__name__}.task"
    texts = codegen(PROMPTS, **GREEDY)
    assert [type(text) for text in texts] == [str] * 4
    assert all(texts)
    assert [codegen(prompt, **GREEDY)[0] for prompt in PROMPTS] == texts
    assert codegen(PROMPTS, batch_size=3, **GREEDY) == texts
    assert codegen(PROMPTS, seed=1) == codegen(PROMPTS, seed=1)
    deployed = shutil.copytree(codegen.task_path(), tmp_path / "deployed")
    static = make(home_path, task_path=str(deployed), is_static_model=True)
    assert static(PROMPTS, **GREEDY) == texts
    with pytest.raises(ValueError, match="temperature must be above 0"):
        codegen("x", temperature=0)


@pytest.mark.skipif(not NO_GPU_FOR_PADDLE, reason="needs a Paddle for GPUs, and no GPU")
def test_taskflow_without_a_device() -> None:
    """PaddleNLP goes to GPU 0 before the task begins, and Paddle ends the process; docs say so."""
    code = 'import paddlenlp_codegen_task, paddlenlp; paddlenlp.Taskflow("code_generation")'
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 255
    assert "no GPU detected" in ran.stdout + ran.stderr


def test_python_is_completed_to_the_end_of_the_function(codegen: Any) -> None:
    (text,) = codegen("def hello_world():", seed=0)
    assert text.startswith("\n ")
    assert "\ndef" not in text
    assert text == text.rstrip()


def test_checkpoints(home_path: Path, checkpoint: Path, tmp_path: Path) -> None:
    texts = make(home_path, task_path=str(checkpoint))(PROMPTS, **GREEDY)
    state = write_paddle(tmp_path / "state", spread_tensors(CONFIG), CONFIG)
    write_byte_tokenizer(state)
    assert make(home_path, task_path=str(state))(PROMPTS, **GREEDY) == texts
    eager = make(home_path, task_path=str(checkpoint), static_mode=False)
    assert eager(PROMPTS, **GREEDY) == texts


def test_logits_are_the_references(home_path: Path, checkpoint: Path) -> None:
    """In prefill and decode, alone and together with rows of other lengths."""
    rng = np.random.default_rng(0)
    prompts = [[int(i) for i in rng.integers(257, size=n)] for n in (1, 5, 12)]
    following = [3, 1, 4]
    loaded = load_model(checkpoint, LoadOptions(home_path=home_path, device="cpu"))
    first = prefill(loaded.runtime, 0, prompts).logits()
    second = decode(loaded.runtime, following).logits()
    loaded.runtime.close()
    with open_checkpoint(checkpoint) as opened:
        weights = FusedWeights(opened, CONFIG)
        for row, prompt in enumerate(prompts):
            expected = reference.forward(weights, [*prompt, following[row]])[-2:]
            tolerance = 1e-4 * expected.std()
            np.testing.assert_allclose(first[row], expected[0], rtol=0, atol=tolerance)
            np.testing.assert_allclose(second[row], expected[1], rtol=0, atol=tolerance)


def test_an_export_is_reused(checkpoint: Path, tmp_path: Path) -> None:
    def load() -> Path:
        with CodeGenerator.from_pretrained(checkpoint, home_path=tmp_path, device="cpu") as one:
            return one.folder

    folder = load()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert load() == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_static_mode_of_the_program_does_not_matter(checkpoint: Path, tmp_path: Path) -> None:
    options = {"home_path": tmp_path, "device": "cpu", "num_threads": 1}
    texts = []
    for switch in (paddle.disable_static, paddle.enable_static):
        switch()
        try:
            shutil.rmtree(tmp_path / "taskflow", ignore_errors=True)
            with CodeGenerator.from_pretrained(checkpoint, **options) as generator:
                texts.append(generator.generate(PROMPTS, **GREEDY))
            assert paddle.in_dynamic_mode() == (switch is paddle.disable_static)
        finally:
            paddle.disable_static()
    assert texts[0] == texts[1]


def test_float16_graph(checkpoint: Path, tmp_path: Path) -> None:
    """Paddle 2 builds a float16 program anywhere, Paddle 3 only where kernels for it are."""
    builds = paddle.__version__.startswith("2.") or paddle.is_compiled_with_cuda()
    expectation: Any = contextlib.nullcontext()
    if not builds:
        expectation = pytest.raises(TypeError, match="float16")
    sizes = {}
    with open_checkpoint(checkpoint) as opened:
        weights = FusedWeights(opened, CONFIG)
        for dtype in ("float32", "float16"):
            folder = tmp_path / dtype
            folder.mkdir()
            with expectation if dtype == "float16" else contextlib.nullcontext():
                paddle_graph.save_graph(weights, folder, dtype)
                sizes[dtype] = (folder / paddle_graph.PARAMETERS_FILE).stat().st_size
    shapes = paddle_graph.parameter_shapes(CONFIG)
    # LayerNorm's stay float32.
    values = sum(math.prod(shape) for name, shape in shapes.items() if "ln_" not in name)
    if builds:
        assert sizes["float32"] - sizes["float16"] == 2 * values
        if paddle.__version__.startswith("2."):
            with paddle_graph.paddle_mode(static=True):
                assert_float16_program(tmp_path / "float16")
    else:
        assert sizes.keys() == {"float32"}


def assert_float16_program(folder: Path) -> None:
    """What its files say, read back by Paddle: types, shapes, and that buffers are written to."""
    program = paddle.static.deserialize_program((folder / "model.pdmodel").read_bytes())
    block = program.global_block()
    shapes = paddle_graph.parameter_shapes(CONFIG)
    weights = {name: block.var(name) for name in shapes}
    for name, weight in weights.items():
        assert list(weight.shape) == shapes[name]
        narrow = paddle.float32 if "ln_" in name else paddle.float16
        assert weight.dtype == narrow
    caches = []
    for name, shape, dtype in paddle_graph.inputs(CONFIG, "float16"):
        found = block.var(name)
        assert [None if size < 0 else size for size in found.shape] == shape
        assert found.dtype == getattr(paddle, dtype)
        caches += [name] * ("cache" in name)
    assert len(caches) == 2 * CONFIG.n_layer
    writes = [op for op in block.ops if op.type == "scatter"]
    assert [op.input("X") for op in writes] == [op.output("Out") for op in writes]
    assert sorted(op.input("X")[0] for op in writes) == sorted(caches)
    scores = [op for op in block.ops if op.type == "softmax"]
    assert {block.var(op.input("X")[0]).dtype for op in scores} == {paddle.float32}

    # The parameters, in the order that Paddle loads them in: of their names.
    scope, read = paddle.static.Scope(), paddle.static.Program()
    with paddle.static.scope_guard(scope):
        for name, weight in weights.items():
            read.global_block().create_var(
                name=name, shape=weight.shape, dtype=weight.dtype, persistable=True
            )
        read.global_block().append_op(
            type="load_combine",
            outputs={"Out": sorted(weights)},
            attrs={"file_path": str(folder / paddle_graph.PARAMETERS_FILE)},
        )
        paddle.static.Executor(paddle.CPUPlace()).run(read)
        loaded = {name: np.array(scope.find_var(name).get_tensor()) for name in weights}
    assert {name: list(value.shape) for name, value in loaded.items()} == shapes
    assert {str(value.dtype) for name, value in loaded.items() if "ln_" not in name} == {"float16"}


# PaddleNLP's SimpleServer


@pytest.fixture(scope="module")
def post(home_path: Path) -> Iterator[Callable[[object], Any]]:
    """Sends a JSON body to the task under uvicorn, and returns the answer's."""
    app = SimpleServer()
    app.register_taskflow("codegen", make(home_path, model="builtin", **GREEDY))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/codegen"
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def send(body: object) -> Any:
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with opener.open(request) as answer:
            return json.load(answer)

    try:
        yield send
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def test_simple_server(post: Callable[[object], Any], codegen: Any) -> None:
    texts = codegen(PROMPTS, **GREEDY)
    assert post({"data": {"text": PROMPTS}, "parameters": {}}) == {"result": texts}
    assert post({"data": {"text": PROMPTS[0]}}) == {"result": texts[:1]}
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(post, [{"data": {"text": prompt}} for prompt in PROMPTS])
    assert [answer["result"] for answer in answers] == [[text] for text in texts]


def test_simple_server_outlives_a_bad_request(post: Callable[[object], Any]) -> None:
    for text in ("", [], [1]):
        with pytest.raises(urllib.error.HTTPError) as raised:
            post({"data": {"text": text}, "parameters": {}})
        assert raised.value.code == 500
    assert len(post({"data": {"text": "x ="}, "parameters": {}})["result"]) == 1
