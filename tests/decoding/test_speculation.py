"""Speculation: what is drafted decides how many tokens a step yields, and nothing else."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import EOS, VOCAB, FakeRuntime, next_token
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import spread_tensors, write_model
from safetensors.numpy import load_file, save_file
from sampler_probe import sequence
from scipy.stats import chisquare

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.scheduler import Job, Scheduler
from paddlenlp_codegen_task.decoding.sequence import Sequence
from paddlenlp_codegen_task.decoding.speculation import MAX_DRAFT, DraftModel, Pace, PromptLookup
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.loading import BUILTIN_FOLDER
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.base import StepOutput


class Always(Pace):
    """Drafts as many tokens as it may."""

    def length(self, kind: str, room: int) -> int:
        return min(room, MAX_DRAFT)


class Oracle:
    """Drafts what the model will say, and then something else."""

    def __init__(self, right: int, wrong: int) -> None:
        self.right, self.wrong = right, wrong

    def draft(self, one: Sequence, pace: Pace, room: int) -> tuple[str, list[int]]:
        history, found = [*one.prompt_ids, *one.token_ids], []
        for _ in range(self.right):
            found.append(next_token([*history, *found]))
        found += [(next_token([*history, *found]) + 1) % VOCAB] * self.wrong
        return "oracle", found[: max(room, 0)]


GREEDY = Sampler(
    GenerationConfig(decode_strategy="greedy_search", repetition_penalty=1.0), EOS, VOCAB
)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 6),
    st.integers(0, 3),
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_a_draft_is_taken_as_far_as_it_is_right(
    right: int, wrong: int, prompt: list[int], max_length: int
):
    runtime = FakeRuntime(1)
    one = sequence(VOCAB, prompt, sampler=GREEDY, eos_token_id=EOS, max_length=max_length)
    one.drafter = Oracle(right, wrong)
    scheduler, job = Scheduler(runtime), Job([one], 1)
    scheduler.submit(job)
    while not job.done:
        scheduler.step()
    tokens: list[int] = []
    while len(tokens) < max_length and (token := next_token([*prompt, *tokens])) != EOS:
        tokens.append(token)
    assert one.token_ids == tokens
    assert one.finish_reason == ("length" if len(tokens) == max_length else "eos")
    steps = len(runtime.calls) - 1  # one prefills and yields a token
    assert steps <= -(-len(tokens) // (right + 1))
    assert all(lengths[0] <= right + wrong + 1 for _, lengths in runtime.calls[1:])
    assert runtime.cache.lengths[0] <= len(prompt) + max_length


def test_only_logits_that_a_right_guess_leads_to_must_be_numbers():
    logits = np.eye(VOCAB, dtype=np.float32)[[7, 8, 9]]
    logits[2] = np.nan
    ids = np.tile(np.arange(VOCAB), (3, 1))
    output = StepOutput(logits, ids, lambda: logits)
    one = sequence(VOCAB, [3], sampler=GREEDY, eos_token_id=EOS, max_length=9)
    assert GREEDY.verify(output, one, [7, 5]) == 1
    assert one.token_ids == [7, 8]
    with pytest.raises(FloatingPointError, match="not numbers"):
        GREEDY.verify(output.take([2, 0]), one, [7])


def test_two_sequences_are_not_drafted():
    runtime = FakeRuntime(2)
    pair = [sequence(VOCAB, [1, n], sampler=GREEDY, eos_token_id=EOS, max_length=9) for n in (2, 3)]
    for one in pair:
        one.drafter = Oracle(3, 0)
    scheduler, job = Scheduler(runtime), Job(pair, 2)
    scheduler.submit(job)
    scheduler.step()
    assert runtime.calls == [(0, [2, 2]), (0, [1, 1])]


def lookup(
    prompt: list[int], new: list[int] | None = None, room: int = 99
) -> tuple[str, list[int]]:
    return PromptLookup().draft(sequence(VOCAB, prompt, new or []), Always(), room)


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
    drafter, one = PromptLookup(), sequence(VOCAB, [1, 2, 3])
    assert drafter.draft(one, Always(), 9)[1] == []
    for token in (7, 1, 2):
        one.append(token)
    assert drafter.draft(one, Always(), 5) == ("2-gram", [3, 7, 1, 2, 3])


def steps(pace: Pace, accepted: float, rounds: int, row: float, seed: int = 0) -> tuple[int, float]:
    """Tokens and seconds of `rounds` steps whose drafts are right with this chance a token."""
    random, tokens, seconds = np.random.default_rng(seed), 0, 0.0
    for _ in range(rounds):
        drafted = pace.length("x", 99)
        took = 1.0 + row * drafted
        right = 0
        while right < drafted and random.random() < accepted:
            right += 1
        tokens, seconds = tokens + right + 1, seconds + took
        if drafted:
            pace.note_draft("x", drafted, 0.0)
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


def test_a_kind_that_did_not_pay_is_tried_again():
    pace = Pace()
    steps(pace, 0.0, 400, 0.2)
    assert pace.length("x", 99) == 0 or pace.kinds["x"].idle == 0
    tokens, seconds = steps(pace, 0.95, 3000, 0.05)
    assert tokens / seconds > 3


class Chain:
    """A runtime of a Markov chain over a few tokens."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.fake = logits, FakeRuntime(1)
        self.cache = self.fake.cache
        self.config = self.fake.config
        self.reset, self.copy, self.clear = self.fake.reset, self.fake.copy, self.fake.clear

    def forward(self, slot: int, token_ids: Rows[Rows[int]], every: bool = False) -> StepOutput:
        self.fake.forward(slot, token_ids, every)
        [tokens] = token_ids
        rows = self.logits[list(tokens if every else tokens[-1:])]
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :3]
        return StepOutput(np.take_along_axis(rows, ids, axis=1), ids, lambda: rows)


