"""Speculation: what is drafted decides how many tokens a step yields, and nothing else."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import EOS, VOCAB, FakeRuntime, next_token, one_hot_output
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import spread_tensors, write_model
from safetensors.numpy import load_file, save_file
from sampler_probe import request, row
from scipy.stats import chisquare

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished, Forward
from paddlenlp_codegen_task.decoding.pace import MAX_DRAFT, Pace
from paddlenlp_codegen_task.decoding.request import Drafter, Request, Row
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.decoding.speculation import DraftModel, PromptLookup
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.generator import DEFAULT_BATCH_SIZE
from paddlenlp_codegen_task.loading import LoadOptions, load_model
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.base import StepOutput


class Always(Pace):
    """Drafts as many tokens as it may."""

    def limit(self, kind: str, room: int) -> int:
        return max(min(room, MAX_DRAFT), 0)


class Oracle:
    """Drafts what the model will say, and then something else."""

    def __init__(self, right: int, wrong: int) -> None:
        self.right, self.wrong = right, wrong
        self.asked = 0

    def kind(self, one: Row) -> str:
        return "oracle"

    def draft(self, one: Row, limit: int) -> list[int]:
        self.asked += 1
        history, found = one.history, list[int]()
        for _ in range(self.right):
            found.append(next_token([*history, *found]))
        found += [(next_token([*history, *found]) + 1) % VOCAB] * self.wrong
        return found[:limit]


def run(scheduler: Scheduler) -> list[Event]:
    """Step to the end of all requests."""
    events: list[Event] = []
    while scheduler.has_work:
        events += scheduler.step()
    return events


def completed(scheduler: Scheduler, one: Request) -> list[Row]:
    """The rows of a request that runs alone."""
    scheduler.add(one)
    [event] = run(scheduler)
    assert isinstance(event, Finished)
    return event.rows


def asked(prompt: list[int], max_length: int, drafters: Rows[Drafter] = ()) -> Request:
    return request(VOCAB, prompt, eos_token_id=EOS, max_length=max_length, drafters=drafters)


def plainly(prompt: list[int], max_length: int) -> list[int]:
    """What a prompt gives without speculation."""
    tokens: list[int] = []
    while len(tokens) < max_length and (token := next_token([*prompt, *tokens])) != EOS:
        tokens.append(token)
    return tokens


def always(runtime: Any) -> Scheduler:
    scheduler = Scheduler(runtime)
    scheduler._speculation.pace = Always()
    return scheduler


prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6), st.integers(0, 3), prompts, st.integers(1, 40))
def test_a_draft_is_taken_as_far_as_it_is_right(
    right: int, wrong: int, prompt: list[int], max_length: int
):
    runtime = FakeRuntime(1)
    [one] = completed(always(runtime), asked(prompt, max_length, [Oracle(right, wrong)]))
    tokens = plainly(prompt, max_length)
    assert one.token_ids == tokens
    assert one.finish_reason == ("length" if len(tokens) == max_length else "eos")
    steps = len(runtime.calls) - 1  # one prefills and yields a token
    assert steps <= -(-len(tokens) // (right + 1))
    assert all(lengths[0] <= right + wrong + 1 for _, lengths in runtime.calls[1:])
    assert runtime.cache.length(0) <= len(prompt) + max_length


class Poisoned(FakeRuntime):
    """Its logits are not numbers behind any token that it did not give itself.

    Attributes:
        after_right: how many of its own tokens give numbers; then come none in any case.
        poisoned: how many tokens gave none.
        left: the places of those of them in the slot that have not been erased.
    """

    def __init__(self, prompt: list[int], after_right: int = 10**9) -> None:
        super().__init__(1)
        self.prompt, self.after_right = prompt, after_right
        self.poisoned, self.left = 0, set[int]()
        erase = self.cache.erase

        def spy(slot: int) -> None:
            self.left = {place for place in self.left if place < self.cache.length(slot)}
            erase(slot)

        self.cache.erase = spy  # type: ignore[method-assign]

    def forward(
        self, slot: int, token_ids: Rows[Rows[int]], every: bool = False, generated: bool = False
    ) -> StepOutput:
        # 0 weights times what is there would be NaN.
        assert not self.left
        output = super().forward(slot, token_ids, every, generated)
        history = self.held(slot)
        broken = np.zeros(len(output.logsumexp), bool)
        for n in range(len(broken)):
            new = history[len(self.prompt) : len(history) - len(broken) + n + 1]
            own = [next_token([*self.prompt, *new[:at]]) for at in range(len(new))]
            broken[n] = new != own or len(new) >= self.after_right
            if broken[n]:
                self.poisoned += 1
                self.left.add(len(self.prompt) + len(new) - 1)
        output.candidates[broken] = np.nan
        output.logsumexp[broken] = np.nan
        return output


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 6), st.integers(0, 3), prompts, st.integers(1, 40))
def test_only_logits_that_a_right_guess_leads_to_must_be_numbers(
    right: int, wrong: int, prompt: list[int], max_length: int
):
    runtime, drafter = Poisoned(prompt), Oracle(right, wrong)
    [one] = completed(always(runtime), asked(prompt, max_length, [drafter]))
    assert one.token_ids == plainly(prompt, max_length)
    assert not runtime.left
    if not wrong:
        assert not runtime.poisoned


def ending_after(count: int) -> list[int]:
    """A prompt whose text has so many tokens."""
    prompts = ([n % VOCAB, n // VOCAB, 7] for n in range(VOCAB**2))
    return next(one for one in prompts if len(plainly(one, count + 1)) == count)


@pytest.mark.parametrize("after_right", range(4, 13))
def test_what_follows_the_end_of_the_text_need_not_be_numbers(after_right: int):
    """Right guesses may lead behind it, too; what they leave in the slot must not stay there."""
    prompt = ending_after(3)
    runtime = Poisoned(prompt, after_right)
    # The first token comes with the prompt, and the second without a guess.
    [one] = completed(always(runtime), asked(prompt, 40, [Oracle(10, 0)]))
    assert one.token_ids == plainly(prompt, 40)
    assert one.finish_reason == "eos"
    assert bool(runtime.poisoned) == (after_right <= 11)
    assert not runtime.left


@pytest.mark.parametrize("wrong", [0, 2])
def test_logits_that_a_right_guess_leads_to_must_be_numbers(wrong: int):
    prompt = [3, 1, 4]
    assert len(plainly(prompt, 12)) == 12
    runtime, beside = Poisoned(prompt, after_right=9), Oracle(4, wrong)
    scheduler, one = always(runtime), asked(prompt, 12, [beside])
    scheduler.add(one)
    [event] = run(scheduler)
    assert isinstance(event, Failed)
    assert event.request is one
    assert isinstance(event.error, FloatingPointError)
    assert "logits are not numbers" in str(event.error)
    runtime.after_right = 10**9  # the next request finds no trace of it
    assert completed(scheduler, asked(prompt, 12, [beside]))[0].token_ids == plainly(prompt, 12)


def test_two_rows_are_not_drafted():
    runtime = FakeRuntime(2)
    scheduler = Scheduler(runtime, 2)
    scheduler._speculation.pace = Always()
    oracles = [Oracle(3, 0), Oracle(3, 0)]
    for n, oracle in enumerate(oracles):
        scheduler.add(asked([1, 2 + n], 9, [oracle]))
    scheduler.step()
    scheduler.step()
    assert runtime.calls == [(0, [2, 2]), (0, [1, 1])]
    assert [one.asked for one in oracles] == [0, 0]


class Raising:
    """A drafter that fails, at once or when it is to draft."""

    def __init__(self, where: str) -> None:
        self.where, self.asked = where, 0

    def kind(self, one: Row) -> str:
        self.asked += 1
        if self.where == "kind":
            raise ZeroDivisionError("of the drafter")
        return "raising"

    def draft(self, one: Row, limit: int) -> list[int]:
        raise ZeroDivisionError("of the drafter")


@pytest.mark.parametrize("where", ["kind", "draft"])
@pytest.mark.parametrize("first", [True, False])
def test_a_drafter_that_fails_is_dropped(where: str, first: bool, caplog: pytest.LogCaptureFixture):
    """With one warning; the other drafters go on, and later requests do not ask it again."""
    prompt = [3, 1, 4]
    raising, oracle = Raising(where), Oracle(3, 1) if first else Oracle(0, 0)
    drafters: list[Any] = [raising, oracle] if first else [oracle, raising]
    scheduler = always(FakeRuntime(1))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            [one] = completed(scheduler, asked(prompt, 12, drafters))
            assert one.token_ids == plainly(prompt, 12)
    [record] = caplog.records
    assert "Raising" in record.getMessage()
    assert "of the drafter" in record.getMessage()
    assert raising.asked == 1
    assert oracle.asked > 3


@pytest.mark.parametrize("drafted", [[EOS, 1, 2], [3] * 99])
def test_no_draft_can_change_the_text(drafted: list[int]):
    """Not even one that is longer than asked for, or goes on behind the end of the text."""

    class Fixed:
        def kind(self, one: Row) -> str:
            return "fixed"

        def draft(self, one: Row, limit: int) -> list[int]:
            return drafted

    for n in range(5):
        [one] = completed(always(FakeRuntime(1)), asked([n, 1, 4], 12, [Fixed()]))
        assert one.token_ids == plainly([n, 1, 4], 12)


def lookup(
    prompt: list[int], new: list[int] | None = None, room: int = 99
) -> tuple[str, list[int]]:
    drafter, one = PromptLookup(), row(VOCAB, prompt, new or [])
    return drafter.kind(one), drafter.draft(one, room)


def test_prompt_lookup():
    assert lookup([1, 2, 3]) == ("", [])
    assert lookup([1, 2, 1, 2], room=3) == ("2-gram", [1, 2, 1])
    assert lookup([1, 2, 3, 4, 1, 2], room=5) == ("2-gram", [3, 4, 1, 2, 3])
    assert lookup([1, 2, 3, 4, 1], [2], room=1) == ("2-gram", [3])
    assert lookup([7, 9, 1, 2, 3, 8, 1, 2, 4, 7, 9, 1, 2])[1][0] == 3  # the longest match
    assert lookup([1, 2, 3, 1, 2, 4, 1, 2])[1][0] == 4  # of equal ones the latest
    assert lookup([5, 5, 5, 5], room=7)[1] == [5] * 7  # a loop goes on
    assert lookup([1, 2, 3, 4, 5, 6, 7, 2, 3], [4, 9, 2, 3], room=4)[1] == [4, 9, 2, 3]
    assert lookup([1, 2, 8, 3, 1, 2, 8], room=9)[1] == [3, 1, 2, 8, 3, 1, 2, 8, 3]


def test_prompt_lookup_follows_what_is_generated():
    drafter, one = PromptLookup(), row(VOCAB, [1, 2, 3])
    assert drafter.kind(one) == ""
    assert drafter.draft(one, 9) == []
    one.token_ids += [7, 1, 2]
    assert drafter.kind(one) == "2-gram"
    assert drafter.draft(one, 5) == [3, 7, 1, 2, 3]


def steps(
    pace: Pace,
    accepted: float,
    rounds: int,
    row: float,
    seed: int = 0,
    draft: float = 0.0,
    first: float = 1.0,
) -> tuple[int, float]:
    """Tokens and seconds of `rounds` steps whose drafts are right with this chance a token.

    Each row of a step takes `row` seconds beside the first, which takes 1, and drafting a token
    takes `draft`; the first step with a draft is `first` times as slow.
    """
    random, tokens, seconds = np.random.default_rng(seed), 0, 0.0
    for _ in range(rounds):
        drafted = pace.limit("x", 99)
        took = 1.0 + row * drafted
        if drafted:
            took, first = took * first, 1.0
        right = 0
        while right < drafted and random.random() < accepted:
            right += 1
        tokens, seconds = tokens + right + 1, seconds + took + draft * drafted
        if drafted:
            pace.note_draft("x", drafted, draft * drafted)
            pace.note_verified("x", drafted, right, took)
        else:
            pace.note_plain(took)
    return tokens, seconds


@pytest.mark.parametrize(
    ("accepted", "row", "least"),
    [(0.95, 0.02, 5.0), (0.8, 0.1, 2.0), (0.5, 0.1, 1.2), (0.02, 0.1, 0.96), (0.3, 1.0, 0.94)],
)
def test_the_pace_adapts(accepted: float, row: float, least: float):
    """Tokens a second, where one without drafts is 1."""
    tokens, seconds = steps(Pace(), accepted, 3000, row)
    assert tokens / seconds > least


@pytest.mark.parametrize(
    ("accepted", "row", "draft", "least"),
    [
        (0.0, 0.4, 0.1, 0.9),  # as 350M for 6B in int4 with AVX2: nearly nothing is lost by trying
        (0.8, 0.4, 0.1, 1.1),
        (0.0, 0.01, 0.3, 0.9),  # as on a GPU
        (0.8, 0.01, 0.3, 1.3),
        (0.9, 0.03, 0.0, 2.5),  # as prompt lookup in fp32
    ],
)
def test_the_pace_adapts_within_a_completion(
    accepted: float, row: float, draft: float, least: float
):
    """From the very first token of a process on."""
    found = [steps(Pace(), accepted, 40, row, seed, draft) for seed in range(20)]
    assert sum(tokens for tokens, _ in found) / sum(seconds for _, seconds in found) > least


def test_a_slow_first_step_with_a_draft_is_not_believed():
    found = [steps(Pace(), 0.8, 300, 0.1, seed, 0.0, 20.0) for seed in range(20)]
    assert sum(tokens for tokens, _ in found) / sum(seconds - 19 for _, seconds in found) > 1.8


def test_the_pace_knows_what_each_number_of_tokens_costs():
    """As with kernels that take a second row for next to nothing, and each further one dearly."""
    pace, random, tokens, seconds = Pace(), np.random.default_rng(0), 0, 0.0
    costs = [1.0, 1.1, 1.6, 1.9, 2.3, 2.7, 3.1, 3.4, 3.7, 4.0, 4.4, 4.7, 5.0, 5.4, 5.7, 6.1]
    for _ in range(2000):
        drafted = pace.limit("x", 99)
        took, right = costs[drafted], 0
        while right < drafted and random.random() < 0.7:
            right += 1
        tokens, seconds = tokens + right + 1, seconds + took
        if drafted:
            pace.note_draft("x", drafted, 1e-6)
            pace.note_verified("x", drafted, right, took)
        else:
            pace.note_plain(took)
    assert tokens / seconds > 1.47  # 1.7 tokens for 1.1 at best, but for steps that look again


def test_a_number_of_tokens_that_was_slow_once_is_not_ruled_out():
    """As where the machine did something else meanwhile: it is chosen again later."""
    pace = Pace()
    steps(pace, 1.0, 400, 0.05)
    assert pace.limit("x", 99) == MAX_DRAFT
    for count in range(3, MAX_DRAFT + 1):
        pace.note_verified("x", count, count, 30.0)
    assert pace.limit("x", 99) < MAX_DRAFT
    steps(pace, 1.0, 8000, 0.05)
    assert pace.limit("x", 99) > MAX_DRAFT - 3


def test_a_kind_that_did_not_pay_is_tried_again():
    pace = Pace()
    steps(pace, 0.0, 400, 0.2)
    assert pace.limit("x", 99) == 0 or pace.kinds["x"].idle == 0
    tokens, seconds = steps(pace, 0.95, 3000, 0.05)
    assert tokens / seconds > 3


def test_no_more_is_drafted_than_there_is_room_for():
    pace = Pace()
    steps(pace, 1.0, 400, 0.01)
    assert pace.limit("x", 99) == MAX_DRAFT
    assert pace.limit("x", 3) == 3
    for room in (0, -1, -9):
        assert [pace.limit("x", room) for _ in range(100)] == [0] * 100


class Chain:
    """A runtime of a Markov chain over a few tokens."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.fake = logits, FakeRuntime(1)
        self.cache = self.fake.cache
        self.config = self.fake.config
        self.device_id = None
        self.same_products = True

    def forward(
        self, slot: int, token_ids: Rows[Rows[int]], every: bool = False, generated: bool = False
    ) -> StepOutput:
        self.fake.forward(slot, token_ids, every, generated)
        [tokens] = token_ids
        rows = self.logits[list(tokens if every else tokens[-1:])]
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :3]
        total = np.log(np.exp(rows).sum(axis=1))
        return StepOutput(np.take_along_axis(rows, ids, axis=1), ids, total, lambda: rows)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("prompt lookup", {}), ("draft model", {}), ("draft model", {"top_p": 0.8})],
    ids=str,
)
def test_samples_follow_the_distribution(kind: str, options: dict[str, Any]):
    """Three tokens of a chain, against the product of their probabilities."""
    rng, size = np.random.default_rng(0), 5
    logits = rng.normal(0, 1, (size, size)).astype(np.float32)
    other = logits + rng.normal(0, 0.7, (size, size)).astype(np.float32)
    config = GenerationConfig(top_k=0, temperature=1.0, repetition_penalty=1.0, **options)
    prompt = [1, 2, 3, 4, 1, 2, 3, 1, 2, 1]
    scheduler = always(Chain(logits))
    draft_model = DraftModel(Chain(other))  # type: ignore[arg-type]
    counts: Counter[tuple[int, ...]] = Counter()
    draws, verified = 3000, 0

    def count(step: Forward) -> None:
        nonlocal verified
        verified += step.kind == "verify"

    scheduler.hooks.append(count)
    for n in range(draws):
        drafter = PromptLookup() if kind == "prompt lookup" else draft_model
        one = request(size, prompt, replace(config, seed=5 + n), max_length=4, drafters=[drafter])
        [found] = completed(scheduler, one)
        counts[tuple(found.token_ids[:3])] += 1
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-chances, axis=1)
    ranked = np.take_along_axis(chances, order, axis=1)
    outside = np.cumsum(ranked, axis=1) - ranked > config.top_p
    np.put_along_axis(chances, order, np.where(outside, 0, ranked), axis=1)
    chances /= chances.sum(axis=1, keepdims=True)
    expected = {
        (a, b, c): draws * chances[1, a] * chances[a, b] * chances[b, c]
        for a in range(size)
        for b in range(size)
        for c in range(size)
    }
    assert not any(counts[key] for key, value in expected.items() if value == 0)
    often = [key for key, value in expected.items() if value >= 5]
    rest = draws - sum(expected[key] for key in often)
    found_often = [counts[key] for key in often]
    should = [expected[key] for key in often]
    if rest > 1:
        found_often, should = [*found_often, draws - sum(found_often)], [*should, rest]
    assert chisquare(found_often, should, sum_check=False).pvalue > 1e-3
    assert verified > draws / 2


