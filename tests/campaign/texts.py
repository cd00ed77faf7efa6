"""Hostile prompts and completions under every preset, stop string and kind of pattern.

All take time linear in the text, a growing text is decided as the whole one is, and nothing of it
is taken back.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from typing import Any

from .outcomes import Outcome, check

FLOOR = 1000
LIMIT = 10.0

LONGEST = 100_000  # characters
SECONDS = 2.0  # of processor time for the longest text, whole; 0.5 on a quiet machine
GROWING_SECONDS = 4.0  # of the same text in pieces

PRESETS = ["python", "java", "javascript", "go", "c", "cpp", "salesforce"]
PIECES = [
    *("{", "}", "(", ")", "[", "]", "{}", "()", "[]", "[{", "({", "{(", ")}", "]}", ";", ",", ":"),
    *("'", '"', "`", "'''", '"""', "\\", "\\\\", "\\'", '\\"'),
    *("\\\n", "\\\r\n", "\n", "\r", "\r\n"),
    *(
        "\n\n",
        "\n\n\n",
        "\t",
        " ",
        "    ",
        "\x0c",
        "\x0b",
        "\ufeff",
        "\u2028",
        "\0",
        "x",
        "é",
        "汉",
    ),
    *("/", "//", "/*", "*/", "/**/", "/[", "/]", "/x/", "/[/]/", "/(/", "= /", "=/", "return /"),
    *("#", "# x\n", "#if\n", "#else\n", "#endif\n"),
    *("#define x \\\n", "@", "@x\n", "$", "${", "`${"),
    *("=>", "->", "::", "?:", "=", "==", "!", "<", ">", "<a>", "</a>", "<a/>", "<T<", "&&", "|"),
    *("'x", '"x', "R'", 'R"', 'R"(', 'R"x(', ')x"', ')"', "f'", 'rb"', "1'0", "0x1'F", 'u8R"a('),
    *("if", "else", "if (a)", "if (a) {", "else {"),
    *("for (;;) {", "while (x)", "do {", "switch (x) {"),
    *("class A {", "class A{int f(){}", "class A", "struct s {", "enum E {", "interface I {"),
    *("function f(){", "function f() {}", "function("),
    *("async ", "x => {", "f(a) {", "f(a)", "f(g("),
    *("func f() {", "func f(", "func() {}", "struct{"),
    *("interface{}", "map[string]struct{}", "type T "),
    *("void f() {", "int x = {", "= {", "= {}"),
    *("namespace n {", "template<", "operator()(", ") const {"),
    *("A() : b{1}", "try {", "catch (e) {", "finally {"),
    *("static {", "new A() {", "record R(", "->{"),
    *("def f():", "def f():\n", "\ndef f(", "class A:\n"),
    *("if x:\n", "else:\n", "\n    ", "\n\t", "  \n"),
    *("\n        x", "lambda: ", "x = (\n", "x = [\n"),
    *("match x:\n", "async def f():\n", "\nprint", "\n#"),
    *("print(", "import ", "return ", "yield ", "throws X"),
    *("noexcept", "__attribute__((x))", "<|endoftext|>"),
    *("word ", "aaaa", "0", "1.5e3", "\nif", "\nclass", "\n@"),
    *("\n'''", '\n"""', "\n    '''", "$x$"),
]
STOPS = [
    *(
        "\n\n",
        "};",
        "a" * 50,
        "aaaab",
        "}" * 1000,
        "\n" * 100 + "x",
        "stop",
        "\\",
        "é汉",
        " " * 200,
    ),
    *(
        "class ",
        "\0",
        "ab" * 5000,
        "a" * 99_999 + "b",
        "\r\n",
        "'''",
        "x\n" * 500,
        "$",
        ".*",
        "(a+)+$",
    ),
]
PATTERNS = [
    "\nclass|\ndef|\n#|\n@|\nprint|\nif",
    *(r"(?:\w++\s?)++:", r"(?>\w+\s?)+:", r"\n{3,}", r"(?m)^\S", r"\bdef\b", r"[^\x00-\x7f]{5}"),
    *(r"(?=\n)\n+(?!\s)", r"(?<!\s)\n\n", "(?i)CLASS", r"(?s)/\*.*?\*/x", r"a{100}b", r"(a|b|ab)c"),
]


def draw(random: Random) -> dict[str, Any]:
    """Rules, and a prompt and a completion as pieces that are repeated."""
    given: dict[str, Any] = {"truncation": None, "stop": []}
    match random.randrange(5):
        case 0:
            given["truncation"] = random.choice(PATTERNS)
        case 1:
            given["stop"] = [random.choice(STOPS) for _ in range(random.randrange(1, 4))]
            if random.randrange(3) == 0:
                given["many"] = random.choice([100, 20_000])  # further stop strings
        case _:
            given["truncation"] = random.choice(PRESETS)
    size = random.choice([300, 10_000, LONGEST, LONGEST])
    if given["truncation"] in PATTERNS:
        size = min(size, 3000)  # Python's own search may be quadratic
    given["completion"] = _draw_text(random, size)
    given["prompt"] = _draw_text(random, random.choice([0, 30, size]))
    # A piece is a token or a few; the longest texts come in some thousand pieces.
    given["step"] = max(size // random.choice([1, 10, 1000, 5000]), 1)
    return given


def _draw_text(random: Random, size: int) -> list[list[Any]]:
    """Text of about `size` characters: each of its parts is a few pieces again and again."""
    parts: list[list[Any]] = []
    count = random.choice([1, 1, 1, 2, 4])
    for _ in range(count if size else 0):
        piece = "".join(random.choice(PIECES) for _ in range(random.choice([1, 1, 2, 3, 8])))
        parts.append([piece, max(1, size // count // len(piece))])
        if random.randrange(2):
            parts.append([random.choice(PIECES), 1])
    return parts


class Attacker:
    """Truncates; in a process of its own, since a pattern cannot be interrupted."""

    def __init__(self, folder: Path) -> None:
        """Import what is attacked."""
        import paddlenlp_codegen_task.truncation  # noqa: F401

    def attack(self, given: dict[str, Any]) -> Outcome:
        """Truncate one completion, whole and as it grows."""
        from paddlenlp_codegen_task.truncation import Truncator

        prompt, text = (
            "".join(piece * count for piece, count in given[name])
            for name in ("prompt", "completion")
        )
        stop = [*given["stop"], *(f"<{number}>" for number in range(given.get("many", 0)))]
        began = time.process_time()
        truncator = Truncator(given["truncation"], stop)
        kept = truncator.truncate(text, prompt)
        _check_time("whole", began, SECONDS)
        strips = given["truncation"] not in (None, "salesforce")
        check(text.startswith(kept), "keeps what is not there")
        check(not strips or kept == kept.rstrip(), "leaves blanks at the end")

        began = time.process_time()
        scanner = truncator.scanner(prompt)
        settled, decision = "", None
        for start in range(0, len(text), given["step"]):
            decision = scanner.feed(text[start : start + given["step"]])
            check(scanner.settled.startswith(settled), "takes back what was settled")
            settled = scanner.settled
            if decision is not None:
                break
        _check_time("growing", began, GROWING_SECONDS)
        check(kept.startswith(settled), "settles more than is kept in the end")
        if decision is not None:
            check(decision == kept, "decides otherwise than the whole text does")
        return Outcome.WORKED


def _check_time(what: str, began: float, most: float) -> None:
    took = time.process_time() - began
    check(took < most, f"{what}, it took {took:.1f} s")
