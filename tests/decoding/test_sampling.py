"""The sampler: what it draws, and that a few candidates give what the whole row would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampler_probe import Draws, distribution, sequence, step_output
from scipy.special import softmax
from scipy.stats import chisquare

from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.generation_config import GenerationConfig

VOCAB = 300
EOS = 7


def processed(
    config: GenerationConfig, logits: np.ndarray, seen: set[int], new_tokens: int, token: int
) -> float:
    """A token's logit after min_length, ignore_eos and the repetition penalty."""
    if token == EOS and (config.ignore_eos or new_tokens < config.min_length):
        return -np.inf
    value, by = logits[token], np.float32(config.repetition_penalty)
    if token not in seen:
        return float(value)
    return float(value * by if value < 0 else value / by)


def expected_distribution(
    config: GenerationConfig, logits: np.ndarray, seen: set[int], new_tokens: int
) -> np.ndarray:
    """The probabilities, written as plainly as the options' documentation."""
    values = np.array(
        [processed(config, logits, seen, new_tokens, token) for token in range(len(logits))]
    )
    weights = np.exp((values - values.max()) / config.temperature)
    weights /= weights.sum()
    if config.top_k:
        weights[values < np.sort(values)[::-1][: config.top_k][-1]] = 0
    if config.top_p < 1:
        taken = 0.0
        for token in np.argsort(-values, kind="stable"):
            if taken > config.top_p:
                weights[token] = 0
            taken += weights[token]
    weights[weights < config.min_p * weights.max()] = 0
    return weights / weights.sum()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "repetition_penalty": 1.0, "top_k": 0},
    {"temperature": 2.0, "top_k": 0, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.3},
    {"temperature": 1.5, "top_k": 100, "repetition_penalty": 2.0},
    {"temperature": 1.0, "repetition_penalty": 0.7, "top_k": 12},
    {"temperature": 3.0, "min_length": 4, "top_k": 10},
    {"temperature": 2.0, "min_p": 0.1, "top_k": 0},
    {"temperature": 2.0, "min_p": 0.3, "top_k": 30, "ignore_eos": True},
    {"temperature": 3.0, "min_p": 0.05, "top_p": 0.7, "top_k": 0},
]


@pytest.mark.parametrize("mean", [0, -9])  # penalties do another thing below 0
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_many_draws_follow_the_distribution(options: dict[str, Any], mean: float):
    config = GenerationConfig(**options)
    logits = np.random.default_rng(3).normal(mean, 2, VOCAB).astype(np.float32)
    logits[EOS] = logits.max() + 0.2
    prompt_ids = [int(token_id) for token_id in np.argsort(-logits)[1:30:3]]
    draws, rows = 10_000, 1000
    one = sequence(VOCAB, prompt_ids, [1, 2], np.random.default_rng(11))
    sampler, output = Sampler(config, EOS, VOCAB), step_output(np.tile(logits, (rows, 1)))
    counts = np.zeros(VOCAB)
    for _ in range(draws // rows):
        np.add.at(counts, sampler.choose(output, [one] * rows), 1)
    expected = draws * expected_distribution(config, logits, {*prompt_ids, 1, 2}, 2)
    assert not counts[expected == 0].any()
    often = expected >= 5  # the test needs that; the rest counts as one
    found = [*counts[often], counts[~often].sum()]
    should = [*expected[often], expected[~often].sum()]
    if not should[-1]:
        found, should = found[:-1], should[:-1]
    assert len(found) >= 4
    assert chisquare(found, should).pvalue > 1e-3


ties = st.integers(-6, 6).map(lambda n: n / 2)  # logits with many equal ones
numbers = st.floats(-8, 8, width=32)
configs = st.builds(
    GenerationConfig,
    decode_strategy=st.sampled_from(["sampling", "sampling", "greedy_search"]),
    temperature=st.sampled_from([0.2, 0.6, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 2, 3, 5, 8, 11, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.5, 1e-9]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 2.0, 1.1, 0.6]),
    min_length=st.sampled_from([0, 0, 3]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.2, 0.9]),
    ignore_eos=st.sampled_from([False, False, True]),
)


@st.composite
def steps(draw: st.DrawFn) -> tuple[np.ndarray, list[set[int]], list[int], int]:
    """Logits [rows, vocab], the tokens seen, how many are new, and how many candidates."""
    rows, vocab = draw(st.integers(1, 4)), draw(st.integers(EOS + 1, 30))
    element = draw(st.sampled_from([ties, numbers]))
    logits = draw(
        st.lists(st.lists(element, min_size=vocab, max_size=vocab), min_size=rows, max_size=rows)
    )
    seen = [draw(st.sets(st.integers(0, vocab - 1), min_size=1)) for _ in range(rows)]
    new = [draw(st.integers(0, 5)) for _ in range(rows)]
    return np.array(logits, np.float32), seen, new, draw(st.integers(2, vocab - 1))


