"""Train the model on train.bin, for a given time on the clock.

The schedule is a function of the share of the time that has passed, not of steps: on a machine
whose cores are shared nobody knows the number of steps, and the learning rate still comes down to
its end. Killed, it resumes from the last checkpoint in its folder, at the share it had reached.
"""

import argparse
import csv
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from model import CodeGen, Shape
from torch import Tensor, nn

END_OF_TEXT_ID = 8000  # the id after tokenizer.py's BPE_ENTRIES
FINAL_RATE = 0.1  # share of the peak learning rate at the end
CLIP = 1.0  # largest norm of the gradient


class Windows:
    """Cuts an array of packed tokens into training windows.

    Half of the windows are moved forward to the beginning of a document: a prompt stands at
    position 0 with nothing before it, which packed text alone would hardly ever show.
    """

    def __init__(self, tokens: np.ndarray, seed: int) -> None:
        self.tokens = tokens
        self.starts = np.concatenate(([0], np.flatnonzero(tokens == END_OF_TEXT_ID) + 1))
        self.random = np.random.default_rng(seed)
        self.queue: list[int] = []  # in units of 512 tokens, an epoch in random order

    def next_start(self, length: int) -> int:
        if not self.queue:
            last = len(self.tokens) // 512
            self.queue = (512 * self.random.permutation(last)).tolist()
        start = self.queue.pop() + int(self.random.integers(512))
        if self.random.random() < 0.5:
            following = int(np.searchsorted(self.starts, start))
            if following < len(self.starts) and self.starts[following] < start + 512:
                start = int(self.starts[following])
        return min(start, len(self.tokens) - length)

    def batch(self, rows: int, length: int) -> Tensor:
        """Return int64 [rows, length]."""
        starts = [self.next_start(length) for _ in range(rows)]
        picked = np.stack([self.tokens[start : start + length] for start in starts])
        return torch.from_numpy(picked.astype(np.int64))


