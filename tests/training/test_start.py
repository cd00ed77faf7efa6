"""Training goes on from a packaged model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model import CodeGen, Shape, from_hugging_face, to_hugging_face
from safetensors.torch import save_file
from train import packaged, rate_at

SHAPE = Shape(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=32)


def test_weights_and_what_is_behind_them_come_back(tmp_path: Path):
    state = CodeGen(SHAPE).state_dict()
    counts = {"step": "7", "tokens": "900", "elapsed": "12.5"}
    file = tmp_path / "model.safetensors"
    save_file(to_hugging_face(state, SHAPE), file, {"format": "pt", **counts})
    weights, behind = packaged(tmp_path, SHAPE)
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert behind == {"step": 7, "tokens": 900, "elapsed": 12.5}


def test_the_shipped_model_comes_back():
    from safetensors.torch import load_file

    folder = Path(__file__).resolve().parents[2] / "paddlenlp_codegen_task" / "builtin"
    tensors = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    again = to_hugging_face(from_hugging_face(tensors, Shape()), Shape())
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_the_rate_warms_up_stays_and_comes_down():
    def rate(share: float, warm: float = 1.0) -> float:
        return rate_at(share, warm, peak=1.0, decay=0.5)

    assert rate(0.2, warm=0.5) == pytest.approx(0.5)
    assert rate(0.3) == rate(0.5) == pytest.approx(1.0)
    assert rate(0.75) == pytest.approx(0.51)
    assert rate(1.0) == rate(1.2) == pytest.approx(0.02)
    assert rate(0.75, warm=0.5) == pytest.approx(0.255)  # started within the decay
