"""What a processor's instructions mean for the choice of a precision, as far as it was measured."""

from __future__ import annotations

import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# The fastest precision at batch 1, and its tokens a second over those of fp32, by kind of CPU:
# of benchmarks/results/compare-*.json. Kinds that are not here have not been measured.
FASTEST_ALONE = {"AVX-512 with VNNI": ("int4", 4.4), "AVX2": ("int4", 4.4)}


def flags(about: str) -> frozenset[str]:
    """The instruction sets in Linux's description of an x86 processor; none of another's."""
    match = re.search(r"^flags\s*:\s*(.+)$", about, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def kind(has: frozenset[str]) -> str:
    """What products of few bits are computed by, given the instruction sets there are."""
    if "amx_int8" in has:
        return "AMX"
    if {"avx512f", "avx512_vnni"} <= has:
        return "AVX-512 with VNNI"
    return "AVX2" if "avx2" in has else "older"


def faster_than_fp32(has: frozenset[str]) -> str:
    """Which precision is how much faster for one prompt at a time, in words; "" if unknown."""
    precision, factor = FASTEST_ALONE.get(kind(has), ("", 0.0))
    if not precision:
        return ""
    return f"{precision} is about {factor:.0f} times as fast as fp32 for one prompt at a time"


def read() -> str:
    """Linux's description of the processors, "" where there is none."""
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
