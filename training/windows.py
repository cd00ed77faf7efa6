"""Training windows, cut from arrays of packed tokens."""

import numpy as np
import torch
from rearranged import Rearranged
from torch import Tensor

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

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
    """Batches of windows from cut functions, from short ones alone, and from whole modules.

    The share `infill` of them is rearranged for infilling, which needs the tokenizer.
    """

    def __init__(
        self,
        functions: np.ndarray,
        short: np.ndarray,
        modules: np.ndarray,
        seed: int,
        infill: float = 0.0,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.infill = infill
        self.rearranged = Rearranged(tokenizer, self.random) if tokenizer else None
        if infill and self.rearranged is None:
            raise ValueError("windows are rearranged with a tokenizer, and there is none")
        self.sources = (
            Windows(functions, 0.7, self.random),
            Windows(short, 1.0, self.random),
            Windows(modules, 0.3, self.random),
        )

    def batch(self, rows: int, length: int, share: float, short: bool) -> tuple[Tensor, Tensor]:
        """Return tokens, int64, and how much each weighs when it is predicted, float32.

        Both are [rows, length]; `share` of the rows, on average, are of functions.
        """
        functions, short_functions, modules = self.sources
        functions = short_functions if short else functions
        picked, weights = np.empty((rows, length), np.int64), np.ones((rows, length), np.float32)
        for row in range(rows):
            picked[row] = (functions if self.random.random() < share else modules).cut(length)
            if self.rearranged and self.random.random() < self.infill:
                picked[row], weights[row] = self.rearranged.window(picked[row])
        return torch.from_numpy(picked), torch.from_numpy(weights)

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
