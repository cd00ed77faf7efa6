"""Beam search over one prompt, equal to transformers' `GenerationMixin._beam_search` (4.55).

It knows nothing of runtimes: whoever runs it keeps beam i of the search in slot i of the prompt's
slots, hands the scores of every step to `BeamSearch.step`, and copies slots as that says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlenlp_codegen_task.decoding.request import Context, FinishReason
from paddlenlp_codegen_task.decoding.vocabulary import only
from paddlenlp_codegen_task.generation_config import EarlyStopping
from paddlenlp_codegen_task.runtime.base import Floats

# Of a score: sums of many must stay numbers, so that what may not come is below them all.
_MOST = np.float32(1e34)


@dataclass(frozen=True)
class Hypothesis:
    """A finished beam.

    Attributes:
        token_ids: the new tokens, without one that ended it.
        score: the sum of its tokens' scores, one that ended it included, divided by (how many
            tokens that are) ** length_penalty.
        finish_reason: what the token that ended it says; "length" without one.
        notes: of each token, one that ended it included, if `step` was given any.
    """

    token_ids: tuple[int, ...]
    score: float
    finish_reason: FinishReason
    notes: tuple[Any, ...] = ()


class BeamSearch:
    """The beams of one prompt, all of the same length, and the best that have finished.

    Attributes:
        done: whether `hypotheses` is final and no step may follow.
    """

    def __init__(
        self,
        *,
        num_beams: int,
        num_return_sequences: int,
        length_penalty: float,
        early_stopping: EarlyStopping,
        ends: Mapping[int, FinishReason],
        max_length: int,
    ) -> None:
        """Start with the prompt alone.

        Args:
            num_beams: beams to run, and hypotheses to keep; see `most_beams`.
            num_return_sequences: hypotheses to return, at most num_beams.
            length_penalty: above 0 favours long hypotheses, below 0 short ones.
            early_stopping: with num_beams hypotheses, True ends the search; False ends it if the
                best beam, finished as it is, would not be among them; "never" only if it would not
                be at the length that suits it best either.
            ends: tokens that end a beam, and the reason that each gives.
            max_length: most new tokens, one that ends it included.
        """
        self._num_beams = num_beams
        self._num_return_sequences = num_return_sequences
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._ends = ends
        self._max_length = max_length
        self._length = 0
        self._beams: list[tuple[int, ...]] = [()]
        self._notes: list[tuple[Any, ...]] = [()]  # of each beam
        self._scores = np.zeros(1, np.float32)  # of each beam, the sum of its tokens'
        self._finished: list[Hypothesis] = []  # best first, at most num_beams
        self.done = False

    def step(
        self,
        scores: Floats,
        note: Callable[[int, int], Any] | None = None,
        spelling: Collection[int] = (),
    ) -> tuple[list[int], list[int]]:
        """Give every beam its next token.

        Args:
            scores: [rows, vocab_size], the `processed` scores of the token after each beam; one
                row, the prompt's, at the first step, then num_beams.
            note: what to keep of a token that a row goes on with, for the hypotheses.
            spelling: rows that no token ends, as they spell what was taken back of the prompt.

        Returns:
            parents [num_beams] and tokens [num_beams]: the new beam i is the old beam parents[i]
            and then tokens[i]. A beam that goes on does so in its own row, so that just the rows
            where parents[i] != i have to be copied, from parents[i], in any order. Both are empty
            after max_length tokens.
        """
        with np.errstate(all="ignore"):  # penalties and biases may be as large as float32 allows
            return self._step(scores, note, spelling)

    def _step(
        self, scores: Floats, note: Callable[[int, int], Any] | None, spelling: Collection[int]
    ) -> tuple[list[int], list[int]]:
        self._length += 1
        totals = (self._scores[:, None] + scores).reshape(-1)
        running = []
        # Of each beam no more end than there are such tokens, so that num_beams are left to go on.
        for rank, index in enumerate(_largest(totals, _candidates(self._num_beams, self._ends))):
            parent, token = divmod(index, scores.shape[1])
            ends = token in self._ends and parent not in spelling
            if not ends and self._length < self._max_length:
                # With few tokens allowed, some may have to be beams that are none: -inf is theirs.
                running.append((parent, token, totals[index]))
            elif rank < self._num_beams and totals[index] > -np.inf:
                # An end further down is neither kept nor continued.
                noted = (*self._notes[parent], note(parent, token)) if note else ()
                self._finish(parent, token, totals[index], noted, ends)
        running = running[: self._num_beams]
        running = [running[row] for row in _in_place([parent for parent, _, _ in running])]
        if note:
            self._notes = [(*self._notes[parent], note(parent, t)) for parent, t, _ in running]
        self._beams = [(*self._beams[parent], token) for parent, token, _ in running]
        self._scores = np.array([total for _, _, total in running], np.float32)
        self.done = not running or not self._can_improve()
        return [parent for parent, _, _ in running], [token for _, token, _ in running]

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """The num_return_sequences best, best first; fewer may be there until `done`.

        Fewer are there then, too, if max_length tokens spell the prompt's end in no more ways.
        """
        return self._finished[: self._num_return_sequences]

    def _finish(
        self, parent: int, token: int, total: np.float32, notes: tuple[Any, ...], ends: bool
    ) -> None:
        """Keep a beam that ends with `token`, if it is among the best: `_update_finished_beams`."""
        score = float(self._penalized(total, self._length))
        if ends:
            hypothesis = Hypothesis(self._beams[parent], score, self._ends[token], notes)
        else:
            hypothesis = Hypothesis((*self._beams[parent], token), score, "length", notes)
        self._finished.append(hypothesis)
        self._finished.sort(key=lambda one: -one.score)
        del self._finished[self._num_beams :]

    def _can_improve(self) -> bool:
        """Whether another step could change the hypotheses: `_check_early_stop_heuristic`."""
        if len(self._finished) < self._num_beams:
            return True
        if self._early_stopping is True:
            return False
        never = self._early_stopping == "never" and self._length_penalty > 0
        length = self._max_length if never else self._length
        return bool(self._penalized(self._scores.max(), length) > self._finished[-1].score)

    def _penalized(self, total: np.float32, length: int) -> np.float32:
        return total / np.float32(length**self._length_penalty)


def most_beams(choices: int, ends: Mapping[int, FinishReason]) -> int:
    """How many beams there may be at most, if so many tokens may be chosen."""
    return choices // _candidates(1, ends)


def _candidates(num_beams: int, ends: Mapping[int, FinishReason]) -> int:
    """How many of the best next tokens are looked at: transformers' `beams_to_keep`."""
    return max(2, 1 + len(ends)) * num_beams


