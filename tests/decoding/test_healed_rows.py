"""Token healing: what is taken back, which tokens spell it again, and rows that do."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from fake_runtime import VOCAB, FakeRuntime
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampler_probe import GREEDY, request, step_output

from paddlenlp_codegen_task.decoding import healing as healing_module
from paddlenlp_codegen_task.decoding.events import Finished
from paddlenlp_codegen_task.decoding.healing import MOST_BLANKS, Healing, taken_back
from paddlenlp_codegen_task.decoding.request import Batch, Beams, Request, Row
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.decoding.speculation import PromptLookup
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.model.spelling import Spelling
from paddlenlp_codegen_task.runtime.base import StepOutput
from paddlenlp_codegen_task.truncation import Truncator


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ([b"def", b" re"], 1),
        ([b"re"], 0),  # the first token stays
        ([b" "], 0),
        ([b" ", b" "], 1),
        ([b"a", b" "], 1),
        ([b"a", b":", b"\n", b"    "], 2),
        ([b"a", b"\n", b" ", b"\t", b"\r\n"], 4),
        ([b"a", b"):\n", b"    "], 2),  # the run's first blank is of a token with something else
        ([b"a", b"b", b"):\n"], 1),
        ([b"a", b"b\n", b"c"], 1),
        ([b"a", b""], 0),  # a special token
        ([b"a", b"", b" ", b" "], 2),
        ([b"", b" "], 1),
        ([b"a", *[b" "] * 200], MOST_BLANKS),
        ([b"a", b" " * 40, b" " * 40], 1),
        ([b"a", b" " * 40, b" " * 24], 2),
        ([b"a", b"-" * 200], 1),
        ([b"a", b" " * 200], 1),
        ([b"\xc3", b"\xa9"], 1),  # a character that no token has
        ([b"a", b"\xc2\xa0", b"\xc2\xa0"], 1),  # no blank of ASCII's
    ],
    ids=str,
)
def test_what_is_taken_back(prompt: list[bytes], count: int):
    assert taken_back(range(len(prompt)), prompt.__getitem__) == count


vocabularies = st.lists(
    st.lists(st.sampled_from(b"ab \xc3"), min_size=0, max_size=4).map(bytes),
    min_size=2,
    max_size=25,
)


def spelled_by_trial(vocabulary: Sequence[bytes], free: Sequence[int], text: bytes) -> set[int]:
    """The tokens that may come first where `text` is to be spelled, as the words say."""
    found = set()
    for token in free:
        one = vocabulary[token]
        rest = text[len(one) :]
        alike = one and one[: len(text)] == text[: len(one)]
        if alike and (not rest or spelled_by_trial(vocabulary, free, rest)):
            found.add(token)
    return found


@settings(max_examples=400, deadline=None)
@given(vocabularies, st.data())
def test_tokens_are_allowed_that_spell_the_text_and_lead_to_its_end(
    vocabulary: list[bytes], data: st.DataObject
):
    ids = range(len(vocabulary))
    some = st.lists(st.sampled_from(ids), min_size=1, max_size=3)
    text = b"".join(vocabulary[token] for token in data.draw(some))
    assume(text)
    forbidden = data.draw(st.sets(st.sampled_from(ids), max_size=3))
    suppressed = np.isin(ids, list(forbidden)) if forbidden else None
    free = [token for token in ids if token not in forbidden]
    healing = Healing(1, text, Spelling(vocabulary), vocabulary.__getitem__, suppressed)
    assert healing.possible == bool(spelled_by_trial(vocabulary, free, text))
    assert healing.possible or forbidden  # its own tokens spell it
    if not healing.possible:
        return
    new: list[int] = []
    while (allowed := healing.allowed(new)) is not None:
        spelled = b"".join(vocabulary[token] for token in new)
        expected = spelled_by_trial(vocabulary, free, text[len(spelled) :])
        assert allowed.tolist() == sorted(expected)
        new.append(data.draw(st.sampled_from(allowed.tolist())))
    assert b"".join(vocabulary[token] for token in new).startswith(text)
    assert not any(b"".join(vocabulary[t] for t in new[:n]) >= text for n in range(len(new)))


def test_what_follows_a_wrong_guess_is_free():
    vocabulary = [b"a", b"ab", b"b", b"c"]
    healing = Healing(1, b"ab", Spelling(vocabulary), vocabulary.__getitem__)
    assert healing.allowed([3]) is None
    assert healing.allowed([0, 3]) is None
    assert healing.allowed([1]) is None


@given(vocabularies, st.lists(st.sampled_from(b"ab \xc3"), max_size=3).map(bytes))
def test_an_index_finds_what_a_look_at_each_token_does(vocabulary: list[bytes], text: bytes):
    spelling = Spelling(vocabulary)
    assume(text)
    beginning = [n for n, one in enumerate(vocabulary) if one.startswith(text)]
    assert sorted(spelling.beginning_with(text).tolist()) == beginning
    assert spelling.of(text).tolist() == [n for n, one in enumerate(vocabulary) if one == text]
    assert spelling.longest == max(map(len, vocabulary))


# Rows, over a runtime whose logits are anything, but the same after the same tokens.

# Each letter has a token; longer ones begin with it. The last ones stand for nothing.
LETTERS = [b"a", b"b", b" "]
LONGER = [b"aa", b"ab", b" a", b" ab", b"  ", b"   ", b"ba", b"abab", b" b", b"bb ", b"\n", b"ab"]
BYTES = [*LETTERS, *LONGER, *[bytes([65 + n]) for n in range(VOCAB - 20)]]
BYTES += [b""] * (VOCAB - len(BYTES))
END = VOCAB - 1
SPELLING = Spelling(BYTES)


class Text:
    """The tokenizer of these."""

    def token_bytes(self, token_id: int) -> bytes:
        return BYTES[token_id]


def logits_after(history: Sequence[int]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(bytes(history)))
    found = rng.normal(0, 3, VOCAB).astype(np.float32)
    found[END] -= 3
    return found


def runtime() -> FakeRuntime:
    made = FakeRuntime()

    def answer(slot: int, token_ids: Sequence[Sequence[int]], output: StepOutput) -> StepOutput:
        rows = len(output.candidates)
        if rows == len(token_ids):
            histories = [made.held(slot + row) for row in range(rows)]
        else:  # of every token of one row
            whole = made.held(slot)
            histories = [whole[: len(whole) - rows + n + 1] for n in range(rows)]
        return step_output(np.array([logits_after(one) for one in histories]), candidates=8)

    made.on_forward = answer
    return made


def healed(
    prompt: list[int], config: GenerationConfig, *, beams: Beams | None = None, **options: Any
) -> Request:
    """A request of a prompt whose end is taken back."""
    count = taken_back(prompt, BYTES.__getitem__)
    text = b"".join(BYTES[token] for token in prompt[len(prompt) - count :])
    kept = prompt[: len(prompt) - count]
    made = request(VOCAB, kept, config, eos_token_id=END, max_length=config.max_length, **options)
    scanner = Truncator(None).scanner()
    made.healing = Healing(count, text, SPELLING, BYTES.__getitem__) if count else None
    made.stops = lambda: StopChecker(Text(), scanner.copy(), len(text))
    made.beams = beams
    return made


def expected_greedy(prompt: list[int], config: GenerationConfig) -> tuple[list[int], str, str]:
    """Tokens, text and the reason of their end: the likeliest at each step that spells the end."""
    count = taken_back(prompt, BYTES.__getitem__)
    kept, text = prompt[: len(prompt) - count], b"".join(BYTES[t] for t in prompt[-count:])
    text = text if count else b""
    new: list[int] = []
    reason = "length"
    while len(new) < config.max_length:
        values, spelled = logits_after([*kept, *new]), b"".join(BYTES[token] for token in new)
        spelling = len(spelled) < len(text)
        if spelling:
            allowed = spelled_by_trial(BYTES, range(VOCAB), text[len(spelled) :])
            values[[token for token in range(VOCAB) if token not in allowed]] = -np.inf
        elif len(new) < config.min_length:
            values[[END, *config.stop_token_ids]] = -np.inf
        token = int(values.argmax())
        if not spelling and token in (END, *config.stop_token_ids):
            reason = "eos" if token == END else "stop"
            break
        new.append(token)
    whole = b"".join(BYTES[token] for token in new)
    return new, whole[len(text) :].decode(errors="replace"), reason


def run(
    scheduler: Scheduler, requests: Sequence[Request], interrupted: bool = False
) -> list[list[Row]]:
    """Run requests; if interrupted, each is set back after steps 1, 2, 4, 8, ..."""
    for one in requests:
        scheduler.add(one)
    found: dict[Request, list[Row]] = {}
    steps = 0
    while scheduler.has_work:
        for event in scheduler.step():
            assert isinstance(event, Finished), event
            found[event.request] = event.rows
        steps += 1
        if interrupted and steps & (steps - 1) == 0:
            for one in scheduler.requests:
                scheduler.hold(one)
                scheduler.release(one)
    return [found[one] for one in requests]


def outcome(row: Row) -> tuple[list[int], str, str]:
    assert row.finish_reason is not None
    return row.token_ids, row.stops.text, row.finish_reason


prompts = st.lists(
    st.lists(st.integers(0, len(LETTERS + LONGER) - 1), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(
    prompts,
    st.integers(1, 12),
    st.sampled_from([0, 4]),
    st.sampled_from([(), (2, 5, 13)]),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_greedy_rows_take_the_likeliest_tokens_that_spell_the_prompt(
    texts: list[list[int]],
    most: int,
    least: int,
    stop: tuple[int, ...],
    batch_size: int,
    lookup: bool,
    interrupted: bool,
):
    """Alone or together, with guesses, and where rows are set back."""
    config = replace(
        GREEDY, max_length=most, min_length=min(least, most), stop_token_ids=stop, seed=1
    )
    scheduler, batch = Scheduler(runtime(), batch_size), Batch(batch_size)
    drafters = [PromptLookup()] if lookup and len(texts) == 1 else []
    requests = [healed(one, config, batch=batch, drafters=drafters) for one in texts]
    for text, [row] in zip(texts, run(scheduler, requests, interrupted), strict=True):
        assert outcome(row) == expected_greedy(text, config)


SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0, "top_k": 0},
    {"temperature": 2.0, "top_k": 0, "top_p": 0.7},
    {"temperature": 3.0, "min_p": 0.1, "top_k": 30},
    {"temperature": 2.0, "presence_penalty": 1.0, "frequency_penalty": -0.5, "top_k": 12},
    {"temperature": 2.0, "logit_bias": {1: 5.0, 4: -5.0}, "repetition_penalty": 0.8},
]


class Misguided:
    """Guesses tokens of any kind, right or wrong."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def kind(self, row: Row) -> str:
        return "any"

    def draft(self, row: Row, limit: int) -> list[int]:
        return self._rng.integers(VOCAB, size=limit).tolist()


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_samples_repeat_and_all_spell_the_prompt(options: dict[str, Any]):
    """Whatever runs beside them, is guessed, or is set back."""
    config = GenerationConfig(seed=5, max_length=10, output_scores=True, logprobs=2, **options)
    texts = [[3, 9, 2], [0, 1, 5], [14, 2, 7], [4, 6], [11, 13, 13, 2]]

    def requests(drafters: Sequence[Any] = ()) -> list[Request]:
        batch = Batch(9)
        return [healed(one, config, samples=6, batch=batch, drafters=drafters) for one in texts]

    alone = [run(Scheduler(runtime(), 1), [one])[0] for one in requests()]
    together = run(Scheduler(runtime(), 9), requests())
    guessed = run(Scheduler(runtime(), 1), requests([Misguided(3)]))
    set_back = run(Scheduler(runtime(), 9), requests(), interrupted=True)
    ways = set()
    for text, *others in zip(texts, alone, together, guessed, set_back, strict=True):
        count = taken_back(text, BYTES.__getitem__)
        end = b"".join(BYTES[token] for token in text[-count:])
        for rows in zip(*others, strict=True):
            assert len({(tuple(row.token_ids), row.stops.text) for row in rows}) == 1
            whole = b"".join(BYTES[token] for token in rows[0].token_ids)
            assert whole.startswith(end)
            assert rows[0].stops.text == whole[len(end) :].decode()
            assert np.isfinite(rows[0].scores).all()
            assert all(own <= 0 for own, _ in rows[0].log_probs)
            ends = accumulate(len(BYTES[token]) for token in rows[0].token_ids)
            ways.add(tuple(length for length in ends if length <= len(end)))
    assert len(ways) >= 4


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 14), min_size=2, max_size=6), st.integers(1, 5), st.integers(1, 9))
def test_beams_spell_the_prompt(prompt: list[int], num_beams: int, most: int):
    config = replace(GREEDY, decode_strategy="beam_search", max_length=most, num_beams=num_beams)
    made = healed(prompt, config, samples=num_beams, beams=Beams(num_beams, 1.0, False))
    assert made.healing is not None
    [rows] = run(Scheduler(runtime(), 8), [made])
    text = made.healing.text
    for row in rows:
        whole = b"".join(BYTES[token] for token in row.token_ids)
        assert text.startswith(whole) or whole.startswith(text)
        assert row.stops.text == whole[len(text) :].decode()
        assert (row.scores == [-np.inf]) == (not row.token_ids and row.finish_reason == "length")
    assert rows[0].token_ids
    distinct = [tuple(row.token_ids) for row in rows if row.token_ids]
    assert len(set(distinct)) == len(distinct)


