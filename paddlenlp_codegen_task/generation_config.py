"""The options of one generation, validated once."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import islice
from typing import Any, Literal, get_args

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.option_names import check_option_names
from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION, PRESETS, Truncator

logger = logging.getLogger(__name__)

DecodeStrategy = Literal["sampling", "greedy_search", "beam_search"]
PromptOverflow = Literal["error", "truncate_left"]
EarlyStopping = bool | Literal["never"]
DECODE_STRATEGIES: tuple[DecodeStrategy, ...] = get_args(DecodeStrategy)
PROMPT_OVERFLOW: tuple[PromptOverflow, ...] = get_args(PromptOverflow)

# The strategies that an option is for. With another it is refused, or, if it is one of sampling's
# own, which PaddleNLP's users pass with any strategy, one warning says that it has no effect.
_ONLY_WITH: dict[str, tuple[DecodeStrategy, ...]] = {
    "temperature": ("sampling",),
    "top_k": ("sampling",),
    "top_p": ("sampling",),
    "min_p": ("sampling",),
    "best_of": ("sampling",),
    "num_beams": ("beam_search",),
    "length_penalty": ("beam_search",),
    "early_stopping": ("beam_search",),
    "prompt_lookup": ("sampling", "greedy_search"),
}
_HARMLESS = ("temperature", "top_k", "top_p", "min_p")
_IDLE: dict[str, Any] = {"num_beams": 1, "prompt_lookup": False}  # values that ask for nothing
_MOST_TOKENS = 1 << 18  # that an option may list: more than any vocabulary has
_LARGEST_SEED = 2**128 - 1  # what NumPy recommends: secrets.randbits(128)


@dataclass(frozen=True)
class GenerationConfig:
    """How completions are chosen; names and defaults are PaddleNLP's where it has one.

    Attributes:
        max_length: most new tokens of a completion; 0 is possible with `prompt_logprobs` only.
        min_length: new tokens before an end-of-text token, or one of stop_token_ids, may come.
            Truncation is not held back.
        decode_strategy: "sampling", "greedy_search" or "beam_search". Beam search is that of
            transformers. Without sampling, temperature, top_k, top_p and min_p have no effect, as a
            warning says; other options that have none with a strategy are refused.
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
        suppress_tokens: ids of tokens never to choose; None for none.
        num_beams: beams of beam search, which run at once whatever batch_size is; 1 is as good as
            4, the default, where nothing searches.
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
        prompt_logprobs: the same of the prompt's tokens, each after those before it. Such a prompt
            runs by itself, all of it, whatever the prefix cache has.
        output_scores: report each completion's score: the mean log-probability of its tokens after
            min_length and repetition_penalty, as PaddleNLP has it while sampling (its greedy
            search averages logits instead).
        seed: makes a run repeat exactly, whatever else is in the batch; None for a new one.
        truncation: regex, or list of them: the completion ends before the first match, without
            trailing blanks; or the name of a preset, such as "python". None keeps all text.
        stop: string, or list of them: the completion ends before the first occurrence of any;
            None for none.
        token_healing: take back the prompt's last token, or the blanks that it ends with, and have
            the first new tokens spell those characters again, with whatever follows them: a prompt
            may then end within a word. The text begins after the prompt all the same; max_length,
            min_length and logprobs count those tokens, and truncation sees none of it.
        stop_token_ids: ids of tokens that end the completion, which is without the token. Like the
            end of text they do not come before min_length, but ignore_eos leaves them be.
        ignore_eos: never choose an end-of-text token.
        prompt_lookup: when one sequence runs alone, guess its next tokens from repetitions in the
            prompt and the completion, and verify them in one step. None: in fp32, where it changes
            the speed only. In lower precisions, of keys and values too, a step of several tokens
            rounds so differently from one of a single token that now and then another token is
            chosen, and how many tokens are guessed depends on the time steps take: a seed then
            does not repeat exactly.
        prompt_overflow: what to do with a prompt that leaves no room for max_length tokens in the
            context: "error", or "truncate_left" to drop its beginning; of an infill's texts, what
            is furthest from the middle.
        allow_special_tokens: whether a special token's name in a prompt, such as "<|endoftext|>",
            becomes that token, as in transformers, or is text like any other, as the names in an
            infill's texts always are.
    """

    max_length: int = 128
    min_length: int = 0
    decode_strategy: DecodeStrategy = "sampling"
    temperature: float = 0.6
    top_k: int = 5
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    suppress_tokens: Iterable[int] | None = ()
    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    num_return_sequences: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    output_scores: bool = False
    seed: int | None = None
    truncation: str | Sequence[str] | None = DEFAULT_TRUNCATION
    stop: str | Sequence[str] | None = ()
    token_healing: bool = False
    stop_token_ids: Iterable[int] | None = ()
    ignore_eos: bool = False
    prompt_lookup: bool | None = None
    prompt_overflow: PromptOverflow = "error"
    allow_special_tokens: bool = True

    def __post_init__(self) -> None:
        """Make each option a plain value of Python's, or say why that cannot be."""
        self._integer("prompt_logprobs", 0, optional=True)
        self._integer("max_length", 1 if self.prompt_logprobs is None else 0)
        self._integer("min_length", 0)
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length ({self.min_length}) must not be above max_length ({self.max_length})"
            )
        self._keep(
            decode_strategy=checks.choice(
                "decode_strategy", self.decode_strategy, DECODE_STRATEGIES
            )
        )
        greedy = "above 0 (in place of 0 pass decode_strategy='greedy_search')"
        self._number("temperature", greedy, lambda x: x > 0)
        self._integer("top_k", 0)
        self._number("top_p", "in (0, 1]", lambda x: 0 < x <= 1)
        self._number("min_p", "in [0, 1)", lambda x: 0 <= x < 1)
        self._number("repetition_penalty", "above 0", lambda x: x > 0)
        self._number("presence_penalty", "in [-2, 2]", lambda x: -2 <= x <= 2)
        self._number("frequency_penalty", "in [-2, 2]", lambda x: -2 <= x <= 2)
        self._keep(logit_bias=_biases(self.logit_bias))
        for name in ("suppress_tokens", "stop_token_ids"):
            self._keep(**{name: _ids(name, getattr(self, name))})
        self._integer("num_beams", 1)
        self._number("length_penalty", "in [-10, 10]", lambda x: -10 <= x <= 10)
        self._keep(early_stopping=_early_stopping(self.early_stopping))
        self._integer("num_return_sequences", 1)
        self._integer("best_of", 1, optional=True)
        self._integer("logprobs", 0, optional=True)
        self._boolean("output_scores")
        self._integer("seed", 0, _LARGEST_SEED, optional=True)
        self._boolean("token_healing")
        self._boolean("allow_special_tokens")
        self._boolean("ignore_eos")
        self._boolean("prompt_lookup", optional=True)
        self._keep(
            prompt_overflow=checks.choice("prompt_overflow", self.prompt_overflow, PROMPT_OVERFLOW)
        )
        self._check_together()
        self._check_texts()

    def _check_together(self) -> None:
        """Check what options ask for of one another."""
        most = self.num_beams if self.decode_strategy == "beam_search" else math.inf
        if self.num_return_sequences > most:
            raise ValueError(
                f"num_return_sequences ({self.num_return_sequences}) must not be above "
                f"num_beams ({self.num_beams})"
            )
        if self.best_of is not None:
            if self.decode_strategy != "sampling":
                raise ValueError("best_of ranks samples: it needs decode_strategy='sampling'")
            if self.best_of < self.num_return_sequences:
                raise ValueError(
                    f"best_of ({self.best_of}) must not be below num_return_sequences "
                    f"({self.num_return_sequences})"
                )
        if self.token_healing and self.prompt_logprobs is not None:
            raise ValueError(
                "token_healing does not go with prompt_logprobs: the one takes back of the prompt "
                "what the other scores"
            )
        for name in _without_effect(self.decode_strategy):
            value = getattr(self, name)
            if value in (_DEFAULTS[name], _IDLE.get(name, _DEFAULTS[name])):
                continue
            problem = f"{name} has no effect with decode_strategy={self.decode_strategy!r}"
            if name in _HARMLESS:
                _say_once(problem)
            else:
                others = " or ".join(map(repr, _ONLY_WITH[name]))
                raise ValueError(f"{problem}: leave it out, or pass decode_strategy={others}")

    def _check_texts(self) -> None:
        """Check what is to end a text."""
        self._keep(stop=_texts("stop", () if self.stop is None else self.stop))
        for one in [self.stop] if isinstance(self.stop, str) else self.stop or ():
            _check_unicode(one)
        if self.truncation is not None:
            self._keep(truncation=_texts("truncation", self.truncation))
        try:
            Truncator.of(self.truncation, self.stop)
        except (TypeError, ValueError) as error:
            raise type(error)(checks.line(str(error))) from None

    def _keep(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _integer(
        self, name: str, least: int, most: int = checks.LARGEST, optional: bool = False
    ) -> None:
        value = getattr(self, name)
        if not (optional and value is None):
            self._keep(**{name: checks.integer(name, value, least, most)})

    def _number(self, name: str, expected: str, holds: Callable[[float], bool]) -> None:
        self._keep(**{name: checks.number(name, getattr(self, name), expected, holds)})

    def _boolean(self, name: str, optional: bool = False) -> None:
        value = getattr(self, name)
        if not (optional and value is None):
            self._keep(**{name: checks.boolean(name, value)})

    def with_options(self, options: Mapping[str, Any]) -> GenerationConfig:
        """Return a copy with some fields replaced.

        With another decode_strategy, what is not among `options` and means nothing to it is as if
        it had not been set.

        Raises:
            TypeError: an option is unknown, or of the wrong type.
            ValueError: a value is out of range.
        """
        if not options:
            return self
        check_option_names(options, self.field_names())
        changed = dict(options)
        if "decode_strategy" in options:
            strategy = checks.choice(
                "decode_strategy", options["decode_strategy"], DECODE_STRATEGIES
            )
            for name in _without_effect(strategy):
                changed.setdefault(name, _DEFAULTS[name])
        return replace(self, **changed)

    @classmethod
    def field_names(cls) -> list[str]:
        """Names of all options."""
        return [field.name for field in fields(cls)]


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(GenerationConfig)}


