"""A runtime whose "model" is a checksum of each slot's history."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import numpy as np

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, StepOutput
from paddlenlp_codegen_task.runtime.kv_cache import KVCache

VOCAB = 50
EOS = 0
CONFIG = CodeGenConfig(
    vocab_size=VOCAB, n_positions=2048, n_embd=8, n_layer=1, n_head=4, rotary_dim=2, n_inner=8
)


def next_token(history: Rows[int]) -> int:
    return zlib.crc32(bytes(history)) % VOCAB


@dataclass
class FakeRuntime:
    """Keeps what was written to each slot; a slot's length decides how much of it counts."""

    batch_size: int
    config: CodeGenConfig = CONFIG
    cache: KVCache = field(default_factory=lambda: KVCache(CONFIG.n_positions))
    written: dict[int, list[int]] = field(default_factory=dict)
    calls: list[tuple[int, list[int]]] = field(default_factory=list)  # slot, new tokens a row
    copies: list[tuple[int, int]] = field(default_factory=list)

    def reset(self, slots: int) -> None:
        self.cache.reset(slots)
        self.written.clear()

    def forward(self, slot: int, token_ids: Rows[Rows[int]], every: bool = False) -> StepOutput:
        assert token_ids
        assert not every or len(token_ids) == 1
        assert slot >= 0
        self.cache.grow(slot + len(token_ids), 0)
        assert self.cache.slots <= self.batch_size
        assert len(token_ids) * max(map(len, token_ids)) <= max(PREFILL_CHUNK, self.batch_size)
        self.calls.append((slot, [len(tokens) for tokens in token_ids]))
        chosen = []
        for row, tokens in enumerate(token_ids, start=slot):
            assert tokens
            length = self.cache.lengths[row]
            self.written[row] = [*self.written.get(row, [])[:length], *tokens]
            assert len(self.written[row]) == length + len(tokens)  # else it starts amid nothing
            self.cache.lengths[row] = len(self.written[row])
            ends = range(length + 1, len(self.written[row]) + 1)
            ends = ends if every else ends[-1:]
            chosen += [next_token(self.written[row][:end]) for end in ends]
        logits = np.eye(VOCAB, dtype=np.float32)[chosen]
        ids = np.array(chosen, np.int64)[:, None]
        return StepOutput(np.ones_like(ids, np.float32), ids, lambda: logits)

    def copy(self, source: int, target: int) -> None:
        assert 0 <= source < self.cache.slots
        assert source != target
        self.cache.grow(target + 1, self.cache.lengths[source])
        assert self.cache.slots <= self.batch_size
        self.copies.append((source, target))
        self.written[target] = self.written[source]
        self.cache.lengths[target] = self.cache.lengths[source]

    def read(self, slot: int, first: int, last: int) -> list[np.ndarray]:
        assert 0 <= first < last <= self.cache.lengths[slot]
        return [np.array(self.written[slot][first:last])[None, :, None]]

    def write(self, slot: int, block: list[np.ndarray]) -> None:
        self.written[slot] = block[0].ravel().tolist()
        self.cache.grow(slot + 1, len(self.written[slot]))
        self.cache.lengths[slot] = len(self.written[slot])

    def clear(self) -> None:
        self.cache.reset(0)
        self.written.clear()

    def close(self) -> None:
        pass
