"""Keys and values in 8 bits: a quarter of the memory, close to floats, and else as with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from checkpoints import write_safetensors
from random_models import spread_tensors, weights_of

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import calibration, kv_scales, onnx_files, onnx_graph, store
from paddlenlp_codegen_task.export.kv_scales import KVScales
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.model.weights import rotary_tables
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, decode, prefill
from paddlenlp_codegen_task.runtime.onnx_inference import OnnxRuntime

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
# Largest difference of logits from those of a float cache, over their standard deviation.
TOLERANCE = 0.2
PROMPTS = ["def f(x):\n    return", "x", "import os\nimport sys\n" * 3, "class A:", "#", "y = 1\n"]


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


TEXTS = [tokens(100 + n, 60) for n in range(4)]


def runtime_of(folder: Path, precision: str = "fp32", texts: Any = None) -> OnnxRuntime:
    weights = weights_of(CONFIG, spread_tensors(CONFIG))
    onnx_graph.save_graph(weights, folder, precision, calibration=texts)
    return OnnxRuntime(folder, CONFIG, None, 1)


def played(runtime: OnnxRuntime) -> np.ndarray:
    """Logits of several rows, of a newcomer in chunks, and of all of them together."""
    found = [prefill(runtime, 0, [tokens(0, 5), tokens(1, 40)]).logits()]
    found += [decode(runtime, tokens(step, 2)).logits() for step in range(100)]
    found.append(prefill(runtime, 2, [tokens(9, 2 * PREFILL_CHUNK + 44)]).logits())
    runtime.cache.copy(2, 0)  # the first has left
    found += [decode(runtime, tokens(step, 2)).logits() for step in range(3)]
    runtime.cache.truncate(1, 50)
    found.append(runtime.forward(1, [tokens(3, 7)], every=True).logits())
    return np.concatenate([one.copy() for one in found])


@pytest.fixture(scope="module")
def float_logits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("float")
    return {one: played(runtime_of(folder, one)) for one in ("fp32", "int8", "int4")}


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_logits_are_those_of_a_float_cache(
    float_logits: dict[str, np.ndarray], tmp_path: Path, precision: str
) -> None:
    runtime = runtime_of(tmp_path, precision, TEXTS)
    assert {buffer.dtype for buffer in runtime.cache.buffers} <= {np.dtype(np.int8)}
    expected = float_logits[precision]
    errors = np.abs(played(runtime) - expected).max(axis=1) / expected.std()
    assert errors.max() < TOLERANCE
    assert errors.max() > 1e-3  # it was rounded
    runtime.close()


@pytest.mark.parametrize("room", [0.3, 60])  # much is cut off; much is reached for in vain
def test_a_wrong_scale_shows(
    float_logits: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: float,
) -> None:
    monkeypatch.setattr(kv_scales, "ROOM", room)
    runtime = runtime_of(tmp_path, texts=TEXTS)
    expected = float_logits["fp32"]
    assert np.abs(played(runtime) - expected).max() / expected.std() > 2 * TOLERANCE
    runtime.close()


def test_the_cache_takes_a_quarter(tmp_path: Path) -> None:
    sizes, budgets = [], []
    for texts in (None, TEXTS):
        runtime = runtime_of(tmp_path, texts=texts)
        prefill(runtime, 0, [tokens(0, 5), tokens(1, 200)])
        sizes.append(sum(buffer.nbytes for buffer in runtime.cache.buffers))
        budgets.append(runtime.cache.bytes(3, 128))
        [one, *_] = runtime.cache.read(1, 0, 32)
        assert one.nbytes == CONFIG.n_embd * 32 * (4 if texts is None else 1)
        runtime.close()
    assert sizes[0] == 4 * sizes[1] > 0
    assert budgets[0] == 4 * budgets[1] > 0


def test_scales_hold_the_texts_at_any_position() -> None:
    weights = weights_of(CONFIG, spread_tensors(CONFIG))
    scales = KVScales(CONFIG, weights.wte(), TEXTS)
    tables = rotary_tables(CONFIG)
    hidden = {start: weights.wte()[TEXTS[0]] for start in (0, 311, 580)}
    for layer in range(CONFIG.n_layer):
        block = weights.block(layer)
        key_scale, value_scale = scales.of(block)
        assert key_scale.shape == value_scale.shape == (CONFIG.n_head, 1, CONFIG.head_dim)
        assert key_scale.dtype == value_scale.dtype == np.float32
        for start, before in hidden.items():
            cos, sin = (table[start : start + len(before)] for table in tables)
            hidden[start], key, value = reference.run_layer(CONFIG, block, before, cos, sin)
            assert np.abs(key / key_scale).max() <= 127
            assert np.abs(value / value_scale).max() <= 127
        assert np.abs(value / value_scale).max() > 127 / kv_scales.ROOM / 2


def test_what_is_always_zero_has_a_scale() -> None:
    tensors = spread_tensors(CONFIG)
    tensors["transformer.h.0.attn.qkv_proj.weight"][:] = 0
    weights = weights_of(CONFIG, tensors)
    for one in KVScales(CONFIG, weights.wte(), TEXTS).of(weights.block(0)):
        np.testing.assert_array_equal(one, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_safetensors(folder, spread_tensors(CONFIG), CONFIG)
    return write_byte_tokenizer(folder, range(256))


def generator(checkpoint: Path, home_path: Path, **options: Any) -> CodeGenerator:
    options = {"kv_precision": "int8", "engine": "onnxruntime", "num_threads": 1, **options}
    return CodeGenerator.from_pretrained(
        checkpoint, home_path=home_path, device="cpu", max_length=24, truncation=None, **options
    )


GREEDY: Any = {"decode_strategy": "greedy_search"}
BEAMS: Any = {"decode_strategy": "beam_search", "num_beams": 3, "max_length": 8}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_batch_completes_as_each_alone(checkpoint: Path, home_path: Path, precision: str) -> None:
    with generator(checkpoint, home_path, precision=precision) as model:
        for options in (GREEDY, {"seed": 3}, BEAMS):
            alone = [model.generate(prompt, **options)[0] for prompt in PROMPTS]
            assert len({one[0].token_ids for one in alone}) == len(PROMPTS)
            assert model.generate(PROMPTS, batch_size=4, **options) == alone


def test_what_is_guessed_ahead_or_kept_changes_no_text(checkpoint: Path, home_path: Path) -> None:
    prompt = "for x in range(3):\n    print(x)\n" * 5
    with generator(checkpoint, home_path) as model:
        expected = model.generate([prompt, prompt + "x"], **GREEDY)
        drafted = [
            model.generate(prompt + end, prompt_lookup=True, **GREEDY)[0] for end in ("", "x")
        ]
        assert drafted == expected
    with generator(checkpoint, home_path, prefix_cache_bytes=1 << 20) as model:
        for _ in range(2):  # the second time from what was kept
            assert [model.generate(prompt + end, **GREEDY)[0] for end in ("", "x")] == expected
        cache = model.engine._loop.scheduler.slots.prefix_cache
        assert cache.found > 0
        [block, *_] = cache._blocks.values()
        assert {part.dtype for part in block} == {np.dtype(np.int8)}


def test_a_budget_holds_four_times_as_much(checkpoint: Path, home_path: Path) -> None:
    with generator(checkpoint, home_path, kv_precision="auto") as model:
        budget = model._model.runtime.cache.bytes(1, 32)
    options: Any = {"kv_cache_bytes": budget, "batch_size": 64}
    with pytest.raises(ValueError, match=r"^batch_size \(64\): the keys and values of so many"):
        generator(checkpoint, home_path, kv_precision="auto", **options)
    with generator(checkpoint, home_path, **options) as model:
        assert len(model.generate(PROMPTS, **{**GREEDY, "max_length": 4})) == len(PROMPTS)


def test_an_export_says_what_it_keeps(checkpoint: Path, home_path: Path) -> None:
    folders = set()
    for kv_precision, kept in (("auto", "fp32"), ("int8", "int8")):
        with generator(checkpoint, home_path, kv_precision=kv_precision) as model:
            assert (model.precision, model.kv_precision) == ("fp32", kept)
            folders.add(model.folder)
            made_from = store.read_manifest(model.folder)["made_from"]
            assert made_from["kv_precision"] == kept
            expected = model.generate("x", **GREEDY)
        for option in ("auto", "int8"):
            if option == "int8" and kept == "fp32":
                with pytest.raises(ValueError, match=r"^kv_precision: .* for 'fp32', not 'int8'$"):
                    CodeGenerator.from_export(model.folder, kv_precision=option)
                continue
            options: Any = {"kv_precision": option, "max_length": 24, "truncation": None}
            with CodeGenerator.from_export(model.folder, device="cpu", **options) as deployed:
                assert deployed.kv_precision == kept
                assert deployed.generate("x", **GREEDY) == expected
    assert len(folders) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "paddle"}, ValueError, "^kv_precision 'int8' needs engine='onnxruntime' on a"),
        (
            {"engine": "auto", "static_mode": False},
            ValueError,
            "^kv_precision 'int8' needs engine='onnxruntime' on a CPU$",
        ),
        ({"kv_precision": "fp8"}, ValueError, "^kv_precision must be one of 'auto', 'int8', got"),
        ({"kv_precision": 8}, ValueError, "^kv_precision must be one of 'auto', 'int8', got 8$"),
        ({"kv_cache_dtype": "int8"}, TypeError, "use kv_precision$"),
    ],
)
def test_where_it_is_refused(
    checkpoint: Path, tmp_path: Path, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        generator(checkpoint, tmp_path, **options)
    assert not list(tmp_path.rglob(onnx_files.GRAPH_FILE))


def test_it_chooses_the_engine(checkpoint: Path, home_path: Path) -> None:
    with generator(checkpoint, home_path, engine="auto") as model:
        assert (model.folder / onnx_files.GRAPH_FILE).is_file()


def test_calibration_fits_any_model(builtin: CodeGenerator) -> None:
    texts = [builtin.tokenizer.encode(text) for text in calibration.TEXTS]
    *starts, together = calibration.token_ids(builtin.tokenizer, builtin.config)
    assert starts == [ids[:32] for ids in texts]
    assert together[: len(texts[0])] == texts[0]
    assert together[len(texts[0])] == builtin.tokenizer.eos_token_id
    assert len(together) == 512
    short = replace(builtin.config, n_positions=20)
    for ids in calibration.token_ids(builtin.tokenizer, short):
        assert len(ids) == 20


def test_calibration_of_a_tokenizer_that_has_nothing_of_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_byte_tokenizer(tmp_path, [0]))
    assert calibration.token_ids(tokenizer, CONFIG) == [[tokenizer.eos_token_id] * 8]
