"""LoRA adapters: merged as peft and PaddleNLP merge their own, or refused in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, config_json, random_tensors, transposed, write_safetensors

from paddlenlp_codegen_task.model.adapter import Merged, open_adapter
from paddlenlp_codegen_task.model.checkpoint import (
    CheckpointError,
    expected_shapes,
    open_checkpoint,
)
from paddlenlp_codegen_task.model.config import CodeGenConfig

TENSORS = random_tensors(TINY)
GPTJ = dataclasses.replace(TINY, qkv_groups=None)
QKV = "transformer.h.1.attn.qkv_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("checkpoint"), TENSORS, TINY)


@pytest.fixture(scope="module")
def gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("gptj"), random_tensors(GPTJ), GPTJ)


def merged(folder: Path, adapter: Path, config: CodeGenConfig = TINY) -> dict[str, np.ndarray]:
    """Every weight of a model with an adapter."""
    with open_checkpoint(folder) as base, open_adapter(adapter) as lora:
        both = Merged(base, lora)
        both.check(config)
        assert both.identity() == base.identity()
        return {name: both.read(name) for name in expected_shapes(config)}


def failure(folder: Path, adapter: Path) -> str:
    with pytest.raises((ValueError, OSError)) as raised:
        merged(folder, adapter)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    return str(raised.value)


# peft


def trained(folder: Path, save: Path, safe: bool = True, **options: Any) -> dict[str, np.ndarray]:
    """Save a random adapter by peft; return what peft itself merges it to, read back.

    (Biases of "lora_only" it does not save.)
    """
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    model.save_pretrained(save, safe_serialization=safe)
    base = AutoModelForCausalLM.from_pretrained(folder)
    state = PeftModel.from_pretrained(base, save).merge_and_unload().state_dict()
    return {name: values.numpy() for name, values in state.items()}


PEFT: dict[str, dict[str, Any]] = {
    "qkv_proj": {"target_modules": ["qkv_proj"]},
    "all linear": {"target_modules": ["qkv_proj", "out_proj", "fc_in", "fc_out"], "r": 3},
    "alpha": {"target_modules": ["qkv_proj"], "r": 4, "lora_alpha": 11},
    "rank-stabilized": {"target_modules": ["fc_in"], "r": 4, "use_rslora": True},
    "one layer": {"target_modules": ["out_proj"], "layers_to_transform": [1]},
    "patterns": {
        "target_modules": ["qkv_proj", "fc_in", "fc_out"],
        "rank_pattern": {"fc_in": 2, "h.1.mlp.fc_out": 5},
        "alpha_pattern": {"h.0.attn.qkv_proj": 3, "fc_out": 32},
    },
    "biases": {"target_modules": ["fc_in"], "bias": "all"},
    "biases of LoRA only": {"target_modules": ["fc_in"], "bias": "lora_only"},
    "embedding": {"target_modules": ["wte", "qkv_proj"], "r": 2},
    "head in full": {"target_modules": ["qkv_proj"], "modules_to_save": ["lm_head", "ln_f"]},
    "head and embedding": {"target_modules": ["lm_head", "wte"]},
}


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("name", PEFT)
def test_merged_as_peft_does(name: str, safe: bool, checkpoint: Path, tmp_path: Path):
    expected = trained(checkpoint, tmp_path, safe, **PEFT[name])
    found = merged(checkpoint, tmp_path)
    changed = 0
    for weight, values in found.items():
        np.testing.assert_allclose(values, expected[weight], rtol=0, atol=1e-5, err_msg=weight)
        changed += not np.array_equal(values, TENSORS[weight])
    assert changed == sum(not np.array_equal(expected[one], TENSORS[one]) for one in found) > 0


def test_gpt_j_s_projections(gptj: Path, tmp_path: Path):
    options = {"target_modules": ["q_proj", "v_proj"], "r": 2}
    expected = trained(gptj, tmp_path, **options)
    found = merged(gptj, tmp_path, GPTJ)
    for weight, values in found.items():
        np.testing.assert_allclose(values, expected[weight], rtol=0, atol=1e-5, err_msg=weight)


def test_an_adapter_of_a_bare_model(checkpoint: Path, tmp_path: Path):
    from safetensors.numpy import load_file, save_file

    expected = trained(checkpoint, tmp_path, target_modules=["qkv_proj"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("transformer.", ""): one for name, one in tensors.items()}, file)
    for weight, values in merged(checkpoint, tmp_path).items():
        np.testing.assert_allclose(values, expected[weight], rtol=0, atol=1e-5, err_msg=weight)


# PaddleNLP


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": [".*qkv_proj"]},
        {"target_modules": [".*qkv_proj", ".*fc_in", ".*fc_out", ".*out_proj"], "r": 3},
        {"target_modules": [".*out_proj"], "lora_alpha": 5, "rslora": True},
        {"target_modules": [".*qkv_proj"], "trainable_modules": [".*lm_head.*", ".*ln_f.*"]},
        {"target_modules": [".*fc_in"], "trainable_bias": "all"},
    ],
    ids=str,
)
def test_merged_as_paddlenlp_does(options: dict[str, Any], checkpoint: Path, tmp_path: Path):
    import paddle
    from paddlenlp.peft import LoRAConfig, LoRAModel
    from paddlenlp.transformers import CodeGenConfig as PaddleConfig
    from paddlenlp.transformers import CodeGenForCausalLM

    paddle.seed(0)
    base = CodeGenForCausalLM(PaddleConfig(**config_json(TINY)))
    base.set_state_dict(
        {name: paddle.to_tensor(transposed(name, one)) for name, one in TENSORS.items()}
    )
    model = LoRAModel(base, LoRAConfig(**{"r": 4, **options}))
    model.mark_only_lora_as_trainable()
    for parameter in model.parameters():
        if not parameter.stop_gradient:
            parameter.set_value(0.3 * paddle.randn(parameter.shape))
    model.save_pretrained(str(tmp_path))
    assert (tmp_path / "lora_model_state.pdparams").is_file()
    model.eval()
    model.merge()
    state = {name: values.numpy() for name, values in model.model.state_dict().items()}
    changed = 0
    for weight, values in merged(checkpoint, tmp_path).items():
        expected = transposed(weight, state[weight])
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5, err_msg=weight)
        changed += not np.array_equal(values, TENSORS[weight])
    assert changed >= 2


# By hand: what no library writes any more, or never should


def write(folder: Path, tensors: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    """An adapter of one module, in peft's files."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    if tensors is None:
        rng = np.random.default_rng(1)
        shapes = {"A": (2, TINY.n_embd), "B": (3 * TINY.n_embd, 2)}
        tensors = {
            f"base_model.model.{QKV}.lora_{one}.weight": rng.standard_normal(shape, np.float32)
            for one, shape in shapes.items()
        }
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def factors(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{QKV}.lora_{one}.weight"] for one in "AB")
    return a, b


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_by_the_formula(dtype: str, checkpoint: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file, save_file

    file = write(tmp_path) / "adapter_model.safetensors"
    stored = {name: one.to(getattr(torch, dtype)) for name, one in load_file(file).items()}
    save_file(stored, file)
    a, b = (stored[f"base_model.model.{QKV}.lora_{one}.weight"].float().numpy() for one in "AB")
    found = merged(checkpoint, tmp_path)[QKV + ".weight"]
    np.testing.assert_allclose(found, TENSORS[QKV + ".weight"] + 3 * b @ a, rtol=0, atol=1e-5)


def test_lora_ga_keeps_what_it_began_with(checkpoint: Path, tmp_path: Path):
    """PaddleNLP saves twice the columns: what was trained, and less what it began with."""
    import paddle

    rng = np.random.default_rng(0)
    a, a0 = rng.standard_normal((2, TINY.n_embd, 3), np.float32)
    b, b0 = rng.standard_normal((2, 3, 3 * TINY.n_embd), np.float32)
    state = {
        f"{QKV}.lora_A": paddle.to_tensor(np.concatenate([a, a0], axis=1)),
        f"{QKV}.lora_B": paddle.to_tensor(np.concatenate([b, -b0], axis=0)),
    }
    paddle.save(state, str(tmp_path / "lora_model_state.pdparams"))
    values = {"r": 3, "lora_alpha": 6, "loraga": True}
    (tmp_path / "lora_config.json").write_text(json.dumps(values), encoding="utf-8")
    expected = TENSORS[QKV + ".weight"] + 2 * (a @ b - a0 @ b0).T
    found = merged(checkpoint, tmp_path)[QKV + ".weight"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "must have peft_type 'LORA', got 'IA3'"),
        ({"use_dora": True}, "has use_dora, which is not supported"),
        ({"lora_bias": True}, "has lora_bias, which is not supported"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "has layer_replication, which is not"),
        ({"alora_invocation_tokens": [1]}, "has alora_invocation_tokens, which is not"),
        ({"trainable_token_indices": [1]}, "has trainable_token_indices, which is not"),
        *(({"init_lora_weights": one}, "which changes the model's own weights")
          for one in ("pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga")),
        *(({"r": one}, "must have an integer above 0 as r") for one in (0, -1, 2.0, "2", True, [])),
        *(({"lora_alpha": one}, "must have a number other than 0 as lora_alpha")
          for one in (0, "3", True, None, 10**400)),
        ({"r": 3}, "is of rank 2, but adapter_config.json says 3"),
        ({"rank_pattern": {"qkv_proj": 4}}, "is of rank 2, but adapter_config.json says 4"),
        ({"rank_pattern": [1]}, "must have a JSON object as rank_pattern"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "write out the names of modules"),
        ({"alpha_pattern": {"qkv_proj": "x"}}, "must have a number other than 0 as alpha_pattern"),
        ({"lora_alpha": 9e8, "r": 2}, ""),
    ],
    ids=str,
)  # fmt: skip
def test_configurations(config: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path):
    write(tmp_path, **config)
    if not message:
        assert np.isfinite(merged(checkpoint, tmp_path)[QKV + ".weight"]).all()
        return
    line = failure(checkpoint, tmp_path)
    assert message in line
    assert "adapter" in line


