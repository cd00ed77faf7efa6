"""What users pass becomes a plain Python value of bounded size, or an error of one line.

A NumPy scalar is as good as Python's own value of its kind; a bool is no integer, and an integer no
bool. Each error names the option, says what would be right, and quotes the value, whatever that is,
in a few words: a value may be an integer of a million digits, and a repr may do anything.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Any

LONGEST = 300  # characters of an error
LARGEST = 2**63 - 1  # of integers that nothing else bounds
_QUOTED = 80  # characters of a value in an error
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes: Linux's NAME_MAX, and PATH_MAX without its end


class _Quoting(reprlib.Repr):
    """Looks at no more of a value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = _QUOTED

    def repr_int(self, x: int, level: int) -> str:
        """As it is, or its size: the digits of a huge one take long, or may not be asked for."""
        return repr(x) if x.bit_length() <= 256 else f"an integer of {x.bit_length()} bits"


_quoting = _Quoting()


def line(message: str, longest: int = LONGEST) -> str:
    """A message on one line, with its middle left out if it is longer than that."""
    if len(message) > 4 * longest:  # what is left out need not be looked at
        message = message[: 2 * longest] + message[-2 * longest :]
    message = " ".join(part.strip() for part in message.splitlines())
    message = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message)
    if len(message) <= longest:
        return message
    half = (longest - 5) // 2
    return f"{message[:half]} ... {message[-half:]}"


def shown(value: Any) -> str:
    """How an error quotes a value."""
    try:
        return line(_quoting.repr(value), _QUOTED)
    except Exception:  # of a repr, which is anybody's code
        return kind(value)


def kind(value: Any) -> str:
    """How an error names a value's type."""
    return line(type(value).__name__, _QUOTED)


def boolean(name: str, value: Any) -> bool:
    """Return a bool, or raise a TypeError."""
    if isinstance(value, bool) or _numpy_kind(value) == "b":
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown(value)}")


def integer(name: str, value: Any, least: int, most: int = LARGEST, why: str = "") -> int:
    """Return an integer from `least` to `most`.

    Args:
        name: what an error calls it.
        value: what was passed.
        least: the smallest that is possible.
        most: the largest.
        why: what an error says of `most`.

    Raises:
        TypeError: it is no integer.
        ValueError: it is too small or too large.
    """
    found: int | None = _converted(int, value, Integral)
    if found is None:
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if found < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(found)}")
    if found > most:
        raise ValueError(f"{name} must be at most {most}{why}, got {shown(found)}")
    return found


def number(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> float:
    """Return a finite number as a float.

    Args:
        name: what an error calls it.
        value: what was passed; fractions and decimals are numbers too.
        expected: what an error says that it must be.
        holds: whether a number is that.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or not what is expected.
    """
    found: float | None
    try:
        found = _converted(float, value, (Real, Decimal))
    except OverflowError:
        found = math.inf
    if found is None:
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not (math.isfinite(found) and holds(found)):
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
    return found


def text(value: Any) -> str | None:
    """A str as one of Python's own; None if a value is no str, whatever class it says it has."""
    return str.__str__(value) if issubclass(type(value), str) else None


def iterator(value: Any) -> Iterator[Any] | None:
    """What goes through a collection's values; None if a value is none, or is a text."""
    try:
        return None if isinstance(value, (str, bytes)) else iter(value)
    except TypeError:  # an array without dimensions looks like a collection
        return None


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return one of `allowed`, or raise a ValueError that lists them."""
    found = text(value)
    if found is None or found not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}"
        )
    return found


def path(name: str, value: Any, expected: str = "a folder's path") -> Path:
    """Return a path, with a user's home in the place of "~".

    Raises:
        TypeError: it is neither a str nor a path.
        ValueError: no file can be named so, or there is no such user.
    """
    try:
        given = text(os.fspath(value))
    except Exception:  # not only TypeError: a path's class is anybody's code
        given = None
    if given is None:
        raise TypeError(f"{name} must be {expected}, got {shown(value)}")
    if not given:
        raise ValueError(f"{name} must not be empty")
    try:
        found = Path(given).expanduser()
        encoded = os.fsencode(found)
    except (RuntimeError, UnicodeEncodeError) as error:  # no such user; a surrogate
        reason = "there is no such home" if isinstance(error, RuntimeError) else "not valid Unicode"
        raise ValueError(f"{name}: {shown(given)}: {reason}") from None
    if b"\0" in encoded:
        raise ValueError(f"{name}: a path cannot hold a null character: {shown(given)}")
    longest = max(map(len, encoded.split(b"/")))
    if len(encoded) > _LONGEST_PATH or longest > _LONGEST_NAME:
        raise ValueError(
            f"{name}: a path may have {_LONGEST_PATH} bytes, each name in it {_LONGEST_NAME}: "
            f"{shown(given)} has {len(encoded)}, the longest name {longest}"
        )
    return found


def _converted(to: Callable[[Any], Any], value: Any, kinds: Any) -> Any:
    """`value` as one of Python's numbers; None if it is of none of these kinds, or is a bool."""
    if type(value) is to:  # as it nearly always is
        return value
    # NumPy's spans of time are integers to Python, whatever their unit.
    if isinstance(value, bool) or not isinstance(value, kinds) or _numpy_kind(value) == "m":
        return None
    try:
        return to(value)
    except (TypeError, ValueError):  # of a class that says it is a number; a signalling NaN
        return None


def _numpy_kind(value: Any) -> str:
    """The letter that NumPy has for the kind of a scalar of its own, "" for anything else.

    Without importing NumPy, which a start need not wait for.
    """
    names = ((base.__module__, base.__name__) for base in type(value).__mro__)
    return str(value.dtype.kind) if ("numpy", "generic") in names else ""
