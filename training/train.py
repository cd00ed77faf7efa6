"""Train the model, for a given time of really running.

The learning rate warms up, stays, and comes down over the last part of the time ("warmup, stable,
decay"), so the end may be moved while it stays: write the new number of minutes to `minutes.txt`
in the run's folder, or stop the run (SIGTERM makes a checkpoint) and start it again with another
`--minutes`. It goes on from the last checkpoint in its folder, with the optimizer's state; where
there is none, `--start` goes on from a packaged model, whose file tells its steps, tokens and
seconds. A process that is held (SIGSTOP) uses up none of its time.
"""

import argparse
import csv
import os
import signal
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from model import CodeGen, Shape, from_hugging_face
from optimizer import Optimizer
from safetensors import safe_open
from safetensors.torch import load_file
from windows import Mixture, validation_batches

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

VALIDATION_CONTEXT = 512
FINAL_RATE = 0.02  # share of the peak learning rate at the end


class Clock:
    """Adds up the time of steps, taking one that was held for an ordinary one."""

    def __init__(self, elapsed: float) -> None:
        self.elapsed = elapsed
        self.usual: deque[float] = deque(maxlen=41)
        self.mark = time.monotonic()

    def start(self) -> None:
        self.mark = time.monotonic()

    def stop(self) -> None:
        took = time.monotonic() - self.mark
        if len(self.usual) > 4:
            median = sorted(self.usual)[len(self.usual) // 2]
            took = took if took < 10 * median + 1 else median
        self.usual.append(took)
        self.elapsed += took


def planned(folder: Path, minutes: float) -> float:
    """Seconds of the whole run: as `minutes.txt` in its folder says, else as it was started."""
    try:
        return 60 * float((folder / "minutes.txt").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return 60 * minutes


def save(file: Path, state: dict[str, object]) -> None:
    """Publish by rename: a killed run leaves the previous checkpoint or this one, whole."""
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


# (context, share of the windows that are functions) of the steps, in turn. Functions are short, and
# attention over 256 tokens costs a quarter of that over 1,024. While the rate decays, they are
# short functions: what the model has learnt last, it does most, and that is to come to an end.
STEPS = ((256, 0.8), (512, 0.5), (256, 0.8), (1024, 0.2))


def packaged(folder: Path, shape: Shape) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The weights of a folder of package.py, and what training they have behind them."""
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    if "tokens" not in metadata:
        raise ValueError(f"--start: {file} does not say how it was trained: not of package.py")
    behind = {name: float(metadata[name]) for name in ("step", "tokens", "elapsed")}
    return from_hugging_face(load_file(file), shape), behind


def rate_at(share: float, warm: float, peak: float, decay: float) -> float:
    """Learning rate at `share` of the time and `warm` of the warmup: up, flat, straight down."""
    left = min(max(1 - share, 0.0) / decay, 1.0)
    return peak * (FINAL_RATE + (1 - FINAL_RATE) * left) * min(max(warm, 0.01), 1.0)


def faster_dtype() -> torch.dtype:
    """bfloat16 where the machine has instructions for it; elsewhere it is far slower than float32.

    Weights and optimizer are float32 in both cases (see optimizer.py).
    """
    best = {}
    for dtype in (torch.bfloat16, torch.float32):
        left, right = torch.ones(2048, 256, dtype=dtype), torch.ones(256, 1792, dtype=dtype)
        times = []
        for _ in range(6):
            start = time.monotonic()
            left @ right
            times.append(time.monotonic() - start)
        best[dtype] = min(times)
    return min(best, key=best.__getitem__)


def share_of(text: str) -> float:
    """A number from 0 to 1 of the command line."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of tokenizer.py")
    parser.add_argument("run", type=Path, help="folder for checkpoint.pt and log.csv")
    parser.add_argument("--start", type=Path, help="a packaged model to go on from")
    parser.add_argument("--minutes", type=float, default=90, help="of running, in all")
    parser.add_argument("--steps", type=int, default=0, help="stop after so many (0: never)")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
        help="of the forward and backward pass; auto: the faster one here",
    )  # fmt: skip
    parser.add_argument("--tokens", type=int, default=4096, help="a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=60, help="steps")
    parser.add_argument("--decay", type=float, default=0.3, help="share of the time")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument(
        "--infill", type=share_of, default=0.5, metavar="SHARE",
        help="of the windows that are rearranged for infilling",
    )  # fmt: skip
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--validate-every", type=float, default=240.0, help="seconds")
    parser.add_argument("--windows", type=int, default=32, help="of a validation")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    options.run.mkdir(parents=True, exist_ok=True)
    checkpoint, log = options.run / "checkpoint.pt", options.run / "log.csv"
    arrays = {
        name: np.fromfile(options.data / f"{name}.bin", np.uint16)
        for name in ("functions", "short", "modules", "valid")
    }
    mixture = Mixture(
        *(arrays[name] for name in ("functions", "short", "modules")), options.seed,
        options.infill, Tokenizer.from_folder(options.data),
    )  # fmt: skip
    validation = validation_batches(arrays["valid"], VALIDATION_CONTEXT, options.windows)

    shape = Shape()
    dtype = faster_dtype() if options.dtype == "auto" else getattr(torch, options.dtype)
    model = CodeGen(shape).to(dtype)
    optimizer = Optimizer(model, options.weight_decay)
    elapsed, step, tokens, first = 0.0, 0, 0, 0
    if options.start and not checkpoint.exists():
        weights, behind = packaged(options.start, shape)
        optimizer.set_weights(weights)
        elapsed, step, tokens = behind["elapsed"], int(behind["step"]), int(behind["tokens"])
        first = step
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        optimizer.load(state)
        mixture.load(state["mixture"])
        elapsed, step, tokens = state["elapsed"], state["step"], state["tokens"]
        first = state["first"]
    optimizer.publish()
    loss_of = torch.compile(model.loss, dynamic=False) if options.compile else model.loss

    for context in {context for context, _ in STEPS} if options.compile else ():
        empty = torch.zeros(options.tokens // context, context + 1, dtype=torch.long)
        loss_of(empty, torch.ones(empty.shape)).backward()  # compile before the clock starts
    model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def validate() -> float:
        return float(np.mean([model.loss(rows).item() for rows in validation.split(4)]))

    def keep() -> None:
        counts = {"elapsed": clock.elapsed, "step": step, "tokens": tokens, "first": first}
        state = {"shape": asdict(shape), "mixture": mixture.state(), **counts, **optimizer.state()}
        save(checkpoint, state)

    asked_to_end = []
    signal.signal(signal.SIGTERM, lambda *_: asked_to_end.append(True))
    budget, clock = planned(options.run, options.minutes), Clock(elapsed)
    marked, marked_tokens, validated, losses = elapsed, tokens, elapsed, []
    with open(log, "a", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        if file.tell() == 0:
            out.writerow(
                ("step", "seconds", "tokens", "rate", "norm", "loss", "tokens_per_s", "valid")
            )
        while clock.elapsed < budget and not asked_to_end:
            if options.steps and step >= options.steps:
                break
            clock.start()
            context, share = STEPS[step % len(STEPS)]
            rows = options.tokens // context
            along = clock.elapsed / budget
            short = along > 1 - options.decay
            rate = rate_at(along, (step + 1 - first) / options.warmup, options.rate, options.decay)
            loss = loss_of(*mixture.batch(rows, context + 1, share, short))
            loss.backward()
            norm = optimizer.step(rate)
            losses.append(loss.item())
            step, tokens = step + 1, tokens + rows * context
            clock.stop()
            due = clock.elapsed - validated > options.validate_every or clock.elapsed >= budget
            if due or step % 20 == 0:
                speed = (tokens - marked_tokens) / (clock.elapsed - marked)
                valid = f"{validate():.4f}" if due else ""
                row = (step, f"{clock.elapsed:.1f}", tokens, f"{rate:.2e}", f"{norm:.2f}")
                out.writerow((*row, f"{np.mean(losses):.4f}", f"{speed:.0f}", valid))
                file.flush()
                if due:
                    validated = clock.elapsed
                    keep()
                marked, marked_tokens, losses = clock.elapsed, tokens, []
                budget = planned(options.run, options.minutes)
    keep()
    print(f"{step} steps, {tokens} tokens, {clock.elapsed:.0f} s; validation {validate():.4f}")


if __name__ == "__main__":
    main()
