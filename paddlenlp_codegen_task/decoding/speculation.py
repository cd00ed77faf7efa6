"""Speculative decoding: tokens guessed cheaply, verified by one step of the model.

A guess is only ever compared with what would have been chosen anyway, position by position and with
the draws that would have been used. So the text is the one without speculation, under any options:
what was guessed decides nothing but how many tokens one step yields.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence as TokenIds

from paddlenlp_codegen_task.decoding.pace import Pace
from paddlenlp_codegen_task.decoding.prefix_cache import common
from paddlenlp_codegen_task.decoding.request import Drafter, Row
from paddlenlp_codegen_task.decoding.sampling import NOT_NUMBERS, choose, contexts_after
from paddlenlp_codegen_task.runtime.base import Runtime, decode, extend

logger = logging.getLogger(__name__)

NGRAMS = (6, 4, 2)  # lengths of the matches that prompt lookup looks for, in this order


class PromptLookup:
    """Guesses that what followed the last few tokens before follows them again.

    Looks for the longest of NGRAMS that occurs earlier in the prompt or the completion, and takes
    what came after its latest occurrence (https://github.com/apoorvumang/prompt-lookup-decoding);
    then the same again, the guess included, so that a loop of any period goes on.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram to what followed it the last time

    def kind(self, row: Row) -> str:
        """See Drafter."""
        prompt_ids = row.request.prompt_ids
        if not self._tokens:  # only now: a row that never runs alone needs no index
            self._extend(prompt_ids)
        self._extend(row.token_ids[len(self._tokens) - len(prompt_ids) :])
        n, token_id = self._match(self._tokens[-NGRAMS[0] :])
        return "" if token_id is None else f"{n}-gram"

    def draft(self, row: Row, limit: int) -> list[int]:
        """See Drafter."""
        recent, drafted = self._tokens[-NGRAMS[0] :], list[int]()
        while len(drafted) < limit:
            _, token_id = self._match(recent)
            if token_id is None:
                break
            drafted.append(token_id)
            recent.append(token_id)
        return drafted

    def _match(self, recent: list[int]) -> tuple[int, int | None]:
        """The longest n-gram at the end of `recent` that is known, and what followed it."""
        for n in NGRAMS:
            token_id = self._next.get(tuple(recent[-n:]))
            if token_id is not None and n <= len(recent):
                return n, token_id
        return 0, None

    def _extend(self, token_ids: TokenIds[int]) -> None:
        """Append tokens, and note what follows the n-grams that end before each."""
        for token_id in token_ids:
            end = len(self._tokens)
            for n in NGRAMS:
                if n <= end:
                    self._next[tuple(self._tokens[end - n :])] = token_id
            self._tokens.append(token_id)


class DraftModel:
    """Guesses what a smaller model with the same vocabulary would generate.

    It samples with the draws that the row itself will take: where the two models agree on the
    probabilities, they then agree on the token too.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._held: list[int] = []  # tokens in the runtime's slot

    def kind(self, row: Row) -> str:
        """See Drafter."""
        room = self._runtime.config.n_positions - len(row.request.prompt_ids) - len(row.token_ids)
        return "draft model" if room > 0 else ""

    def draft(self, row: Row, limit: int) -> list[int]:
        """See Drafter.

        Raises:
            FloatingPointError: the smaller model's logits are not numbers.
        """
        tokens = row.history
        limit = min(limit, self._runtime.config.n_positions - len(tokens))
        kept = common(self._held, tokens[:-1])
        self._held = []  # if a step fails, what the slot holds may be anything
        if not kept:
            self._runtime.cache.reset()
        self._runtime.cache.truncate(0, kept)
        # Past its prompt a row brings a token or two.
        generated = kept >= len(row.request.prompt_ids)
        output = extend(self._runtime, 0, [tokens[kept:]], generated)
        drafted: list[int] = []
        while True:
            *_, context = contexts_after(row, drafted)
            [token_id] = choose(output, [context]).tokens
            if token_id is None:
                raise FloatingPointError(NOT_NUMBERS)
            drafted.append(token_id)
            if len(drafted) == limit or token_id in row.request.parameters.ends:
                break
            output = decode(self._runtime, [token_id])
        self._held = [*tokens, *drafted[:-1]]
        return drafted


class Speculation:
    """Asks a row's drafters in turn, for as many tokens as pay; one that fails is dropped.

    Attributes:
        pace: how many tokens pay.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._failed: list[Drafter] = []

    def draft(self, row: Row) -> tuple[str, list[int]]:
        """What kind of guess is made, and what a row that runs alone may go on with."""
        room = row.request.max_length - len(row.token_ids) - 1
        for drafter in list(row.drafters):
            if drafter in self._failed:
                row.drafters.remove(drafter)
                continue
            start = time.perf_counter()
            try:
                kind = drafter.kind(row)
                limit = self.pace.limit(kind, room) if kind else 0
                draft = drafter.draft(row, limit)[:limit] if limit else []
            except Exception as error:
                logger.warning("speculation goes on without %s: %r", type(drafter).__name__, error)
                self._failed.append(drafter)
                row.drafters.remove(drafter)
                continue
            if draft:
                self.pace.note_draft(kind, len(draft), time.perf_counter() - start)
                return kind, draft
        return "", []
