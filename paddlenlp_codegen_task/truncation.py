"""Cutting a completion where a programmer would stop: the text before a regex's first match.

A completion is generated piece by piece, and generating can end as soon as no further text could
change the cut. To know that, each pattern is compiled twice: as it is, and "open-ended", where
the end of the text is accepted in place of whatever the pattern asks for next. The leftmost match
of the open-ended pattern is the earliest place where a match may ever begin.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_TRUNCATION = "\nclass|\ndef|\n#|\n@|\nprint|\nif"

# The parse tree of a regular expression has no public interface.
_parser: Any = importlib.import_module("re._parser")
_compiler: Any = importlib.import_module("re._compiler")

_CHARACTER = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
_REPEAT = ("MAX_REPEAT", "MIN_REPEAT")
# How many characters further on each anchor looks. `$` is the end, or before a newline at the end.
_ANCHOR_REACH = {"AT_BEGINNING": 0, "AT_BEGINNING_STRING": 0, "AT_END": 2}


class _UnsupportedError(Exception):
    """A construct (back reference, conditional) about which nothing is proved."""


def _reach(tree: Any) -> int:
    """How far beyond the end of a match the text may decide whether it is one.

    A match is found by a path of tests that succeed; the same path succeeds in a longer text if
    none of its tests looked at, or for, the end of this one.
    """
    reach = 0
    for op, value in tree:
        name = op.name
        if name == "AT":
            own = _ANCHOR_REACH.get(value.name, 1)
        elif name == "BRANCH":
            own = max(_reach(branch) for branch in value[1])
        elif name == "SUBPATTERN" or name in _REPEAT:
            own = _reach(value[-1])
        elif name in ("ASSERT", "ASSERT_NOT"):
            direction, inner = value
            own = _reach(inner) + (inner.getwidth()[1] if direction > 0 else 0)
        elif name in ("ATOMIC_GROUP", "POSSESSIVE_REPEAT"):
            # These keep what they first find, so all they may try counts, not the path alone.
            inner = value if name == "ATOMIC_GROUP" else value[-1]
            own = _reach(inner) + _subpattern(tree, [(op, value)]).getwidth()[1]
        elif name in _CHARACTER or name == "FAILURE":
            own = 0
        else:
            raise _UnsupportedError
        reach = max(reach, own)
    return reach


def _open_ended(tree: Any) -> Any:
    """Return `tree` so changed that it matches wherever `tree` may match in a longer text.

    It may match more than that: that only delays a decision. Once at the end of the text, every
    test is taken to succeed.
    """
    end = _subpattern(tree, [(_parser.AT, _parser.AT_END_STRING)])
    nodes: list[Any] = []
    for op, value in tree:
        name, node = op.name, (op, value)
        if name == "BRANCH":
            nodes.append((op, (None, [_open_ended(branch) for branch in value[1]])))
        elif name == "SUBPATTERN":
            nodes.append((op, (*value[:-1], _open_ended(value[-1]))))
        elif name in _REPEAT or name == "POSSESSIVE_REPEAT":
            low, high, inner = value
            nodes.append((_parser.MAX_REPEAT, (low, high, _open_ended(inner))))
        elif name == "ATOMIC_GROUP":
            nodes.append((_parser.SUBPATTERN, (None, 0, 0, _open_ended(value))))
        elif name == "ASSERT" and value[0] > 0:
            nodes.append((op, (value[0], _open_ended(value[1]))))
        elif name in ("ASSERT", "ASSERT_NOT") and _reach(value[1]):
            continue  # further text may yet turn it true
        else:
            nodes.append((_parser.BRANCH, (None, [_subpattern(tree, [node]), end])))
    return _subpattern(tree, nodes)


def _subpattern(tree: Any, nodes: list[Any]) -> Any:
    return _parser.SubPattern(tree.state, nodes)


@dataclass(frozen=True)
class _Pattern:
    regex: re.Pattern[str]
    open_ended: re.Pattern[str] | None  # None: nothing is decided before the text ends
    reach: int = 0

    @classmethod
    def compile(cls, source: str) -> _Pattern:
        try:
            regex = re.compile(source)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"truncation: not a valid regular expression: {source!r} ({error})"
            ) from None
        tree = _parser.parse(source)
        try:
            return cls(regex, _compiler.compile(_open_ended(tree)), _reach(tree))
        except _UnsupportedError:
            return cls(regex, None)


class Truncator:
    r"""Cuts a text before the first match of a regular expression, then strips its right end.

    Args:
        patterns: a regular expression of `re`, or several, any of which cuts; `None` keeps the
            whole text, trailing blanks included.

    Raises:
        TypeError: `patterns` is something else.
        ValueError: one of them does not compile, or there is nothing in it.
    """

    def __init__(self, patterns: str | Sequence[str] | None = DEFAULT_TRUNCATION) -> None:
        self._patterns: list[_Pattern] | None = None
        if patterns is None:
            return
        sources = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(sources, (list, tuple)) or any(not isinstance(s, str) for s in sources):
            raise TypeError(f"truncation must be a regex, a list of them or None, got {patterns!r}")
        if not sources or not all(sources):
            raise ValueError(f"truncation: {patterns!r} is empty; None keeps the whole text")
        self._patterns = [_Pattern.compile(source) for source in sources]

    def truncate(self, text: str) -> str:
        """Return `re.split(pattern, text)[0].rstrip()`, the shortest over the patterns."""
        if self._patterns is None:
            return text
        matches = [match for one in self._patterns if (match := one.regex.search(text))]
        return text[: min((match.start() for match in matches), default=len(text))].rstrip()

    def decided(self, text: str) -> str | None:
        """Return `truncate(text)` if it is `truncate(text + more)` for any `more`, else `None`.

        `None` may also mean that this could not be proved: see `Scanner`.
        """
        return self.scanner().feed(text)

    def scanner(self) -> Scanner:
        """Return a new scanner, for one text that grows."""
        return Scanner(self._patterns)


class Scanner:
    """`Truncator.decided` for a text that comes piece by piece, each looked at about once.

    Attributes:
        text: all that has been fed.

    What cannot be proved is decided late, never wrongly: patterns with back references,
    conditionals, or unbounded lookahead, atomic groups or possessive repeats are never decided.
    """

    def __init__(self, patterns: Sequence[_Pattern] | None) -> None:
        self.text = ""
        self._patterns = patterns
        # For each pattern, the earliest place where a match may ever begin.
        self._starts = [0] * len(patterns or ())

    def feed(self, delta: str) -> str | None:
        """Append `delta`; return the truncated text once no further text can change it."""
        self.text = text = self.text + delta
        if self._patterns is None:
            return None
        cut = len(text) + 1
        for n, pattern in enumerate(self._patterns):
            if pattern.open_ended is None:
                continue
            possible = pattern.open_ended.search(text, self._starts[n])
            self._starts[n] = start = possible.start() if possible else len(text)
            match = pattern.regex.search(text, start)
            if match and match.end() + pattern.reach <= len(text):
                cut = min(cut, match.start())
        # Cuts that differ by blanks alone come to the same text.
        if cut > len(text) or text[min(self._starts) : cut].strip():
            return None
        return text[:cut].rstrip()

    @property
    def settled(self) -> str:
        """What the truncated text begins with, however the text goes on."""
        if self._patterns is None:
            return self.text
        return self.text[: min(self._starts)].rstrip()
