"""What a runtime does: run one forward step over slots of a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.kv_cache import KVCache

# Tokens of one prefill step. Longer prompts run in several: bounds the [heads, tokens, capacity]
# attention scores.
PREFILL_CHUNK = 256

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
# Keys and values of some tokens of one slot: [n_head, tokens, head_dim] for each buffer.
Block = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class StepOutput:
    """What one step hands back for each of its M rows.

    Attributes:
        candidates: [M, C] float32, the C largest logits in descending order.
        candidate_ids: [M, C] int64, their tokens.
        logits: fetches all logits, [M, vocab_size] float32; only until the next step.
    """

    candidates: Floats
    candidate_ids: Ids
    logits: Callable[[], Floats]

    def take(self, rows: Sequence[int]) -> StepOutput:
        """The same for some of the rows, in their order."""
        chosen = list(rows)
        return StepOutput(
            self.candidates[chosen], self.candidate_ids[chosen], lambda: self.logits()[chosen]
        )


class Runtime(Protocol):
    """Runs a model's forward step. Sequences in use occupy slots 0, 1, ... without gaps.

    Attributes:
        config: sizes of the model.
        cache: how much room the buffers have, and how much of it is used.
        inputs: name, shape (None where it varies) and dtype of the graph's inputs.
    """

    config: CodeGenConfig
    cache: KVCache
    inputs: list[tuple[str, list[int | None], str]]

    def reset(self, slots: int) -> None:
        """Forget all sequences; `slots` new ones are expected to run at once."""

    def forward(
        self, slot: int, token_ids: Sequence[Sequence[int]], every: bool = False
    ) -> StepOutput:
        """Append tokens to consecutive slots and return the last token's logits of each.

        Args:
            slot: the first slot; row i goes to slot + i, at that slot's own length.
            token_ids: one or more new tokens for each row.
            every: return the logits of every token instead; then there is one row only.
        """

    def copy(self, source: int, target: int) -> None:
        """Copy the sequence in slot `source` to slot `target`, replacing what is there."""

    def read(self, slot: int, first: int, last: int) -> Block:
        """Copy the keys and values of tokens `first` to `last` - 1 of a slot to the host."""

    def write(self, slot: int, block: Block) -> None:
        """Start a sequence in a slot with keys and values that `read` has given from token 0 on."""

    def clear(self) -> None:
        """Free the buffers; new ones are allocated when they are needed."""

    def close(self) -> None:
        """Free the model and its buffers."""


def pack(
    cache: KVCache, slot: int, token_ids: Sequence[Sequence[int]], every: bool
) -> tuple[Ids, Ids, Ids]:
    """Lay out the new tokens of consecutive slots as a graph takes them.

    Returns:
        token ids [B, T], padded on the right; the slots' lengths [B] before them; and where the
        tokens whose logits are wanted are among the B * T, [B] or with `every` [T]. All int64.
    """
    if every and len(token_ids) != 1:
        raise ValueError(f"every token's logits are there for one row only, not {len(token_ids)}")
    longest = max(map(len, token_ids))
    padded = np.zeros((len(token_ids), longest), np.int64)
    for row, tokens in enumerate(token_ids):
        padded[row, : len(tokens)] = tokens
    lengths = np.array([cache.lengths[slot + row] for row in range(len(token_ids))], np.int64)
    if every:
        return padded, lengths, np.arange(longest)
    last = [row * longest + len(tokens) - 1 for row, tokens in enumerate(token_ids)]
    return padded, lengths, np.array(last, np.int64)


def prefill(runtime: Runtime, slot: int, prompts: Sequence[Sequence[int]]) -> StepOutput:
    """Start new sequences in consecutive slots; the output is that of each prompt's last token."""
    for row in range(len(prompts)):
        runtime.cache.lengths[slot + row] = 0
    return extend(runtime, slot, prompts)


def extend(runtime: Runtime, slot: int, token_ids: Sequence[Sequence[int]]) -> StepOutput:
    """Append tokens to sequences in consecutive slots; one row is run in chunks if it is long.

    Returns:
        The step output of each row's last token.
    """
    if len(token_ids) == 1:
        [tokens] = token_ids
        while len(tokens) > PREFILL_CHUNK:
            runtime.forward(slot, [tokens[:PREFILL_CHUNK]])
            tokens = tokens[PREFILL_CHUNK:]
        token_ids = [tokens]
    return runtime.forward(slot, token_ids)


def decode(runtime: Runtime, token_ids: Sequence[int]) -> StepOutput:
    """Append one token to each of the slots 0 to len(token_ids) - 1."""
    return runtime.forward(0, [[token_id] for token_id in token_ids])
