import re
import warnings
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION, PRESETS, Truncator
from paddlenlp_codegen_task.truncation.patterns import pattern_rule

SEED = "\nclass|\ndef|\n#|\n@|\nprint|\nif"  # as PaddleNLP's taskflow/code_generation.py has it

FRAGMENTS = [*"\n#@ x'\"ab\r\t\x1c", "\n", "\n#", "\n@", "class", "def", "print", "if", "cl", "pr"]
FRAGMENTS += ["汉", "é", "ſ", "K", "😀", "\u2028", "    return", "\n\n", "d", "ef", "i", "f"]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14)

ESCAPES = [
    r"\s",
    r"\S",
    r"\w",
    r"\W",
    r"\d",
    "[ab]",
    "[^a]",
    "[^\n]",
    "[#-a]",
    ".",
    r"\n",
    "é",
    "k",
]
ANCHORS = ["^", "$", r"\A", r"\Z", r"\b", r"\B"]
GROUPS = ["(?:{})", "({})", "(?={})", "(?!{})", "(?<={})", "(?<!{})"]
GROUPS += ["(?i:{})", "(?m:{})", "(?s:{})", "(?a:{})"]
REFERENCES = [r"\1", "(?(1)a|b)", "(?(1)#)"]
CHOICES = ["(?:", "("]
QUANTIFIERS = ["*", "+", "?", "{2}", "{0,2}", "*?", "+?", "??", "{1,2}?"]
GROUPS.append("(?>{})")
CHOICES.append("(?>")
QUANTIFIERS += ["*+", "++", "?+"]

leaves = st.one_of(
    st.sampled_from([re.escape(one) for one in "a b\nx#"]),
    st.sampled_from([re.escape(one) for one in FRAGMENTS]),
    st.sampled_from(ESCAPES),
    st.sampled_from(ANCHORS),
    st.sampled_from(REFERENCES),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join).map("(?:{})".format),
        st.builds(str.format, st.sampled_from(GROUPS), inner),
        st.builds("{0}{1}{2}|{1})".format, st.sampled_from(CHOICES), leaves, inner),
        st.builds("(?:{}){}".format, inner, st.sampled_from(QUANTIFIERS)),
    ),
    max_leaves=10,
)


def compiles(pattern: str) -> bool:
    # Python 3.11's re raises SystemError for a group within a possessive repeat.
    if re.search(r"[*+?]\+", pattern) and re.search(r"\((?!\?)", pattern):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except re.error:
        return False
    return True


def spelt(pattern: str) -> str:
    """What may be a misspelt preset, as a regular expression."""
    return f"(?:{pattern})" if re.fullmatch(r"[\w +#-]+", pattern, re.ASCII) else pattern


flags = st.sampled_from(["", "", "(?m)", "(?i)", "(?s)"])
generated = st.builds("".join, st.tuples(flags, trees)).map(spelt)
literals = st.lists(st.sampled_from(FRAGMENTS).map(re.escape), min_size=1, max_size=4)
patterns = st.one_of(
    st.just(DEFAULT_TRUNCATION),
    literals.map("|".join).map(spelt),
    generated.filter(compiles),
    st.lists(generated.filter(compiles), min_size=1, max_size=3),
)


def reference(pattern: str | Sequence[str], text: str) -> str:
    several = [pattern] if isinstance(pattern, str) else pattern
    return min((re.split(one, text)[0] for one in several), key=len).rstrip()


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            '\n    print("Hello World")\n\nhello_world()\n\n# x',
            '\n    print("Hello World")\n\nhello_world()',
        ),
        ("\n    return 1\n\n\nclass A:", "\n    return 1"),
        ("\n    return 1\n    # why\n", "\n    return 1\n    # why"),
        ("    x\nprinter", "    x"),
        ("\n\nif x", ""),
        ("", ""),
        ("no match \t\r\n\x1c\u3000", "no match"),
    ],
)
def test_truncates_as_the_seed_did(text: str, kept: str):
    assert Truncator().truncate(text) == kept == re.split(SEED, text)[0].rstrip()


