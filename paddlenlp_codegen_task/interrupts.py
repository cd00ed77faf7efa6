"""Ctrl+C that arrives while a native module is imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_taken_for_errors() -> Iterator[None]:
    """Raise an interrupt as such, where code below has made an error of it.

    A native module whose initialization Ctrl+C has ended raises ImportError, as if it were broken
    or missing, with the interrupt as the error's cause.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and isinstance(cause, Exception):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise
