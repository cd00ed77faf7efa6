"""Continuous batching over a runtime whose "model" is a checksum of each slot's history."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from fake_runtime import EOS, TOKEN_BYTES, VOCAB, FakeRuntime, Letters, next_token
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sampler_probe import request

from paddlenlp_codegen_task.decoding import starting
from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished, Forward, Text
from paddlenlp_codegen_task.decoding.prefix_cache import BLOCK, PrefixCache
from paddlenlp_codegen_task.decoding.request import Batch, Beams, Request, Row
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, Interrupted, StepOutput
from paddlenlp_codegen_task.runtime.kv_cache import MIN_CAPACITY, KVCacheFull
from paddlenlp_codegen_task.truncation import Truncator


def alone(prompt: Rows[int], limit: int) -> tuple[list[int], str]:
    """What a prompt gives with nothing beside it: its tokens, and why it ends."""
    tokens: list[int] = []
    while len(tokens) < limit:
        token = next_token([*prompt, *tokens])
        if token == EOS:
            return tokens, "eos"
        tokens.append(token)
    return tokens, "length"


def assert_as_alone(finished: Finished) -> None:
    expected = alone(finished.request.prompt_ids, finished.request.max_length)
    assert [one.index for one in finished.rows] == list(range(finished.request.samples))
    for one in finished.rows:
        assert (one.token_ids, one.finish_reason) == expected
        assert one.seen.size == 0  # what only a running row needs is given up
        assert not one.drafters


def make(prompt: Rows[int], limit: int, batch: Batch, samples: int = 1, **options: Any) -> Request:
    return request(
        VOCAB,
        list(prompt),
        eos_token_id=EOS,
        max_length=limit,
        batch=batch,
        samples=samples,
        **options,
    )


def prompts(lengths: Rows[int], seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(VOCAB, size=length).tolist() for length in lengths]


def lasting(length: int, limit: int, seed: int = 0) -> list[int]:
    """A prompt that comes to no end of text within so many tokens."""
    while alone(prompt := prompts([length], seed)[0], limit)[1] == "eos":
        seed += 1000
    return prompt


def run(scheduler: Scheduler, most: int = 100_000) -> list[Event]:
    events: list[Event] = []
    for _ in range(most):
        if not scheduler.has_work:
            return events
        events += scheduler.step()
    raise AssertionError("it never ends")


def finished(events: Rows[Event]) -> list[Finished]:
    assert not [one for one in events if isinstance(one, Failed)]
    return [one for one in events if isinstance(one, Finished)]


def assert_empty(scheduler: Scheduler, runtime: FakeRuntime) -> None:
    """Nothing is left of anybody."""
    assert scheduler.slots.used == 0
    assert not scheduler.requests
    admission = scheduler._admission
    for left in (admission._lines, admission._turns, admission._started):
        assert not left
    assert not admission._set_back
    assert not admission._held
    assert not scheduler._starting._first_outputs
    assert not scheduler._successors


sizes = st.one_of(st.integers(1, 8), st.integers(1, 70), st.sampled_from([255, 256, 257, 700]))
works = st.lists(st.tuples(sizes, st.integers(1, 30), st.integers(1, 4)), max_size=10)


@settings(max_examples=150, deadline=None)
@given(works, st.integers(1, 13), st.integers(1, 9), st.integers(0, 1000))
def test_every_row_gets_what_it_would_get_alone(
    work: list[tuple[int, int, int]], batch_size: int, limit: int, seed: int
):
    runtime = FakeRuntime()
    scheduler, batch = Scheduler(runtime, batch_size), Batch(limit)
    texts = prompts([length for length, _, _ in work], seed)
    for text, (_, most, samples) in zip(texts, work, strict=True):
        scheduler.add(make(text, most, batch, samples))
    events = finished(run(scheduler))
    assert len(events) == len(work)
    for one in events:
        assert_as_alone(one)
    assert_empty(scheduler, runtime)
    for slot, lengths in runtime.calls:
        assert slot + len(lengths) <= max(batch_size, limit)
        padded, total = len(lengths) * max(lengths), sum(lengths)
        small = starting.SMALL_PREFILL * PREFILL_CHUNK
        assert padded <= max((1 + starting.PADDING_SHARE) * total, small, len(lengths))


@dataclass
class Plan:
    """What a random run does."""

    lengths: list[int]
    limits: list[int]
    samples: list[int]
    streamed: list[bool]
    batch: list[int]  # of which call each request is
    arrives: list[int]  # before which step
    cancelled: dict[int, int] = field(default_factory=dict)  # which, before which step
    held: dict[int, tuple[int, int]] = field(default_factory=dict)  # from and to which step
    nan: dict[int, int] = field(default_factory=dict)  # a row of a step whose logits are none
    fails: set[int] = field(default_factory=set)  # calls of the runtime


@st.composite
def plans(draw: st.DrawFn, failures: bool) -> Plan:
    count = draw(st.integers(1, 10))

    def several(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    which = st.integers(0, count - 1)
    plan = Plan(
        several(st.one_of(st.integers(1, 40), st.sampled_from([90, 257, 500]))),
        several(st.integers(1, 40)),
        several(st.sampled_from([1, 1, 1, 3])),
        several(st.booleans()),
        several(st.integers(0, 2)),
        several(st.integers(0, 25)),
        draw(st.dictionaries(which, st.integers(0, 40), max_size=3)),
        draw(st.dictionaries(which, st.tuples(st.integers(0, 30), st.integers(1, 30)), max_size=3)),
    )
    if failures:
        plan.nan = draw(st.dictionaries(st.integers(0, 40), st.integers(0, 5), max_size=3))
        plan.fails = draw(st.sets(st.integers(0, 40), max_size=2))
    return plan


CANCELLED_IN_PREFILL = Plan(
    lengths=[1, 257, 2, 1, 1, 1],
    limits=[1, 1, 22, 1, 1, 1],
    samples=[3, 1, 1, 1, 1, 1],
    streamed=[False] * 6,
    batch=[0] * 6,
    arrives=[20, 19, 0, 0, 0, 0],
    cancelled={1: 20},
)


@settings(max_examples=300, deadline=None)
@example(CANCELLED_IN_PREFILL, 1, [3, 1, 1], 700, 0, 0)
@given(
    plans(failures=False),
    st.integers(1, 6),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.sampled_from([0, 700, 1500, 10**6]),
    st.sampled_from([0, 0, 4, 40]),
    st.integers(0, 1000),
)
def test_arrivals_cancellations_holds_and_budgets(
    plan: Plan,
    batch_size: int,
    limits: list[int],
    budget_tokens: int,
    blocks: int,
    seed: int,
):
    runtime = FakeRuntime()
    if budget_tokens:
        runtime.cache.max_bytes = TOKEN_BYTES * budget_tokens
    cache = PrefixCache(blocks * BLOCK * 16) if blocks else None
    scheduler = Scheduler(runtime, batch_size, cache)
    check_run(plan, scheduler, runtime, limits, seed)
    if budget_tokens:
        assert runtime.most_bytes <= TOKEN_BYTES * budget_tokens


@settings(max_examples=150, deadline=None)
@given(plans(failures=True), st.integers(1, 6), st.integers(0, 1000))
def test_failures_end_whom_they_concern(plan: Plan, batch_size: int, seed: int):
    runtime = FakeRuntime()
    check_run(plan, Scheduler(runtime, batch_size), runtime, [3, 5, 9], seed)


def check_run(
    plan: Plan, scheduler: Scheduler, runtime: FakeRuntime, limits: list[int], seed: int
) -> None:
    """Do what the plan says; every request ends as it should, and nothing is left of it."""
    texts = prompts(plan.lengths, seed)
    batches = [Batch(limit) for limit in limits]
    requests: dict[int, Request] = {}
    for n, text in enumerate(texts):
        one = make(
            text,
            plan.limits[n],
            batches[plan.batch[n]],
            plan.samples[n],
            streamed=plan.streamed[n],
        )
        requests[n] = one
    number = {one: n for n, one in requests.items()}
    broken: set[Request] = set()
    failed: set[Request] = set()
    calls = 0

    def on_forward(slot: int, token_ids: Rows[Rows[int]], output: StepOutput) -> StepOutput:
        nonlocal calls
        calls += 1
        if calls in plan.fails:
            failed.update(scheduler.requests)
            raise MemoryError("no room")
        at = plan.nan.get(calls)
        if at is None or at >= len(token_ids):
            return output
        logsumexp = output.logsumexp.copy()
        logsumexp[at] = np.nan
        return replace(output, logsumexp=logsumexp)

    runtime.on_forward = on_forward
    events: list[Event] = []
    refused, cancelled, held = set[int](), set[int](), set[int]()
    for step in range(10_000):
        for n, arrives in enumerate(plan.arrives):
            if arrives == step:
                try:
                    scheduler.add(requests[n])
                except KVCacheFull:
                    refused.add(n)
        for n, when in plan.cancelled.items():
            if when == step:
                scheduler.cancel(requests[n])
                cancelled.add(n)
        for n, (begin, steps) in plan.held.items():
            if begin == step:
                scheduler.hold(requests[n])
                if requests[n] in scheduler.requests:  # else there is nothing to hold yet
                    held.add(n)
            if begin + steps == step:
                scheduler.release(requests[n])
                held.discard(n)
        if step > 70 and not scheduler.has_work:
            break
        before = [one for one in scheduler.requests if number[one] in held]
        new = scheduler.step()
        assert not [one for one in new if isinstance(one, Text) and one.request in before]
        assert not [row for row in scheduler.slots.rows if row.request in before]
        events += new
        used, cache = scheduler.slots.used, runtime.cache
        # What is gone takes no memory; the last may be gone on from, as long as nothing else runs.
        first = used or int(scheduler.slots.prefix_cache is not None)
        assert not any(map(cache.length, range(first, used + 8)))
        for one in new:
            if isinstance(one, Failed):
                if isinstance(one.error, FloatingPointError):
                    broken.add(one.request)
                else:
                    assert one.request in failed
    else:
        raise AssertionError("it never ends")
    assert_empty(scheduler, runtime)

    ends: dict[Request, list[Event]] = {one: [] for one in requests.values()}
    for event in events:
        ends[event.request].append(event)
    for n, one in requests.items():
        last = [event for event in ends[one] if not isinstance(event, Text)]
        if n in refused or (n in cancelled and not last):
            assert n in cancelled or not last
            continue
        assert len(last) == 1, (n, ends[one])
        assert ends[one][-1] is last[0]
        if isinstance(last[0], Finished):
            assert_as_alone(last[0])
        else:
            assert one in broken | failed


def test_errors_are_each_caller_s_own():
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 4)
    requests = [make(text, 9, Batch(1)) for text in prompts([4, 5, 6])]
    for one in requests:
        scheduler.add(one)
    scheduler.step()
    error = MemoryError("no room")

    def fail(*_: Any) -> StepOutput:
        raise error

    runtime.on_forward = fail
    events = scheduler.step()
    runtime.on_forward = None
    assert [event.request for event in events] == requests
    errors = [event.error for event in events if isinstance(event, Failed)]
    assert len({id(one) for one in [*errors, error]}) == 4
    assert all(isinstance(one, MemoryError) and one.args == ("no room",) for one in errors)
    assert all(one.__cause__ is error for one in errors)
    assert not runtime.cache.buffers  # what is in them may be anything
    again = make([1, 2, 3], 9, Batch(1))
    scheduler.add(again)
    assert_as_alone(finished(run(scheduler))[0])


def test_a_long_prompt_that_is_not_numbers_fails_at_its_first_chunk():
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 2)
    [text] = prompts([600])
    bad = make(text, 20, Batch(1))
    erased: list[int] = []

    class Watched(type(runtime.cache)):  # type: ignore[misc]
        def erase(self, slot: int) -> None:
            erased.append(slot)
            super().erase(slot)

    runtime.cache.__class__ = Watched

    def broken(slot: int, token_ids: Rows[Rows[int]], output: StepOutput) -> StepOutput:
        return replace(output, logsumexp=np.full_like(output.logsumexp, np.nan))

    runtime.on_forward = broken
    scheduler.add(bad)
    [event] = scheduler.step()
    assert isinstance(event, Failed)
    assert isinstance(event.error, FloatingPointError)
    assert erased == [0]
    assert_empty(scheduler, runtime)


def test_what_is_not_a_number_is_gone_from_its_slot():
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 2)
    bad, good = (make(lasting(9, 20, seed), 20, Batch(1)) for seed in (1, 2))
    scheduler.add(bad)
    scheduler.add(good)
    scheduler.step()
    assert len(scheduler.slots.rows) == 2
    [slot] = [n for n, row in enumerate(scheduler.slots.rows) if row.request is bad]
    erased: list[int] = []
    erase = runtime.cache.erase

    class Watched(type(runtime.cache)):  # type: ignore[misc]
        def erase(self, slot: int) -> None:
            erased.append(slot)
            erase(slot)

    runtime.cache.__class__ = Watched

    def nan(_: int, token_ids: Rows[Rows[int]], output: StepOutput) -> StepOutput:
        output.logsumexp[slot] = np.nan
        return output

    runtime.on_forward = nan
    events = scheduler.step()
    runtime.on_forward = None
    assert [type(one.error) for one in events if isinstance(one, Failed)] == [FloatingPointError]
    assert erased[0] == slot
    [end] = finished(run(scheduler))
    assert end.request is good
    assert_as_alone(end)


def test_a_text_that_cannot_be_followed_ends_its_request_alone():
    class Stops:
        text = settled = ""

        def feed(self, token_id: int) -> bool:
            raise RecursionError("too deep")

    scheduler = Scheduler(FakeRuntime(), 2)
    bad = make([4, 5], 9, Batch(1))
    bad.stops = Stops
    good = make([4, 5], 9, Batch(1))
    scheduler.add(bad)
    scheduler.add(good)
    events = run(scheduler)
    assert [type(one.error) for one in events if isinstance(one, Failed)] == [RecursionError]
    [end] = [one for one in events if isinstance(one, Finished)]
    assert_as_alone(end)


def test_samples_share_their_prompt_s_prefill():
    runtime = FakeRuntime()
    scheduler, batch = Scheduler(runtime, 4), Batch(4)
    for text in prompts([70, 65]):
        scheduler.add(make(text, 3, batch, samples=2))
    for one in finished(run(scheduler)):
        assert_as_alone(one)
    assert prefills(runtime) == [[70, 65]]


def prefills(runtime: FakeRuntime) -> list[list[int]]:
    """The steps of prompts of more than one token."""
    return [lengths for _, lengths in runtime.calls if max(lengths) > 1]


@pytest.mark.parametrize(
    ("lengths", "batch_size", "steps"),
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
    lengths: list[int], batch_size: int, steps: list[list[int]]
):
    runtime = FakeRuntime()
    scheduler, batch = Scheduler(runtime, batch_size), Batch(batch_size)
    for text in prompts(lengths):
        scheduler.add(make(text, 1, batch))  # one token each: all steps are prefills
    run(scheduler)
    assert [lengths for _, lengths in runtime.calls] == steps


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("how", ["cancel", "hold"])
def test_one_of_several_prompts_is_given_up_after_their_step_was_interrupted(which: int, how: str):
    """The others run as if nothing had been."""
    runtime = FakeRuntime()
    forward, interruptions = runtime.forward, [Interrupted()]

    def interrupted(*arguments: Any) -> StepOutput:
        if interruptions:
            raise interruptions.pop()
        return forward(*arguments)

    runtime.forward = interrupted  # type: ignore[method-assign]
    scheduler, batch = Scheduler(runtime, 4), Batch(4)
    requests = [make(text, 5, batch) for text in prompts([10, 10, 10])]
    for one in requests:
        scheduler.add(one)
    assert scheduler.step() == []
    given_up = requests.pop(which)
    getattr(scheduler, how)(given_up)
    if how == "hold":
        events = []
        while len(events) < 2:
            events += finished(scheduler.step())
        assert given_up not in {one.request for one in events}
        scheduler.release(given_up)
        requests.append(given_up)
        events += finished(run(scheduler))
    else:
        events = finished(run(scheduler))
    assert {one.request for one in events} == set(requests)
    for one in events:
        assert_as_alone(one)
    assert_empty(scheduler, runtime)


def test_rows_leave_and_join_at_every_step():
    runtime = FakeRuntime()
    scheduler, batch = Scheduler(runtime, 2), Batch(2)
    texts = [lasting(70, 8, seed) for seed in range(4)]
    for text, limit in zip(texts, (2, 5, 4, 1), strict=True):
        scheduler.add(make(text, limit, batch))
    ends = finished(run(scheduler))
    assert [texts.index(list(one.request.prompt_ids)) for one in ends] == [0, 1, 2, 3]
    assert runtime.calls == [
        (0, [70, 70]),
        (0, [1, 1]),  # the first is done, and the second takes its slot
        (1, [70]),
        (0, [1, 1]),
        (0, [1, 1]),
        (0, [1, 1]),  # both are done
        (0, [70]),
    ]


def test_nothing_to_do():
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 4)
    assert not scheduler.has_work
    assert scheduler.step() == []
    assert runtime.calls == []


@pytest.mark.parametrize("limit", [9, 1])
def test_more_samples_than_slots_share_one_prefill(limit: int):
    runtime = FakeRuntime()
    scheduler, batch = Scheduler(runtime, 4), Batch(4)
    for text in prompts([6, 6], 3):
        scheduler.add(make(text, limit, batch, samples=16))
    ends = finished(run(scheduler))
    assert [len(one.rows) for one in ends] == [16, 16]
    for one in ends:
        assert_as_alone(one)
    assert sum(length > 1 for _, lengths in runtime.calls for length in lengths) == 2


def test_thousands_of_samples_of_one_token():
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 2)
    scheduler.add(make([3, 4], 1, Batch(2), samples=5000))
    [end] = finished(run(scheduler))
    assert_as_alone(end)
    assert len(runtime.calls) == 1


# Decode first, then at most a chunk of prefill.


def test_a_long_prompt_does_not_hold_up_those_that_run():
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 4)
    stream = make(lasting(5, 60), 60, Batch(1), streamed=True)
    scheduler.add(stream)
    scheduler.step()
    text = prompts([5 * PREFILL_CHUNK], 7)[0]
    scheduler.add(make(text, 3, Batch(1)))
    kinds: list[tuple[str, list[int]]] = []
    scheduler.hooks.append(lambda step: kinds.append((step.kind, step.tokens)))
    for _ in range(5):
        scheduler.step()
    assert kinds == [("decode", [1]), ("prefill", [PREFILL_CHUNK])] * 5
    assert len(scheduler.slots.rows) == 2
    for one in finished(run(scheduler)):
        assert_as_alone(one)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=8), st.integers(0, 99))
def test_running_rows_get_a_token_at_every_step(lengths: list[int], seed: int):
    scheduler = Scheduler(FakeRuntime(), 16)
    scheduler.add(make(lasting(5, 200, seed), 200, Batch(1)))
    scheduler.step()
    for text in prompts(lengths, seed):
        scheduler.add(make(text, 20, Batch(1)))
    while scheduler.has_work:
        before = {row: len(row.token_ids) for row in scheduler.slots.rows}
        scheduler.step()
        for row, count in before.items():
            assert row.finish_reason is not None or len(row.token_ids) == count + 1


# Fairness.


def test_singles_that_always_wait_do_not_hold_up_a_batch():
    scheduler, batch = Scheduler(FakeRuntime(), 4), Batch(4)
    for seed in range(100):
        scheduler.add(make(lasting(5, 3, seed), 3, batch))
    singles = 0
    ended = 0
    for step in range(2000):
        while singles - ended < 8:  # four run, and four wait
            scheduler.add(make(lasting(6, 3, step), 3, Batch(1)))
            singles += 1
        events = finished(scheduler.step())
        ended += sum(one.request.batch is not batch for one in events)
        if batch not in scheduler._admission._lines:
            break
    assert step < 1000


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_nobody_waits_for_more_starts_than_there_are_calls(
    calls: list[tuple[int, int]], batch_size: int, seed: int
):
    """Between two starts of a call that wants more rows, each other one starts once at most."""
    scheduler = Scheduler(FakeRuntime(), batch_size)
    batches = [Batch(min(limit, batch_size)) for limit, _ in calls]  # none has places of its own
    order: list[Batch] = []
    take = scheduler._admission._take

    def watched(one: Request, count: int) -> Any:
        order.append(one.batch)
        return take(one, count)

    scheduler._admission._take = watched  # type: ignore[method-assign]
    rng = np.random.default_rng(seed)
    for n, (_, requests) in enumerate(calls):
        for _ in range(requests):
            text = prompts([int(rng.integers(1, 20))], int(rng.integers(10**6)))[0]
            scheduler.add(make(text, int(rng.integers(1, 9)), batches[n]))
    counts = {batch: requests for batch, (_, requests) in zip(batches, calls, strict=True)}
    run(scheduler)
    for batch, limit in zip(batches, (limit for limit, _ in calls), strict=True):
        if limit < batch_size:
            continue  # it may wait for its own rows to end
        places = [n for n, one in enumerate(order) if one is batch]
        assert len(places) == counts[batch]
        for first, second in zip([-1, *places], places, strict=False):
            between = order[first + 1 : second]
            assert all(between.count(other) <= 1 for other in batches if other is not batch)


def test_a_call_s_limit_is_its_own():
    scheduler = Scheduler(FakeRuntime(), 4)
    wide, narrow, other = Batch(10), Batch(2), Batch(4)
    for batch, requests in ((wide, 60), (narrow, 6), (other, 6)):
        for n in range(requests):
            scheduler.add(make(lasting(5, 40, n), 40, batch))
    most: dict[Batch, int] = {}
    widest = 0
    while scheduler.has_work:
        scheduler.step()
        running = [row.request.batch for row in scheduler.slots.rows]
        for batch in (wide, narrow, other):
            most[batch] = max(most.get(batch, 0), running.count(batch))
        shared = len(running) - min(running.count(wide), 6)
        widest = max(widest, shared)
    assert most[wide] == 10  # six places of its own, and those for all once the others are done
    assert most[narrow] == 2
    assert most[other] <= 4
    assert widest <= 4  # what one call asks for raises the limit of no other


def test_beams_do_not_wait_for_all_of_a_large_call():
    scheduler, batch = Scheduler(FakeRuntime(), 8), Batch(8)
    for n in range(60):
        scheduler.add(make(lasting(4, 3 + n % 7, n), 3 + n % 7, batch))
    scheduler.step()
    beams = beam_request(5, 4)
    scheduler.add(beams)
    ended = 0
    while not any(row.request is beams for row in scheduler.slots.rows):
        ended += len(finished(scheduler.step()))
    assert ended <= 24
    run(scheduler)


def beam_request(limit: int, beams: int, prompt: Rows[int] = (3, 4, 5), **options: Any) -> Request:
    made = make(prompt, limit, Batch(1), samples=beams, **options)
    made.beams = Beams(1, 1.0, False)
    return made


# Memory.


def test_the_youngest_is_set_back_and_goes_on():
    runtime = FakeRuntime()
    runtime.cache.max_bytes = TOKEN_BYTES * 2 * 160  # two rows of 160 tokens
    scheduler, batch = Scheduler(runtime, 4), Batch(4)
    requests = [make(lasting(60, 150, seed), 150, batch) for seed in range(3)]
    for one in requests:
        scheduler.add(one)
    fewest, most = 4, 0
    ends: list[Finished] = []
    while scheduler.has_work:
        ends += finished(scheduler.step())
        rows = [row.request for row in scheduler.slots.rows]
        most = max(most, len(rows))
        if len(ends) == 0 and len(rows) < most:
            fewest = min(fewest, len(rows))
            assert requests[0] in rows  # the oldest never is
    assert most > fewest
    assert [one.request for one in ends] == requests
    for one in ends:
        assert_as_alone(one)
    assert runtime.most_bytes <= runtime.cache.max_bytes


@pytest.mark.parametrize("drafted", [0, 3])
@pytest.mark.parametrize("tokens", range(692, 704))
def test_a_row_does_not_grow_into_room_that_others_were_promised(tokens: int, drafted: int):
    """That of samples which are yet to copy the prompt that is being run for them."""

    class Right:
        """Drafts what comes."""

        def kind(self, one: Row) -> str:
            return "right"

        def draft(self, one: Row, limit: int) -> list[int]:
            return alone(one.history, limit)[0]

    runtime = FakeRuntime()
    runtime.cache.max_bytes = TOKEN_BYTES * 4 * 704
    scheduler = Scheduler(runtime, 4)
    scheduler.pace.limit = lambda kind, room: min(drafted, room)  # type: ignore[method-assign]
    old = make(lasting(690, 60), 60, Batch(4), drafters=[Right()])
    scheduler.add(old)
    while not scheduler.slots.rows or runtime.cache.length(0) < tokens:
        assert not scheduler.step()
    new = make(lasting(600, 10, 7), 10, Batch(4), 3)  # its prompt takes several steps
    scheduler.add(new)
    ends = finished(run(scheduler))
    assert {one.request for one in ends} == {old, new}
    for one in ends:
        assert_as_alone(one)
    assert runtime.most_bytes <= runtime.cache.max_bytes


def test_beams_are_set_back_together():
    def result(budget: int | None) -> tuple[list[list[int]], int]:
        runtime = FakeRuntime()
        runtime.cache.max_bytes = budget
        scheduler = Scheduler(runtime, 8)
        scheduler.add(make(lasting(20, 200), 200, Batch(1)))
        scheduler.step()
        beams = beam_request(80, 3, prompts([30], 5)[0])
        scheduler.add(beams)
        events = finished(run(scheduler))
        [end] = [one for one in events if one.request is beams]
        return [row.token_ids for row in end.rows[:1]], len(runtime.calls)

    plain, few = result(None)
    tight, many = result(TOKEN_BYTES * 4 * 100)
    assert tight == plain
    assert many > few  # it was set back on the way


def test_what_can_never_fit_is_refused():
    runtime = FakeRuntime()
    runtime.cache.max_bytes = TOKEN_BYTES * 100
    scheduler = Scheduler(runtime, 4)
    with pytest.raises(KVCacheFull):
        scheduler.add(make([1] * 90, 40, Batch(1)))
    with pytest.raises(KVCacheFull):
        scheduler.add(beam_request(40, 3))
    assert_empty(scheduler, runtime)
    scheduler.add(make([1] * 60, 30, Batch(1)))
    assert_as_alone(finished(run(scheduler))[0])


def test_capacity_is_given_back_when_the_longest_leaves():
    runtime = FakeRuntime()
    scheduler, batch = Scheduler(runtime, 4), Batch(4)
    scheduler.add(make(lasting(10, 100), 100, batch))
    scheduler.add(make(prompts([1000])[0], 1, batch))
    scheduler.step()
    scheduler.step()
    assert runtime.cache.capacity == 1024 or runtime.cache.capacity == 128
    seen = {runtime.cache.capacity}
    while scheduler.has_work:
        scheduler.step()
        seen.add(runtime.cache.capacity)
    assert 1024 in seen
    assert runtime.cache.capacity == 128


def test_a_row_set_back_goes_on_from_the_prefix_cache():
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 2, PrefixCache(10**6))
    one = make(lasting(40, 100), 100, Batch(1))
    scheduler.add(one)
    for _ in range(60):
        scheduler.step()
    scheduler.hold(one)
    assert scheduler.slots.used == 0
    assert not scheduler.has_work
    runtime.calls.clear()
    scheduler.release(one)
    [end] = finished(run(scheduler))
    assert_as_alone(end)
    assert prefills(runtime) == []  # not even its prompt
    assert len(runtime.calls) <= 40 + BLOCK


# Events.


def test_the_texts_of_a_stream_join_to_its_text():
    scheduler, batch = Scheduler(FakeRuntime(), 4), Batch(4)
    one = make(lasting(5, 30), 30, batch, samples=2, streamed=True)
    one.stops = lambda: StopChecker(Letters(), Truncator("Q").scanner())
    silent = make(lasting(6, 30), 30, batch)
    scheduler.add(one)
    scheduler.add(silent)
    events = run(scheduler)
    texts = [event for event in events if isinstance(event, Text)]
    assert all(event.request is one for event in texts)
    [end] = [event for event in finished(events) if event.request is one]
    for row in end.rows:
        own = [event for event in texts if event.index == row.index]
        assert "".join(event.text for event in own) == row.stops.text
        assert [event.finish_reason for event in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == row.finish_reason
        assert len(own) > 3
    assert events.index(end) > max(events.index(event) for event in texts)


def test_hooks_see_each_forward_step_and_harm_none(caplog: pytest.LogCaptureFixture):
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 2)
    seen: list[Forward] = []

    def fail(step: Forward) -> None:
        raise ValueError("not I")

    scheduler.hooks += [fail, seen.append]
    scheduler.add(make(lasting(300, 5), 5, Batch(1)))
    with caplog.at_level(logging.WARNING):
        [end] = finished(run(scheduler))
    assert_as_alone(end)
    assert [(one.kind, one.tokens) for one in seen] == [
        ("prefill", [256]),
        ("prefill", [44]),
        *[("decode", [1])] * 4,
    ]
    assert all(one.seconds >= 0 for one in seen)
    assert [record.getMessage() for record in caplog.records] == [
        "a step hook is dropped, since it raised ValueError('not I')"
    ]


def test_rows_are_of_one_age_order():
    scheduler, batch = Scheduler(FakeRuntime(), 8), Batch(8)
    for n in range(8):
        scheduler.add(make(lasting(5, 20, n), 20, batch))
    scheduler.step()
    rows: list[Row] = sorted(scheduler.slots.rows, key=lambda row: row.age)
    assert [row.request for row in rows] == scheduler.requests


@pytest.mark.parametrize(("limit", "capacity"), [(1, 128), (8, 256), (200, 256)])
def test_a_prompt_has_room_for_the_first_tokens_after_it(limit: int, capacity: int):
    """To grow within the first steps would copy all that is held."""
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime)
    scheduler.add(make(lasting(MIN_CAPACITY - 4, limit), limit, Batch(1)))
    scheduler.step()
    assert runtime.cache.capacity == capacity
    allocation = runtime.cache.allocation
    for _ in range(min(limit, 60)):
        scheduler.step()
    assert runtime.cache.allocation == allocation


def test_room_that_the_budget_forbids_is_not_taken():
    """Rows that may run together do so, in as much as there is."""
    runtime, batch = FakeRuntime(), Batch(2)
    # Enough for both prompts, and for what the first one is to have beyond its own only alone.
    runtime.cache.max_bytes = runtime.cache.bytes(2, MIN_CAPACITY)
    short, long = lasting(MIN_CAPACITY - 60, 100), lasting(MIN_CAPACITY - 20, 2)
    scheduler = Scheduler(runtime, 2)
    for prompt, limit in ((short, 70), (long, 2)):
        scheduler.add(make(prompt, limit, batch))
    for one in finished(run(scheduler)):
        assert_as_alone(one)
    assert runtime.most_bytes <= runtime.cache.max_bytes