@pytest.mark.parametrize("kind", ["prompt lookup", "draft model"])
def test_samples_follow_the_distribution(kind: str):
    """Three tokens of a chain, against the product of their probabilities."""
    rng, size = np.random.default_rng(0), 5
    logits = rng.normal(0, 1, (size, size)).astype(np.float32)
    other = logits + rng.normal(0, 0.7, (size, size)).astype(np.float32)
    config = GenerationConfig(top_k=0, temperature=1.0, repetition_penalty=1.0)
    sampler = Sampler(config, EOS + size, size)
    prompt = [1, 2, 3, 4, 1, 2, 3, 1, 2, 1]
    scheduler = Scheduler(Chain(logits))
    scheduler._pace = Always()
    draft_model = DraftModel(Chain(other))
    counts: Counter[tuple[int, ...]] = Counter()
    draws = 6000
    for n in range(draws):
        one = sequence(
            size, prompt, generator=np.random.default_rng([5, n]), sampler=sampler, max_length=4
        )
        one.drafter = PromptLookup() if kind == "prompt lookup" else draft_model
        job = Job([one], 1)
        scheduler.submit(job)
        while not job.done:
            scheduler.step()
        counts[tuple(one.token_ids[:3])] += 1
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = {
        (a, b, c): draws * chances[1, a] * chances[a, b] * chances[b, c]
        for a in range(size)
        for b in range(size)
        for c in range(size)
    }
    often = [key for key, value in expected.items() if value >= 5]
    rest = draws - sum(expected[key] for key in often)
    found = [*(counts[key] for key in often), draws - sum(counts[key] for key in often)]
    assert chisquare(found, [*(expected[key] for key in often), rest]).pvalue > 1e-3
    assert scheduler._pace.kinds  # some were drafted


