"""What a small model that drafts for a large one brings, by how often its tokens are right.

    python benchmarks/drafting.py --work build/drafting

Weights are random, so the two models agree on nothing: how often they do is set. Of each pair:

- costs: seconds of a step of the large model over 1 to 16 tokens of one sequence, and of a token of
  the small one. What drafting brings at best follows from them for every chance that a token is
  right, and the chance from which on it brings anything.
- runs: tokens a second of the scheduler, by itself and with a drafter that runs the small model
  and hands in tokens of which each is right with the chance set; and with the small model as it is,
  which is never right. The text is decided beforehand: random weights have ties, which a step of
  several tokens may decide otherwise.

Last, how often a model agrees with itself at a lower precision, random weights and trained ones.
The exports are removed; results are written after each pair.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from compare import machine, read_bandwidth
from make_checkpoint import SIZES
from sizes import config_of, model, prompt, settle

from paddlenlp_codegen_task.decoding import sampling
from paddlenlp_codegen_task.decoding.events import Finished
from paddlenlp_codegen_task.decoding.pace import MAX_DRAFT
from paddlenlp_codegen_task.decoding.prefix_cache import common
from paddlenlp_codegen_task.decoding.request import (
    Batch,
    Context,
    Drafter,
    Parameters,
    Request,
    Row,
)
from paddlenlp_codegen_task.decoding.sampling import Choice, choose, contexts_after
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.decoding.speculation import DraftModel
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.load_options import LoadOptions
from paddlenlp_codegen_task.loading import load_model
from paddlenlp_codegen_task.runtime import onnx_inference
from paddlenlp_codegen_task.runtime.base import Runtime, StepOutput, decode, extend, prefill

HERE = Path(__file__).resolve().parent
DRAFTING = "350M:int4"
PAIRS = ("6B:int4", "16B:int4")
CHANCES = (0.0, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)
COUNTS = (0, 1, 2, 3, 4, 6, 8, 11, MAX_DRAFT)  # drafted tokens whose verification is timed
REPEATS = 3
UNRELATED = "unrelated"  # the small model as it is
SOURCE = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n"


class Nothing:
    """The text of a row that nobody reads."""

    text = settled = ""

    def feed(self, token_id: int) -> bool:
        return False


class SetChance:
    """Runs a small model, and drafts what is known to come, each token right with a set chance."""

    def __init__(self, runtime: Runtime, completion: list[int], chance: float) -> None:
        self._runtime, self._completion, self._chance = runtime, completion, chance
        self._random = np.random.default_rng(0)
        self._held: list[int] = []

    def kind(self, row: Row) -> str:
        return "draft model"

    def draft(self, row: Row, limit: int) -> list[int]:
        """As DraftModel does, but for the tokens."""
        known = self._completion[len(row.token_ids) :][:limit]
        if not known:
            return []
        wrong = self._random.random(len(known)) >= self._chance
        drafted = [token ^ int(one) for token, one in zip(known, wrong, strict=True)]
        tokens = row.history
        kept = common(self._held, tokens[:-1])
        self._runtime.cache.truncate(0, kept)
        output = extend(self._runtime, 0, [tokens[kept:]], kept > 0)
        for n, token in enumerate(drafted):
            *_, context = contexts_after(row, drafted[:n])
            choose(output, [context])  # for the time it takes
            if n < len(drafted) - 1:
                output = decode(self._runtime, [token])
        self._held = [*tokens, *drafted[:-1]]
        return drafted


def complete(
    scheduler: Scheduler,
    runtime: Runtime,
    prompt_ids: list[int],
    count: int,
    drafter: Drafter | None = None,
    text: list[int] | None = None,
) -> tuple[list[int], float]:
    """Greedy tokens, and tokens a second behind the first one.

    With `text`, its tokens are those chosen, whatever the logits.
    """
    config = GenerationConfig(decode_strategy="greedy_search", repetition_penalty=1.0)
    vocab_size = runtime.config.vocab_size
    request = Request(
        prompt_ids,
        Parameters.of(config, (), vocab_size),
        count,
        1,
        Batch(1),
        Nothing,
        lambda: [drafter] if drafter else [],
        vocab_size,
    )

    def decided(output: StepOutput, contexts: Sequence[Context]) -> Choice:
        choice = choose(output, contexts)
        if text is None:
            return choice
        start = sum(len(row.token_ids) for row in scheduler.slots.rows)
        end = start + len(contexts)
        return Choice([*text[start:end], *choice.tokens[len(text[start:end]) :]], choice.notes)

    scheduler.add(request)
    with mock.patch.object(sampling, "choose", decided):
        while scheduler.has_work:
            for event in scheduler.step():
                if not isinstance(event, Finished):
                    raise SystemExit(f"a request that did not finish: {event}")
                [row] = event.rows
    return row.token_ids, (count - 1) / (row.last_token - row.first_token)


def median_seconds(once: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        once()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def costs(large: Runtime, small: Runtime, prompt_ids: list[int]) -> dict[str, Any]:
    """Seconds of verifying so many drafted tokens (0: of a plain step), and of drafting one."""
    for runtime in (large, small):
        runtime.cache.reset()
        prefill(runtime, 0, [prompt_ids])

    def verify(count: int) -> None:
        large.cache.truncate(0, len(prompt_ids))
        large.forward(0, [prompt_ids[: count + 1]], True, True)

    def draft() -> None:
        small.cache.truncate(0, len(prompt_ids))
        decode(small, prompt_ids[:1])

    return {
        "verify_seconds": {count: median_seconds(partial(verify, count)) for count in COUNTS},
        "draft_seconds": median_seconds(draft),
    }


def expected(cost: dict[str, Any], chance: float) -> tuple[float, int]:
    """The best ratio to decoding without a draft, and how many tokens are then drafted."""
    seconds = cost["verify_seconds"]
    ratios = {
        count: sum(chance**n for n in range(count + 1))
        * seconds[0]
        / (seconds[count] + count * cost["draft_seconds"])
        for count in COUNTS
    }
    best = max(ratios, key=lambda count: ratios[count])
    return ratios[best], best


def load(name: str, work: Path) -> Runtime:
    """A graph of random weights, as "6B:int4" names it, with its memory where it is to be."""
    size, precision = name.split(":")
    folder = work / name.replace(":", "-")
    if not folder.exists():
        folder.mkdir(parents=True)
        onnx_inference.export(model(size), folder, precision, None)
    threads = len(os.sched_getaffinity(0))
    runtime = onnx_inference.load(folder, config_of(size), None, threads, precision, False)
    prefill(runtime, 0, [prompt(runtime.config)])
    settle()
    return runtime


def measure(name: str, small: Runtime, work: Path, new_tokens: int) -> dict[str, Any]:
    large = load(name, work)
    prompt_ids = prompt(large.config)
    cost = costs(large, small, prompt_ids)
    scan = [n / 100 for n in range(101)]
    found: dict[str, Any] = {
        **cost,
        "pays_from": next((one for one in scan if expected(cost, one)[0] > 1.0), None),
        "bandwidth": read_bandwidth(len(os.sched_getaffinity(0))),
        "runs": {},
    }
    text = [n * 104729 % large.config.vocab_size for n in range(1, new_tokens + 1)]

    def speed(scheduler: Scheduler, drafter: Drafter | None) -> float:
        tokens, rate = complete(scheduler, large, prompt_ids, new_tokens, drafter, text)
        assert tokens == text
        return rate

    large.cache.reset()
    small.cache.reset()
    plain = speed(Scheduler(large), None)
    for chance in (*CHANCES, None):
        scheduler = Scheduler(large)
        drafter: Drafter = DraftModel(small)
        if chance is not None:
            drafter = SetChance(small, text, chance)
        first, later = (speed(scheduler, drafter) for _ in range(2))
        again = speed(Scheduler(large), None)
        ratio, count = expected(cost, chance or 0.0)
        way = UNRELATED if chance is None else str(chance)
        pace = scheduler.pace
        found["runs"][way] = {
            "tokens_per_second": later,
            "tokens_per_second_first": first,  # before anything is known of costs and chances
            "tokens_per_second_without": statistics.mean([plain, again]),  # before and after
            "drafted_tokens_taken": pace.accepted / max(pace.drafted, 1),
            "expected_ratio": ratio,
            "expected_drafted": count,
        }
        plain = again
        print(name, way, json.dumps(found["runs"][way]), flush=True)
    large.close()
    return found


def agreement(large: Runtime, small: Runtime, prompt_ids: list[int], new_tokens: int) -> float:
    """The share of the one's greedy tokens that the other would choose in their places too."""
    large.cache.reset()
    completion, _ = complete(Scheduler(large), large, prompt_ids, new_tokens)
    small.cache.reset()
    output = small.forward(0, [[*prompt_ids, *completion[:-1]]], True, False)
    chosen = output.candidate_ids[len(prompt_ids) - 1 :, 0].tolist()
    return statistics.mean(float(a == b) for a, b in zip(chosen, completion, strict=True))