def test_options_that_change_nothing(checkpoint: Path, tmp_path: Path):
    neutral = {
        "use_dora": False,
        "init_lora_weights": "gaussian",
        "megatron_core": "megatron.core",
        "layer_replication": None,
        "runtime_config": {"ephemeral_gpu_offload": False},
        "lora_dropout": 0.1,
        "anything": [1, 2],
    }
    plain = merged(checkpoint, write(tmp_path / "a"))
    found = merged(checkpoint, write(tmp_path / "b", **neutral))
    assert all(np.array_equal(plain[name], found[name]) for name in plain)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pissa": True}, "has pissa, which is not supported"),
        ({"use_mora": True}, "has use_mora, which is not supported"),
        ({"enable_lora_list": [None, [True, False]]}, "has enable_lora_list, which is not"),
        ({"tensor_parallel_degree": 2}, "has tensor_parallel_degree 2: merge its parts first"),
        ({"r": 0}, "must have an integer above 0 as r"),
        ({"enable_lora_list": [None], "tensor_parallel_degree": -1}, "has no weights: looked for"),
    ],
    ids=str,
)
def test_configurations_of_paddlenlp(
    values: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
):
    (tmp_path / "lora_config.json").write_text(json.dumps(values), encoding="utf-8")
    assert message in failure(checkpoint, tmp_path)


