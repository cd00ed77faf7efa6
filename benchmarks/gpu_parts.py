"""The parts of benchmarks/gpu.py, which runs each in a process: a JSON line a measurement.

python benchmarks/gpu_parts.py PART SETTINGS
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gpu import PRECISIONS
from gpu_profile import profile
from gpu_systems import Ours, Transformers, config_of, generator_of, weights_of

from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.runtime import device, engines

ROUNDS = 3
BATCHES = (1, 8, 32, 64)
COMPILED_BATCHES = {"350M": (1, 32)}  # else 1; compiling takes a minute each
PROMPT, NEW = 128, 64  # tokens, of the measurements of decoding
PREFILLS = (16, 512, 1884)
CHECKED = (5, 40, 1100)  # tokens of the checked prompts; the last one takes two steps
PACKAGES = ("onnxruntime-gpu", "onnxruntime", "paddlepaddle-gpu", "paddlepaddle", "torch")
Found = Iterator[tuple[str, Callable[[], Any]]]  # what is measured, and how
GREEDY = {"decode_strategy": "greedy_search", "repetition_penalty": 1.0, "truncation": None}


class Job:
    """What the parts are told, and what follows from it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.engine: str = settings["engine"]
        self.dry: bool = settings["dry_run"]
        self.half: str = settings["half"]  # the precision of 16 bits
        self.size: str = settings.get("size") or ""
        self.work = Path(settings["work"])
        self.found = set(settings.get("found", ()))
        self.device_id = None if self.dry else 0
        self.torch_device = "cpu" if self.dry else "cuda"
        self.threads = 1 if self.dry else len(os.sched_getaffinity(0))
        self.rounds = 1 if self.dry else ROUNDS
        self.new = 4 if self.dry else NEW
        self.batches = (1, 2) if self.dry else BATCHES
        self.prefills = (16,) if self.dry else PREFILLS

    @property
    def has_transformers(self) -> bool:
        return all(map(find_spec, ("torch", "transformers")))

    def folder(self, precision: str) -> Path:
        return self.work / f"{self.engine}-{self.size}-{precision}"

    def ours(self, precision: str, cuda_graph: bool = False) -> Ours:
        folder = self.folder(precision)
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no export {folder.name}: making it has failed")
        options = {"engine": self.engine, "precision": precision, "cuda_graph": cuda_graph}
        options |= {"device_id": self.device_id, "threads": self.threads}
        return Ours(folder, self.size, options)

    def peer(self, precision: str, static: bool = False) -> Transformers | None:
        """transformers' model, or None where it is not installed."""
        if not self.has_transformers:
            return None
        return Transformers(self.size, precision, self.torch_device, static)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        vocab_size = config_of(self.size).vocab_size
        random = np.random.default_rng(length)
        return random.integers(0, vocab_size, (count, length)).tolist()


def copied(job: Job) -> float:
    """Bytes a second that the device's memory reads and writes, copying what has been written."""
    count = 1 << (24 if job.dry else 28)  # float32 values, a gigabyte
    if find_spec("torch"):
        import torch

        source = torch.rand(count, device=job.torch_device)
        target = torch.empty_like(source)

        def copy() -> None:
            target.copy_(source)
            if not job.dry:
                torch.cuda.synchronize()
    else:
        import paddle

        source, held = paddle.rand([count]), []

        def copy() -> None:
            held[:] = [source.clone()]
            if not job.dry:
                paddle.device.cuda.synchronize()

    seconds = []
    for _ in range(3 if job.dry else 20):
        begin = time.perf_counter()
        copy()
        seconds.append(time.perf_counter() - begin)
    return 8 * count / statistics.median(seconds)


def machine(job: Job) -> Found:
    """Versions, cores, and how fast memory is."""

    def versions() -> dict[str, str]:
        found = {"python": sys.version.split()[0]}
        for name in (*PACKAGES, "transformers", "onnx", "numpy"):
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return found

    yield "versions", versions
    yield "cores", lambda: len(os.sched_getaffinity(0))
    yield "copy_bytes_per_second", lambda: copied(job)


