"""Training windows, cut from arrays of packed tokens."""

import numpy as np
import torch
from torch import Tensor

END_OF_TEXT_ID = 8000  # the id after tokenizer.py's BPE_ENTRIES
SLOT = 512  # tokens; an epoch is every slot of an array, in random order


class Windows:
    """Cuts one array of documents into windows.

    A share of the windows is moved forward to the beginning of a document: a prompt stands at
    position 0 with nothing before it, which packed text alone would hardly ever show.
    """

    def __init__(self, tokens: np.ndarray, at_start: float, random: np.random.Generator) -> None:
        self.tokens, self.at_start, self.random = tokens, at_start, random
        self.starts = np.concatenate(([0], np.flatnonzero(tokens == END_OF_TEXT_ID) + 1))
        self.queue: list[int] = []

    def cut(self, length: int) -> np.ndarray:
        if not self.queue:
            self.queue = (SLOT * self.random.permutation(len(self.tokens) // SLOT)).tolist()
        start = self.queue.pop() + int(self.random.integers(SLOT))
        if self.random.random() < self.at_start:
            following = int(np.searchsorted(self.starts, start))
            if following < len(self.starts) and self.starts[following] < start + SLOT:
                start = int(self.starts[following])
        start = min(start, len(self.tokens) - length)
        return self.tokens[start : start + length]


class Mixture:
    """Batches of windows from cut functions, from short ones alone, and from whole modules."""

    def __init__(
        self, functions: np.ndarray, short: np.ndarray, modules: np.ndarray, seed: int
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.sources = (
            Windows(functions, 0.7, self.random),
            Windows(short, 1.0, self.random),
            Windows(modules, 0.3, self.random),
        )

    def batch(self, rows: int, length: int, share: float, short: bool) -> Tensor:
        """Return int64 [rows, length]; `share` of the rows, on average, are of functions."""
        functions, short_functions, modules = self.sources
        functions = short_functions if short else functions
        picked = [
            (functions if self.random.random() < share else modules).cut(length)
            for _ in range(rows)
        ]
        return torch.from_numpy(np.stack(picked).astype(np.int64))

    def state(self) -> dict[str, object]:
        queues = [source.queue for source in self.sources]
        return {"random": self.random.bit_generator.state, "queues": queues}

    def load(self, state: dict[str, object]) -> None:
        self.random.bit_generator.state = state["random"]
        for source, queue in zip(self.sources, state["queues"], strict=True):
            source.queue = list(queue)


def validation_batches(tokens: np.ndarray, length: int, count: int) -> Tensor:
    """Return `count` windows spread evenly over `tokens`: int64 [count, length + 1]."""
    starts = np.linspace(0, len(tokens) - length - 1, count).astype(int)
    picked = np.stack([tokens[start : start + length + 1] for start in starts])
    return torch.from_numpy(picked.astype(np.int64))
