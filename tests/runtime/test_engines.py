"""Which engine "auto" means."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import metadata
from typing import Any

import pytest

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime import engines, paddle_inference

CONFIG = CodeGenConfig(
    vocab_size=300,
    n_positions=64,
    n_embd=64,
    n_layer=1,
    n_head=4,
    rotary_dim=16,
    n_inner=256,
    eos_token_id=256,
)
ODD = replace(CONFIG, rotary_dim=8)  # which GroupQueryAttention does not take


def chosen(precision: str = "auto", device: str = "auto", config: CodeGenConfig = CONFIG) -> str:
    return engines.choose("auto", precision, "auto", device, True, config)[0]


def test_on_a_cpu() -> None:
    assert chosen() == "onnxruntime"
    assert chosen("fp32", "cpu") == "onnxruntime"
    assert chosen("int4") == "onnxruntime"
    assert chosen(config=ODD) == "paddle"
    with pytest.raises(ValueError, match="rotary_dim \\(8\\) must be divisible by 16"):
        chosen("int8", config=ODD)
    assert engines.choose("auto", "auto", "auto", "auto", False, CONFIG)[0] == "paddle"  # eagerly


def test_keys_and_values_in_8_bits_choose_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_best", lambda *_: "paddle")
    for kv_precision, expected in (("int8", "onnxruntime"), ("auto", "paddle")):
        assert engines.choose("auto", "auto", kv_precision, "cpu", True, CONFIG)[0] == expected


def test_precisions_of_keys_and_values() -> None:
    def resolved(
        kv_precision: str, precision: str, device_id: int | None, engine: str = "onnxruntime"
    ) -> str:
        return engines.resolve_kv_precision(kv_precision, precision, device_id, engine)

    for precision in ("fp32", "int8", "int4"):
        assert resolved("int8", precision, None) == "int8"
        assert resolved("auto", precision, None) == "fp32"
    assert resolved("auto", "fp16", 0, "paddle") == resolved("auto", "int4", 0) == "fp16"
    assert resolved("auto", "fp32", 0) == "fp32"
    for device_id, engine in ((0, "onnxruntime"), (None, "paddle")):
        with pytest.raises(ValueError, match=r"^kv_precision 'int8' needs engine='onnxruntime' on"):
            resolved("int8", "fp32", device_id, engine)


def test_precisions_of_a_gpu() -> None:
    onnx = engines.load_engine("onnxruntime")

    def resolved(precision: str, device_id: int | None) -> str:
        return engines.resolve_precision(precision, device_id, "onnxruntime", onnx)

    assert (resolved("auto", None), resolved("auto", 0)) == ("fp32", "fp16")
    for precision in ("fp32", "fp16", "int8_weight_only", "int4"):
        assert resolved(precision, 0) == precision
    for precision in ("int8", "int4_int8"):
        assert resolved(precision, None) == precision
        message = f"^precision '{precision}' needs a CPU; on a GPU use 'int8_weight_only' or 'int4'"
        with pytest.raises(ValueError, match=message):
            resolved(precision, 0)


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    for missing in ("onnx", "onnxruntime"):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, gone=missing: name != gone and found(name)
        )
        assert chosen() == "paddle"


def test_on_a_gpu_that_paddle_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stub in the place of Paddle's GPU build: no GPU is needed."""
    distribution = metadata.distribution

    def with_gpu_build(name: str) -> Any:
        return distribution("paddlepaddle" if name == "paddlepaddle-gpu" else name)

    monkeypatch.setattr(metadata, "distribution", with_gpu_build)
    assert chosen() == "onnxruntime"  # the build is there, a GPU is not
    monkeypatch.setattr(paddle_inference, "find_device", lambda device: 0)
    assert chosen() == chosen("fp16") == chosen("fp32", "gpu:0") == "paddle"
    assert chosen(device="cpu") == chosen("int8") == "onnxruntime"
