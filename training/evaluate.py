"""Measure a packaged model: bits per byte on the held-out modules, and how often completions parse.

Reads the folder with transformers, so it measures the files that ship. Prompts are the headers of
functions in the held-out modules, plus a few that a user would type first.
"""

import argparse
import ast
import math
import re
import textwrap
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizer import read_documents
from transformers import CodeGenForCausalLM, CodeGenTokenizerFast

TRUNCATION = re.compile("\nclass|\ndef|\n#|\n@|\nprint|\nif")  # the package's default
MAX_NEW_TOKENS = 128
DROPPED_LINES = 11  # a call or a docstring that the last token cut may have begun so far back
TYPED = (
    "def hello_world():",
    "def add(a, b):",
    "def is_even(n):",
    "class Stack:\n    def __init__(self):",
    "import os\n\ndef list_files(path):",
    "def read_json(path):",
    "def fibonacci(n):",
    "def reverse_string(s):",
)


@torch.no_grad()
def token_losses(model: CodeGenForCausalLM, tokens: np.ndarray, length: int) -> np.ndarray:
    """Return nats of each token in consecutive windows of `tokens`: float32 [windows, length]."""
    count = (len(tokens) - 1) // length
    out = np.empty((count, length), np.float32)
    for n in range(count):
        window = tokens[n * length : (n + 1) * length + 1].astype(np.int64)
        ids = torch.from_numpy(window)[None]
        logits = model(ids[:, :-1]).logits[0]
        out[n] = F.cross_entropy(logits, ids[0, 1:], reduction="none").numpy()
    return out


def header_of(text: str) -> str | None:
    """Return a function's text up to the colon before its body; None if it is no prompt to try.

    Private functions and what takes `self` or `cls` are left out, and so is a header followed by a
    comment or by its body on the same line.
    """
    node = ast.parse(text).body[0]
    if not isinstance(node, ast.FunctionDef) or text.startswith("def _"):
        return None
    if node.args.args and node.args.args[0].arg in ("self", "cls"):
        return None
    first = node.body[0].lineno
    header = "\n".join(text.split("\n")[: first - 1]).rstrip()
    # A comment between header and body would be part of the prompt.
    return header if header.endswith(":") and "#" not in header else None


def headers(valid: Path, count: int) -> list[str]:
    """Return `count` headers of held-out functions and, once these are used up, of methods."""
    functions, methods = [], []
    for document in read_documents(valid):
        if document["kind"] != "functions" or not document["text"].startswith("def "):
            continue
        text = document["text"]
        header = header_of(text)
        if header is not None:
            functions.append(header)
        elif re.match(r"def [a-z]\w*\(self[^\n]*\):\n", text):
            methods.append(text.split("\n", 1)[0])
    return list(dict.fromkeys(functions + methods))[:count]


@torch.no_grad()
def complete(
    model: CodeGenForCausalLM, tokenizer: CodeGenTokenizerFast, prompt: str
) -> tuple[str, bool]:
    """Return the completion, truncated, and whether it was decided before the tokens ran out."""
    ids = tokenizer(prompt, return_tensors="pt")
    end = tokenizer.eos_token_id
    out = model.generate(
        **ids, do_sample=True, top_k=5, temperature=0.6, repetition_penalty=1.1,
        max_new_tokens=MAX_NEW_TOKENS, pad_token_id=end,
    )[0, ids["input_ids"].shape[1] :]  # fmt: skip
    text = tokenizer.decode(out, skip_special_tokens=True)
    match = TRUNCATION.search(text)
    decided = match is not None or end in out
    return (text[: match.start()] if match else text).rstrip(), decided


def parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


def parses_but_for_its_end(prompt: str, completion: str) -> bool:
    """Whether `prompt + completion` parses after dropping up to DROPPED_LINES of its last lines.

    A lenient count, to be read beside the strict one: it forgives an error in those lines as well.
    """
    lines = completion.split("\n")
    return any(
        completion.strip() and parses(prompt + "\n".join(lines[:keep]))
        for keep in range(len(lines), max(1, len(lines) - DROPPED_LINES - 1), -1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="the packaged folder")
    parser.add_argument("corpus", type=Path, help="folder of corpus.py")
    parser.add_argument("data", type=Path, help="folder of tokenizer.py")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    model = CodeGenForCausalLM.from_pretrained(options.model, torch_dtype=torch.float32).eval()
    tokenizer = CodeGenTokenizerFast.from_pretrained(options.model)
    tokens = np.fromfile(options.data / "valid.bin", np.uint16)
    modules = (d for d in read_documents(options.corpus / "valid.jsonl") if d["kind"] == "module")
    bytes_a_token = sum(len(d["text"].encode("utf-8")) for d in modules) / len(tokens)
    for length in (512, 1024):
        losses = token_losses(model, tokens, length)
        bits = losses.mean() / math.log(2) / bytes_a_token
        print(f"context {length}: {losses.mean():.4f} nats a token, {bits:.4f} bits a byte")
    quarters = losses.reshape(len(losses), 4, -1).mean(axis=(0, 2))
    print("nats a token at positions 0-255, 256-511, 512-767, 768-1023:", quarters.round(3))

    torch.manual_seed(options.seed)
    decided = cut = decided_parse = cut_parse = cut_shortened = 0
    prompts = headers(options.corpus / "valid.jsonl", options.prompts)
    for prompt in prompts:
        completion, is_decided = complete(model, tokenizer, prompt)
        good = bool(completion.strip()) and parses(prompt + completion)
        if is_decided:
            decided, decided_parse = decided + 1, decided_parse + good
        else:
            cut, cut_parse = cut + 1, cut_parse + good
            cut_shortened += parses_but_for_its_end(prompt, completion)
    methods = sum("(self" in prompt for prompt in prompts)
    print(f"{len(prompts)} held-out headers ({methods} of methods), seed {options.seed}:")
    print(f"  parse as they are: {decided_parse + cut_parse} of {len(prompts)}")
    print(f"  decided within {MAX_NEW_TOKENS} tokens: {decided}, of which {decided_parse} parse")
    print(f"  out of tokens: {cut}, of which {cut_parse} parse as they are, and {cut_shortened}")
    print(f"  once up to {DROPPED_LINES} last lines are dropped")
    for prompt in TYPED[: options.samples]:
        completion, is_decided = complete(model, tokenizer, prompt)
        good = bool(completion.strip()) and parses(prompt + completion)
        print(f"--- decided: {is_decided}, parses: {good}")
        print(textwrap.indent(prompt + completion, "    "))


if __name__ == "__main__":
    main()