@settings(max_examples=400, deadline=None)
@given(configs, steps(), st.data())
def test_candidates_give_what_the_whole_row_gives(
    config: GenerationConfig,
    step: tuple[np.ndarray, list[set[int]], list[int], int],
    data: st.DataObject,
):
    logits, seen, new, candidates = step
    vocab = logits.shape[1]
    sampler = Sampler(config, EOS, vocab)
    draws = st.lists(st.floats(0, 1, exclude_max=True), min_size=len(seen), max_size=len(seen))
    given_draws, ties_order = data.draw(draws), data.draw(st.integers(0, 99))

    def choose(count: int) -> tuple[list[int], int]:
        output = step_output(logits, count, ties_order)
        sequences = [
            sequence(vocab, sorted(ids), [min(ids)] * length, Draws([draw]))
            for ids, length, draw in zip(seen, new, given_draws, strict=True)
        ]
        return sampler.choose(output, sequences), output.logits.fetched

    few, fetched = choose(candidates)
    all_of_them, _ = choose(vocab)
    assert few == all_of_them
    for row, token in enumerate(few):
        history = logits[row], seen[row], new[row]
        if config.decode_strategy == "greedy_search":
            assert token == max(
                range(vocab), key=lambda id_: (processed(config, *history, id_), -id_)
            )
        else:
            # A little above top_p: sums of probabilities may be rounded in another way.
            wider = replace(config, top_p=min(config.top_p + 1e-6, 1.0))
            assert expected_distribution(wider, *history)[token] > 0
    assert fetched <= 1
    if config.min_p:  # may settle among the candidates what the other options would not
        return
    greedy = config.decode_strategy == "greedy_search"
    whole = not greedy and (config.top_p < 1 or config.top_k == 0 or config.top_k >= vocab)
    if whole or config.repetition_penalty < 1:
        assert fetched == 1
    else:
        # What is not a candidate may be as large as the smallest candidate: the row is needed as
        # soon as one of the k best does not stand above that.
        needed = False
        for row in range(len(logits)):
            top = np.argsort(-logits[row], kind="stable")[:candidates]
            floor = logits[row][top].min()
            sets = step_output(logits, candidates, ties_order).candidate_ids[row]
            ranked = sorted(
                (processed(config, logits[row], seen[row], new[row], token) for token in sets),
                reverse=True,
            )
            k = 1 if greedy else config.top_k
            needed |= len(ranked) < k or ranked[k - 1] <= floor
        assert fetched == needed


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1.0, 1.3, 5.0]), st.sampled_from([1, 3, 9]))
def test_rows_that_need_no_fetch_hold_against_any_hidden_logits(
    seed: int, penalty: float, top_k: int
):
    """Where the candidates sufficed, no row that has them as its largest changes the token."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, VOCAB).astype(np.float32)
    seen = rng.choice(VOCAB, 40, replace=False).tolist()
    config = GenerationConfig(top_k=top_k, repetition_penalty=penalty)
    sampler, draw = Sampler(config, EOS, VOCAB), rng.random()
    output = step_output(logits[None], 16)
    [token] = sampler.choose(output, [sequence(VOCAB, seen, [], Draws([draw]))])
    assume(not output.logits.fetched)
    highest = np.full(VOCAB, output.candidates.min(), np.float32)
    highest[output.candidate_ids[0]] = output.candidates[0]
    whole = step_output(highest[None], VOCAB)
    assert sampler.choose(whole, [sequence(VOCAB, seen, [], Draws([draw]))]) == [token]


def test_equal_logits_at_the_kth_place_stay_together():
    logits = np.full(VOCAB, -5, np.float32)
    logits[[20, 30, 40, 50]] = [2, 1, 1, 1]
    found = distribution(
        GenerationConfig(top_k=2, temperature=1.0, repetition_penalty=1.0), logits, EOS, [0]
    )
    e = np.e
    np.testing.assert_allclose(
        found[[20, 30, 40, 50]], np.array([e, 1, 1, 1]) / (e + 3), atol=1 / 4000
    )
    assert found.sum() == pytest.approx(found[[20, 30, 40, 50]].sum())


def test_equal_logits_beyond_the_candidates_stay_as_well():
    logits = np.zeros(VOCAB, np.float32)  # 300 equal ones, 64 of them candidates
    found = distribution(GenerationConfig(top_k=5, repetition_penalty=1.0), logits, EOS, [0])
    np.testing.assert_allclose(found, 1 / VOCAB, atol=1 / 4000)


def test_greedy_takes_the_smallest_id_of_equal_logits_wherever_it_hides():
    logits = np.zeros(VOCAB, np.float32)
    config = GenerationConfig(decode_strategy="greedy_search", repetition_penalty=1.0)
    for seed in range(5):
        output = step_output(logits[None], 8, seed)
        assert Sampler(config, EOS, VOCAB).choose(output, [sequence(VOCAB, [3])]) == [0]


def test_penalty_below_one_can_raise_a_token_that_is_no_candidate():
    logits = np.linspace(4, 1, VOCAB, dtype=np.float32)
    config = GenerationConfig(decode_strategy="greedy_search", repetition_penalty=0.1)
    output = step_output(logits[None])
    assert 290 not in output.candidate_ids
    assert Sampler(config, EOS, VOCAB).choose(output, [sequence(VOCAB, [290])]) == [290]


@pytest.mark.parametrize("eos", [0, EOS, VOCAB - 1])
@pytest.mark.parametrize("top_k", [0, 5, VOCAB, 10 * VOCAB])
@pytest.mark.parametrize("top_p", [1.0, 0.999])
def test_end_of_text_never_comes_before_min_length(eos: int, top_k: int, top_p: float):
    logits = np.random.default_rng(0).normal(0, 0.1, VOCAB).astype(np.float32)
    logits[eos] = 20
    config = GenerationConfig(min_length=3, top_k=top_k, top_p=top_p)
    sampler = Sampler(config, eos, VOCAB)

    def choose(new: int, draw: float) -> int:
        one = sequence(VOCAB, [1], [2] * new, Draws([draw]))
        [token] = sampler.choose(step_output(logits[None]), [one])
        return token

    for draw in (0.0, 0.5, float(np.nextafter(1, 0))):
        assert choose(0, draw) != eos
        assert choose(2, draw) != eos
    assert choose(3, 0.5) == eos


def test_one_draw_a_token_for_each_sequence():
    """Draws are a sequence's own, so that its tokens do not depend on what else is in the batch."""
    logits = np.random.default_rng(1).normal(0, 1, (3, VOCAB)).astype(np.float32)
    sampler = Sampler(GenerationConfig(top_k=50, temperature=2.0), EOS, VOCAB)

    def sequences() -> list[Any]:
        return [sequence(VOCAB, [n], [], np.random.default_rng(n)) for n in range(3)]

    together, alone = sequences(), sequences()
    for _ in range(20):
        chosen = sampler.choose(step_output(logits), together)
        for row in range(3):
            assert sampler.choose(step_output(logits[row : row + 1]), [alone[row]]) == [chosen[row]]


