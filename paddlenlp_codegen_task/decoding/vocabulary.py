"""Choosing a token from all logits of a row, where its candidates do not settle the choice.

Nothing sorts the vocabulary: a histogram of the weights tells in which bin the nucleus ends, and in
which one the draw falls, and only those two are sorted.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.decoding.request import Context
from paddlenlp_codegen_task.runtime.base import Floats, Ids

Doubles = npt.NDArray[np.float64]

_BINS = 1024
_SPAN = 24.0  # in units of the temperature: what is below e**-24 of the likeliest shares a bin
_BLOCK = 256
_TINY = 1e-37  # about the least factor that float32 has: -inf times 0 would be no number


class _Room(threading.local):
    """Arrays that are used again: fresh ones of this size cost more than what is done in them."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[np.float64]] = {}

    def floats(self, name: str, count: int) -> Floats:
        return self._bytes(name, count).view(np.float32)[:count]

    def doubles(self, name: str, count: int) -> Doubles:
        return self._bytes(name, count)[:count]

    def ids(self, name: str, count: int) -> Ids:
        return self._bytes(name, count).view(np.int64)[:count]

    def _bytes(self, name: str, count: int) -> npt.NDArray[np.float64]:
        array = self._arrays.get(name)
        if array is None or len(array) < count:
            array = self._arrays[name] = np.empty(count, np.float64)
        return array


_room = _Room()


def processed(logits: Floats, context: Context) -> Floats:
    """A row's logits [vocab_size] after penalties and biases, float32, until the next call."""
    parameters, given = context.parameters, logits
    logits = _room.floats("logits", len(given))
    np.copyto(logits, given)
    if context.allowed is None:
        parameters.hold_back(logits, context.length)
    else:
        only(logits, context.allowed)
    if parameters.repetition_penalty != 1:
        ids, penalty = np.flatnonzero(context.seen), np.float32(parameters.repetition_penalty)
        some = logits[ids]
        logits[ids] = np.where(some < 0, some * penalty, some / penalty)
    if context.counts is not None:
        ids = np.flatnonzero(context.counts)
        lowered = parameters.frequency_penalty * context.counts[ids] + parameters.presence_penalty
        logits[ids] -= lowered.astype(np.float32)
    if parameters.bias is not None:
        logits += parameters.bias
    return logits


def only(values: Floats, ids: Ids) -> None:
    """Have no tokens come but these: -inf is put into the `values` [vocab_size] of all others."""
    kept = values[ids]
    values.fill(-np.inf)
    values[ids] = kept


def choose(logits: Floats, context: Context) -> int:
    """Choose a token by all logits of its row, [vocab_size]."""
    logits = processed(logits, context)
    every = context.parameters.top_k == len(logits)
    if context.allowed is None:
        return _choose(logits, context, every)
    return int(context.allowed[_choose(logits[context.allowed], context, every)])


def _choose(logits: Floats, context: Context, every: bool) -> int:
    """Choose by the processed logits of some tokens, in order; return which of them.

    Args:
        logits: [N], not all -inf.
        context: what the token is chosen by.
        every: whether top_k leaves all tokens of the vocabulary.
    """
    parameters = context.parameters
    largest, count = logits.max(), len(logits)
    weights = np.subtract(logits, largest, out=_room.floats("weights", count))
    if parameters.temperature >= 1e-30:
        weights *= np.float32(max(1 / parameters.temperature, _TINY))
        np.exp(weights, out=weights)
    else:  # float32 has no such number; whatever is below the largest weighs nothing
        np.equal(weights, 0, out=weights, casting="unsafe")
    if every and parameters.top_p == 1 and parameters.min_p == 0:
        return _draw(weights, context.draw)
    mass = parameters.top_p * float(weights.sum()) if parameters.top_p < 1 else np.inf
    if every and parameters.min_p == 0:
        return _nucleus_draw(logits, weights, mass, context.draw, parameters.temperature)
    keep = weights >= np.float32(parameters.min_p)
    if parameters.top_k < count:
        keep &= logits >= np.partition(logits, count - parameters.top_k)[count - parameters.top_k]
    ids = np.flatnonzero(keep)
    some = logits[ids], weights[ids]
    return int(ids[_nucleus_draw(*some, mass, context.draw, parameters.temperature)])