def builtin(job: Job) -> Found:
    """The built-in model through the whole package: texts on the GPU as on the CPU."""
    from paddlenlp_codegen_task import CodeGenerator

    prompts = ["def add(a, b):", "x =", "class Stack:\n    def push(self, x):\n", "#" * 300]
    ways: dict[str, dict[str, Any]] = {
        "greedy": {"prompt_lookup": False},
        "guessing ahead": {"prompt_lookup": True, "batch_size": 1},
        "beams": {"decode_strategy": "beam_search", "num_beams": 3},
        "sampling": {"decode_strategy": "sampling", "seed": 3, "num_return_sequences": 2},
    }
    texts: dict[str, list[Any]] = {}

    def run(place: str, precision: str, cuda_graph: bool = False) -> CodeGenerator:
        return CodeGenerator.from_pretrained(
            "builtin",
            engine=job.engine,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            device="cpu" if job.dry else place,
            cuda_graph=cuda_graph and not job.dry,
            home_path=job.work / "home",
            prefix_cache_bytes=1 << 20,
        )

    def generated(generator: CodeGenerator) -> dict[str, list[Any]]:
        with generator:
            found = {}
            for way, options in ways.items():
                for _ in range(2):  # the second time, from the prefix cache
                    options = {**GREEDY, "max_length": 4 if job.dry else 24, **options}
                    answers = generator.generate(prompts, **options)
                    found[way] = [[one.token_ids for one in answer] for answer in answers]
            return found

    def compared(precision: str, cuda_graph: bool) -> dict[str, str]:
        if not texts:
            texts.update(generated(run("cpu", "fp32")))
        here = generated(run("gpu", precision, cuda_graph))
        return {
            way: f"{sum(a == b for a, b in zip(here[way], texts[way], strict=True))} of 4 equal"
            for way in ways
        }

    yield "fp32", lambda: compared("fp32", False)
    if job.dry:
        return
    if job.engine == "onnxruntime":
        yield "fp32, CUDA graphs", lambda: compared("fp32", True)
    yield "fp16", lambda: compared("fp16", job.engine == "onnxruntime")


def check(job: Job) -> Found:
    """Logits and greedy tokens beside transformers' in float32, or NumPy's logits without it."""
    prompts = [job.prompts(1, length)[0] for length in CHECKED]
    new = 4 if job.dry else 32
    expected: list[Any] = []

    def known() -> tuple[Any, list[list[int]] | None]:
        if not expected:
            peer = job.peer("fp32")
            if peer is None:
                weights = weights_of(job.size)
                logits = [reference.forward(weights, prompt)[-1] for prompt in prompts]
                expected.extend([np.stack(logits), None])
            else:
                expected.extend(peer.continued(prompts, new))
                peer.close()
        return expected[0], expected[1]

    def compared(load: Callable[[], Ours | Transformers | None]) -> dict[str, Any]:
        logits, tokens = known()  # before the other is in memory
        system = load()
        if system is None:
            return {"error": "transformers is not installed"}
        found, chosen = system.continued(prompts, new)
        system.close()
        errors = np.abs(found - logits).max(axis=1) / logits.std(axis=1)
        answer: dict[str, Any] = {"errors_in_deviations": [round(float(x), 6) for x in errors]}
        if tokens is not None:
            answer["equal_tokens"] = [
                next((n for n, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), new)
                for pair in zip(chosen, tokens, strict=True)
            ]
            answer["of"] = new
        return answer

    if job.engine == "onnxruntime":
        ways = [(one, graph) for one in PRECISIONS["onnxruntime"] for graph in (False, True)]
    else:
        ways = [(one, False) for one in dict.fromkeys(("fp32", job.half))]
    for precision, graph in ways:
        load = partial(job.ours, precision, graph)
        yield precision + graphs(graph), partial(compared, load)
    if not job.dry:
        yield "transformers fp16", partial(compared, partial(job.peer, "fp16"))


def systems(job: Job) -> dict[str, Callable[[], Any]]:
    """What is compared for speed, in float16 or fewer bits, by name."""
    found: dict[str, Callable[[], Any]] = {f"ours {job.half}": partial(job.ours, job.half)}
    if job.engine == "onnxruntime":
        for precision in PRECISIONS["onnxruntime"][1:]:
            found[f"ours {precision}{graphs(True)}"] = partial(job.ours, precision, True)
    if job.has_transformers:
        found["transformers fp16"] = partial(job.peer, "fp16")
    return found


def graphs(used: bool) -> str:
    return ", CUDA graphs" if used else ""


