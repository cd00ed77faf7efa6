"""Cutting before the first of some strings: plain search, at most one look at each beginning."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence

from paddlenlp_codegen_task.truncation.cut import Rule

_GLANCE = 64  # characters compared before all of a string is


def stop_rule(strings: Sequence[str]) -> Rule:
    """Return the rule that cuts before the first occurrence of any of some strings."""
    # Of strings that begin with one another the shortest cuts as all do. Without the others, the
    # only one that a text can begin with stands right before the text in their order.
    ordered: list[str] = []
    for string in sorted(set(strings)):
        if not ordered or not string.startswith(ordered[-1]):
            ordered.append(string)
    found = _Strings(ordered)
    return lambda prompt: StopCut(found)


class _Strings:
    """Some strings, none of which begins with another.

    Attributes:
        firsts: the characters that they begin with.
    """

    def __init__(self, ordered: Sequence[str]) -> None:
        self.firsts = frozenset(string[0] for string in ordered)
        self._ordered = ordered
        self._longest = max(map(len, ordered))

    def at(self, text: str, start: int) -> bool | None:
        """Whether one of the strings begins there; None if that depends on further text."""
        found = self._find(text[start : start + _GLANCE])
        if found is None and len(text) - start > _GLANCE:
            found = self._find(text[start : start + self._longest])
        return found

    def _find(self, text: str) -> bool | None:
        """Whether `text` begins with one of the strings; None if one begins with it."""
        n = bisect_right(self._ordered, text)
        if n and text.startswith(self._ordered[n - 1]):
            return True
        if n < len(self._ordered) and self._ordered[n].startswith(text):
            return None
        return False


class StopCut:
    """Where strings cut one text; see `cut.Cut`."""

    def __init__(self, strings: _Strings) -> None:
        self.position: int | None = None
        self.earliest = 0
        self._strings = strings

    def feed(self, text: str) -> None:
        """Look at a text that has grown."""
        if self.position is not None:
            return
        strings, firsts = self._strings, self._strings.firsts
        for start in range(self.earliest, len(text)):
            if text[start] in firsts:
                found = strings.at(text, start)
                if found is not False:
                    self.earliest = start
                    self.position = start if found else None
                    return
        self.earliest = len(text)

    def end(self, text: str) -> int:
        """Where `text` is cut if it ends here."""
        self.feed(text)
        if self.position is not None:
            return self.position
        later = range(self.earliest + 1, len(text))
        return next((start for start in later if self._strings.at(text, start)), len(text))

    def copy(self) -> StopCut:
        """See Cut."""
        return copy.copy(self)
