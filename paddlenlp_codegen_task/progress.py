"""A progress bar over the prompts of a call."""

from __future__ import annotations

import time
from typing import Any


class Bar:
    """A progress bar over prompts, or none."""

    def __init__(self, total: int | None, progress: bool | None, done: int = 0) -> None:
        """Show a bar, with the time that is left.

        Args:
            total: how many prompts there are; None where nobody knows.
            progress: whether to show it; None for where standard error is a terminal.
            done: how many were done before.
        """
        self._bar: Any = None
        self._start, self._tokens = time.perf_counter(), 0
        if progress is not False:
            from tqdm import tqdm  # a bar is rare, and its import is not free

            # None: unless it is a terminal
            disable = None if progress is None else False
            self._bar = tqdm(total=total, initial=done, unit="prompt", disable=disable)

    def update(self, tokens: int) -> None:
        """One more prompt is done, with so many tokens."""
        if self._bar is not None:
            self._tokens += tokens
            rate = self._tokens / (time.perf_counter() - self._start)
            self._bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
            self._bar.update()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
