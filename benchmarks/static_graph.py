"""The Paddle static graph against PaddleNLP's own generate, and what the rest costs.

    python benchmarks/make_checkpoint.py build/codegen-350M
    python benchmarks/static_graph.py build/codegen-350M --out benchmarks/results

Random weights, float32, greedy search, 64 new tokens (end of text ruled out by min_length). Both
sides run in one process, in alternation; ratios are taken pair by pair, and their median quoted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddlenlp_codegen_task  # noqa: F401
from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Forward
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig

NEW_TOKENS = 64
OPTIONS: dict[str, Any] = {
    "max_length": NEW_TOKENS,
    "min_length": NEW_TOKENS,
    "decode_strategy": "greedy_search",
    "repetition_penalty": 1.0,
    "truncation": None,
}
SOURCE = Path(__file__).read_text(encoding="utf-8")


def prompts(generator: CodeGenerator, lengths: list[int]) -> list[str]:
    """Pieces of this file with the given numbers of tokens."""
    ids = generator.tokenizer.encode(SOURCE)
    texts = []
    for number, length in enumerate(lengths):
        text = generator.tokenizer.decode(ids[40 * number : 40 * number + length])
        texts.append(text)
    return texts


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(a: Callable[[], Any], b: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Time a and b in turn; the ratio is how many times faster b is."""
    a(), b()
    pairs = [(timed(a), timed(b)) for _ in range(rounds)]
    ratios = [x / y for x, y in pairs]
    return {
        "seconds_a": statistics.median(x for x, _ in pairs),
        "seconds_b": statistics.median(y for _, y in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def paddlenlp_model(folder: Path) -> Any:
    """PaddleNLP's own CodeGen with the weights of `folder`."""
    import paddle
    from paddlenlp.transformers import CodeGenConfig as PaddleConfig
    from paddlenlp.transformers import CodeGenForCausalLM

    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = CodeGenForCausalLM(PaddleConfig(**values))
    with open_checkpoint(folder) as checkpoint:
        linear = ("qkv_proj", "out_proj", "fc_in", "fc_out", "lm_head")
        state = {}
        for name in checkpoint.names:
            value = checkpoint.read(name)
            is_linear = name.endswith(".weight") and name.split(".")[-2] in linear
            state[name] = value.T if is_linear else value
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in state.items()})
    model.eval()
    return model


def against_paddlenlp(
    folder: Path, generator: CodeGenerator, rounds: int, options: dict[str, Any]
) -> dict[str, Any]:
    """One prompt of 16 tokens: PaddleNLP's dygraph generate, and the static graph."""
    import paddle

    model = paddlenlp_model(folder)
    (prompt,) = prompts(generator, [16])
    ids = paddle.to_tensor([generator.tokenizer.encode(prompt)])
    tokens = {}

    def theirs() -> None:
        out, _ = model.generate(
            ids,
            max_length=options["max_length"],
            min_length=options["min_length"],
            decode_strategy="greedy_search",
            repetition_penalty=1.0,
        )
        tokens["theirs"] = out.numpy()[0].tolist()

    def ours() -> None:
        tokens["ours"] = list(generator.generate(prompt, **options)[0][0].token_ids)

    result = alternate(theirs, ours, rounds)
    result["same_tokens"] = tokens["theirs"] == tokens["ours"]
    return result


def batch_against_one_by_one(
    generator: CodeGenerator, rounds: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Eight prompts of 5 to 61 tokens: one after the other, and as one batch."""
    texts = prompts(generator, [5, 61, 13, 16, 37, 24, 9, 48])
    found: dict[str, Any] = {}

    def alone() -> None:
        found["alone"] = [generator.generate(text, **options)[0] for text in texts]

    def together() -> None:
        found["together"] = generator.generate(texts, batch_size=8, **options)

    result = alternate(alone, together, rounds)
    result["same_tokens"] = found["alone"] == found["together"]
    return result


def host_share(generator: CodeGenerator, batch: int, **options: Any) -> dict[str, float]:
    """Share of a run's time that is spent outside the graph: choosing tokens, truncation, ..."""
    inside: list[float] = []

    def note(step: Forward) -> None:
        inside.append(step.seconds)

    texts = prompts(generator, [16] * batch)
    generator.generate(texts, batch_size=batch, **options)
    generator.add_step_hook(note)
    try:
        total = timed(lambda: generator.generate(texts, batch_size=batch, **options))
    finally:
        generator.remove_step_hook(note)
    return {"batch": batch, "seconds": total, "host_share": 1 - sum(inside) / total}


_EXPORT = """
import resource, sys
from paddlenlp_codegen_task.loading import LoadOptions, load_model
import paddlenlp_codegen_task.runtime.paddle_inference
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_model(sys.argv[1], LoadOptions(home_path=sys.argv[2], engine="paddle"))
print(before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""

_START = """
import time
start = time.perf_counter()
import sys
from paddlenlp import Taskflow
import paddlenlp_codegen_task
codegen = Taskflow(
    "code_generation", task_path=sys.argv[1], home_path=sys.argv[2], engine="paddle"
)
ready = time.perf_counter() - start
codegen("def hello_world():", max_length=1)
print(ready, time.perf_counter() - start)
"""


def child(code: str, *arguments: object) -> list[float]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(word) for word in output.split()[-2:]]


def export_memory(folder: Path) -> dict[str, float]:
    """Peak memory of a process that exports, without and with what imports take."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as home:
        seconds = time.perf_counter()
        before, peak = child(_EXPORT, folder, home)
        seconds = time.perf_counter() - seconds
    return {
        "checkpoint_bytes": size,
        "peak_bytes": peak,
        "times_checkpoint": peak / size,
        "times_checkpoint_without_imports": (peak - before) / size,
        "seconds": seconds,
    }


def second_start(folder: Path, home: Path, rounds: int) -> dict[str, float]:
    """Seconds from a new process to a ready task, and to its first token."""
    child(_START, folder, home)
    runs = [child(_START, folder, home) for _ in range(rounds)]
    return {
        "ready": statistics.median(ready for ready, _ in runs),
        "first_token": statistics.median(first for _, first in runs),
        "first_token_range": [min(f for _, f in runs), max(f for _, f in runs)],
    }


def machine() -> dict[str, Any]:
    import paddle
    import paddlenlp

    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "paddle": paddle.__version__,
        "paddlenlp": paddlenlp.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="of new processes that are timed")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    options = parser.parse_args()
    folder, rounds = options.checkpoint.resolve(), options.rounds
    length = {"max_length": options.new_tokens, "min_length": options.new_tokens}
    greedy, sampling = {**OPTIONS, **length}, {**length, "seed": 0}

    home = Path(tempfile.mkdtemp())
    try:
        results: dict[str, Any] = {"export": export_memory(folder)}
        results["second_start"] = second_start(folder, home, options.starts)
        generator = CodeGenerator.from_pretrained(folder, home_path=home, engine="paddle")
        results["machine"] = machine()
        assert CodeGenConfig.from_folder(folder) == generator.config
        results["batch_8"] = batch_against_one_by_one(generator, max(1, rounds // 2), greedy)
        for name, chosen in (("greedy", greedy), ("sampling", sampling)):
            for batch in (1, 32):
                results[f"host_{name}_{batch}"] = host_share(generator, batch, **chosen)
        results["batch_1_against_paddlenlp"] = against_paddlenlp(folder, generator, rounds, greedy)
        results["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    finally:
        shutil.rmtree(home)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"static_graph-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
