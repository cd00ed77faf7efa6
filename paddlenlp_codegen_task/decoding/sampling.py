"""Choosing the next token of every row of a step.

A step hands back the largest logits of each row, its candidates, and that is nearly always enough:
a repetition penalty of at least 1 only lowers logits, so a token that is not a candidate stays at
or below the smallest candidate as it was. A choice among tokens above that bound is the choice the
whole row would give; where the bound does not settle it, the whole row is fetched.

Order as in PaddleNLP's generation: min_length, repetition penalty, temperature, top_k, top_p; then
min_p, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.decoding.sequence import Sequence
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.runtime.base import Floats, Ids, StepOutput

NOT_NUMBERS = (
    "the model's logits are not numbers: its weights are broken, or overflow float16 (then use "
    "precision='fp32')"
)

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Context:
    """What a row's token is chosen by, beside the logits.

    Attributes:
        seen: [vocab_size], the tokens before it.
        length: how many new tokens are before it.
        draw: uniform in [0, 1).
    """

    seen: Bools
    length: int
    draw: float


class Sampler:
    """Chooses tokens by one configuration, for any number of sequences at once."""

    def __init__(self, config: GenerationConfig, eos_token_id: int, vocab_size: int) -> None:
        self._config = config
        self._eos_token_id = eos_token_id
        self._vocab_size = vocab_size
        self._notes = config.output_scores or (config.logprobs, config.best_of) != (None, None)
        self._greedy = config.decode_strategy != "sampling"
        self._top_k = 1 if self._greedy else min(config.top_k or vocab_size, vocab_size)
        self._top_p = 1.0 if self._greedy else config.top_p
        self._min_p = 0.0 if self._greedy else config.min_p

    def advance(self, output: StepOutput, sequences: Rows[Sequence]) -> Rows[tuple[int, int]]:
        """Give each sequence its next token: see `sequence.Advancer`."""
        for sequence, token_id in zip(sequences, self.choose(output, sequences), strict=True):
            sequence.append(token_id)
        return ()

    def choose(self, output: StepOutput, sequences: Rows[Sequence]) -> list[int]:
        """Return the next token of each sequence; row i of `output` belongs to sequences[i].

        Notes in the sequences what the tokens' probabilities are, if that is asked for.
        """
        # One draw a token from the sequence's own generator: a seed repeats in any batch.
        contexts = [
            _Context(one.seen, len(one.token_ids), 0.0 if self._greedy else one.draw())
            for one in sequences
        ]
        tokens = self._choose(output, contexts)
        if self._notes:
            self._note(output, contexts, sequences, tokens)
        return tokens

    def verify(self, output: StepOutput, sequence: Sequence, draft: Rows[int]) -> int:
        """Give a sequence the tokens of a draft that prove right, and the one after them.

        All rows are chosen from at once, each as if the draft were right up to it. Whatever comes
        after a wrong token is not used, and its draws are left for the tokens that take its place.

        Args:
            output: row i follows `draft[:i]`; one row more than the draft has tokens.
            sequence: takes the tokens, until it is finished.
            draft: guesses of its next tokens.

        Returns:
            How many tokens of the draft the sequence has gone on from.
        """
        # What only a wrong guess has led to must not be an error: logits may overflow float16.
        broken = np.flatnonzero(np.isnan(output.candidates[1:]).any(axis=1))
        if len(broken):
            draft = draft[: broken[0]]
            output = output.take(range(len(draft) + 1))
        rows = len(draft) + 1
        draws = [0.0] * rows if self._greedy else sequence.next_draws(rows)
        seen, contexts = sequence.seen, []
        for n, draw in enumerate(draws):
            seen = seen.copy()
            if n:
                seen[draft[n - 1]] = True
            contexts.append(_Context(seen, len(sequence.token_ids) + n, draw))
        tokens = self._choose(output, contexts)
        count = 0
        while True:
            sequence.append(tokens[count])
            if not self._greedy:
                sequence.draw()
            if sequence.finish_reason or count == len(draft) or tokens[count] != draft[count]:
                break
            count += 1
        if self._notes:
            used = count + 1
            self._note(output.take(range(used)), contexts[:used], [sequence] * used, tokens[:used])
        return count

    def _choose(self, output: StepOutput, contexts: Rows[_Context]) -> list[int]:
        if np.isnan(output.candidates).any():
            raise FloatingPointError(NOT_NUMBERS)
        draws = np.array([context.draw for context in contexts])
        if self._top_k == self._vocab_size and self._top_p == 1 and self._min_p == 0:
            return self._from_all(self._whole(output, contexts), draws)

        bound = output.candidates[:, -1]
        if output.candidates.shape[1] == self._vocab_size:
            bound = np.full_like(bound, -np.inf)
        elif self._config.repetition_penalty < 1:
            bound = np.full_like(bound, np.inf)
        # top_p counts probabilities over the whole vocabulary, also below top_k, as PaddleNLP does.
        whole = self._whole(output, contexts) if self._top_p < 1 else None
        totals = None if whole is None else self._totals(whole)

        seen = [
            context.seen[ids] for context, ids in zip(contexts, output.candidate_ids, strict=True)
        ]
        logits = self._process(output.candidates, output.candidate_ids, seen, contexts)
        tokens, settled = self._pick(logits, output.candidate_ids, bound, totals, draws)
        if not settled.all():
            rows = np.flatnonzero(~settled)
            whole = self._whole(output, contexts) if whole is None else whole
            all_ids = np.broadcast_to(np.arange(self._vocab_size), (len(rows), self._vocab_size))
            nothing = np.full(len(rows), -np.inf, np.float32)
            some = None if totals is None else totals[rows]
            tokens[rows], _ = self._pick(whole[rows], all_ids, nothing, some, draws[rows])
        return [int(token) for token in tokens]

    def _note(
        self,
        output: StepOutput,
        contexts: Rows[_Context],
        sequences: Rows[Sequence],
        tokens: Rows[int],
    ) -> None:
        """Note what the tokens' probabilities are, as far as that is asked for."""
        if self._config.logprobs is not None or self._config.best_of is not None:
            self._note_log_probs(output, sequences, tokens)
        if self._config.output_scores:
            scores = _log_softmax(self._whole(output, contexts))
            for row, (sequence, token_id) in enumerate(zip(sequences, tokens, strict=True)):
                sequence.scores.append(float(scores[row, token_id]))

    def _note_log_probs(
        self, output: StepOutput, sequences: Rows[Sequence], tokens: Rows[int]
    ) -> None:
        """What the model gives the tokens and the likeliest ones, before any option changes it."""
        log_probs = _log_softmax(output.logits())
        count = min(self._config.logprobs or 0, self._vocab_size)
        if count <= output.candidate_ids.shape[1]:  # in order already; else the whole row is sorted
            best = output.candidate_ids[:, :count]
        else:
            best = np.argsort(-log_probs, axis=1, kind="stable")[:, :count]
        for row, (sequence, token_id) in enumerate(zip(sequences, tokens, strict=True)):
            top = {int(one): float(log_probs[row, one]) for one in best[row]}
            sequence.log_probs.append((float(log_probs[row, token_id]), top))

    def _whole(self, output: StepOutput, contexts: Rows[_Context]) -> Floats:
        """All logits of every row, processed, [rows, vocab_size]."""
        logits = output.logits()
        ids = np.arange(self._vocab_size)[None]
        return self._process(logits, ids, [context.seen for context in contexts], contexts)

    def _process(
        self, logits: Floats, ids: Ids, seen: Rows[Bools], contexts: Rows[_Context]
    ) -> Floats:
        """Apply min_length and the repetition penalty to logits of the tokens `ids`."""
        short = [
            self._config.ignore_eos or context.length < self._config.min_length
            for context in contexts
        ]
        if any(short):
            banned = np.array(short)[:, None] & (ids == self._eos_token_id)
            logits = np.where(banned, -np.inf, logits)
        penalty = np.float32(self._config.repetition_penalty)
        if penalty != 1:
            lowered = np.where(logits < 0, logits * penalty, logits / penalty)
            logits = np.where(np.stack(seen), lowered, logits)
        return logits.astype(np.float32, copy=False)

    def _totals(self, whole: Floats) -> Doubles:
        """Sum over the vocabulary of exp((logit - the row's largest) / temperature), [rows, 1]."""
        return np.asarray(self._weights(whole).sum(axis=1, keepdims=True))

    def _pick(
        self, logits: Floats, ids: Ids, bound: Floats, totals: Doubles | None, draws: Doubles
    ) -> tuple[Ids, Bools]:
        """Choose among some tokens of each row.

        Args:
            logits: [rows, N], processed.
            ids: [rows, N], the tokens they belong to.
            bound: [rows]; no other token of the row is above it.
            totals: `_totals`, if top_p is used.
            draws: [rows], uniform in [0, 1).

        Returns:
            The tokens [rows], and whether each is what all tokens of the row would have given.
        """
        rows = np.arange(len(logits))  # plain indices: np.take_along_axis takes thrice as long
        order = np.lexsort((ids, -logits), axis=-1)
        if self._greedy:
            best = order[:, 0]
            return ids[rows, best], logits[rows, best] > bound
        logits = logits[rows[:, None], order]
        # Equal logits stay or go together, as in PaddleNLP.
        if self._top_k < logits.shape[1]:
            keep = logits >= logits[:, self._top_k - 1, None]
        else:
            keep = np.ones(logits.shape, bool)
        weights = np.where(keep, self._weights(logits), 0)
        if totals is not None:
            probabilities = weights / totals
            before = np.cumsum(probabilities, axis=1) - probabilities
            keep &= before <= self._top_p
        if self._min_p:  # weights are relative to the likeliest token's
            keep &= weights >= self._min_p
        kept = keep.sum(axis=1)  # the first ones of each row, as logits are in order
        lowest = logits[rows, kept - 1]
        cumulative = np.cumsum(np.where(keep, weights, 0), axis=1)
        drawn = (cumulative <= draws[:, None] * cumulative[:, -1:]).sum(axis=1)
        drawn = np.minimum(drawn, kept - 1)  # the product may round up to the total
        settled = (lowest > bound) | np.isneginf(bound)
        return ids[rows, order[rows, drawn]], settled

    def _from_all(self, logits: Floats, draws: Doubles) -> list[int]:
        """Draw from the whole distribution, which needs no order."""
        cumulative = np.cumsum(self._weights(logits), axis=1)
        return [
            min(int(np.searchsorted(row, draw * row[-1], side="right")), self._vocab_size - 1)
            for row, draw in zip(cumulative, draws, strict=True)
        ]

    def _weights(self, logits: Floats) -> Doubles:
        """exp(logit / temperature) of each token, relative to the likeliest of its row.

        The largest logit is taken away before the division, which may overflow but only to 0.
        """
        below = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(below / self._config.temperature))


def _log_softmax(logits: Floats) -> Doubles:
    """log(softmax) of each row, in float64: sums of many of them are compared."""
    below = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    return np.asarray(below - np.log(np.exp(below).sum(axis=1, keepdims=True)))
