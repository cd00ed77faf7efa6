"""The options of loading and of calls: their types for mypy and editors, and what they come to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypedDict

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.generation_config import (
    DecodeStrategy,
    EarlyStopping,
    GenerationConfig,
    PromptOverflow,
)
from paddlenlp_codegen_task.load_options import LoadOptions, checked_model
from paddlenlp_codegen_task.option_names import check_option_names
from paddlenlp_codegen_task.runtime.engines import EngineName, KVPrecision, Precision

DEFAULT_BATCH_SIZE = 8


class GenerationOptions(TypedDict, total=False):
    """The fields of GenerationConfig, which says what they mean."""

    max_length: int
    min_length: int
    decode_strategy: DecodeStrategy
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    suppress_tokens: Iterable[int] | None
    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping
    num_return_sequences: int
    best_of: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    output_scores: bool
    seed: int | None
    truncation: str | Sequence[str] | None
    stop: str | Sequence[str] | None
    token_healing: bool
    stop_token_ids: Iterable[int] | None
    ignore_eos: bool
    prompt_lookup: bool | None
    prompt_overflow: PromptOverflow
    allow_special_tokens: bool


class CallOptions(GenerationOptions, total=False):
    """Those of `CodeGenerator.generate_as_completed`."""

    batch_size: int


class GenerateOptions(CallOptions, total=False):
    """Those of `CodeGenerator.generate`."""

    progress: bool | None


class LoadingOptions(CallOptions, total=False):
    """Those of `CodeGenerator.from_pretrained`, which says what they mean."""

    engine: EngineName
    precision: Precision
    kv_precision: KVPrecision
    device: str
    num_threads: int | None
    home_path: str | os.PathLike[str] | None
    from_hf_hub: bool
    static_mode: bool
    cuda_graph: bool
    qkv_groups: int | None
    adapter: str | os.PathLike[str] | None
    kv_cache_bytes: int | None
    prefix_cache_bytes: int
    draft_model: str | os.PathLike[str] | None


_OF_LOADING = {one.name for one in fields(LoadOptions)}
_ELSEWHERE = "is an option of loading: pass it to from_pretrained"
_HINTS = {
    **{name: f"{name} {_ELSEWHERE}" for name in LoadingOptions.__annotations__},
    "stream": "call CodeGenerator.stream",
}
_LOADING_HINTS = {
    "model": "the model is the first argument of from_pretrained",
    "task_path": "the folder is the first argument of from_pretrained",
    "is_static_model": "call CodeGenerator.from_export",
    "device_id": "pass device='gpu:N', or 'cpu'",
}


def check_call_options(options: Iterable[str], kind: type[GenerationOptions]) -> None:
    """Raise a TypeError that names the first option of a call that it does not have."""
    check_option_names(options, kind.__annotations__, _HINTS)


@dataclass(frozen=True)
class Settings:
    """What `LoadingOptions` come to, checked; fields have the options' names."""

    load: LoadOptions
    defaults: GenerationConfig
    batch_size: int
    prefix_cache_bytes: int
    kv_cache_bytes: int | None
    draft_model: str | Path | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Check the options of loading.

        Raises:
            TypeError: an option is unknown, or of the wrong type.
            ValueError: an option's value is not possible.
        """
        check_option_names(options, option_names(), _LOADING_HINTS)
        batch_size = checked_batch_size(options.get("batch_size", DEFAULT_BATCH_SIZE))
        prefix_cache_bytes = options.get("prefix_cache_bytes", 0)
        kv_cache_bytes, draft_model = options.get("kv_cache_bytes"), options.get("draft_model")
        if kv_cache_bytes is not None:
            kv_cache_bytes = checks.integer("kv_cache_bytes", kv_cache_bytes, 1)
        if draft_model is not None:
            draft_model = checked_model("draft_model", draft_model)
        generation = GenerationConfig.field_names()
        return cls(
            LoadOptions(**{name: options[name] for name in options if name in _OF_LOADING}),
            GenerationConfig(**{name: options[name] for name in options if name in generation}),
            batch_size,
            checks.integer("prefix_cache_bytes", prefix_cache_bytes, 0),
            kv_cache_bytes,
            draft_model,
        )


def option_names() -> list[str]:
    """Every option of `CodeGenerator.from_pretrained`."""
    return list(LoadingOptions.__annotations__)


def checked_batch_size(value: Any) -> int:
    """Return the option `batch_size`, or raise an error."""
    return checks.integer("batch_size", value, 1)
