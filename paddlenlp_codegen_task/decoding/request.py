"""What is asked for, and how far it is: records that know of no scheduler, sampler or runtime."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.decoding.healing import Healing
from paddlenlp_codegen_task.generation_config import EarlyStopping, GenerationConfig
from paddlenlp_codegen_task.model.spelling import Ids

FinishReason = Literal["stop", "eos", "length"]

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class Stops(Protocol):
    """Follows a text token by token; `stopping.StopChecker` is one."""

    def feed(self, token_id: int) -> bool:
        """Append a token; return whether no further token can change `text`."""

    @property
    def text(self) -> str:
        """The truncated text of all tokens fed."""

    @property
    def settled(self) -> str:
        """What `text` begins with, whatever tokens follow."""


class Drafter(Protocol):
    """Guesses the next tokens of a row, cheaply; `speculation` has two."""

    def kind(self, row: Row) -> str:
        """What the next guess would be made from, "" if there is none to make."""

    def draft(self, row: Row, limit: int) -> list[int]:
        """Return at most `limit` tokens, at least one of which was asked for."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """How the tokens of a request are chosen; fields as in GenerationConfig where they have a name.

    Attributes:
        top_k: 1 for greedy search, the size of the vocabulary for all tokens.
        greedy: nothing is drawn.
        eos_from: how many new tokens come before an end-of-text token may.
        eos_token_ids: tokens that end a text; none is possible.
        ends: tokens that end a row, end-of-text tokens and `stop_token_ids`, to the reason that
            this gives.
        held_from: [vocab_size], how many new tokens come before each token may; None if nothing
            is held back but the first of `eos_token_ids`, which `eos_from` says all of.
        bias: [vocab_size], added to the logits: -inf for tokens that may not come; None for none.
        bias_raises: whether some of it is above 0.
        logprobs: so many of the likeliest tokens are reported; None for no report.
        prompt_logprobs: the same of the prompt's tokens.
        scores: whether PaddleNLP's score of each token is reported.
        columns: the numbers among these, in the order of `COLUMNS`.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    greedy: bool
    eos_from: int
    eos_token_ids: tuple[int, ...]
    ends: Mapping[int, FinishReason]
    held_from: Counts | None
    bias: npt.NDArray[np.float32] | None
    bias_raises: bool
    logprobs: int | None
    prompt_logprobs: int | None
    scores: bool
    columns: npt.NDArray[np.float64]

    @classmethod
    def of(
        cls, config: GenerationConfig, eos_token_ids: Sequence[int], vocab_size: int
    ) -> Parameters:
        """Those of a configuration, for a model with this vocabulary.

        Args:
            config: the options.
            eos_token_ids: tokens that end a text; none is possible.
            vocab_size: tokens that there are.

        Raises:
            ValueError: an option names a token that the vocabulary does not have.
        """
        greedy = config.decode_strategy != "sampling"
        numbers = {
            "temperature": 1.0 if greedy else config.temperature,
            "top_k": 1 if greedy else min(config.top_k or vocab_size, vocab_size),
            "top_p": 1.0 if greedy else config.top_p,
            "min_p": 0.0 if greedy else config.min_p,
            "repetition_penalty": min(max(config.repetition_penalty, 1 / _HUGE), _HUGE),
            "presence_penalty": config.presence_penalty,
            "frequency_penalty": config.frequency_penalty,
            "eos_from": config.max_length if config.ignore_eos else config.min_length,
        }
        _check_ids(config, vocab_size)
        stop_token_ids = tuple(config.stop_token_ids or ())
        ends: dict[int, FinishReason] = dict.fromkeys(stop_token_ids, "stop")
        ends |= dict.fromkeys(eos_token_ids, "eos")
        held_from = np.zeros(vocab_size, np.int32)
        held_from[list(stop_token_ids)] = min(config.min_length, _LONGEST)
        held_from[list(eos_token_ids)] = min(int(numbers["eos_from"]), _LONGEST)
        several = np.flatnonzero(held_from).tolist() not in ([], list(eos_token_ids[:1]))
        bias = _bias(config, vocab_size)
        _check_choice(bias, held_from)
        ranked = 0 if config.best_of is not None else None  # by log-probabilities
        return cls(
            **numbers,  # type: ignore[arg-type]  # integers where the fields are
            greedy=greedy,
            eos_token_ids=tuple(eos_token_ids),
            ends=ends,
            held_from=held_from if several else None,
            bias=bias,
            bias_raises=bias is not None and bool((bias > 0).any()),
            logprobs=config.logprobs if config.logprobs is not None else ranked,
            prompt_logprobs=config.prompt_logprobs,
            scores=config.output_scores,
            columns=np.array([numbers[name] for name in COLUMNS], np.float64),
        )

    def choices(self, vocab_size: int) -> int:
        """How many tokens of the vocabulary may be chosen."""
        return vocab_size if self.bias is None else int((self.bias > -np.inf).sum())

    def hold_back(self, values: Floats, length: int) -> None:
        """Have tokens not come that may not be the next after `length` new ones.

        Args:
            values: [vocab_size], their logits or scores; -inf is put into them.
            length: how many new tokens there are.
        """
        if self.held_from is not None:
            values[self.held_from > length] = -np.inf
        elif length < self.eos_from:
            values[list(self.eos_token_ids)] = -np.inf

    @property
    def counts(self) -> bool:
        """Whether how often a token has come matters."""
        return bool(self.presence_penalty or self.frequency_penalty)


