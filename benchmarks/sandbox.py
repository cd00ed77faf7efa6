"""What the sandbox costs a program, beyond the start of the interpreter that runs it.

    python benchmarks/sandbox.py

One right program is judged over and over, in alternation with the bare interpreter's start: by its
tests, which are a process of their own in a second sandbox, and by what it prints, in one. One at a
time, and as many at once as there are processors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from compare import machine

from paddlenlp_codegen_task.evaluation.sandbox import Sandbox, SandboxUnavailable
from paddlenlp_codegen_task.evaluation.sandbox.jail import FLAGS, WAYS
from paddlenlp_codegen_task.evaluation.verdict import check_function, last_printed

MOST_MILLISECONDS = 60  # beyond the interpreter's start
PROMPT = 'def add(a, b):\n    """The sum."""\n'
PROGRAM = PROMPT + "    return a + b\n"
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n"


def interpreter() -> None:
    """The bare start: without site, as in the sandbox."""
    python = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([python, *FLAGS, "-c", "pass"], env={}, check=True)


def unsafe_interpreter() -> None:
    """A program that is merely run, with what an interpreter imports by default."""
    subprocess.run([sys.executable, "-I", "-c", PROGRAM + TEST + "check(add)\n"], check=True)


def checked(sandbox: Sandbox) -> None:
    verdict = check_function(sandbox, PROGRAM, "add", TEST, PROMPT)
    if not verdict.passed:
        raise SystemExit(f"the right program: {verdict.result}")


def printed(sandbox: Sandbox) -> None:
    found = last_printed(sandbox, PROGRAM + "print(add(1, 2))\n")
    if found.value != 3:
        raise SystemExit(f"the right program: {found.result}")


def seconds(act: Callable[[], None]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def throughput(act: Callable[[], None], programs: int, threads: int) -> float:
    """Programs a second, so many at once."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda _: act(), range(programs)):
            pass
    return programs / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    acts: dict[str, Callable[[], None]] = {
        "interpreter": interpreter,
        "interpreter_with_site": unsafe_interpreter,
    }
    results: dict[str, Any] = {}
    for way in WAYS:
        try:
            sandbox = Sandbox(way=way)
        except SandboxUnavailable as error:
            results[way] = str(error)
            continue
        acts[f"{way}_checked"] = lambda sandbox=sandbox: checked(sandbox)
        acts[f"{way}_printed"] = lambda sandbox=sandbox: printed(sandbox)
    times: dict[str, list[float]] = {name: [] for name in acts}
    for act in acts.values():
        act()  # fills the file cache
    for _ in range(options.rounds):
        for name, act in acts.items():
            times[name].append(seconds(act))
    threads = len(os.sched_getaffinity(0))
    start = statistics.median(times["interpreter"])
    for name, found in times.items():
        median = statistics.median(found)
        results[name] = {
            "milliseconds": 1000 * median,
            "milliseconds_range": [1000 * min(found), 1000 * max(found)],
            "beyond_the_interpreter": 1000 * (median - start),
            "programs_per_second": throughput(acts[name], options.rounds, threads),
        }
        if results[name]["beyond_the_interpreter"] > MOST_MILLISECONDS:
            print(f"{name}: more than {MOST_MILLISECONDS} ms beyond the interpreter's start")
    results = {"machine": machine(threads), **results}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"sandbox-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