def test_none_keeps_the_whole_text():
    truncator = Truncator(None)
    assert truncator.truncate("a\n#  ") == "a\n#  "
    assert truncator.decided("a\n#  ") is None
    scanner = truncator.scanner()
    scanner.feed("a ")
    assert scanner.settled == "a "


def test_several_patterns_cut_at_the_first_of_any():
    truncator = Truncator(["(?i)stop", r"(?m)^(#)\1"])
    assert truncator.truncate("ab\n## Stop") == "ab"
    assert truncator.truncate("ab StoP\n##") == "ab"


@pytest.mark.parametrize("wrong", [5, b"x", ["a", 3], {"a"}, re.compile("x"), True])
def test_wrong_type(wrong: object):
    with pytest.raises(TypeError, match="truncation must be"):
        Truncator(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("a(", "unterminated subpattern"),
        (["a", "*"], "nothing to repeat"),
        ("(?<=a*)b", "look-behind requires fixed-width"),
        ("x{99999999999}", "too large"),
        ("", "is empty"),
        ([], "is empty"),
        (["a", ""], "is empty"),
    ],
)
def test_invalid_pattern(wrong: str | list[str], reason: str):
    with pytest.raises(ValueError, match=f"^truncation: .*{reason}") as caught:
        Truncator(wrong)
    assert "\n" not in str(caught.value)


def test_a_preset_s_name_alone_is_no_regex():
    assert Truncator("go").truncate("a go b") == "a go b"
    assert Truncator("(?:go)").truncate("a go b") == "a"
    assert Truncator("gon?").truncate("a go b") == "a"


@pytest.mark.parametrize("word", ["Python", "py", "js", "c++", "C", "rust", "objective-c", "c#"])
def test_a_word_is_no_regex_as_it_may_be_a_misspelt_preset(word: str):
    for wrong in (word, ["\n\n", word]):
        with pytest.raises(ValueError, match=r"^truncation: .* is no preset \(python, java, "):
            Truncator(wrong)
    assert Truncator("(?:rust)").truncate("a rust b") == "a"


def test_wrong_type_names_the_presets():
    with pytest.raises(TypeError, match=f"^truncation must be .*{', '.join(PRESETS)}.*got 5$"):
        Truncator(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("truncation", "stop", "text", "kept"),
    [
        (None, "b", "a b", "a "),
        (None, ["cd", "bc"], " abcd", " a"),
        (None, (), "a \n", "a \n"),
        ("#", ".*", "a .* #", "a"),
        ("#", "x", "a # x", "a"),
        ("#", ["# x", " #"], "a # x", "a"),
        (DEFAULT_TRUNCATION, "return", "\n    return 1\ndef f", ""),
        ("salesforce", ";", "a \n;", "a \n"),
        ("c", ["//"], " int x; // }\n}\n", " int x;"),
        ("c", "//", " int x;\n}  // x\n", " int x;\n}"),
    ],
)
def test_stop(truncation: str | None, stop: str | list[str], text: str, kept: str):
    truncator = Truncator(truncation, stop)
    assert truncator.truncate(text, "void f() {") == kept
    assert truncator.decided(text + "zzz", "void f() {") in (kept, None if kept == text else kept)


def test_stop_may_begin_before_what_truncation_cuts():
    truncator = Truncator("#", ["b#c"])
    assert truncator.decided("ab#") is None
    assert truncator.decided("ab#c") == "a"
    assert truncator.decided("ab#d") == "ab"
    assert truncator.truncate("ab#") == "ab"


def test_stop_without_truncation_is_shown_up_to_what_may_be_one():
    scanner = Truncator(None, ["stop", "end"]).scanner()
    assert scanner.feed("a  st") is None
    assert scanner.settled == "a  "
    assert scanner.feed("em \ne") is None
    assert scanner.settled == "a  stem \n"
    assert scanner.feed("nd") == "a  stem \n"


