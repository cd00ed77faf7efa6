"""Cutting Python code after the indented block it is in."""

from __future__ import annotations

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

_DEFINITIONS = {"def", "class", "async"}
_CONTINUATIONS = {"elif", "else", "except", "finally"}
_CONTINUED = {"if", "elif", "for", "while", "try", "except", "else"}
_COMPOUND = _DEFINITIONS | _CONTINUATIONS | _CONTINUED | {"with"}
_IMPORTS = {"import", "from"}


class IndentCut:
    """Where a completion's indented block ends; see `cut.Cut`.

    If the prompt ends in an indented block, or in what begins one, that is before the next line
    that is not indented. Otherwise it is after the first function or class of the completion, or
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
        self._head = ""  # first word of the last logical line that is not indented
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
        elif self._first is not None:
            self.earliest = len(text)
        else:
            self.earliest = max(0, self._lexer.position - len(self._prompt))

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
        if self._depth:
            return
        self._newlines += 1
        if self._newlines == 3 and self._wrote_code and not self._in_block:
            self.position = start - len(self._prompt)
        if start < len(self._prompt):
            if self._first is None:
                self._block_may_be_over = self._last != ":"
            elif self._first.start == self._line:
                self._in_block = self._last == ":"
        self._first = None
        self._line = start + 1

    def _take(self, token: Token) -> None:
        newlines, self._newlines = self._newlines, 0
        if self._first is None:
            self._first = token
            self._begin_line(token, newlines)
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

    def _begin_line(self, token: Token, newlines: int) -> None:
        text, in_prompt = token.text, token.start < len(self._prompt)
        if token.start > self._line:
            # A text that begins with an indented line goes on in a block that it does not show.
            if in_prompt or not self._head:
                self._in_block = True
        elif in_prompt:
            self._head, self._in_block = text, text in _COMPOUND
        elif text in (")", "]", "}"):
            pass  # of a bracket that is not in the prompt
        elif self._in_block and text in _CONTINUATIONS and self._head in _CONTINUED:
            pass
        elif (self._in_block and not self._block_may_be_over) or (
            token.kind == "comment" and self._wrote_code and newlines > 1
        ):
            self.position = token.start - len(self._prompt)
        else:
            self._head, self._in_block = text, text in _DEFINITIONS
