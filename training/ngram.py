"""A 5-gram model with interpolated Kneser-Ney smoothing, the yardstick of evaluate.py.

Counts are kept in sorted arrays: an n-gram is `index of its first n - 1 tokens * vocabulary + last
token`, where the index is the place of that (n - 1)-gram in the array of its own order.
"""

import numpy as np

ABSENT = -1


class KneserNey:
    def __init__(self, tokens: np.ndarray, vocabulary: int, order: int = 5) -> None:
        """Count the n-grams of `tokens`, an array of ids below `vocabulary`, up to `order`."""
        self.vocabulary, self.order = vocabulary, order
        self.keys: list[np.ndarray] = []  # of each order: sorted n-grams
        first_seen, indices = [], []
        before = np.zeros(len(tokens), np.int64)
        for n in range(1, order + 1):
            keys = before * vocabulary + tokens
            keys[: n - 1] = ABSENT  # nothing ends at these places that is n tokens long
            unique, first, index, counts = np.unique(
                keys, return_index=True, return_inverse=True, return_counts=True
            )
            if n > 1:
                unique, first, index, counts = unique[1:], first[1:], index - 1, counts[1:]
            self.keys.append(unique)
            first_seen.append(first)
            indices.append(index)
            before = np.concatenate(([ABSENT], index[:-1]))
        # Below the highest order, an n-gram counts as often as different tokens stand before it.
        self.counts = [
            np.bincount(indices[n][first_seen[n + 1]], minlength=len(self.keys[n]))
            for n in range(order - 1)
        ]
        self.counts.append(counts)
        self.discounts, self.totals, self.followers = [], [], []
        for n in range(order):
            once, twice = (int((self.counts[n] == times).sum()) for times in (1, 2))
            self.discounts.append(once / (once + 2 * twice) if once else 0.5)
            context = self.keys[n] // vocabulary
            size = len(self.keys[n - 1]) if n else 1
            seen = np.minimum(self.counts[n], 1)
            self.totals.append(np.bincount(context, self.counts[n], size))
            self.followers.append(np.bincount(context, seen, size))

    def find(self, n: int, keys: np.ndarray) -> np.ndarray:
        """Indices of n-grams (order n + 1) in `self.keys[n]`, ABSENT for those never seen."""
        known = self.keys[n]
        place = np.searchsorted(known, keys).clip(max=len(known) - 1)
        return np.where(known[place] == keys, place, ABSENT)

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """The probability of each of `tokens` after those before it: float64 [len(tokens)]."""
        out = np.full(len(tokens), 1 / self.vocabulary)
        context = np.zeros(len(tokens), np.int64)
        for n in range(self.order):
            keys = np.where(context == ABSENT, ABSENT, context * self.vocabulary + tokens)
            index = self.find(n, keys)
            count = np.where(index == ABSENT, 0, self.counts[n][index])
            total = np.where(context == ABSENT, 0, self.totals[n][context])
            with_context = total > 0
            discounted = np.maximum(count - self.discounts[n], 0)
            spared = self.discounts[n] * self.followers[n][context]
            mixed = (discounted + spared * out) / np.maximum(total, 1)
            out = np.where(with_context, mixed, out)
            context = np.concatenate(([ABSENT], index[:-1]))
        return out
