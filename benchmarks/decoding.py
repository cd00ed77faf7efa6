"""What decoding costs beside the graph, and what continuous batching saves.

    python benchmarks/decoding.py build/codegen-350M

Both with the fastest steps there are: ONNX Runtime, int8, random weights. The first is the share
of a run that is spent outside the graph. For the second, tokens are drawn from the whole vocabulary
and a completion ends at its first "z", so that lengths are as different as lengths can be; 64
prompts go through 8 slots in one call, against eight calls of 8, each waiting for its longest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from compare import machine
from static_graph import OPTIONS, host_share, timed

from paddlenlp_codegen_task import CodeGenerator

SLOTS = 8
ENDS_ANYWHERE: dict[str, Any] = {
    "top_k": 0,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "truncation": "z",
    "seed": 0,
}


def continuous_batching(
    generator: CodeGenerator, rounds: int, groups: int, longest: int
) -> dict[str, Any]:
    """Seconds of one call and of a call a group, alternately; the texts must be the same."""
    prompts = [f"# example {number}\ndef f(x):\n    return" for number in range(groups * SLOTS)]
    options = {**ENDS_ANYWHERE, "max_length": longest}
    generator.generate(prompts[:SLOTS], batch_size=SLOTS, **options)
    found: dict[str, Any] = {}

    def together() -> None:
        found["together"] = generator.generate(prompts, batch_size=SLOTS, **options)

    def in_groups() -> None:
        found["groups"] = []
        for start in range(0, len(prompts), SLOTS):
            group = prompts[start : start + SLOTS]
            found["groups"] += generator.generate(group, batch_size=SLOTS, **options)

    pairs = [(timed(in_groups), timed(together)) for _ in range(rounds)]
    lengths = [len(one.token_ids) for (one,) in found["together"]]
    steps = [max(lengths[start : start + SLOTS]) for start in range(0, len(lengths), SLOTS)]
    return {
        "lengths": {
            "shortest": min(lengths),
            "median": statistics.median(lengths),
            "longest": max(lengths),
        },
        "tokens": sum(lengths),
        "steps_in_groups": sum(steps),
        "steps_if_slots_were_always_full": -(-sum(lengths) // SLOTS),
        "seconds_in_groups": statistics.median(a for a, _ in pairs),
        "seconds_together": statistics.median(b for _, b in pairs),
        "times_faster": statistics.median(a / b for a, b in pairs),
        "range": [min(a / b for a, b in pairs), max(a / b for a, b in pairs)],
        "same_texts": found["together"] == found["groups"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--home", type=Path, default=Path("build/decoding"), help="for exports")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", type=int, default=8, help=f"of {SLOTS} prompts")
    parser.add_argument("--longest", type=int, default=256, help="most tokens of a completion")
    parser.add_argument("--new-tokens", type=int, default=64, help="of the host's share")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    length = {"max_length": options.new_tokens, "min_length": options.new_tokens}
    ways = {"greedy": {**OPTIONS, **length}, "sampling": {**length, "seed": 0}}
    with CodeGenerator.from_pretrained(
        options.checkpoint.resolve(),
        home_path=options.home,
        engine="onnxruntime",
        precision="int8",
    ) as generator:
        results["continuous_batching"] = continuous_batching(
            generator, options.rounds, options.groups, options.longest
        )
        for name, chosen in ways.items():
            for batch in (1, 32):
                shares = [host_share(generator, batch, **chosen) for _ in range(options.rounds)]
                results[f"host_{name}_{batch}"] = {
                    key: statistics.median(share[key] for share in shares) for key in shares[0]
                }
    results["machine"] = machine(2)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"decoding-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
