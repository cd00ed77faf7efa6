"""Cutting after the brace that closes a function."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import NamedTuple

from paddlenlp_codegen_task.truncation.languages import Language
from paddlenlp_codegen_task.truncation.lexer import Lexer, Token

# After these a brace holds values: an initialiser, an object, an argument.
_VALUE = re.compile(r"[=,:;?&|+({\[]$")
_CONTINUED = re.compile(r"\b(?:if|else|try|catch)\b")
_CONTINUATION = re.compile(r"\s*(?:else|catch|finally)\b")
_MAYBE_CONTINUATION = re.compile(r"\s*[a-z]*")
# What belongs to the closed block: `} Point;`, `} __attribute__((packed));`, `})();`,
# `}.bind(this)`.
_NAMES = r"[\w \t,*\[\]]*"
_TAIL = re.compile(
    rf"{_NAMES}(?:__attribute__[ \t]*\(\([\w, ()]*\)\){_NAMES})?;"
    r"|(?:(?:\.\w+)?\([\w$., ]*\))+;?"
)
_MAYBE_TAIL = re.compile(r"[\w$ \t,.*()\[\]]*")

_OPENING = {")": "(", "]": "["}
# Long enough for any header, and bounds what a text without semicolons costs.
_HEADER_LENGTH = 1000


class _Kind(Enum):
    FUNCTION = auto()  # the outermost block that runs
    WITHIN = auto()  # anything in a function
    CONTAINER = auto()  # a class, a namespace
    OTHER = auto()  # parentheses, brackets, values


class _Block(NamedTuple):
    """A bracket that is open: `(`, `[`, `{`, or the `${` of a template literal."""

    bracket: str
    kind: _Kind
    start: int
    header: str
    parent: _Block | None


class BraceCut:
    """Where a completion's function ends; see `cut.Cut`.

    That is after the brace that closes the outermost function which the prompt left open (of those
    within callbacks, `Language.nested` ones), or else the first one in the completion, together
    with any bracket that the completion opened around it; or a class which the prompt left open.
    Two blank lines after some code, outside brackets, end the completion too.
    """

    def __init__(self, language: Language, prompt: str) -> None:
        self.position: int | None = None
        self.earliest = 0
        self._language = language
        self._prompt = prompt
        self._lexer = Lexer(language.syntax)
        self._block: _Block | None = None  # the innermost
        self._header = ""
        self._branches: list[tuple[_Block | None, str]] = []  # state at each open #if
        self._awaited: _Block | None = None  # to end with
        self._newlines = 0  # since the last text
        self._wrote_code = False
        self._closed: int | None = None  # the end, but for what may belong to it
        self._may_continue = False
        self._read(prompt)

    def feed(self, text: str) -> None:
        """Look at a text that has grown."""
        if self.position is not None:
            return
        self._read(self._prompt + text)
        if self.position is not None:
            self.earliest = self.position
        elif self._closed is not None:
            self.earliest = self._closed - len(self._prompt)
        else:
            self.earliest = len(text)

    def end(self, text: str) -> int:
        """Where `text` is cut if it ends here."""
        self.feed(text + "\n")
        return min(self.earliest, len(text))

    def _read(self, text: str) -> None:
        while self.position is None:
            if self._closed is None:
                for token in self._lexer.tokens(text):
                    self._take(token)
                    if self._closed is not None or self.position is not None:
                        break
                else:
                    return
            elif not self._finish(text, self._closed):
                return

    def _finish(self, text: str, closed: int) -> bool:
        """Tell where it ends; return whether that is known."""
        if self._may_continue:
            if _MAYBE_CONTINUATION.fullmatch(text, closed):
                return False
            if _CONTINUATION.match(text, closed):
                self._closed = None
                return True
        if _MAYBE_TAIL.fullmatch(text, closed):
            return False
        tail = _TAIL.match(text, closed)
        self.position = (tail.end() if tail else closed) - len(self._prompt)
        return True

    def _take(self, token: Token) -> None:
        text = token.text
        if text == "\n":
            self._end_line(token.start)
            return
        if text.isspace():
            self._append(text)
            return
        self._newlines = 0
        if token.kind == "directive":
            self._choose_branch(text[1:].strip())
        elif token.kind != "comment":
            self._wrote_code |= token.start + len(text) > len(self._prompt)
            self._take_code(token)

    def _take_code(self, token: Token) -> None:
        text = token.text
        if token.kind == "literal":
            self._append('""')
        elif text in ("(", "[", "{", "${"):
            kind = self._kind(text, token.start)
            self._block = _Block(text, kind, token.start, self._header, self._block)
            self._begin(text)
        elif text in (")", "]", "}"):
            self._close(text, token.start + 1)
        elif text == ";" and not self._language.newline_ends:
            self._begin(text)
        else:
            self._append(text)

    def _append(self, code: str) -> None:
        self._header = (self._header + code)[-_HEADER_LENGTH:]

    def _begin(self, separator: str) -> None:
        """Begin the next header; among values, `separator` tells that one follows."""
        block = self._block
        values = block is not None and (block.kind is _Kind.OTHER or block.bracket != "{")
        self._header = separator if values else ""

    def _end_line(self, start: int) -> None:
        self._newlines += 1
        if self._newlines == 3 and self._wrote_code and self._block is None:
            self.position = start - len(self._prompt)
        if self._language.newline_ends and (
            self._block is None or self._block.kind is _Kind.CONTAINER
        ):
            self._header = ""
        else:
            self._append(" ")

    def _choose_branch(self, directive: str) -> None:
        """Read each branch of an #if as if it were the only one, and go on after the last."""
        if directive.startswith("if"):
            self._branches.append((self._block, self._header))
        elif directive.startswith("el") and self._branches:
            self._block, self._header = self._branches[-1]
        elif directive == "endif" and self._branches:
            self._branches.pop()

    def _kind(self, bracket: str, start: int) -> _Kind:
        header = self._header.strip()
        if self._block and self._block.kind in (_Kind.FUNCTION, _Kind.WITHIN):
            in_prompt = bracket == "{" and start < len(self._prompt)
            if in_prompt and self._language.nested.search(header) and self._in_callback():
                return _Kind.FUNCTION
            return _Kind.WITHIN
        if bracket != "{":
            return _Kind.OTHER
        if self._language.function.search(header):
            return _Kind.FUNCTION
        if _VALUE.search(header) or not self._language.container.search(header):
            return _Kind.OTHER
        return _Kind.CONTAINER

    def _in_callback(self) -> bool:
        """Whether all functions around are arguments, or called at once."""
        block = self._block
        while block:
            parent = block.parent
            if block.kind is _Kind.FUNCTION and not (parent and parent.bracket == "("):
                return False
            block = parent
        return True

    def _close(self, bracket: str, end: int) -> None:
        block = self._block
        if bracket == "}":
            # A parenthesis left open inside does not keep the block open.
            while block and block.bracket in _OPENING.values():
                block = block.parent
        elif block is None or block.bracket != _OPENING[bracket]:
            return
        self._header = ""
        if block is None:
            self._block = None
            self._end_at(end, "")  # of a block whose beginning is not in the prompt
            return
        self._block = block.parent
        if bracket != "}" or self._language.newline_ends:
            self._append(block.header + block.bracket + bracket)
        if block.bracket == "${":
            self._lexer.resume_template()
        if block.kind is _Kind.FUNCTION:
            self._awaited = self._outermost(block)
        if block is self._awaited or (
            block.kind is _Kind.CONTAINER and block.start < len(self._prompt)
        ):
            self._end_at(end, block.header)

    def _outermost(self, function: _Block) -> _Block:
        """The bracket around a function that is the completion's, or a call's: `on(x, () => {`."""
        block = function
        while (parent := block.parent) and (
            parent.start >= len(self._prompt) or parent.bracket == "("
        ):
            block = parent
        return block

    def _end_at(self, end: int, header: str) -> None:
        if end > len(self._prompt):
            self._closed = end
            self._may_continue = _CONTINUED.search(header.strip()) is not None
