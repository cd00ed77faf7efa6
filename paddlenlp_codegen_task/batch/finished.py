"""Which rows there have been, in a few bytes each: there may be many millions."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Hashable, Iterator

from paddlenlp_codegen_task.batch.rows import Refused, Row


class Keys:
    """A set of ids and numbers of lines: 8 bytes of hash each, in a table of which half is free.

    Of ten million, one is taken for another with a probability of 3 in a million.
    """

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Hashable) -> bool:
        hashed = _hash(key)
        return self._table[self._place(hashed)] == hashed

    def add(self, key: Hashable) -> bool:
        """Add a key; return whether it is new."""
        hashed = _hash(key)
        place = self._place(hashed)
        if self._table[place] == hashed:
            return False
        self._table[place] = hashed
        self._count += 1
        if 2 * self._count > len(self._table):
            old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for one in old:
                if one:
                    self._table[self._place(one)] = one
        return True

    def _place(self, hashed: int) -> int:
        """Where a hash is, or would be."""
        last = len(self._table) - 1
        place = hashed & last
        while self._table[place] not in (0, hashed):
            place = (place + 1) & last
        return place


def _hash(key: Hashable) -> int:
    """Not Python's own, which for strings is another in each process, and for integers is none."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") or 1


def key_of(one: Row | Refused) -> Hashable:
    """What tells a row from the others once it has ended."""
    if isinstance(one, Refused) and one.line is not None:
        return "line", one.line
    return "id", one.id


class Unfinished:
    """Which rows are left to do, of rows that come in the same order every time."""

    def __init__(self, finished: Keys) -> None:
        """Begin with the first row.

        Args:
            finished: the keys of those that have ended.
        """
        self._finished, self._seen = finished, Keys()

    def left(self, row: Row | Refused) -> Row | Refused | None:
        """The row, or None if it has ended before. An id's second row is Refused."""
        if isinstance(row, Row) and not self._seen.add(key_of(row)):
            row = Refused("an earlier row has the same id", row.id, row.line)
        if key_of(row) in self._finished or ("line", row.line) in self._finished:
            return None
        return row


def unfinished(rows: Iterator[Row | Refused], finished: Keys) -> Iterator[Row | Refused]:
    """Rows that have not ended before, each id once: a second one is Refused.

    Args:
        rows: all of them, in the same order every time.
        finished: the keys of those that have ended.
    """
    left = Unfinished(finished).left
    return (row for one in rows if (row := left(one)) is not None)
