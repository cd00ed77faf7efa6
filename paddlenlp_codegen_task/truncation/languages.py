"""What the languages with braces look like, as far as finding the end of a function needs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from paddlenlp_codegen_task.truncation.lexer import (
    BLOCK_COMMENT,
    LINE_COMMENT,
    SINGLE,
    TEMPLATE,
    TO_END_OF_LINE,
    Span,
    Syntax,
    quoted,
    triple_quoted,
)


@dataclass(frozen=True)
class Language:
    """A language with braces.

    A brace's header is the code since the brace or semicolon before it, with `()`, `[]` and `""`
    in place of brackets and literals with all they hold. Where `newline_ends`, a `}` does not
    begin a new one: `{}` is in it, too.

    Attributes:
        syntax: tells code from comments and literals.
        function: regex found in the header of a block that runs: a function, a loop.
        container: regex found in the header of a block that holds declarations: a class.
        newline_ends: a line break outside brackets ends a statement.
        nested: regex found in the header of a function that is one even within a callback.
    """

    syntax: Syntax
    function: re.Pattern[str]
    container: re.Pattern[str]
    newline_ends: bool = False
    nested: re.Pattern[str] = re.compile("(?!)")


# Headers of other blocks that run; "" is that of a bare block, and of the body in `A() : b{1} {`.
_STATEMENT = r"^$|\b(?:catch|do|else|finally|static|try)$"


def _syntax(spans: Sequence[Span], special: str = "") -> Syntax:
    """`special`: what begins a span, beside quotes and slashes."""
    others = rf"[^\"'/;,\n(){{}}\[\]{special}]+|[;,\n(){{}}\[\]]|/(?=[^/*])"
    # In C and C++ a quote after a digit is that of 1'000.
    return Syntax(spans, rf"{others}|(?<=\d)'")


def _regex(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives))


_C_SPANS = [
    Span("comment", "//", TO_END_OF_LINE),
    BLOCK_COMMENT,
    Span("directive", r"#[ \t]*\w*(?=\W)", TO_END_OF_LINE),
    quoted("'", r"(?<!\d)'"),
]
# Qualifiers or a return type may follow the parentheses. A constructor's `b{1}` is told from its
# body by the word before the brace, the value `= (struct point){1}` from `operator=() {` by name.
_C_PARAMETERS = r"\)(?:\s|const\b|volatile\b|mutable\b|noexcept\b|override\b|final\b|try\b|&)*$"
_C_FUNCTION = _regex(
    rf"^(?!.*=\s*\(\)$).*{_C_PARAMETERS}",
    rf"\boperator\b.*{_C_PARAMETERS}",
    r"\)(?=[^=]*$).*->",
    _STATEMENT,
)
_C_CONTAINER = _regex(r"\b(?:class|struct|union|enum|namespace|extern)\b")

C = Language(_syntax([*_C_SPANS, quoted('"')], "#"), _C_FUNCTION, _C_CONTAINER)

_CPP_SPANS = [
    *_C_SPANS,
    Span(
        "literal",
        r'(?<=R)"[^()\\\s"]{0,16}\(',
        r'(?:[^)]+|\)(?!DELIMITER")(?=[\s\S]{17}))*(\)DELIMITER")?',
    ),
    # After an R only if it cannot become one of the above.
    quoted('"', r'(?<!R)"|"(?=[^()\\\s"]{0,16}[)\\\s"])|"(?=[^()\\\s"]{17})'),
]
CPP = Language(_syntax(_CPP_SPANS, "#"), _C_FUNCTION, _C_CONTAINER)

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
)

# A slash begins a regular expression where an operand is due. A lookbehind has a fixed width, so
# there is one for each number of blanks, such as those that indent an argument.
_JS_OPERAND = r"(?=/)(?:(?<==>\s)|(?<=return\s)|{})".format(
    "|".join(rf"(?<=[=(,:\[!&|?;{{]\s{{{blanks}}})" for blanks in range(32))
)
# In a set such as `[/]` a slash does not end it. What is longer than 200 is taken for no set, lest
# it be read again with each piece that comes.
_JS_IN_SET = r"(?:[^\]\\\n]|\\[^\n])"
_JS_SET = rf"\[{_JS_IN_SET}{{0,199}}(?:\]|(?=\n))|\[(?={_JS_IN_SET}{{200}})"
JAVASCRIPT = Language(
    _syntax(
        [
            LINE_COMMENT,
            BLOCK_COMMENT,
            Span(
                "literal",
                rf"{_JS_OPERAND}/(?=[^/*])",
                rf"(?:[^/\\\[\n]+|\\[^\n]|{_JS_SET})*(/|(?=\n))?",
            ),
            quoted('"'),
            quoted("'"),
            TEMPLATE,
        ],
        "`",
    ),
    _regex(r"^(?!.*\bclass\b).*(?:\)|=>)$", _STATEMENT),
    _regex(r"\bclass\b"),
    # A module is often a function, called at once, around those that have a name.
    nested=_regex(
        r"(?:^|[^(,\s]\s+)(?:async\s+)?function\s*\*?\s*[\w$]+\s*\(\)$",
        r"[=:]\s*(?:async\s+)?function\s*\*?\s*(?:[\w$]+\s*)?\(\)$",
        r"(?<!=)=\s*(?:async\s*)?(?:\(\)|[\w$]+)\s*=>$",
    ),
)

GO = Language(
    _syntax(
        [
            LINE_COMMENT,
            BLOCK_COMMENT,
            quoted('"'),
            quoted("'"),
            Span("literal", "`", "[^`]*(`)?"),
        ],
        "`",
    ),
    # The first brace in `func f() interface{} {` is not the body's; `[]func(){` begins a value, and
    # so does the second brace in `{f: func() {}, sizes: []int{`.
    _regex(
        r"(?<!\])\bfunc\b[^,:]*(?<!\bstruct)(?<!\binterface)$",
        r"\b(?:if|for|switch|select|else)\b(?!.*\b(?:struct|interface)$)",
    ),
    _regex(r"\btype\b.*\b(?:struct|interface)$"),
    newline_ends=True,
)
