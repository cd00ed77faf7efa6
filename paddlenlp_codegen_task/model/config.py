"""The shape of a CodeGen model, read from its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.checks import shown
from paddlenlp_codegen_task.files import read_json
from paddlenlp_codegen_task.model import qkv_groups
from paddlenlp_codegen_task.model.names import CONFIG_FILES

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

    `qkv_groups` is the number of groups of rows in the checkpoint's qkv_proj (`qkv_groups.of`), or
    None where it has q_proj, k_proj and v_proj instead, as GPT-J's layout has.

    `eos_token_id` is what config.json says, one id or several: `end_tokens.of` tells which of
    them end a text.
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
    eos_token_id: int | tuple[int, ...] = 50256
    qkv_groups: int | None = 4

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            _require_integer(name, getattr(self, name), 1, most)
        _require_integer("bos_token_id", self.bos_token_id, 0, _MOST["vocab_size"])
        token_ids("config.json", "eos_token_id", self.eos_token_id)
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
        if self.qkv_groups is not None:
            _require_integer("qkv_groups", self.qkv_groups, 1, qkv_groups.MOST_GROUPS)
            if self.n_head % self.qkv_groups:
                raise ValueError(
                    f"config.json: n_head must be divisible by {self.qkv_groups}, the number of "
                    f"groups of qkv_proj, got {self.n_head}"
                )
        if not _is_integer(self.rotary_dim, 2, self.head_dim) or self.rotary_dim % 2:
            raise ValueError(
                f"config.json: rotary_dim must be even and at most head_dim ({self.head_dim}), "
                f"got {shown(self.rotary_dim)}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], groups: int | None = None) -> CodeGenConfig:
        """Build a configuration from the content of a config.json.

        Args:
            values: the content.
            groups: how many groups of rows qkv_proj has, if someone says so.

        Raises:
            ValueError: a size is missing, of the wrong kind or out of range, the file describes
                another architecture, or does not tell the groups of qkv_proj.
        """
        model_type = values.get("model_type", "codegen")
        if model_type not in ("codegen", "gptj"):
            raise ValueError(
                f"config.json: model_type must be 'codegen' or 'gptj', got {shown(model_type)}"
            )
        is_gptj = model_type == "gptj"
        activation = values.get("activation_function", "gelu_new")
        if activation not in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
            raise ValueError(
                f"config.json: activation_function must be 'gelu_new', got {shown(activation)}"
            )
        # GPT-J's code takes a rotary_dim of its own where there is none, which fits no head.
        needed = ["vocab_size", "n_embd", "n_layer", "n_head", *["rotary_dim"] * is_gptj]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f"config.json: missing {', '.join(missing)}")

        def value(name: str, default: float) -> Any:
            return default if values.get(name) is None else values[name]

        # What null stands for is computed from these, so they are looked at first.
        for name in ("n_embd", "n_layer", "n_head"):
            _require_integer(name, values[name], 1, _MOST[name])
        n_embd, n_head = values["n_embd"], values["n_head"]
        eos_token_id = value("eos_token_id", 50256)
        if is_gptj and groups is not None:
            raise ValueError(
                f"qkv_groups ({groups}) has no effect on GPT-J's layout (model_type 'gptj'), which "
                "stores query, key and value apart: leave it out"
            )

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
            eos_token_id=tuple(eos_token_id) if isinstance(eos_token_id, list) else eos_token_id,
            qkv_groups=None if is_gptj else qkv_groups.of(values, groups),
        )

    @classmethod
    def from_folder(cls, folder: Path, groups: int | None = None) -> CodeGenConfig:
        """Read config.json, or model_config.json as PaddleNLP wrote it before 2.5.

        Args:
            folder: the checkpoint's.
            groups: as of `from_dict`.

        Raises:
            FileNotFoundError: `folder` has neither.
            ValueError: the file is not JSON, or not a CodeGen configuration.
        """
        path = next((folder / one for one in CONFIG_FILES if (folder / one).is_file()), None)
        if path is None:
            raise FileNotFoundError(f"{folder} has no config.json: not a CodeGen checkpoint folder")
        values = read_json(path)
        try:
            return cls.from_dict(_flatten(values), groups)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None


def token_ids(file: str, name: str, value: object) -> tuple[int, ...]:
    """The token ids that a file gives as a number or a list.

    Raises:
        ValueError: it is anything else.
    """
    found = value if isinstance(value, (list, tuple)) else [value]
    if not all(_is_integer(one, 0, _MOST["vocab_size"]) for one in found):
        raise ValueError(
            f"{file}: {name} must be an integer from 0 to {_MOST['vocab_size']:,}, or a list of "
            f"such, got {shown(value)}"
        )
    return tuple(found)


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
