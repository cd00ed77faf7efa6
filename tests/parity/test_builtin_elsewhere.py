"""What the docs say of the built-in model in other libraries: who loads it, and after what."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
import torch
from paddlenlp import transformers as of_paddlenlp
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import CodeGenForCausalLM

from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights

CONVERTER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "paddlenlp_generate.py"
IDS = [[5, 70, 900, 4000, 8000, 17]]


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    """Of transformers, which loads the folder as it is."""
    model = CodeGenForCausalLM.from_pretrained(BUILTIN_FOLDER, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def copy_marked(folder: Path, mark: str) -> Path:
    """The built-in model as a file that says it is of another format."""
    shutil.copytree(BUILTIN_FOLDER, folder)
    save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": mark}
    )
    return folder


def test_paddlenlp_refuses_it_however_it_is_marked(tmp_path: Path):
    with safe_open(BUILTIN_FOLDER / "model.safetensors", "np") as file:
        assert file.metadata()["format"] == "pt"
    load = of_paddlenlp.CodeGenForCausalLM.from_pretrained
    with pytest.raises(OSError, match="does not contain the valid metadata"):
        load(str(BUILTIN_FOLDER))
    with pytest.raises(ValueError, match="Currently unsupport paddle weights file"):
        load(str(copy_marked(tmp_path / "pd", "pd")))


def test_transformers_refuses_what_paddlenlp_wants(tmp_path: Path):
    with pytest.raises(ValueError, match="Incompatible safetensors file"):
        CodeGenForCausalLM.from_pretrained(copy_marked(tmp_path / "np", "np"))


def test_converted_it_computes_the_same_in_paddlenlp_and_here(tmp_path: Path, logits: np.ndarray):
    folder = tmp_path / "converted"
    command = [sys.executable, CONVERTER, "prepare", BUILTIN_FOLDER, folder, "fp32"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    model = of_paddlenlp.CodeGenForCausalLM.from_pretrained(str(folder))
    model.eval()
    found = model(paddle.to_tensor(IDS))
    found = (found[0] if isinstance(found, tuple) else found).numpy()
    np.testing.assert_allclose(found, logits, atol=2e-4, rtol=0)

    config = CodeGenConfig.from_folder(folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["n_layer"] == 8
    ours = CodeGenConfig.from_folder(BUILTIN_FOLDER)
    with open_checkpoint(folder) as converted, open_checkpoint(BUILTIN_FOLDER) as built_in:
        left, right = FusedWeights(converted, config), FusedWeights(built_in, ours)
        for one, other in ((left.block(n), right.block(n)) for n in range(config.n_layer)):
            np.testing.assert_array_equal(one.w_in, other.w_in)
            np.testing.assert_array_equal(one.w_out, other.w_out)
