"""Exports and runs every published size with ONNX Runtime on a CPU: time, file size and memory.

    python benchmarks/sizes.py --work build/sizes
    python benchmarks/sizes.py --work build/sizes --only 6B:int4 16B:int4

Weights are random and made when they are read, so that a checkpoint of 16B, 64 GB in float32, need
not be on disk; an export must be, and is removed after its run. Exporting and running take a new
process each. Results are written after each entry, into a file that may hold others' already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from compare import machine, read_bandwidth, weights_read
from make_checkpoint import SIZES

from paddlenlp_codegen_task.export import onnx_files
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import expected_shapes
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import Array, FusedWeights
from paddlenlp_codegen_task.runtime import onnx_inference
from paddlenlp_codegen_task.runtime.base import decode, prefill

HERE = Path(__file__).resolve().parent
ALL = ("fp32", "int8", "int8_weight_only", "int4", "int4_int8")
ENTRIES = {"350M": ALL, "2B": ALL, "6B": ("int8", "int4"), "16B": ("int4",)}
PROMPT_TOKENS, NEW_TOKENS = 16, 16
POOL = 2**22 - 3  # values that all weights are cut from; a prime, so that no two rows are equal


class RandomCheckpoint:
    """What FusedWeights asks of a Checkpoint, without files.

    A tensor is a pool of normal values, those of float16, repeated from a place that depends on
    the tensor's name.
    """

    def __init__(self, config: CodeGenConfig, seed: int = 0) -> None:
        values = np.random.default_rng(seed).standard_normal(POOL, np.float32) * np.float32(0.02)
        self._pool = values.astype(np.float16).astype(np.float32)
        self._shapes = expected_shapes(config)
        self._seed = seed

    def check(self, config: CodeGenConfig) -> None:
        assert expected_shapes(config) == self._shapes

    def identity(self) -> str:
        return f"random {self._seed}"

    def read(self, name: str) -> Array:
        values = np.empty(self._shapes[name], np.float32)
        flat, at = values.reshape(-1), -(zlib.crc32(name.encode()) % POOL)
        while at < flat.size:
            target = flat[max(at, 0) : at + POOL]
            target[:] = self._pool[max(-at, 0) :][: target.size]
            at += POOL
        if name.endswith(("ln_1.weight", "ln_f.weight")):
            values += 1
        return values


def config_of(size: str) -> CodeGenConfig:
    return CodeGenConfig.from_dict({"vocab_size": 51200, **SIZES[size]})


def model(size: str) -> FusedWeights:
    config = config_of(size)
    return FusedWeights(RandomCheckpoint(config), config)  # type: ignore[arg-type]


def prompt(config: CodeGenConfig) -> list[int]:
    return [i * 7919 % config.vocab_size for i in range(1, PROMPT_TOKENS + 1)]


def settle() -> None:
    """Wait until weights are in huge pages: moving gigabytes takes as long as many steps."""
    for thread in threading.enumerate():
        if thread.name == "huge-pages":
            thread.join()


def save_reference(size: str, work: Path) -> dict[str, float]:
    """Save what model/reference.py finds behind the prompt, [vocab_size]."""
    weights = model(size)
    start = time.perf_counter()
    np.save(work / f"{size}.npy", reference.forward(weights, prompt(weights.config))[-1])
    return {"seconds": time.perf_counter() - start}


def export(size: str, precision: str, work: Path) -> dict[str, float]:
    weights, folder = model(size), work / f"{size}-{precision}"
    start = time.perf_counter()
    onnx_inference.export(weights, folder, precision, None)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": sum(path.stat().st_size for path in folder.iterdir())}


def generate(size: str, precision: str, work: Path) -> dict[str, float]:
    """Load an export, compare it with the reference, then continue the prompt greedily."""
    config, threads = config_of(size), len(os.sched_getaffinity(0))
    start = time.perf_counter()
    folder = work / f"{size}-{precision}"
    runtime = onnx_inference.load(folder, config, None, threads, precision, False)
    load_seconds = time.perf_counter() - start

    logits, tokens = np.load(work / f"{size}.npy"), prompt(config)
    found = prefill(runtime, 0, [tokens[: PROMPT_TOKENS // 2]])
    for token in tokens[PROMPT_TOKENS // 2 :]:
        found = decode(runtime, [token])
    step_by_step = found.logits()[0].copy()
    settle()

    runtime.cache.reset()
    start = time.perf_counter()
    found = prefill(runtime, 0, [tokens])
    prefill_seconds = time.perf_counter() - start
    at_once = found.logits()[0].copy()
    start = time.perf_counter()
    for _ in range(NEW_TOKENS - 1):
        found = decode(runtime, [int(found.candidate_ids[0, 0])])
    decode_seconds = time.perf_counter() - start
    weights = weights_read(folder / onnx_files.GRAPH_FILE)
    error = max(np.abs(one - logits).max() for one in (step_by_step, at_once)) / logits.std()
    return {
        "load_seconds": load_seconds,
        "prefill_seconds": prefill_seconds,
        "tokens_per_second": (NEW_TOKENS - 1) / decode_seconds,
        "weights_a_second": weights * (NEW_TOKENS - 1) / decode_seconds,  # bytes
        "error_in_deviations": float(error),
    }


CHILDREN = {"reference": save_reference, "export": export, "generate": generate}


def child(*arguments: object) -> dict[str, float]:
    """Call one of CHILDREN in a new process; add that process's memory to what it returns.

    `peak_bytes` counts pages of mapped files too, which the kernel takes back when memory is
    short; `peak_bytes_unmapped`, which is sampled, does not.
    """
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    unmapped = 0
    while process.poll() is None:
        unmapped = max(unmapped, memory(process.pid, "RssAnon"))
        time.sleep(0.02)
    output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {**json.loads(output), "peak_bytes_unmapped": unmapped}


def memory(process: int | str, field: str) -> int:
    """A field of /proc/<process>/status in bytes; 0 once the process has ended."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def measure(size: str, precision: str, work: Path) -> dict[str, Any]:
    if not (work / f"{size}.npy").exists():
        child("reference", size, work)
    folder = work / f"{size}-{precision}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        found = {kind: child(kind, size, precision, work) for kind in ("export", "generate")}
        return {**found, "bandwidth": read_bandwidth(len(os.sched_getaffinity(0)))}
    finally:
        shutil.rmtree(folder)


