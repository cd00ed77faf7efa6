"""What a system of keystroke.py runs in: a process that is typed at, and measures how it answers.

Only the standard library is imported here, as each system has an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import worker


class Model(Protocol):
    """A loaded system."""

    def complete(self, prompt: str, new_tokens: int, enough: Callable[[], bool]) -> int:
        """Continue a prompt by `new_tokens` tokens, greedily; no token ends it before.

        Calls `enough` each time that there is more text, and gives the completion up once that is
        true. Returns how many tokens the prompt has.
        """


def press(
    model: Model, prompt: str, whole: bool, new_tokens: int, between: float
) -> dict[str, Any]:
    """Ask for the completion that a keystroke wants, and tell what the typist sees of it.

    Args:
        model: completes.
        prompt: what stands before the cursor.
        whole: whether the completion is waited for; else the next key comes once there is some
            text of it, and not before `between` seconds have gone by.
        new_tokens: of a whole completion.
        between: seconds.
    """
    start = time.perf_counter()
    first = 0.0

    def enough() -> bool:
        nonlocal first
        now = time.perf_counter() - start
        first = first or now
        return not whole and now >= between

    tokens = model.complete(prompt, new_tokens, enough)
    seconds = time.perf_counter() - start
    if not whole and seconds < between:  # it was done, and the next key has not come
        time.sleep(between - seconds)
    return {"first_seconds": first, "seconds": seconds, "prompt_tokens": tokens}


def main(load: Callable[[Path, str, int], Model]) -> None:
    """Command line: `serve FOLDER PRECISION THREADS`, then a line of JSON for each run of keys.

    Args:
        load: (folder, precision, threads): load what the peer's `prepare` wrote.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("precision")
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    answers = worker.take_stdout()
    model = load(options.folder, options.precision, options.threads)
    for request in worker.requests():
        new_tokens, between = request["new_tokens"], request["between"]
        found = [press(model, *key, new_tokens, between) for key in request["keys"]]
        print(json.dumps({"keys": found}), file=answers, flush=True)
