"""Plain values as bytes: numbers, strings and containers go over a pipe and are rebuilt.

What is decoded is exactly None or a bool, int, float, complex, str, bytes, list, tuple, set,
frozenset or dict of such, or one of a few harmless builtins; never an object of a class that the
other side wrote. Any bytes at all decode to that or to a ValueError, in time and memory linear in
their number.
"""

from __future__ import annotations

import builtins
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_BYTES = 4 << 20  # of an encoded value
MOST_TOLD = 1 << 20  # of one that the harness itself reads
DEEPEST = 100  # containers in one another
_COLLISIONS = 64  # of hashes in one container: more are there to take the reader's time
_LENGTH = struct.Struct("<I")
_FLOAT, _COMPLEX, _HANDLE = struct.Struct("<d"), struct.Struct("<dd"), struct.Struct("<q")
_SEQUENCES = {b"l": list, b"t": tuple}
_SETS = {b"s": set, b"z": frozenset}
_TAGS = {list: b"l", tuple: b"t", set: b"s", frozenset: b"z"}
_CONSTANTS = {b"N": None, b"T": True, b"F": False}
# Builtins that may stand in a value: they do nothing that the other side could not do itself.
_NAMED = (
    "abs all any bool bytes chr complex dict divmod enumerate filter float frozenset hash hex "
    "int len list map max min object oct ord pow range repr reversed round set slice sorted "
    "str sum tuple zip"
)
_BUILTINS = {name: getattr(builtins, name) for name in _NAMED.split()}
_NAMES = {id(value): name for name, value in _BUILTINS.items()}


class NotPlain(TypeError):
    """A value that does not go over a pipe."""


