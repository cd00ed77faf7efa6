"""Plain values over a pipe: what comes back is what was sent, and any bytes are a value or none."""

from __future__ import annotations

import collections
import enum
import math
import os
import random
import struct
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlenlp_codegen_task.evaluation.sandbox.inside import plain
from paddlenlp_codegen_task.evaluation.sandbox.inside.plain import NotPlain, decode, encode
from paddlenlp_codegen_task.evaluation.sandbox.jail import read_frame

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False) | st.text(st.characters()) | st.binary()
)  # fmt: skip
HASHABLE = st.recursive(SCALARS, lambda s: st.lists(s).map(tuple) | st.frozensets(s), max_leaves=8)
VALUES = st.recursive(
    SCALARS,
    lambda s: (
        st.lists(s) | st.lists(s).map(tuple) | st.dictionaries(HASHABLE, s) | st.sets(HASHABLE)
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    """Equal, and of exactly the same types all the way down."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return repr(left) == repr(right) if isinstance(left, float | complex) else left == right


@given(VALUES)
def test_what_comes_back_is_what_was_sent(value: object) -> None:
    assert same(decode(encode(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        0, -1, 127, 128, -128, -129, 2**63, -(2**64), 10**10_000, -(10**10_000),
        0.0, -0.0, math.inf, -math.inf, 5e-324, complex(-0.0, math.inf),
        "", "\0", "\ud800", "ｆｕｌｌ", b"", b"\0\xff", (), [], {}, set(), frozenset(),
        [[], [[]]], {(1, 2): [3]}, {frozenset({1}): None}, int, str, len, sorted,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_at_the_edges(value: object) -> None:
    assert same(decode(encode(value)), value)


def test_not_a_number_stays_one() -> None:
    assert math.isnan(decode(encode(math.nan)))


class Colour(enum.IntEnum):
    RED = 3


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def bit_length(self) -> int:
        return 10**18


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (Colour.RED, 3),
        (Liar(7), 7),
        (True, True),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
    ],
)
def test_of_a_subclass_the_plain_value_is_sent(value: object, sent: object) -> None:
    assert same(decode(encode(value)), sent)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def doubled(times: int) -> list[Any]:
    """Small in memory, 2 ** times as large when it is written out."""
    value: list[Any] = [0]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "a object is no plain value"),
        ([lambda: 0], "a function is no plain value"),
        ({1: math}, "a module is no plain value"),
        (eval, "a builtin_function_or_method is no plain value"),
        (nested(101), "more than 100 containers in one another"),
        (circle(), "more than 100 containers in one another"),
        (doubled(60), "a value of more than 4194304 bytes"),
        ("x" * (5 << 20), "a value of more than 4194304 bytes"),
        (1 << (8 << 24), "a value of more than 4194304 bytes"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_is_refused(value: object, why: str) -> None:
    with pytest.raises(NotPlain, match=why):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"?", b"I", b"I\xff\xff\xff\xff", b"l\x02\0\0\0N", b"NN", b"S\x01\0\0\0\xff",
        b"s\x01\0\0\0l\0\0\0\0", b"d\x01\0\0\0d\0\0\0\0N", b"D1234", b"R" + bytes(8),
        b"Y\x04\0\0\0eval", b"Y\x04\0\0\0\xff\xff\xff\xff", b"l\x01\0\0\0" * 200 + b"N",
        b"l\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_bytes_of_no_value(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of many texts, all of them our own)
        decode(data)


PRIME = (1 << 61) - 1  # all of whose multiples have one hash


@pytest.mark.parametrize(
    "keys",
    [
        [PRIME * n for n in range(50_000)],
        [*range(50_000), *(PRIME * n for n in range(1, 50_000))],
        [(PRIME * n, 1) for n in range(20_000)],
    ],
    ids=["integers", "half", "tuples"],
)
@pytest.mark.parametrize("kind", [b"s", b"z", b"d"])
def test_keys_chosen_to_collide_are_refused(keys: list[object], kind: bytes) -> None:
    """At once: a set of these takes hours."""
    encoded = encode(keys)[1:] if kind != b"d" else encode([x for k in keys for x in (k, 0)])[1:]
    data = kind + struct.pack("<I", len(keys)) + encoded[4:]
    with pytest.raises(ValueError, match="keys whose hashes collide"):
        decode(data)


@pytest.mark.parametrize("keys", [range(50_000), range(-50_000, 0), range(0, 2**62, 2**46)])
def test_keys_that_merely_are_many_are_not(keys: range) -> None:
    assert decode(encode(set(keys))) == set(keys)


@given(st.binary(max_size=200), VALUES, st.integers(0, 200))
def test_any_bytes_are_a_value_or_none(noise: bytes, value: object, position: int) -> None:
    sent = encode(value)
    for data in (noise, sent[:position] + noise + sent[position + len(noise) :], sent[:position]):
        try:
            decoded = decode(data)
        except ValueError:
            continue
        encode(decoded)  # so it is plain


def test_a_frame_comes_in_pieces() -> None:
    reading, writing = os.pipe()
    content = random.Random(0).randbytes(300_000)  # more than a pipe holds
    writer = threading.Thread(target=plain.write_frame, args=(writing, content))
    writer.start()
    assert read_frame(reading, time.monotonic() + 60) == content
    writer.join()
    os.close(writing)
    with pytest.raises(EOFError):
        plain.read_frame(reading)
    with pytest.raises(EOFError):
        read_frame(reading, time.monotonic() + 60)
    os.close(reading)


def test_no_more_is_read_than_may_be() -> None:
    reading, writing = os.pipe()
    plain.write_frame(writing, b"12345")
    with pytest.raises(ValueError, match="a frame of 5 bytes, of which at most 4 are read"):
        plain.read_frame(reading, most_bytes=4)
    os.close(reading)
    os.close(writing)


def test_a_reader_waits_no_longer_than_it_may() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\5\0\0\0abc")
    with pytest.raises(TimeoutError):
        read_frame(reading, time.monotonic() + 0.05)
    os.close(reading)
    os.close(writing)
