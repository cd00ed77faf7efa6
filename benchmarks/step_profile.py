"""What a decode step of one sequence spends its time on, node by node.

    python benchmarks/step_profile.py build/codegen-350M --precisions int4 fp32
    python benchmarks/step_profile.py build/codegen-350M --precisions int4+kv_int8 --tokens 1000

A step is timed by itself, its nodes by ONNX Runtime's profiler, with one thread and with all; a
node that does nothing (Reshape) shows what taking a time costs, which is subtracted from all. Of
the products of weights it says how many bytes a second they read, beside what plain reading
reaches with as many threads: where one thread is far below, the kernel calculates rather than waits
for memory. Random weights do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast
from unittest import mock

import onnxruntime
from compare import machine, read_bandwidth, weights_read
from sizes import settle

from paddlenlp_codegen_task.export.onnx_files import GRAPH_FILE
from paddlenlp_codegen_task.load_options import LoadOptions
from paddlenlp_codegen_task.loading import load_model
from paddlenlp_codegen_task.runtime.base import decode, prefill

HERE = Path(__file__).resolve().parent
PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "MatMulIntegerToFloat")
NOTHING = "Reshape"


def runs(path: Path, count: int) -> list[dict[str, Any]]:
    """The events of the last `count` runs of a profile, in order."""
    events = [one for one in json.loads(path.read_text(encoding="utf-8")) if "dur" in one]
    begun = sorted(one["ts"] for one in events if one["name"] == "model_run")[-count]
    return [one for one in events if one["ts"] >= begun]


def spent(path: Path, count: int) -> tuple[Counter[str], float]:
    """Milliseconds a run by kind of node, and what taking a node's time costs."""
    nodes = [one for one in runs(path, count) if one["name"].endswith("_kernel_time")]
    times: dict[str, list[float]] = {}
    for one in nodes:
        times.setdefault(one["args"]["op_name"], []).append(one["dur"] / 1e3)
    taking = statistics.median(times[NOTHING])
    found = {kind: sum(max(one - taking, 0.0) for one in all_) for kind, all_ in times.items()}
    return Counter({kind: total / count for kind, total in found.items()}), taking


def measure(
    folder: Path, home: Path, precision: str, threads: int, tokens: int, steps: int
) -> dict[str, Any]:
    """Times of steps behind `tokens` tokens, without the profiler and with it."""
    weights, _, kept = precision.partition("+kv_")
    options = LoadOptions(
        engine="onnxruntime",
        precision=cast(Any, weights),
        kv_precision=cast(Any, kept or "auto"),
        device="cpu",
        num_threads=threads,
        home_path=home,
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        plain = onnxruntime.SessionOptions

        def profiled() -> Any:
            made = plain()
            made.enable_profiling = True
            made.profile_file_prefix = str(Path(work) / "profile")
            return made

        for way in (plain, profiled):
            with mock.patch.object(onnxruntime, "SessionOptions", way):
                runtime = load_model(folder, options).runtime
            size = runtime.config.vocab_size
            prefill(runtime, 0, [[n * 7919 % size for n in range(1, tokens + 1)]])
            settle()
            times = []
            for step in range(steps + 3):
                runtime.cache.truncate(0, tokens)
                start = time.perf_counter()
                decode(runtime, [step])
                times.append(time.perf_counter() - start)
            if way is plain:
                found["step_ms"] = statistics.median(times[3:]) * 1e3
            runtime.close()  # which writes the profile
        [path] = Path(work).glob("profile*.json")
        by_kind, found["taking_a_time_ms"] = spent(path, steps)
    products = sum(by_kind[kind] for kind in PRODUCTS)
    [graph] = home.rglob(GRAPH_FILE)
    found |= {
        "ms": dict(by_kind.most_common()),
        "products_ms": products,
        "products_read": weights_read(graph) / products * 1e3,  # bytes a second
        "bandwidth": read_bandwidth(threads),
    }
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| precision, threads | a step (ms) | products | attention | other nodes "
        "| products read (GB/s) | plain reading (GB/s) |",
        "| --- |" + " ---: |" * 6,
    ]
    for name, one in results.items():
        attention = one["ms"].get("GroupQueryAttention", 0.0)
        rest = sum(one["ms"].values()) - one["products_ms"] - attention
        times = (one["step_ms"], one["products_ms"], attention, rest)
        rates = (one["products_read"] / 1e9, one["bandwidth"] / 1e9)
        cells = [f"{value:.1f}" for value in (*times, *rates)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    names = ("fp32", "int8", "int8_weight_only", "int4")
    parser.add_argument(
        "--precisions",
        nargs="*",
        default=names,
        choices=[*names, *(f"{name}+kv_int8" for name in names)],
        help="+kv_int8: keys and values in 8 bits",
    )
    parser.add_argument("--tokens", type=int, default=32, help="behind which steps are taken")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("build/step_profile"), help="for exports")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON")
    options = parser.parse_args()
    of_machine = machine(len(os.sched_getaffinity(0)))
    results: dict[str, dict[str, Any]] = {}
    for precision in options.precisions:
        for threads in sorted({1, of_machine["threads"]}):
            home = options.work.resolve() / precision
            results[f"{precision}, {threads}"] = measure(
                options.checkpoint, home, precision, threads, options.tokens, options.steps
            )
    options.out.mkdir(parents=True, exist_ok=True)
    kind = of_machine["kind"].lower().replace(" ", "-")
    path = options.out / f"step_profile-{kind}-{of_machine['date']}.json"
    about = {"machine": of_machine, "tokens": options.tokens, "results": results}
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
