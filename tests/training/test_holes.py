"""Held-out lines: which are taken out, and what is counted of those filled in."""

from __future__ import annotations

from holes import Hole, holes, judged, lines_of_code

TEXT = '''\
"""A module."""

LIMIT = 3


def area(r, unit="m"):
    """The area.

    Of a circle.
    """
    # of its radius
    print(f"{r} {unit}")

    query = """
        select
    """
    return (
        LIMIT * r  # about
        * r
    )


class Circle:
    async def area(self):
        "Its area."
        return 1
'''


def test_lines_of_functions_that_hold_code() -> None:
    lines = TEXT.split("\n")
    assert [lines[n].strip() for n in lines_of_code(TEXT)] == [
        'print(f"{r} {unit}")',
        "return (",
        "LIMIT * r  # about",
        "* r",
        ")",
        "return 1",
    ]


def test_holes_are_whole_lines_whatever_the_order_of_files() -> None:
    files = {"a.py": TEXT, "b.py": TEXT}
    found = holes(files, 9)
    assert len(found) == 9
    assert found == holes(dict(reversed(files.items())), 9) == holes(files, 99)[:9]
    for hole in found:
        assert hole.filled(hole.line) == TEXT
        assert hole.prefix.endswith("\n")
        assert hole.suffix.startswith("\n")
        assert hole.line.startswith("    ")


def test_what_is_counted() -> None:
    hole = Hole("def f(x):\n", "    return x", "\n")
    fills = ["    return x", "    return 2", "    return (", "", "    x = 1\n    return x"]
    ended = [True, True, False, True, True]
    assert judged([hole] * 5, fills, ended) == {
        "parse": 3,
        "parse_not_blank": 3,
        "exact": 1,
        "one_line": 4,
        "finished": 4,
    }
    rest = Hole("def f(x):\n    x = 1\n", "    x += 1", "\n    return x\n")
    assert judged([rest], ["  "], [True])["parse"] == 1
    assert judged([rest], ["  "], [True])["parse_not_blank"] == 0