def processed(logits: Floats, contexts: Rows[Context]) -> Floats:
    """Scores of the next tokens: log_softmax, then penalties, biases and min_length.

    The penalties are on log-probabilities and not, as in sampling, on logits. None of these is
    above 0, so that the repetition penalty always multiplies.

    Args:
        logits: [rows, vocab_size] float32.
        contexts: of each row.

    Returns:
        [rows, vocab_size] float32.
    """
    with np.errstate(all="ignore"):
        below = logits - logits.max(axis=1, keepdims=True)
        scores: Floats = below - np.log(np.exp(below).sum(axis=1, keepdims=True))
        for row, one in zip(scores, contexts, strict=True):
            _penalize(row, one)
    return scores


def _penalize(scores: Floats, context: Context) -> None:
    """Change a row's scores [vocab_size] as its parameters say, in place."""
    parameters = context.parameters
    if parameters.repetition_penalty != 1:
        penalty = np.float32(parameters.repetition_penalty)
        np.multiply(scores, penalty, out=scores, where=context.seen)
    if context.counts is not None:
        scores -= (parameters.frequency_penalty * context.counts).astype(np.float32)
        scores[context.counts > 0] -= np.float32(parameters.presence_penalty)
    if parameters.bias is not None:
        scores += parameters.bias
    if parameters.repetition_penalty != 1 or parameters.bias is not None:
        np.clip(scores, -_MOST, _MOST, out=scores)
    if parameters.bias is not None:
        scores[parameters.bias == -np.inf] = -np.inf
    if context.allowed is None:
        parameters.hold_back(scores, context.length)
    else:
        only(scores, context.allowed)


def _largest(values: Floats, count: int) -> list[int]:
    """Indices of the largest values, largest first, and of equal ones the first."""
    least = np.partition(values, -count)[-count]
    indices = np.flatnonzero(values >= least)
    order = np.argsort(-values[indices], kind="stable")[:count]
    return [int(index) for index in indices[order]]


def _in_place(parents: Rows[int]) -> list[int]:
    """Order new rows so that as many as possible follow their parent in its own row.

    Args:
        parents: the old row that each new one continues; there are no more old rows than new ones.

    Returns:
        Which new row to put into each place: its parent's own, if it is the parent's first. The
        others get the places whose old row nothing continues, which are free to be overwritten.
    """
    first: dict[int, int] = {}
    for row, parent in enumerate(parents):
        first.setdefault(parent, row)
    others = iter(row for row, parent in enumerate(parents) if first[parent] != row)
    return [first[place] if place in first else next(others) for place in range(len(parents))]
