"""What keys and values in 8 bits cost and save: time and memory, beside floats, in one run.

    python benchmarks/make_checkpoint.py build/codegen-350M
    python benchmarks/kv_precision.py build/codegen-350M --precision int8

Random weights do: times do not depend on them. Both ways are measured in turn, round by round, and
the median of each is taken. Decoding is a step of a token a row with so many tokens behind each;
prefill is a prompt from nothing, in chunks as always. What rounding loses is in quality.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from compare import machine

from paddlenlp_codegen_task.load_options import LoadOptions
from paddlenlp_codegen_task.loading import load_model
from paddlenlp_codegen_task.runtime.base import Runtime, decode, prefill
from paddlenlp_codegen_task.runtime.engines import KV_PRECISIONS

STEPS = 8  # of decoding at each length, after one that is not measured
BATCHES, LENGTHS = (1, 8), (128, 512, 1000, 1900)


def token_ids(runtime: Runtime, count: int) -> list[int]:
    return [(7919 * n + 13) % runtime.config.vocab_size for n in range(count)]


def seconds_of(runtime: Runtime, length: int) -> dict[str, float]:
    """Of prefilling `length` tokens, and of a step behind them in each batch."""
    runtime.cache.reset()
    start = time.perf_counter()
    prefill(runtime, 0, [token_ids(runtime, length)])
    found = {f"prefill_{length}": time.perf_counter() - start}
    for batch in BATCHES:
        runtime.cache.truncate(0, length)
        for slot in range(1, batch):
            runtime.cache.copy(0, slot)
        decode(runtime, [1] * batch)
        start = time.perf_counter()
        for step in range(STEPS):
            decode(runtime, [step] * batch)
        found[f"decode_{batch}_{length}"] = (time.perf_counter() - start) / STEPS
    return found


def cache_bytes(runtime: Runtime, length: int) -> int:
    """What the buffers of one sequence take."""
    return runtime.cache.bytes(1, length) * runtime.cache.count // (runtime.cache.count + 1)


def measure(runtimes: dict[str, Runtime], rounds: int, longest: int) -> dict[str, Any]:
    """Median seconds of everything, and bytes, for each way."""
    lengths = [one for one in LENGTHS if one + STEPS < longest]
    times: dict[str, dict[str, list[float]]] = {way: {} for way in runtimes}
    for _ in range(rounds + 1):  # the first is not counted
        for length in lengths:
            for way, runtime in runtimes.items():
                for name, seconds in seconds_of(runtime, length).items():
                    times[way].setdefault(name, []).append(seconds)
    return {
        way: {
            "cache_bytes": {str(one): cache_bytes(runtimes[way], one) for one in lengths},
            "seconds": {name: statistics.median(all_[1:]) for name, all_ in of.items()},
        }
        for way, of in times.items()
    }


def table(found: dict[str, Any]) -> str:
    lines = ["| What | Floats, ms | 8 bits, ms | Floats over 8 bits |", "| --- | --: | --: | --: |"]
    floats, few = (found[way]["seconds"] for way in KV_PRECISIONS)
    for name, seconds in floats.items():
        kind, *numbers = name.split("_")
        what = f"prefill of {numbers[0]}"
        if kind == "decode":
            what = f"step of {numbers[0]} behind {numbers[1]}"
        ratio = seconds / few[name]
        lines.append(f"| {what} | {1e3 * seconds:.1f} | {1e3 * few[name]:.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--longest", type=int, help="tokens; by default the context")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--home", type=Path, default=Path("build/kv_precision"), help="for exports")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    runtimes = {}
    for way in KV_PRECISIONS:
        wanted = LoadOptions(
            engine="onnxruntime",
            precision=options.precision,
            kv_precision=way,
            device="cpu",
            num_threads=options.threads,
            home_path=options.home,
        )
        runtimes[way] = load_model(options.checkpoint.resolve(), wanted).runtime
    longest = options.longest or runtimes["auto"].config.n_positions
    results = {
        "machine": machine(options.threads),
        "checkpoint": options.checkpoint.name,
        "precision": options.precision,
        "rounds": options.rounds,
        **measure(runtimes, options.rounds, longest),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"kv_precision-{options.checkpoint.name}-{options.precision}"
    path = options.out / f"{name}-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
