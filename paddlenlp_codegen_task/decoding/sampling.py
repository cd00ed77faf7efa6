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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.decoding import vocabulary
from paddlenlp_codegen_task.decoding.request import COLUMNS, Bools, Context, Row
from paddlenlp_codegen_task.runtime.base import Floats, Ids, StepOutput

NOT_NUMBERS = (
    "the model's logits are not numbers: its weights are broken, or overflow float16 (then use "
    "precision='fp32')"
)

Doubles = npt.NDArray[np.float64]

# What the graph's logsumexp may be off by, as a share of the sum: it is computed in float32.
_ROUNDING = 1e-4


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
    return Context(parameters, row.seen, row.counts, len(row.token_ids), draw)


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
        found.append(Context(parameters, seen, counts, len(row.token_ids) + n, draw))
    return found


def choose(output: StepOutput, contexts: Sequence[Context]) -> Choice:
    """Choose a token for each row of a step's output, each by its own parameters."""
    # Callers may have set numpy to raise where this is meant to overflow.
    with np.errstate(all="ignore"):
        columns = np.stack([one.parameters.columns for one in contexts])
        of = dict(zip(COLUMNS, columns.T, strict=True))
        logits = _processed(output, contexts, of)
        tokens, settled = _pick(output, logits, contexts, of)
        broken = np.isnan(output.logsumexp)
        chosen: list[int | None] = tokens.tolist()
        whole: Floats | None = None
        for row in np.flatnonzero(~settled & ~broken):
            whole = output.logits() if whole is None else whole
            chosen[row] = vocabulary.choose(whole[row], contexts[row])
        for row in np.flatnonzero(broken):
            chosen[row] = None
        wanted = any(c.parameters.logprobs is not None or c.parameters.scores for c in contexts)
        return Choice(chosen, _notes(output, contexts, chosen) if wanted else [])


def _processed(output: StepOutput, contexts: Sequence[Context], of: dict[str, Doubles]) -> Floats:
    """The candidates' logits after penalties and biases, [rows, candidates] float32."""
    logits, ids = output.candidates, output.candidate_ids
    short = of["eos_from"] > [one.length for one in contexts]
    if short.any():
        eos = np.array([[one.parameters.eos_token_id] for one in contexts])
        logits = np.where(short[:, None] & (ids == eos), np.float32(-np.inf), logits)
    if (of["repetition_penalty"] != 1).any():
        penalty = of["repetition_penalty"].astype(np.float32)[:, None]
        seen = np.array([one.seen[row] for one, row in zip(contexts, ids, strict=True)])
        logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits)
    if of["presence_penalty"].any() or of["frequency_penalty"].any():
        counts = np.array(
            [
                np.zeros(len(row)) if one.counts is None else one.counts[row]
                for one, row in zip(contexts, ids, strict=True)
            ]
        )
        lowered = of["frequency_penalty"][:, None] * counts
        lowered += of["presence_penalty"][:, None] * (counts > 0)
        logits = logits - lowered.astype(np.float32)
    for row, one in enumerate(contexts):
        if one.parameters.bias is not None:
            logits = logits.copy() if logits is output.candidates else logits
            logits[row] += one.parameters.bias[ids[row]]
    return logits


def _bound(output: StepOutput, contexts: Sequence[Context], of: dict[str, Doubles]) -> Floats:
    """What no processed logit of a token that is no candidate is above, [rows]."""
    if output.candidates.shape[1] == len(contexts[0].seen):
        return np.full(len(contexts), -np.inf, np.float32)
    raised = of["repetition_penalty"] < 1
    raised |= (of["presence_penalty"] < 0) | (of["frequency_penalty"] < 0)
    raised |= [one.parameters.bias_raises for one in contexts]
    return np.where(raised, np.float32(np.inf), output.candidates[:, -1])


