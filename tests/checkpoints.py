"""Tiny CodeGen checkpoint folders in every format the package reads."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from paddlenlp_codegen_task.model.config import CodeGenConfig

TINY = CodeGenConfig(
    vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_inner=128
)


def tensor_shapes(config: CodeGenConfig) -> dict[str, tuple[int, ...]]:
    """Every weight's shape, spelled out here so that tests do not lean on the code they test."""
    h, inner, vocab = config.n_embd, config.n_inner, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, h)}
    for layer in range(config.n_layer):
        prefix = f"transformer.h.{layer}."
        shapes[prefix + "ln_1.weight"] = (h,)
        shapes[prefix + "ln_1.bias"] = (h,)
        if config.qkv_groups is None:  # GPT-J's layout
            for one in "qkv":
                shapes[f"{prefix}attn.{one}_proj.weight"] = (h, h)
        else:
            shapes[prefix + "attn.qkv_proj.weight"] = (3 * h, h)
        shapes[prefix + "attn.out_proj.weight"] = (h, h)
        shapes[prefix + "mlp.fc_in.weight"] = (inner, h)
        shapes[prefix + "mlp.fc_in.bias"] = (inner,)
        shapes[prefix + "mlp.fc_out.weight"] = (h, inner)
        shapes[prefix + "mlp.fc_out.bias"] = (h,)
    shapes["transformer.ln_f.weight"] = (h,)
    shapes["transformer.ln_f.bias"] = (h,)
    shapes["lm_head.weight"] = (vocab, h)
    shapes["lm_head.bias"] = (vocab,)
    return shapes


def random_tensors(config: CodeGenConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights under Hugging Face names, linear weights as [out, in].

    Wider than a fresh model's, so that logits differ clearly and no bias or LayerNorm is neutral.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape)
        if ".ln_" in name:
            values = 0.1 * values + name.endswith("weight")
        elif len(shape) == 1:
            values = 0.1 * values
        elif name != "transformer.wte.weight":
            values = values / np.sqrt(shape[1])
        tensors[name] = values.astype(np.float32)
    return tensors


def config_json(config: CodeGenConfig) -> dict[str, object]:
    """The config.json both transformers and PaddleNLP read; CodeGen2's where it has 8 groups."""
    values = dataclasses.asdict(config)
    groups = values.pop("qkv_groups")
    if groups == 8:
        values["head_dim"] = config.head_dim
    elif groups not in (4, None):
        values["qkv_groups"] = groups
    return {
        "model_type": "codegen" if groups else "gptj",
        "architectures": ["CodeGenForCausalLM" if groups else "GPTJForCausalLM"],
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
        "n_ctx": config.n_positions,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        **values,
    }


def regrouped(qkv: np.ndarray, before: int, after: int) -> np.ndarray:
    """A qkv_proj [3H, H] stored in `before` groups, as it is stored in `after` groups."""
    width = qkv.shape[1]
    one_by_one = qkv.reshape(before, 3, -1, width).swapaxes(0, 1).reshape(3, -1, width)
    return one_by_one.reshape(3, after, -1, width).swapaxes(0, 1).reshape(-1, width)


def write_safetensors(
    folder: Path,
    tensors: dict[str, np.ndarray],
    config: CodeGenConfig,
    *,
    dtype: str = "float32",
    layout: str = "pt",
    shards: int = 1,
) -> Path:
    """Write model.safetensors (or shards of it) and config.json; return the folder.

    `layout` "pt" writes what transformers does, "np" and "pd" what PaddleNLP does: linear weights
    as [in, out], and bfloat16 in arrays of uint16.
    """

    def save(part: dict[str, np.ndarray], path: Path) -> None:
        if layout == "pt":
            import torch
            from safetensors.torch import save_file as save_torch_file

            save_torch_file(
                {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in part.items()},
                path,
                metadata={"format": "pt"},
            )
        else:
            from safetensors.numpy import save_file

            arrays = {k: _numpy_as(transposed(k, v), dtype) for k, v in part.items()}
            save_file(arrays, path, metadata={"format": layout})

    return _write(folder, tensors, config, "model.safetensors", shards, save)


def write_torch(
    folder: Path,
    tensors: dict[str, np.ndarray],
    config: CodeGenConfig,
    *,
    dtype: str = "float32",
    legacy: bool = False,
    shards: int = 1,
) -> Path:
    """Write pytorch_model.bin, `legacy` as torch before 1.6 did, and config.json."""
    import torch

    def save(part: dict[str, np.ndarray], path: Path) -> None:
        torch.save(
            {k: torch.tensor(v).to(getattr(torch, dtype)) for k, v in part.items()},
            path,
            _use_new_zipfile_serialization=not legacy,
        )

    return _write(folder, tensors, config, "pytorch_model.bin", shards, save)


def write_paddle(
    folder: Path,
    tensors: dict[str, np.ndarray],
    config: CodeGenConfig,
    *,
    dtype: str = "float32",
    protocol: int = 4,
    shards: int = 1,
) -> Path:
    """Write model_state.pdparams with paddle.save, and config.json."""
    import zlib  # noqa: F401  paddle 2.6 breaks a zlib imported after it

    import paddle

    def save(part: dict[str, np.ndarray], path: Path) -> None:
        state = {
            k: paddle.to_tensor(transposed(k, v), place=paddle.CPUPlace()).astype(dtype)
            for k, v in part.items()
        }
        paddle.save(state, str(path), protocol=protocol)

    return _write(folder, tensors, config, "model_state.pdparams", shards, save)


def transposed(name: str, values: np.ndarray) -> np.ndarray:
    """What Paddle stores: linear weights as [in, out]; the embedding stays [vocab, H]."""
    if values.ndim == 2 and name.rsplit(".", 2)[-2] != "wte":
        return np.ascontiguousarray(values.T)
    return values


def _numpy_as(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return values.astype(dtype)
    import torch

    return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def _write(folder, tensors, config, file, shards, save) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(config)), encoding="utf-8")
    if shards == 1:
        save(tensors, folder / file)
        return folder
    stem, suffix = file.rsplit(".", 1)
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        path = folder / f"{stem}-{shard + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: tensors[name] for name in names[shard::shards]}
        save(part, path)
        weight_map.update(dict.fromkeys(part, path.name))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{file}.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
