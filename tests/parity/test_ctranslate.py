"""CodeGen2's order of rows against CTranslate2's own conversion of the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from checkpoints import write_safetensors
from random_models import generator_of, open_model, spread_tensors
from test_transformers import assert_close, shape

from paddlenlp_codegen_task.runtime.base import prefill

# A benchmark's peer, with an environment of its own (`make benchmark`); its converter needs this.
ctranslate2 = pytest.importorskip("ctranslate2")
pytest.importorskip("transformers", minversion="4.56")

CONFIGS = {
    "codegen": shape(300, 160, 64, rotary_dim=32),
    "codegen2, head_dim 128": shape(
        300, 160, 128, n_head=8, rotary_dim=64, n_inner=512, qkv_groups=8
    ),
    "codegen2, head_dim 256": shape(
        300, 160, 256, n_head=8, rotary_dim=64, n_layer=1, n_inner=512, qkv_groups=8
    ),
    "gptj": shape(257, 160, 64, n_head=3, rotary_dim=32, qkv_groups=None),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_64_greedy_tokens(name: str, home_path: Path, tmp_path: Path):
    from ctranslate2.converters import TransformersConverter

    config = CONFIGS[name]
    tensors = spread_tensors(config)
    tensors["lm_head.bias"][config.eos_token_id] -= 20
    folder = write_byte_tokenizer(write_safetensors(tmp_path / "ours", tensors, config))
    TransformersConverter(str(folder)).convert(str(tmp_path / "theirs"), quantization="float32")
    theirs = ctranslate2.Generator(str(tmp_path / "theirs"), device="cpu", intra_threads=1)

    def their_logits(ids: list[int]) -> np.ndarray:
        return np.array(theirs.forward_batch([ids]))[0]

    with generator_of(open_model(folder, home_path, engine="onnxruntime")) as ours:
        prompt = "def hello_world(name):\n"
        ids = ours.tokenizer.encode(prompt)
        assert_close(prefill(ours._model.runtime, 0, [ids]).logits(), their_logits(ids)[-1:])
        [[completion]] = ours.generate(
            prompt, decode_strategy="greedy_search", max_length=64, repetition_penalty=1.0
        )
    tokens = list(completion.token_ids)
    # Each is the likeliest after those before it, so theirs by greedy search are the same.
    chosen = their_logits([*ids, *tokens[:-1]])[len(ids) - 1 :].argmax(axis=1)
    assert len(tokens) == 64
    assert len(set(tokens)) >= 10
    assert chosen.tolist() == tokens