def table(entries: dict[str, Any]) -> str:
    """The results in Markdown; sizes in units of 10^9 bytes."""
    lines = [
        "| Model | Precision | Export, s | Peak, GB | File, GB | Load, s | Prefill, s | Tokens/s "
        "| Of the bandwidth | Peak, GB | without mapped files, GB | Error, deviations |",
        "|---|---|" + "--:|" * 10,
    ]
    order = [f"{size}:{one}" for size in SIZES for one in ALL]
    for name in (name for name in order if name in entries):
        entry, (size, precision) = entries[name], name.split(":")
        made, ran = entry["export"], entry["generate"]
        cells = [
            size,
            precision,
            f"{made['seconds']:.0f}",
            *(f"{made[name] / 1e9:.2f}" for name in ("peak_bytes", "bytes")),
            f"{ran['load_seconds']:.1f}",
            f"{ran['prefill_seconds']:.2f}",
            f"{ran['tokens_per_second']:.2f}",
            f"{ran['weights_a_second'] / entry['bandwidth']:.0%}",
            *(f"{ran[name] / 1e9:.2f}" for name in ("peak_bytes", "peak_bytes_unmapped")),
            f"{ran['error_in_deviations']:.2g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    of_machine = machine(len(os.sched_getaffinity(0)))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/sizes"), help="for the exports")
    default = HERE / "results" / f"sizes-{of_machine['date']}.json"
    parser.add_argument("--out", type=Path, default=default, help="the JSON file")
    names = [f"{size}:{one}" for size, them in ENTRIES.items() for one in them]
    others = [f"tiny:{one}" for one in ALL]  # to try this script with
    parser.add_argument("--only", nargs="*", choices=[*names, *others], default=names)
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"entries": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    for path in work.glob("*.npy"):
        path.unlink()
    for name in options.only:
        size, precision = name.split(":")
        results["entries"][name] = measure(size, precision, work)
        results["machine"] = of_machine
        draft = options.out.with_suffix(".new")
        draft.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        draft.replace(options.out)
        print(name, json.dumps(results["entries"][name]), flush=True)
    print(table(results["entries"]))


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in CHILDREN:
        kind, *which, work = sys.argv[1:]
        answer = CHILDREN[kind](*which, Path(work))
        print(json.dumps({**answer, "peak_bytes": memory("self", "VmHWM")}))
    else:
        main()