def _without_effect(strategy: str) -> list[str]:
    """Options that mean nothing to a decode strategy."""
    return [name for name, strategies in _ONLY_WITH.items() if strategy not in strategies]


@cache
def _say_once(problem: str) -> None:
    logger.warning("%s", problem)


def _early_stopping(value: Any) -> EarlyStopping:
    try:
        return checks.boolean("early_stopping", value)
    except TypeError:
        if checks.text(value) == "never":
            return "never"
    raise ValueError(f"early_stopping must be True, False or 'never', got {checks.shown(value)}")


def _biases(value: Any) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias must map token ids to numbers, got {checks.shown(value)}")
    return {
        checks.integer("logit_bias: a token id", token_id, 0): checks.number(
            "logit_bias: a bias", bias, "a finite number", lambda _: True
        )
        for token_id, bias in value.items()
    }


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = checks.iterator(value)
    if ids is None:
        raise TypeError(f"{name} must be a list of token ids, got {checks.shown(value)}")
    found = [checks.integer(f"{name}: a token id", one, 0) for one in islice(ids, _MOST_TOKENS + 1)]
    if len(found) > _MOST_TOKENS:
        raise ValueError(f"{name} may list {_MOST_TOKENS} tokens, and lists more")
    return tuple(found)


def _check_unicode(stop: str) -> None:
    try:
        stop.encode()
    except UnicodeEncodeError:
        problem = "holds a lone surrogate, not valid Unicode, and no text does"
        raise ValueError(f"stop: {checks.shown(stop)} {problem}") from None


def _texts(name: str, value: Any) -> str | tuple[str, ...]:
    """A text, or several; what else may be wrong with them is `Truncator`'s to say."""
    one = checks.text(value)
    if one is not None:
        return one
    several = [checks.text(part) for part in value] if isinstance(value, (list, tuple)) else [None]
    found = tuple(part for part in several if part is not None)
    if len(found) < len(several):
        raise TypeError(f"{name} must be {_EXPECTED[name]}, got {checks.shown(value)}")
    return found


_EXPECTED = {
    "truncation": f"a preset ({', '.join(PRESETS)}), a regex, a list of regexes or None",
    "stop": "a string, a list of strings or None",
}