@pytest.mark.parametrize("wrong", [5, b"x", ["a", 3], {"a"}, re.compile("x")])
def test_stop_of_a_wrong_type(wrong: object):
    with pytest.raises(TypeError, match=r"^stop must be a string or a list of them, got "):
        Truncator(None, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["", ["a", ""]])
def test_an_empty_stop(wrong: str | list[str]):
    with pytest.raises(ValueError, match=r"^stop: holds an empty string"):
        Truncator("c", wrong)


@pytest.mark.parametrize(
    ("text", "position"), [("b", None), ("b b", 2), ("a b b", None), ("a b b\n", 4)]
)
def test_second_match(text: str, position: int | None):
    cut = pattern_rule("a.*z|b", nth=2)("")
    cut.feed(text)
    assert cut.position == position


ATOMIC = [
    (r"\n(?>#+)x", "a\n##", None),
    ("(?>ab.z|a)b", "xab", None),  # of "xabbz" it is no match
    (["(?>a(?!.*z)|ab)c", "d"], "abcd", None),
]


# Each row: a pattern, a text not decided yet, and what more decides it (None: nothing does).
@pytest.mark.parametrize(
    ("pattern", "text", "more"),
    [
        (DEFAULT_TRUNCATION, "a\nprin", "t"),
        (DEFAULT_TRUNCATION, "a\n", "#"),
        (DEFAULT_TRUNCATION, "a\ndeclass\ni", "f"),
        ("a.*z|b", "a b", "\n"),  # a longer text may match further left
        ("a.*z|b", "a b", "z"),
        ("\n\n\n|\n#", "a\n\n", "#"),
        (r"\bif\b", "x if", " "),
        (r"\n(?=\S)", "a\n", "b"),
        (r"\n(?!\s)", "a\n", "b"),
        (r"\n(?=def|if)", "a\n", "if x"),
        (r"(?m)^\S", "a"[:0], "b"),
        (r"(?m)^#$", "a\n#", "\n\n"),
        (r"(?<=\n)#", "a\n", "#"),
        # Anchors and lookbehind beyond the end are not known yet.
        ("(?m)a.*\n^b|c", "a c", "\nb"),
        (r"a.*\n(?<=\n)b|c", "a c", "\nb"),
        ("(?s)a.*z|b", "a\nb", "z"),
        (r"end\Z", "end", None),
        ("end$", "end", None),
        (r"('|\")\1", "''", None),
        (r"(a)?(?(1)b|c)", "ab", None),
        (["\n#", r"b.*z"], "a b\n", "#"),
        (["#", r"(b)\1"], "a#c", None),
        *ATOMIC,
    ],
)
def test_decides_at_once(pattern: str | list[str], text: str, more: str | None):
    truncator = Truncator(pattern)
    assert truncator.decided(text) is None
    if more is not None:
        assert truncator.decided(text + more) == reference(pattern, text + more)


@settings(max_examples=500, deadline=None)
@given(patterns, texts)
def test_a_decision_is_never_changed_by_more_text(pattern: str | list[str], pieces: list[str]):
    truncator = Truncator(pattern)
    scanner = truncator.scanner()
    decision, settled, text = None, "", ""
    for piece in pieces:
        text += piece
        fed = scanner.feed(piece)
        kept = truncator.truncate(text)
        assert scanner.text == text
        assert kept == reference(pattern, text)
        assert fed == truncator.decided(text)
        assert decision is None or fed == decision == kept
        assert kept.startswith(settled)
        assert scanner.settled.startswith(settled)
        decision, settled = fed, scanner.settled


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("ab#\n", min_size=1, max_size=4), min_size=1, max_size=4), texts)
def test_literals_are_decided_at_the_first_chance(literals: list[str], pieces: list[str]):
    pattern = spelt("|".join(map(re.escape, literals)))
    text = "".join(pieces)
    assume("z" not in text)
    truncator = Truncator(pattern)
    continuations = ["z", *(one[n:] for one in literals for n in range(len(one)))]
    changes = any(
        truncator.truncate(text + one) != truncator.truncate(text) for one in continuations
    )
    assert (truncator.decided(text) is None) == changes


