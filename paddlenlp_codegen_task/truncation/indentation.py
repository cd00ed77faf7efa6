"""Cutting Python code after the indented block it is in."""

from __future__ import annotations

from typing import NamedTuple

from paddlenlp_codegen_task.truncation.lexer import (
    ESCAPE,
    SINGLE,
    Lexer,
    Span,
    Syntax,
    Token,
    quoted,
    triple_quoted,
)

_SYNTAX = Syntax(
    [
        Span("comment", "#", r"[^\n]*((?=\n))?"),
        triple_quoted('"'),
        triple_quoted("'"),
        quoted('"', SINGLE.format('"')),
        quoted("'", SINGLE.format("'")),
    ],
    # Words come whole, and blanks apart.
    rf"\w+(?=\W)|\n|[^\S\n]+|[()\[\]{{}}]|{ESCAPE}|[^\w\s()\[\]{{}}#'\"\\]+",
)

_FUNCTIONS = {"def", "async"}
_DEFINITIONS = _FUNCTIONS | {"class"}
_CONTINUATIONS = {"elif", "else", "except", "finally"}
_CONTINUED = {"if", "elif", "for", "while", "try", "except", "else"}
_COMPOUND = _DEFINITIONS | _CONTINUATIONS | _CONTINUED | {"with"}
_IMPORTS = {"import", "from"}


class _Line(NamedTuple):
    """A logical line: how far it is indented, and its first word."""

    width: int
    word: str


class IndentCut:
    """Where a completion's indented block ends; see `cut.Cut`.

    The block is that of the outermost function which the prompt left open, or else of the line
    that is not indented; it ends before the next line that is indented no more than that. If the
    prompt ends outside any block, it is after the first function or class of the completion, or
    at two blank lines, or a blank line and a comment, if these come first, after some code.
    """

    def __init__(self, prompt: str) -> None:
        self.position: int | None = None
        self.earliest = 0
        self._prompt = prompt
        self._lexer = Lexer(_SYNTAX)
        self._line = 0  # where the line begins
        self._first: Token | None = None  # of the logical line
        self._last = ""  # character of code
        self._depth = 0  # of brackets
        self._newlines = 0  # since the last text
        self._lines: list[_Line] = []  # the prompt's last, and those it is indented below
        self._opens = False  # the prompt's last line begins a block
        self._head = _Line(0, "")  # of the block, or the last line outside any
        self._in_block = False
        self._block_may_be_over = False  # the prompt ends with a blank line
        self._wrote_code = False
        self._read(prompt)

    def feed(self, text: str) -> None:
        """Look at a text that has grown."""
        if self.position is not None:
            return
        self._read(self._prompt + text)
        if self.position is not None:
            self.earliest = self.position
        elif self._first is None or self._lexer.position == self._line:
            self.earliest = max(0, self._lexer.position - len(self._prompt))
        else:
            self.earliest = len(text)

    def end(self, text: str) -> int:
        """Where `text` is cut if it ends here."""
        self.feed(text + "\n")
        return min(self.earliest, len(text))

    def _read(self, text: str) -> None:
        for token in self._lexer.tokens(text):
            if token.text == "\n":
                self._end_line(token.start)
            elif not token.text.isspace():
                self._take(token)
            if self.position is not None:
                return

    def _end_line(self, start: int) -> None:
        self._line = start + 1
        if self._depth:
            return
        self._newlines += 1
        if self._newlines == 3 and self._wrote_code and not self._in_block:
            self.position = start - len(self._prompt)
        if start < len(self._prompt):
            if self._first is None:
                self._block_may_be_over = not self._opens
            else:
                self._find_block(opens=self._last == ":")
        self._first = None

    def _take(self, token: Token) -> None:
        newlines, self._newlines = self._newlines, 0
        if self._depth and token.start == self._line and token.text in ("def", "class"):
            self._depth, self._first = 0, None  # a bracket was never closed
        if self._first is None:
            self._first = token
            line = _Line(token.start - self._line, token.text)
            if token.start < len(self._prompt):
                self._begin_prompt_line(line)
            elif not self._goes_on(line, token.kind == "comment" and newlines > 1):
                self.position = token.start - len(self._prompt)
        self._block_may_be_over = False
        if token.kind == "comment":
            return
        self._last = token.text.strip()[-1:]
        if token.kind == "code":
            if token.text in ("(", "[", "{"):
                self._depth += 1
            elif token.text in (")", "]", "}"):
                self._depth = max(0, self._depth - 1)
        if token.start + len(token.text) > len(self._prompt):
            self._wrote_code |= self._first.kind == "code" and self._first.text not in _IMPORTS

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

    def _goes_on(self, line: _Line, new_paragraph: bool) -> bool:
        """Whether a line of the completion belongs to what it completes.

        Args:
            line: the line.
            new_paragraph: it is a comment after a blank line.
        """
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
        if (over and not self._block_may_be_over) or (new_paragraph and self._wrote_code):
            return False
        self._head, self._in_block = line, line.word in _DEFINITIONS
        return True
