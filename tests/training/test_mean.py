"""The mean of a packaged model's weights and those of training that went on from it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from mean import mean
from model import CodeGen, Shape, to_hugging_face
from safetensors.torch import save_file

TRAINING = Path(__file__).resolve().parents[2] / "training"
SHAPE = Shape(vocab_size=64, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=32)


def test_rows_of_new_tokens_are_the_trained_ones():
    torch.manual_seed(0)
    before, after = (CodeGen(SHAPE).state_dict() for _ in range(2))
    after["lm_head.bias"] = torch.rand(64)
    found = mean(before, after, 0.25, [60, 62])
    assert found.keys() == after.keys()
    for name in ("wte.weight", "lm_head.weight", "lm_head.bias"):
        assert torch.equal(found[name][[60, 62]], after[name][[60, 62]])
        expected = 0.75 * before[name][:60] + 0.25 * after[name][:60]
        assert torch.allclose(found[name][:60], expected, atol=1e-6)
    inner = next(name for name in after if name.startswith("blocks") and after[name].dim() == 2)
    assert torch.allclose(found[inner], 0.75 * before[inner] + 0.25 * after[inner], atol=1e-6)


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(1)
    before, after = (CodeGen(SHAPE).state_dict() for _ in range(2))
    counts = {"step": "1", "tokens": "2", "elapsed": "3"}
    save_file(
        to_hugging_face(before, SHAPE), tmp_path / "model.safetensors", {"format": "pt", **counts}
    )
    checkpoint, out = tmp_path / "checkpoint.pt", tmp_path / "mean.pt"
    torch.save({"shape": vars(SHAPE), "weights": after, "step": 5}, checkpoint)
    script = str(TRAINING / "mean.py")
    write_byte_tokenizer(tmp_path, b"abc")
    arguments = [checkpoint, tmp_path, tmp_path, out, "--share", "0.5"]
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    runpy.run_path(script, run_name="__main__")
    state = torch.load(out, weights_only=True)
    assert state["step"] == 5
    for name, tensor in state["weights"].items():
        assert torch.allclose(tensor, (before[name] + after[name]) / 2, atol=1e-6)
