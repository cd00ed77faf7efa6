"""The log-probabilities of prompts, over a runtime whose "model" is a checksum."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import pytest
from fake_runtime import EOS, VOCAB, FakeRuntime, next_token
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_probe import request

from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished, Text
from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.request import Batch, Request
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, StepOutput

COUNT = 1  # of the likeliest: the one token that the fake runtime knows


def scoring(prompt: Rows[int], limit: int, samples: int = 1, **options: Any) -> Request:
    """A request that wants its prompt's log-probabilities."""
    config = GenerationConfig(
        decode_strategy="greedy_search", repetition_penalty=1.0, prompt_logprobs=COUNT
    )
    return request(
        VOCAB, list(prompt), config, eos_token_id=EOS, max_length=limit, samples=samples, **options
    )


def plain(prompt: Rows[int], limit: int) -> Request:
    return request(VOCAB, list(prompt), eos_token_id=EOS, max_length=limit)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(VOCAB, size=length).tolist()


def expected(prompt_ids: Rows[int]) -> list[dict[int, float]]:
    """The only token that is likely has all there is, any other exp(-50)."""
    found = []
    for n, token_id in enumerate(prompt_ids[1:], start=1):
        likeliest = next_token(prompt_ids[:n])
        found.append({token_id: 0.0 if token_id == likeliest else -50.0, likeliest: 0.0})
    return found


def run(scheduler: Scheduler) -> list[Event]:
    events: list[Event] = []
    while scheduler.has_work:
        events += scheduler.step()
    return events


def finished(events: Rows[Event]) -> list[Finished]:
    assert not [one for one in events if isinstance(one, Failed)]
    return [one for one in events if isinstance(one, Finished)]


lengths = st.one_of(st.integers(1, 8), st.sampled_from([255, 256, 257, 513]))
works = st.lists(
    st.tuples(lengths, st.integers(0, 6), st.integers(1, 3), st.booleans()), min_size=1, max_size=6
)


@settings(max_examples=100, deadline=None)
@given(works, st.integers(1, 7), st.booleans(), st.integers(0, 1000))
def test_each_prompt_gets_its_own_beside_others(
    work: list[tuple[int, int, int, bool]], batch_size: int, cached: bool, seed: int
):
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, batch_size, PrefixCache(1 << 20) if cached else None)
    asked = []
    for n, (length, limit, samples, scores) in enumerate(work):
        text = prompt(length, seed + n % 2)  # some begin like others
        asked.append(scoring(text, limit, samples) if scores else plain(text, limit + 1))
        scheduler.add(asked[-1])
    for one in finished(run(scheduler)):
        wants = one.request.parameters.prompt_logprobs is not None
        assert one.request.prompt_log_probs == (expected(one.request.prompt_ids) if wants else None)
        for row in one.rows:
            alone: list[int] = []
            while len(alone) < one.request.max_length:
                token = next_token([*one.request.prompt_ids, *alone])
                if token == EOS:
                    break
                alone.append(token)
            assert row.token_ids == alone
    assert not scheduler.slots.used
    assert not scheduler.requests


def test_none_is_taken_from_the_prefix_cache_and_all_is_kept_there():
    runtime, cache = FakeRuntime(), PrefixCache(1 << 20)
    scheduler, text = Scheduler(runtime, 4, cache), prompt(300)
    for make in (plain, scoring, plain):
        runtime.calls.clear()
        scheduler.add(make(text, 1))
        [one] = finished(run(scheduler))
        ran = sum(sum(tokens) for _, tokens in runtime.calls)
        assert one.rows[0].cached_tokens == (0 if make is scoring else 300 - ran)
    assert ran < 100


@pytest.mark.parametrize("device_id", [None, 0])
def test_it_runs_by_itself(device_id: int | None):
    """On a GPU too in chunks of a CPU's size: they bring the logits of every token."""
    runtime = FakeRuntime()
    runtime.device_id = device_id
    scheduler = Scheduler(runtime, 8)
    for seed in range(2):
        scheduler.add(plain(prompt(5, seed), 3))
    scheduler.add(scoring(prompt(5, 2), 0))
    scheduler.add(scoring(prompt(PREFILL_CHUNK + 5, 3), 0))
    finished(run(scheduler))
    prefills = [tokens for _, tokens in runtime.calls if max(tokens) > 1]
    assert prefills == [[5, 5], [5], [PREFILL_CHUNK], [5]]


@pytest.mark.parametrize("steps", [1, 2])
def test_it_begins_anew_after_it_was_held(steps: int):
    scheduler = Scheduler(FakeRuntime(), 1)
    one = scoring(prompt(600), 2)
    scheduler.add(one)
    for _ in range(steps):
        scheduler.step()
    scheduler.hold(one)
    assert not scheduler.slots.used
    scheduler.release(one)
    [done] = finished(run(scheduler))
    assert done.request.prompt_log_probs == expected(one.prompt_ids)


@pytest.mark.parametrize("limit", [0, 2])
def test_they_are_there_with_the_first_text(limit: int):
    scheduler = Scheduler(FakeRuntime(), 1)
    one = scoring(prompt(5), limit, streamed=True)
    scheduler.add(one)
    events: list[Event] = []
    while not events:
        events += scheduler.step()
        known = one.prompt_log_probs
    assert known == expected(one.prompt_ids)
    events += run(scheduler)
    [last] = [event for event in events if isinstance(event, Text) and event.finish_reason]
    assert last.finish_reason in ("length", "eos")


@pytest.mark.parametrize(("length", "chunk"), [(5, 0), (600, 0), (600, 2)])
@pytest.mark.parametrize("limit", [0, 3])
def test_logits_that_are_no_numbers_fail_it_alone(length: int, chunk: int, limit: int):
    runtime = FakeRuntime()
    scheduler = Scheduler(runtime, 4)
    other, broken = plain(prompt(4, 1), 8), scoring(prompt(length), limit, batch=Batch(4))
    scheduler.add(other)
    scheduler.step()
    seen = 0

    def nan(_: int, token_ids: Rows[Rows[int]], output: StepOutput) -> StepOutput:
        nonlocal seen
        if len(token_ids[0]) > 1:
            if seen == chunk:
                output.logsumexp[1] = np.nan
            seen += 1
        return output

    runtime.on_forward = nan
    scheduler.add(broken)
    events = run(scheduler)
    [failed] = [one for one in events if isinstance(one, Failed)]
    assert failed.request is broken
    assert isinstance(failed.error, FloatingPointError)
    [done] = [one for one in events if isinstance(one, Finished)]
    assert done.request is other
    assert not scheduler.slots.used
