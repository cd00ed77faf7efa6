"""The ONNX engine: the same contract, checked against the reference and against Paddle."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from byte_tokenizer import write_byte_tokenizer
from checkpoints import write_safetensors
from random_models import spread_tensors, weights_of
from scipy.special import logsumexp

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import onnx_files, onnx_graph, store
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import cuda_graph as cuda_graphs
from paddlenlp_codegen_task.runtime import device, onnx_inference
from paddlenlp_codegen_task.runtime.base import (
    PREFILL_CHUNK,
    Interrupted,
    Runtime,
    StepOutput,
    decode,
    extend,
    prefill,
)
from paddlenlp_codegen_task.runtime.kv_cache import KVCacheFull
from paddlenlp_codegen_task.runtime.onnx_inference import OnnxRuntime, find_device

CONFIG = CodeGenConfig(
    vocab_size=300,
    n_positions=640,
    n_embd=128,
    n_layer=3,
    n_head=4,
    rotary_dim=16,
    n_inner=512,
    eos_token_id=256,
)
# Largest difference of logits from the reference, over their standard deviation.
TOLERANCE = {
    "fp32": 1e-4,
    "fp16": 2e-2,
    "int8": 0.2,
    "int8_weight_only": 0.2,
    "int4": 1.5,
    "int4_int8": 1.5,
}
EXACT_IN_ANY_BATCH = ["fp32", "int8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_safetensors(folder, spread_tensors(CONFIG), CONFIG)
    return write_byte_tokenizer(folder, range(256))


@pytest.fixture(scope="module")
def weights(checkpoint: Path) -> FusedWeights:
    return FusedWeights(open_checkpoint(checkpoint), CONFIG)


@pytest.fixture(scope="module", params=onnx_files.BYTES_PER_VALUE)
def exported(
    request: Any, weights: FusedWeights, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    onnx_graph.save_graph(weights, folder, request.param)
    return request.param, folder


def load(folder: Path, precision: str, cuda_graph: bool = False) -> Runtime:
    return onnx_inference.load(folder, CONFIG, None, 1, precision, cuda_graph)


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def assert_logits(precision: str, weights: FusedWeights, found: Any, sequences: list[Any]) -> None:
    for row, sequence in zip(found, sequences, strict=True):
        expected = reference.forward(weights, sequence)[-1]
        error = np.abs(row - expected).max() / expected.std()
        assert error < TOLERANCE[precision], (precision, len(sequence))


def assert_logsumexp(output: StepOutput) -> None:
    exact = logsumexp(output.logits().astype(np.float64), axis=1)
    np.testing.assert_allclose(output.logsumexp, exact, rtol=1e-6)


@pytest.mark.parametrize("cuda_graph", [False, True])  # on a CPU: its fixed memory, no capture
def test_logits(exported: tuple[str, Path], weights: FusedWeights, cuda_graph: bool) -> None:
    precision, folder = exported
    if cuda_graph and precision in onnx_files.PHASES:
        pytest.skip("not for a GPU")
    runtime = load(folder, precision, cuda_graph)
    sequences = [tokens(n, length) for n, length in enumerate((5, 40, 17))]
    output = prefill(runtime, 0, sequences)
    assert_logits(precision, weights, output.logits(), sequences)
    assert_logsumexp(output)
    order = np.argsort(-output.logits(), axis=1, kind="stable")[:, : output.candidates.shape[1]]
    best = np.take_along_axis(output.logits(), order, axis=1)
    np.testing.assert_array_equal(output.candidates, best)
    np.testing.assert_array_equal(output.candidate_ids[:, 0], order[:, 0])
    for step in range(100):  # past the first capacity
        new = tokens(step, 3)
        output = decode(runtime, new)
        sequences = [[*old, token] for old, token in zip(sequences, new, strict=True)]
    assert runtime.cache.capacity > 128
    assert_logits(precision, weights, output.logits(), sequences)
    assert_logsumexp(output)

    runtime.cache.copy(2, 0)  # the first has left
    sequences = [[*sequences[2], 1], [*sequences[1], 2]]
    assert_logits(precision, weights, decode(runtime, [1, 2]).logits(), sequences)
    newcomer = tokens(9, 2 * PREFILL_CHUNK + 44)  # in chunks, beside those that run
    assert_logits(precision, weights, prefill(runtime, 2, [newcomer]).logits(), [newcomer])
    sequences = [[*sequences[0], 3], [*sequences[1], 4], [*newcomer, 5]]
    assert_logits(precision, weights, decode(runtime, [3, 4, 5]).logits(), sequences)

    runtime.cache.reset()  # starts over in the memory there is
    buffers = list(runtime.cache.buffers)
    assert_logits(precision, weights, prefill(runtime, 0, [[7, 8, 9]]).logits(), [[7, 8, 9]])
    assert runtime.cache.capacity == 128
    assert all(a is b for a, b in zip(buffers, runtime.cache.buffers, strict=True))
    assert_logits(precision, weights, decode(runtime, [1]).logits(), [[7, 8, 9, 1]])
    captured = getattr(runtime, "_steps_made", 0)
    runtime.cache.reset()  # what was captured for these buffers serves the next run too
    prefill(runtime, 0, [[7, 8, 9]])
    assert_logits(precision, weights, decode(runtime, [1]).logits(), [[7, 8, 9, 1]])
    assert getattr(runtime, "_steps_made", 0) == captured
    assert (captured > 0) is cuda_graph
    with pytest.raises(ValueError, match="do not fit the context of 640"):
        prefill(runtime, 0, [tokens(0, 641)])
    runtime.close()
    assert not runtime.cache.buffers
    with pytest.raises(RuntimeError, match="closed"):
        decode(runtime, [1])


def test_logits_of_every_token(exported: tuple[str, Path], weights: FusedWeights) -> None:
    precision, folder = exported
    runtime = load(folder, precision)
    begun, more = tokens(0, 30), tokens(1, 9)
    prefill(runtime, 0, [tokens(2, 5), begun])
    output = runtime.forward(1, [more], every=True)
    sequences = [[*begun, *more[:count]] for count in range(1, 10)]
    assert_logits(precision, weights, output.logits(), sequences)
    assert_logsumexp(output)
    assert [runtime.cache.length(slot) for slot in range(2)] == [5, 39]
    runtime.cache.truncate(1, 32)  # as if only two had been right
    found = runtime.forward(1, [[8]]).logits()
    assert_logits(precision, weights, found, [[*begun, *more[:2], 8]])
    runtime.close()


@pytest.mark.parametrize("factor", [0, 0.01, 30, 1000])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_logsumexp_of_logits_near_and_far(tmp_path: Path, factor: float, cuda_graph: bool) -> None:
    """Where all are alike, and where exponentials would overflow by far."""
    tensors = spread_tensors(CONFIG)
    for name in ("lm_head.weight", "lm_head.bias"):
        tensors[name] *= np.float32(factor)
    onnx_graph.save_graph(weights_of(CONFIG, tensors), tmp_path, "fp32")
    runtime = OnnxRuntime(tmp_path, CONFIG, None, 1, cuda_graph)
    output = prefill(runtime, 0, [tokens(0, 3), tokens(1, 9)])
    assert np.ptp(output.logits()) == pytest.approx(20 * factor, rel=0.5)
    assert_logsumexp(output)
    output = decode(runtime, [1, 2])
    assert_logsumexp(output)
    runtime.close()


@pytest.mark.parametrize("precision", onnx_files.BYTES_PER_VALUE)
def test_logits_that_are_no_numbers_show_in_logsumexp(tmp_path: Path, precision: str) -> None:
    for name in ("one logit", "one token's row"):
        tensors = spread_tensors(CONFIG)
        if name == "one logit":  # an unlikely one, and of every row
            tensors["lm_head.bias"][123] = np.nan
        else:
            tensors["transformer.wte.weight"][7] = np.nan
        with np.errstate(invalid="ignore"):
            onnx_graph.save_graph(weights_of(CONFIG, tensors), tmp_path, precision)
        runtime = load(tmp_path, precision)
        output = prefill(runtime, 0, [[1, 2, 3], [5, 7], [4]])
        affected = [True] * 3 if name == "one logit" else [False, True, False]
        assert np.isnan(output.logsumexp).tolist() == affected
        assert np.isnan(output.logits()).any(axis=1).tolist() == affected
        output = decode(runtime, [1, 1, 1])
        assert np.isnan(output.logsumexp).tolist() == affected
        runtime.close()


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_step_beyond_the_budget_changes_nothing(
    exported: tuple[str, Path], weights: FusedWeights, cuda_graph: bool
) -> None:
    precision, folder = exported
    if cuda_graph and precision in onnx_files.PHASES:
        pytest.skip("not for a GPU")
    runtime = load(folder, precision, cuda_graph)
    cache = runtime.cache
    cache.max_bytes = cache.bytes(2, 128)
    sequences = [tokens(0, 100), tokens(1, 128)]
    prefill(runtime, 0, sequences)
    for _ in range(2):
        with pytest.raises(KVCacheFull, match=r"^2 sequences of 129 tokens need [\d,]+ bytes"):
            decode(runtime, [1, 2])
        with pytest.raises(KVCacheFull, match=r"^3 sequences of 128 tokens need"):
            prefill(runtime, 2, [[1]])
    assert [cache.length(slot) for slot in range(3)] == [100, 128, 0]
    found = decode(runtime, [3]).logits()  # the first has room left
    assert_logits(precision, weights, found, [[*sequences[0], 3]])
    cache.max_bytes = cache.bytes(2, 160)
    sequences = [[*sequences[0], 3, 1], [*sequences[1], 2]]
    assert_logits(precision, weights, decode(runtime, [1, 2]).logits(), sequences)
    runtime.close()


def generator(checkpoint: Path, home_path: Path, **options: Any) -> CodeGenerator:
    options = {"engine": "onnxruntime", "device": "cpu", "num_threads": 1, **options}
    return CodeGenerator.from_pretrained(
        checkpoint, home_path=home_path, decode_strategy="greedy_search", truncation=None, **options
    )


PROMPTS = ["def f(x):\n    return", "x", "import os\nimport sys\n" * 3, "class A:", "#", "y = 1\n"]


@pytest.mark.parametrize("precision", EXACT_IN_ANY_BATCH)
def test_a_batch_completes_as_each_alone(checkpoint: Path, home_path: Path, precision: str) -> None:
    with generator(checkpoint, home_path, precision=precision, max_length=48) as model:
        alone = [model.generate(prompt)[0] for prompt in PROMPTS]
        assert len({one[0].token_ids for one in alone}) == len(PROMPTS)
        for batch_size in (2, 4, 6):
            assert model.generate(PROMPTS, batch_size=batch_size) == alone


def test_tokens_equal_paddles(checkpoint: Path, home_path: Path) -> None:
    with (
        generator(checkpoint, home_path, max_length=64) as ours,
        generator(checkpoint, home_path, max_length=64, engine="paddle") as paddles,
    ):
        assert ours.folder != paddles.folder
        for penalty in (1.0, 1.3):
            found = ours.generate(PROMPTS, repetition_penalty=penalty)
            assert found == paddles.generate(PROMPTS, repetition_penalty=penalty)


@pytest.mark.parametrize("precision", ["int4", "int4_int8"])
def test_precision_chooses_the_engine(checkpoint: Path, home_path: Path, precision: str) -> None:
    with generator(checkpoint, home_path, engine="auto", precision=precision) as model:
        assert (model.folder / onnx_files.GRAPH_FILE).is_file()
        text = model.generate("x", max_length=4)
        deployed = CodeGenerator.from_export(
            model.folder, decode_strategy="greedy_search", truncation=None
        )
        with deployed:
            assert deployed.precision == precision
            assert deployed.generate("x", max_length=4) == text


def test_quantized_exports_hold_no_float_matrix(exported: tuple[str, Path]) -> None:
    precision, folder = exported
    values = sum(
        np.prod(shape)
        for shape in (
            (CONFIG.vocab_size, 2 * CONFIG.n_embd),
            (CONFIG.n_layer, CONFIG.n_embd, 4 * CONFIG.n_embd + 2 * CONFIG.n_inner),
        )
    )
    tables = CONFIG.n_positions * CONFIG.rotary_dim * 4
    phases = onnx_files.PHASES.get(precision, (precision,))
    # The last layer has one product more.
    padding = 4096 * (8 + len(phases) * (12 * CONFIG.n_layer + 4))
    size = (folder / onnx_files.WEIGHTS_FILE).stat().st_size
    bits = {"fp32": 32, "fp16": 16, "int8": 8, "int8_weight_only": 8.5, "int4": 5.5}
    most = sum(bits[one] for one in phases)
    assert size < values * most / 8 + tables + padding


# Two graphs over the same buffers: one for prompts, one for what is generated.


def held(runtime: Runtime, slot: int) -> list[Any]:
    return runtime.cache.read(slot, 0, runtime.cache.length(slot))


@pytest.fixture(scope="module")
def both(weights: FusedWeights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    onnx_graph.save_graph(weights, folder, "int4_int8")
    return folder


def test_prompts_and_what_is_generated_have_products_of_their_own(
    weights: FusedWeights, both: Path, tmp_path: Path
) -> None:
    one = {"int4_int8": load(both, "int4_int8")}
    for precision in ("int4", "int8"):
        (tmp_path / precision).mkdir()
        onnx_graph.save_graph(weights, tmp_path / precision, precision)
        one[precision] = load(tmp_path / precision, precision)
    ours, int4, int8 = one["int4_int8"], one["int4"], one["int8"]
    prompt = tokens(0, PREFILL_CHUNK + 40)
    prefill(ours, 0, [prompt])
    prefill(int8, 0, [prompt])
    for found, expected in zip(held(ours, 0), held(int8, 0), strict=True):
        np.testing.assert_array_equal(found, expected)
    int4.cache.write(0, held(ours, 0))
    for step in range(3):
        found, expected = (decode(runtime, [step]).logits().copy() for runtime in (ours, int4))
        np.testing.assert_array_equal(found, expected)
    drafted = [tokens(1, 5)]  # those of a draft are as if generated
    found, expected = (one.forward(0, drafted, True, True).logits() for one in (ours, int4))
    np.testing.assert_array_equal(found, expected)
    extend(ours, 0, [[1, 2, 3]], generated=True)
    extend(int4, 0, [[1, 2, 3]])
    for found, expected in zip(held(ours, 0), held(int4, 0), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (ours.same_products, int4.same_products, int8.same_products) == (False, True, True)
    for runtime in one.values():
        runtime.close()
    assert not ours.cache.buffers
    for generated in (False, True):
        with pytest.raises(RuntimeError, match="closed"):
            ours.forward(0, [[1]], False, generated)


def test_a_prompt_s_tokens_depend_on_nothing_beside_them(both: Path) -> None:
    """Neither on other prompts, nor on how many tokens run at once."""
    runtime = load(both, "int4_int8")
    prompts = [tokens(n, length) for n, length in enumerate((40, 1, 33, 17))]
    prefill(runtime, 0, prompts)
    together = [held(runtime, slot) for slot in range(4)]
    for prompt, expected in zip(prompts, together, strict=True):
        for size in (len(prompt), 5, 1):
            runtime.cache.truncate(0, 0)
            for start in range(0, len(prompt), size):
                extend(runtime, 0, [prompt[start : start + size]])
            # Attention adds in another order then, and what is close to half may round elsewhere.
            error = 0 if size == len(prompt) else 0.1
            for found, one in zip(held(runtime, 0), expected, strict=True):
                np.testing.assert_allclose(found, one, rtol=0, atol=error)
    runtime.close()


def test_two_graphs_store_once_what_both_have(both: Path) -> None:
    graphs = [
        onnx.load(str(both / name), load_external_data=False).graph
        for name in (onnx_files.GRAPH_FILE, onnx_files.PREFILL_FILE)
    ]
    generated, prompts = (
        {
            tensor.name: {one.key: one.value for one in tensor.external_data}
            for tensor in graph.initializer
            if tensor.external_data
        }
        for graph in graphs
    )
    common = generated.keys() & prompts.keys()
    assert {"wte", "wte_scales", "lm_head", "lm_head_scales", "rotary_cos"} <= common
    assert all(generated[name] == prompts[name] for name in common)
    own = {name.rpartition("_int8")[0] for name in prompts.keys() - common}
    products = {f"h{layer}_{name}" for layer in range(3) for name in ("w_in", "w_out")}
    assert own == products - {"h2_w_in"} | {"h2_qkv", "h2_inner"}
    places = [int(one["offset"]) for one in {**generated, **prompts}.values()]
    assert len(set(places)) == len(places)


def test_a_text_is_the_same_with_the_prefix_cache_and_without(
    checkpoint: Path, home_path: Path
) -> None:
    """Also where a prompt goes on from what was generated, as a session's turns do."""
    options: dict[str, Any] = {"precision": "int4_int8", "max_length": 48, "min_length": 48}
    texts = dict[str, list[Any]]()
    for name, cache_bytes in (("without", 0), ("with", 1 << 26)):
        with generator(checkpoint, home_path, prefix_cache_bytes=cache_bytes, **options) as model:
            texts[name] = []
            for prompt in PROMPTS:
                for _ in range(3):
                    [[found]] = model.generate(prompt, logprobs=2)
                    texts[name].append(found)
                    prompt += found.text + "\n"
    assert texts["with"] == texts["without"]


