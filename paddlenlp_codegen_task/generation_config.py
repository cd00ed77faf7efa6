"""The options of one generation, validated once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION, Truncator

DECODE_STRATEGIES = ("sampling", "greedy_search", "beam_search")
PROMPT_OVERFLOW = ("error", "truncate_left")


@dataclass(frozen=True)
class GenerationConfig:
    """How completions are chosen; names and defaults are PaddleNLP's where it has one.

    Attributes:
        max_length: most new tokens of a completion.
        min_length: new tokens before the end-of-text token may come. Truncation is not held back.
        decode_strategy: "sampling", "greedy_search" or "beam_search". Beam search is that of
            transformers; the options of sampling mean nothing to it.
        temperature: divides the logits before sampling; above 0.
        top_k: sample among the k likeliest tokens; 0 for all.
        top_p: sample among the likeliest tokens that make up this probability; in (0, 1].
        min_p: sample among the tokens at least this share as likely as the likeliest; in [0, 1).
        repetition_penalty: divides (negative: multiplies) the logit of every token already in the
            prompt or the completion; 1 for none (https://arxiv.org/abs/1909.05858).
        num_beams: beams of beam search, which run at once whatever batch_size is.
        length_penalty: a hypothesis' score is the sum of its log-probabilities divided by its
            length to this power: above 0 favours long ones, below 0 short ones.
        early_stopping: beam search ends with num_beams hypotheses at once (True), when the best
            beam would not be among them as it is (False) or at any length ("never").
        num_return_sequences: completions for each prompt; with beam search at most num_beams.
        best_of: sample so many completions for each prompt and return the num_return_sequences
            with the highest mean log-probability of their tokens, best first, as the Codex paper
            ranks samples (https://arxiv.org/abs/2107.03374, section 3.3); None for no ranking.
        logprobs: report the log-probability the model gives each token, and those of so many
            likeliest tokens; None for no report.
        output_scores: report each completion's score as PaddleNLP does: the mean log-probability
            of its tokens after min_length and repetition_penalty.
        seed: makes a run repeat exactly, whatever else is in the batch; None for a new one.
        truncation: regex, or list of them: the completion ends before the first match, without
            trailing blanks; or the name of a preset, such as "python". None keeps all text.
        stop: string, or list of them: the completion ends before the first occurrence of any.
        ignore_eos: never choose the end-of-text token.
        prompt_lookup: when one sequence runs alone, guess its next tokens from repetitions in the
            prompt and the completion, and verify them in one step. None: in fp32, where it changes
            the speed only. In lower precisions a step of several tokens rounds so differently from
            one of a single token that now and then another token is chosen, and how many tokens
            are guessed depends on the time steps take: a seed then does not repeat exactly.
        prompt_overflow: what to do with a prompt that leaves no room for max_length tokens in the
            context: "error", or "truncate_left" to drop its beginning.
    """

    max_length: int = 128
    min_length: int = 0
    decode_strategy: str = "sampling"
    temperature: float = 0.6
    top_k: int = 5
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    output_scores: bool = False
    seed: int | None = None
    truncation: str | Sequence[str] | None = DEFAULT_TRUNCATION
    stop: str | Sequence[str] = ()
    ignore_eos: bool = False
    prompt_lookup: bool | None = None
    prompt_overflow: str = "error"

    def __post_init__(self) -> None:
        _integer("max_length", self.max_length, 1)
        _integer("min_length", self.min_length, 0)
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length ({self.min_length}) must not be above max_length ({self.max_length})"
            )
        _choice("decode_strategy", self.decode_strategy, DECODE_STRATEGIES)
        _number("temperature", self.temperature, "above 0", lambda x: x > 0)
        _integer("top_k", self.top_k, 0)
        _number("top_p", self.top_p, "in (0, 1]", lambda x: 0 < x <= 1)
        _number("min_p", self.min_p, "in [0, 1)", lambda x: 0 <= x < 1)
        _number("repetition_penalty", self.repetition_penalty, "above 0", lambda x: x > 0)
        _integer("num_beams", self.num_beams, 1)
        _number("length_penalty", self.length_penalty, "in [-10, 10]", lambda x: -10 <= x <= 10)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )
        _integer("num_return_sequences", self.num_return_sequences, 1)
        if self.decode_strategy == "beam_search":
            if self.num_return_sequences > self.num_beams:
                raise ValueError(
                    f"num_return_sequences ({self.num_return_sequences}) must not be above "
                    f"num_beams ({self.num_beams})"
                )
            if self.logprobs is not None:
                raise ValueError("logprobs needs decode_strategy='sampling' or 'greedy_search'")
        for name in ("best_of", "logprobs", "seed"):
            value = getattr(self, name)
            if value is not None:
                _integer(name, value, 1 if name == "best_of" else 0)
        for name in ("output_scores", "ignore_eos"):
            _boolean(name, getattr(self, name))
        if self.prompt_lookup is not None:
            _boolean("prompt_lookup", self.prompt_lookup)
        if self.best_of is not None:
            if self.decode_strategy != "sampling":
                raise ValueError("best_of ranks samples: it needs decode_strategy='sampling'")
            if self.best_of < self.num_return_sequences:
                raise ValueError(
                    f"best_of ({self.best_of}) must not be below num_return_sequences "
                    f"({self.num_return_sequences})"
                )
        _choice("prompt_overflow", self.prompt_overflow, PROMPT_OVERFLOW)
        Truncator(self.truncation, self.stop)  # compiles, or says why not

    def with_options(self, options: dict[str, Any]) -> GenerationConfig:
        """Return a copy with some fields replaced.

        Raises:
            TypeError: an option is unknown, or of the wrong type.
            ValueError: a value is out of range.
        """
        if not options:
            return self
        check_option_names(options, self.field_names())
        return replace(self, **options)

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of all options."""
        return [field.name for field in fields(cls)]


def check_option_names(options: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError that names the first unknown option and the known one nearest to it."""
    known = list(known)
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
            raise TypeError(f"unknown option {name!r}; {hint}")


def _integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _number(name: str, value: Any, expected: str, holds: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must be {expected}, got {value}")


def _choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
