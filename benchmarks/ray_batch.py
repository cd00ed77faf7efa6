"""What a batch on a Ray cluster survives, what it costs, and how it scales; on one machine.

    python benchmarks/ray_batch.py
    python benchmarks/ray_batch.py --only overhead --rounds 5
    python benchmarks/ray_batch.py --only scaling --workers 16

Nodes are processes of this machine, by ray.cluster_utils. Parts, of which those that the results
have already are not run again; nor is a number of workers:

- kills: rows of the built-in model while a worker's process is killed again and again, nodes die
  with all that runs there and new ones come, and the command is killed and given again. The head
  has no CPUs of its own, so all workers are on the other nodes. What is in the files at the end is
  compared with that of a run without Ray.
- overhead: the built-in model on one thread, by the command without Ray and with one worker, in
  alternation. `steady` is from a tenth to nine tenths of the bytes of the results, `seconds` all of
  the command.
- scaling: a fake runtime whose steps take a fixed time, rows of 1 to 16 tokens, so many rows for
  each worker; rows a second from when all workers are there to the last row; and the memory of the
  driver.

Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import machine

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))

from ray_cluster import FakeLoading, lose_node, nodes, workers_of  # noqa: E402

from paddlenlp_codegen_task.batch.results import Files, paths  # noqa: E402
from paddlenlp_codegen_task.batch.source import Source  # noqa: E402
from paddlenlp_codegen_task.distributed.batch import RayBatch  # noqa: E402
from paddlenlp_codegen_task.distributed.cluster import Pool  # noqa: E402

BATCH = [sys.executable, "-m", "paddlenlp_codegen_task", "batch"]
OPTIONS = ["--model=builtin", "--engine=onnxruntime", "--num-threads=1", "--batch-size=32"]
OPTIONS += ["--seed=1", "--no-truncation", "--max-length=16", "--no-progress"]
LONGEST = 16  # tokens of a row of `scaling`
# A part's figures: at most, or at least, so much.
MOST_OVERHEAD, LEAST_OF_LINEAR, MOST_GROWTH = 1.10, 0.9, 1.10


def write_rows(path: Path, count: int) -> None:
    """Prompts of a function each, none like another."""
    kinds = ("add", "read", "find", "parse", "count", "merge", "sort", "write")
    with path.open("w", encoding="utf-8") as file:
        for n in range(count):
            prompt = f"def {kinds[n % len(kinds)]}_{n}(first, second):\n"
            file.write(json.dumps({"id": n, "prompt": prompt}) + "\n")


def contents(out: Path) -> list[str]:
    """The lines of results, in an order of their own."""
    return sorted(out.read_text(encoding="utf-8").splitlines())


def has_lines(out: Path, count: int) -> bool:
    return out.exists() and out.read_bytes().count(b"\n") >= count


# Killing.


def killed(
    kind: str, command: list[str], out: Path, thresholds: list[int], cluster: Any
) -> tuple[int, float]:
    """Run a command to its end, killing something each time so many rows have been written.

    Returns:
        How often that was, and the seconds.
    """
    begun, kills = time.perf_counter(), 0
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for rows in thresholds:
            while not has_lines(out, rows) and child.poll() is None:
                time.sleep(0.02)
            if child.poll() is not None:
                break
            if kind == "driver":
                child.kill()
                child.wait()
                child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            elif kind == "node":
                lose_node(cluster)
            else:
                pids = [pid for node in cluster.worker_nodes for pid in workers_of(node)]
                if not pids:
                    continue
                os.kill(pids[0], signal.SIGKILL)
            kills += 1
        _, said = child.communicate()
    finally:
        child.kill()
    if child.returncode:
        raise SystemExit(f"{kind}: {said}")
    return kills, time.perf_counter() - begun


def kills(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    source = work / "in.jsonl"
    write_rows(source, options.rows)
    subprocess.run([*BATCH, str(source), str(work / "alone.jsonl"), *OPTIONS], check=True)
    expected = contents(work / "alone.jsonl")
    found: dict[str, Any] = {"rows": options.rows}
    step = options.rows / (options.kills + 1)
    thresholds = [int(step * (n + 1)) for n in range(options.kills)]
    with nodes(0, 1, 1, connect=False) as cluster:
        for kind in ("worker", "node", "driver"):
            out = work / f"{kind}.jsonl"
            command = [*BATCH, str(source), str(out), *OPTIONS, f"--ray={cluster.address}"]
            count, seconds = killed(kind, command, out, thresholds, cluster)
            lines = contents(out)
            found[kind] = {
                "kills": count,
                "seconds": seconds,
                "lines": len(lines),
                "lines_as_without_ray": lines == expected,
                "errors": paths(out)[1].stat().st_size,
            }
            print(kind, found[kind], flush=True)
    return found


# What it costs.


def watched(command: list[str], out: Path) -> dict[str, float]:
    """How long a command takes, and how long from a tenth of its results to nine tenths."""
    out.unlink(missing_ok=True)
    begun = time.perf_counter()
    sizes: list[tuple[float, int]] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        while child.poll() is None:
            time.sleep(0.05)
            sizes.append((time.perf_counter() - begun, out.stat().st_size if out.exists() else 0))
        if child.returncode:
            raise SystemExit(child.stderr.read())
    seconds = time.perf_counter() - begun
    whole = out.stat().st_size
    sizes.append((seconds, whole))
    start = next(at for at, size in sizes if size >= whole / 10)
    end = next(at for at, size in sizes if size >= whole * 9 / 10)
    return {"seconds": seconds, "steady": end - start}


def overhead(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    source = work / "in.jsonl"
    write_rows(source, options.overhead_rows)
    rounds = []
    with nodes(1, connect=False) as cluster:
        for number in range(options.rounds):
            found = {}
            sides = {"alone": [], "ray": [f"--ray={cluster.address}", "--ray-workers=1"]}
            for name in sorted(sides, reverse=bool(number % 2)):
                out = work / f"{name}.jsonl"
                command = [*BATCH, str(source), str(out), *OPTIONS, *sides[name], "--overwrite"]
                found[name] = watched(command, out)
            if contents(work / "ray.jsonl") != contents(work / "alone.jsonl"):
                raise SystemExit("overhead: other texts than without Ray")
            rounds.append(found)
            print("overhead", found, flush=True)
    ratios = {
        what: [one["ray"][what] / one["alone"][what] for one in rounds]
        for what in ("steady", "seconds")
    }
    return {
        "rows": options.overhead_rows,
        "rounds": rounds,
        **{f"{what}_ratio": statistics.median(values) for what, values in ratios.items()},
    }


# How it scales.


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def scaled(options: argparse.Namespace, work: Path, workers: int) -> dict[str, Any]:
    """Rows a second of so many workers, and the driver's memory meanwhile."""
    lengths = random.Random(workers)
    rows = options.rows_a_worker * workers
    source = work / f"scaling-{workers}.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for n in range(rows):
            row = {"id": n, "prompt": f"PROMPT{'ABCDEFGH'[n % 8]}"}
            own = {"max_length": lengths.randint(1, LONGEST)}
            file.write(json.dumps({**row, "options": own}) + "\n")
    folder = Path(tempfile.mkdtemp(dir=work))
    load = FakeLoading(folder, seconds=options.step, batch_size=32)
    # As many on a node as a machine has cores, so that there are several nodes.
    share = [min(16, workers - first) for first in range(0, workers, 16)]
    with nodes(0, *share):
        results = Files(work / f"scaling-{workers}.out.jsonl", {}, overwrite=True)
        pool = Pool(workers, workers, 1, 0, 16)
        generation = {"ignore_eos": True, "decode_strategy": "greedy_search"}
        batch = RayBatch(load, pool, 32, Source.of_path(source), results, generation)
        samples: list[tuple[float, int, int, int]] = []
        over = threading.Event()

        def sample() -> None:
            while not over.wait(0.25):
                there = len(load.workers())
                samples.append((time.perf_counter(), results.completed, resident(), there))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            begun = time.perf_counter()
            summary = batch.run(False)
            ended = time.perf_counter()
        finally:
            over.set()
            thread.join()
    if (summary.completed, summary.refused) != (rows, 0):
        raise SystemExit(f"scaling: {summary}")
    all_there = next((one for one in samples if one[3] >= workers), samples[0])
    samples.append((ended, rows, resident(), workers))
    memory = [
        next(size for _, done, size, _ in samples if done >= rows * part)
        for part in (0.1, 0.5, 0.9)
    ]
    return {
        "workers": workers,
        "step_seconds": options.step,
        "most_tokens": LONGEST,
        "rows": rows,
        "seconds": ended - begun,
        "seconds_until_all_are_there": all_there[0] - begun,
        "rows_a_second": (rows - all_there[1]) / (ended - all_there[0]),
        "driver_bytes_at_a_tenth_half_and_nine_tenths": memory,
    }


