"""The shape of a CodeGen model, read from its config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.model.names import CONFIG_FILES

# Checkpoints store qkv_proj as the training run was sharded over 4 TPU cores (mp_num in
# https://github.com/salesforce/CodeGen, jaxformer/hf/codegen/modeling_codegen.py).
MP_NUM = 4


@dataclass(frozen=True)
class CodeGenConfig:
    """Sizes of one CodeGen model.

    Field names follow transformers' and PaddleNLP's config.json. `n_positions` is the context
    length in tokens; `rotary_dim` the leading part of each head that is rotated.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    rotary_dim: int
    n_inner: int
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int = 1
    eos_token_id: int = 50256

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"config.json: {name} must be a positive integer, got {value!r}")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"config.json: n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head})"
            )
        if self.n_head % MP_NUM:
            raise ValueError(
                f"config.json: n_head must be divisible by {MP_NUM}, got {self.n_head}"
            )
        if not 0 < self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ValueError(
                f"config.json: rotary_dim must be even and at most head_dim ({self.head_dim}), "
                f"got {self.rotary_dim}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CodeGenConfig:
        """Build a configuration from the content of a config.json.

        Raises:
            ValueError: a size is missing, of the wrong kind or out of range, or the file
                describes another architecture.
        """
        model_type = values.get("model_type", "codegen")
        if model_type != "codegen":
            raise ValueError(f"config.json: model_type must be 'codegen', got {model_type!r}")
        activation = values.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
            raise ValueError(
                f"config.json: activation_function must be 'gelu_new', got {activation!r}"
            )
        missing = [
            key for key in ("vocab_size", "n_embd", "n_layer", "n_head") if key not in values
        ]
        if missing:
            raise ValueError(f"config.json: missing {', '.join(missing)}")
        n_embd, n_head = values["n_embd"], values["n_head"]
        rotary_dim = values.get("rotary_dim")
        if rotary_dim is None:  # transformers then rotates the whole head
            rotary_dim = n_embd // n_head
        eos_token_id = values.get("eos_token_id")
        return cls(
            vocab_size=values["vocab_size"],
            n_positions=values.get("n_positions", 2048),
            n_embd=n_embd,
            n_layer=values["n_layer"],
            n_head=n_head,
            rotary_dim=rotary_dim,
            n_inner=values.get("n_inner") or 4 * n_embd,
            layer_norm_epsilon=float(values.get("layer_norm_epsilon", 1e-5)),
            bos_token_id=values.get("bos_token_id") or 1,
            eos_token_id=50256 if eos_token_id is None else eos_token_id,
        )

    @classmethod
    def from_folder(cls, folder: Path) -> CodeGenConfig:
        """Read config.json, or model_config.json as PaddleNLP wrote it before 2.5.

        Raises:
            FileNotFoundError: `folder` has neither.
            ValueError: the file is not JSON, or not a CodeGen configuration.
        """
        path = next((folder / one for one in CONFIG_FILES if (folder / one).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder} has no config.json: not a CodeGen checkpoint folder")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object")
        try:
            return cls.from_dict(_flatten(values))
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"{folder}: {error}") from None


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Lift the constructor arguments of PaddleNLP's older model_config.json to the top."""
    inner: dict[str, Any] = {}
    for arguments in values.get("init_args") or []:
        if isinstance(arguments, dict):
            inner |= _flatten(arguments)
    return {**inner, **{name: value for name, value in values.items() if name != "init_args"}}
