"""Other layouts of CodeGen's weights, against transformers: CodeGen2's 8 groups, and GPT-J's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from checkpoints import regrouped, write_paddle, write_safetensors, write_torch
from random_models import generator_of, open_model, spread_tensors
from test_transformers import assert_close, check, shape, their_tokens
from transformers import CodeGenForCausalLM, GPTJForCausalLM

from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.base import decode, prefill

EOS = 256
CONFIGS = {
    "codegen2, head_dim 128": shape(
        300, 160, 128, n_head=8, rotary_dim=64, n_inner=512, qkv_groups=8, eos_token_id=2
    ),
    "codegen2, head_dim 256": shape(
        300, 160, 256, n_head=8, rotary_dim=64, n_layer=1, n_inner=512, qkv_groups=8, eos_token_id=2
    ),
    "gptj": shape(300, 160, 64, n_head=3, rotary_dim=32, qkv_groups=None),
    "gptj, one head": shape(272, 160, 256, n_head=1, rotary_dim=64, qkv_groups=None),
}
ENGINES = [("paddle", True), ("onnxruntime", True), ("paddle", False)]


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CodeGenConfig, Path, Any]:
    """A configuration, a folder, and transformers' model of the same weights."""
    config = CONFIGS[request.param]
    tensors = spread_tensors(config)
    tensors["lm_head.bias"][EOS] -= 20
    folder = write_safetensors(tmp_path_factory.mktemp("ours"), tensors, config)
    write_byte_tokenizer(folder)
    if config.qkv_groups is None:
        return config, folder, GPTJForCausalLM.from_pretrained(folder).eval()
    for name in tensors:
        if name.endswith("qkv_proj.weight"):
            tensors[name] = regrouped(tensors[name], config.qkv_groups, 4)
    theirs = write_safetensors(tmp_path_factory.mktemp("theirs"), tensors, config)
    return config, folder, CodeGenForCausalLM.from_pretrained(theirs).eval()


@pytest.fixture(scope="module", params=ENGINES, ids=["paddle", "onnxruntime", "eager"])
def generator(
    request: pytest.FixtureRequest, checkpoint: tuple[CodeGenConfig, Path, Any], home_path: Path
) -> Iterator[Any]:
    engine, static_mode = request.param
    config, folder, _ = checkpoint
    with generator_of(
        open_model(folder, home_path, engine=engine, static_mode=static_mode)
    ) as found:
        assert found.config == config
        yield found


def their_logits(theirs: Any, token_ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return theirs(torch.tensor([token_ids])).logits[0].numpy()


def test_logits(checkpoint: tuple[CodeGenConfig, Path, Any], generator: Any):
    config, _, theirs = checkpoint
    ids = np.random.default_rng(0).integers(config.vocab_size, size=90).tolist()
    expected, runtime = their_logits(theirs, ids), generator._model.runtime
    check(prefill(runtime, 0, [ids[:84]]), expected[83:84])
    for n in range(84, len(ids)):
        check(decode(runtime, [ids[n]]), expected[n : n + 1])


def test_greedy_tokens(checkpoint: tuple[CodeGenConfig, Path, Any], generator: Any):
    theirs, distinct = checkpoint[2], set()
    for prompt in ("x = ", "def hello_world(name):\n    '''你好'''\n"):
        [[completion]] = generator.generate(
            prompt, decode_strategy="greedy_search", max_length=64, repetition_penalty=1.0
        )
        expected = their_tokens(theirs, generator.tokenizer.encode(prompt), EOS)
        assert list(completion.token_ids) == expected
        assert len(expected) == 64
        distinct |= set(expected)
    assert len(distinct) >= 20


def test_reference_logits(checkpoint: tuple[CodeGenConfig, Path, Any]):
    config, folder, theirs = checkpoint
    ids = np.random.default_rng(1).integers(config.vocab_size, size=40).tolist()
    with open_checkpoint(folder) as weights:
        found = reference.forward(FusedWeights(weights, config), ids)
    assert_close(found, their_logits(theirs, ids))


def test_the_number_of_groups_decides(checkpoint: tuple[CodeGenConfig, Path, Any]):
    """Any wrong number is another model, of the same shapes."""
    from dataclasses import replace

    config, folder, _ = checkpoint
    if config.qkv_groups is None:
        pytest.skip("GPT-J's layout has no groups")
    found = {}
    for groups in (1, 2, 4, 8):
        with open_checkpoint(folder) as weights:
            fused = FusedWeights(weights, replace(config, qkv_groups=groups))
            found[groups] = reference.forward(fused, [1, 2, 3, 4, 5])[-1]
    for one in (1, 2, 4):
        assert np.abs(found[one] - found[8]).max() > 0.5 * found[8].std()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_safetensors, {"layout": "pt"}),
        (write_safetensors, {"layout": "pd", "shards": 3}),
        (write_torch, {"shards": 2}),
        (write_torch, {"legacy": True}),
        (write_paddle, {}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_gpt_j_in_every_format(write: Any, options: dict[str, Any], dtype: str, tmp_path: Path):
    """As it is published, in half precision; Paddle's [in, out] is found out by fc_in."""
    config = shape(96, 64, 16, n_head=2, rotary_dim=8, qkv_groups=None)
    tensors = spread_tensors(config)
    folder = write(tmp_path, tensors, config, dtype=dtype, **options)
    assert CodeGenConfig.from_folder(folder) == config
    with open_checkpoint(folder) as checkpoint:
        checkpoint.check(config)
        found = {name: checkpoint.read(name) for name in tensors}
    for name, values in tensors.items():
        expected = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
