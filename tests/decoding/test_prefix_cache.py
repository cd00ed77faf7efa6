"""The prefix cache: what it keeps, what it finds again, and that it changes no text."""

from __future__ import annotations

from typing import Any

import numpy as np
from fake_runtime import EOS, VOCAB, FakeRuntime, as_generated, next_token
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sampler_probe import request

from paddlenlp_codegen_task.decoding.events import Finished
from paddlenlp_codegen_task.decoding.prefix_cache import BLOCK, PrefixCache
from paddlenlp_codegen_task.decoding.request import Batch, Request
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, Interrupted, StepOutput, prefill

BYTES = 2 * 8 * BLOCK  # of a block of the fake runtime: 8 bytes a token, of keys and of values


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB, size=count).tolist()


def saved(cache: PrefixCache, tokens: list[int]) -> None:
    runtime = FakeRuntime(1)
    prefill(runtime, 0, [tokens])
    cache.save(runtime.cache, 0, tokens)


def restored(cache: PrefixCache, tokens: list[int]) -> int:
    runtime = FakeRuntime(1)
    kept = cache.restore(runtime.cache, 0, tokens)
    assert runtime.held(0) == tokens[:kept]
    assert runtime.cache.length(0) == kept
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


prompts = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 4 * BLOCK), st.integers(0, 3)),
    min_size=1,
    max_size=8,
)


def expected_of(prompt: list[int], most: int, same_products: bool = True) -> list[int]:
    """What a prompt gives without anything beside it."""
    found: list[int] = []
    while len(found) < most:
        held = [*prompt, *(found if same_products else as_generated(found))]
        if (token := next_token(held)) == EOS:
            break
        found.append(token)
    return found


def run(scheduler: Scheduler) -> list[Finished]:
    found: list[Finished] = []
    while scheduler.has_work:
        for event in scheduler.step():
            assert isinstance(event, Finished)
            found.append(event)
    return found


def asked(prompt: list[int], max_length: int, batch: Batch, samples: int = 1) -> Request:
    return request(
        VOCAB, prompt, eos_token_id=EOS, max_length=max_length, batch=batch, samples=samples
    )


@settings(max_examples=100, deadline=None)
@given(prompts, st.integers(1, 4), st.integers(0, 12), st.integers(1, 3))
def test_every_row_gets_what_it_would_get_without(
    work: list[tuple[int, int, int]], batch_size: int, blocks: int, samples: int
):
    runtime, cache = FakeRuntime(batch_size), PrefixCache(blocks * BYTES)
    scheduler = Scheduler(runtime, batch_size, cache)
    texts = [[*ids(4 * BLOCK, seed)[:length], *ids(tail, 9)] for seed, length, tail in work]
    for _ in range(2):
        batch = Batch(batch_size)
        for text in texts:
            scheduler.add(asked(text, 40, batch, samples))
        found = run(scheduler)
        assert len(found) == len(texts)
        for one in found:
            expected = expected_of(list(one.request.prompt_ids), 40)
            assert [row.token_ids for row in one.rows] == [expected] * samples
    assert cache.bytes <= blocks * BYTES


def test_a_second_run_prefills_the_rest_only():
    runtime = FakeRuntime(2)
    scheduler = Scheduler(runtime, 2, PrefixCache(99 * BYTES))
    text = ids(3 * BLOCK + 4)
    for tail in ([1], [2, 3]):
        scheduler.add(asked([*text, *tail], 2, Batch(2)))
        run(scheduler)
    # All of the text is still in the slot.
    assert [lengths for _, lengths in runtime.calls if lengths != [1]] == [[3 * BLOCK + 5], [2]]


def test_another_text_comes_from_the_blocks():
    runtime = FakeRuntime(1)
    scheduler = Scheduler(runtime, 1, PrefixCache(99 * BYTES))
    one, other = ids(3 * BLOCK + 4, 1), ids(3 * BLOCK + 4, 2)
    for text in (one, other, one):
        scheduler.add(asked(text, 1, Batch(1)))
        run(scheduler)
    assert [lengths for _, lengths in runtime.calls] == [[len(one)], [len(one)], [4]]
    # What the slot holds is taken where it is as much; here the blocks have more of it.
    scheduler.add(asked([*one[: BLOCK + 5], *other], 1, Batch(1)))
    run(scheduler)
    runtime.calls.clear()
    scheduler.add(asked([*one, 7], 1, Batch(1)))
    run(scheduler)
    assert runtime.calls == [(0, [5])]


def test_a_prompt_that_is_dropped_is_kept_as_far_as_it_was_run():
    runtime = FakeRuntime(1)
    scheduler = Scheduler(runtime, 1, PrefixCache(99 * BYTES))
    text = ids(3 * PREFILL_CHUNK)
    for number in range(3):  # as somebody types on while a file is read
        one = asked([*text, number], 1, Batch(1))
        scheduler.add(one)
        scheduler.step()
        scheduler.cancel(one)
    assert not scheduler.has_work
    assert [lengths for _, lengths in runtime.calls] == [[PREFILL_CHUNK]] * 3
    scheduler.add(asked([*text, 7], 1, Batch(1)))
    [found] = run(scheduler)
    assert runtime.calls[3:] == [(0, [1])]
    assert found.rows[0].cached_tokens == len(text)


