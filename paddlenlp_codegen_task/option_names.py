"""Names of options: an unknown one is an error that says which was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from paddlenlp_codegen_task.checks import shown

# What OpenAI's API, transformers, vLLM and others call our options, where the names are unlike.
_ELSEWHERE = {
    "max_tokens": "max_length",
    "max_new_tokens": "max_length",
    "max_completion_tokens": "max_length",
    "max_gen_toks": "max_length",
    "max_dec_len": "max_length",
    "max_out_len": "max_length",
    "min_tokens": "min_length",
    "min_new_tokens": "min_length",
    "min_dec_len": "min_length",
    "min_out_len": "min_length",
    "n": "num_return_sequences",
    "num_samples": "num_return_sequences",
    "num_completions": "num_return_sequences",
    "do_sample": "decode_strategy",
    "use_beam_search": "decode_strategy",
    "beam_width": "num_beams",
    "beam_size": "num_beams",
    "temp": "temperature",
    "repeat_penalty": "repetition_penalty",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_words": "stop",
    "truncate_before_pattern": "truncation",
    "eos_token_id": "stop_token_ids",
    "bad_words": "suppress_tokens",
    "bad_words_ids": "suppress_tokens",
    "top_logprobs": "logprobs",
    "return_dict_in_generate": "output_scores",
    "random_seed": "seed",
    "manual_seed": "seed",
    "random_state": "seed",
    "prompt_lookup_num_tokens": "prompt_lookup",
    "assistant_model": "draft_model",
    "speculative_model": "draft_model",
    "dtype": "precision",
    "torch_dtype": "precision",
    "quantization": "precision",
    "kv_cache_dtype": "kv_precision",
    "kv_cache_precision": "kv_precision",
    "cache_dtype": "kv_precision",
    "load_in_8bit": "precision",
    "load_in_4bit": "precision",
    "device_map": "device",
    "cache_dir": "home_path",
    "backend": "engine",
    "provider": "engine",
    "cpu_threads": "num_threads",
    "intra_op_num_threads": "num_threads",
    "max_num_seqs": "batch_size",
    "mp_num": "qkv_groups",
    "lora": "adapter",
    "lora_path": "adapter",
    "peft_model": "adapter",
    "adapter_path": "adapter",
}


def check_option_names(
    options: Iterable[str], known: Iterable[str], hints: dict[str, str] | None = None
) -> None:
    """Raise a TypeError that names the first unknown option, and what was meant.

    Args:
        options: names that were passed.
        known: those that there are.
        hints: what to say of some that there are not.
    """
    known = list(known)
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {shown(name)}; {_hint(name, known, hints or {})}")


def _hint(name: object, known: list[str], hints: dict[str, str]) -> str:
    if isinstance(name, str):
        if name in hints:
            return hints[name]
        if _ELSEWHERE.get(name) in known:
            return f"use {_ELSEWHERE[name]}"
        if nearest := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
            return f"did you mean {nearest[0]!r}?"
    return f"known: {', '.join(known)}"