def test_a_stream_tells_nothing_before_the_prompt_is_spelled():
    config = replace(GREEDY, max_length=8)
    made = healed([9, 7, 8], config, streamed=True)  # five blanks
    scheduler = Scheduler(runtime(), 1)
    scheduler.add(made)
    told = ""
    while scheduler.has_work:
        for event in scheduler.step():
            if not isinstance(event, Finished):
                assert event.text or event.finish_reason
                told += event.text
    assert told == expected_greedy([9, 7, 8], config)[1]


def test_a_row_that_ends_before_the_prompt_is_spelled_has_no_text():
    config = replace(GREEDY, max_length=1)
    made = healed([3, 2, 2, 2, 2], config)
    assert made.healing is not None
    assert len(made.healing.text) == 4
    [[row]] = run(Scheduler(runtime(), 1), [made])
    assert (row.stops.text, row.finish_reason, len(row.token_ids)) == ("", "length", 1)


def test_a_long_end_is_looked_at_about_once(monkeypatch: pytest.MonkeyPatch):
    """A vocabulary with a token a byte: one question a place, however long the text."""
    asked = 0
    of = Spelling.of

    def counting(self: Spelling, text: bytes) -> Any:
        nonlocal asked
        asked += 1
        return of(self, text)

    monkeypatch.setattr(healing_module.Spelling, "of", counting)
    text = b"a" * 300
    Healing(1, text, SPELLING, BYTES.__getitem__)
    assert asked < 2 * len(text)
