"""Tells code from comments and literals, in a text that grows."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

# A line break is two characters at times, so one that ends the text is not known before more comes.
LINE_BREAK = r"\n|\r\n|\r(?=[^\n])"
# A backslash and what it escapes.
ESCAPE = r"\\(?:\r\n|\r(?=[^\n])|[^\r])"
AT_LINE_END = r"(?=[\r\n])"

Kind = Literal["code", "comment", "literal", "directive"]


# A piece of code, or what begins a span, and where it begins. Line breaks come whole and apart, and
# so do blanks, brackets and semicolons, but blanks may come in several pieces, and so may the rest.
# A plain tuple, as there are so many.
Token = tuple[Kind, str, int]
LINE_BREAKS = frozenset(("\n", "\r\n", "\r"))


class Inside(Protocol):
    """How what follows the opening of a span is read."""

    def read(self, text: str, position: int) -> tuple[int, str | None]:
        """Read on from `position`, as far as no further text can change how that is read.

        Returns:
            How far it is read, and what ends the span, which may be no character; None if it goes
            on.
        """


class Matching:
    """By a regex that always matches; its first group is the end, if it is there."""

    def __init__(self, regex: str) -> None:
        self._match = re.compile(regex).match

    def read(self, text: str, position: int) -> tuple[int, str | None]:
        """See Inside."""
        found = self._match(text, position)
        assert found is not None  # it may be empty
        return found.end(), found[1]


class Until:
    """Up to the first occurrence of a string."""

    def __init__(self, closing: str) -> None:
        self._closing = closing

    def read(self, text: str, position: int) -> tuple[int, str | None]:
        """See Inside."""
        found = text.find(self._closing, position)
        if found < 0:
            return max(position, len(text) - len(self._closing) + 1), None
        return found + len(self._closing), self._closing


@dataclass(frozen=True)
class Span:
    """A stretch of text that is no code.

    Attributes:
        kind: what it is.
        open: regex of what begins it; must not match what further text could make another's.
        inside: how it goes on, told from what began it.
    """

    kind: Literal["comment", "literal", "directive"]
    open: str
    inside: Callable[[str], Inside]

    @classmethod
    def matching(
        cls, kind: Literal["comment", "literal", "directive"], open: str, regex: str
    ) -> Span:
        """Return a span that goes on by a regex, see `Matching`."""
        inside = Matching(regex)
        return cls(kind, open, lambda opening: inside)


def quoted(quote: str, open: str = "") -> Span:
    """A literal that ends at `quote`, or with its line."""
    inside = rf"(?:[^{quote}\\\r\n]+|{ESCAPE})*({quote}|{AT_LINE_END})?"
    return Span.matching("literal", open or quote, inside)


def triple_quoted(quote: str) -> Span:
    """A literal that may hold line breaks and single quotes."""
    body = rf"(?:[^{quote}\\]+|{ESCAPE}|{quote}{{1,2}}(?=[^{quote}]))*"
    return Span.matching("literal", quote * 3, rf"{body}({quote * 3})?")


# Where triple quotes exist, a quote tells what it is only with the character or two after it.
SINGLE = "{0}(?=[^{0}])|{0}(?={0}[^{0}])"

BLOCK_COMMENT = Span("comment", r"/\*", lambda opening: Until("*/"))
LINE_COMMENT = Span.matching("comment", "//", rf"[^\r\n]*({AT_LINE_END})?")
# A backslash continues the line.
TO_END_OF_LINE = rf"(?:[^\r\n\\]+|{ESCAPE})*({AT_LINE_END})?"


class Lexer(Protocol):
    """Reads one text once.

    Attributes:
        position: up to where it has been read; the rest waits for further text.
    """

    position: int

    def tokens(self, text: str) -> Iterator[Token]:
        """Read on in a text that has grown; may be left at any token."""

    def copy(self) -> Lexer:
        """Return another that goes on from here."""


class Syntax:
    """How the code of a language is told from the rest, where no more than the text decides.

    Args:
        spans: comments and literals, the first that matches counts.
        plain: regex of a piece of code; must not match what further text could make a span's.
    """

    def __init__(self, spans: Sequence[Span], plain: str) -> None:
        self.spans = {f"span{n}": span for n, span in enumerate(spans)}
        openings = [f"(?P<{name}>{span.open})" for name, span in self.spans.items()]
        self.code = re.compile("|".join([*openings, plain]))

    def lexer(self) -> Lexer:
        """Return a lexer at the beginning of a text."""
        return SyntaxLexer(self)


class SyntaxLexer:
    """See `Lexer`."""

    def __init__(self, syntax: Syntax) -> None:
        self.position = 0
        self._syntax = syntax
        self._inside: Inside | None = None  # of the span it is in

    def tokens(self, text: str) -> Iterator[Token]:
        """See Lexer."""
        spans, match = self._syntax.spans, self._syntax.code.match
        while True:
            if self._inside is not None:
                self.position, end = self._inside.read(text, self.position)
                if end is None:
                    return
                self._inside = None
            code = match(text, self.position)
            if code is None:
                return
            self.position = code.end()
            if code.lastgroup is None:
                yield "code", code[0], code.start()
            else:
                span = spans[code.lastgroup]
                self._inside = span.inside(code[0])
                yield span.kind, code[0], code.start()

    def copy(self) -> SyntaxLexer:
        """See Lexer."""
        return copy.copy(self)
