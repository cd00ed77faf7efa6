"""What the engine costs and gives: streams, mixed loads, options of each row, memory.

    python benchmarks/engine.py builtin
    python benchmarks/engine.py build/codegen-350M --precision int8 --base ../before

With `--base`, the root of another checkout, each task is run by that one too, in a process of its
own, in alternation; the ratios are ours over the base's, pair by pair. Only one process works at a
time. Tasks: one prompt by `generate` and as a stream, at batch 1; 64 prompts in one call, and as 64
streams of 64 threads; 32 rows of one call, and of 32 calls with options of their own; a mixed load
beside a stream whose longest gap is noted. Without a base, also: the host's share of a step, and
the memory of many requests under a small `kv_cache_bytes`. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROMPT = "def read_lines(path, encoding):\n"
SHORT: dict[str, Any] = {"truncation": None, "ignore_eos": True, "prompt_lookup": False, "seed": 0}
TASKS = ("generate", "stream", "call_64", "streams_64", "one_call_32", "calls_32", "mixed")


def source_text() -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.py")))


class Work:
    """The tasks, over one generator; each returns tokens and seconds, and what else it saw."""

    def __init__(self, generator: Any, size: float) -> None:
        self.generator = generator
        self.size = size  # share of the full tasks
        ids = generator.tokenizer.encode(source_text())
        self.pieces = [generator.tokenizer.decode(ids[100 * n : 100 * n + 1500]) for n in range(64)]

    def _tokens(self, number: int, count: int) -> str:
        """A prompt of about so many tokens."""
        ids = self.generator.tokenizer.encode(self.pieces[number % 64])
        return str(self.generator.tokenizer.decode(ids[:count]))

    def generate(self) -> dict[str, Any]:
        length = max(8, int(256 * self.size))
        start = time.perf_counter()
        [[one]] = self.generator.generate(PROMPT, max_length=length, **SHORT)
        return {"tokens": len(one.token_ids), "seconds": time.perf_counter() - start}

    def stream(self) -> dict[str, Any]:
        length = max(8, int(256 * self.size))
        start = time.perf_counter()
        pieces = sum(1 for _ in self.generator.stream(PROMPT, max_length=length, **SHORT))
        return {"tokens": length, "seconds": time.perf_counter() - start, "pieces": pieces}

    def _prompts(self) -> list[str]:
        return [f"# number {n}\n{PROMPT}" for n in range(64)]

    def call_64(self) -> dict[str, Any]:
        length = max(8, int(64 * self.size))
        start = time.perf_counter()
        self.generator.generate(self._prompts(), max_length=length, batch_size=64, **SHORT)
        return {"tokens": 64 * length, "seconds": time.perf_counter() - start}

    def streams_64(self) -> dict[str, Any]:
        length = max(8, int(64 * self.size))

        def run(prompt: str) -> None:
            for _ in self.generator.stream(prompt, max_length=length, **SHORT):
                pass

        threads = [threading.Thread(target=run, args=(one,)) for one in self._prompts()]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"tokens": 64 * length, "seconds": time.perf_counter() - start}

    def one_call_32(self) -> dict[str, Any]:
        length = max(8, int(64 * self.size))
        prompts = self._prompts()[:32]
        start = time.perf_counter()
        self.generator.generate(prompts, max_length=length, batch_size=32, **SHORT)
        return {"tokens": 32 * length, "seconds": time.perf_counter() - start}

    def calls_32(self) -> dict[str, Any]:
        length = max(8, int(64 * self.size))
        prompts = self._prompts()[:32]

        def run(number: int) -> None:
            own = {"temperature": 0.5 + number / 64, "top_k": 3 + number, "seed": number}
            self.generator.generate(prompts[number], max_length=length, **{**SHORT, **own})

        threads = [threading.Thread(target=run, args=(n,)) for n in range(32)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"tokens": 32 * length, "seconds": time.perf_counter() - start}

    def mixed(self) -> dict[str, Any]:
        """Prompts of 16 to about 800 tokens, 1 to 256 new ones, beside a stream."""
        rng = random.Random(0)
        longest = min(1500, self.generator.config.n_positions - 260)
        prompts = [
            self._tokens(n, int(16 * (longest / 16) ** rng.random()))
            for n in range(max(4, int(32 * self.size)))
        ]
        lengths = [max(1, int(self.size * 256 ** rng.random())) for _ in prompts]
        gaps: list[float] = []
        stop = threading.Event()

        def watch() -> None:
            while not (stop.is_set() and gaps):  # a small load ends before the first one
                last = None
                for _ in self.generator.stream(PROMPT, max_length=128, **SHORT):
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now
                    if stop.is_set() and gaps:
                        break

        def run(numbers: list[int]) -> None:
            for n in numbers:
                self.generator.generate(prompts[n], max_length=lengths[n], **SHORT)

        watcher = threading.Thread(target=watch)
        start = time.perf_counter()
        watcher.start()
        workers = [
            threading.Thread(target=run, args=(list(range(k, len(prompts), 4)),)) for k in range(4)
        ]
        for thread in workers:
            thread.start()
        for thread in workers:
            thread.join()
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
        tokens = sum(lengths) + len(gaps)
        prompt_tokens = sum(len(self.generator.tokenizer.encode(one)) for one in prompts)
        return {
            "tokens": tokens + prompt_tokens,
            "seconds": seconds,
            "longest_gap": max(gaps),
            "median_gap": statistics.median(gaps),
        }

    def chunk(self) -> dict[str, Any]:
        """Seconds of one whole chunk of prefill: what a gap is measured by."""
        text = self._tokens(0, 256)
        found = []
        for _ in range(5):
            start = time.perf_counter()
            self.generator.generate(text, max_length=1, **SHORT)
            found.append(time.perf_counter() - start)
        return {"tokens": 256, "seconds": statistics.median(found)}


def host_share(generator: Any, batch: int, length: int, options: dict[str, Any]) -> float:
    """Share of a run's time outside the graph."""
    inside: list[float] = []

    def note(step: Any) -> None:
        inside.append(step.seconds)

    prompts = [f"# number {n}\n{PROMPT}" for n in range(batch)]
    options = {"min_length": length, "max_length": length, "batch_size": batch, **options}
    generator.generate(prompts, **options)
    generator.add_step_hook(note)
    start = time.perf_counter()
    generator.generate(prompts, **options)
    seconds = time.perf_counter() - start
    generator.remove_step_hook(note)
    return 1 - sum(inside) / seconds


