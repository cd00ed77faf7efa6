"""Prompt lookup: tokens a second with and without it, and how many guesses are accepted.

    python benchmarks/speculation.py builtin --code build/training/corpus/valid.jsonl

Completes the second half of held-out functions, one at a time, with greedy decoding and with the
defaults' sampling; and prompts as users type them, which hold nothing to look up. Both ways of
every prompt follow one another in one process, in an order that alternates. It counts the
completions that differ: a step of several tokens rounds otherwise than one of a single token, which
may decide between two tokens that are as likely. Writes JSON.
"""

from __future__ import annotations

import argparse
import ast
import json
import queue
import statistics
import time
from pathlib import Path
from typing import Any

from compare import machine

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.scheduler import Scheduler

NEW_TOKENS = 64
TYPED = (
    "def count_lines(path):",
    "def power(base, exponent):",
    "def second_largest(numbers):",
    "def to_upper(text):",
    "def is_empty(items):",
    "import os\n\ndef get_extension(filename):",
    "def sum_of_squares(numbers):",
    "class Rectangle:\n    def __init__(self, width, height):",
)


def halves(path: Path, count: int) -> list[str]:
    """The first halves, by lines, of functions of 12 to 60 lines, evenly spread over the file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        document = json.loads(line)
        if document["kind"] != "module":
            continue
        lines = document["text"].split("\n")
        for node in ast.parse(document["text"]).body:
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                size = node.end_lineno - node.lineno + 1
                if 12 <= size <= 60:
                    first = node.lineno - 1
                    found.append("\n".join(lines[first : first + size // 2]) + "\n")
    return found[:: max(1, len(found) // count)][:count]


def accepted(generator: CodeGenerator) -> dict[str, float]:
    """By kind of guess, the chance that the next token of one holds, as speculation reckons it."""
    found: queue.SimpleQueue[dict[str, float]] = queue.SimpleQueue()

    def read(scheduler: Scheduler) -> None:  # in the thread that writes it
        kinds = scheduler.pace.kinds.items()
        found.put({kind: round(known.accepted, 3) for kind, known in kinds})

    generator.engine.run(read)
    return found.get()


def measure(
    generator: CodeGenerator, prompts: list[str], options: dict[str, Any]
) -> dict[str, Any]:
    """Tokens a second of both ways, prompt by prompt in alternation."""
    tokens, different, seconds = 0, 0, {True: 0.0, False: 0.0}
    ratios = []
    for number, prompt in enumerate(prompts):
        took, texts = {}, {}
        for lookup in (number % 2 == 0, number % 2 == 1):
            start = time.perf_counter()
            [[one]] = generator.generate(prompt, prompt_lookup=lookup, **options)
            took[lookup] = time.perf_counter() - start
            texts[lookup] = one.token_ids
        different += texts[True] != texts[False]
        tokens += len(texts[True])
        for lookup, value in took.items():
            seconds[lookup] += value
        ratios.append(took[False] / took[True])
    return {
        "prompts": len(prompts),
        "tokens": tokens,
        "different_completions": different,
        "tokens_per_second": tokens / seconds[True],
        "tokens_per_second_without": tokens / seconds[False],
        "ratio": seconds[False] / seconds[True],
        "median_ratio_of_a_prompt": statistics.median(ratios),
        "accepted": accepted(generator),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--code", type=Path, required=True, help="valid.jsonl of corpus.py")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--count", type=int, default=200, help="functions of which half is given")
    parser.add_argument("--repeats", type=int, default=10, help="of the prompts as users type them")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--home", type=Path, help="for exports; by default PaddleNLP's")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    prompts = halves(options.code, options.count)
    ways: dict[str, dict[str, Any]] = {
        "greedy": {"decode_strategy": "greedy_search", "repetition_penalty": 1.0},
        "sampling": {"seed": 0},
    }
    results: dict[str, Any] = {"machine": machine(2), "precision": options.precision}
    for name, way in ways.items():
        for kind, chosen in (("second halves", prompts), ("typed", list(TYPED) * options.repeats)):
            settings = {**way, "truncation": None, "ignore_eos": True}
            settings["max_length"] = options.new_tokens
            with CodeGenerator.from_pretrained(
                options.model,
                engine="onnxruntime",
                precision=options.precision,
                home_path=options.home,
            ) as generator:
                generator.generate(prompts[:2], **settings)
                results[f"{name}, {kind}"] = measure(generator, chosen, settings)
            print(name, kind, json.dumps(results[f"{name}, {kind}"]), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
