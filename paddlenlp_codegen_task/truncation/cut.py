"""What a truncation rule is: from a prompt, where to cut its completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Cut(Protocol):
    """Where one rule cuts one completion, which grows.

    Attributes:
        position: where the rule certainly cuts, unless it turns out to cut between `earliest` and
            there; None if it may not cut at all.
        earliest: the rule does not cut before this, however the text goes on.
    """

    position: int | None
    earliest: int

    def feed(self, text: str) -> None:
        """Look at all of the completion so far, which begins with what was fed before."""

    def end(self, text: str) -> int:
        """Where all of the completion is cut, its length if nowhere; the last call."""

    def copy(self) -> Cut:
        """Return another that goes on from here: reading the prompt again would cost more."""


Rule = Callable[[str], Cut]
