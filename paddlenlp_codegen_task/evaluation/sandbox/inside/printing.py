"""The process of a program of which the last printed value is wanted.

As in the multi-turn benchmark's own checker: the program is `__main__`; a last statement that has a
value and is no call of print is printed as well; what was printed before an exception counts.
"""

from __future__ import annotations

import _ast
import sys
from _collections_abc import ItemsView, Iterator, KeysView, ValuesView
from itertools import islice

from .peer import described
from .plain import DEEPEST, MOST_TOLD, NotPlain, encode, write_frame
from .program import load, syntax

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "__main__"  # of the program's module
MOST_ELEMENTS = 1 << 20  # of an iterator
_AS_LISTS = (KeysView, ValuesView, ItemsView, range, Iterator)
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def printing(source: str) -> _ast.Module:
    """The program, with what its last statement is worth printed.

    The benchmark's own checker does so for any statement that has a value, assignments too.
    """
    tree = syntax(source, NAME)
    last: Any = tree.body[-1] if tree.body else None
    value = getattr(last, "value", None)
    function = getattr(value, "func", None)
    prints = isinstance(function, _ast.Name) and function.id.startswith("print")
    if isinstance(value, _ast.expr) and not prints:
        place: Any = {
            name: getattr(value, name)
            for name in ("lineno", "col_offset", "end_lineno", "end_col_offset")
        }
        function = _ast.Name("print", _ast.Load(), **place)
        last.value = _ast.Call(function, [value], [], **place)
    return tree


def as_plain(value: Any, depth: int = 0) -> object:
    """Arrays and series as lists, frames as dicts of lists, scalars as Python's own.

    An object that has no plain counterpart is its text.
    """
    if depth > DEEPEST:
        raise NotPlain("a value with too many containers in one another")
    if type(value) in _PLAIN:
        return value
    made = sys.modules.get("collections")  # without which there is no deque
    if isinstance(value, _AS_LISTS) or (made and isinstance(value, made.deque)):
        elements = list(islice(value, MOST_ELEMENTS + 1))
        if len(elements) > MOST_ELEMENTS:
            raise NotPlain(f"more than {MOST_ELEMENTS} elements")
        return [as_plain(element, depth + 1) for element in elements]
    if isinstance(value, dict):
        return {hashable(key, depth): as_plain(value[key], depth + 1) for key in value}
    if isinstance(value, (list, tuple)):
        elements = [as_plain(element, depth + 1) for element in value]
        return elements if isinstance(value, list) else tuple(elements)
    if isinstance(value, (set, frozenset)):
        return {hashable(element, depth) for element in value}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):  # a DataFrame
        return as_plain(value.to_dict("list"), depth + 1)
    if hasattr(value, "tolist"):  # numpy's and pandas' arrays and scalars, torch's, array.array
        return as_plain(value.tolist(), depth + 1)
    return value if isinstance(value, _PLAIN) else str(value)


def hashable(value: Any, depth: int) -> object:
    """A set's element or a dict's key."""
    plain = as_plain(value, depth + 1)
    try:
        hash(plain)
    except TypeError:
        return str(value)
    return plain


def main(job: dict[str, Any]) -> None:
    """Run `job["source"]`; write whether it printed, the value, and how it ended."""
    last: list[tuple[object, ...]] = []

    def record(*arguments: object, **keywords: Any) -> None:
        last[:] = [arguments]
        print(*arguments, **keywords)

    ended = ""
    try:
        tree: Any = printing(job["source"])
        load(tree, NAME, {"print": record})
    except BaseException as error:  # a SystemExit too: what was printed was printed
        ended = ": ".join(filter(None, described(error)))
    printed, value = bool(last and last[0]), None
    if not printed:
        ended = ended or ("printed nothing" if not last else "printed an empty line last")
    else:
        try:
            value = as_plain(last[0][0])
            encode(value, most_bytes=MOST_TOLD)
        except BaseException as error:  # of the value's own methods
            printed, value, ended = False, None, ": ".join(filter(None, described(error)))
    write_frame(job["result"], encode([printed, value, ended]))
