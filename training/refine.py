"""Refine a trained model by what the parser says of its completions.

Reinforcement learning with a reward that can be checked. Round by round, the package completes
headers of training files by its own defaults; a completion is rewarded when it comes to an end and
its function parses and is more than a docstring, `pass` or a raise. It also fills lines in that
were taken out of training files: rewarded is what comes to an end, is code and lets the file parse.
The policy gradient (REINFORCE, the mean reward of a round's headers or lines as baseline) makes
what was rewarded likelier, and the rest less likely. Every step also learns windows of the corpus,
ordinary and rearranged for infilling, so that the model keeps what it knows.

Held-out packages take no part. Writes a checkpoint that package.py reads, and a log beside it; goes
on from the last round in its folder, unless that was of another training checkpoint.
"""

import argparse
import ast
import csv
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from completions import Header, has_body, headers_in, parses
from cut import is_stub
from holes import Hole, lines_of_code, without_line
from model import CodeGen, Shape
from optimizer import Optimizer
from package import write
from tokenizer import read_documents
from torch import Tensor
from train import save, share_of
from windows import Mixture

from paddlenlp_codegen_task import CodeGenerator, Infill
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.model.infilling import Infilling
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

LENGTHS = (192, 384)  # tokens of a prompt and its completion; rows of one step have one length
DEFAULTS = GenerationConfig()
MAX_PROMPT = LENGTHS[-1] - DEFAULTS.max_length  # tokens
BARE = 0.4  # share of the prompts that have no docstring
ROW_TOKENS = 3072  # of the rows of a step, prompts and padding included
COMPLETION_TOKENS = 400  # of these, about: what the policy's loss is a mean over
WINDOWS, CONTEXT, FUNCTIONS = 8, 256, 0.6  # windows of a step; share of functions
FINAL_RATE = 0.1  # share of the learning rate in the last round


@dataclass(frozen=True)
class Sample:
    ids: list[int]  # prompt and completion
    prompt: int  # tokens of the prompt
    reward: float


def without_docstring(header: Header) -> Header:
    """The header as a user types it: `def f(x):` alone."""
    node = ast.parse(header.prompt).body[0]
    return Header("\n".join(header.prompt.split("\n")[: node.body[0].lineno - 1]), header.body)


def prompts_of(modules: list[str], chance: random.Random) -> list[str]:
    """The headers of the training files, in random order."""
    found = {header.prompt: header for text in modules for _, header in headers_in(text)}
    prompts = [
        (without_docstring(header) if chance.random() < BARE else header).prompt
        for header in found.values()
    ]
    prompts = sorted(set(prompts))
    chance.shuffle(prompts)
    return prompts


def reward_of(prompt: str, completion: str, ended: bool) -> float:
    """1 if the completion ends, and its function parses and does something; else 0."""
    if not ended or not has_body(prompt, completion):
        return 0.0
    first = ast.parse(prompt + completion).body[0]
    is_function = isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef)
    return float(not is_function or not is_stub(first))


def holes_of(modules: list[str], chance: random.Random) -> Iterator[Hole]:
    """One line of code of each training file that has any, in random order."""
    for text in chance.sample(modules, len(modules)):
        if lines := lines_of_code(text):
            yield without_line(text, chance.choice(lines))


def reward_of_line(hole: Hole, text: str, ended: bool) -> float:
    """1 if what fills a hole comes to an end, is code, and the file parses with it; else 0.

    What may stand in any place says nothing of this one.
    """
    code = text.strip()
    if not ended or code in ("", "pass", "...") or code[0] in "#'\"":
        return 0.0
    return float(parses(hole.filled(text)))


def near(hole: Hole, tokenizer: Tokenizer, infilling: Infilling) -> Infill:
    """What stands next to a hole, as much as a prompt may have, and some room for seams."""
    parts = (tokenizer.encode(text, allow_special=False) for text in (hole.prefix, hole.suffix))
    before, after = infilling.cut(*parts, MAX_PROMPT - 8)
    return Infill(tokenizer.decode(before), tokenizer.decode(after))