REPETITIVE = "def f(x):\n    return x + 1\n\n\ndef f(x):\n    return x + 1\n\n\ndef f("
OPTIONS: list[dict[str, Any]] = [
    {"decode_strategy": "greedy_search"},
    {"decode_strategy": "greedy_search", "repetition_penalty": 1.0},
    {"temperature": 1.2, "top_k": 0, "seed": 1},
    {"seed": 2, "min_length": 30, "top_p": 0.9},
    {"seed": 3, "logprobs": 2, "output_scores": True},
    {"seed": 4, "presence_penalty": 0.5, "frequency_penalty": 0.3, "logit_bias": {11: 2.0}},
]


@contextmanager
def paced(generator: CodeGenerator, pace: Pace) -> Iterator[list[Forward]]:
    """Have a generator draft at this pace; gives a list to which its steps are appended."""
    before, made = generator.engine._loop.scheduler.pace, list[Forward]()

    def set_pace(scheduler: Scheduler, to: Pace) -> None:
        scheduler._speculation.pace = to

    generator.engine.run(lambda scheduler: set_pace(scheduler, pace))
    generator.add_step_hook(made.append)
    try:
        yield made
    finally:
        generator.remove_step_hook(made.append)
        generator.engine.run(lambda scheduler: set_pace(scheduler, before))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("truncation", [None, "\n\n"])
