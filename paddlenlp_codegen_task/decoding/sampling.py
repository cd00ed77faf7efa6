"""Choosing the next token of every row of a step: pure, and one pass for all rows.

A step hands back the largest logits of each row, its candidates, and the logsumexp of the row. That
is nearly always enough: what only lowers logits leaves a token that is no candidate at or below the
smallest candidate as it was, so a choice among tokens above that bound is the choice the whole row
would give. Where the bound does not settle it, `vocabulary` looks at the whole row.

Order as in PaddleNLP's generation: min_length, repetition penalty, then OpenAI's penalties and
biases, temperature, top_k, top_p; then min_p, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.decoding import vocabulary
from paddlenlp_codegen_task.decoding.request import (
    COLUMNS,
    Bools,
    Context,
    Counts,
    Parameters,
    Row,
)
from paddlenlp_codegen_task.runtime.base import Floats, Ids, StepOutput

NOT_NUMBERS = (
    "the model's logits are not numbers: its weights are broken, or overflow float16 (then use "
    "precision='fp32')"
)

Doubles = npt.NDArray[np.float64]

# What the graph's logsumexp may be off by, as a share of the sum: it is computed in float32.
_ROUNDING = 1e-4
_FEW = 16  # candidates, that a small top_k is looked for among first


class Note(NamedTuple):
    """What is reported of a chosen token, as far as it was asked for.

    Attributes:
        log_probs: the model's own log-probability of it, and those of the likeliest tokens.
        score: its log-probability after the penalties, as PaddleNLP counts it.
    """

    log_probs: tuple[float, dict[int, float]] | None
    score: float | None


@dataclass(frozen=True)
class Choice:
    """What `choose` returns for each row.

    Attributes:
        tokens: None where the row's logits are not numbers.
        notes: what was asked for; empty if nobody asked.
    """

    tokens: list[int | None]
    notes: list[Note]


def context(row: Row) -> Context:
    """That of a row's next token; takes a draw if one is needed."""
    parameters = row.request.parameters
    draw = 0.0 if parameters.greedy else row.draws.next()
    return Context(parameters, row.seen, row.counts, len(row.token_ids), draw, row.allowed())


def contexts_after(row: Row, draft: Sequence[int]) -> list[Context]:
    """Those of a row's next token and of those after each token of a draft; takes no draw."""
    parameters = row.request.parameters
    draws = [0.0] * (len(draft) + 1) if parameters.greedy else row.draws.peek(len(draft) + 1)
    seen, counts, found = row.seen, row.counts, []
    for n, draw in enumerate(draws):
        if n:
            seen = seen.copy()
            seen[draft[n - 1]] = True
            if counts is not None:
                counts = counts.copy()
                counts[draft[n - 1]] += 1
        allowed = row.allowed(draft[:n])
        found.append(Context(parameters, seen, counts, len(row.token_ids) + n, draw, allowed))
    return found