class MixedPrecision:
    """AdamW on float32 master weights, for a model that computes in `model`'s own dtype."""

    def __init__(self, model: nn.Module, rate: float, weight_decay: float) -> None:
        self.model = model
        self.masters = [p.detach().float().clone() for p in model.parameters()]
        groups = [
            {"params": [m for m in self.masters if m.dim() == 2], "weight_decay": weight_decay},
            {"params": [m for m in self.masters if m.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)

    def step(self, rate: float) -> float:
        """Apply the model's gradients and clear them; return their norm before clipping."""
        for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(self.masters, CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.publish()
        return float(norm)

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the masters into the model."""
        for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
            parameter.copy_(master)

    def master_state(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.model.named_parameters()]
        return dict(zip(names, self.masters, strict=True))


def rate_at(share: float, peak: float, warmup: float) -> float:
    """Learning rate at `share` in [0, 1] of the time: linear warmup, then cosine to FINAL_RATE."""
    if share < warmup:
        return peak * max(share / warmup, 0.01)
    along = min((share - warmup) / (1 - warmup), 1.0)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * along)))


def validation_batches(tokens: np.ndarray, length: int, count: int) -> Tensor:
    """Return `count` windows spread evenly over `tokens`: int64 [count, length + 1]."""
    starts = np.linspace(0, len(tokens) - length - 1, count).astype(int)
    picked = np.stack([tokens[start : start + length + 1] for start in starts])
    return torch.from_numpy(picked.astype(np.int64))


def save(file: Path, state: dict[str, object]) -> None:
    """Publish by rename: a killed run leaves the previous checkpoint or this one, whole."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def shapes_of_step(context: int, rows: int, long_every: int) -> Iterator[tuple[int, int]]:
    """Yield (rows, context) a step; each `long_every`-th step has half the rows, twice as long."""
    step = 0
    while True:
        step += 1
        yield (rows // 2, 2 * context) if long_every and step % long_every == 0 else (rows, context)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with train.bin and valid.bin")
    parser.add_argument("run", type=Path, help="folder for checkpoint.pt and log.csv")
    parser.add_argument("--start", type=Path, help="checkpoint.pt to begin from, with a new clock")
    parser.add_argument("--minutes", type=float, default=43.5, help="of training, on the clock")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many (0: never)")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--long-every", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1.6e-3)
    parser.add_argument("--warmup", type=float, default=0.02, help="share of the time")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--validate-every", type=float, default=300.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint, log = options.run / "checkpoint.pt", options.run / "log.csv"
    windows = Windows(np.fromfile(options.data / "train.bin", np.uint16), options.seed)
    held_out = np.fromfile(options.data / "valid.bin", np.uint16)
    validation = validation_batches(held_out, options.context, 32)

    shape = Shape()
    model = CodeGen(shape).to(getattr(torch, options.dtype))
    training = MixedPrecision(model, options.rate, options.weight_decay)
    elapsed, step, tokens = 0.0, 0, 0
    source = checkpoint if checkpoint.exists() else options.start
    if source is not None:
        state = torch.load(source, weights_only=False)
        for master, name in zip(training.masters, state["weights"], strict=True):
            master.copy_(state["weights"][name])
        training.optimizer.load_state_dict(state["optimizer"])
        windows.random.bit_generator.state, windows.queue = state["random"], state["queue"]
        step, tokens = state["step"], state["tokens"]
        elapsed = state["elapsed"] if source == checkpoint else 0.0
    training.publish()
    loss_of = torch.compile(model.loss, dynamic=False) if options.compile else model.loss

    shapes = shapes_of_step(options.context, options.rows, options.long_every)
    budget = 60 * options.minutes
    for rows, context in {next(shapes) for _ in range(max(options.long_every, 1))}:
        loss_of(torch.zeros(rows, context + 1, dtype=torch.long)).backward()  # compile unclocked
    model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def validate() -> float:
        return float(np.mean([model.loss(rows).item() for rows in validation.split(4)]))

    def keep() -> None:
        state = {
            "shape": asdict(shape), "weights": training.master_state(),
            "optimizer": training.optimizer.state_dict(), "queue": windows.queue,
            "random": windows.random.bit_generator.state,
            "elapsed": elapsed, "step": step, "tokens": tokens,
        }  # fmt: skip
        save(checkpoint, state)

    begun = time.monotonic() - elapsed
    marked, marked_tokens, validated, losses = elapsed, tokens, elapsed, []
    with open(log, "a", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        if step == 0:
            out.writerow(
                ("step", "seconds", "tokens", "rate", "norm", "loss", "tokens_per_s", "valid")
            )
        while elapsed < budget and not (options.steps and step >= options.steps):
            rows, context = next(shapes)
            loss = loss_of(windows.batch(rows, context + 1))
            loss.backward()
            rate = rate_at(elapsed / budget, options.rate, options.warmup)
            norm = training.step(rate)
            losses.append(loss.item())
            step, tokens, elapsed = step + 1, tokens + rows * context, time.monotonic() - begun
            due = elapsed - validated > options.validate_every or elapsed >= budget
            if due or step % 20 == 0:
                speed = (tokens - marked_tokens) / (elapsed - marked)
                valid = f"{validate():.4f}" if due else ""
                row = (step, f"{elapsed:.1f}", tokens, f"{rate:.2e}", f"{norm:.2f}")
                out.writerow((*row, f"{np.mean(losses):.4f}", f"{speed:.0f}", valid))
                file.flush()
                if due:
                    validated = time.monotonic() - begun
                    keep()
                elapsed = time.monotonic() - begun
                marked, marked_tokens, losses = elapsed, tokens, []
    keep()
    print(f"{step} steps, {tokens} tokens, {elapsed:.0f} s; validation loss {validate():.4f}")


if __name__ == "__main__":
    main()
