"""What one call asks for, checked, and what it gets."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.sequence import FinishReason, Sequence
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.truncation import Truncator


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt.

    Attributes:
        text: what follows the prompt, truncated.
        token_ids: the tokens generated, those that truncation cut off included.
        finish_reason: "stop" (truncation or stop matched), "eos" (end of text) or "length"
            (max_length).
        logprobs: for each of token_ids, with the option `logprobs`: token to log-probability, of
            the token itself (first) and of the likeliest.
        score: with the option `output_scores`, as PaddleNLP counts it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[dict[int, float], ...] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Call:
    """What one call asks for, checked."""

    config: GenerationConfig
    texts: list[str]
    prompts: list[list[int]]
    sampler: Sampler
    truncator: Truncator

    @property
    def beams(self) -> int:
        """Beams of each prompt; 1 without beam search, and then a beam search of one is greedy."""
        return self.config.num_beams if self.config.decode_strategy == "beam_search" else 1

    @property
    def samples(self) -> int:
        """Sequences of each prompt."""
        if self.config.decode_strategy == "beam_search":
            return self.beams
        return self.config.best_of or self.config.num_return_sequences


class PromptTooLong(ValueError):
    """A prompt of `tokens` tokens leaves no room for `max_length` more: only `room` fit."""

    def __init__(self, number: int, tokens: int, max_length: int, room: int, context: int) -> None:
        """Say so of the prompt with this number."""
        self.tokens, self.max_length, self.room = tokens, max_length, room
        super().__init__(
            f"prompt {number} has {tokens} tokens, and with max_length {max_length} only {room} "
            f"fit the context of {context}: shorten it, lower max_length, or pass "
            "prompt_overflow='truncate_left'"
        )


def checked_size(name: str, value: Any, least: int) -> int:
    """Return `value`, an integer of at least `least`, or raise an error that names the option."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def checked_progress(value: Any) -> bool | None:
    """Return the option `progress`, or raise a TypeError."""
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"progress must be True, False or None, got {value!r}")
    return value


def checked_prompts(prompts: Any) -> list[str]:
    """Return one prompt or several as a list, or raise an error that says which is wrong."""
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"prompts must be a str or a list of str, got {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts must not be an empty list")
    for number, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"prompt {number} must be a str, got {type(text).__name__}")
        if not text:
            raise ValueError(f"prompt {number} must not be empty")
    return list(prompts)


def completions(samples: list[Sequence], config: GenerationConfig) -> list[Completion]:
    """The completions of one prompt, from all its samples in their order."""
    if config.best_of is not None:
        samples = sorted(samples, key=_mean_log_prob, reverse=True)
    return [_completion(one, config) for one in samples[: config.num_return_sequences]]


def _mean_log_prob(sequence: Sequence) -> float:
    return sum(log_prob for log_prob, _ in sequence.log_probs) / len(sequence.log_probs)


def _completion(sequence: Sequence, config: GenerationConfig) -> Completion:
    assert sequence.finish_reason is not None, "its job is done"
    token_ids = tuple(sequence.token_ids)
    logprobs = None
    if config.logprobs is not None:
        noted = zip(token_ids, sequence.log_probs, strict=False)  # end of text is not in token_ids
        logprobs = tuple({token_id: own, **top} for token_id, (own, top) in noted)
    score = sum(sequence.scores) / len(sequence.scores) if config.output_scores else None
    return Completion(
        sequence.stop_checker.text, token_ids, sequence.finish_reason, logprobs, score
    )
