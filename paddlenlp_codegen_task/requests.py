"""From options and text to requests, and from their rows to completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.decoding.beam_search import most_beams
from paddlenlp_codegen_task.decoding.healing import Healing, taken_back
from paddlenlp_codegen_task.decoding.request import (
    Batch,
    Beams,
    Drafter,
    FinishReason,
    Parameters,
    Request,
    Row,
)
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.loading import LoadedModel
from paddlenlp_codegen_task.memory import check_batch_size, check_completions, check_prompt_report
from paddlenlp_codegen_task.model.infilling import (
    END_OF_MIDDLE,
    MASK,
    SEPARATOR,
    SUFFIX_FIRST,
    Infilling,
)
from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION, Truncator


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt.

    Attributes:
        text: what follows the prompt, truncated.
        token_ids: the tokens generated, those that truncation cut off included, and with
            `token_healing` those that spell the prompt's end; not one that ended it.
        finish_reason: "stop" (truncation or stop matched, or one of stop_token_ids came), "eos"
            (end of text) or "length" (max_length).
        prompt_tokens: how many tokens the prompt has, as far as it was used, and without those that
            `token_healing` has taken back.
        logprobs: for each of token_ids, with the option `logprobs`: token to log-probability, of
            the token itself (first) and of the likeliest.
        prompt_logprobs: with the option `prompt_logprobs`, the same for each of the prompt's
            tokens as far as it was used; None for the first, before which there is nothing.
        score: with the option `output_scores`, as PaddleNLP counts it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    logprobs: tuple[dict[int, float], ...] | None = None
    prompt_logprobs: tuple[dict[int, float] | None, ...] | None = None
    score: float | None = None


@dataclass(frozen=True)
class Infill:
    """A prompt whose middle is missing; one of the two texts may be empty.

    Attributes:
        prefix: what stands before it.
        suffix: what stands after it.
    """

    prefix: str
    suffix: str


class PromptTooLong(ValueError):
    """A prompt of `tokens` tokens leaves no room for `max_length` more: only `room` fit.

    `context` is how many the model has room for in all.
    """

    def __init__(self, number: int, tokens: int, max_length: int, room: int, context: int) -> None:
        """Say so of the prompt with this number."""
        self.tokens, self.max_length, self.room, self.context = tokens, max_length, room, context
        super().__init__(
            f"prompt {number} has {tokens} tokens, and with max_length {max_length} only {room} "
            f"fit the context of {context}: shorten it, lower max_length, or pass "
            "prompt_overflow='truncate_left'"
        )


class Call:
    """What one call asks for, checked; makes a request of each of its prompts."""

    def __init__(
        self,
        model: LoadedModel,
        config: GenerationConfig,
        batch_size: int,
        drafters: Callable[[], list[Drafter]],
        streamed: bool = False,
        infill: bool = False,
    ) -> None:
        """Check options against a model.

        Args:
            model: what is to run.
            config: the options.
            batch_size: most rows of the call that run at once.
            drafters: makes what guesses a row's tokens.
            streamed: whether text is wanted as soon as it is settled.
            infill: whether its prompts are `Infill`s; the default truncation, which ends what goes
                on from a prompt, is then none.

        Raises:
            ValueError: an option is not possible with this model.
        """
        sizes = model.runtime.config
        self._infilling: Infilling | None = None
        end_ids = model.eos_token_ids
        if infill:
            self._infilling = Infilling.of(model.tokenizer)
            if self._infilling is None:
                raise ValueError(
                    f"suffix: {model.name} does not infill: its tokenizer lacks {MASK} or "
                    f"{SUFFIX_FIRST}, {SEPARATOR} and {END_OF_MIDDLE}, as CodeGen2's has them"
                )
            end_ids = (*end_ids, self._infilling.end)
            if config.truncation == DEFAULT_TRUNCATION:
                config = config.with_options({"truncation": None})
        self.config = config
        self._model = model
        self._context, self._vocab_size = sizes.n_positions, sizes.vocab_size
        self._drafters = drafters
        self._streamed = streamed
        self._parameters = Parameters.of(config, tuple(dict.fromkeys(end_ids)), self._vocab_size)
        self._beams: Beams | None = None
        self.samples = config.best_of or config.num_return_sequences
        if not config.max_length:  # nothing to rank or to search for
            self.samples = config.num_return_sequences
        elif config.decode_strategy == "beam_search":
            ends = self._parameters.ends
            most = most_beams(self._parameters.choices(self._vocab_size), ends)
            if config.num_beams > most:
                share = "half" if len(ends) < 2 else f"1/{len(ends) + 1}"
                raise ValueError(
                    f"num_beams must be at most {share} of the vocabulary, without suppressed "
                    f"tokens, got {config.num_beams}"
                )
            if config.num_beams > 1:  # of one, it is greedy search
                self.samples = config.num_beams
                self._beams = Beams(
                    config.num_return_sequences, config.length_penalty, config.early_stopping
                )
        if config.max_length >= self._context:
            raise ValueError(
                f"max_length must be below the model's context of {self._context} tokens, "
                f"got {config.max_length}"
            )
        check_batch_size(model.runtime.cache, batch_size)
        check_completions(config, self.samples, self._parameters.logprobs, self._vocab_size)
        self.batch = Batch(batch_size)
        self._truncator = Truncator.of(config.truncation, config.stop)

    def request(self, text: Any, number: int) -> Request:
        """Make a request of a prompt, the `number`-th of the call.

        Raises:
            TypeError, ValueError: it is none, or does not fit the model or its memory.
        """
        if self._infilling is not None:
            return self._infill(text, number, self._infilling)
        text = checked_prompt(text, number)
        token_ids = self._fitted(self._encode(text, number), number)
        return self._request(text, token_ids, number)

    def _infill(self, given: Any, number: int, infilling: Infilling) -> Request:
        """Make a request of an `Infill`."""
        given = checked_infill(given, number)
        prefix: Sequence[int]
        suffix: Sequence[int]
        prefix, suffix = (
            self._encode(text, number, allow_special=False) if text else []
            for text in (given.prefix, given.suffix)
        )
        room = self._context - self.config.max_length
        token_ids = infilling.prompt(prefix, suffix, room)
        if token_ids is None and self.config.prompt_overflow == "truncate_left":
            prefix, suffix = infilling.cut(prefix, suffix, room)
            token_ids = infilling.prompt(prefix, suffix, room)
        if token_ids is None:
            tokens = len(prefix) + len(suffix) + infilling.frame
            raise PromptTooLong(number, tokens, self.config.max_length, max(room, 0), self._context)
        # CodeGen2's prompt ends with what nobody has typed.
        typed = len(prefix) if infilling.suffix_first else 0
        return self._request(given.prefix, token_ids, number, typed)

    def request_of_ids(
        self, token_ids: Sequence[int], number: int, most: int | None = None
    ) -> Request:
        """Make a request of a prompt that is tokens already; of the last `most` of them.

        Raises:
            ValueError: one of them is none of the vocabulary, or as `request`.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise ValueError(
                    f"prompt {number} must have tokens from 0 to {self._vocab_size - 1}, "
                    f"got {token_id}"
                )
        if not token_ids:
            raise ValueError(f"prompt {number} must not be empty")
        token_ids = self._fitted(list(token_ids)[-(most or 0) :], number)
        return self._request(self._model.tokenizer.decode(token_ids), token_ids, number)

    def _request(
        self, text: str, prompt_ids: list[int], number: int, typed: int | None = None
    ) -> Request:
        """Make a request of tokens, of which the last `typed` (None: all) are text that goes on."""
        typed_ids = prompt_ids[len(prompt_ids) - typed :] if typed is not None else prompt_ids
        healing = self._healing(typed_ids) if self.config.token_healing else None
        healed = 0
        if healing is not None:
            healed, prompt_ids = len(healing.text), prompt_ids[: -healing.count]
        # Rules see the prompt as it was given: a match does not begin in what is spelled again.
        scanner = self._truncator.scanner(text)  # which reads the prompt once, for all samples
        request = Request(
            prompt_ids,
            self._parameters,
            self.config.max_length,
            self.samples,
            self.batch,
            lambda: StopChecker(self._model.tokenizer, scanner.copy(), healed),
            self._drafters,
            self._vocab_size,
            self._beams,
            self.config.seed,
            self._streamed,
            healing,
        )
        self._check_memory(request, number)
        if self.config.prompt_logprobs is not None:
            tokens = len(prompt_ids)
            check_prompt_report(self.config.prompt_logprobs, tokens, self._vocab_size)
        return request

    def _healing(self, typed_ids: Sequence[int]) -> Healing | None:
        """What is taken back of a text that goes on; None for nothing."""
        tokenizer, bias = self._model.tokenizer, self._parameters.bias
        count = taken_back(typed_ids, tokenizer.token_bytes)
        if not count:
            return None
        text = b"".join(map(tokenizer.token_bytes, typed_ids[-count:]))
        suppressed = None if bias is None else np.isneginf(bias)
        found = Healing(count, text, tokenizer.spelling, tokenizer.token_bytes, suppressed)
        return found if found.possible else None

    def completions(self, request: Request, rows: list[Row]) -> list[Completion]:
        """The completions of a request, from all its rows in their order."""
        if self.config.best_of is not None and self.config.max_length:
            rows = sorted(rows, key=_mean_log_prob, reverse=True)
        wanted = rows[: self.config.num_return_sequences]
        return [self._completion(row, len(request.prompt_ids)) for row in wanted]

    def _encode(self, text: str, number: int, allow_special: bool = True) -> list[int]:
        """Tokens of a text of a prompt."""
        allow_special = allow_special and self.config.allow_special_tokens
        try:
            token_ids = self._model.tokenizer.encode(text, allow_special)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        if not token_ids:
            raise ValueError(f"prompt {number}: the tokenizer knows none of its characters")
        return token_ids

    def _fitted(self, token_ids: list[int], number: int) -> list[int]:
        """Tokens of a prompt, as far as they fit the context beside max_length new ones."""
        room = self._context - self.config.max_length
        if len(token_ids) <= room:
            return token_ids
        if self.config.prompt_overflow == "truncate_left":
            return token_ids[-room:]
        raise PromptTooLong(number, len(token_ids), self.config.max_length, room, self._context)

    def _check_memory(self, request: Request, number: int) -> None:
        """Refuse now what could never run."""
        cache = self._model.runtime.cache
        rows = request.samples if request.beams else 1
        if not cache.fits(rows, request.most_tokens):
            beams = f" in {rows} beams" if rows > 1 else ""
            raise ValueError(
                f"prompt {number} with max_length {request.max_length} comes to "
                f"{request.most_tokens} tokens{beams}, whose keys and values take "
                f"{cache.bytes(rows, request.most_tokens):,} bytes, and kv_cache_bytes allows "
                f"{cache.max_bytes:,}: shorten it, lower max_length, or load with a larger "
                "kv_cache_bytes"
            )

    def _completion(self, row: Row, prompt_tokens: int) -> Completion:
        assert row.finish_reason is not None, "its request is finished"
        token_ids = tuple(row.token_ids)
        logprobs = None
        if self.config.logprobs is not None:
            logprobs = tuple(row.noted())
        prompt_logprobs = None
        if row.request.prompt_log_probs is not None:
            prompt_logprobs = (None, *row.request.prompt_log_probs)
        score = sum(row.scores) / len(row.scores) if self.config.output_scores else None
        return Completion(
            row.stops.text,
            token_ids,
            row.finish_reason,
            prompt_tokens,
            logprobs,
            prompt_logprobs,
            score,
        )


