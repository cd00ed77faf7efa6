"""A runtime whose "model" is a checksum of each slot's history, over the real KV cache."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import numpy as np

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.base import StepOutput, pack, prefill_chunk
from paddlenlp_codegen_task.runtime.kv_cache import KVCache, Place, SlotBySlot

VOCAB = 50
EOS = 0
CONFIG = CodeGenConfig(
    vocab_size=VOCAB, n_positions=2048, n_embd=8, n_layer=1, n_head=4, rotary_dim=2, n_inner=8
)

TOKEN_BYTES = 24  # of keys and values, as KVCache counts them: three buffers of n_embd


def next_token(history: Rows[int]) -> int:
    return zlib.crc32(bytes(history)) % VOCAB


def as_generated(tokens: Rows[int]) -> list[int]:
    """What a slot holds of generated tokens where they are told from a prompt's."""
    return [VOCAB + token for token in tokens]


class Letters:
    """A tokenizer with a letter a token."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([65 + token_id % 26])


class FakeMemory(SlotBySlot):
    """Buffers of token ids, [slots, capacity]; -1 where nothing was written."""

    itemsize = 1

    def zeros(self, tokens: int) -> np.ndarray:
        return np.full(tokens, -1)

    def copy(self, source: Any, at: Place, target: Any, to: Place, tokens: int) -> None:
        self._slot(target, to)[:tokens] = self._slot(source, at)[:tokens].copy()

    def read(self, buffer: Any, at: Place, first: int, last: int) -> np.ndarray:
        return self._slot(buffer, at)[first:last].copy()[None, :, None]

    def write(self, buffer: Any, at: Place, first: int, values: np.ndarray) -> None:
        if values.ndim == 3 and values.shape[0] == 1:
            self._slot(buffer, at)[first : first + values.shape[1]] = values[0, :, 0]

    def _slot(self, buffer: Any, at: Place) -> Any:
        assert at.slot >= 0
        assert (at.slot + 1) * at.capacity <= len(buffer)
        return buffer[at.slot * at.capacity : (at.slot + 1) * at.capacity]


class FakeRuntime:
    """Keeps what was written to each slot; a slot's length decides how much of it counts.

    Attributes:
        calls: slot and number of new tokens of each row, of each step.
        same_products: False has a slot tell generated tokens from a prompt's.
        most_rows: more than so many are not expected.
        interrupts: how often a step was to be ended.
        on_forward: may raise, or change the output, of a step.
    """

    def __init__(self, most_rows: int = 10**9, config: CodeGenConfig = CONFIG) -> None:
        self.config = config
        self.cache = KVCache(config, FakeMemory())
        self.device_id: int | None = None
        self.inputs: list[Any] = [("key_cache_0", [None, 1, None, 1], "float32")]
        self.same_products = True
        self.calls: list[tuple[int, list[int]]] = []
        self.most_rows = most_rows
        self.most_bytes = 0
        self.closed = False
        self.interrupts = 0
        self.on_forward: Callable[[int, Rows[Rows[int]], StepOutput], StepOutput] | None = None

    def held(self, slot: int) -> list[int]:
        """The tokens of a slot."""
        length = self.cache.length(slot)
        if not length:
            return []
        return self.cache.read(slot, 0, length)[0].ravel().tolist()

    def forward(
        self, slot: int, token_ids: Rows[Rows[int]], every: bool = False, generated: bool = False
    ) -> StepOutput:
        assert token_ids
        assert all(token_ids)
        assert not every or len(token_ids) == 1
        assert slot + len(token_ids) <= self.most_rows
        assert len(token_ids) * max(map(len, token_ids)) <= max(prefill_chunk(self), self.most_rows)
        pack(self.cache, slot, token_ids, every)
        self.most_bytes = max(
            self.most_bytes, self.cache.bytes(self.cache.slots, self.cache.capacity)
        )
        self.calls.append((slot, [len(tokens) for tokens in token_ids]))
        if generated and not self.same_products:
            token_ids = [as_generated(tokens) for tokens in token_ids]
        chosen = []
        for row, tokens in enumerate(token_ids, start=slot):
            history = [*self.held(row), *tokens]
            assert -1 not in history
            at = Place(row, self.cache.capacity)
            for buffer in self.cache.buffers:
                self.cache._memory.write(
                    buffer, at, self.cache.length(row), np.array(tokens)[None, :, None]
                )
            self.cache.extended(row, len(tokens))
            ends = range(len(history) - len(tokens) + 1, len(history) + 1)
            chosen += [next_token(history[:end]) for end in (ends if every else ends[-1:])]
        output = one_hot_output(chosen)
        return self.on_forward(slot, token_ids, output) if self.on_forward else output

    def interrupt(self) -> None:
        self.interrupts += 1

    def close(self) -> None:
        self.closed = True
        self.cache.clear()


def one_hot_output(tokens: list[int], vocab_size: int = VOCAB) -> StepOutput:
    """What a step hands back whose rows give these tokens, far above all others."""
    logits = 50 * np.eye(vocab_size, dtype=np.float32)[tokens]
    ids = np.array(tokens, np.int64)[:, None]
    candidates = np.full(ids.shape, 50, np.float32)
    return StepOutput(candidates, ids, np.full(len(tokens), 50, np.float32), lambda: logits)