def memory(model: str, load: dict[str, Any], requests: int, budget: int) -> dict[str, Any]:
    """Peak of what this process takes more, while many requests run under a budget."""
    from paddlenlp_codegen_task import CodeGenerator

    with CodeGenerator.from_pretrained(model, kv_cache_bytes=budget, **load) as generator:
        work = Work(generator, 1)
        context = generator.config.n_positions
        rng = random.Random(1)
        # What runs beside the buffers is there before: a long prompt, and a full batch.
        generator.generate(work._tokens(0, context // 2), max_length=2, **SHORT)
        generator.generate(work._prompts(), max_length=2, batch_size=64, **SHORT)
        peak = 0
        stop = threading.Event()

        def resident() -> int:
            status = Path("/proc/self/status").read_text(encoding="utf-8")
            line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            return 1024 * int(line.split()[1])

        def watch() -> None:
            nonlocal peak
            while not stop.wait(0.01):
                peak = max(peak, resident())

        freed = threading.Event()

        def free(scheduler: Any) -> None:
            scheduler.slots.clear()
            freed.set()

        generator.engine.run(free)
        freed.wait()
        before = resident()
        watcher = threading.Thread(target=watch)
        watcher.start()
        # Mostly short ones, so that thousands are done in minutes, and now and then a long one.
        prompts = (
            work._tokens(n, context // 2 if n % 100 == 50 else int(4 * 32 ** rng.random()))
            for n in range(requests)
        )
        done = sum(
            1
            for _ in generator.generate_as_completed(prompts, max_length=32, batch_size=64, **SHORT)
        )
        stop.set()
        watcher.join()
        return {
            "budget_bytes": budget,
            "requests": done,
            "peak_bytes": peak - before,
            "share_of_budget": (peak - before) / budget,
        }


def serve(model: str, load: dict[str, Any], size: float) -> None:
    """Do tasks whose names come on standard input; a JSON answer each."""
    from paddlenlp_codegen_task import CodeGenerator

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with CodeGenerator.from_pretrained(model, batch_size=64, **load) as generator:
        work = Work(generator, size)
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(getattr(work, line.strip())()), file=answers, flush=True)


class Checkout:
    """A process that runs the tasks with the package of one checkout."""

    def __init__(self, root: Path, arguments: list[str]) -> None:
        command = [sys.executable, str(HERE / "engine.py"), *arguments, "--serve"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        self._answer()

    def ask(self, task: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(task, file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._answer())
        return answer

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of a checkout ended with {self.process.wait()}")
        return line

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def median_rate(runs: list[dict[str, Any]]) -> float:
    return statistics.median(one["tokens"] / one["seconds"] for one in runs)


def compare(checkouts: dict[str, Checkout], rounds: int, tasks: list[str]) -> dict[str, Any]:
    """Every task by every checkout, in alternation."""
    results: dict[str, Any] = {}
    for task in tasks:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in checkouts}
        for number in range(rounds + 1):  # the first does not count
            names = list(checkouts) if number % 2 else list(checkouts)[::-1]
            for name in names:
                found = checkouts[name].ask(task)
                if number:
                    runs[name].append(found)
        results[task] = {name: {"tokens_per_second": median_rate(r)} for name, r in runs.items()}
        for name, ones in runs.items():
            for key in ("longest_gap", "median_gap"):
                if key in ones[0]:
                    results[task][name][key] = statistics.median(one[key] for one in ones)
        if "base" in runs:
            ratios = [b["seconds"] / a["seconds"] for a, b in zip(*runs.values(), strict=True)]
            if task == "mixed":  # as long as the others take, the stream gives tokens
                ratios = [
                    a["tokens"] / a["seconds"] / (b["tokens"] / b["seconds"])
                    for a, b in zip(*runs.values(), strict=True)
                ]
            results[task]["ratio"] = statistics.median(ratios)
            results[task]["ratio_range"] = [min(ratios), max(ratios)]
        print(task, json.dumps(results[task]), file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--base", type=Path, help="root of the checkout to compare with")
    parser.add_argument("--home", type=Path, default=Path("build/engine"), help="for exports")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=1.0, help="share of the full tasks")
    parser.add_argument("--requests", type=int, default=10_000, help="of the test of memory")
    parser.add_argument("--budget", type=int, default=48 << 20, help="bytes, of the same")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=[*TASKS, "chunk"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    load = {
        "engine": "onnxruntime",
        "precision": options.precision,
        "home_path": options.home,
        "num_threads": options.threads,
    }
    if options.serve:
        serve(options.model, load, options.size)
        return
    arguments = [options.model, "--precision", options.precision, "--home", str(options.home)]
    arguments += ["--threads", str(options.threads), "--size", str(options.size)]
    roots = {"ours": HERE.parent}
    if options.base:
        roots["base"] = options.base.resolve()
    checkouts = {name: Checkout(root, arguments) for name, root in roots.items()}
    results = compare(checkouts, options.rounds, options.tasks)
    results["chunk_seconds"] = checkouts["ours"].ask("chunk")["seconds"]
    for checkout in checkouts.values():
        checkout.close()
    if not options.base:
        from compare import machine

        from paddlenlp_codegen_task import CodeGenerator

        kinds: dict[str, dict[str, Any]] = {
            "greedy": {"decode_strategy": "greedy_search", "truncation": None},
            "defaults": {"seed": 0},
            "top_p": {"seed": 0, "top_p": 0.95, "top_k": 0},
        }
        length = max(4, int(64 * options.size))
        with CodeGenerator.from_pretrained(options.model, **load) as generator:
            for kind, chosen in kinds.items():
                for batch in (1, 32):
                    shares = [
                        host_share(generator, batch, length, chosen) for _ in range(options.rounds)
                    ]
                    results[f"host_{kind}_{batch}"] = statistics.median(shares)
        if options.requests:
            results["memory"] = memory(options.model, load, options.requests, options.budget)
        results["machine"] = machine(options.threads)
    results["precision"] = options.precision
    print(json.dumps(results, indent=1))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
