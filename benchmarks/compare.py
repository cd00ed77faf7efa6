"""Ours and every peer on the same random-weight checkpoint, in alternation within one run.

    make benchmark

or, with the environments of the Makefile in place,

    python benchmarks/compare.py build/codegen-350M --rounds 3
    python benchmarks/compare.py build/codegen-350M --tasks whole_1000 --only "ours int4_int8" ...

The results of some systems or tasks go into part-*.json, those of all into compare-*.json.

Every system runs in its own process and environment (peers/), is asked for the same greedy
continuations of the same prompts on as many threads, and is stopped (SIGSTOP) while another one is
asked, so that no idle thread of its takes part. Ratios are taken round by round, and their median
quoted. Writes JSON; report.py turns it into a table and plots.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from paddlenlp_codegen_task.export.onnx_files import GRAPH_FILE
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.runtime import cpu

HERE = Path(__file__).resolve().parent
PROMPT_TOKENS = 16  # of a decoding measurement
BATCHES = {1: 64, 8: 32, 32: 32}  # and new tokens of each prompt
# Prompts whose prefill is timed, and then decoding behind them; the last ends near the context's.
CONTEXTS = (128, 512, 1024, 1884)
TOKENS_BEHIND = 16
WHOLE, TOKENS_OF_WHOLE = 1000, 32  # a prompt and its completion, timed as one
TASKS = (
    "cold_start",
    *(f"batch_{n}" for n in BATCHES),
    *(f"context_{length}" for length in CONTEXTS),
    f"whole_{WHOLE}",
)


@dataclass(frozen=True)
class System:
    """One row of the comparison: a peer's file, a precision, and the environment it runs in."""

    label: str
    peer: str
    precision: str
    environment: str


SYSTEMS = (
    System("ours int8", "ours", "int8", ".venv"),
    System("ours int4", "ours", "int4", ".venv"),
    System("ours int4_int8", "ours", "int4_int8", ".venv"),
    System("ours int8_weight_only", "ours", "int8_weight_only", ".venv"),
    System("ours fp32", "ours", "fp32", ".venv"),
    System("ours fp32, prompt lookup", "ours", "fp32+lookup", ".venv"),
    System("ours fp32, Paddle Inference", "ours", "fp32-paddle", ".venv"),
    System("PaddleNLP fp32", "paddlenlp_generate", "fp32", ".venv"),
    System("transformers fp32", "huggingface", "fp32", ".venv-huggingface"),
    System("transformers bf16", "huggingface", "bf16", ".venv-huggingface"),
    System("CTranslate2 fp32", "ctranslate", "fp32", ".venv-ctranslate"),
    System("CTranslate2 int8", "ctranslate", "int8", ".venv-ctranslate"),
    System("OpenVINO bf16", "optimum_openvino", "bf16", ".venv-openvino"),
    System("OpenVINO int8", "optimum_openvino", "int8", ".venv-openvino"),
)


class Worker:
    """A system's process. It runs only while it is asked."""

    def __init__(self, system: System, folder: Path, threads: int, root: Path) -> None:
        python = root / system.environment / "bin" / "python"
        command = [python, HERE / "peers" / f"{system.peer}.py"]
        self.system = system
        self._command = [*map(str, command), "serve", str(folder), system.precision, str(threads)]
        self._environment = environment(threads)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=self._environment,
            text=True,
        )

    def ask(self, prompts: list[str], new_tokens: int) -> dict[str, Any]:
        answer = self.exchange({"prompts": prompts, "new_tokens": new_tokens})
        lengths = [len(answer["seconds"]), *map(len, answer["tokens"])]
        if lengths != [new_tokens] * (1 + len(prompts)):
            raise SystemExit(f"{self.system.label}: {new_tokens} new tokens asked, got {lengths}")
        return answer

    def exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self.process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGCONT)
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{self.system.label} ended:\n{said}")
        process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def environment(threads: int) -> dict[str, str]:
    """Threads for those that read them from the environment; no reach for a hub."""
    count = str(threads)
    return {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "",
    }


