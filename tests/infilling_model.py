"""A tiny CodeGen2 with random weights, which infills with what comes; and one that does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from checkpoints import random_tensors, write_safetensors
from codegen_tokenizer import write_codegen_tokenizer
from random_models import spread_tensors, write_model

from paddlenlp_codegen_task.model.config import CodeGenConfig

CONFIG = CodeGenConfig(
    vocab_size=51200, n_positions=128, n_embd=128, n_layer=1, n_head=8, rotary_dim=16, n_inner=64,
    qkv_groups=8, eos_token_id=50256,
)  # fmt: skip
PLAIN = CodeGenConfig(
    vocab_size=257, n_positions=256, n_embd=64, n_layer=1, n_head=4, rotary_dim=16, n_inner=64,
    eos_token_id=256,
)  # fmt: skip


def tensors() -> dict[str, np.ndarray]:
    """Weights that seldom lead to special tokens."""
    found = random_tensors(CONFIG)
    found["lm_head.bias"][50295:] -= 10
    return found


def write_infilling_model(folder: Path, *, suffix_first: bool = False) -> Path:
    """Write the checkpoint, and return its folder; one that wants the suffix first, if asked."""
    write_safetensors(folder, tensors(), CONFIG)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values.pop("head_dim", None)
    values["qkv_groups"] = 8  # which a model of these sizes has to say
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return write_codegen_tokenizer(folder, codegen2=True, suffix_first=suffix_first)


def write_plain_model(folder: Path) -> Path:
    """Write a checkpoint whose tokenizer has no tokens for infilling, and return its folder."""
    return write_model(folder, PLAIN, spread_tensors(PLAIN))
