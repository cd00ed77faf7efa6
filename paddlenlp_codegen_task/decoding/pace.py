"""How many tokens to draft: as many as pay."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MAX_DRAFT = 15  # tokens; verified together with the one before them
EXPLORE = 24  # steps until a kind of guess that did not pay is tried again; they double
MAX_PATIENCE = 16 * EXPLORE  # what they double to at most: texts change
# The first guesses of a kind show what it costs, which the very first would overstate: how many
# there are, and of how many tokens.
TRIALS, TRIAL = 3, 2
PLAIN = (4, 64)  # steps with guesses until one without shows its time again: at first, and at most


@dataclass
class _Kind:
    """What is known of one kind of guess; optimistic at first, so that it is tried."""

    accepted: float = 0.8  # chance that a token is, if those before it were
    looked_at: int = 0  # tokens that this is known from
    guesses: int = 0  # that were verified
    seconds_a_token: float = math.inf  # to guess one
    idle: int = 0  # steps since the last guess
    patience: int = EXPLORE  # steps until the next one, if it does not seem to pay


@dataclass
class Pace:
    """Decides how many tokens to draft, from what steps have taken and what was accepted.

    The number is the one with the most tokens a second expected; drafting ends where it would slow
    down, whatever the reason: guesses that fail, or a machine to which each row of a step costs.
    """

    plain_seconds: float = 0.0  # of a step of one token; 0 before the first
    # What verifying so many tokens adds to a step, which may well be more than in proportion; and
    # what one of them does on average, for numbers that have not been tried.
    verify_seconds: dict[int, float] = field(default_factory=dict)
    row_seconds: float = math.inf
    guessed: int = 0  # steps with guesses since the last one without
    plain_patience: int = PLAIN[0]  # of them until the next one without
    kinds: dict[str, _Kind] = field(default_factory=dict)
    verified: int = 0  # guesses, since the beginning
    drafted: int = 0  # tokens of them
    accepted: int = 0  # of those

    def limit(self, kind: str, room: int) -> int:
        """How many tokens of this kind to draft, 0 to min(room, MAX_DRAFT)."""
        known = self.kinds.setdefault(kind, _Kind())
        if not self.plain_seconds or self.guessed >= self.plain_patience:
            return 0  # a step without shows what it costs
        if known.guesses < TRIALS:
            return max(min(room, TRIAL), 0)
        best, best_rate = 0, 1 / self.plain_seconds
        expected = chance = 1.0
        for count in range(1, min(room, MAX_DRAFT) + 1):
            chance *= known.accepted
            expected += chance
            verifying = self.verify_seconds.get(count, count * self.row_seconds)
            cost = self.plain_seconds + verifying + count * known.seconds_a_token
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
            for count, known in self.verify_seconds.items():  # a slow step does not count for ever
                self.verify_seconds[count] = _mean(known, count * self.row_seconds, 0.05)
        before = self.plain_seconds or seconds
        # The first steps may be many times slower than all that follow.
        self.plain_seconds = _mean(before, seconds, 0.5 if seconds < before / 2 else 0.1)

    def note_draft(self, kind: str, drafted: int, seconds: float) -> None:
        """Guessing took this long."""
        known = self.kinds.setdefault(kind, _Kind())
        known.seconds_a_token = _cost(known.seconds_a_token, seconds / drafted, known.guesses)

    def note_verified(self, kind: str, drafted: int, accepted: int, seconds: float) -> None:
        """A step has verified a draft: so many of its tokens were accepted."""
        known = self.kinds.setdefault(kind, _Kind())
        for n in range(min(accepted + 1, drafted)):
            known.looked_at += 1
            weight = max(0.05, 1 / (known.looked_at + 4))  # the first ones say the most
            known.accepted = _mean(known.accepted, float(n < accepted), weight)
        if seconds < self.plain_seconds:  # a step without a draft takes no longer: those were slow
            self.plain_seconds = _mean(self.plain_seconds, seconds, 0.5)
        more = max(seconds - self.plain_seconds, 0.0)
        self.row_seconds = _cost(self.row_seconds, more / drafted, self.verified)
        before = self.verify_seconds.get(drafted, more)
        self.verify_seconds[drafted] = _cost(before, more, self.verified)
        known.guesses += 1
        self.guessed, self.verified = self.guessed + 1, self.verified + 1
        self.drafted, self.accepted = self.drafted + drafted, self.accepted + accepted


def _cost(before: float, now: float, guesses: int) -> float:
    """What is known of a cost after one more measurement; of the first ones, the least."""
    return min(before, now) if guesses < TRIALS else _mean(before, now, 0.2)


def _mean(before: float, now: float, weight: float) -> float:
    return before + weight * (now - before)