def make_prompts(tokenizer: Tokenizer, count: int, length: int) -> list[str]:
    """Pieces of this package's source that have `length` tokens, also when encoded anew."""
    files = sorted((HERE.parent / "paddlenlp_codegen_task").glob("*/*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    # A token has at most some 30 characters, and a prompt that will do comes every few tokens.
    ids = tokenizer.encode(text[: 32 * (length + 32 * count)])
    prompts: list[str] = []
    start = 0
    while len(prompts) < count:
        piece = ids[start : start + length]
        if len(piece) < length:
            raise SystemExit(f"the package's source is too short for {count} prompts")
        prompt = tokenizer.decode(piece)
        if tokenizer.encode(prompt) == piece:
            prompts.append(prompt)
            start += 7
        start += 1
    return prompts


def prepare(system: System, checkpoint: Path, work: Path, root: Path) -> Path:
    """Convert the checkpoint for a system, once; return the folder."""
    folder = work / system.label.replace(" ", "-").replace(",", "")
    if not (folder / "prepared").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        python = root / system.environment / "bin" / "python"
        command = [python, HERE / "peers" / f"{system.peer}.py", "prepare", checkpoint, folder]
        print(f"preparing {system.label}", flush=True)
        subprocess.run([*command, system.precision], check=True, env=environment(2))
        (folder / "prepared").touch()
    return folder


def bytes_a_token(system: System, folder: Path) -> int | None:
    """Bytes of weights that one token of ours reads: all but the embeddings."""
    files = list(folder.rglob(GRAPH_FILE))
    if system.peer != "ours" or not files:
        return None
    return weights_read(files[0])


def weights_read(path: Path) -> int:
    """Bytes of all weights of a graph but the embeddings."""
    import onnx  # which only ours needs

    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(
        int(entry.value)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "length" and tensor.name not in ("wte", "wte_scales")
    )


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read together: dot products of long vectors."""
    vectors = [np.ones(1 << 25, np.float32) for _ in range(2 * threads)]
    pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
    with ThreadPoolExecutor(threads) as pool:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            list(pool.map(lambda pair: np.dot(*pair), pairs))
            times.append(time.perf_counter() - start)
    return sum(vector.nbytes for vector in vectors) / min(times)


def cold_start(worker: Worker, prompt: str) -> dict[str, float]:
    """Seconds from a new process to its first token, and its memory after 64 tokens of batch 1."""
    start = time.perf_counter()
    worker.start()
    worker.ask([prompt], 1)
    first_token = time.perf_counter() - start
    peak = worker.ask([prompt], BATCHES[1])["peak_bytes"]
    worker.stop()
    return {"first_token_seconds": first_token, "peak_bytes": peak}


def measure(
    worker: Worker, prompts: list[str], length: int, new_tokens: int, warm_up: list[str]
) -> dict[str, Any]:
    """Seconds of prefill, and new tokens a second behind it; prompts have `length` tokens."""
    worker.ask(warm_up, 3)  # other systems ran since: what they left cold is not to count
    answer = worker.ask(prompts, new_tokens)
    if answer["prompt_tokens"] != [length] * len(prompts):
        raise SystemExit(f"{worker.system.label} read other tokens: {answer['prompt_tokens']}")
    first, last = answer["seconds"][0], answer["seconds"][-1]
    return {
        "prefill_seconds": first,
        "total_seconds": last,
        "tokens_per_second": sum(answer["rows"][1:]) / (last - first),
        "peak_bytes": answer["peak_bytes"],
        "tokens": answer["tokens"],
    }


def run_rounds(
    workers: dict[str, Worker],
    tokenizer: Tokenizer,
    rounds: int,
    threads: int,
    wanted: Sequence[str] = TASKS,
) -> Iterator[dict[str, Any]]:
    """Measure, and yield what is known after each round, so that a run cut short keeps the others.

    Each measurement is taken of one system after the other before the next begins.
    """
    found: dict[str, Any] = {label: {} for label in workers}
    short = make_prompts(tokenizer, max(BATCHES), PROMPT_TOKENS)
    for round_number in range(rounds if "cold_start" in wanted else 0):
        for label, worker in workers.items():
            started = cold_start(worker, short[0])
            found[label].setdefault("cold_start", []).append(started)
        print(f"cold start, round {round_number + 1} of {rounds}", flush=True)
    for worker in workers.values():
        worker.start()
        worker.ask(short[:1], 2)
    tasks = [
        (f"batch_{n}", short[:n], PROMPT_TOKENS, new_tokens) for n, new_tokens in BATCHES.items()
    ]
    for length in CONTEXTS:
        long = make_prompts(tokenizer, 1, length)
        tasks.append((f"context_{length}", long, length, TOKENS_BEHIND))
    long = make_prompts(tokenizer, 1, WHOLE)
    tasks.append((f"whole_{WHOLE}", long, WHOLE, TOKENS_OF_WHOLE))
    tasks = [one for one in tasks if one[0] in wanted]
    bandwidth: list[float] = []
    batch_1: dict[str, list[int]] = {}
    for round_number in range(rounds):
        bandwidth.append(read_bandwidth(threads))
        for name, prompts, length, new_tokens in tasks:
            for label, worker in workers.items():
                warm_up = prompts if name.startswith("batch") else short[:1]
                result = measure(worker, prompts, length, new_tokens, warm_up)
                tokens = result.pop("tokens")
                if name == "batch_1":
                    batch_1[label] = tokens[0]
                found[label].setdefault(name, []).append(result)
                print(
                    f"{round_number + 1} {name:13} {label:28}"
                    f"{result['prefill_seconds']:8.3f} s {result['tokens_per_second']:8.1f}/s",
                    flush=True,
                )
        agreement(found, batch_1)
        yield {"bandwidth": bandwidth, "systems": found}


def agreement(found: dict[str, Any], tokens: dict[str, list[int]]) -> None:
    """Add how many of a system's 64 tokens equal those of transformers before the first other."""
    expected = tokens.get("transformers fp32", [])
    for label, ours in tokens.items():
        pairs = zip(ours, expected, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), len(expected))
        found[label]["tokens_as_transformers_fp32"] = same


def versions(environments: set[Path]) -> dict[str, str]:
    """Of the packages that matter, in all environments."""
    code = (
        "from importlib.metadata import distributions as d; "
        "print(*sorted({f'{x.name}=={x.version}' for x in d()}))"
    )
    names = ("onnxruntime", "paddlepaddle", "paddlenlp", "torch", "transformers")
    names += ("ctranslate2", "openvino", "openvino-genai", "optimum-intel")
    found = {}
    for python in (folder / "bin" / "python" for folder in environments):
        run = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
        pairs = [entry.split("==") for entry in run.stdout.split()]
        of = {name: number for name, number in pairs if name.lower() in names}
        found[python.parts[-3]] = " ".join(f"{name} {number}" for name, number in of.items())
    return found


def machine(threads: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": names[0] if names else platform.processor(),
        "kind": cpu.kind(cpu.flags(cpu.read())),
        "threads": threads,
        "onnxruntime": version("onnxruntime"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("build/compare"), help="prepared models")
    parser.add_argument("--environments", type=Path, default=HERE.parent, help="folder of .venv*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", help="labels of the systems to run", metavar="LABEL")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS, metavar="TASK")
    options = parser.parse_args()
    chosen = [one for one in SYSTEMS if options.only is None or one.label in options.only]
    root, work = options.environments.resolve(), options.work.resolve()
    checkpoint = options.checkpoint.resolve()
    workers, sizes = {}, {}
    for system in chosen:
        folder = prepare(system, checkpoint, work, root)
        workers[system.label] = Worker(system, folder, options.threads, root)
        sizes[system.label] = bytes_a_token(system, folder)
    about = {
        "machine": machine(options.threads),
        "versions": versions({root / system.environment for system in chosen}),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    whole = options.only is None and set(options.tasks) == set(TASKS)
    kind = about["machine"]["kind"].lower().replace(" ", "-")
    name = f"{'compare' if whole else 'part'}-{kind}-{about['machine']['date']}.json"
    path = options.out / name
    try:
        tokenizer = Tokenizer.from_folder(checkpoint)
        rounds = run_rounds(workers, tokenizer, options.rounds, options.threads, options.tasks)
        for results in rounds:
            for label, size in sizes.items():
                results["systems"][label]["bytes_a_token"] = size
            path.write_text(json.dumps(results | about, indent=1) + "\n", encoding="utf-8")
    finally:
        for worker in workers.values():
            worker.stop()
    print(path)


if __name__ == "__main__":
    main()