def twins(work: Path, size: str, new_tokens: int) -> dict[str, float]:
    """How often int8 and int4 agree with fp32 of the same weights."""
    found = {}
    exact = load(f"{size}:fp32", work)
    for precision in ("int8", "int4"):
        other = load(f"{size}:{precision}", work)
        name = f"{size}, random, fp32 and {precision}"
        found[name] = agreement(exact, other, prompt(exact.config), new_tokens)
        other.close()
    exact.close()
    trained = {
        precision: load_model("builtin", LoadOptions(engine="onnxruntime", precision=precision))
        for precision in ("fp32", "int8", "int4")
    }
    prompt_ids = trained["fp32"].tokenizer.encode(SOURCE)
    for precision in ("int8", "int4"):
        runtimes = trained["fp32"].runtime, trained[precision].runtime
        found[f"built-in, trained, fp32 and {precision}"] = agreement(
            *runtimes, prompt_ids, new_tokens
        )
    for one in trained.values():
        one.runtime.close()
    return found


def table(pairs: dict[str, Any]) -> str:
    """Times as fast as without drafting, in Markdown: as measured, and as costs let expect."""
    heads = (f"{name}, at first | later | at best (drafted)" for name in pairs)
    lines = [
        f"| Chance | {' | '.join(heads)} |",
        f"| --- |{' --: |' * 3 * len(pairs)}",
    ]
    for chance in (*map(str, CHANCES), UNRELATED):
        cells = []
        for of in pairs.values():
            run = of["runs"][chance]
            without = run["tokens_per_second_without"]
            cells += [
                f"{run['tokens_per_second_first'] / without:.2f}",
                f"{run['tokens_per_second'] / without:.2f}",
                f"{run['expected_ratio']:.2f} ({run['expected_drafted']})",
            ]
        lines.append(f"| {chance} | {' | '.join(cells)} |")
    bounds = " | ".join(f"{of['pays_from']} | |" for of in pairs.values())
    lines.append(f"| pays from | {bounds}")
    return "\n".join(lines)