class Reference:
    """Stands in an encoded value for an object that stays where it is.

    Attributes:
        handle: by which the side that holds the object knows it.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle


def _refuse(value: object) -> object:
    raise NotPlain(f"a {type(value).__name__} is no plain value")


def encode(
    value: object,
    other: Callable[[object], object] = _refuse,
    most_bytes: int = MOST_BYTES,
) -> bytes:
    """The value as bytes; objects of subclasses of plain types as the plain type.

    Args:
        value: any value.
        other: what to encode in place of one that is not plain: a plain value or a Reference.
        most_bytes: what it may take.

    Raises:
        NotPlain: it holds something else, is too deep (or holds itself) or too large.
    """
    parts: list[bytes] = []
    size = 0

    def put(part: bytes) -> None:
        nonlocal size
        size += len(part)
        if size > most_bytes:
            raise NotPlain(f"a value of more than {most_bytes} bytes")
        parts.append(part)

    def sized(tag: bytes, content: bytes) -> None:
        put(tag + _LENGTH.pack(len(content)))
        put(content)

    def one(value: Any, depth: int, again: bool = False) -> None:
        if depth > DEEPEST:
            raise NotPlain(f"a value with more than {DEEPEST} containers in one another")
        kind = type(value)
        if value is None or kind is bool:
            put(b"N" if value is None else b"T" if value else b"F")
        elif id(value) in _NAMES:
            sized(b"Y", _NAMES[id(value)].encode())
        elif isinstance(value, int):
            bits = int.bit_length(value)
            if bits > 8 * most_bytes:
                raise NotPlain(f"a value of more than {most_bytes} bytes")
            sized(b"I", int.to_bytes(value, bits // 8 + 1, "little", signed=True))
        elif isinstance(value, float):
            put(b"D" + _FLOAT.pack(value))
        elif isinstance(value, complex):
            put(b"C" + _COMPLEX.pack(value.real, value.imag))
        elif isinstance(value, str):
            sized(b"S", str.encode(value, "utf-8", "surrogatepass"))
        elif isinstance(value, bytes):
            sized(b"B", bytes(value))
        elif isinstance(value, dict):
            items = list(dict.items(value))
            put(b"d" + _LENGTH.pack(len(items)))
            for item in items:
                one(item[0], depth + 1)
                one(item[1], depth + 1)
        elif isinstance(value, (list, tuple, set, frozenset)):
            base = next(base for base in _TAGS if isinstance(value, base))
            elements = list(value)
            put(_TAGS[base] + _LENGTH.pack(len(elements)))
            for element in elements:
                one(element, depth + 1)
        elif kind is Reference:
            put(b"R" + _HANDLE.pack(value.handle))
        elif again:
            _refuse(value)
        else:
            one(other(value), depth, again=True)

    one(value, 0)
    return b"".join(parts)


class _Reader:
    """Decodes from the front of some bytes on."""

    def __init__(self, data: bytes, referent: Callable[[int], object]) -> None:
        self.data, self.position, self.referent = data, 0, referent

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("a value's bytes end amid it")
        self.position += count
        return taken

    def count(self) -> int:
        """How many bytes or elements follow: no more than there are bytes."""
        [count] = _LENGTH.unpack(self.take(4))
        if count > len(self.data) - self.position:
            raise ValueError("a value's bytes end amid it")
        return int(count)

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("a value is too deep")
        tag = self.take(1)
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag == b"I":
            return int.from_bytes(self.take(self.count()), "little", signed=True)
        if tag == b"D":
            return _FLOAT.unpack(self.take(8))[0]
        if tag == b"C":
            return complex(*_COMPLEX.unpack(self.take(16)))
        if tag == b"S":
            return self.take(self.count()).decode("utf-8", "surrogatepass")
        if tag == b"B":
            return self.take(self.count())
        if tag in _SEQUENCES:
            return _SEQUENCES[tag]([self.value(depth + 1) for _ in range(self.count())])
        if tag in _SETS:
            return _SETS[tag](hashable([self.value(depth + 1) for _ in range(self.count())]))
        if tag == b"d":
            pairs = [(self.value(depth + 1), self.value(depth + 1)) for _ in range(self.count())]
            hashable([key for key, _ in pairs])
            return dict(pairs)
        if tag == b"Y":
            return _BUILTINS[self.take(self.count()).decode("ascii")]
        if tag == b"R":
            return self.referent(_HANDLE.unpack(self.take(8))[0])
        raise ValueError(f"no value begins with {tag!r}")


def hashable(keys: list[Any]) -> list[Any]:
    """These, if a set of them is built in linear time; ValueError if they were chosen against it.

    Python's integers have hashes that one can choose, and sets of equal ones take quadratic time.
    """
    if len(keys) - len(set(map(hash, keys))) > _COLLISIONS:
        raise ValueError("keys whose hashes collide")
    return keys


def _no_referent(handle: int) -> object:
    raise ValueError("a reference, where only values are taken")


def decode(data: bytes, referent: Callable[[int], object] = _no_referent) -> Any:
    """The value of which these are the bytes.

    Args:
        data: anything.
        referent: the object for a reference's handle; raises ValueError where there is none.

    Raises:
        ValueError: they are no value's.
    """
    reader = _Reader(data, referent)
    try:
        value = reader.value(0)
    except (KeyError, TypeError) as error:  # an unknown builtin, a list in a set
        raise ValueError(f"no plain value: {type(error).__name__}") from error
    if reader.position != len(data):
        raise ValueError("bytes after a value's end")
    return value


def write_frame(descriptor: int, content: bytes) -> None:
    """Write so many bytes, after their number; waits for the reader where a pipe is full."""
    left = memoryview(_LENGTH.pack(len(content)) + content)
    while left:
        left = left[os.write(descriptor, left) :]


def read_frame(descriptor: int, most_bytes: int = MOST_BYTES) -> bytes:
    """Read what `write_frame` wrote, and wait for it.

    Raises:
        EOFError: the other side has closed its end.
        ValueError: it says that more than `most_bytes` follow.
    """

    def exactly(count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = os.read(descriptor, min(count - len(found), 1 << 20))
            if not part:
                raise EOFError("the pipe is closed")
            found += part
        return bytes(found)

    count = frame_length(exactly(4), most_bytes)
    return exactly(count)


def frame_length(head: bytes, most_bytes: int) -> int:
    """How many bytes follow a frame's first four; ValueError if that is more than may."""
    [count] = _LENGTH.unpack(head)
    if count > most_bytes:
        raise ValueError(f"a frame of {count} bytes, of which at most {most_bytes} are read")
    return int(count)
