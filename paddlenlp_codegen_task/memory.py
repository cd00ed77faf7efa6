"""What is asked for must fit memory: told before any of it is allocated, with the number."""

from __future__ import annotations

from paddlenlp_codegen_task.decoding.prefix_cache import BLOCK
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.runtime import device
from paddlenlp_codegen_task.runtime.kv_cache import STEP, KVCache

# What a completion takes, and each of its tokens, and each log-probability that is reported: as
# measured, rounded up.
_ROW_BYTES, _TOKEN_BYTES, _REPORT_BYTES = 2_000, 100, 150
_MUCH = 1 << 28  # bytes; for less, nobody is asked how many are free


def check_batch_size(cache: KVCache, batch_size: int) -> None:
    """Refuse a batch_size of which not even the first tokens fit the budget of the KV cache.

    Raises:
        ValueError: says what they would take; also if the budget is too little for anything.
    """
    if not cache.fits(1, 1):
        least = min(STEP, cache.max_capacity)
        raise ValueError(
            f"kv_cache_bytes ({cache.max_bytes:,}) must be at least {cache.bytes(1, least):,}, "
            f"which keys and values of {least} tokens take"
        )
    needed = cache.bytes(batch_size, 1)
    if cache.max_bytes is not None and needed > cache.max_bytes:
        raise ValueError(
            f"batch_size ({batch_size}): the keys and values of so many sequences take at least "
            f"{needed:,} bytes, a token each, and kv_cache_bytes allows {cache.max_bytes:,}"
        )


def check_prefix_cache(cache: KVCache, prefix_cache_bytes: int) -> None:
    """Raise a ValueError unless the cache has room for anything."""
    block = cache.bytes(1, BLOCK) * cache.count // (cache.count + 1)
    if prefix_cache_bytes < block:
        raise ValueError(
            f"prefix_cache_bytes must be 0, or at least {block:,}, which keys and values of "
            f"{BLOCK} tokens take, got {prefix_cache_bytes:,}"
        )


def completion_bytes(
    config: GenerationConfig, samples: int, logprobs: int | None, vocab_size: int
) -> int:
    """What the completions of a prompt may take, about.

    Args:
        config: their options.
        samples: how many there are, before they are ranked.
        logprobs: how many log-probabilities are noted of each token; None for not even its own.
        vocab_size: most that there are.
    """
    token = _TOKEN_BYTES
    if logprobs is not None:
        token += _REPORT_BYTES * (3 + min(logprobs, vocab_size))
    return samples * (_ROW_BYTES + config.max_length * token)


def check_completions(
    config: GenerationConfig, samples: int, logprobs: int | None, vocab_size: int
) -> None:
    """Refuse more completions of a prompt than memory holds: arguments as `completion_bytes`.

    Raises:
        ValueError: says what they would take.
    """
    needed = completion_bytes(config, samples, logprobs, vocab_size)
    free = device.free_bytes(None) if needed > _MUCH else None
    if free is not None and needed > free:
        name = "num_return_sequences" if config.best_of is None else "best_of"
        raise ValueError(
            f"{name} ({samples}): with max_length {config.max_length} and the logprobs that are "
            f"asked for, completions take about {needed:,} bytes, and {free:,} are free"
        )


def check_prompt_report(prompt_logprobs: int, tokens: int, vocab_size: int) -> None:
    """Refuse to report of a prompt of so many tokens what memory does not hold.

    Raises:
        ValueError: says what it would take.
    """
    needed = tokens * _REPORT_BYTES * (3 + min(prompt_logprobs, vocab_size))
    free = device.free_bytes(None) if needed > _MUCH else None
    if free is not None and needed > free:
        raise ValueError(
            f"prompt_logprobs ({prompt_logprobs}): those of a prompt of {tokens} tokens take about "
            f"{needed:,} bytes, and {free:,} are free"
        )
