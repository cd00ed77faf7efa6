"""What a program in the sandbox may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paddlenlp_codegen_task import checks

_LEAST_MEMORY = 64 << 20  # the interpreter itself, with room to say that there is no more
_MOST = 1 << 40  # bytes of anything


@dataclass(frozen=True)
class Limits:
    """Bounds of one program. It is one process of one thread: it cannot make others.

    Attributes:
        seconds: from its start to its verdict, by the clock.
        memory_bytes: of addresses that it may use, the interpreter's among them.
        file_bytes: that it may write, all files together; they are in memory.
        files: that it may make (bubblewrap cannot bound that).
    """

    seconds: float = 5.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 16 << 20
    files: int = 1024

    def __post_init__(self) -> None:
        seconds = self.seconds
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"seconds must be a number, not {checks.shown(seconds)}")
        if not (math.isfinite(seconds) and 0 < seconds <= 86400):
            raise ValueError(f"seconds must lie in (0, 86400], not {checks.shown(seconds)}")
        for name, least in (("memory_bytes", _LEAST_MEMORY), ("file_bytes", 4096), ("files", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, not {checks.shown(value)}")
            if not least <= value <= _MOST:
                shown = checks.shown(value)
                raise ValueError(f"{name} must lie in {least}..{_MOST}, not {shown}")
