"""Cutting before a match of a regular expression.

A completion is generated piece by piece, and generating can end as soon as no further text could
change the cut. To know that, each pattern is compiled twice: as it is, and "open-ended", where
the end of the text is accepted in place of whatever the pattern asks for next. The leftmost match
of the open-ended pattern is the earliest place where a match may ever begin.
"""

from __future__ import annotations

import copy
import importlib
import re
import reprlib
import warnings
from dataclasses import dataclass
from itertools import islice
from typing import Any

from paddlenlp_codegen_task.truncation.cut import Rule

# The parse tree of a regular expression has no public interface.
_parser: Any = importlib.import_module("re._parser")
_compiler: Any = importlib.import_module("re._compiler")

_shown = reprlib.Repr()
_shown.maxstring = 80
_CHARACTER = ("LITERAL", "NOT_LITERAL", "ANY", "IN")
_REPEAT = ("MAX_REPEAT", "MIN_REPEAT")
# How many characters further on each anchor looks. `$` is the end, or before a newline at the end.
_ANCHOR_REACH = {"AT_BEGINNING": 0, "AT_BEGINNING_STRING": 0, "AT_END": 2}


class _UnsupportedError(Exception):
    """A construct about which nothing is proved: a back reference, a conditional, an atomic group.

    Without what an atomic group or a possessive repeat forbids, backtracking may take for ever.
    """


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
        elif name in _REPEAT:
            low, high, inner = value
            nodes.append((_parser.MAX_REPEAT, (low, high, _open_ended(inner))))
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of "[[", which may mean something else some day
            try:
                regex = re.compile(source)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"truncation: not a valid regular expression: {_shown.repr(source)} ({error})"
                ) from None
            tree = _parser.parse(source)
        try:
            return cls(regex, _compiler.compile(_open_ended(tree)), _reach(tree))
        except (_UnsupportedError, RecursionError):
            return cls(regex, None)


def pattern_rule(source: str, nth: int = 1) -> Rule:
    """Return the rule that cuts before the n-th match of a regular expression.

    Beyond the first, only matches that no earlier one can turn up before are counted.

    Raises:
        ValueError: it does not compile.
    """
    pattern = _Pattern.compile(source)
    return lambda prompt: PatternCut(pattern, nth)


class PatternCut:
    """Where a pattern cuts one text; see `cut.Cut`."""

    def __init__(self, pattern: _Pattern, nth: int) -> None:
        self.position: int | None = None
        self.earliest = 0
        self._pattern = pattern
        self._nth = nth
        self._passed = 0

    def feed(self, text: str) -> None:
        """Look at a text that has grown."""
        regex, open_ended = self._pattern.regex, self._pattern.open_ended
        self.position = None
        while open_ended is not None:
            possible = open_ended.search(text, self.earliest)
            self.earliest = possible.start() if possible else len(text)
            match = regex.search(text, self.earliest)
            if match is None or match.end() + self._pattern.reach > len(text):
                return
            if self._passed == self._nth - 1:
                self.position = match.start()
                return
            if match.start() > self.earliest:
                return  # another may come before it
            self._passed += 1
            self.earliest = match.end()

    def copy(self) -> PatternCut:
        """See Cut."""
        return copy.copy(self)

    def end(self, text: str) -> int:
        """Where `text` is cut if it ends here."""
        match = next(islice(self._pattern.regex.finditer(text), self._nth - 1, None), None)
        return match.start() if match else len(text)