class _Table:
    """The parameters of a step's rows, an array each."""

    def __init__(self, parameters: Sequence[Parameters]) -> None:
        columns = np.array([one.columns for one in parameters])
        of = dict(zip(COLUMNS, columns.T, strict=True))
        self.rows = np.arange(len(parameters))
        self.temperature, self.q = of["temperature"], 1 / of["temperature"]
        self.top_k = of["top_k"].astype(np.int64)
        self.most_k, self.any_small_k = int(self.top_k.max()), bool((self.top_k <= _FEW // 2).any())
        self.top_p, self.min_p = of["top_p"], of["min_p"]
        self.repetition_penalty = of["repetition_penalty"].astype(np.float32)[:, None]
        self.presence_penalty = of["presence_penalty"][:, None]
        self.frequency_penalty = of["frequency_penalty"][:, None]
        self.eos_from = of["eos_from"]
        # Nearly always the only token that is held back; where there are more, all are looked up.
        self.eos = np.array([[*one.eos_token_ids, -1][:1] for one in parameters])
        self.held = [n for n, one in enumerate(parameters) if one.held_from is not None]
        self.has_top_p, self.has_min_p = bool((self.top_p < 1).any()), bool(self.min_p.any())
        self.has_repetition = bool((self.repetition_penalty != 1).any())
        self.counted = [n for n, one in enumerate(parameters) if one.counts]
        self.biased = [n for n, one in enumerate(parameters) if one.bias is not None]
        self.has_eos = bool((self.eos_from > 0).any()) or bool(self.held)
        self.reports = any(one.logprobs is not None or one.scores for one in parameters)
        # Whether something may raise, or lower, the logit of a token that is no candidate.
        self.raised = of["repetition_penalty"] < 1
        self.raised |= (of["presence_penalty"] < 0) | (of["frequency_penalty"] < 0)
        self.raised |= [one.bias_raises for one in parameters]
        self.raises = bool(self.raised.any())
        self.lowered = (of["repetition_penalty"] != 1) | (of["eos_from"] > 0)
        self.lowered |= (of["presence_penalty"] != 0) | (of["frequency_penalty"] != 0)
        self.lowered |= [one.bias is not None for one in parameters]
        self.lowered |= [one.held_from is not None for one in parameters]
        # Greedy search in which nothing but eos_from changes a logit.
        self.only_likeliest = bool((self.top_k == 1).all()) and not (
            self.has_repetition or self.counted or self.biased or self.held
        )


@lru_cache(maxsize=64)
def _table(parameters: tuple[Parameters, ...]) -> _Table:
    """The table of these rows, which are the same for many steps."""
    return _Table(parameters)


def choose(output: StepOutput, contexts: Sequence[Context]) -> Choice:
    """Choose a token for each row of a step's output, each by its own parameters."""
    # Callers may have set numpy to raise where this is meant to overflow.
    with np.errstate(all="ignore"):
        table = _table(tuple([one.parameters for one in contexts]))
        chosen: list[int | None] = [None] * len(contexts)
        left: list[int] = []
        if _likeliest_decides(output, table):
            chosen[:] = output.candidate_ids[:, 0].tolist()
        else:
            left = _choose_among(output, contexts, table, _widths(output, table), chosen)
        # Those that may have some tokens only, of which no candidate need be one.
        some = [row for row, one in enumerate(contexts) if one.allowed is not None]
        whole: Floats | None = None
        for row in left if not some else {*left, *some}:
            whole = output.logits() if whole is None else whole
            chosen[row] = vocabulary.choose(whole[row], contexts[row])
        broken = np.isnan(output.logsumexp)
        if broken.any():
            for row in np.flatnonzero(broken):
                chosen[row] = None
        return Choice(chosen, _notes(output, contexts, chosen) if table.reports else [])


def _likeliest_decides(output: StepOutput, table: _Table) -> bool:
    """Whether each row's first candidate is what `_pick` would find, in a tenth of its time."""
    if not table.only_likeliest or output.candidates.shape[1] < 2:
        return False
    # Of equal ones, the smallest token comes first; a comparison with what is no number is False.
    if not (output.candidates[:, 0] > output.candidates[:, 1]).all():
        return False
    return not (table.has_eos and (output.candidate_ids[:, 0] == table.eos[:, 0]).any())


def _widths(output: StepOutput, table: _Table) -> list[int]:
    """How many candidates to look at: first a few, which nearly always settle a small top_k."""
    width = output.candidates.shape[1]
    return [_FEW, width] if width > _FEW and table.any_small_k else [width]


def _choose_among(
    output: StepOutput,
    contexts: Sequence[Context],
    table: _Table,
    widths: Sequence[int],
    chosen: list[int | None],
) -> list[int]:
    """Choose for each row among its first candidates, more of them where those do not settle it.

    Returns:
        The rows that no candidates settle, but for those whose logits are not numbers.
    """
    width, *wider = widths
    part = StepOutput(
        output.candidates[:, :width],
        output.candidate_ids[:, :width],
        output.logsumexp,
        output.logits,
    )
    tokens, settled = _pick(part, contexts, table)
    if settled.all():
        chosen[:] = tokens.tolist()
        return []
    for row, token_id in enumerate(tokens.tolist()):
        chosen[row] = token_id
    left = [int(row) for row in np.flatnonzero(~settled) if not np.isnan(output.logsumexp[row])]
    if not wider or not left:
        return left
    some = [contexts[row] for row in left]
    found: list[int | None] = [None] * len(left)
    table = _table(tuple([one.parameters for one in some]))
    unsettled = _choose_among(output.take(left), some, table, wider, found)
    for row, token in zip(left, found, strict=True):
        chosen[row] = token
    return [left[n] for n in unsettled]


def _processed(output: StepOutput, contexts: Sequence[Context], table: _Table) -> Floats:
    """The candidates' logits after penalties and biases, [rows, candidates] float32."""
    logits, ids = output.candidates, output.candidate_ids
    if table.has_eos:
        short = table.eos_from > [one.length for one in contexts]
        if short.any():
            logits = np.where(short[:, None] & (ids == table.eos), np.float32(-np.inf), logits)
        if table.held:
            logits = logits.copy() if logits is output.candidates else logits
            for row in table.held:
                held_from = contexts[row].parameters.held_from
                assert held_from is not None
                logits[row, held_from[ids[row]] > contexts[row].length] = -np.inf
    if table.has_repetition:
        penalty = table.repetition_penalty
        seen = np.array([one.seen.take(row) for one, row in zip(contexts, ids, strict=True)])
        logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)
    if table.counted:
        counts = np.zeros(ids.shape)
        for row in table.counted:
            counts[row] = _counts(contexts[row], ids[row])
        lowered = table.frequency_penalty * counts + table.presence_penalty * (counts > 0)
        logits = logits - lowered.astype(np.float32)
    if table.biased:
        logits = logits.copy() if logits is output.candidates else logits
        for row in table.biased:
            bias = contexts[row].parameters.bias
            assert bias is not None
            logits[row] += bias[ids[row]]
    return logits


def _counts(one: Context, ids: Ids) -> Counts:
    assert one.counts is not None, "rows with such penalties count"
    return one.counts[ids]


def _pick(output: StepOutput, contexts: Sequence[Context], table: _Table) -> tuple[Ids, Bools]:
    """Choose among the candidates of each row.

    Returns:
        The tokens [rows], and whether each is what the whole row would have given.
    """
    logits = _processed(output, contexts, table)
    ids, rows, width = output.candidate_ids, table.rows, logits.shape[1]
    vocab_size = len(contexts[0].seen)
    # No token that is no candidate has a processed logit above this.
    bound = output.candidates[:, -1]
    if width == vocab_size:
        bound = np.full(len(logits), -np.inf, np.float32)
    elif table.raises:
        bound = np.where(table.raised, np.float32(np.inf), bound)
    # Plain indices: np.take_along_axis takes thrice as long.
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = logits[rows[:, None], order]
    if (ranked[:, 1:] == ranked[:, :-1]).any():  # of equal ones the smallest token is first
        order = np.lexsort((ids, -logits), axis=-1)
    # Equal logits stay or go together, as in PaddleNLP.
    kth = ranked[rows, np.minimum(table.top_k, width) - 1]
    if table.most_k > width:
        kth = np.where(table.top_k <= width, kth, np.float32(-np.inf))
    keep = ranked >= kth[:, None]
    # The largest logit is taken away before the division, which may overflow but only to 0.
    below = (ranked - ranked[:, :1]).astype(np.float64)
    weights = np.where(keep, np.exp(below / table.temperature[:, None]), 0)
    settled: Bools | bool = True
    if table.has_top_p:
        # Probabilities count over the whole vocabulary, also below top_k, as in PaddleNLP.
        before = np.cumsum(weights, axis=1) - weights
        least, most = _totals(output, ranked, bound, vocab_size, table)
        inside = before <= (table.top_p * least)[:, None]
        same = (inside == (before <= (table.top_p * most)[:, None])).all(axis=1)
        without = table.top_p == 1
        keep &= inside | without[:, None]
        settled = same | without
    if table.has_min_p:  # weights are relative to the likeliest token's
        likely = keep & (weights >= table.min_p[:, None])
        # A candidate that it cuts off may have been lowered, and others be likelier than that one.
        others = np.exp((bound - ranked[:, 0]).astype(np.float64) / table.temperature)
        settled = settled & ((likely == keep).all(axis=1) | (others < table.min_p))
        keep = likely
    if table.has_top_p or table.has_min_p:
        weights = np.where(keep, weights, 0)
    kept = keep.sum(axis=1)  # the first ones of each row, as logits are in order
    lowest = ranked[rows, kept - 1]
    cumulative = np.cumsum(weights, axis=1)
    draws = np.array([one.draw for one in contexts])
    drawn = (cumulative <= (draws * cumulative[:, -1])[:, None]).sum(axis=1)
    drawn = np.minimum(drawn, kept - 1)  # the product may round up to the total
    above: Bools = (lowest > bound) | (bound == -np.inf)
    above &= settled
    if vocab_size <= table.most_k:  # a draw among all needs no order
        above &= (table.top_k < vocab_size) | (table.top_p < 1) | (table.min_p > 0)
    return ids[rows, order[rows, drawn]], above


def _totals(
    output: StepOutput, ranked: Floats, bound: Floats, vocab_size: int, table: _Table
) -> tuple[Doubles, Doubles]:
    """What the sum over the vocabulary of exp((logit - the largest) / temperature) lies between.

    The candidates' part is known. Of the other N tokens, the graph's logsumexp tells the sum R of
    x = exp(logit - largest), and none is above b = exp(bound - largest). With q = 1 / temperature,
    the sum of x ** q = x * x ** (q - 1) is at most R * b ** (q - 1) for q >= 1 and, as x ** q is
    concave then, N * (R / N) ** q for q < 1; at least it is the other one of the two. Penalties may
    lower all of it to nothing.
    """
    q, largest = table.q, ranked[:, 0].astype(np.float64)
    below = (ranked - ranked[:, :1]).astype(np.float64)
    known: Doubles = np.exp(below / table.temperature[:, None]).sum(axis=1)
    others = vocab_size - ranked.shape[1]
    if others == 0:
        return known, known
    total = np.exp(output.logsumexp - largest)
    raw = np.exp(output.candidates - largest[:, None]).sum(axis=1)
    slack = _ROUNDING * total
    b, rest = np.exp(bound - largest), total - raw

    def between(r: Doubles) -> tuple[Doubles, Doubles]:
        r = np.clip(r, 0, None)
        return r * b ** (q - 1), others * (r / others) ** q

    capped, spread = between(rest + slack)
    most: Doubles = known + np.where(q >= 1, capped, spread)
    capped, spread = between(rest - slack)
    least: Doubles = known + np.where(table.lowered, 0.0, np.where(q >= 1, spread, capped))
    most[np.isinf(bound)] = np.inf
    return least, most


def _notes(
    output: StepOutput, contexts: Sequence[Context], tokens: Sequence[int | None]
) -> list[Note]:
    """What is reported of the tokens."""
    whole = output.logits()
    notes = []
    for row, (one, token_id) in enumerate(zip(contexts, tokens, strict=True)):
        log_probs, score = None, None
        if token_id is not None and one.parameters.logprobs is not None:
            log_probs = _log_probs(output, row, whole[row], token_id, one.parameters.logprobs)
        if token_id is not None and one.parameters.scores:
            score = vocabulary.log_softmax(vocabulary.processed(whole[row], one), token_id)
        notes.append(Note(log_probs, score))
    return notes


def _log_probs(
    output: StepOutput, row: int, logits: Floats, token_id: int, count: int
) -> tuple[float, dict[int, float]]:
    """What the model gives a token and the likeliest ones, before any option changes it."""
    total = float(output.logsumexp[row])
    count = min(count, len(logits))
    if count <= output.candidate_ids.shape[1]:  # in order already; else the whole row is sorted
        best = output.candidate_ids[row, :count]
    else:
        best = np.argsort(-logits, kind="stable")[:count]
    return float(logits[token_id]) - total, {int(n): float(logits[n]) - total for n in best}


def prompt_log_probs(
    output: StepOutput, following: Sequence[int], count: int
) -> list[dict[int, float]]:
    """What the model gives each token of a prompt after those before it.

    Args:
        output: of every token of a chunk of the prompt.
        following: the token after each; the last one's may be missing.
        count: how many of the likeliest are told beside it.
    """
    whole = output.logits()
    found = []
    for row, token_id in enumerate(following):
        own, best = _log_probs(output, row, whole[row], token_id, count)
        found.append({token_id: own, **best})
    return found


def log_probs(output: StepOutput, row: int, token_id: int, count: int) -> Note:
    """The note of a token that something else has chosen, as a beam search does."""
    return Note(_log_probs(output, row, output.logits()[row], token_id, count), None)
