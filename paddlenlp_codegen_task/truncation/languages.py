"""What the languages with braces look like, as far as finding the end of a function needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paddlenlp_codegen_task.truncation.javascript import JavaScriptLexer
from paddlenlp_codegen_task.truncation.lexer import (
    BLOCK_COMMENT,
    LINE_BREAK,
    LINE_COMMENT,
    SINGLE,
    TO_END_OF_LINE,
    Lexer,
    Span,
    Syntax,
    Until,
    quoted,
    triple_quoted,
)

Test = Callable[[str], object]  # true or not, of a header


def _never(*headers: str) -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Language:
    """A language with braces.

    A brace's header is the code since the brace or semicolon before it, with `()`, `[]` and `""`
    in place of brackets and literals with all they hold, and one blank for several. Where
    `newline_ends`, a `}` does not begin a new one: `{}` is in it, too.

    Attributes:
        lexer: tells code from comments and literals.
        function: tells the header of a block that runs: a function, a loop.
        container: tells the header of a block that holds declarations: a class.
        newline_ends: a line break outside brackets may end a statement.
        goes_on: tells the header that a line break does not end.
        nested: tells the header of a function that is one even within a callback.
        called: tells the header of a function that is called at once, beside those in parentheses.
        constant: tells the header of an enum's constant, which holds declarations, too; given that
            of the block around it.
    """

    lexer: Callable[[], Lexer]
    function: Test
    container: Test
    newline_ends: bool = False
    goes_on: Test = _never
    nested: Test = _never
    called: Test = _never
    constant: Callable[[str, str], object] = _never


# Headers of other blocks that run; "" is that of a bare block, and of the body in `A() : b{1} {`.
_STATEMENT = r"^$|\b(?:catch|do|else|finally|static|try)$"


def _syntax(spans: Sequence[Span], special: str = "") -> Callable[[], Lexer]:
    """`special`: what begins a span, beside quotes and slashes."""
    others = rf"[^\"'/;,\r\n(){{}}\[\]{special}]+|{LINE_BREAK}|[;,(){{}}\[\]]|/(?=[^/*])"
    # In C and C++ a quote after a digit is that of 1'000.
    return Syntax(spans, rf"{others}|(?<=\d)'").lexer


def _regex(*alternatives: str) -> Test:
    return re.compile("|".join(alternatives)).search


_C_SPANS = [
    Span.matching("comment", "//", TO_END_OF_LINE),
    BLOCK_COMMENT,
    Span.matching("directive", r"#[ \t]{0,64}(?:\w{0,16}(?=\W)|\w{17})|#[ \t]{65}", TO_END_OF_LINE),
    quoted("'", r"(?<!\d)'"),
]
# Qualifiers or a return type may follow the parentheses. A constructor's `b{1}` is told from its
# body by the word before the brace, the value `= (struct point){1}` from `operator=() {` by name.
_C_PARAMETERS = re.compile(
    r"\)(?:\s|const\b|volatile\b|mutable\b|noexcept\b|override\b|final\b|try\b|&)*$"
)
_C_STATEMENT = re.compile(_STATEMENT)
_CAST = re.compile(r"=\s*\(\)$")
_OPERATOR = re.compile(r"\boperator\b")


def _c_function(header: str) -> bool:
    if _C_STATEMENT.search(header):
        return True
    if _C_PARAMETERS.search(header):
        return not _CAST.search(header) or bool(_OPERATOR.search(header))
    after = header.rpartition("=")[2]
    return 0 <= after.find(")") < after.rfind("->")


_c_container = _regex(r"\b(?:class|struct|union|enum|namespace|extern)\b")

C = Language(_syntax([*_C_SPANS, quoted('"')], "#"), _c_function, _c_container)

_CPP_SPANS = [
    *_C_SPANS,
    Span("literal", r'(?<=R)"[^()\\\s"]{0,16}\(', lambda opening: Until(f'){opening[1:-1]}"')),
    # After an R only if it cannot become one of the above.
    quoted('"', r'(?<!R)"|"(?=[^()\\\s"]{0,16}[)\\\s"])|"(?=[^()\\\s"]{17})'),
]
CPP = Language(_syntax(_CPP_SPANS, "#"), _c_function, _c_container)

# Without a type it is a constructor, which is called like its class, or a constant.
_UNTYPED = re.compile(r"(?:^|,) ?(?:@[\w.]+(?: ?\(\))? )*(\w+) ?\(\)$")
_CLASS = re.compile(r"\b(?:class|enum|record) (\w+)")


def _java_constant(header: str, around: str) -> bool:
    untyped, around_it = _UNTYPED.search(header), _CLASS.search(around)
    return bool(untyped and around_it and untyped[1] != around_it[1])


JAVA = Language(
    _syntax(
        [
            LINE_COMMENT,
            BLOCK_COMMENT,
            triple_quoted('"'),
            quoted('"', SINGLE.format('"')),
            quoted("'"),
        ]
    ),
    _regex(
        r"^(?!.*\b(?:new|record)\s+\w).*\)(?:\s*throws\b[^=()]*)?$",
        r"->$",
        _STATEMENT,
    ),
    _regex(r"\b(?:class|interface|enum|record)\b"),
    constant=_java_constant,
)

JAVASCRIPT = Language(
    JavaScriptLexer,
    _regex(r"^(?!.*\bclass\b).*(?:\)|=>)$", _STATEMENT),
    _regex(r"\bclass\b"),
    # A module is often a function, called at once, around those that have a name.
    nested=_regex(
        r"(?:^|[^(,\s] )(?:async )?function ?\*? ?[\w$]+ ?\(\)$",
        r"(?:=|^[^?]*:) ?(?:async )?function ?\*? ?(?:[\w$]+ ?)?\(\)$",
        r"(?<!=)= ?(?:(?:async ?)?(?:\(\)|[\w$]+) ?=> ?)+$",
    ),
    called=_regex(r"^(?:[!+~-]|void ) ?(?:async )?function ?\*? ?[\w$]* ?\(\)$"),
)

# The first brace in `func f() interface{} {` is not the body's; `[]func(){` begins a value, and so
# does the second brace in `{f: func() {}, sizes: []int{`.
_GO_TYPE = re.compile(r"\b(?:struct|interface)$")
_GO_FUNCTION = re.compile(r"(?<!\])\bfunc\b")
_GO_STATEMENT = re.compile(r"\b(?:if|for|switch|select|else)\b")
_GO_DECLARATION = re.compile(r"\btype\b")


def _go_function(header: str) -> bool:
    if _GO_TYPE.search(header):
        return False
    last = max(header.rfind(","), header.rfind(":")) + 1
    return bool(_GO_FUNCTION.search(header, last) or _GO_STATEMENT.search(header))


def _go_container(header: str) -> bool:
    return bool(_GO_TYPE.search(header) and _GO_DECLARATION.search(header))


GO = Language(
    _syntax(
        [
            LINE_COMMENT,
            BLOCK_COMMENT,
            quoted('"'),
            quoted("'"),
            Span("literal", "`", lambda opening: Until("`")),
        ],
        "`",
    ),
    _go_function,
    _go_container,
    newline_ends=True,
    # https://go.dev/ref/spec#Semicolons
    goes_on=_regex(r"(?:[^\s\w)\]}\"+-]|(?<!\+)\+|(?<!-)-|\b(?:func|if|for|go|type|var|case)) *$"),
)