def test_greedy_draws_nothing():
    config = GenerationConfig(decode_strategy="greedy_search")
    output = step_output(np.random.default_rng(0).normal(size=(1, VOCAB)).astype(np.float32))
    Sampler(config, EOS, VOCAB).choose(output, [sequence(VOCAB, [0], [], Draws([]))])


@pytest.mark.parametrize("temperature", [1e-3, 1e-6])
def test_low_temperatures_come_down_to_greedy(temperature: float):
    logits = np.random.default_rng(5).normal(20, 3, VOCAB).astype(np.float32)
    for top_p in (1.0, 0.7):
        config = GenerationConfig(temperature=temperature, top_k=0, top_p=top_p)
        found = distribution(config, logits, EOS, [EOS], resolution=200)
        assert found[logits.argmax()] == 1


def test_log_probabilities_are_the_model_s_own():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (2, VOCAB)).astype(np.float32)
    expected = np.log(softmax(logits.astype(np.float64), axis=1))
    config = GenerationConfig(logprobs=3, temperature=3.0, top_k=0, repetition_penalty=2.0)
    sequences = [sequence(VOCAB, [4], [5], np.random.default_rng(n)) for n in range(2)]
    tokens = Sampler(config, EOS, VOCAB).choose(step_output(logits), sequences)
    for row, (one, token) in enumerate(zip(sequences, tokens, strict=True)):
        [(own, top)] = one.log_probs
        assert own == pytest.approx(expected[row, token])
        assert list(top) == np.argsort(-logits[row])[:3].tolist()
        assert list(top.values()) == pytest.approx(sorted(expected[row])[:-4:-1])


def test_scores_are_paddlenlp_s():
    """After min_length and the repetition penalty, before temperature, top_k and top_p."""
    logits = np.random.default_rng(2).normal(0, 2, (1, VOCAB)).astype(np.float32)
    config = GenerationConfig(output_scores=True, temperature=0.1, min_length=5, top_k=2)
    one = sequence(VOCAB, [4, 20], [30], np.random.default_rng(0))
    [token] = Sampler(config, EOS, VOCAB).choose(step_output(logits), [one])
    values = [processed(config, logits[0], {4, 20, 30}, 1, n) for n in range(VOCAB)]
    assert one.scores == pytest.approx([np.log(softmax(values)[token])], abs=1e-6)
    assert not one.log_probs


def test_nothing_is_noted_or_fetched_unless_asked_for():
    output = step_output(np.random.default_rng(2).normal(0, 2, (1, VOCAB)).astype(np.float32))
    one = sequence(VOCAB, [4], [], np.random.default_rng(0))
    Sampler(GenerationConfig(top_k=3, min_p=0.1), EOS, VOCAB).choose(output, [one])
    assert not one.log_probs
    assert not one.scores
    assert output.logits.fetched == 0