def with_shares(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs, each with its rows a second over those of the smallest one, had it as many workers."""
    runs = sorted(runs, key=lambda run: run["workers"])
    first = runs[0]["rows_a_second"] / runs[0]["workers"]
    return [{**run, "of_linear": run["rows_a_second"] / run["workers"] / first} for run in runs]


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "kills": kills,
    "overhead": overhead,
}


def missed(results: dict[str, Any]) -> list[str]:
    """What falls short of what is asked for."""
    found = []
    for kind in ("worker", "node", "driver"):
        one = results.get("kills", {}).get(kind)
        if one and (not one["lines_as_without_ray"] or one["errors"]):
            found.append(f"kills.{kind}: other lines than without Ray")
    ratio = results.get("overhead", {}).get("steady_ratio", 0)
    if ratio > MOST_OVERHEAD:
        found.append(f"overhead: {ratio:.3f}, and {MOST_OVERHEAD} is the most")
    for run in results.get("scaling", []):
        if run["of_linear"] < LEAST_OF_LINEAR:
            found.append(f"scaling.{run['workers']}: {run['of_linear']:.3f} of linear")
        start, _, end = run["driver_bytes_at_a_tenth_half_and_nine_tenths"]
        if end > MOST_GROWTH * start:
            found.append(f"scaling.{run['workers']}: the driver grows, {start:,} to {end:,} bytes")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder for results")
    parser.add_argument(
        "--only", nargs="*", choices=[*PARTS, "scaling"], default=[*PARTS, "scaling"]
    )
    parser.add_argument("--again", action="store_true", help="run parts that there are, too")
    parser.add_argument("--rows", type=int, default=5000, help="of `kills`")
    parser.add_argument("--kills", type=int, default=10, help="of each kind, in one run")
    parser.add_argument("--overhead-rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="of `overhead`")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--rows-a-worker", type=int, default=1563, help="of `scaling`")
    parser.add_argument("--step", type=float, default=1.6, help="seconds of a step of `scaling`")
    options = parser.parse_args()
    about = machine(len(os.sched_getaffinity(0)))
    path = options.out / f"ray_batch-{about['date']}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def keep(name: str, found: Any) -> None:
        results[name] = found
        results["machine"] = about
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="ray-batch-") as work:
        for name in options.only:
            if name in PARTS and (options.again or name not in results):
                keep(name, PARTS[name](options, Path(work)))
        for workers in options.workers if "scaling" in options.only else ():
            others = [run for run in results.get("scaling", ()) if run["workers"] != workers]
            if options.again or len(others) == len(results.get("scaling", ())):
                one = scaled(options, Path(work), workers)
                print("scaling", one, flush=True)
                keep("scaling", with_shares([*others, one]))
    for line in missed(results):
        print("missed:", line)


if __name__ == "__main__":
    main()