def test_prompt_lookup_changes_no_completion(
    builtin: CodeGenerator, options: dict[str, Any], truncation: str | None
):
    options = {**options, "max_length": 60, "truncation": truncation}
    texts = [REPETITIVE, "x = 1\nx = 1\nx = 1\n", "import os"]
    plain = [builtin.generate(one, prompt_lookup=False, **options) for one in texts]
    with paced(builtin, Always()) as made:
        found = [builtin.generate(one, **options) for one in texts]
    assert any(step.kind == "verify" for step in made)
    for [[one]], [[other]] in zip(found, plain, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.finish_reason == other.finish_reason
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert (one.logprobs is None) == (other.logprobs is None)
        for here, there in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert here == pytest.approx(there, abs=1e-4)


def test_a_slow_first_step_is_not_believed_for_long():
    pace = Pace()
    pace.note_plain(10.0)
    tokens, seconds = steps(pace, 0.1, 400, 0.5)
    assert pace.plain_seconds == pytest.approx(1, rel=0.1)
    tokens, seconds = steps(pace, 0.1, 1000, 0.5)
    assert tokens / seconds > 0.95  # few guesses hold, and each costs half a step


@pytest.mark.parametrize("slower", [1.5, 2.0, 3.0])
def test_a_step_without_a_draft_takes_no_longer_than_one_with(slower: float):
    """Even if the first was slower, and few guesses hold, the first completion is not slowed."""
    found = []
    for seed in range(20):
        pace = Pace()
        pace.note_plain(slower)
        found.append(steps(pace, 0.05, 100, 0.1, seed))
    assert sum(tokens for tokens, _ in found) / sum(seconds for _, seconds in found) > 0.85


def test_guesses_that_begin_to_hold_are_found_after_any_time():
    pace = Pace()
    steps(pace, 0.0, 10_000, 0.05)
    tokens, seconds = steps(pace, 0.95, 3000, 0.05)
    assert tokens / seconds > 2


class Failing:
    """The runtime of a draft model, which fails once."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime, self.armed = runtime, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def forward(self, *arguments: Any) -> StepOutput:
        if self.armed:
            self.armed = False
            self.runtime.cache.clear()
            raise MemoryError("no room")
        return self.runtime.forward(*arguments)


def test_a_draft_model_whose_step_failed_starts_afresh():
    failing = Failing(FakeRuntime(1))
    drafter = DraftModel(failing)  # type: ignore[arg-type]
    one = row(VOCAB, [3, 4, 5], eos_token_id=EOS)
    assert drafter.kind(one)
    first = drafter.draft(one, 4)
    assert first == plainly([3, 4, 5], 4)
    failing.armed = True
    one.token_ids.append(first[0])
    with pytest.raises(MemoryError):
        drafter.draft(one, 4)
    assert drafter.draft(one, 3) == first[1:4]


def test_a_draft_model_runs_only_what_is_new_to_it():
    runtime = FakeRuntime(1)
    drafter, one = DraftModel(runtime), row(VOCAB, list(range(1, 30)), eos_token_id=EOS)
    first = drafter.draft(one, 4)
    assert runtime.calls == [(0, [29]), *[(0, [1])] * 3]
    one.token_ids += [first[0], first[1], first[2] + 1]  # the third guess was wrong
    runtime.calls.clear()
    second = drafter.draft(one, 2)
    assert second == [next_token(one.history), next_token([*one.history, second[0]])]
    assert runtime.calls == [(0, [1]), (0, [1])]


def test_a_draft_model_drafts_no_further_than_its_context_or_the_end_of_text():
    small = replace(FakeRuntime().config, n_positions=8)
    drafter, one = DraftModel(FakeRuntime(1, small)), row(VOCAB, [3, 4, 5, 6], eos_token_id=EOS)
    assert drafter.draft(one, 15) == plainly([3, 4, 5, 6], 4)
    one.token_ids += [1, 2, 3, 4]
    assert drafter.kind(one) == ""
    prompt = ending_after(5)
    found = DraftModel(FakeRuntime(1)).draft(row(VOCAB, prompt, eos_token_id=EOS), 15)
    assert found == [*plainly(prompt, 9), EOS]


def test_a_draft_model_whose_logits_are_no_numbers_says_so():
    runtime = FakeRuntime(1)

    def broken(*_: Any) -> StepOutput:
        output = one_hot_output([3])
        output.logsumexp[:] = np.nan
        return output

    runtime.on_forward = broken
    with pytest.raises(FloatingPointError, match="logits are not numbers"):
        DraftModel(runtime).draft(row(VOCAB, [3, 4, 5], eos_token_id=EOS), 4)


@pytest.fixture(scope="module", params=["same", "lookup too"])
def drafted(request: pytest.FixtureRequest, home_path: Path) -> Iterator[CodeGenerator]:
    """The built-in model, drafting for itself."""
    with CodeGenerator.from_pretrained(
        "builtin",
        draft_model="builtin",
        home_path=home_path,
        device="cpu",
        num_threads=1,
        prompt_lookup=request.param == "lookup too",
    ) as generator:
        yield generator


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_draft_model_changes_no_completion(
    builtin: CodeGenerator, drafted: CodeGenerator, options: dict[str, Any]
):
    options = {**options, "max_length": 50, "truncation": None}
    with paced(drafted, Always()) as made:
        for prompt in ("def add(a, b):", REPETITIVE, "def add(a, b, c):"):
            made.clear()
            [[found]] = drafted.generate(prompt, **options)
            [[plain]] = builtin.generate(prompt, prompt_lookup=False, **options)
            assert found.token_ids == plain.token_ids
            if len(found.token_ids) == 50 and not drafted._defaults.prompt_lookup:
                assert len(made) < 12  # it nearly always agrees with itself


def test_a_draft_model_that_often_errs_changes_no_completion(
    builtin: CodeGenerator, home_path: Path, tmp_path: Path
):
    folder = tmp_path / "noisy"
    shutil.copytree(BUILTIN_FOLDER, folder)
    tensors = load_file(folder / "model.safetensors")
    noise = np.random.default_rng(0).normal(0, 0.02, tensors["lm_head.weight"].shape)
    tensors["lm_head.weight"] = (tensors["lm_head.weight"] + noise).astype(np.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with (
        CodeGenerator.from_pretrained(
            "builtin", draft_model=folder, home_path=home_path, device="cpu", num_threads=1
        ) as drafted,
        paced(drafted, pace := Always()),
    ):
        for options in OPTIONS:
            options = {**options, "max_length": 50, "truncation": None, "prompt_lookup": False}
            [[found]] = drafted.generate("def add(a, b):", **options)
            [[plain]] = builtin.generate("def add(a, b):", **options)
            assert found.token_ids == plain.token_ids
        assert 0.1 < pace.kinds["draft model"].accepted < 0.95


class NotNumbers:
    """A runtime whose logits are no numbers from some step on."""

    def __init__(self, runtime: Any, after: int) -> None:
        self.runtime, self.left, self.made = runtime, after, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def forward(self, *arguments: Any) -> StepOutput:
        output = self.runtime.forward(*arguments)
        self.made += 1
        self.left -= 1
        if self.left >= 0:
            return output
        nothing = np.full_like(output.candidates, np.nan)
        return replace(output, candidates=nothing, logsumexp=nothing[:, 0])


@pytest.mark.parametrize("after", [0, 1, 20])
def test_a_draft_model_whose_logits_are_no_numbers_is_dropped(
    builtin: CodeGenerator, home_path: Path, after: int, caplog: pytest.LogCaptureFixture
):
    where = LoadOptions(home_path=home_path, device="cpu", num_threads=1)
    model, draft_model = load_model("builtin", where), load_model("builtin", where)
    broken = NotNumbers(draft_model.runtime, after)
    options = {"max_length": 50, "truncation": None, "prompt_lookup": False, "seed": 1}
    expected = [builtin.generate(prompt, **options) for prompt in ("import os\n", "x = [")]
    with (
        CodeGenerator(
            model,
            GenerationConfig(),
            DEFAULT_BATCH_SIZE,
            draft_model=replace(draft_model, runtime=broken),  # type: ignore[arg-type]
        ) as generator,
        paced(generator, Always()),
        caplog.at_level(logging.WARNING),
    ):
        assert generator.generate("import os\n", **options) == expected[0]
        [record] = caplog.records
        assert "without DraftModel" in record.getMessage()
        assert "logits are not numbers" in record.getMessage()
        asked, broken.left = broken.made, 10**9
        assert generator.generate("x = [", **options) == expected[1]
        assert broken.made == asked == after + 1
        assert len(caplog.records) == 1


def test_by_default_prompts_are_looked_up_where_that_changes_no_token(
    builtin: CodeGenerator, home_path: Path
):
    config = GenerationConfig()

    def kinds(generator: CodeGenerator, config: GenerationConfig) -> list[type]:
        return [type(one) for one in generator._new_drafters(config)]

    assert kinds(builtin, config) == [PromptLookup]
    assert kinds(builtin, GenerationConfig(prompt_lookup=False)) == []
    with CodeGenerator.from_pretrained(
        "builtin", precision="int8", home_path=home_path, device="cpu", num_threads=1
    ) as rounded:
        assert kinds(rounded, config) == []
        assert kinds(rounded, GenerationConfig(prompt_lookup=True)) == [PromptLookup]


def test_a_draft_model_has_the_same_vocabulary(tmp_path: Path, home_path: Path):
    config = CodeGenConfig(
        vocab_size=300, n_positions=64, n_embd=64, n_layer=1, n_head=4, rotary_dim=16, n_inner=64
    )
    folder = write_model(tmp_path / "other", config, spread_tensors(config))
    with pytest.raises(ValueError, match=r"draft_model: .* has another vocabulary than builtin"):
        CodeGenerator.from_pretrained("builtin", draft_model=folder, home_path=home_path)
