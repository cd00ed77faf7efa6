"""Cutting Python code after the indented block it is in."""

from __future__ import annotations

import copy
from typing import NamedTuple

from paddlenlp_codegen_task.truncation.lexer import (
    AT_LINE_END,
    ESCAPE,
    LINE_BREAK,
    LINE_BREAKS,
    SINGLE,
    Kind,
    Span,
    Syntax,
    quoted,
    triple_quoted,
)

_SYNTAX = Syntax(
    [
        Span.matching("comment", "#", rf"[^\r\n]*({AT_LINE_END})?"),
        triple_quoted('"'),
        triple_quoted("'"),
        quoted('"', SINGLE.format('"')),
        quoted("'", SINGLE.format("'")),
    ],
    # Words come whole, if they are not longer than any keyword, and blanks apart, also the one that
    # some editors begin a file with.
    rf"\w{{1,16}}(?=\W)|\w{{17,}}|{LINE_BREAK}|[^\S\r\n]+|\ufeff|[()\[\]{{}}]|{ESCAPE}"
    rf"|[^\w\s\ufeff()\[\]{{}}#'\"\\]+",
)

_FUNCTIONS = {"def", "async"}
_DEFINITIONS = _FUNCTIONS | {"class"}
_CONTINUATIONS = {"elif", "else", "except", "finally"}
_CONTINUED = {"if", "elif", "for", "while", "try", "except", "else"}
_COMPOUND = _DEFINITIONS | _CONTINUATIONS | _CONTINUED | {"with"}
_IMPORTS = {"import", "from"}


# What adds nothing to the column of what follows.
_NO_WIDTH = "\r\n\ufeff"


class _Line(NamedTuple):
    """A logical line: how far it is indented, and its first word."""

    width: int
    word: str


