"""How strongly a LoRA adapter's factors count: what its configuration says, or why it has no say.

The product of a module's factors is multiplied by alpha / r, or by alpha / sqrt(r) if it is
rank-stabilized (https://arxiv.org/abs/2312.03732); either may be given for single modules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paddlenlp_codegen_task.checks import shown
from paddlenlp_codegen_task.model.names import LORA_CONFIG, PEFT_CONFIG
from paddlenlp_codegen_task.model.stored_tensor import CheckpointError

# What has no merged form, or one that the files do not tell: the model's own weights are changed
# before training (init_lora_weights, pissa), or what is added is no product of two matrices.
_PEFT_REFUSED = (
    *("use_dora", "lora_bias", "use_qalora", "alora_invocation_tokens", "layer_replication"),
    *("target_parameters", "trainable_token_indices"),
)
_LORA_REFUSED = ("pissa", "use_mora", "lora_use_mixer", "do_qat", "enable_lora_list")
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")
_MODULE = re.compile(r"[\w.]{1,200}")


@dataclass(frozen=True)
class Scaling:
    """What the product of a module's factors is multiplied by."""

    file: str
    rank: int
    alpha: float
    is_stabilized: bool
    ranks: Mapping[str, int]  # of modules that have another, by the ends of their names
    alphas: Mapping[str, float]
    may_be_wider: bool = False  # whether factors may have more columns than the rank says

    def of(self, module: str) -> float:
        """The factor of a module, by its name in the model."""
        rank = float(_of(module, self.ranks, self.rank))
        alpha = float(_of(module, self.alphas, self.alpha))
        return alpha / (math.sqrt(rank) if self.is_stabilized else rank)

    def check(self, module: str, found: int) -> None:
        """Raise CheckpointError if a module's factors are not of its rank."""
        rank = _of(module, self.ranks, self.rank)
        if found != rank and not (self.may_be_wider and found % rank == 0):
            raise CheckpointError(f"is of rank {found}, but {self.file} says {rank}")

    @classmethod
    def of_peft(cls, values: Mapping[str, Any]) -> Scaling:
        """Read peft's adapter_config.json; ValueError if it is more than a plain LoRA."""
        if (kind := values.get("peft_type", "LORA")) != "LORA":
            raise ValueError(f"must have peft_type 'LORA', got {shown(kind)}")
        _refuse(values, _PEFT_REFUSED)
        initial = values.get("init_lora_weights", True)
        if not any(initial is one or initial == one for one in _INITIAL):
            raise ValueError(
                f"has init_lora_weights {shown(initial)}, which changes the model's own weights: "
                "save it as a plain LoRA (peft: path_initial_model_for_weight_conversion)"
            )
        return cls(
            PEFT_CONFIG,
            _rank("r", values.get("r", 8)),
            _alpha("lora_alpha", values.get("lora_alpha", 8)),
            values.get("use_rslora") is True,
            {name: _rank("rank_pattern", one) for name, one in _pattern(values, "rank_pattern")},
            {name: _alpha("alpha_pattern", one) for name, one in _pattern(values, "alpha_pattern")},
        )

    @classmethod
    def of_paddlenlp(cls, values: Mapping[str, Any]) -> Scaling:
        """Read PaddleNLP's lora_config.json, in the same way."""
        _refuse(values, _LORA_REFUSED)
        degree = values.get("tensor_parallel_degree")
        if isinstance(degree, int) and degree > 1:
            raise ValueError(f"has tensor_parallel_degree {degree}: merge its parts first")
        return cls(
            LORA_CONFIG,
            _rank("r", values.get("r", 8)),
            _alpha("lora_alpha", values.get("lora_alpha", 8)),
            values.get("rslora") is True,
            {},
            {},
            # LoRA-GA saves what it has trained beside what it began with.
            may_be_wider=values.get("loraga") is True,
        )


def _refuse(values: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        value = values.get(name)
        # PaddleNLP writes a list of nothings for modules of which it says nothing.
        if any(value) if isinstance(value, list) else value:
            raise ValueError(f"has {name}, which is not supported")


def _rank(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**17:
        raise ValueError(f"must have an integer above 0 as {name}, got {shown(value)}")
    return value


def _alpha(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < abs(value) < 1e9:
        raise ValueError(f"must have a number other than 0 as {name}, got {shown(value)}")
    return float(value)


def _pattern(values: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    """The modules of rank_pattern or alpha_pattern.

    peft takes their names for regular expressions. Those are nobody's to run who does not know
    where they come from, and nearly all are plain names.
    """
    found = values.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"must have a JSON object as {name}, got {shown(found)}")
    for key in found:
        if not _MODULE.fullmatch(key):
            raise ValueError(f"has a {name} for {shown(key)}: write out the names of modules")
    return list(found.items())


def _of(module: str, patterns: Mapping[str, float], default: float) -> float:
    """What the first pattern says that a module's name ends with."""
    found = (patterns[one] for one in patterns if module == one or module.endswith("." + one))
    return next(found, default)
