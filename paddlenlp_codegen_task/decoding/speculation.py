"""Speculative decoding: tokens guessed cheaply, verified by one step of the model.

A guess is only ever compared with what the sequence's own sampler chooses, position by position and
with the draws it would have used anyway. So the text is the one without speculation, under any
options: what was guessed decides nothing but how many tokens one step yields.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field, replace
from typing import Protocol

from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.sequence import Sequence
from paddlenlp_codegen_task.runtime.base import Runtime, decode, extend

MAX_DRAFT = 15  # tokens; verified together with the one before them
NGRAMS = (6, 4, 2)  # lengths of the matches that prompt lookup looks for, in this order
EXPLORE = 24  # steps until a kind of guess that did not pay is tried again; they double
MAX_PATIENCE = 16 * EXPLORE  # what they double to at most: texts change
PLAIN = (4, 64)  # steps with guesses until one without shows its time again: at first, and at most


class Drafter(Protocol):
    """Guesses the next tokens of a sequence."""

    def draft(self, sequence: Sequence, pace: Pace, room: int) -> tuple[str, list[int]]:
        """Return what kind of guess it is and at most `room` tokens; none if that does not pay."""


@dataclass
class _Kind:
    """What is known of one kind of guess; optimistic at first, so that it is tried."""

    accepted: float = 0.8  # chance that a token is, if those before it were
    seconds_a_token: float = 0.0  # to guess one
    idle: int = 0  # steps since the last guess
    patience: int = EXPLORE  # steps until the next one, if it does not seem to pay


@dataclass
class Pace:
    """Decides how many tokens to draft, from what steps have taken and what was accepted.

    The number is the one with the most tokens a second expected; drafting ends where it would slow
    down, whatever the reason: guesses that fail, or a machine to which each row of a step costs.
    """

    plain_seconds: float = 0.0  # of a step of one token; 0 before the first
    row_seconds: float = 0.0  # that each token more adds to a step
    guessed: int = 0  # steps with guesses since the last one without
    plain_patience: int = PLAIN[0]  # of them until the next one without
    kinds: dict[str, _Kind] = field(default_factory=dict)

    def length(self, kind: str, room: int) -> int:
        """How many tokens of this kind to draft, 0 to min(room, MAX_DRAFT)."""
        known = self.kinds.setdefault(kind, _Kind())
        if not self.plain_seconds or self.guessed >= self.plain_patience:
            return 0  # a step without shows what it costs
        best, best_rate = 0, 1 / self.plain_seconds
        expected = chance = 1.0
        for count in range(1, min(room, MAX_DRAFT) + 1):
            chance *= known.accepted
            expected += chance
            cost = self.plain_seconds + count * (self.row_seconds + known.seconds_a_token)
            if expected / cost > best_rate:
                best, best_rate = count, expected / cost
        known.idle += 1
        if best:
            known.idle, known.patience = 0, EXPLORE
        elif known.idle > known.patience and room > 0:
            best, known.idle, known.patience = 1, 0, min(2 * known.patience, MAX_PATIENCE)
        return best

    def note_plain(self, seconds: float) -> None:
        """A step of one token took this long."""
        if self.guessed:
            self.guessed, self.plain_patience = 0, min(2 * self.plain_patience, PLAIN[1])
        before = self.plain_seconds or seconds
        # The first steps may be many times slower than all that follow.
        self.plain_seconds = _mean(before, seconds, 0.5 if seconds < before / 2 else 0.1)

    def note_draft(self, kind: str, drafted: int, seconds: float) -> None:
        """Guessing took this long."""
        known = self.kinds.setdefault(kind, _Kind())
        known.seconds_a_token = _mean(known.seconds_a_token, seconds / drafted, 0.2)

    def note_verified(self, kind: str, drafted: int, accepted: int, seconds: float) -> None:
        """A step has verified a draft: so many of its tokens were accepted."""
        known = self.kinds.setdefault(kind, _Kind())
        for n in range(min(accepted + 1, drafted)):
            known.accepted = _mean(known.accepted, float(n < accepted), 0.05)
        self.guessed += 1
        row = max(seconds - self.plain_seconds, 0.0) / drafted
        self.row_seconds = _mean(self.row_seconds, row, 0.1)


def _mean(before: float, now: float, weight: float) -> float:
    return before + weight * (now - before)


class PromptLookup:
    """Guesses that what followed the last few tokens before follows them again.

    Looks for the longest of NGRAMS that occurs earlier in the prompt or the completion, and takes
    what came after its latest occurrence (https://github.com/apoorvumang/prompt-lookup-decoding);
    then the same again, the guess included, so that a loop of any period goes on.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # n-gram to what followed it the last time

    def draft(self, sequence: Sequence, pace: Pace, room: int) -> tuple[str, list[int]]:
        """See Drafter."""
        if not self._tokens:  # only now: a sequence that never runs alone needs no index
            self._extend(sequence.prompt_ids)
        self._extend(sequence.token_ids[len(self._tokens) - len(sequence.prompt_ids) :])
        recent = self._tokens[-NGRAMS[0] :]
        n, token_id = self._match(recent)
        if token_id is None:
            return "", []
        kind, drafted = f"{n}-gram", []
        for _ in range(pace.length(kind, room)):
            drafted.append(token_id)
            recent.append(token_id)
            _, token_id = self._match(recent)
            if token_id is None:
                break
        return kind, drafted

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

    It samples with a copy of the sequence's own source of randomness: where the two models agree
    on the probabilities, they then agree on the token too.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._held: list[int] = []  # tokens in the runtime's slot

    def draft(self, sequence: Sequence, pace: Pace, room: int) -> tuple[str, list[int]]:
        """See Drafter."""
        kind = "draft model"
        tokens = [*sequence.prompt_ids, *sequence.token_ids]
        room = min(room, self._runtime.config.n_positions - len(tokens))
        count = pace.length(kind, room) if room > 0 else 0
        if not count:
            return kind, []
        kept = _common(self._held, tokens[:-1])
        self._held = []  # if a step fails, what the slot holds may be anything
        if not kept:
            self._runtime.reset(1)
        self._runtime.cache.lengths[0] = kept
        shadow = replace(
            sequence,
            generator=copy.deepcopy(sequence.generator),
            drawn=list(sequence.drawn),
            seen=sequence.seen.copy(),
            token_ids=list(sequence.token_ids),
            log_probs=[],
            scores=[],
        )
        assert isinstance(sequence.sampler, Sampler), "beams are not drafted"
        output = extend(self._runtime, 0, [tokens[kept:]])
        drafted: list[int] = []
        while True:
            [token_id] = sequence.sampler.choose(output, [shadow])
            drafted.append(token_id)
            if len(drafted) == count or token_id == sequence.eos_token_id:
                break
            shadow.token_ids.append(token_id)
            shadow.seen[token_id] = True
            output = decode(self._runtime, [token_id])
        self._held = [*tokens, *drafted[:-1]]
        return kind, drafted


class FirstOf:
    """Takes the guess of the first drafter that makes one."""

    def __init__(self, *drafters: Drafter) -> None:
        self._drafters = drafters

    def draft(self, sequence: Sequence, pace: Pace, room: int) -> tuple[str, list[int]]:
        """See Drafter."""
        for drafter in self._drafters:
            kind, tokens = drafter.draft(sequence, pace, room)
            if tokens:
                return kind, tokens
        return "", []


def _common(one: TokenIds[int], other: TokenIds[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for n, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return n
    return min(len(one), len(other))
