"""Cutting after the brace that closes a function."""

from __future__ import annotations

import copy
import re
from functools import lru_cache
from typing import Literal

from paddlenlp_codegen_task.truncation.languages import Language
from paddlenlp_codegen_task.truncation.lexer import LINE_BREAKS, Kind

# After these a brace holds values: an initialiser, an object, an argument.
_VALUE = re.compile(r"[=,:;?&|+({\[]$")
_CONTINUED = re.compile(r"\b(?:if|else|try|catch)\b")
_CONTINUATION = re.compile(r"\s{0,200}(?:else|catch|finally)\b")
_MAYBE_CONTINUATION = re.compile(r"\s{0,200}[a-z]{0,8}")
# What belongs to the closed block: `} Point;`, `} __attribute__((packed));`, `})();`,
# `}.bind(this)`, if it is not longer than this.
_TAIL_LENGTH = 200
_NAMES = r"[\w \t,*\[\]]*"
_TAIL = re.compile(
    rf"{_NAMES}(?:__attribute__[ \t]*\(\([\w, ()]*\)\){_NAMES})?;"
    r"|(?:(?:\.\w+)?\([\w$., ]*\))+;?"
)
_MAYBE_TAIL = re.compile(rf"[\w$ \t,.*()\[\]]{{0,{_TAIL_LENGTH}}}")

_OPENING = {")": "(", "]": "[", "}": "{"}
_PARENTHESES = frozenset("([")
_OPEN = frozenset(("(", "[", "{", "${"))
# Long enough for any header, and bounds what a text without semicolons costs.
_HEADER_LENGTH = 1000


# What a block is: the outermost one that runs, "function"; anything in a function, "within"; a
# class or a namespace, "container"; or "other": parentheses, brackets, values.
_Kind = Literal["function", "within", "container", "other"]


class _Block:
    """A bracket that is open: `(`, `[`, `{`, or the `${` of a template literal.

    Attributes:
        bracket: which it is.
        kind: what it holds.
        written: it is in the completion, not in the prompt.
        header: the code before it.
        parent: the one around it.
        brace: itself, or else the innermost brace around it.
        outermost: what a function here would be the end of, see `BraceCut`: itself, or a bracket
            around it that is the completion's, or a call's: `on(x, () => {`.
        in_callback: all functions around, itself included, are arguments, or called at once.
    """

    __slots__ = (
        "brace",
        "bracket",
        "header",
        "in_callback",
        "kind",
        "outermost",
        "parent",
        "written",
    )

    def __init__(
        self,
        bracket: str,
        kind: _Kind,
        written: bool,
        header: str,
        parent: _Block | None,
        called: bool,
    ) -> None:
        self.bracket, self.kind, self.written = bracket, kind, written
        self.header, self.parent = header, parent
        # All of these in one step, not by walking outwards: brackets may be nested 100,000 deep.
        is_brace = bracket not in _PARENTHESES
        self.brace: _Block | None = self
        self.outermost: _Block = self
        if parent is None:
            self.in_callback = called or kind != "function"
            if not is_brace:
                self.brace = None
            return
        within = parent.bracket == "("
        self.in_callback = parent.in_callback and (called or within or kind != "function")
        if not is_brace:
            self.brace = parent.brace
        if within or parent.written:
            self.outermost = parent.outermost


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
        self._length = len(prompt)
        self._lexer = language.lexer()
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
            self.earliest = self._closed - self._length
        else:
            self.earliest = len(text)

    def copy(self) -> BraceCut:
        """See Cut."""
        other = copy.copy(self)
        other._lexer = self._lexer.copy()
        other._branches = list(self._branches)
        return other

    def end(self, text: str) -> int:
        """Where `text` is cut if it ends here."""
        self.feed(text + "\n")
        return min(self.earliest, len(text))

    def _read(self, text: str) -> None:
        while self.position is None:
            if self._closed is None:
                for token in self._lexer.tokens(text):
                    self._take(*token)
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
        tail = _TAIL.match(text, closed, closed + _TAIL_LENGTH)
        self.position = (tail.end() if tail else closed) - self._length
        return True

    def _take(self, kind: Kind, text: str, start: int) -> None:
        if text in LINE_BREAKS:
            self._end_line(start)
            return
        if text.isspace():
            self._append(" ")
            return
        self._newlines = 0
        if kind == "directive":
            self._choose_branch(text[1:].strip())
            return
        if kind == "comment":
            return
        if start + len(text) > self._length:
            self._wrote_code = True
        if kind == "literal":
            self._append('""')
        elif text in _OPEN:
            of, header, written = self._kind(text, start), self._header, start >= self._length
            called = of == "function" and bool(self._language.called(_tidy(header)))
            self._block = _Block(text, of, written, header, self._block, called)
            self._begin(text)
        elif text in _OPENING:
            self._close(text, start + 1)
        elif text == ";" and not self._language.newline_ends:
            self._begin(text)
        else:
            self._append(text)

    def _append(self, code: str) -> None:
        self._header += code
        if len(self._header) > _HEADER_LENGTH:
            self._header = self._header[-_HEADER_LENGTH:]

    def _begin(self, separator: str) -> None:
        """Begin the next header; among values, `separator` tells that one follows."""
        block = self._block
        values = block is not None and (block.kind == "other" or block.bracket != "{")
        self._header = separator if values else ""

    def _end_line(self, start: int) -> None:
        self._newlines += 1
        if self._newlines == 3 and self._wrote_code and self._block is None:
            self.position = start - self._length
        may_end = self._block is None or self._block.kind == "container"
        if may_end and self._language.newline_ends and not self._language.goes_on(self._header):
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
        block = self._block
        if block and block.kind in ("function", "within"):
            may_be = bracket == "{" and start < self._length and block.in_callback
            nested = may_be and self._language.nested(_tidy(self._header))
            return "function" if nested else "within"
        if bracket != "{":
            return "other"
        around = block.header if block and block.kind == "container" else ""
        return _kind(self._language, self._header, around)

    def _close(self, bracket: str, end: int) -> None:
        block = self._block
        if bracket == "}":
            # A parenthesis left open inside does not keep the block open.
            block = block and block.brace
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
        elif block.bracket == "${":
            self._append(block.header)  # the literal goes on
        if block.kind == "function":
            self._awaited = block.outermost
        if block is self._awaited or (block.kind == "container" and not block.written):
            self._end_at(end, block.header)

    def _end_at(self, end: int, header: str) -> None:
        if end > self._length:
            self._closed = end
            self._may_continue = _CONTINUED.search(header.strip()) is not None


def _tidy(header: str) -> str:
    """A header with one blank for several."""
    return " ".join(header.split())


@lru_cache(maxsize=1024)  # a text may repeat a long header at each brace
def _kind(language: Language, header: str, around: str) -> _Kind:
    """What the block is that a header which is not in a function begins.

    Args:
        language: the text's.
        header: the code before it.
        around: that before the container around it; "" if there is none.
    """
    header = _tidy(header)
    if language.constant(header, _tidy(around)):
        return "container"
    if language.function(header):
        return "function"
    if _VALUE.search(header) or not language.container(header):
        return "other"
    return "container"
