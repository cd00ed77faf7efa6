"""Time to first token of a prompt edited by one line, with the prefix cache and without it.

    python benchmarks/make_checkpoint.py build/codegen-350M
    python benchmarks/prefix_cache.py build/codegen-350M

A prompt of 1,500 tokens of source text, as an editor sends it. One line of it changes each time:
the last one, as while somebody types, or one further up. The generator with the cache has seen
the prompt before the edit; the one without runs the same prompts, in alternation within one
process. First tokens must be the same. Random weights, int8 by ONNX Runtime. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from compare import machine
from static_graph import SOURCE, timed

from paddlenlp_codegen_task import CodeGenerator

PROMPT_TOKENS = 1500
CACHE_BYTES = 1 << 30
# Where the edited line is, as a share of the prompt's lines.
PLACES = {"last line": 1.0, "line at 95 %": 0.95, "line at 75 %": 0.75, "line in the middle": 0.5}


def base_prompt(generator: CodeGenerator, tokens: int) -> list[str]:
    """Lines of this project's source that are about so many tokens."""
    ids = generator.tokenizer.encode(SOURCE + Path(__file__).read_text(encoding="utf-8"))
    return generator.tokenizer.decode(ids[:tokens]).split("\n")


def edited(lines: list[str], place: float, number: int) -> str:
    """The prompt with the line at `place` replaced by one of about the same length."""
    at = min(int(place * len(lines)), len(lines) - 1)
    line = f"    found[{number}] = measured(generator, {number})  # edited"
    return "\n".join([*lines[:at], line, *lines[at + 1 :]])


def measure(
    cached: CodeGenerator, plain: CodeGenerator, tokens: int, place: float, rounds: int
) -> dict[str, Any]:
    """Seconds to the first token of both, edit by edit of a prompt of so many tokens."""
    lines = base_prompt(plain, tokens)
    cached.generate("\n".join(lines), max_length=1)
    pairs, same = [], True
    for number in range(rounds):
        prompt, found = edited(lines, place, number), {}

        def run(generator: CodeGenerator, prompt: str = prompt, found: Any = found) -> None:
            found[generator] = generator.generate(prompt, max_length=1, seed=0)[0][0].token_ids

        order = (plain, cached) if number % 2 else (cached, plain)
        took = {generator: timed(lambda g=generator: run(g)) for generator in order}  # type: ignore[misc]
        pairs.append((took[plain], took[cached]))
        same = same and found[plain] == found[cached]
    ratios = [a / b for a, b in pairs]
    return {
        "prompt_tokens": len(plain.tokenizer.encode(edited(lines, place, 0))),
        "seconds_without": statistics.median(a for a, _ in pairs),
        "seconds_with": statistics.median(b for _, b in pairs),
        "times_faster": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "same_first_tokens": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--home", type=Path, default=Path("build/decoding"), help="for exports")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS)
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(2), "precision": options.precision}
    load = {
        "engine": "onnxruntime",
        "precision": options.precision,
        "home_path": options.home,
        "prompt_lookup": False,
    }
    folder = options.checkpoint.resolve()
    with (
        CodeGenerator.from_pretrained(folder, **load) as plain,
        CodeGenerator.from_pretrained(folder, prefix_cache_bytes=CACHE_BYTES, **load) as cached,
    ):
        for name, place in PLACES.items():
            results[name] = measure(cached, plain, options.prompt_tokens, place, options.rounds)
            print(name, json.dumps(results[name]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"prefix_cache-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