@settings(max_examples=500, deadline=None)
@given(texts)
def test_default_is_decided_at_the_first_chance(pieces: list[str]):
    truncator = Truncator()
    scanner = truncator.scanner()
    scanner.feed("")
    continuations = [
        "z",
        *FRAGMENTS,
        "\nclass",
        "lass",
        "rint",
        "\nif",
        "f",
        "ass",
        "ss",
        "s",
        "nt",
        "t",
    ]
    for piece in pieces:
        fed = scanner.feed(piece)
        kept = truncator.truncate(scanner.text)
        changes = any(truncator.truncate(scanner.text + one) != kept for one in continuations)
        assert (fed is None) == changes


@pytest.mark.parametrize("stop", ["a" * 50_000 + "b", ["ab" * n for n in range(1, 300)]])
def test_long_stop_strings_cut_before_the_first(stop: str | list[str]):
    truncator = Truncator(None, stop)
    text = "a" * 60_000
    assert truncator.truncate(text + "bc") == (text[:10_000] if isinstance(stop, str) else text[1:])


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=5) | st.just("b" * 70), min_size=1, max_size=5),
    st.lists(st.text("abc", max_size=5) | st.just("b" * 69), max_size=9),
)
def test_stop_strings_cut_and_decide_as_their_definition_says(stop: list[str], pieces: list[str]):
    truncator = Truncator(None, stop)
    scanner, text = truncator.scanner(), ""
    for piece in pieces:
        decided, text = scanner.feed(piece), text + piece
        found = [text.find(one) for one in stop]
        first = min((at for at in found if at >= 0), default=len(text))
        begun = [n for n in range(first) if any(one.startswith(text[n:]) for one in stop)]
        earliest = min(begun, default=first)
        assert scanner.settled == text[:earliest]
        assert decided == (text[:first] if earliest == first < len(text) else None)
        assert truncator.truncate(text) == text[:first]


def test_the_same_rules_are_compiled_once():
    assert Truncator.of(["a|b", "\n"], ["c"]) is Truncator.of(("a|b", "\n"), ("c",))
    assert Truncator.of("python", None) is not Truncator.of("python", "c")
    with pytest.raises(TypeError, match=r"^truncation must be "):
        Truncator.of([["a"]])  # type: ignore[list-item]


@pytest.mark.parametrize("preset", [*PRESETS, DEFAULT_TRUNCATION])
def test_a_copy_goes_on_by_itself(preset: str):
    prompt = "function f() {\n  if (a) {\n" if preset != "python" else "def f():\n    if a:\n"
    scanner = Truncator(preset, ["zz"]).scanner(prompt)
    alone = scanner.copy().feed("    x } z z")
    scanner.copy().feed('"""/* {{{ ((( `${ <a>')
    scanner.copy().end("#else\n}}}")
    assert scanner.copy().feed("    x } z z") == alone
    assert scanner.text == ""


POSSESSIVE = r"(?:\w++\s?)++:"


def test_possessive_repeats_take_no_time():
    truncator = Truncator(POSSESSIVE)
    scanner = truncator.scanner()
    for letter in "abcdefghijklmnopqrstuvwxyz!" * 4:
        assert scanner.feed(letter) is None
    assert truncator.truncate("a b!c d: e") == "a b!"


def test_a_regex_that_warns_does_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Truncator("[[a]").truncate("xa") == "x"


@pytest.mark.parametrize("regex", ["(" * 5000, "a(" + "b" * 5000, "(?:" * 2000 + ")" * 2000])
def test_a_huge_regex_is_one_short_line(regex: str):
    with pytest.raises(ValueError, match=r"^truncation: not a valid regular expression") as caught:
        Truncator(regex)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("regexes", ["|" * 10_001, ["a|b"] * 5000])
def test_more_regexes_than_anyone_writes_are_refused(regexes: str | list[str]):
    with pytest.raises(ValueError, match=r"^truncation: .* more than 10,000 characters; .* stop$"):
        Truncator(regexes)