def main() -> None:
    of_machine = machine(len(os.sched_getaffinity(0)))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("build/drafting"), help="for the exports")
    default = HERE / "results" / f"drafting-{of_machine['date']}.json"
    parser.add_argument("--out", type=Path, default=default, help="the JSON file")
    parser.add_argument(
        "--only", nargs="*", default=PAIRS, help="what is drafted for: size:precision"
    )
    parser.add_argument("--draft", default=DRAFTING, help="what drafts")
    parser.add_argument("--new-tokens", type=int, default=40)
    options = parser.parse_args()
    for name in (*options.only, options.draft):
        if name.split(":")[0] not in SIZES:
            parser.error(f"{name}: sizes are {', '.join(SIZES)}")
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    results: dict[str, Any] = {"machine": of_machine, "draft": options.draft, "pairs": {}}

    def write() -> None:
        draft = options.out.with_suffix(".new")
        draft.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        draft.replace(options.out)

    small = load(options.draft, work)
    for name in options.only:
        results["pairs"][name] = measure(name, small, work, options.new_tokens)
        shutil.rmtree(work / name.replace(":", "-"))
        write()
    small.close()
    results["agreement"] = twins(work, options.draft.split(":")[0], options.new_tokens)
    write()
    shutil.rmtree(work)
    print(table(results["pairs"]))
    print(json.dumps(results["agreement"], indent=1))


if __name__ == "__main__":
    main()
