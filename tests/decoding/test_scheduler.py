"""Continuous batching over a runtime whose "model" is a checksum of each slot's history."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_probe import sequence

from paddlenlp_codegen_task.decoding import scheduler
from paddlenlp_codegen_task.decoding.sequence import Sequence
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
    moves: list[tuple[int, int]] = field(default_factory=list)

    def reset(self, slots: int) -> None:
        self.cache.reset(slots)
        self.written.clear()

    def forward(self, slot: int, token_ids: Rows[Rows[int]]) -> StepOutput:
        assert token_ids
        assert slot >= 0
        assert slot + len(token_ids) <= self.cache.slots <= self.batch_size
        assert len(token_ids) * max(map(len, token_ids)) <= max(PREFILL_CHUNK, self.batch_size)
        self.calls.append((slot, [len(tokens) for tokens in token_ids]))
        chosen = []
        for row, tokens in enumerate(token_ids, start=slot):
            assert tokens
            length = self.cache.lengths[row]
            self.written[row] = [*self.written.get(row, [])[:length], *tokens]
            assert len(self.written[row]) == length + len(tokens)  # else it starts amid nothing
            self.cache.lengths[row] = len(self.written[row])
            chosen.append(next_token(self.written[row]))
        logits = np.eye(VOCAB, dtype=np.float32)[chosen]
        ids = np.array(chosen, np.int64)[:, None]
        return StepOutput(np.ones_like(ids, np.float32), ids, lambda: logits)

    def move(self, source: int, target: int) -> None:
        assert 0 <= target < source < self.cache.slots
        self.moves.append((source, target))
        self.written[target] = self.written[source]
        self.cache.lengths[target], self.cache.lengths[source] = self.cache.lengths[source], 0

    def close(self) -> None:
        pass


@dataclass
class Run:
    """One run of the scheduler that checks every step it makes."""

    runtime: FakeRuntime
    limits: dict[int, int]  # by id() of a sequence: when it has to finish
    live: list[Sequence] = field(default_factory=list)
    waiting: int = 0

    def choose(self, output: StepOutput, sequences: Rows[Sequence]) -> list[int]:
        slot, lengths = self.runtime.calls[-1]
        new = [one for one in sequences if not one.token_ids]
        if new:
            assert len(new) == len(sequences)
            assert slot == len(self.live)  # right behind those that run
            self.live += sequences
            self.waiting -= len(sequences)
        else:
            assert slot == 0
            assert lengths == [1] * len(self.live)  # all that run, and nothing else
            assert {id(one) for one in sequences} == {id(one) for one in self.live}
            assert len(self.live) == self.runtime.batch_size or not self.waiting
        assert all(one.finish_reason is None for one in sequences)
        tokens = [int(token) for token in output.candidate_ids[:, 0]]
        # Each row was computed from the history of the very sequence it is taken for.
        assert tokens == [next_token([*one.prompt_ids, *one.token_ids]) for one in sequences]
        return tokens

    def append(self, one: Sequence, token_id: int) -> None:
        one.append(token_id, EOS, self.limits[id(one)])
        if one.finish_reason:
            self.live = [other for other in self.live if other is not one]

    def __call__(self, sequences: list[Sequence]):
        self.waiting = len(sequences)
        return scheduler.run(
            self.runtime, sequences, self.runtime.batch_size, self.choose, self.append
        )


def make(lengths: list[tuple[int, int]], seed: int) -> tuple[list[Sequence], dict[int, int]]:
    """Sequences of (tokens of the prompt, most new tokens)."""
    rng = np.random.default_rng(seed)
    made = [sequence(VOCAB, rng.integers(VOCAB, size=prompt).tolist()) for prompt, _ in lengths]
    return made, {id(one): limit for one, (_, limit) in zip(made, lengths, strict=True)}


def assert_as_alone(one: Sequence, limit: int) -> None:
    tokens: list[int] = []
    reason = None
    while reason is None:
        token = next_token([*one.prompt_ids, *tokens])
        if token == EOS:
            reason = "eos"
        else:
            tokens.append(token)
            reason = "length" if len(tokens) == limit else None
    assert one.token_ids == tokens
    assert one.finish_reason == reason


sizes = st.one_of(st.integers(1, 8), st.integers(1, 70), st.sampled_from([255, 256, 257, 700]))
works = st.lists(st.tuples(sizes, st.integers(1, 30)), max_size=12)


@settings(max_examples=300, deadline=None)
@given(works, st.integers(1, 13), st.integers(0, 1000))
def test_every_sequence_gets_what_it_would_get_alone(
    work: list[tuple[int, int]], batch_size: int, seed: int
):
    sequences, limits = make(work, seed)
    runtime = FakeRuntime(batch_size)
    finished = list(Run(runtime, limits)(sequences))
    assert sorted(map(id, finished)) == sorted(map(id, sequences))
    for one in sequences:
        assert_as_alone(one, limits[id(one)])
    for _, lengths in runtime.calls:
        padded, total = len(lengths) * max(lengths), sum(lengths)
        assert padded <= max(
            (1 + scheduler.PADDING_SHARE) * total, scheduler.SMALL_PREFILL, len(lengths)
        )


@settings(max_examples=100, deadline=None)
@given(works, works, st.integers(1, 5), st.integers(0, 12), st.integers(0, 1000))
def test_an_abandoned_run_leaves_nothing_behind(
    first: list[tuple[int, int]],
    second: list[tuple[int, int]],
    batch_size: int,
    taken: int,
    seed: int,
):
    runtime = FakeRuntime(batch_size)
    sequences, limits = make(first, seed)
    iterator = Run(runtime, limits)(sequences)
    for one in islice(iterator, taken):
        assert_as_alone(one, limits[id(one)])
    iterator.close()
    sequences, limits = make(second, seed + 1)
    assert len(list(Run(runtime, limits)(sequences))) == len(second)
    for one in sequences:
        assert_as_alone(one, limits[id(one)])


def lengths_of_prefills(prompts: list[int], batch_size: int) -> list[list[int]]:
    sequences, limits = make([(length, 1) for length in prompts], seed=0)
    runtime = FakeRuntime(batch_size)
    list(Run(runtime, limits)(sequences))  # one token each: all steps are prefills
    return [lengths for _, lengths in runtime.calls]


@pytest.mark.parametrize(
    ("prompts", "batch_size", "steps"),
    [
        ([10, 10, 10], 3, [[10, 10, 10]]),
        ([10, 10, 10], 2, [[10, 10], [10]]),
        ([10, 10, 10], 1, [[10], [10], [10]]),
        ([50, 60, 60], 8, [[50, 60, 60]]),  # 180 for 170
        ([100, 100, 100], 8, [[100, 100], [100]]),  # no more than a chunk
        ([10, 200], 8, [[10], [200]]),  # 400 for 210
        ([200, 10], 8, [[200], [10]]),
        ([1, 32], 8, [[1, 32]]),  # few tokens, however much of them is padding
        ([1, 33], 8, [[1], [33]]),
        ([PREFILL_CHUNK], 8, [[PREFILL_CHUNK]]),
        ([2 * PREFILL_CHUNK + 1], 8, [[PREFILL_CHUNK], [PREFILL_CHUNK], [1]]),
    ],
)
def test_prompts_of_like_length_are_prefilled_together(
    prompts: list[int], batch_size: int, steps: list[list[int]]
):
    assert lengths_of_prefills(prompts, batch_size) == steps


def test_sequences_leave_and_join_at_every_step():
    # Prompts whose checksums lead to no end of text within 8 tokens.
    rng = np.random.default_rng(0)
    prompts = []
    while len(prompts) < 4:
        history = prompt = rng.integers(VOCAB, size=70).tolist()
        for _ in range(8):
            history = [*history, next_token(history)]
        if EOS not in history[70:]:
            prompts.append(prompt)
    sequences = [sequence(VOCAB, prompt) for prompt in prompts]
    limits = {id(one): limit for one, limit in zip(sequences, (2, 5, 4, 1), strict=True)}
    runtime = FakeRuntime(2)
    finished = list(Run(runtime, limits)(sequences))
    assert [prompts.index(one.prompt_ids) for one in finished] == [0, 2, 1, 3]
    assert runtime.calls == [
        (0, [70, 70]),
        (0, [1, 1]),  # the first is done, and the second takes its slot
        (1, [70]),
        (0, [1, 1]),
        (0, [1, 1]),
        (0, [1, 1]),  # both are done
        (0, [70]),
    ]
    assert runtime.moves == [(1, 0)]


def test_nothing_to_do():
    runtime = FakeRuntime(4)
    assert list(Run(runtime, {})([])) == []
    assert runtime.calls == []
