"""What the built-in model is measured with: 5-gram model, windows, completions, HumanEval."""

from __future__ import annotations

import lzma
from typing import Any

import completions
import evaluate
import numpy as np
import pytest
from bits import CONTEXT, STRIDE, windows, xz_archive_bits, xz_bits
from ngram import KneserNey

from paddlenlp_codegen_task.evaluation.sandbox import Sandbox, SandboxUnavailable

TOKENS = np.random.default_rng(0).integers(0, 7, 300)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_kneser_ney_sums_to_one(order: int):
    """After contexts it has seen and others (7 and 8 never occur)."""
    model = KneserNey(TOKENS, 9, order)
    for context in ([3, 1], TOKENS[:6], [7, 8, 2], [2]):
        chances = [model.probabilities(np.array([*context, token]))[-1] for token in range(9)]
        assert min(chances) > 0
        assert sum(chances) == pytest.approx(1)


def test_kneser_ney_by_hand():
    """Bigrams ab ab ac b...: the interpolated estimate, written out."""
    a, b, c = range(3)
    model = KneserNey(np.array([a, b, a, b, a, c]), 3, 2)
    # Different bigrams: ab 2, ba 2, ac 1. Discount 1 / (1 + 2 * 2); unigrams count those before
    # them: a 1, b 1, c 1, discount 3 / 3 = 1, so all of it goes to the uniform distribution.
    discount, lower = 1 / 5, 1 / 3
    expected = (2 - discount) / 3 + discount * 2 / 3 * lower
    assert model.probabilities(np.array([a, b]))[1] == pytest.approx(expected)


def test_longer_contexts_predict_better():
    text = np.tile(np.arange(6), 40)
    losses = [-np.log(KneserNey(text, 6, n).probabilities(text)).mean() for n in (1, 2)]
    assert losses[1] < losses[0] / 5


@pytest.mark.parametrize("count", [2, 3, CONTEXT, CONTEXT + 1, CONTEXT + 2, 5000])
def test_windows_score_every_token_once(count: int):
    scored: list[int] = []
    for first, begin in windows(count):
        end = min(first + CONTEXT + 1, count)
        assert begin == 1 or begin - first > STRIDE
        scored += range(begin, end)
    assert scored == list(range(1, count))


def test_xz_is_that_of_the_command():
    files = ["def f():\n    return 1\n" * 9, "x = 2\n"]
    sizes = [len(lzma.compress(file.encode(), preset=9)) for file in files]
    size = sum(map(len, files))
    assert xz_bits(files) == 8 * sum(sizes) / size
    assert xz_archive_bits(files) < xz_bits(files)


MODULE = '''
import math

def area(r):
    """The area of a circle."""
    return math.pi * r * r

def bare(r):
    return r

def one_line(r): "doc"; return r

class Circle:
    def area(self):
        """Its area.

        In square metres."""
        def inner():
            """Not at a level that counts."""
            return 1
        return inner()
'''


def test_headers_have_a_docstring_and_functions_come_first():
    found = completions.headers([MODULE], 9)
    assert [one.prompt for one in found] == [
        'def area(r):\n    """The area of a circle."""',
        'def area(self):\n    """Its area.\n\n    In square metres."""',
    ]
    assert found[0].body == "\n    return math.pi * r * r"
    assert completions.headers([MODULE, MODULE], 1) == found[:1]


def test_a_body_parses_or_not():
    prompt = 'def f(x):\n    """Doc."""'
    assert completions.has_body(prompt, "\n    return x")
    assert not completions.has_body(prompt, "\n    return (x")
    assert not completions.has_body(prompt, "\n   ")


def test_undefined_names_of_completions():
    prompt = 'def f(x: Unknown):\n    """Doc."""'
    bodies = [
        "\n    return x + len(y)",
        "\n    y = x\n    return [z for z in y]",
        "\n    import os",
    ]
    found = completions.undefined_names([(prompt, body) for body in bodies])
    assert found == [{"y"}, set(), set()]


@pytest.mark.parametrize(
    ("body", "is_greeting"),
    [
        ('\n    print("Hello, world!")', True),
        ("\n    return 'hello ' + 'world'", True),
        ('\n    print(f"Hi {1}")', True),
        ('\n    hello = "hello"', False),
        ("\n    return 1", False),
        ('\n    print("Hello"', False),
    ],
)
def test_greetings(body: str, is_greeting: bool):
    assert completions.greets("def hello_world():", body) is is_greeting


PROBLEM: dict[str, Any] = {
    "prompt": "def double(x):\n",
    "test": "def check(f):\n    assert f(2) == 4\n",
    "entry_point": "double",
}


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("body", "passed"),
    [
        ("    return 2 * x", True),
        ("    return x", False),
        ("    return 2 *", False),
        ("    raise SystemExit(3)", False),
        ("    raise SystemExit(0)", False),
        ("    return 0\nimport os\nos._exit(0)", False),
        ("    open('/made', 'w')\n    return 2 * x", False),
        ("    import os\n    os.remove(os.__file__)\n    return 2 * x", False),
        ("    import subprocess\n    subprocess.run(['true'])\n    return 2 * x", False),
    ],
)
def test_completions_are_run(sandbox: Sandbox, body: str, passed: bool):
    assert evaluate.passes(sandbox, PROBLEM, body) is passed