COLUMNS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "eos_from",
)


# Beyond this, a logit might be infinite in float32, and its difference from another no number.
_HUGE = 1e37
_LONGEST = 2**31 - 1  # that `held_from` holds


def _check_ids(config: GenerationConfig, vocab_size: int) -> None:
    for name in ("logit_bias", "suppress_tokens", "stop_token_ids"):
        for token_id in getattr(config, name) or ():
            if token_id >= vocab_size:
                raise ValueError(
                    f"{name}: the vocabulary has {vocab_size} tokens, there is no {token_id}"
                )


def _bias(config: GenerationConfig, vocab_size: int) -> npt.NDArray[np.float32] | None:
    if not config.logit_bias and not config.suppress_tokens:
        return None
    bias = np.zeros(vocab_size, np.float32)
    for token_id, value in (config.logit_bias or {}).items():
        bias[token_id] = min(max(value, -_HUGE), _HUGE)
    bias[list(config.suppress_tokens or ())] = -np.inf
    return bias


def _check_choice(bias: npt.NDArray[np.float32] | None, held_from: Counts) -> None:
    """Refuse what leaves no token to choose, at first or later."""
    free = held_from == 0
    if not free.any():
        raise ValueError("stop_token_ids: with min_length they leave no token to choose")
    if bias is not None and np.isneginf(bias[free]).all():
        raise ValueError("suppress_tokens: leaves no token to choose")


class Context(NamedTuple):
    """What a token is chosen by, beside the logits.

    Attributes:
        parameters: how.
        seen: [vocab_size], the tokens before it.
        counts: [vocab_size], how often each was generated, if the parameters ask for that.
        length: how many new tokens are before it.
        draw: uniform in [0, 1).
        allowed: the tokens that may come, in order, while what was taken back of the prompt is
            spelled again; None for all. Nothing is held back then: no end of text is spelled.
    """

    parameters: Parameters
    seen: Bools
    counts: Counts | None
    length: int
    draw: float
    allowed: Ids | None = None


@dataclass(frozen=True)
class Beams:
    """How the rows of a beam search, the request's `samples`, become hypotheses."""

    num_return_sequences: int
    length_penalty: float
    early_stopping: EarlyStopping


@dataclass(eq=False)
class Batch:
    """The requests of one call: at most `limit` rows of them run at once."""

    limit: int


@dataclass(eq=False)
class Request:
    """A prompt, and how it is to be completed.

    Attributes:
        prompt_ids: its tokens, at least one, without those that were taken back.
        parameters: how tokens are chosen.
        max_length: most new tokens of a row; 0 to run the prompt alone.
        samples: rows to generate, independent of one another; with `beams` they are the beams.
        batch: the call that it belongs to.
        stops: makes what follows the text of a row, and says when it is decided.
        drafters: makes what guesses the tokens of a row that runs alone, in order of preference.
        vocab_size: tokens that there are.
        beams: with beam search.
        seed: of the random numbers, each row's own; None for new ones.
        streamed: whether text is wanted as soon as it is settled.
        healing: what was taken back of the prompt's end; None for nothing.
        prompt_log_probs: if they were asked for, once the prompt has run: for each of its tokens
            from the second on, token to log-probability, of the token itself (first) and of the
            likeliest.
    """

    prompt_ids: Sequence[int]
    parameters: Parameters
    max_length: int
    samples: int
    batch: Batch
    stops: Callable[[], Stops]
    drafters: Callable[[], list[Drafter]]
    vocab_size: int
    beams: Beams | None = None
    seed: int | None = None
    streamed: bool = False
    healing: Healing | None = None
    prompt_log_probs: list[dict[int, float]] | None = None

    @property
    def most_tokens(self) -> int:
        """Most tokens that a row keeps keys and values of: not of the last new one."""
        return len(self.prompt_ids) + max(self.max_length - 1, 0)

    @property
    def scores_prompt(self) -> bool:
        """Whether its prompt's log-probabilities are wanted, and not there yet."""
        return self.parameters.prompt_logprobs is not None and self.prompt_log_probs is None


