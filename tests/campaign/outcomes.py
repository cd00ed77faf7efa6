"""How an attack may end, and what a refusal must look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

LONGEST_MESSAGE = 2000  # characters; paths and lists of names take some


class Outcome(StrEnum):
    """How an attack ended, if not with a failure."""

    REFUSED = "refused"  # in one line
    REBUILT = "rebuilt"  # what was damaged was made again
    WORKED = "worked"  # with the same output as without the attack
    CHANGED = "changed"  # the input says something else, without checksums: read as such


Outcomes = Counter[str]


class Failure(AssertionError):
    """An attack did harm, or misled."""


def check(holds: object, message: str) -> None:
    """Raise a Failure unless something holds; python -O does not leave this out."""
    if not holds:
        raise Failure(message)


def one_line(error: BaseException, names: Iterable[str] = ()) -> str:
    """The message of a refusal, if it is one line that holds one of `names`; else a Failure."""
    message, names = str(error), list(names)
    about = f"{type(error).__name__}: {message[:LONGEST_MESSAGE]!r}"
    check(message.strip(), f"a refusal without a message: {about}")
    check(len(message.splitlines()) == 1, f"a refusal of several lines: {about}")
    check(len(message) <= LONGEST_MESSAGE, f"a refusal of {len(message):,} characters: {about}")
    if names:
        check(any(name in message for name in names), f"names none of {names}: {about}")
    return message
