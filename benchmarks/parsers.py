"""Where functions end by their languages' own parsers: Python's ast, tree-sitter for the others.

What docs/truncation.md says of a prompt that ends in a function is worked out a second time, from
syntax trees instead of text, for truncation.py to compare. Here is what all languages share, and
Python; grammars.py has the others.
"""

from __future__ import annotations

import ast
import warnings
from dataclasses import dataclass
from typing import Any, Protocol


class UnreadableError(Exception):
    """The parser does not take the file."""


@dataclass(frozen=True)
class Region:
    """Something that a prompt may leave open, such as a function.

    Attributes:
        start: where it begins.
        end: behind its last character.
        ends: where a completion may end that closes it: `end`, and that of the statement around
            it, as for the `);` of a call whose argument it is.
    """

    start: int
    end: int
    ends: frozenset[int]

    def holds(self, cut: int) -> bool:
        """Whether a prompt that ends at `cut` leaves it open."""
        return self.start < cut < self.end


class Source(Protocol):
    """One file as its parser sees it.

    Attributes:
        text: all of it, with line feeds alone as line ends.
        functions: those to cut in, without those that the parser does not understand.
        left_out: how many these are.
        damaged: the parser found errors elsewhere in the file.
    """

    text: str
    functions: list[Region]
    left_out: int
    damaged: bool

    def expected(self, cut: int) -> Region:
        """What a completion should complete if the prompt ends at `cut`, in a function."""

    def others(self, cut: int) -> dict[str, list[Region]]:
        """What else the prompt leaves open, by name, to tell kinds of differences."""


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class _Statement(Region):
    """A compound statement of Python; its `word`, such as `def`, follows its decorators."""

    is_function: bool
    word: int


def width(line: str) -> int:
    """How far a line is indented, as Python's tokenizer counts."""
    columns = 0
    for character in line:
        if character == "\t":
            columns += 8 - columns % 8
        elif character == "\f":
            columns = 0
        elif character == " ":
            columns += 1
        else:
            break
    return columns


class PythonSource:
    """A Python file; see `Source`."""

    damaged = False
    left_out = 0

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its strings' backslashes
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UnreadableError(str(error)) from error
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)
        nodes = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)]
        self._functions = [self._region(node) for node in nodes]
        self.functions: list[Region] = [*self._functions]
        self._blocks = [
            self._region(node)
            for node in tree.body
            if hasattr(node, "body") or isinstance(node, ast.Match)
        ]

    def _offset(self, line: int, column: int) -> int:
        """Of a place that is told as ast does, in bytes."""
        text = self._lines[line - 1]
        if not text.isascii():
            column = len(text.encode()[:column].decode())
        return self._starts[line - 1] + column

    def _region(self, node: Any) -> _Statement:
        column = node.col_offset
        start = self._offset(node.lineno, column)
        lines = [decorator.lineno for decorator in getattr(node, "decorator_list", ())]
        return _Statement(
            min([start, *(self._offset(line, column) for line in lines)]),
            self._offset(node.end_lineno, node.end_col_offset),
            frozenset({self._with_comments(node.end_lineno, width(self._lines[node.lineno - 1]))}),
            is_function=isinstance(node, _FUNCTIONS),
            word=start,
        )

    def _with_comments(self, line: int, above: int) -> int:
        """The end of a line, or of the last of those behind it that are deeper comments."""
        last = line
        for number in range(line, len(self._lines)):
            text = self._lines[number]
            if not text.strip():
                continue
            if not text.strip().startswith("#") or width(text) <= above:
                break
            last = number + 1
        return self._starts[last] - 1

    def expected(self, cut: int) -> Region:
        """See `Source`. Before its `def`, a function with decorators is none yet."""
        around = [function for function in self._functions if function.holds(cut)]
        begun = [function for function in around if function.word < cut]
        blocks = [block for block in self._blocks if block.holds(cut) and not block.is_function]
        return min(begun or blocks or around, key=lambda region: region.start)

    def others(self, cut: int) -> dict[str, list[Region]]:
        """See `Source`."""
        return {
            "another function around": [r for r in self._functions if r.holds(cut)],
            "the block around": [r for r in self._blocks if r.holds(cut)],
        }
