"""The chance that one of k completions passes, from more than k that were tried."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at(k: int, samples: int, passed: int) -> float:
    """Chance that one of `k` completions passes, from `passed` of `samples` that did.

    The unbiased estimate of https://arxiv.org/abs/2107.03374, section 2.1.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(f"no estimate for k={k} from {passed} of {samples}")
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def mean_pass_at(k: int, counts: Sequence[tuple[int, int]]) -> float:
    """The mean of `pass_at` over problems, each with (samples, passed)."""
    return math.fsum(pass_at(k, samples, passed) for samples, passed in counts) / len(counts)
