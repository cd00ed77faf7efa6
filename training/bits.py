"""Bits per byte of held-out files: of the model, of a 5-gram model and of xz."""

import lzma
import math

import numpy as np
import torch
import torch.nn.functional as F
from ngram import KneserNey
from transformers import CodeGenForCausalLM, CodeGenTokenizerFast

CONTEXT = 1024
STRIDE = 512  # after its first window, a file's tokens are predicted from 512 to 1,023 before them
BATCH = 4


def windows(count: int) -> list[tuple[int, int]]:
    """(first, scored) of the windows over `count` tokens: what counts begins at `scored`."""
    found, scored = [], 1
    while scored < count:
        first = max(0, scored - 1 - STRIDE) if scored > 1 else 0
        found.append((first, scored))
        scored = first + CONTEXT + 1
    return found


@torch.no_grad()
def model_bits(folder: str, files: list[str], weights: dict[str, torch.Tensor] | None) -> float:
    """Bits a byte of `files`, each on its own, by the packaged model; float32 arithmetic.

    `weights` replaces the packaged weights: those of the checkpoint, before rounding.
    """
    model = CodeGenForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    if weights is not None:
        model.load_state_dict(weights, strict=False)
    tokenizer = CodeGenTokenizerFast.from_pretrained(folder)
    end = tokenizer.eos_token_id
    pieces = []  # (tokens, how many of the last ones count)
    for text in files:
        ids = torch.tensor([end, *tokenizer.encode(text)])
        for first, scored in windows(len(ids)):
            piece = ids[first : first + CONTEXT + 1]
            pieces.append((piece, first + len(piece) - scored))
    pieces.sort(key=lambda one: len(one[0]))
    nats = 0.0
    for n in range(0, len(pieces), BATCH):
        batch = pieces[n : n + BATCH]
        longest = max(len(piece) for piece, _ in batch)
        ids = torch.stack(
            [F.pad(piece, (0, longest - len(piece)), value=end) for piece, _ in batch]
        )
        logits = model(ids[:, :-1]).logits
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for row, (piece, counted) in zip(losses, batch, strict=True):
            nats += row[len(piece) - 1 - counted : len(piece) - 1].sum().item()
    return nats / math.log(2) / size_of(files)


def ngram_bits(seen: np.ndarray, vocabulary: int, files: list[np.ndarray], size: int) -> float:
    """Bits a byte of `files` (tokens of each, its first one not predicted) of `size` bytes."""
    model = KneserNey(seen.astype(np.int64), vocabulary)
    probabilities = [model.probabilities(ids.astype(np.int64))[1:] for ids in files]
    return -sum(np.log2(part).sum() for part in probabilities) / size


def xz_bits(files: list[str]) -> float:
    """Bits a byte of `xz -9 FILE...`: each file compressed by itself."""
    return 8 * sum(len(lzma.compress(text.encode(), preset=9)) for text in files) / size_of(files)


def xz_archive_bits(files: list[str]) -> float:
    """The same for all files in one stream: each is predicted from all those before it."""
    return 8 * len(lzma.compress("".join(files).encode(), preset=9)) / size_of(files)


def size_of(files: list[str]) -> int:
    return sum(len(text.encode()) for text in files)