class IndentCut:
    """Where a completion's indented block ends; see `cut.Cut`.

    The block is that of the outermost function which the prompt left open, or else of the line
    that is not indented; it ends before the next line that is indented no more than that, and
    before the comments above it. If the prompt ends outside any block, it is after the first
    function or class of the completion, or at two blank lines, or a blank line and a comment, if
    these come first, after some code. As in Python, comments and blank lines have no indentation.
    """

    def __init__(self, prompt: str) -> None:
        self.position: int | None = None
        self.earliest = 0
        self._prompt = prompt
        self._lexer = _SYNTAX.lexer()
        self._line = 0  # where the line begins
        self._word = ""  # the logical line's first; "" before it and in a comment alone
        self._begun_in_prompt = False  # that line
        self._counts = False  # it is code, and no import
        self._in_comment = False  # the line is a comment alone
        self._last = ""  # character of code
        self._depth = 0  # of brackets
        self._newlines = 0  # since the last text
        self._lines: list[_Line] = []  # the prompt's last, and those it is indented below
        self._opens = False  # the prompt's last line begins a block
        self._head = _Line(0, "")  # of the block, or the last line outside any
        self._in_block = False
        self._block_may_be_over = False  # the prompt ends with a blank line, or a comment that says
        self._comments: int | None = None  # of the completion, where they begin that may end it
        self._wrote_code = False
        self._read(prompt)

    def feed(self, text: str) -> None:
        """Look at a text that has grown."""
        if self.position is not None:
            return
        self._read(self._prompt + text)
        if self.position is not None:
            self.earliest = self.position
        elif self._comments is not None:
            self.earliest = self._comments
        elif not self._word or self._lexer.position == self._line:
            self.earliest = max(0, self._lexer.position - len(self._prompt))
        else:
            self.earliest = len(text)

    def end(self, text: str) -> int:
        """Where `text` is cut if it ends here."""
        self.feed(text + "\n")
        if self.position is None and not self._wrote_code:
            return len(text)  # comments alone, whatever they belong to
        return min(self.earliest, len(text))

    def copy(self) -> IndentCut:
        """See Cut."""
        other = copy.copy(self)
        other._lexer = self._lexer.copy()
        other._lines = list(self._lines)
        return other

    def _read(self, text: str) -> None:
        for kind, piece, start in self._lexer.tokens(text):
            if piece in LINE_BREAKS:
                self._end_line(start, start + len(piece))
            elif not self._is_blank(piece):
                self._take(kind, piece, start, text)
            if self.position is not None:
                return

    def _is_blank(self, piece: str) -> bool:
        """Whether it has no part in a line, but for its indentation."""
        if piece.isspace() or piece == "\ufeff":
            return True
        return not self._word and piece[0] == "\\" and piece[-1] in "\r\n"

    def _end_line(self, start: int, end: int) -> None:
        """Take a line break."""
        self._line = end
        if self._depth:
            return
        self._newlines += 1
        if self._newlines == 3 and self._wrote_code and not self._in_block:
            self.position = start - len(self._prompt)
        in_prompt = start < len(self._prompt)
        if self._word:
            opens = self._last == ":"
            if in_prompt or (opens and self._begun_in_prompt):
                self._find_block(opens)
        elif in_prompt and not self._in_comment:
            self._block_may_be_over = not self._opens
        self._word, self._in_comment = "", False

    def _take(self, kind: Kind, piece: str, start: int, text: str) -> None:
        newlines, self._newlines = self._newlines, 0
        if self._depth and start == self._line and piece in ("def", "class"):
            self._depth, self._word = 0, ""  # a bracket was never closed
        if not self._word:
            width = _columns(text[self._line : start])
            if kind == "comment":
                self._begin_comment(start, width, newlines > 1)
                return
            self._begin_line(_Line(width, piece), start)
            self._counts = kind == "code" and piece not in _IMPORTS
        if kind == "comment":
            return
        self._last = piece[-1]
        if kind == "code":
            if piece in "([{":
                self._depth += 1
            elif piece in ")]}":
                self._depth = max(0, self._depth - 1)
        if start + len(piece) > len(self._prompt):
            self._wrote_code |= self._counts

    def _begin_comment(self, start: int, width: int, new_paragraph: bool) -> None:
        """Look at a comment that has a line of its own; what it belongs to follows it.

        Args:
            start: where it begins.
            width: how far it is indented.
            new_paragraph: it comes after a blank line.
        """
        self._in_comment = True
        if start < len(self._prompt):
            self._block_may_be_over = not self._opens and width <= self._head.width
        elif width <= self._head.width:
            if new_paragraph and self._wrote_code and not self._in_block:
                self.position = start - len(self._prompt)
            elif self._comments is None:
                self._comments = start - len(self._prompt)

    def _begin_line(self, line: _Line, start: int) -> None:
        self._word = line.word
        self._begun_in_prompt = start < len(self._prompt)
        if self._begun_in_prompt:
            self._begin_prompt_line(line)
        elif not self._goes_on(line):
            found = start - len(self._prompt)
            self.position = found if self._comments is None else self._comments
        self._comments = None
        self._block_may_be_over = False

    def _begin_prompt_line(self, line: _Line) -> None:
        while self._lines and line.width <= self._lines[-1].width:
            self._lines.pop()
        if line.width and not self._lines:
            self._lines.append(_Line(0, ""))  # a block whose beginning is not in the text
        self._lines.append(line)
        self._find_block(opens=line.word in _COMPOUND)

    def _find_block(self, opens: bool) -> None:
        """Find the block that the prompt leaves open if its last line begins one, or does not."""
        self._opens = opens
        blocks = self._lines if opens else self._lines[:-1]
        functions = [block for block in blocks if block.word in _FUNCTIONS]
        self._head = [*functions, *blocks, _Line(0, "")][0]
        self._in_block = bool(blocks)

    def _goes_on(self, line: _Line) -> bool:
        """Whether a line of the completion belongs to what it completes."""
        if not self._lines:  # no code in the prompt
            self._begin_prompt_line(line)
            self._find_block(opens=False)
        if line.width > self._head.width:
            return True
        if line.word in (")", "]", "}"):
            return True  # of a bracket that is not in the prompt
        if self._in_block and line.word in _CONTINUATIONS and self._head.word in _CONTINUED:
            return True
        over = self._in_block or line.width < self._head.width
        if over and not self._block_may_be_over:
            return False
        self._head, self._in_block = line, line.word in _DEFINITIONS
        return True


def _columns(indentation: str) -> int:
    """The column of what follows the blanks that begin a line, as Python's tokenizer counts."""
    column = 0
    for character in indentation:
        if character == "\t":
            column += 8 - column % 8
        elif character == "\f":
            column = 0
        elif character == "\\" and column:
            break  # a line that goes on in the next one is indented as it begins
        elif character not in _NO_WIDTH:
            column += character != "\\"
    return column
