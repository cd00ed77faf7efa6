"""Tells code from comments and literals, in a text that grows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

# A backslash and what it escapes; a line break may be two characters.
ESCAPE = r"\\(?:\r\n|\r(?=[^\n])|[^\r])"


class Span(NamedTuple):
    """A stretch of text that is no code.

    Attributes:
        kind: what it is.
        open: regex of what begins it; must not match what further text could make another's.
        inside: regex of what follows, as far as no further text can change how it is read; its
            first group is the end, if it is there. `DELIMITER` stands for what `open` holds
            between its first and last character.
    """

    kind: Literal["comment", "literal", "directive"]
    open: str
    inside: str


class Token(NamedTuple):
    """A piece of code, or what begins a span; pieces of plain text may be split anywhere."""

    kind: Literal["code", "comment", "literal", "directive"]
    text: str
    start: int


def quoted(quote: str, open: str = "") -> Span:
    """A literal that ends at `quote`, or with its line."""
    return Span("literal", open or quote, rf"(?:[^{quote}\\\n]+|{ESCAPE})*({quote}|(?=\n))?")


def triple_quoted(quote: str) -> Span:
    """A literal that may hold line breaks and single quotes."""
    body = rf"(?:[^{quote}\\]+|{ESCAPE}|{quote}{{1,2}}(?=[^{quote}]))*"
    return Span("literal", quote * 3, rf"{body}({quote * 3})?")


# Where triple quotes exist, a quote tells what it is only with the character or two after it.
SINGLE = "{0}(?=[^{0}])|{0}(?={0}[^{0}])"

BLOCK_COMMENT = Span("comment", r"/\*", r"(?:[^*]+|\*(?=[^/]))*(\*/)?")
LINE_COMMENT = Span("comment", "//", r"[^\n]*((?=\n))?")
TO_END_OF_LINE = rf"(?:[^\n\\]+|{ESCAPE})*((?=\n))?"  # a backslash continues the line
# `${` in it begins code, which its `}` ends.
TEMPLATE = Span("literal", "`", rf"(?:[^`\\$]+|{ESCAPE}|\$(?=[^{{]))*(`|\${{)?")


class Syntax:
    """How the code of a language is told from the rest.

    Args:
        spans: comments and literals, the first that matches counts.
        plain: regex of a piece of code; must not match what further text could make a span's.
    """

    def __init__(self, spans: Sequence[Span], plain: str) -> None:
        self.spans = {f"span{n}": span for n, span in enumerate(spans)}
        openings = [f"(?P<{name}>{span.open})" for name, span in self.spans.items()]
        self.code = re.compile("|".join([*openings, plain]))


class Lexer:
    """Reads one text once.

    Attributes:
        position: up to where it has been read; the rest waits for further text.
    """

    def __init__(self, syntax: Syntax) -> None:
        self.position = 0
        self._syntax = syntax
        self._inside: re.Pattern[str] | None = None  # of the span it is in

    def tokens(self, text: str) -> Iterator[Token]:
        """Read on in a text that has grown; may be left at any token."""
        while True:
            if self._inside is not None:
                inside = self._inside.match(text, self.position)
                assert inside is not None  # it may be empty
                self.position = inside.end()
                if inside[1] is None:
                    return
                self._inside = None
                if inside[1] == "${":
                    yield Token("code", "${", self.position - 2)
                continue
            code = self._syntax.code.match(text, self.position)
            if code is None:
                return
            self.position = code.end()
            if code.lastgroup is None:
                yield Token("code", code[0], code.start())
            else:
                span = self._syntax.spans[code.lastgroup]
                self._inside = _compiled(span, code[0])
                yield Token(span.kind, code[0], code.start())

    def resume_template(self) -> None:
        """Read on inside a template literal, after the `}` that ends its code."""
        self._inside = _compiled(TEMPLATE, "`")


def _compiled(span: Span, opening: str) -> re.Pattern[str]:
    return re.compile(span.inside.replace("DELIMITER", re.escape(opening[1:-1])))
