"""Makes the differences that truncation.py found small, to be read, mended and kept as tests.

    python benchmarks/reduction.py build/truncation/differences-java.jsonl

Of each file, lines and then characters are left out as long as the difference is there and of the
same kind; the prompt and completion that are left are printed as Python writes strings.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parsers import UnreadableError
from truncation import Checked, Variant, check, load, read

LONGEST = 4_000  # characters, before any are left out one by one


def smallest(pieces: Sequence[str], still: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """Leave out pieces, many at once at first, as long as `still` holds (delta debugging)."""
    size = max(1, len(pieces) // 2)
    while True:
        at, before = 0, len(pieces)
        while at < len(pieces):
            fewer = [*pieces[:at], *pieces[at + size :]]
            if still(fewer):
                pieces = fewer
            else:
                at += size
        if size == 1 and len(pieces) == before:
            return pieces
        size = max(1, size // 2)


def find(difference: dict[str, Any], before: str, after: str, clean: bool) -> Checked | None:
    """What comes of a cut between two texts, unless that is no cut in a function.

    Args:
        clean: only if the parser finds no errors.
    """
    try:
        source = read(difference["language"], before + after)
    except UnreadableError:
        return None
    cut = len(before)
    if (clean and source.damaged) or not any(f.holds(cut) for f in source.functions):
        return None
    variant = Variant(difference["newline"], difference["bom"])
    return check(difference["language"], source, cut, variant, random.Random(1))


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def halves_reduced(
    split: Callable[[str], list[str]], before: str, after: str, still: Callable[[str, str], bool]
) -> tuple[str, str]:
    """Leave out of both texts what the difference can do without."""
    ahead = smallest(split(before), lambda some: still("".join(some), after))
    before = "".join(ahead)
    behind = smallest(split(after), lambda some: still(before, "".join(some)))
    return before, "".join(behind)


def reduced(difference: dict[str, Any]) -> tuple[str, str, Checked] | None:
    """The smallest prompt and rest found, and what comes of them; None if nothing differs now."""
    text = load(Path(difference["file"]))
    before, after = text[: difference["offset"]], text[difference["offset"] :]
    clean = not read(difference["language"], text).damaged

    def still(before: str, after: str) -> bool:
        checked = find(difference, before, after, clean)
        return checked is not None and checked.kind == difference["kind"]

    if not still(before, after):
        return None
    if clean:  # else what would be left is what the parser makes of errors
        before, after = halves_reduced(lines, before, after, still)
        if len(before) + len(after) <= LONGEST:
            before, after = halves_reduced(list, before, after, still)
    checked = find(difference, before, after, clean)
    assert checked is not None  # it is still different
    return before, after, checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("differences", type=Path)
    parser.add_argument("--kind", default="", help="only those that begin so")
    parser.add_argument("--most", type=int, default=3, help="a file and kind")
    options = parser.parse_args()
    seen: Counter[tuple[str, str]] = Counter()
    for line in options.differences.read_text(encoding="utf-8").splitlines():
        difference = json.loads(line)
        key = difference["file"], difference["kind"]
        seen[key] += 1
        if not difference["kind"].startswith(options.kind) or seen[key] > options.most:
            continue
        found = reduced(difference)
        where = f"{difference['file']} at {difference['offset']}"
        if found is None:
            print(f"# {where}: no difference now", flush=True)
            continue
        before, after, checked = found
        variant = Variant(difference["newline"], difference["bom"])
        ends = sorted((before + after)[len(before) : end] for end in checked.region.ends)
        print(f"# {difference['kind']}, {where}")
        print(f"prompt={variant.write(before)!r}")
        print(f"completion={after.replace(chr(10), variant.newline)!r}")
        print(f"expected={ends[0].rstrip()!r}  # with line feeds")
        print(f"got={checked.kept!r}\n", flush=True)


if __name__ == "__main__":
    main()
