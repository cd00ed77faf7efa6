"""The options of one generation, validated once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal

from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION, Truncator

DECODE_STRATEGIES = ("sampling", "greedy_search", "beam_search")
PROMPT_OVERFLOW = ("error", "truncate_left")
EarlyStopping = bool | Literal["never"]


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
        presence_penalty: taken from the logit of every token that the completion already has, in
            [-2, 2]: OpenAI's (https://platform.openai.com/docs/api-reference/completions).
        frequency_penalty: the same, as often as the completion has the token.
        logit_bias: token id to what is added to its logit.
        suppress_tokens: ids of tokens never to choose.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    suppress_tokens: Sequence[int] = ()
    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
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
        self._integer("max_length", 1)
        self._integer("min_length", 0)
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length ({self.min_length}) must not be above max_length ({self.max_length})"
            )
        _choice("decode_strategy", self.decode_strategy, DECODE_STRATEGIES)
        self._number("temperature", "above 0", lambda x: x > 0)
        self._integer("top_k", 0)
        self._number("top_p", "in (0, 1]", lambda x: 0 < x <= 1)
        self._number("min_p", "in [0, 1)", lambda x: 0 <= x < 1)
        self._number("repetition_penalty", "above 0", lambda x: x > 0)
        self._number("presence_penalty", "in [-2, 2]", lambda x: -2 <= x <= 2)
        self._number("frequency_penalty", "in [-2, 2]", lambda x: -2 <= x <= 2)
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "suppress_tokens", _token_ids(self.suppress_tokens))
        self._integer("num_beams", 1)
        self._number("length_penalty", "in [-10, 10]", lambda x: -10 <= x <= 10)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(
                f"early_stopping must be True, False or 'never', got {self.early_stopping!r}"
            )
        self._integer("num_return_sequences", 1)
        most = self.num_beams if self.decode_strategy == "beam_search" else math.inf
        if self.num_return_sequences > most:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) must not be above "
                f"num_beams ({self.num_beams})"
            )
        for name in ("best_of", "logprobs", "seed"):
            if getattr(self, name) is not None:
                self._integer(name, 1 if name == "best_of" else 0)
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

    def _integer(self, name: str, least: int) -> None:
        """Check an integer, and have it as one of Python's, whatever kind it was."""
        object.__setattr__(self, name, checked_integer(name, getattr(self, name), least))

    def _number(self, name: str, expected: str, holds: Callable[[float], bool]) -> None:
        """Check a number, and have it as a float: fractions and huge integers break numpy."""
        value = _float(name, getattr(self, name), expected)
        if not holds(value):
            raise ValueError(f"{name} must be {expected}, got {value}")
        object.__setattr__(self, name, value)

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


def checked_integer(name: str, value: Any, least: int) -> int:
    """Return `value`, an integer of at least `least`, or raise an error that names the option."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def _float(name: str, value: Any, expected: str) -> float:
    """Return `value`, a finite number, or raise an error that names the option."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {expected}, got {value}")
    return number


def _biases(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias must map token ids to numbers, got {value!r}")
    return {
        checked_integer("logit_bias: a token id", token_id, 0): _float(
            "logit_bias: a bias", bias, "a finite number"
        )
        for token_id, bias in value.items()
    }


def _token_ids(value: Any) -> tuple[int, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"suppress_tokens must be a list of token ids, got {value!r}")
    return tuple(checked_integer("suppress_tokens: a token id", one, 0) for one in value)


def _choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
