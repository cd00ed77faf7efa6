"""What holds for every preset; Salesforce's rules against transformers'."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlenlp_codegen_task.truncation import PRESETS, Truncator

CODE = [*"(){}[];,:=#@/*\\'\"`$ \nRx1", "\r\n", "\n\n", "\n\n\n", "\n    ", "//", "/*", "*/", '"""']
CODE += ["<a ", "<>", "</", "/>", "\r", "\f", "\t", "\ufeff", "match x", "return /", "if ("]
CODE += ["'''", "${", "=>", "->", 'R"x(', ')x"', "f(a)", "f(a) {", "\n}", "};", "return ", "汉"]
CODE += [
    "def f():",
    "\nclass ",
    "\ndef",
    "\nprint",
    "else",
    "\nelse:",
    "if (a) {",
    "\nif",
    "import ",
    "class A:\n    def f():\n",
    "\n    def ",
    "@",
]
CODE += [
    "struct ",
    "func ",
    "function ",
    "(function () {",
    "f = function () {",
    ".bind(x)",
    "__attribute__((x))",
    "catch",
    "interface{}",
    "[]struct{",
    "#if",
    "\n#else\n",
    "#endif",
    "<|endoftext|>",
]
code = st.lists(st.sampled_from(CODE), max_size=20)
stops = st.sampled_from([(), "f", ["\n\n", "a) "], ["};", "}\n"]])


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from([*PRESETS]), stops, code.map("".join), code)
def test_a_decision_is_never_changed_by_more_text(
    preset: str, stop: str | list[str], prompt: str, pieces: list[str]
):
    truncator = Truncator(preset, stop)
    scanner = truncator.scanner(prompt)
    decision, settled, text = None, "", ""
    for piece in pieces:
        text += piece
        fed = scanner.feed(piece)
        kept = truncator.truncate(text, prompt)
        assert text.startswith(kept)
        assert fed == truncator.decided(text, prompt)
        assert decision is None or fed == decision == kept
        assert kept.startswith(settled)
        assert kept.startswith(scanner.settled)
        assert scanner.settled.startswith(settled)
        decision, settled = fed, scanner.settled


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*PRESETS]), code.map("".join), code.map("".join))
def test_pieces_may_be_split_anywhere(preset: str, prompt: str, text: str):
    truncator = Truncator(preset)
    scanner = truncator.scanner(prompt)
    for n, character in enumerate(text, start=1):
        assert scanner.feed(character) == truncator.decided(text[:n], prompt)
        whole = truncator.scanner(prompt)
        whole.feed(text[:n])
        assert scanner.settled == whole.settled


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*PRESETS]), stops, code.map("".join), code.map("".join))
def test_stop_cuts_what_the_preset_keeps(
    preset: str, stop: str | list[str], prompt: str, text: str
):
    kept = Truncator(preset).truncate(text, prompt)
    found = [text.find(one) for one in ([stop] if isinstance(stop, str) else stop)]
    first = min((n for n in found if n >= 0), default=len(text))
    cut = text[: min(first, len(kept))]
    assert Truncator(preset, stop).truncate(text, prompt) in (cut, cut.rstrip())


SALESFORCE = ["^#", re.escape("<|endoftext|>"), "^'''", '^"""', "\n\n\n"]


def test_salesforce_published_case():
    # test_truncate in jaxformer/hf/sample.py of https://github.com/salesforce/CodeGen
    text = "\nif len_a > len_b:\n    result = a\nelse:\n    result = b\n\n\n\n#"
    kept = "\nif len_a > len_b:\n    result = a\nelse:\n    result = b"
    assert Truncator("salesforce").truncate(text) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("    x  \n", "    x  \n"),
        ("print(1)\nprint(2)", "print(1)\n"),
        ("def f():\n    pass\ndefault = 1\n", "def f():\n    pass\n"),
        ("print(1)\n# a\nprint(2)", "print(1)\n"),
        ("x<|endoftext|>y", "x"),
        ("def f():\n    def g(): pass\nprint(f)\n'''", "def f():\n    def g(): pass\nprint(f)\n"),
    ],
)
def test_salesforce(text: str, kept: str):
    truncator = Truncator("salesforce")
    assert truncator.truncate(text) == kept
    assert truncator.decided(text) == (kept if kept != text else None)


LINES = [
    "print",
    "def",
    "#",
    "'''",
    '"""',
    "\n",
    "\n\n\n",
    "<|endoftext|>",
    "<|",
    " ",
    "x",
    "d",
    "\r",
]
TEXTS = st.lists(st.sampled_from(LINES), max_size=16).map("".join)


@settings(max_examples=1000, deadline=None)
@given(st.one_of(TEXTS, st.text("\n#'\"dpx")))
def test_salesforce_is_what_transformers_does(text: str):
    from transformers.models.codegen.tokenization_codegen import CodeGenTokenizer

    expected = CodeGenTokenizer.truncate(None, text, SALESFORCE)  # type: ignore[arg-type]
    assert Truncator("salesforce").truncate(text) == expected
