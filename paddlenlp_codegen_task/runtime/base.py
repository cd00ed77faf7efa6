"""What a runtime does: run one forward step over slots of a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.kv_cache import KVCache

# Tokens of one prefill step. Longer prompts run in several: bounds the [heads, tokens, capacity]
# attention scores, and how long a prompt holds up those that run beside it.
PREFILL_CHUNK = 256
# On a GPU, where launching the kernels of fewer tokens takes longer than running them.
GPU_PREFILL_CHUNK = 1024

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class Interrupted(Exception):
    """A step was ended early. It has changed nothing, and may be made again."""


@dataclass(frozen=True)
class StepOutput:
    """What one step hands back for each of its M rows.

    Attributes:
        candidates: [M, C] float32, the C largest logits in descending order.
        candidate_ids: [M, C] int64, their tokens.
        logsumexp: [M] float32, log(sum(exp(logit))) over the vocabulary; NaN if a logit is.
        logits: fetches all logits, [M, vocab_size] float32; only until the next step.
    """

    candidates: Floats
    candidate_ids: Ids
    logsumexp: Floats
    logits: Callable[[], Floats]

    def take(self, rows: Sequence[int]) -> StepOutput:
        """The same for some of the rows, in their order."""
        chosen = list(rows)
        return StepOutput(
            self.candidates[chosen],
            self.candidate_ids[chosen],
            self.logsumexp[chosen],
            lambda: self.logits()[chosen],
        )

    def keep(self) -> StepOutput:
        """The same, and it outlives the next step."""
        logits = np.array(self.logits())
        return StepOutput(self.candidates, self.candidate_ids, self.logsumexp, lambda: logits)


class Runtime(Protocol):
    """Runs a model's forward step. Sequences in use occupy slots 0, 1, ... without gaps.

    Attributes:
        config: sizes of the model.
        cache: the keys and values of each slot.
        inputs: name, shape (None where it varies) and dtype of the graph's inputs.
        device_id: the GPU it runs on, None for the CPU.
        same_products: whether a token's keys and values are those of the same products, be it a
            prompt's or generated. Where not, only a prompt's may serve another prompt.
    """

    config: CodeGenConfig
    cache: KVCache
    inputs: list[tuple[str, list[int | None], str]]
    device_id: int | None
    same_products: bool

    def forward(
        self,
        slot: int,
        token_ids: Sequence[Sequence[int]],
        every: bool = False,
        generated: bool = False,
    ) -> StepOutput:
        """Append tokens to consecutive slots and return the last token's logits of each.

        Args:
            slot: the first slot; row i goes to slot + i, at that slot's own length.
            token_ids: one or more new tokens for each row.
            every: return the logits of every token instead; then there is one row only.
            generated: whether the tokens, or drafts of them, come from the model; else they are a
                prompt's. Not how many they are: a text must not depend on what runs beside it.
        """

    def interrupt(self) -> None:
        """Have the step that runs raise Interrupted as soon as it can; from any thread.

        A wish: it may come too late for that step, and end the next one or none.
        """

    def close(self) -> None:
        """Free the model and its buffers."""


def prefill_chunk(runtime: Runtime) -> int:
    """Most tokens of one prefill step of a runtime, padding included."""
    return PREFILL_CHUNK if runtime.device_id is None else GPU_PREFILL_CHUNK


def pack(
    cache: KVCache, slot: int, token_ids: Sequence[Sequence[int]], every: bool
) -> tuple[Ids, Ids, Ids]:
    """Lay out the new tokens of consecutive slots as a graph takes them, with room for them.

    Returns:
        token ids [B, T], padded on the right; the slots' lengths [B] before them; and where the
        tokens whose logits are wanted are among the B * T, [B] or with `every` [T]. All int64.
    """
    if every and len(token_ids) != 1:
        raise ValueError(f"every token's logits are there for one row only, not {len(token_ids)}")
    rows, longest = len(token_ids), max(map(len, token_ids))
    lengths = np.array([cache.length(slot + row) for row in range(rows)], np.int64)
    cache.reserve(slot + rows, int(lengths.max()) + longest)
    if longest == 1:
        return np.array(token_ids, np.int64), lengths, np.arange(rows)
    padded = np.zeros((rows, longest), np.int64)
    for row, tokens in enumerate(token_ids):
        padded[row, : len(tokens)] = tokens
    if every:
        return padded, lengths, np.arange(longest)
    last = [row * longest + len(tokens) - 1 for row, tokens in enumerate(token_ids)]
    return padded, lengths, np.array(last, np.int64)


def prefill(runtime: Runtime, slot: int, prompts: Sequence[Sequence[int]]) -> StepOutput:
    """Start new sequences in consecutive slots; the output is that of each prompt's last token."""
    for row in range(len(prompts)):
        runtime.cache.truncate(slot + row, 0)
    return extend(runtime, slot, prompts)


def extend(
    runtime: Runtime, slot: int, token_ids: Sequence[Sequence[int]], generated: bool = False
) -> StepOutput:
    """Append tokens to sequences in consecutive slots; one row is run in chunks if it is long.

    Returns:
        The step output of each row's last token.
    """
    if len(token_ids) == 1:
        [tokens], most = token_ids, prefill_chunk(runtime)
        while len(tokens) > most:
            runtime.forward(slot, [tokens[:most]], False, generated)
            tokens = tokens[most:]
        token_ids = [tokens]
    return runtime.forward(slot, token_ids, False, generated)


def decode(runtime: Runtime, token_ids: Sequence[int]) -> StepOutput:
    """Append one token to each of the slots 0 to len(token_ids) - 1."""
    return runtime.forward(0, [[token_id] for token_id in token_ids], False, True)