def _pick(
    output: StepOutput, logits: Floats, contexts: Sequence[Context], of: dict[str, Doubles]
) -> tuple[Ids, Bools]:
    """Choose among the candidates of each row.

    Returns:
        The tokens [rows], and whether each is what the whole row would have given.
    """
    ids, bound = output.candidate_ids, _bound(output, contexts, of)
    rows, width = np.arange(len(logits)), logits.shape[1]
    # Plain indices: np.take_along_axis takes thrice as long.
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = logits[rows[:, None], order]
    if (ranked[:, 1:] == ranked[:, :-1]).any():  # of equal ones the smallest token is first
        order = np.lexsort((ids, -logits), axis=-1)
    # Equal logits stay or go together, as in PaddleNLP.
    top_k = of["top_k"].astype(np.int64)
    kth = ranked[rows, np.minimum(top_k, width) - 1]
    keep = ranked >= np.where(top_k < width, kth, np.float32(-np.inf))[:, None]
    # The largest logit is taken away before the division, which may overflow but only to 0.
    below = (ranked - ranked[:, :1]).astype(np.float64)
    weights = np.where(keep, np.exp(below / of["temperature"][:, None]), 0)
    settled = np.ones(len(logits), bool)
    if (of["top_p"] < 1).any():
        # Probabilities count over the whole vocabulary, also below top_k, as in PaddleNLP.
        before = np.cumsum(weights, axis=1) - weights
        least, most = _totals(output, ranked, bound, contexts, of)
        inside = before <= (of["top_p"] * least)[:, None]
        settled = (inside == (before <= (of["top_p"] * most)[:, None])).all(axis=1)
        keep &= inside | (of["top_p"] == 1)[:, None]
        settled |= of["top_p"] == 1
    if of["min_p"].any():  # weights are relative to the likeliest token's
        keep &= weights >= of["min_p"][:, None]
    kept = keep.sum(axis=1)  # the first ones of each row, as logits are in order
    lowest = ranked[rows, kept - 1]
    cumulative = np.cumsum(np.where(keep, weights, 0), axis=1)
    draws = np.array([one.draw for one in contexts])
    drawn = (cumulative <= (draws * cumulative[:, -1])[:, None]).sum(axis=1)
    drawn = np.minimum(drawn, kept - 1)  # the product may round up to the total
    settled &= (lowest > bound) | np.isneginf(bound)
    everything = (top_k == len(contexts[0].seen)) & (of["top_p"] == 1) & (of["min_p"] == 0)
    return ids[rows, order[rows, drawn]], settled & ~everything


def _totals(
    output: StepOutput,
    ranked: Floats,
    bound: Floats,
    contexts: Sequence[Context],
    of: dict[str, Doubles],
) -> tuple[Doubles, Doubles]:
    """What the sum over the vocabulary of exp((logit - the largest) / temperature) lies between.

    The candidates' part is known. Of the other N tokens, the graph's logsumexp tells the sum R of
    x = exp(logit - largest), and none is above b = exp(bound - largest). With q = 1 / temperature,
    the sum of x ** q = x * x ** (q - 1) is at most R * b ** (q - 1) for q >= 1 and, as x ** q is
    concave then, N * (R / N) ** q for q < 1; at least it is the other one of the two. Penalties may
    lower all of it to nothing.
    """
    q = 1 / of["temperature"]
    largest = ranked[:, 0].astype(np.float64)
    known = np.exp((ranked - ranked[:, :1]).astype(np.float64) * q[:, None]).sum(axis=1)
    others = len(contexts[0].seen) - ranked.shape[1]
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
    least: Doubles = np.where(q >= 1, spread, capped)
    lowered = (of["repetition_penalty"] != 1) | (of["eos_from"] > 0)
    lowered |= (of["presence_penalty"] != 0) | (of["frequency_penalty"] != 0)
    lowered |= [one.parameters.bias is not None for one in contexts]
    known_least: Doubles = known + np.where(lowered, 0.0, least)
    most[np.isinf(bound)] = np.inf
    return known_least, most


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


def log_probs(output: StepOutput, row: int, token_id: int, count: int) -> Note:
    """The note of a token that something else has chosen, as a beam search does."""
    return Note(_log_probs(output, row, output.logits()[row], token_id, count), None)