@pytest.mark.parametrize("damage", ["truncate", "delete", "change"])
@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_graph_is_built_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, large: bool
) -> None:
    if large:  # checked while it is being loaded
        monkeypatch.setattr(store, "_LARGE", 1000)
    with generator(checkpoint, tmp_path) as model:
        folder, expected = model.folder, model.generate("x", max_length=4)
    data = folder / onnx_files.WEIGHTS_FILE
    if damage == "delete":
        data.unlink()
    elif damage == "truncate":
        data.write_bytes(data.read_bytes()[:-1])
    else:
        data.write_bytes(bytes(255 - byte for byte in data.read_bytes()))
    with pytest.raises(store.ExportError, match=r"model\.onnx\.data"):
        CodeGenerator.from_export(folder)
    with generator(checkpoint, tmp_path) as model:
        assert model.folder == folder
        assert model.generate("x", max_length=4) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "precision 'fp16' needs a GPU"),
        ({"device": "gpu"}, "pip install onnxruntime-gpu"),
        ({"device": "tpu"}, "device must be 'auto'"),
        ({"static_mode": False}, "static_mode=False .* engine='paddle'"),
        ({"engine": "paddle", "precision": "int8"}, "'int8' is not one of engine 'paddle'"),
        ({"engine": "paddle", "precision": "int4_int8"}, "'int4_int8' is not one of engine 'pad"),
        ({"engine": "tensorrt"}, "engine must be one of"),
    ],
)
def test_bad_options(checkpoint: Path, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        generator(checkpoint, tmp_path, **options)
    assert "\n" not in str(raised.value)


def test_a_model_the_engine_cannot_run(tmp_path: Path) -> None:
    config = CodeGenConfig(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=8, n_inner=128
    )
    write_safetensors(tmp_path, spread_tensors(config), config)
    write_byte_tokenizer(tmp_path, range(256))
    with pytest.raises(ValueError, match=r"head_dim \(8\) .* use engine='paddle'"):
        generator(tmp_path, tmp_path)


def test_devices() -> None:
    assert find_device("cpu") is None
    assert find_device("auto") is None


def test_devices_of_a_build_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the CUDA provider wherever it is installed: the driver says whether there is a GPU."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    for gpus, expected in ((0, None), (1, 0), (2, 0)):
        monkeypatch.setattr(device, "cuda_devices", lambda gpus=gpus: gpus)
        assert find_device("auto") == expected
        assert find_device("cpu") is None
    assert find_device("gpu:1") == 1
    with pytest.raises(ValueError, match=r"^device: 'gpu:2' is no GPU here: .* shows 2; use 'cpu'"):
        find_device("gpu:2")


ON_GPU = ("fp32", "fp16", "int8_weight_only", "int4")
# What ONNX Runtime's CUDA provider (1.31.1) runs, by the types it is asked for here, without cuDNN.
CUDA_OPERATORS = {
    *("Add", "Cast", "Concat", "ConstantOfShape", "CumSum", "FastGelu", "Gather", "GatherElements"),
    *("GroupQueryAttention", "LayerNormalization", "LessOrEqual", "Log", "MatMul", "MatMulNBits"),
    *("Max", "Mul", "Reshape", "RotaryEmbedding", "Shape", "SkipLayerNormalization", "Softmax"),
    *("Split", "Sub", "TensorScatter", "TopK", "Transpose", "Unsqueeze", "Where"),
}


@pytest.mark.parametrize("precision", ON_GPU)
def test_graphs_for_a_gpu(precision: str, weights: FusedWeights, tmp_path: Path) -> None:
    """They compute the same, here on the CPU provider, from operators that CUDA has."""
    onnx_graph.save_graph(weights, tmp_path, precision, on_gpu=True)
    test_logits((precision, tmp_path), weights, cuda_graph=True)
    test_logits_of_every_token((precision, tmp_path), weights)
    model = onnx.load(str(tmp_path / onnx_files.GRAPH_FILE), load_external_data=False)
    operators = {node.op_type for node in model.graph.node}
    assert operators <= CUDA_OPERATORS
    # Its kernel there is for 16 bits; in 32, each buffer would go to the host and back.
    kinds = {one.type.tensor_type.elem_type for one in model.graph.input if "cache" in one.name}
    halves = kinds == {onnx.TensorProto.FLOAT16}
    assert halves is ("GroupQueryAttention" in operators) is (precision != "fp32")


def test_an_export_says_which_device_it_is_for(
    checkpoint: Path, home_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with generator(checkpoint, home_path, precision="int4") as model:
        for_cpu, text = model.folder, model.generate("x", max_length=4)
    seen: list[int | None] = []
    load = onnx_inference.load

    def on_the_cpu(folder: Path, config: CodeGenConfig, device_id: int | None, *rest: Any) -> Any:
        seen.append(device_id)
        return load(folder, config, None, *rest)

    monkeypatch.setattr(onnx_inference, "load", on_the_cpu)
    with monkeypatch.context() as with_gpu:
        with_gpu.setattr(
            onnx_inference, "find_device", lambda device: None if device == "cpu" else 0
        )
        with generator(checkpoint, home_path, precision="int4", device="gpu") as model:
            for_gpu = model.folder
        assert for_gpu != for_cpu
        assert seen == [0, 0]  # to check it, and to run it
        with CodeGenerator.from_export(for_gpu):
            assert seen.pop() == 0
        greedy = {"decode_strategy": "greedy_search", "truncation": None}
        with CodeGenerator.from_export(for_cpu, **greedy) as model:
            assert seen.pop() is None
            assert model.generate("x", max_length=4) == text
        with pytest.raises(store.ExportError, match="for device cpu, but this is gpu: export agai"):
            CodeGenerator.from_export(for_cpu, device="gpu")
    with pytest.raises(store.ExportError, match="for device gpu, but this is cpu: export again"):
        CodeGenerator.from_export(for_gpu)


def test_no_more_graphs_are_captured_than_a_session_may_keep(
    weights: FusedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids: list[str] = []
    options = cuda_graphs.run_options
    monkeypatch.setattr(
        cuda_graphs, "run_options", lambda graph_id: (ids.append(graph_id), options(graph_id))[1]
    )
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    onnx_graph.save_graph(weights, tmp_path, "fp32", on_gpu=True)
    runtime = OnnxRuntime(tmp_path, CONFIG, None, 1, cuda_graph=True)
    assert ids == [cuda_graphs.NO_CAPTURE]
    sequences = [tokens(n, 5) for n in range(3)]
    prefill(runtime, 0, sequences)
    ids.clear()
    for rows in (3, 2, 1, 3):
        new = tokens(rows, rows)
        sequences = [[*old, token] for old, token in zip(sequences, new, strict=False)] + (
            sequences[rows:]
        )
        assert_logits("fp32", weights, decode(runtime, new).logits(), sequences[:rows])
    assert ids == ["1", "2", cuda_graphs.NO_CAPTURE]
    runtime.close()


class Session:
    """As much of an inference session as tells which providers it runs on."""

    def __init__(self, *providers: str) -> None:
        self.get_providers = lambda: list(providers)


def test_a_gpu_that_cannot_be_used_is_said_so() -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    onnx_inference._check_provider(Session(cuda, cpu), 0)
    onnx_inference._check_provider(Session(cpu), None)
    with pytest.raises(RuntimeError, match=r"cannot use GPU 1: .*\[cuda\]'\); or use device='cpu'"):
        onnx_inference._check_provider(Session(cpu), 1)


def test_a_row_of_zeros_in_int8(tmp_path: Path) -> None:
    """Its scale is zero: the product must be zero too, not a division's NaN."""
    tensors = spread_tensors(CONFIG)
    for name in tensors:
        if ".ln_" in name:  # then every normed row is all zeros
            tensors[name] = np.zeros_like(tensors[name])
    write_safetensors(tmp_path, tensors, CONFIG)
    weights = FusedWeights(open_checkpoint(tmp_path), CONFIG)
    onnx_graph.save_graph(weights, tmp_path, "int8")
    runtime = OnnxRuntime(tmp_path, CONFIG, None, 1)
    sequences = [tokens(0, 3), tokens(1, 9)]
    output = prefill(runtime, 0, sequences)
    assert_logits("int8", weights, output.logits(), sequences)


def test_a_step_that_is_interrupted_has_changed_nothing(exported: tuple[str, Path]):
    _, folder = exported
    runtime = OnnxRuntime(folder, CONFIG, None, 1)
    try:
        text = tokens(3, PREFILL_CHUNK)
        expected = prefill(runtime, 0, [text])
        after = decode(runtime, [7])
        interrupted = False
        while not interrupted:
            runtime.cache.truncate(0, 0)
            timer = threading.Timer(0.0005, runtime.interrupt)  # within the step, or before it
            timer.start()
            try:
                runtime.forward(0, [text])
            except Interrupted:
                interrupted = True
                assert runtime.cache.length(0) == 0
            timer.join()
        runtime.interrupt()  # none runs: this is forgotten
        for step, wanted in (
            (prefill(runtime, 0, [text]), expected),
            (decode(runtime, [7]), after),
        ):
            np.testing.assert_array_equal(step.candidate_ids, wanted.candidate_ids)
            np.testing.assert_array_equal(step.candidates, wanted.candidates)
    finally:
        runtime.close()