A = f"base_model.model.{QKV}.lora_A.weight"
B = f"base_model.model.{QKV}.lora_B.weight"
ONES = np.ones((2, 32), np.float32)
GOOD = {A: ONES, B: np.ones((96, 2), np.float32)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({A: ONES}, "has no lora_B beside it"),
        ({B: GOOD[B]}, "has no lora_A beside it"),
        (GOOD | {A: np.ones((2, 31), np.float32)}, "are no factors of a weight of shape (96, 32)"),
        (GOOD | {B: np.ones((95, 2), np.float32)}, "are no factors of a weight of shape (96, 32)"),
        (GOOD | {B: np.ones((96, 3), np.float32)}, "are no factors of a weight of shape (96, 32)"),
        (GOOD | {A: np.ones((2, 4, 8), np.float32)}, "are no factors of a weight"),
        (GOOD | {A: np.ones((2, 32), np.int32)}, "stored as I32, weights must be floating point"),
        (GOOD | {A: np.full((2, 32), np.nan, np.float32)}, "holds NaN or infinity"),
        (GOOD | {A: 1e38 * ONES, B: 1e38 * GOOD[B]}, "is then infinite"),
        (
            {one.replace("h.1.", "h.2."): values for one, values in GOOD.items()},
            "is not of a weight of this model",
        ),
        (
            {one.replace("qkv_proj", "q_proj"): values for one, values in GOOD.items()},
            "is not of a weight of this model",
        ),
        (GOOD | {A.replace("lora_A.weight", "lora_magnitude_vector"): ONES}, "is not of a weight"),
        (GOOD | {B.replace(".weight", ".bias"): ONES[0]}, "is not of a weight of this model"),
        (GOOD | {A.replace("lora_A", "lora_A.default"): ONES}, "is not of a weight of this model"),
        (GOOD | {A.removeprefix("base_model.model."): ONES}, "are the same tensor"),
        (
            GOOD | {"base_model.model.lm_head.weight": ONES},
            "expected shape (96, 32), found (2, 32)",
        ),
        (GOOD | {"x" * 1000: ONES}, "a tensor's name has 1,000 characters"),
    ],
    ids=range(17),
)
def test_tensors_that_do_not_belong(
    tensors: dict[str, np.ndarray], message: str, checkpoint: Path, tmp_path: Path
):
    line = failure(checkpoint, write(tmp_path, tensors))
    assert message in line
    assert line.startswith("adapter_model.safetensors: ")