REPETITIVE = "def f(x):\n    return x + 1\n\n\ndef f(x):\n    return x + 1\n\n\ndef f("
OPTIONS: list[dict[str, Any]] = [
    {"decode_strategy": "greedy_search"},
    {"decode_strategy": "greedy_search", "repetition_penalty": 1.0},
    {"temperature": 1.2, "top_k": 0, "seed": 1},
    {"seed": 2, "min_length": 30, "top_p": 0.9},
    {"seed": 3, "logprobs": 2, "output_scores": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("truncation", [None, "\n\n"])
def test_prompt_lookup_changes_no_completion(
    builtin: CodeGenerator, options: dict[str, Any], truncation: str | None
):
    options = {**options, "max_length": 60, "truncation": truncation}
    prompts = [REPETITIVE, "x = 1\nx = 1\nx = 1\n", "import os"]
    plain = [builtin.generate(one, prompt_lookup=False, **options) for one in prompts]
    pace, builtin._scheduler._pace = builtin._scheduler._pace, Always()
    try:
        found = [builtin.generate(one, **options) for one in prompts]
    finally:
        builtin._scheduler._pace = pace
    for [[one]], [[other]] in zip(found, plain, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        assert one.finish_reason == other.finish_reason
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_a_slow_first_step_is_not_believed_for_long():
    pace = Pace()
    pace.note_plain(10.0)
    tokens, seconds = steps(pace, 0.1, 400, 0.5)
    assert pace.plain_seconds == pytest.approx(1, rel=0.1)
    tokens, seconds = steps(pace, 0.1, 1000, 0.5)
    assert tokens / seconds > 0.95  # few guesses hold, and each costs half a step


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
            self.runtime.written.clear()
            raise MemoryError("no room")
        return self.runtime.forward(*arguments)


def test_a_draft_model_whose_step_failed_starts_afresh():
    failing = Failing(FakeRuntime(1))
    drafter = DraftModel(failing)  # type: ignore[arg-type]
    sampler = Sampler(GenerationConfig(decode_strategy="greedy_search"), EOS, VOCAB)
    one = sequence(VOCAB, [3, 4, 5], sampler=sampler, eos_token_id=EOS, max_length=30)
    pace = Always()
    first = drafter.draft(one, pace, 4)
    failing.armed = True
    one.append(first[1][0])
    with pytest.raises(MemoryError):
        drafter.draft(one, pace, 4)
    [_, again] = drafter.draft(one, pace, 3)
    assert again == first[1][1:4]


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
        generator._scheduler._pace = Always()
        yield generator


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_draft_model_changes_no_completion(
    builtin: CodeGenerator, drafted: CodeGenerator, options: dict[str, Any]
):
    options = {**options, "max_length": 50, "truncation": None}
    runtime, counts = drafted._model.runtime, []
    forward = runtime.forward

    def spy(slot: int, token_ids: Any, every: bool = False) -> StepOutput:
        counts.append(len(token_ids[0]))
        return forward(slot, token_ids, every)

    runtime.forward = spy  # type: ignore[method-assign]
    try:
        for prompt in ("def add(a, b):", REPETITIVE, "def add(a, b, c):"):
            counts.clear()
            [[found]] = drafted.generate(prompt, **options)
            [[plain]] = builtin.generate(prompt, prompt_lookup=False, **options)
            assert found.token_ids == plain.token_ids
            if len(found.token_ids) == 50 and not drafted._defaults.prompt_lookup:
                assert len(counts) < 12  # it nearly always agrees with itself
    finally:
        del runtime.forward


def test_a_draft_model_that_often_errs_changes_no_completion(
    builtin: CodeGenerator, home_path: Path, tmp_path: Path
):
    folder = tmp_path / "noisy"
    shutil.copytree(BUILTIN_FOLDER, folder)
    tensors = load_file(folder / "model.safetensors")
    noise = np.random.default_rng(0).normal(0, 0.02, tensors["lm_head.weight"].shape)
    tensors["lm_head.weight"] = (tensors["lm_head.weight"] + noise).astype(np.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with CodeGenerator.from_pretrained(
        "builtin", draft_model=folder, home_path=home_path, device="cpu", num_threads=1
    ) as drafted:
        drafted._scheduler._pace = pace = Always()
        for options in OPTIONS:
            options = {**options, "max_length": 50, "truncation": None, "prompt_lookup": False}
            [[found]] = drafted.generate("def add(a, b):", **options)
            [[plain]] = builtin.generate("def add(a, b):", **options)
            assert found.token_ids == plain.token_ids
        assert 0.1 < pace.kinds["draft model"].accepted < 0.95


def test_by_default_prompts_are_looked_up_where_that_changes_no_token(
    builtin: CodeGenerator, home_path: Path
):
    config = GenerationConfig()
    assert builtin._new_drafter(config) is not None
    with CodeGenerator.from_pretrained(
        "builtin", precision="int8", home_path=home_path, device="cpu", num_threads=1
    ) as rounded:
        assert rounded._new_drafter(config) is None
        assert rounded._new_drafter(GenerationConfig(prompt_lookup=True)) is not None


def test_a_draft_model_has_the_same_vocabulary(tmp_path: Path, home_path: Path):
    config = CodeGenConfig(
        vocab_size=300, n_positions=64, n_embd=64, n_layer=1, n_head=4, rotary_dim=16, n_inner=64
    )
    folder = write_model(tmp_path / "other", config, spread_tensors(config))
    with pytest.raises(ValueError, match=r"draft_model: .* has another vocabulary than builtin"):
        CodeGenerator.from_pretrained("builtin", draft_model=folder, home_path=home_path)