def alternated(
    job: Job, loaded: dict[str, Any], prompts: list[list[int]], new: int
) -> dict[str, dict[str, float]]:
    """Medians of what each system takes for the same prompts, in turns; errors are noted."""
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in loaded}
    failed: dict[str, Any] = {}
    for number in range(job.rounds + 1):  # the first does not count
        for name in list(loaded) if number % 2 else list(loaded)[::-1]:
            if name in failed:
                continue
            try:
                first, rest, _ = loaded[name].run(prompts, new)
            except Exception as error:  # such as no memory left: the others go on
                failed[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
                continue
            if number:
                runs[name].append((first, rest))
    for name, times in runs.items():
        if name not in failed:
            firsts, rests = zip(*times, strict=True)
            failed[name] = {"first_token_seconds": statistics.median(firsts)}
            if new > 1:
                rate = len(prompts) * (new - 1) / statistics.median(rests)
                failed[name]["tokens_per_second"] = rate
    return failed


def speed(job: Job) -> Found:
    """Decoding by batch and prefill by length, all systems in turns; shares of the bandwidth."""
    loaded, failed = {}, {}
    for name, load in systems(job).items():
        try:
            loaded[name] = load()
        except Exception as error:  # the others go on
            failed[name] = f"{type(error).__name__}: {error}"[:300]
    if failed:
        yield "not loaded", lambda: failed
    bandwidth = copied(job)
    yield "copy_bytes_per_second", lambda: bandwidth

    def decoding(batch: int) -> dict[str, Any]:
        found = alternated(job, loaded, job.prompts(batch, PROMPT), job.new)
        for name, one in found.items():
            if name.startswith("ours") and "error" not in one:
                precision = name.removeprefix("ours ").partition(",")[0]
                steps = one["tokens_per_second"] / batch
                one["share_of_bandwidth"] = steps * read(job, precision, batch) / bandwidth
        return found

    for batch in job.batches:
        yield f"batch {batch}", lambda batch=batch: decoding(batch)
    for length in job.prefills:
        prompts = job.prompts(1, length)
        yield f"prompt of {length}", lambda prompts=prompts: alternated(job, loaded, prompts, 1)


def read(job: Job, precision: str, batch: int) -> float:
    """Bytes that a step has to read: the weights but the embedding's, and keys and values."""
    config = config_of(job.size)
    folder = job.folder(precision)
    weights = sum(path.stat().st_size for path in folder.iterdir())
    width = 1 if precision in ("int8_weight_only", "int4") else 2
    embedding = config.vocab_size * config.n_embd * width
    cached = 2 * 2 * config.n_layer * config.n_embd * (PROMPT + job.new / 2)
    return weights - embedding + batch * cached


def generate(job: Job) -> Found:
    """All that a request takes, text to text, in turns with transformers' `generate` of tokens."""
    length = 16 if job.dry else PROMPT
    half = "fp32" if job.dry else job.half  # a checkpoint's export for a CPU
    peer = job.peer("fp16")
    with generator_of(job.size, job.work, half, job.engine, job.device_id) as ours:

        def rates(batch: int) -> dict[str, float]:
            random = np.random.default_rng(batch)
            letters = random.integers(ord("a"), ord("z") + 1, (batch, length), np.uint8)
            prompts = [row.tobytes().decode() for row in letters]
            tokens = [ours.tokenizer.encode(prompt) for prompt in prompts]

            def answered() -> int:
                options = {**GREEDY, "max_length": job.new, "batch_size": batch}
                answers = ours.generate(prompts, prompt_lookup=False, **options)
                return sum(len(one.token_ids) for answer in answers for one in answer)

            def peers() -> int:
                assert peer is not None
                return sum(map(len, peer.run(tokens, job.new)[2]))

            systems = {f"ours {half}": answered} | ({"transformers fp16": peers} if peer else {})
            found: dict[str, list[float]] = {name: [] for name in systems}
            for number in range(job.rounds + 1):  # the first does not count
                for name, run in systems.items():
                    begin = time.perf_counter()
                    count = run()
                    if number:
                        found[name].append(count / (time.perf_counter() - begin))
            return {name: statistics.median(one) for name, one in found.items()}

        for batch in job.batches:
            yield f"batch {batch}", partial(rates, batch)


def memory(job: Job) -> Found:
    """What is free on the device before, with and after a model, and what the KV buffers take."""

    def measured() -> dict[str, Any]:
        free: dict[str, int | None] = {"before": device.free_bytes(job.device_id)}
        for name in ("", " again"):
            ours = job.ours(job.half)
            ours.start(job.prompts(1, 16))
            free["loaded" + name] = device.free_bytes(job.device_id)
            cache = ours.runtime.cache
            cache.reset()
            cache.reserve(2 if job.dry else 16, 256 if job.dry else 2048)
            free["with buffers" + name] = device.free_bytes(job.device_id)
            reserved = cache.bytes(cache.slots, cache.capacity) * cache.count // (cache.count + 1)
            ours.close()
            free["closed" + name] = device.free_bytes(job.device_id)
        return {"free_bytes": free, "buffers_by_our_count": reserved}

    yield job.half, measured


def compiled(job: Job) -> Found:
    """transformers with its static cache, compiled, in turns with ours."""
    peer = job.peer("fp16", static=True)
    if peer is None:
        raise SystemExit("needs PyTorch and transformers")
    name = "transformers fp16, static cache" + ("" if job.dry else ", compiled")
    loaded = {f"ours fp16{graphs(True)}": job.ours("fp16", True), name: peer}
    for batch in COMPILED_BATCHES.get(job.size, (1,)):
        prompts = job.prompts(batch, PROMPT)
        yield f"batch {batch}", lambda prompts=prompts: alternated(job, loaded, prompts, job.new)


def export(job: Job, precision: str) -> None:
    """Write an export for a GPU, in the dry run as well; it gets its name when it is whole."""
    folder = job.folder(precision)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    draft.mkdir(parents=True)
    engines.load_engine(job.engine).export(weights_of(job.size), draft, precision, 0)
    draft.rename(folder)


PARTS: dict[str, Callable[[Job], Found]] = {
    "machine": machine,
    "builtin": builtin,
    "check": check,
    "speed": speed,
    "generate": generate,
    "profile": profile,
    "memory": memory,
    "compiled": compiled,
}


def main() -> None:
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    job = Job(settings)
    if kind == "export":
        export(job, settings["precision"])
        return
    for key, measure in PARTS[kind](job):
        if key not in job.found:
            print(json.dumps({"key": key, "value": measure()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