def test_damaged_files(checkpoint: Path, tmp_path: Path):
    file = write(tmp_path) / "adapter_model.safetensors"
    content = file.read_bytes()
    for size in (0, 7, 100, len(content) - 1):
        file.write_bytes(content[:size])
        assert failure(checkpoint, tmp_path).startswith("adapter_model.safetensors: ")
    file.unlink()
    assert "has no weights: looked for adapter_model.safetensors" in failure(checkpoint, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    assert "adapter_config.json is not valid JSON" in failure(checkpoint, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    assert "has no adapter_config.json, as peft writes it" in failure(checkpoint, tmp_path)


def test_a_pickle_of_an_adapter_runs_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import os

    import torch

    class Call:
        def __reduce__(self) -> Any:
            return os.system, ("touch sentinel",)

    monkeypatch.chdir(tmp_path)
    (write(tmp_path) / "adapter_model.safetensors").unlink()
    torch.save({"a": Call()}, tmp_path / "adapter_model.bin")
    assert "refused to load posix.system" in failure(checkpoint, tmp_path)
    assert not (tmp_path / "sentinel").exists()


def test_identity_is_of_the_content(tmp_path: Path):
    def identity(folder: Path) -> str:
        with open_adapter(folder) as adapter:
            return adapter.identity

    first = identity(write(tmp_path / "a"))
    assert identity(shutil.copytree(tmp_path / "a", tmp_path / "b")) == first
    assert identity(write(tmp_path / "c", lora_alpha=7)) != first
    other = GOOD | {A: 2 * ONES}
    assert identity(write(tmp_path / "d", other)) != identity(write(tmp_path / "e", GOOD)) != first


def test_closed_files_are_not_read(checkpoint: Path, tmp_path: Path):
    with open_adapter(write(tmp_path)) as adapter:
        pass
    with pytest.raises(ValueError, match="closed file"):
        adapter.apply(QKV + ".weight", TENSORS[QKV + ".weight"])
    assert issubclass(CheckpointError, ValueError)
