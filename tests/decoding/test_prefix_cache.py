"""The prefix cache: what it keeps, what it finds again, and that it changes no text."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
from fake_runtime import EOS, VOCAB, FakeRuntime, next_token
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_probe import sequence

from paddlenlp_codegen_task.decoding.prefix_cache import BLOCK, PrefixCache
from paddlenlp_codegen_task.decoding.scheduler import Job, Scheduler
from paddlenlp_codegen_task.decoding.sequence import Sequence
from paddlenlp_codegen_task.runtime.base import StepOutput, prefill

BYTES = 8 * BLOCK  # of a block of the fake runtime


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB, size=count).tolist()


def saved(cache: PrefixCache, tokens: list[int]) -> None:
    runtime = FakeRuntime(1)
    runtime.reset(1)
    prefill(runtime, 0, [tokens])
    cache.save(runtime, 0, tokens)


def restored(cache: PrefixCache, tokens: list[int]) -> int:
    runtime = FakeRuntime(1)
    runtime.reset(1)
    kept = cache.restore(runtime, 0, tokens)
    if kept:
        assert runtime.written[0] == tokens[:kept]
        assert runtime.cache.lengths[0] == kept
    assert cache.holds(tokens) is (kept > 0)
    return kept


def test_whole_blocks_that_texts_share_are_found():
    cache, text = PrefixCache(99 * BYTES), ids(5 * BLOCK + 7)
    assert restored(cache, text) == 0
    saved(cache, text)
    assert cache.bytes == 5 * BYTES
    assert restored(cache, text) == 5 * BLOCK
    assert restored(cache, text[: 5 * BLOCK]) == 4 * BLOCK  # the last token is run in any case
    assert restored(cache, [*text[: 3 * BLOCK + 5], 0, 0]) == 3 * BLOCK
    assert restored(cache, [0, *text[1:]]) == 0
    edited = [*text[: BLOCK + 3], 0, *text[BLOCK + 4 :]]
    assert restored(cache, edited) == BLOCK
    saved(cache, edited)
    assert cache.bytes == 9 * BYTES  # the first block is shared


def test_the_least_recently_used_goes_and_of_a_text_its_end():
    cache = PrefixCache(6 * BYTES)
    first, second, third = (ids(3 * BLOCK + 1, seed) for seed in range(3))
    saved(cache, first)
    saved(cache, second)
    assert restored(cache, first) == 3 * BLOCK  # used again
    saved(cache, third[: BLOCK + 1])
    assert restored(cache, first) == 3 * BLOCK
    assert restored(cache, second) == 2 * BLOCK
    assert cache.bytes == 6 * BYTES


def test_a_text_larger_than_the_cache_is_kept_in_part():
    cache, text = PrefixCache(2 * BYTES + 1), ids(9 * BLOCK)
    saved(cache, text)
    assert cache.bytes == 2 * BYTES
    assert restored(cache, text) == 2 * BLOCK
    saved(PrefixCache(0), text)


class Greedy:
    def advance(self, output: StepOutput, sequences: Rows[Sequence]) -> list[tuple[int, int]]:
        for one, [token] in zip(sequences, output.candidate_ids.tolist(), strict=True):
            assert token == next_token([*one.prompt_ids, *one.token_ids])
            one.append(token)
        return []


prompts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4 * BLOCK), st.integers(0, 3)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(prompts, st.integers(1, 4), st.integers(0, 12))
def test_every_sequence_gets_what_it_would_get_without(
    work: list[tuple[int, int, int]], batch_size: int, blocks: int
):
    runtime = FakeRuntime(batch_size)
    scheduler = Scheduler(runtime, PrefixCache(blocks * BYTES))
    texts = [[*ids(4 * BLOCK, seed)[:length], *ids(tail, 9)] for seed, length, tail in work]
    for _ in range(2):
        sequences = [
            sequence(VOCAB, text, sampler=Greedy(), eos_token_id=EOS, max_length=40)
            for text in texts
        ]
        job = Job(sequences, batch_size)
        scheduler.submit(job)
        while not job.done:
            scheduler.step()
        for one in sequences:
            expected: list[int] = []
            while len(expected) < 40 and (token := next_token([*one.prompt_ids, *expected])):
                expected.append(token)
            assert one.token_ids == expected
    assert scheduler.prefix_cache is not None
    assert scheduler.prefix_cache.bytes <= blocks * BYTES


def test_a_second_run_prefills_the_rest_only():
    runtime = FakeRuntime(2)
    scheduler = Scheduler(runtime, PrefixCache(99 * BYTES))
    text = ids(3 * BLOCK + 4)
    for tail in ([1], [2, 3]):
        one = sequence(VOCAB, [*text, *tail], sampler=Greedy(), eos_token_id=EOS, max_length=2)
        job = Job([one], 2)
        scheduler.submit(job)
        while not job.done:
            scheduler.step()
    assert [lengths for _, lengths in runtime.calls if lengths != [1]] == [[3 * BLOCK + 5], [6]]
