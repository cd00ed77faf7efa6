"""Asks Linux to keep a model's weights in huge pages.

A step reads all weights once, and with pages of 4 KB finding them in memory takes a tenth of a
step (a quarter in float32; docs/onnxruntime.md). It is advice only: where the kernel cannot follow
it, nothing changes.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_HUGE_PAGE = 2 << 20
_SMALLEST = 16 << 20  # of a region worth it; a thread's stack of 8 MB is none
_DELAY = 1.0  # seconds: a process that has just started has its first token to find
_MADV_COLLAPSE = 25  # since Linux 6.1; not in Python's mmap

Region = tuple[int, int]


@contextmanager
def advised() -> Iterator[None]:
    """Move the memory allocated meanwhile into huge pages, in the background and a little later."""
    if not _MAPS.is_file():  # not Linux
        yield
        return
    before = _large_regions()
    yield
    added = [part for region in _large_regions() for part in _without(region, before)]
    thread = threading.Timer(_DELAY, _collapse, (added,))
    thread.name, thread.daemon = "huge-pages", True
    thread.start()


def _large_regions() -> list[Region]:
    """Addresses of this process's writable anonymous memory, in order; not of its stacks."""
    regions = []
    for line in _MAPS.read_text(encoding="utf-8").splitlines():
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if access.startswith("rw") and inode == "0" and name in ([], ["[heap]"]):
            regions.append((start, end))
    return regions


def _without(region: Region, others: list[Region]) -> Iterator[Region]:
    """The large parts of a region that none of the others, in order, covers."""
    start, end = region
    for other_start, other_end in others:
        if other_end <= start:
            continue
        if other_start >= end:
            break
        yield from _whole_pages(start, other_start)
        start = other_end
    yield from _whole_pages(start, end)


def _whole_pages(start: int, end: int) -> Iterator[Region]:
    first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
    if last - first >= _SMALLEST:
        yield first, last


def _collapse(regions: list[Region]) -> None:
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in regions:
        # What the first call allows, the kernel would do over minutes; the second does it now.
        madvise(start, end - start, mmap.MADV_HUGEPAGE)
        madvise(start, end - start, _MADV_COLLAPSE)