def _mean_log_prob(row: Row) -> float:
    return sum(log_prob for log_prob, _ in row.log_probs) / len(row.log_probs)


def checked_progress(value: Any) -> bool | None:
    """Return the option `progress`, or raise a TypeError."""
    if value is None:
        return None
    try:
        return checks.boolean("progress", value)
    except TypeError:
        message = f"progress must be True, False or None, got {checks.shown(value)}"
    raise TypeError(message)


def checked_prompts(prompts: Any) -> list[Any]:
    """Return one prompt or several as a list, or raise an error that says which is wrong."""
    if checks.text(prompts) is not None or isinstance(prompts, Infill):
        prompts = [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"prompts must be a str or a list of str, got {checks.kind(prompts)}")
    if not prompts:
        raise ValueError("prompts must not be an empty list")
    return list(prompts)


def checked_prompt(text: Any, number: int) -> str:
    """Return the `number`-th prompt of a call, or raise an error that names it."""
    found = checks.text(text)
    if found is None:
        raise TypeError(f"prompt {number} must be a str, got {checks.kind(text)}")
    if not found:
        raise ValueError(f"prompt {number} must not be empty")
    return found


def checked_infill(given: Any, number: int) -> Infill:
    """Return the `number`-th prompt of a call that infills, or raise an error that names it."""
    if not isinstance(given, Infill):
        raise TypeError(f"prompt {number} must be an Infill, got {checks.kind(given)}")
    texts = []
    for name, value in (("prefix", given.prefix), ("suffix", given.suffix)):
        text = checks.text(value)
        if text is None:
            raise TypeError(f"prompt {number}: {name} must be a str, got {checks.kind(value)}")
        texts.append(text)
    if not any(texts):
        raise ValueError(f"prompt {number}: prefix and suffix must not both be empty")
    return Infill(*texts)
