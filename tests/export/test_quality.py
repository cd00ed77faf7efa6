"""What rounding to 8 bits costs, without outliers in the activations and with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import random_tensors, write_safetensors

from paddlenlp_codegen_task.export import onnx_graph
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.base import prefill
from paddlenlp_codegen_task.runtime.onnx_inference import OnnxRuntime

# Wide enough for several blocks of 128 inputs: an outlier spoils one of them, and a whole row.
CONFIG = CodeGenConfig(
    vocab_size=96, n_positions=64, n_embd=1024, n_layer=1, n_head=16, rotary_dim=32, n_inner=256
)
OUTLIER, FACTOR = 300, 100
PROMPTS = [[(i * 31 + start) % 96 for i in range(4)] for start in range(16)]


def outlying(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same function; one dimension of each LayerNorm's output is FACTOR times as large."""
    changed = {name: values.copy() for name, values in tensors.items()}
    for name, values in changed.items():
        if ".ln_" in name:
            values[OUTLIER] *= FACTOR
        elif name.endswith(("qkv_proj.weight", "fc_in.weight", "lm_head.weight")):
            values[:, OUTLIER] /= FACTOR
    return changed


def errors(tensors: dict[str, np.ndarray], folder: Path) -> dict[str, float]:
    """Error of the logits in each precision, over their standard deviation."""
    write_safetensors(folder, tensors, CONFIG)
    found = {}
    with open_checkpoint(folder) as checkpoint:
        weights = FusedWeights(checkpoint, CONFIG)
        expected = np.stack([reference.forward(weights, prompt)[-1] for prompt in PROMPTS])
        for precision in ("fp32", "int8", "int8_weight_only"):
            onnx_graph.save_graph(weights, folder, precision)
            runtime = OnnxRuntime(folder, CONFIG, None, 1)
            logits = prefill(runtime, 0, PROMPTS).logits()
            found[precision] = float((logits - expected).std() / expected.std())
            runtime.close()
    return found


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return random_tensors(CONFIG)


def test_without_outliers(tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = errors(tensors, tmp_path)
    assert found["fp32"] < 1e-4
    assert 1e-3 < found["int8"] < 0.03
    assert 1e-3 < found["int8_weight_only"] < 0.03


def test_blocks_keep_an_outlier_to_themselves(
    tensors: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = errors(outlying(tensors), tmp_path)
    assert found["fp32"] < 1e-4
    assert found["int8"] > 0.1
    assert found["int8_weight_only"] < found["int8"] / 2.2