class Draws:
    """Random numbers of one row, uniform in [0, 1); a seed repeats them, whatever else runs."""

    def __init__(self, seed: int | None, sample: int) -> None:
        self._generator = np.random.default_rng(None if seed is None else [seed, sample])
        self._ahead: deque[float] = deque()  # drawn several at once, which is much faster

    def next(self) -> float:
        """Take the next one."""
        if not self._ahead:
            self._ahead.extend(self._generator.random(16).tolist())
        return self._ahead.popleft()

    def peek(self, count: int) -> list[float]:
        """Those that the next `count` calls of `next` will give."""
        while len(self._ahead) < count:
            self._ahead.extend(self._generator.random(16).tolist())
        return list(islice(self._ahead, count))


@dataclass(eq=False)
class Row:
    """One sequence being generated.

    Attributes:
        request: what it belongs to.
        index: tells it from the request's other rows.
        stops: follows its text.
        draws: its random numbers.
        seen: [vocab_size], whether a token occurs in the prompt or the completion.
        counts: [vocab_size], how often a token occurs in the completion, if that matters.
        drafters: guess its next tokens when it runs alone.
        token_ids: the new tokens, without one that ended it.
        log_probs: of each token chosen, if they were asked for, one that ended it included: what
            the model gave it, and the likeliest tokens with theirs.
        scores: of each token chosen, if they were asked for: its log-probability as PaddleNLP
            counts it.
        finish_reason: "stop" (truncation matched, or a stop token came), "eos" or "length"; None
            while it runs.
        end_token_id: the token that ended it, if one did.
        age: rows that started later have more.
        shown: how many characters of its text have been handed out.
        told: how many of its tokens have.
        begun: when it started, by time.monotonic().
        first_token: when it had its first token; 0.0 before.
        last_token: when it had its latest one.
        cached_tokens: how many of the prompt's came from the prefix cache.
    """

    request: Request
    index: int
    stops: Stops
    draws: Draws
    seen: Bools
    counts: Counts | None
    drafters: list[Drafter]
    age: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[tuple[float, dict[int, float]]] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    end_token_id: int | None = None
    shown: int = 0
    told: int = 0
    begun: float = field(default_factory=time.monotonic)
    first_token: float = 0.0
    last_token: float = 0.0
    cached_tokens: int = 0

    @property
    def history(self) -> list[int]:
        """The prompt and the new tokens."""
        return [*self.request.prompt_ids, *self.token_ids]

    def allowed(self, draft: Sequence[int] = ()) -> Ids | None:
        """The only tokens that may come after a draft: see Context."""
        healing = self.request.healing
        if healing is None or healing.ends_before(len(self.token_ids)):
            return None
        return healing.allowed([*self.token_ids, *draft])

    def noted(self, first: int = 0) -> list[dict[int, float]]:
        """Of token_ids from `first` on, if asked for: token to log-probability, its own first."""
        # A token that ended it is only among the log-probabilities.
        pairs = zip(self.token_ids[first:], self.log_probs[first:], strict=False)
        return [{token_id: own, **top} for token_id, (own, top) in pairs]

    def release(self) -> None:
        """Give up what only a running row needs: a call may have a million of them."""
        self.seen = np.zeros(0, bool)
        self.counts = None
        self.drafters = []


def new_row(request: Request, index: int, age: int) -> Row:
    """The `index`-th row of a request, before its first token."""
    seen = np.zeros(request.vocab_size, bool)
    seen[np.asarray(request.prompt_ids)] = True
    return Row(
        request,
        index,
        request.stops(),
        Draws(request.seed, index),
        seen,
        np.zeros(request.vocab_size, np.int32) if request.parameters.counts else None,
        [] if request.beams else request.drafters(),
        age,
    )