def test_nothing_is_left_without_a_prefix_cache():
    runtime = FakeRuntime(1)
    scheduler = Scheduler(runtime, 1)
    for _ in range(2):
        scheduler.add(asked(ids(40), 3, Batch(1)))
        run(scheduler)
    assert [lengths for _, lengths in runtime.calls if lengths != [1]] == [[40], [40]]


class Typing(Scheduler):
    """A scheduler, some of whose steps are interrupted, whoever they are for."""

    def __init__(self, random: np.random.Generator, batch_size: int, blocks: int) -> None:
        self.runtime = FakeRuntime(batch_size)
        super().__init__(self.runtime, batch_size, PrefixCache(blocks * BYTES))
        forward = self.runtime.forward

        def interrupted(*arguments: Any) -> StepOutput:
            if random.random() < 0.3:
                raise Interrupted
            return forward(*arguments)

        self.runtime.forward = interrupted  # type: ignore[method-assign]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([2, 9, 99]))
@example(2747577, 2, 2)  # of two prompts in a step that is interrupted, the second is given up
def test_typing_changes_no_text(seed: int, batch_size: int, blocks: int):
    """Keys come and go anywhere in a text, requests are dropped at any time, steps interrupted."""
    random = np.random.default_rng(seed)
    scheduler = Typing(random, batch_size, blocks)
    text = ids(int(random.integers(1, 2 * PREFILL_CHUNK)), seed)
    asked_for: list[Request] = []
    done: dict[Request, Finished] = {}
    for _ in range(12):
        at = len(text) - int(random.integers(0, min(len(text), 40)))
        text = [*text[:at], *random.integers(1, VOCAB, size=random.integers(1, 4)).tolist()]
        limit, samples = (int(random.integers(1, most)) for most in (6, 3))
        one = asked(text, limit, Batch(batch_size), samples)
        scheduler.add(one)
        asked_for.append(one)
        for _ in range(int(random.integers(0, 9))):
            done |= {event.request: event for event in scheduler.step()}  # type: ignore[misc]
        if random.random() < 0.7:
            scheduler.cancel(asked_for.pop())
    while scheduler.has_work:
        done |= {event.request: event for event in scheduler.step()}  # type: ignore[misc]
    for one in asked_for:
        expected = expected_of(list(one.prompt_ids), one.max_length)
        assert [row.token_ids for row in done[one].rows] == [expected] * one.samples
    assert scheduler.slots.used == 0


def test_a_completion_is_kept_as_well_as_its_prompt():
    """The next turn of a session begins with both."""
    runtime, prompt = FakeRuntime(1), ids(BLOCK)
    while len(row := expected_of(prompt, 2 * BLOCK + 1)) < 2 * BLOCK + 1:
        prompt = [*prompt[1:], prompt[0] % (VOCAB - 1) + 1]
    scheduler = Scheduler(runtime, 1, PrefixCache(99 * BYTES))
    scheduler.add(asked(prompt, 2 * BLOCK + 1, Batch(1)))
    run(scheduler)
    runtime.calls.clear()
    scheduler.add(asked([*prompt, *row, 7], 1, Batch(1)))
    run(scheduler)
    assert runtime.calls == [(0, [2])]  # the last token of the completion, and the new one


@settings(max_examples=100, deadline=None)
@given(prompts, st.integers(1, 4), st.integers(0, 12), st.lists(st.integers(1, 60), max_size=4))
def test_no_prompt_gets_what_others_have_generated(
    work: list[tuple[int, int, int]], batch_size: int, blocks: int, breaks: list[int]
):
    """Where that has other products: neither the next turn does, nor a row that was set back."""
    runtime, cache = FakeRuntime(batch_size), PrefixCache(blocks * BYTES)
    runtime.same_products = False
    scheduler = Scheduler(runtime, batch_size, cache)
    texts = [[*ids(4 * BLOCK, seed)[:length], *ids(tail, 9)] for seed, length, tail in work]
    for _ in range(2):
        batch, steps, found = Batch(batch_size), 0, list[Finished]()
        for text in texts:
            scheduler.add(asked(text, 40, batch))
        while scheduler.has_work:
            found += [one for one in scheduler.step() if isinstance(one, Finished)]
            steps += 1
            if steps in breaks:
                for one in scheduler.requests:
                    scheduler.hold(one)
                    scheduler.release(one)
        assert len(found) == len(texts)
        for one in found:
            prompt = list(one.request.prompt_ids)
            assert one.rows[0].token_ids == expected_of(prompt, 40, same_products=False)
        texts += [[*one.request.prompt_ids, *one.rows[0].token_ids, 7] for one in found]


def test_a_completion_s_own_products_are_run_again_as_a_prompt():
    runtime, text = FakeRuntime(1), ids(BLOCK)
    runtime.same_products = False
    while len(expected_of(text, 2 * BLOCK, same_products=False)) < 2 * BLOCK:
        text = [*text[1:], text[0] % (VOCAB - 1) + 1]
    scheduler = Scheduler(runtime, 1, PrefixCache(99 * BYTES))
    scheduler.add(asked(text, 2 * BLOCK, Batch(1)))
    [end] = run(scheduler)
    runtime.calls.clear()
    following = [*text, *end.rows[0].token_ids, 7]
    scheduler.add(asked(following, 1, Batch(1)))
    run(scheduler)
    assert runtime.calls == [(0, [len(following) - BLOCK])]  # the prompt alone was kept
