"""Asking for huge pages: only for what was allocated meanwhile, and never changing it."""

from __future__ import annotations

import mmap
import sys
import threading

import numpy as np
import pytest

from paddlenlp_codegen_task.runtime import huge_pages

MB = 1 << 20


def _private(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_new_memory_is_collapsed_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    collapse = huge_pages._collapse

    def recorded(regions: list[tuple[int, int]]) -> None:
        asked.extend(regions)
        collapse(regions)

    monkeypatch.setattr(huge_pages, "_collapse", recorded)
    old = np.frombuffer(_private(64 * MB), np.uint8)
    with huge_pages.advised():
        new = np.frombuffer(_private(96 * MB), np.uint8)
        new[:] = 7
    for thread in threading.enumerate():
        if thread.name == "huge-pages":
            thread.join()
    start = new.ctypes.data
    covered = sum(max(0, min(b, start + new.size) - max(a, start)) for a, b in asked)
    assert covered >= new.size - 2 * 2 * MB
    assert not any(a < old.ctypes.data + old.size and b > old.ctypes.data for a, b in asked)
    assert (new == 7).all()


@pytest.mark.parametrize(
    ("region", "others", "expected"),
    [
        ((0, 64 * MB), [], [(0, 64 * MB)]),
        ((1, 64 * MB + 5), [], [(2 * MB, 64 * MB)]),
        ((0, 64 * MB), [(0, 64 * MB)], []),
        ((0, 96 * MB), [(32 * MB, 64 * MB)], [(0, 32 * MB), (64 * MB, 96 * MB)]),
        ((32 * MB, 96 * MB), [(0, 64 * MB)], [(64 * MB, 96 * MB)]),
        ((0, 64 * MB), [(0, 60 * MB)], []),  # what is left is small
        ((64 * MB, 96 * MB), [(0, 64 * MB), (96 * MB, 99 * MB)], [(64 * MB, 96 * MB)]),
    ],
)
def test_without(
    region: tuple[int, int], others: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    assert list(huge_pages._without(region, others)) == expected
