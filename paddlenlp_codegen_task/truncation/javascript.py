"""JavaScript's lexer: what a slash, a brace or a `<` is depends on the code before it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

from paddlenlp_codegen_task.truncation.lexer import (
    AT_LINE_END,
    BLOCK_COMMENT,
    LINE_BREAK,
    LINE_COMMENT,
    Inside,
    Matching,
    Token,
    Until,
    quoted,
)

# By name: what may come in several pieces, what comes whole, and what is no code.
_CODE = re.compile(
    rf"(?P<word>[\w$]+)|(?P<single>[\"'`(){{}}\[\];,<])|(?P<blank>{LINE_BREAK}|[^\S\r\n]+)"
    r"|(?P<comment>/[/*]|\A#!)"
    r"|(?P<operator>/(?=[^/*])|(?!\A#(?:!|\Z))[^\w$\s\"'`(){}\[\];,</]+)"
)
# After these words an operand is due, not an operator.
_STATEMENTS = {"case", "default", "do", "else", "export", "extends", "return", "throw", "yield"}
_OPERATORS = {"await", "delete", "in", "instanceof", "new", "of", "typeof", "void"}
_BEFORE_OPERAND = _STATEMENTS | _OPERATORS
_BRACKETS, _QUOTES = frozenset("()[]{}"), frozenset("\"'`")
_CONDITIONAL = {"if", "while", "for", "with"}

_ESCAPED = r"\\(?:[^\r\n])"
_REGEX = Matching(rf"(?:[^/\\\[\r\n]+|{_ESCAPED})*(/|\[|{AT_LINE_END})?")
_REGEX_SET = Matching(rf"(?:[^\]\\\r\n]+|{_ESCAPED})*(\]|{AT_LINE_END})?")  # `[/]` is within one
_TEMPLATE = Matching(r"(?:[^`\\$]+|\\[\s\S]|\$(?=[^{]))*(`|\$\{)?")
_STRINGS: dict[str, Inside] = {quote: quoted(quote).inside(quote) for quote in "\"'"}
_ATTRIBUTES: dict[str, Inside] = {quote: Until(quote) for quote in "\"'"}  # knows no escapes
_LINE = LINE_COMMENT.inside("//")
_COMMENTS: dict[str, Inside] = {"//": _LINE, "#!": _LINE, "/*": BLOCK_COMMENT.inside("/*")}

# JSX: `<` with a name or `>`, where an operand is due. Not the parameters of a generic function in
# TypeScript: `<T,>(`, `<T extends U>(`, `<Type>(`.
_NAME = r"[A-Za-z_$][\w$]{0,63}"
_ELEMENT = re.compile(rf"<(?:>|(?![A-Z][\w$]{{0,63}}>\(|{_NAME} ?(?:,|extends\b))[A-Za-z_$])")
_MAY_BE_ELEMENT = re.compile(rf"<(?:{_NAME}(?:>| ?[a-z]{{0,7}})?)?")
_IN_TAG = re.compile(r"[^\"'{/>]+|[\"'{>]|/>|/[/*]|/(?=[^>/*])")
_IN_ELEMENT = re.compile(r"[^{<]+|\{|</|<(?=[^/])")
_IN_CLOSING = re.compile(r"[^>]+|>")

# What is open, apart from brackets, which stand for themselves. `?` is a parenthesis after `if` and
# the like, `${` a brace that ends in what it began in: a template, a tag, an element.
_TAG, _ELEMENT_OPEN, _CLOSING, _TEMPLATE_OPEN = "<", "<>", "</", "`"
_ENDS = {(_TEMPLATE_OPEN, "`"), (_TAG, "/>"), (_CLOSING, ">")}
_MARKUP = frozenset((_TAG, _ELEMENT_OPEN, _CLOSING, _TEMPLATE_OPEN))
_PARENTHESES = {")": "(?", "]": "["}


class JavaScriptLexer:
    """See `lexer.Lexer`. JSX is literals, with `${` for the braces in it.

    `}` is taken to end a block, not an object: what could be divided is hardly ever an object.
    """

    def __init__(self) -> None:
        self.position = 0
        self._inside: Inside | None = None  # of a comment, string or the like
        self._open: list[str] = []
        self._operand_due = True
        # The last pieces of code, newest first; what came in parts is joined, the end is enough.
        self._last = self._before = self._former = ""
        self._kind: str | None = None  # of the last, and where it ends
        self._end = -1

    def copy(self) -> JavaScriptLexer:
        """See Lexer."""
        other = copy.copy(self)
        other._open = list(self._open)
        return other

    def tokens(self, text: str) -> Iterator[Token]:
        """See Lexer."""
        while True:
            if self._inside is not None:
                self.position, end = self._inside.read(text, self.position)
                if end is None:
                    return
                self._inside = _REGEX if self._inside is _REGEX_SET and end == "]" else None
                if end == "[":
                    self._inside = _REGEX_SET
                continue
            top = self._open[-1] if self._open else ""
            step = self._markup(top, text) if top in _MARKUP else self._code(text)
            if step is None:
                return
            if step[1]:
                yield step

    def _markup(self, top: str, text: str) -> Token | None:
        """Read on in a template or an element; one without text is no token, None waits."""
        start = self.position
        if top == _TEMPLATE_OPEN:
            self.position, end = _TEMPLATE.read(text, start)
            if end is None:
                return None
            start, piece = self.position - len(end), end
        else:
            regex = {_TAG: _IN_TAG, _ELEMENT_OPEN: _IN_ELEMENT, _CLOSING: _IN_CLOSING}[top]
            found = regex.match(text, start)
            if found is None:
                return None
            self.position, piece = found.end(), found[0]
        if (top, piece) in _ENDS:
            self._open.pop()
            self._operand_due = False
        elif piece in ("{", "${") and top != _CLOSING:
            self._open.append("${")
            self._operand_due = True
            return "code", "${", start
        elif top == _TAG:
            if piece == ">":
                self._open[-1] = _ELEMENT_OPEN
            self._inside = _ATTRIBUTES.get(piece) or _COMMENTS.get(piece)
        elif top == _ELEMENT_OPEN and piece == "</":
            self._open[-1] = _CLOSING
        elif top == _ELEMENT_OPEN and piece == "<":
            self._open.append(_TAG)
        return "literal", "", start

    def _code(self, text: str) -> Token | None:
        """Read on in code."""
        start = self.position
        found = _CODE.match(text, start)
        if found is None:
            return None
        piece, kind, before = found[0], found.lastgroup, self._operand_due
        if piece == "<" and before:
            if _MAY_BE_ELEMENT.fullmatch(text, start):
                return None
            if _ELEMENT.match(text, start):
                self.position = start + 1
                self._open.append(_TAG)
                return "literal", piece, start
        self.position = found.end()
        if kind == "blank":
            return "code", piece, start
        if kind == "comment":
            self._inside = _COMMENTS[piece]
            return "comment", piece, start
        if kind != "single" and kind == self._kind and self._end == start:
            self._last = (self._last + piece)[-64:]
        else:
            self._former, self._before, self._last = self._before, self._last, piece[-64:]
        self._kind, self._end = kind, self.position
        if piece in _BRACKETS:
            self._operand_due = self._bracket(piece)
        elif kind == "word":
            self._operand_due = self._last in _BEFORE_OPERAND and not _is_dot(self._before)
        elif piece in _QUOTES or (piece == "/" and before):
            self._operand_due = False
            self._last = '""'
            self._kind = "single"
            self._inside = _REGEX if piece == "/" else _STRINGS.get(piece)
            if piece == "`":
                self._open.append(_TEMPLATE_OPEN)
            return "literal", piece, start
        elif self._last[-2:] in ("++", "--"):  # of what is before it
            self._operand_due = False
        else:
            self._operand_due = not (self._last == "." and self._before[:1].isdigit())
        return "code", piece, start

    def _bracket(self, bracket: str) -> bool:
        """Open or close one; return whether an operand is due after it."""
        stack = self._open
        if bracket in "([{":
            condition = self._before in _CONDITIONAL and not _is_dot(self._former)
            condition |= self._before == "await" and self._former == "for"
            stack.append("?" if condition and bracket == "(" else bracket)
            return True
        if bracket == "}":
            # A parenthesis left open inside does not keep the block open.
            while stack and stack[-1] in "(?[":
                stack.pop()
            if stack:
                stack.pop()
            return True
        if stack and stack[-1] in _PARENTHESES[bracket]:
            return stack.pop() == "?"
        return False


def _is_dot(piece: str) -> bool:
    """Whether what follows is a member, which may be called like a keyword."""
    return piece.endswith(".") and not piece.endswith("...")