def play(
    folder: Path, prompts: list[str], holes: list[Hole], seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Complete every prompt and fill every hole once, by the package's defaults; judge both."""
    with (
        tempfile.TemporaryDirectory() as home,
        CodeGenerator.from_pretrained(folder, home_path=home, batch_size=32) as generator,
    ):
        tokenizer = generator.tokenizer
        infilling = Infilling.of(tokenizer)
        assert infilling is not None
        prompt_ids = {text: tokenizer.encode(text) for text in prompts}
        headers = [text for text in prompts if len(prompt_ids[text]) <= MAX_PROMPT]
        gaps = [(hole, near(hole, tokenizer, infilling)) for hole in holes]
        wanted = [*headers, *(gap for _, gap in gaps)]
        results = iter(generator.generate(wanted, seed=seed, progress=False))
    completed, filled = [], []
    for text in headers:
        [one] = next(results)
        reward = reward_of(text, one.text, one.finish_reason != "length")
        ids = prompt_ids[text]
        completed.append(Sample([*ids, *one.token_ids], len(ids), reward))
    for hole, gap in gaps:
        [one] = next(results)
        parts = (tokenizer.encode(text, allow_special=False) for text in (gap.prefix, gap.suffix))
        if ids := infilling.prompt(*parts, MAX_PROMPT):
            ended = one.finish_reason == "eos"
            reward = reward_of_line(hole, one.text, ended)
            end = [infilling.end] if ended else []  # which is not among the tokens of a text
            filled.append(Sample([*ids, *one.token_ids, *end], len(ids), reward))
    return completed, filled


def weighted(samples: list[Sample], chance: random.Random) -> list[tuple[Sample, float]]:
    """Pair samples with their weights: those without reward, and as many of the others.

    A weight is the reward less the mean reward; what stands for others left out counts for them.
    """
    mean = sum(sample.reward for sample in samples) / max(len(samples), 1)
    bad = [sample for sample in samples if sample.reward == 0]
    good = [sample for sample in samples if sample.reward > 0]
    kept = chance.sample(good, min(len(good), len(bad)))
    pairs = [(sample, -mean) for sample in bad]
    return pairs + [(sample, (1 - mean) * len(good) / len(kept)) for sample in kept]


def batches(
    pairs: list[tuple[Sample, float]], chance: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield int64 ids [rows, length + 1], padded, and each predicted token's weight [rows, length].

    In random order. A batch that is not full has rows without weight.
    """
    groups: dict[int, list[tuple[Sample, float]]] = {length: [] for length in LENGTHS}
    for pair in chance.sample(pairs, len(pairs)):
        groups[min(n for n in LENGTHS if len(pair[0].ids) <= n + 1)].append(pair)
    parts = [
        (length, group[at : at + ROW_TOKENS // length])
        for length, group in groups.items()
        for at in range(0, len(group), ROW_TOKENS // length)
    ]
    for length, part in chance.sample(parts, len(parts)):
        ids = np.zeros((ROW_TOKENS // length, length + 1), np.int64)
        weights = np.zeros((len(ids), length), np.float32)
        for row, (sample, weight) in enumerate(part):
            ids[row, : len(sample.ids)] = sample.ids
            weights[row, sample.prompt - 1 : len(sample.ids) - 1] = weight
        yield torch.from_numpy(ids), torch.from_numpy(weights)


def surrogate(model: CodeGen, ids: Tensor, weights: Tensor) -> Tensor:
    """The loss whose gradient is the policy's: minus weighted log-probabilities of the tokens.

    At the temperature of sampling; its top_k and repetition penalty are left out.
    """
    logits = model(ids[:, :-1]).flatten(0, 1).float() / DEFAULTS.temperature
    losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / COMPLETION_TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of train.py")
    parser.add_argument("corpus", type=Path, help="folder of corpus.py")
    parser.add_argument("data", type=Path, help="folder of tokenizer.py")
    parser.add_argument("out", type=Path, help="folder for checkpoint.pt and log.csv")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=500, help="headers a round")
    parser.add_argument("--holes", type=int, default=500, help="lines a round")
    parser.add_argument("--rate", type=float, default=3e-4, help="of learning, in the first round")
    parser.add_argument(
        "--infill", type=share_of, default=0.5, metavar="SHARE",
        help="of the windows that are rearranged for infilling",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = options.out / "checkpoint.pt", options.out / "log.csv"
    state = torch.load(options.checkpoint, weights_only=True)
    trained, begun = state["step"], False
    if checkpoint.exists():
        earlier = torch.load(checkpoint, weights_only=True)
        begun = earlier["trained"] == trained  # else it refines a checkpoint that is out of date
        state = earlier if begun else state
    shape = Shape(**state["shape"])
    model = CodeGen(shape)
    optimizer = Optimizer(model, weight_decay=0.0)
    if begun:
        optimizer.load(state)
    else:
        optimizer.set_weights(state["weights"])
    optimizer.publish()
    plain, policy = model.loss, surrogate
    if options.compile:
        plain = torch.compile(plain, dynamic=False)
        policy = torch.compile(policy, dynamic=False)
    arrays = (
        np.fromfile(options.data / f"{name}.bin", np.uint16)
        for name in ("functions", "short", "modules")
    )
    first = state.get("round", 0)
    tokenizer = Tokenizer.from_folder(options.data)
    mixture = Mixture(*arrays, options.seed + 1 + first, options.infill, tokenizer)
    documents = read_documents(options.corpus / "train.jsonl")
    modules = [document["text"] for document in documents if document["kind"] == "module"]
    prompts = prompts_of(modules, random.Random(options.seed))
    counts = {name: state[name] for name in ("elapsed", "step", "tokens")}

    with open(log, "a" if begun else "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        if not begun:
            names = ("round", "seconds", "reward", "tokens_a_completion", "reward_of_lines")
            out.writerow((*names, "steps", "loss"))
        for number in range(first, options.rounds):
            start, chance = time.monotonic(), random.Random(f"{options.seed} {number}")
            at = number * options.prompts
            some = [prompts[(at + n) % len(prompts)] for n in range(options.prompts)]
            lines = list(islice(holes_of(modules, chance), options.holes))
            with tempfile.TemporaryDirectory() as folder:
                weights = {name: master.detach() for name, master in optimizer.masters.items()}
                write(Path(folder), {**state, "weights": weights}, options.data)
                samples, filled = play(Path(folder), some, lines, options.seed + number)
            rate = options.rate * (1 - (1 - FINAL_RATE) * number / max(options.rounds - 1, 1))
            losses = []
            pairs = weighted(samples, chance) + weighted(filled, chance)
            for ids, weight in batches(pairs, chance):
                loss = plain(*mixture.batch(WINDOWS, CONTEXT + 1, FUNCTIONS, True))
                (loss + policy(model, ids, weight)).backward()
                optimizer.step(rate)
                losses.append(loss.item())
            counts["elapsed"] += time.monotonic() - start
            counts["step"] += len(losses)
            counts["tokens"] += len(losses) * WINDOWS * CONTEXT
            size = np.mean([len(sample.ids) - sample.prompt for sample in samples])
            rewards = [np.mean([one.reward for one in part]) for part in (samples, filled)]
            row = (number + 1, f"{counts['elapsed']:.0f}", f"{rewards[0]:.4f}", f"{size:.1f}")
            row = (*row, f"{rewards[1]:.4f}")
            out.writerow((*row, len(losses), f"{np.mean(losses):.4f}"))
            file.flush()
            played = {"round": number + 1, "trained": trained, "shape": state["shape"], **counts}
            save(checkpoint, {**played, **optimizer.state()})


if __name__ == "__main__":
    main()
