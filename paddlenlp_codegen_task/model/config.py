"""The shape of a CodeGen model, read from its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.checks import shown
from paddlenlp_codegen_task.files import read_json
from paddlenlp_codegen_task.model.names import CONFIG_FILES

# Checkpoints store qkv_proj as the training run was sharded over 4 TPU cores (mp_num in
# https://github.com/salesforce/CodeGen, jaxformer/hf/codegen/modeling_codegen.py).
MP_NUM = 4

# Ten times and more beyond the largest model, and small enough that nothing computed from them
# takes long or overflows before they are compared with the weights.
_MOST = {
    "vocab_size": 2**24,
    "n_positions": 2**20,
    "n_embd": 2**17,
    "n_layer": 2**10,
    "n_head": 2**12,
    "n_inner": 2**20,
}


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
        for name, most in _MOST.items():
            _require_integer(name, getattr(self, name), 1, most)
        for name in ("bos_token_id", "eos_token_id"):
            _require_integer(name, getattr(self, name), 0, _MOST["vocab_size"])
        epsilon = self.layer_norm_epsilon
        if not isinstance(epsilon, float) or not 0 < epsilon <= 1:
            raise ValueError(
                "config.json: layer_norm_epsilon must be a number above 0 and at most 1, "
                f"got {shown(epsilon)}"
            )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"config.json: n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head})"
            )
        if self.n_head % MP_NUM:
            raise ValueError(
                f"config.json: n_head must be divisible by {MP_NUM}, got {self.n_head}"
            )
        if not _is_integer(self.rotary_dim, 2, self.head_dim) or self.rotary_dim % 2:
            raise ValueError(
                f"config.json: rotary_dim must be even and at most head_dim ({self.head_dim}), "
                f"got {shown(self.rotary_dim)}"
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
            raise ValueError(f"config.json: model_type must be 'codegen', got {shown(model_type)}")
        # CodeGen2 calls itself "codegen" too; its own code computes something else from weights
        # of the same shapes.
        for name in ("head_dim", "auto_map"):
            if values.get(name) is not None:
                what = "has head_dim" if name == "head_dim" else "names code of its own (auto_map)"
                raise ValueError(
                    f"config.json {what}, as CodeGen2's does: CodeGen2 is not supported yet"
                )
        activation = values.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
            raise ValueError(
                f"config.json: activation_function must be 'gelu_new', got {shown(activation)}"
            )
        missing = [
            key for key in ("vocab_size", "n_embd", "n_layer", "n_head") if key not in values
        ]
        if missing:
            raise ValueError(f"config.json: missing {', '.join(missing)}")
        # What null stands for is computed from these, so they are looked at first.
        for name in ("n_embd", "n_head"):
            _require_integer(name, values[name], 1, _MOST[name])
        n_embd, n_head = values["n_embd"], values["n_head"]

        def value(name: str, default: float) -> Any:
            return default if values.get(name) is None else values[name]

        epsilon = value("layer_norm_epsilon", 1e-5)
        return cls(
            vocab_size=values["vocab_size"],
            n_positions=value("n_positions", 2048),
            n_embd=n_embd,
            n_layer=values["n_layer"],
            n_head=n_head,
            rotary_dim=value("rotary_dim", n_embd // n_head),  # transformers: the whole head
            n_inner=value("n_inner", 4 * n_embd),
            # An integer of many digits is beyond any float.
            layer_norm_epsilon=float(epsilon) if _is_integer(epsilon, 0, 1) else epsilon,
            bos_token_id=value("bos_token_id", 1),
            eos_token_id=value("eos_token_id", 50256),
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
        values = read_json(path)
        try:
            return cls.from_dict(_flatten(values))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None


def _is_integer(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _require_integer(name: str, value: object, least: int, most: int) -> None:
    if not _is_integer(value, least, most):
        raise ValueError(
            f"config.json: {name} must be an integer from {least} to {most:,}, got {shown(value)}"
        )


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    """Lift the constructor arguments of PaddleNLP's older model_config.json to the top.

    There the language model has one argument, the model below it, which has the sizes.
    """
    inner: dict[str, Any] = {}
    arguments = values.get("init_args")
    for one in arguments if isinstance(arguments, list) else ():
        if isinstance(one, dict):
            inner |= one
    return {**inner, **{name: value for name, value in values.items() if name != "init_args"}}