def _draw(weights: npt.NDArray[np.float32], draw: float) -> int:
    """Draw from a whole distribution, which needs no order: first a block, then a token of it."""
    count = len(weights)
    padded = np.zeros(-(-count // _BLOCK) * _BLOCK, np.float32)
    padded[:count] = weights
    blocks = np.cumsum(padded.reshape(-1, _BLOCK).sum(axis=1), dtype=np.float64)
    target = draw * blocks[-1]
    block = min(int(np.searchsorted(blocks, target, side="right")), len(blocks) - 1)
    start = block * _BLOCK
    within = np.cumsum(padded[start : start + _BLOCK], dtype=np.float64)
    if block:
        target -= blocks[block - 1]
    # Rounding may leave the target at the block's end: then the last token that weighs anything.
    last = int(np.flatnonzero(padded[start : start + _BLOCK])[-1])
    return start + min(int(np.searchsorted(within, target, side="right")), last)


def _nucleus_draw(
    logits: Floats, weights: Floats, mass: float, draw: float, temperature: float
) -> int:
    """Draw among the likeliest tokens before which at most `mass` of the weights lies.

    Args:
        logits: [N], of the tokens to choose among, the smaller token first.
        weights: [N], exp of them relative to the largest.
        mass: what all tokens before one may weigh, in likelihood's order, for it to be kept.
        draw: uniform in [0, 1).
        temperature: of the weights.

    Returns:
        The index of the token that the draw falls on, the kept ones in order of likelihood.
    """
    largest = logits.max()
    span = min(_SPAN * temperature, max(float(largest - logits.min()), 1e-30))
    count = len(logits)
    scaled = np.subtract(largest, logits, out=_room.floats("scaled", count))
    scaled *= np.float32(min(max(_BINS / span, _TINY), 1e30))
    np.minimum(scaled, _BINS - 1, out=scaled)
    bins, doubles = _room.ids("bins", count), _room.doubles("weights in double", count)
    np.copyto(bins, scaled, casting="unsafe")
    np.copyto(doubles, weights)
    ends: Doubles = np.cumsum(np.bincount(bins, weights=doubles, minlength=_BINS))
    last, total = _BINS, float(ends[-1])  # the bin in which the nucleus ends, and what it weighs
    if mass < total:
        last = int(np.searchsorted(ends, mass, side="right"))
        order, before = _bin(logits, weights, bins, last, ends)
        kept = int((before[:-1] <= mass).sum())
        total = before[kept]
    target = draw * total
    place = min(int(np.searchsorted(ends, target, side="right")), last)
    if place == _BINS:  # the product has been rounded up to the total
        place = int(bins.max())
    if place != last:
        order, before = _bin(logits, weights, bins, place, ends)
        kept = len(order)
    at = int(np.searchsorted(before[1 : kept + 1], target, side="right"))
    return int(order[min(at, kept - 1)])


def _bin(
    logits: Floats, weights: Floats, bins: Ids, number: int, ends: Doubles
) -> tuple[Ids, Doubles]:
    """A bin's tokens [n] in order of likelihood, and what lies before each, [n + 1]."""
    ids = np.flatnonzero(bins == number)
    ids = ids[np.argsort(-logits[ids], kind="stable")]  # of equal ones the smallest token is first
    before = np.concatenate([[0.0], np.cumsum(weights[ids], dtype=np.float64)])
    return ids, before + (ends[number - 1] if number else 0.0)


def log_softmax(logits: Floats, token_id: int) -> float:
    """The logarithm of a token's softmax, in float64: sums of many of them are compared."""
    below = (logits - logits.max()).astype(np.float64)
    return float(below[token_id] - np.log(np.exp(below).sum()))
