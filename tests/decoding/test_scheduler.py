"""Continuous batching over a runtime whose "model" is a checksum of each slot's history."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import pytest
from fake_runtime import EOS, VOCAB, FakeRuntime, next_token
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_probe import NoSampler, sequence

from paddlenlp_codegen_task.decoding import scheduler
from paddlenlp_codegen_task.decoding.scheduler import Job, Scheduler
from paddlenlp_codegen_task.decoding.sequence import Sequence
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, StepOutput


@dataclass(eq=False)
class Checker:
    """The sampler of one job, which checks what the scheduler asks of it."""

    runtime: FakeRuntime
    asked: int = 0

    def advance(self, output: StepOutput, sequences: Rows[Sequence]) -> list[tuple[int, int]]:
        self.asked += 1
        assert all(one.sampler is self for one in sequences)
        assert all(one.finish_reason is None for one in sequences)
        slot, _ = self.runtime.calls[-1]
        new = [not one.token_ids for one in sequences]
        assert all(new) or not any(new)
        assert all(new) or slot == 0  # all that run take part in a step
        tokens = [int(token) for token in output.candidate_ids[:, 0]]
        # Each row was computed from the history of the very sequence it is taken for.
        assert tokens == [next_token([*one.prompt_ids, *one.token_ids]) for one in sequences]
        np.testing.assert_array_equal(output.logits().argmax(axis=1), tokens)
        for one, token in zip(sequences, tokens, strict=True):
            one.append(token)
        return []


def make(
    lengths: list[tuple[int, int]], seed: int, runtime: FakeRuntime, samples: int = 1
) -> list[Sequence]:
    """Sequences of (tokens of the prompt, most new tokens), `samples` of each prompt."""
    rng, checker = np.random.default_rng(seed), Checker(runtime)
    prompts = [rng.integers(VOCAB, size=prompt).tolist() for prompt, _ in lengths]
    return [
        sequence(VOCAB, prompt, sampler=checker, eos_token_id=EOS, max_length=limit + n)
        for prompt, (_, limit) in zip(prompts, lengths, strict=True)
        for n in range(samples)
    ]


def run(runtime: FakeRuntime, *jobs: Job) -> None:
    """Run jobs to their end, checking before every decode step that no slot is idle."""
    scheduler = Scheduler(runtime)
    for job in jobs:
        scheduler.submit(job)
    while not all(job.done for job in jobs):
        scheduler.step()
    scheduler.step()  # nothing is left to do
    assert not any(job.running for job in jobs)


def assert_as_alone(one: Sequence) -> None:
    tokens: list[int] = []
    reason = None
    while reason is None:
        token = next_token([*one.prompt_ids, *tokens])
        if token == EOS:
            reason = "eos"
        else:
            tokens.append(token)
            reason = "length" if len(tokens) == one.max_length else None
    assert one.token_ids == tokens
    assert one.finish_reason == reason


sizes = st.one_of(st.integers(1, 8), st.integers(1, 70), st.sampled_from([255, 256, 257, 700]))
works = st.lists(st.tuples(sizes, st.integers(1, 30)), max_size=12)


@settings(max_examples=200, deadline=None)
@given(works, st.integers(1, 13), st.integers(1, 4), st.integers(0, 1000))
def test_every_sequence_gets_what_it_would_get_alone(
    work: list[tuple[int, int]], batch_size: int, samples: int, seed: int
):
    runtime = FakeRuntime(batch_size)
    sequences = make(work, seed, runtime, samples)
    job = Job(sequences, batch_size)
    run(runtime, job)
    assert sorted(map(id, job.finished)) == sorted(map(id, sequences))
    for one in sequences:
        assert_as_alone(one)
    for _, lengths in runtime.calls:
        padded, total = len(lengths) * max(lengths), sum(lengths)
        assert padded <= max(
            (1 + scheduler.PADDING_SHARE) * total, scheduler.SMALL_PREFILL, len(lengths)
        )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(works, st.integers(1, 5)), max_size=4), st.integers(0, 1000))
def test_jobs_run_together(parts: list[tuple[list[tuple[int, int]], int]], seed: int):
    # Buffers grow by doubling.
    runtime = FakeRuntime(2 * max((batch_size for _, batch_size in parts), default=1))
    jobs = [
        Job(make(work, seed + n, runtime), batch_size) for n, (work, batch_size) in enumerate(parts)
    ]
    run(runtime, *jobs)
    for job, (work, _) in zip(jobs, parts, strict=True):
        assert len(job.finished) == len(work)
        for one in job.finished:
            assert_as_alone(one)


def test_a_small_job_does_not_wait_for_a_large_one():
    runtime = FakeRuntime(2)
    large = Job(make([(5, 20)] * 9, 0, runtime), 2)
    small = Job(make([(5, 3)], 1, runtime), 1)
    scheduler = Scheduler(runtime)
    scheduler.submit(large)
    scheduler.step()
    scheduler.submit(small)
    while not small.done:
        scheduler.step()
    assert len(large.finished) < 5


@settings(max_examples=100, deadline=None)
@given(works, works, st.integers(1, 5), st.integers(0, 12), st.integers(0, 1000))
def test_a_cancelled_job_leaves_nothing_behind(
    first: list[tuple[int, int]],
    second: list[tuple[int, int]],
    batch_size: int,
    steps: int,
    seed: int,
):
    runtime = FakeRuntime(batch_size)
    scheduler = Scheduler(runtime)
    cancelled = Job(make(first, seed, runtime), batch_size)
    other = Job(make(second, seed + 1, runtime), batch_size)
    scheduler.submit(cancelled)
    for _ in range(steps):
        scheduler.step()
    scheduler.submit(other)
    scheduler.step()
    cancelled.cancelled = True
    scheduler.drop_cancelled()
    assert len(scheduler._running) == other.running
    while not other.done:
        scheduler.step()
    assert len(other.finished) == len(second)
    for one in (*cancelled.finished, *other.finished):
        assert_as_alone(one)


def test_a_step_that_fails_ends_all_jobs_and_the_next_one_starts_afresh():
    runtime = FakeRuntime(3)
    scheduler = Scheduler(runtime)
    jobs = [Job(make([(4, 9)], n, runtime), 3) for n in range(2)]
    for job in jobs:
        scheduler.submit(job)
    scheduler.step()
    broken = Job(make([(4, 9)], 5, runtime), 3)
    assert broken.waiting is not None
    broken.waiting.sampler = NoSampler()
    scheduler.submit(broken)
    with pytest.raises(AssertionError) as failure:
        scheduler.step()
    assert all(job.done and job.error is failure.value for job in (*jobs, broken))
    assert not runtime.cache.lengths
    again = Job(make([(4, 9), (30, 2)], 7, runtime), 3)
    run(runtime, again)
    assert len(again.finished) == 2


def test_samples_share_their_prompt_s_prefill():
    runtime = FakeRuntime(4)
    job = Job(make([(70, 3), (65, 3)], 0, runtime, samples=2), 4)
    run(runtime, job)
    assert runtime.calls[0] == (0, [70, 65])
    assert runtime.copies[:3] == [(1, 3), (1, 2), (0, 1)]
    for one in job.finished:
        assert_as_alone(one)


def lengths_of_prefills(prompts: list[int], batch_size: int) -> list[list[int]]:
    runtime = FakeRuntime(batch_size)
    # One token each: all steps are prefills.
    run(runtime, Job(make([(length, 1) for length in prompts], 0, runtime), batch_size))
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
    runtime = FakeRuntime(2)
    checker = Checker(runtime)
    job = Job(
        [
            sequence(VOCAB, prompt, sampler=checker, eos_token_id=EOS, max_length=limit)
            for prompt, limit in zip(prompts, (2, 5, 4, 1), strict=True)
        ],
        2,
    )
    run(runtime, job)
    assert [prompts.index(one.prompt_ids) for one in job.finished] == [0, 2, 1, 3]
    assert runtime.calls == [
        (0, [70, 70]),
        (0, [1, 1]),  # the first is done, and the second takes its slot
        (1, [70]),
        (0, [1, 1]),
        (0, [1, 1]),
        (0, [1, 1]),  # both are done
        (0, [70]),
    ]
    assert runtime.copies == [(1, 0)]


def test_nothing_to_do():
    runtime = FakeRuntime(4)
    run(runtime, Job([], 4))
    assert runtime.calls == []


def prefills(runtime: FakeRuntime) -> int:
    """Rows of more than one token, in all steps."""
    return sum(length > 1 for _, lengths in runtime.calls for length in lengths)


@pytest.mark.parametrize("limit", [9, 1])
def test_more_samples_than_slots_share_one_prefill(limit: int):
    runtime = FakeRuntime(4)
    job = Job(make([(6, limit)] * 2, 3, runtime, samples=16), 4)
    run(runtime, job)
    assert len(job.finished) == 32
    for one in job.finished:
        assert_as_alone(one)
    assert prefills(runtime) == 2


def test_samples_do_not_keep_their_slots_from_another_job():
    runtime = FakeRuntime(4)
    samples, other = (
        Job(make([(6, 5)], 3, runtime, samples=40), 4),
        Job(make([(5, 3)], 1, runtime), 1),
    )
    scheduler = Scheduler(runtime, batch_size=4)
    scheduler.submit(samples)
    scheduler.step()
    scheduler.submit(other)
    while not other.done:
        scheduler.step()
    assert len(samples.finished) < 12


def test_jobs_of_one_sequence_share_a_batch():
    runtime = FakeRuntime(8)
    scheduler = Scheduler(runtime, batch_size=4)
    jobs = [Job(make([(4, 20)], seed, runtime), 1) for seed in range(4)]
    for job in jobs:
        scheduler.submit(job)
    scheduler.step()
    assert [job.running for job in jobs] == [1] * 4
    assert [len(lengths) for _, lengths in runtime.calls][-1] == 4


def test_a_job_of_one_goes_before_the_rest_of_a_job_that_has_started_many():
    runtime = FakeRuntime(16)
    large = Job(make([(4, 3)] * 40, 0, runtime), 8)  # eight end in the same step
    scheduler = Scheduler(runtime, batch_size=8)
    scheduler.submit(large)
    scheduler.step()
    small = Job(make([(5, 3)], 1, runtime), 1)
    scheduler.submit(small)
    while not small.done:
        scheduler.step()
    assert len(large.finished) <= 16


def test_beams_do_not_wait_for_all_of_a_large_job():
    runtime = FakeRuntime(16)
    lengths = [(4, 3 + n % 7) for n in range(60)]  # slots become free one by one
    large = Job(make(lengths, 0, runtime), 8)
    scheduler = Scheduler(runtime, batch_size=8)
    scheduler.submit(large)
    scheduler.step()
    beams = Job(make([(5, 3)], 1, runtime, samples=4), 4, together=4)
    scheduler.submit(beams)
    while not beams.started:
        scheduler.step()
    assert len(large.finished) <= 16
    while not (beams.done and large.done):
        scheduler.step()


def test_a_copy_that_fails_while_cancelling_ends_all_jobs(monkeypatch: pytest.MonkeyPatch):
    runtime = FakeRuntime(4)
    scheduler = Scheduler(runtime, batch_size=4)
    jobs = [Job(make([(4, 20)], seed, runtime), 1) for seed in range(3)]
    for job in jobs:
        scheduler.submit(job)
    scheduler.step()
    jobs[0].cancelled = True

    def fail(source: int, target: int) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(runtime, "copy", fail)
        with pytest.raises(MemoryError):
            scheduler.drop_cancelled()
    assert all(job.done for job in jobs)
    assert isinstance(jobs[2].error, MemoryError)
    after = Job(make([(4, 5)], 9, runtime), 1)
    scheduler.submit(after)
    while not after.done:
        scheduler.step()
    assert_as_alone(after.finished[0])


def test_finished_sequences_are_small():
    runtime = FakeRuntime(2)
    job = Job(make([(4, 5)] * 4, 0, runtime), 2)
    run(runtime, job)
    assert all(one.seen.size == 0 and one.drafter is None for one in job.finished)
