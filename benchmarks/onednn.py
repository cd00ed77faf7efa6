"""Why oneDNN is off on a CPU: the exported graph without it, and with it in float32 and bfloat16.

    python benchmarks/onednn.py build/codegen-350M --out benchmarks/results

Times one decode step at capacity 128, and a prefill of 128 tokens, the three in alternation.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import paddlenlp_codegen_task  # noqa: F401
from paddlenlp_codegen_task.loading import LoadOptions, load_model
from paddlenlp_codegen_task.runtime import paddle_inference
from paddlenlp_codegen_task.runtime.base import Runtime, decode, prefill

VARIANTS = ("off", "oneDNN fp32", "oneDNN bf16")


def load(folder: Path, options: LoadOptions, variant: str) -> Runtime:
    plain = paddle_inference._inference_config

    def changed(*arguments: Any) -> Any:
        config = plain(*arguments)
        if variant != "off":
            config.enable_mkldnn()
            config.set_mkldnn_cache_capacity(10)
        if variant.endswith("bf16"):
            config.enable_mkldnn_bfloat16()
        return config

    with mock.patch.object(paddle_inference, "_inference_config", changed):
        return load_model(folder, options).runtime


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prompt(runtime: Runtime) -> list[int]:
    return [token_id % runtime.config.vocab_size for token_id in range(1000, 1016)]


def greedy(runtime: Runtime, count: int) -> list[int]:
    runtime.cache.reset()
    tokens = [int(prefill(runtime, 0, [prompt(runtime)]).candidate_ids[0, 0])]
    while len(tokens) < count:
        tokens.append(int(decode(runtime, tokens[-1:]).candidate_ids[0, 0]))
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as home:
        where = LoadOptions(engine="paddle", device="cpu", home_path=home)
        runtimes = {variant: load(options.checkpoint, where, variant) for variant in VARIANTS}
        reference = greedy(runtimes["off"], 32)
        results: dict[str, dict[str, float]] = {}
        for variant, runtime in runtimes.items():
            pairs = zip(greedy(runtime, 32), reference, strict=True)
            same = [ours == theirs for ours, theirs in pairs]
            results[variant] = {"same_tokens_of_32": [*same, False].index(False)}
        for batch in (1, 8, 32):
            for runtime in runtimes.values():
                runtime.cache.reset()
                prefill(runtime, 0, [prompt(runtime)] * batch)
                decode(runtime, [5] * batch)
            times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
            for _ in range(options.rounds):
                for variant, runtime in runtimes.items():
                    times[variant].append(timed(partial(decode, runtime, [5] * batch)))
            for variant, seconds in times.items():
                results[variant][f"decode_{batch}_ms"] = 1000 * statistics.median(seconds)
        most = min(50000, runtimes["off"].config.vocab_size)
        long = np.random.default_rng(0).integers(0, most, 128).tolist()
        times = {variant: [] for variant in VARIANTS}
        for _ in range(5):
            for variant, runtime in runtimes.items():
                runtime.cache.reset()
                times[variant].append(timed(partial(prefill, runtime, 0, [long])))
        for variant, seconds in times.items():
            results[variant]["prefill_128_ms"] = 1000 * statistics.median(seconds)

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"onednn-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
