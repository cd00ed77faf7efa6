"""Values that no option expects, and what must become of them all: a plain value, or one line."""

from __future__ import annotations

import enum
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from hypothesis import strategies as st

from paddlenlp_codegen_task.checks import LONGEST


class Shown:
    """An object with this repr, or one that raises."""

    def __init__(self, text: Any) -> None:
        self.text = text

    def __repr__(self) -> str:
        if isinstance(self.text, Exception):
            raise self.text
        return self.text


class AsPath(Shown):
    """The same, that claims to be a path."""

    def __fspath__(self) -> str:
        if isinstance(self.text, Exception):
            raise self.text
        return self.text


class Lying(int):
    """An integer that is within all bounds, if one asks it."""

    def __lt__(self, other: object) -> bool:
        return False

    __gt__ = __lt__

    def __repr__(self) -> str:
        return "many\nlines"


class Word(str):
    """A str of its own kind."""

    def __str__(self) -> str:
        return "another"

    __repr__ = __str__


class Number(enum.IntEnum):
    TWO = 2


class Strategy(enum.StrEnum):
    GREEDY = "greedy_search"


NESTED: list[Any] = []
NESTED.append(NESTED)

VALUES: list[Any] = [
    *[None, True, False, 0, 1, 2, 3, -1, 7, 2**63, 2**64, 10**400, -(10**400), 10**5000],
    *[0.0, 0.5, -0.0, 1.0, -1e300, 1e300, 5e-324, math.nan, math.inf, -math.inf, 1j],
    *[Fraction(1, 3), Fraction(10**5000, 3), Fraction(1, 10**5000), Fraction(2)],
    *[Decimal("0.5"), Decimal("sNaN"), Decimal("NaN"), Decimal("1e999999")],
    *[np.int64(3), np.uint64(2**64 - 1), np.int8(-1), np.bool_(True), np.bool_(False)],
    *[np.float16(0.5), np.float32(np.nan), np.float64(np.inf), np.longdouble(2) ** 5000],
    *[np.complex64(1), np.timedelta64(5, "s"), np.datetime64("2020-01-01"), np.str_("python")],
    *[np.bytes_(b"x"), np.array(3), np.array([1, 2]), np.zeros((60, 60)), np.array(["a", "b"])],
    *["", "x", "no", "a\nb", "\u2028\x85\r", "\0", "\ud800", "~nosuchuser", "~nosuchuser/x", "("],
    *[
        "x" * 5000,
        "y/" * 3000,
        "[" * 3000,
        "gpu:" + "9" * 5000,
        "gpu:\u0663",
        "no/../" * 90,
        "auto",
    ],
    *[b"", b"x", b"\xff" * 5000, bytearray(b"x"), memoryview(b"x")],
    *[[], [""], ["a", 3], ["a", None], [1] * 5000, ["a\nb" * 5000, 1], NESTED, (), ("a",), [b"a"]],
    *[set(), {1}, {}, {1: 2}, {"a": 1}, {1: "x"}, {1: math.nan}, {2**64: 1.0}, {1: 10**400}],
    *[{True: 1.0}, {None: None}, {1: np.float32(2)}, {np.int64(1): 2}],
    *[object(), type, len, math, lambda: None, iter([]), (n for n in "ab"), range(0), ...],
    *[Shown("x" * 10**6), Shown("a\nb\u2028c\td\x1b[0m"), Shown(RuntimeError("a\nb")), Shown(3)],
    *[AsPath("a\nb"), AsPath("x" * 5000), AsPath(3), AsPath(b"x"), AsPath(RuntimeError("a\nb"))],
    *[Lying(10**30), Lying(-5), Word("sampling"), Word("\ud800"), Number.TWO, Strategy.GREEDY],
    *[MagicMock(spec=int), MagicMock(spec=str), type("a\nb" * 500, (), {})()],
]


def values() -> st.SearchStrategy[Any]:
    """Any of VALUES, and more of the plain kinds."""
    return st.one_of(
        st.sampled_from(VALUES),
        st.integers(),
        st.integers(1, 9),
        st.floats(),
        st.text(max_size=9),
        st.lists(st.one_of(st.integers(), st.text(max_size=9)), max_size=4),
        st.dictionaries(st.integers(), st.floats(), max_size=4),
    )


def sets(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Some options with any values."""
    return st.dictionaries(st.sampled_from(names), values(), min_size=1, max_size=4)


def check_line(error: BaseException, names: Any = ()) -> str:
    """Assert that an error is one line of bounded length, which names one of the options."""
    message = str(error)
    assert message
    assert len(message) <= LONGEST + 20 * ("unknown option" in message)
    assert message.isprintable(), repr(message)
    if names:
        assert any(re.search(rf"\b{name}\b", message) for name in names), message
    return message


def is_plain(value: Any) -> bool:
    """Whether a value is one of Python's own, of bounded size."""
    if type(value) in (tuple, dict):
        parts = value if type(value) is tuple else [*value, *value.values()]
        return all(map(is_plain, parts))
    if type(value) is int:
        return value.bit_length() <= 128
    return type(value) in (bool, float, str, type(None))
