"""How long a new process takes to its first text: CodeGenerator, and Taskflow over it.

    python benchmarks/start.py

Both complete one prompt with the built-in model, whose export is there, by the engine that each
takes for itself. They run in alternation, in the file cache that the run before left. Taskflow has
to import PaddleNLP, and with it Paddle and a dozen other packages.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compare import machine

PROMPT = "def hello_world():"
WAYS = {
    "CodeGenerator": f"""
from paddlenlp_codegen_task import CodeGenerator
with CodeGenerator.from_pretrained("builtin") as generator:
    print(generator.generate({PROMPT!r}, max_length=16, seed=0)[0][0].text)
""",
    "Taskflow": f"""
import paddlenlp_codegen_task
from paddlenlp import Taskflow
print(Taskflow("code_generation", model="builtin")({PROMPT!r}, max_length=16, seed=0)[0])
""",
}


def start(code: str, home: str) -> dict[str, Any]:
    """Run the code in a new process; return its seconds, those of processors, and its text."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PPNLP_HOME": home},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor_seconds": used, "text": ran.stdout}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as home:
        for code in WAYS.values():
            start(code, home)  # exports, and fills the file cache
        for _ in range(options.rounds):
            for name, code in WAYS.items():
                runs[name].append(start(code, home))
    results: dict[str, Any] = {"machine": machine(len(os.sched_getaffinity(0)))}
    for name, found in runs.items():
        seconds = [one["seconds"] for one in found]
        results[name] = {
            "seconds": statistics.median(seconds),
            "seconds_range": [min(seconds), max(seconds)],
            "processor_seconds": statistics.median(one["processor_seconds"] for one in found),
            "text": found[0]["text"],
        }
    ratios = [
        slow["seconds"] / fast["seconds"]
        for fast, slow in zip(runs["CodeGenerator"], runs["Taskflow"], strict=True)
    ]
    results["times_faster"] = statistics.median(ratios)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"start-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
