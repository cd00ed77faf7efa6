"""The choice of tokens: what is drawn, and that a few candidates give what the whole row would."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampler_probe import context, distribution, row, step_output, tokens
from scipy.special import softmax
from scipy.stats import chisquare

from paddlenlp_codegen_task.decoding import sampling
from paddlenlp_codegen_task.decoding.request import Context, Draws
from paddlenlp_codegen_task.decoding.sampling import choose
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.runtime.base import StepOutput

VOCAB = 300
LARGE = 9000  # more than one block of what looks at whole rows, and many times its bins
EOS = 7
ALMOST_1 = float(np.nextafter(1, 0))

# How far a draw, or a share of the probability, may lie from where another token begins and still
# give it: sums of float32 numbers come out a little different in another order.
SLACK = 1e-5


def processed(
    config: GenerationConfig,
    logits: np.ndarray,
    prompt_ids: Sequence[int],
    new: Sequence[int],
    eos: tuple[int, ...] = (EOS,),
    allowed: Sequence[int] | None = None,
) -> np.ndarray:
    """All logits after min_length, ignore_eos, penalties and biases, as documented.

    In float32, as logits are: what is equal, or not, is what top_k and the order are about.
    """
    values = logits.astype(np.float32)
    if allowed is not None:  # nothing else is held back then
        values[np.setdiff1d(np.arange(len(values)), allowed)] = -np.inf
    elif len(new) < config.min_length:
        values[list(config.stop_token_ids)] = -np.inf
    if allowed is None and (config.ignore_eos or len(new) < config.min_length):
        values[list(eos)] = -np.inf
    by = np.float32(config.repetition_penalty)
    for token in {*prompt_ids, *new}:
        values[token] = values[token] * by if values[token] < 0 else values[token] / by
    for token, count in Counter(new).items():
        lowered = config.presence_penalty + config.frequency_penalty * count
        values[token] -= np.float32(lowered)
    for token, bias in (config.logit_bias or {}).items():
        values[token] += np.float32(bias)
    values[list(config.suppress_tokens)] = -np.inf
    return values


def likelihoods(
    config: GenerationConfig, values: np.ndarray, slack: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens in the order in which draws fall on them, and their unnormalised probabilities.

    Args:
        config: the options.
        values: `processed` logits of all tokens.
        slack: what is added to top_p, and taken from min_p as a share of it.
    """
    exact = values.astype(np.float64)
    with np.errstate(all="ignore"):  # temperatures may be as small or as large as they like
        weights = np.exp((exact - exact.max()) / config.temperature)
    top_k = config.top_k or len(values)
    if top_k >= len(values) and config.top_p == 1 and config.min_p == 0:
        return np.arange(len(values)), weights
    order = np.argsort(-exact, kind="stable")
    exact, weights = exact[order], weights[order]
    keep = exact >= exact[min(top_k, len(values)) - 1]
    if config.top_p < 1:
        before = np.cumsum(weights) - weights
        keep &= before <= max(config.top_p + slack, 0.0) * weights.sum()
    keep &= weights >= config.min_p * (1 - slack)
    return order, np.where(keep, weights, 0)


def acceptable(config: GenerationConfig, values: np.ndarray, draw: float) -> set[int]:
    """The tokens a draw may give: one, but within SLACK of where another one begins."""
    if config.decode_strategy == "greedy_search":
        return {int(values.argmax())}
    places = []
    for slack in (-SLACK, SLACK):
        order, weights = likelihoods(config, values, slack)
        cumulative = np.cumsum(weights)
        place = int((cumulative <= (draw + slack) * cumulative[-1]).sum())
        places.append(min(place, int(np.flatnonzero(weights)[-1])))
    return {int(order[at]) for at in range(places[0], places[1] + 1) if weights[at]}


def expected_distribution(
    config: GenerationConfig, logits: np.ndarray, prompt_ids: Sequence[int], new: Sequence[int]
) -> np.ndarray:
    """The probability of each token."""
    order, weights = likelihoods(config, processed(config, logits, prompt_ids, new))
    found = np.zeros(len(logits))
    found[order] = weights / weights.sum()
    return found


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
    {"temperature": 2.0, "presence_penalty": 1.5, "frequency_penalty": 0.5, "top_k": 20},
    {"temperature": 2.0, "presence_penalty": -2.0, "frequency_penalty": -1.0, "top_p": 0.9},
    {"temperature": 2.0, "logit_bias": {1: 6.0, EOS: -1.0}, "top_k": 15},
    {"temperature": 3.0, "suppress_tokens": [EOS, 3], "top_k": 0},
    {"temperature": 3.0, "min_length": 4, "stop_token_ids": [5, 6, EOS], "top_k": 10},
    {"temperature": 3.0, "min_length": 3, "stop_token_ids": [5, 6], "top_k": 10},
]


@pytest.mark.parametrize("mean", [0, -9])  # penalties do another thing below 0
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_many_draws_follow_the_distribution(options: dict[str, Any], mean: float):
    config = GenerationConfig(**options)
    logits = np.random.default_rng(3).normal(mean, 2, VOCAB).astype(np.float32)
    logits[EOS] = logits.max() + 0.2
    prompt_ids = [int(token_id) for token_id in np.argsort(-logits)[1:30:3]]
    draws, rows = 10_000, 1000
    one = context(config, VOCAB, EOS, prompt_ids, [1, 2, 1])
    output, rng = step_output(np.tile(logits, (rows, 1))), np.random.default_rng(11)
    counts = np.zeros(VOCAB)
    for _ in range(draws // rows):
        contexts = [one._replace(draw=draw) for draw in rng.random(rows).tolist()]
        np.add.at(counts, tokens(choose(output, contexts)), 1)
    expected = draws * expected_distribution(config, logits, prompt_ids, [1, 2, 1])
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
draws_ = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, ALMOST_1]))
configs = st.builds(
    GenerationConfig,
    decode_strategy=st.sampled_from(["sampling", "sampling", "sampling", "greedy_search"]),
    temperature=st.sampled_from([0.6, 1.0, 3.0, 0.2, 1e-5, 1e-300, 5e-324, 2.0**64, 1e300]),
    top_k=st.sampled_from([0, 1, 2, 3, 5, 8, 11, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.9, 0.5, 1e-9, 1 - 2**-53]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.1, 2.0, 0.6]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.0, 1.5, -1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.0, 0.7, -0.3]),
    logit_bias=st.sampled_from([None, None, None, {1: 2.5, 5: -1.0}, {EOS: -3.0}, {}]),
    suppress_tokens=st.sampled_from([(), (), (), (0, 3), (EOS,)]),
    min_length=st.sampled_from([0, 0, 3]),
    min_p=st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.2, 0.9]),
    stop_token_ids=st.sampled_from([(), (), (1,), (3, EOS)]),
    ignore_eos=st.sampled_from([False, False, True]),
)
ends = st.sampled_from([(EOS,), (EOS,), (), (EOS, 1, 4)])  # of a text


def histories(vocab_size: int) -> st.SearchStrategy[tuple[list[int], list[int]]]:
    """Tokens of a prompt, and new ones."""
    token_ids = st.integers(0, min(vocab_size, 30) - 1)
    return st.tuples(
        st.lists(token_ids, min_size=1, max_size=6), st.lists(token_ids, min_size=0, max_size=5)
    )


def surely_fetches(
    config: GenerationConfig, output: StepOutput, at: int, values: np.ndarray
) -> bool | None:
    """Whether a row's choice takes all its logits; None where that depends on their sum."""
    vocab, greedy = len(values), config.decode_strategy == "greedy_search"
    if not greedy and (config.top_p < 1 or config.min_p):
        return None
    k = 1 if greedy else min(config.top_k or vocab, vocab)
    if k == vocab:
        return not greedy
    candidates = output.candidates[at]
    if len(candidates) == vocab:
        return False
    if candidates[-1] == -np.inf:
        return None  # what is no candidate is impossible, which can be seen
    raises = config.repetition_penalty < 1
    raises |= min(config.presence_penalty, config.frequency_penalty) < 0
    raises |= any(bias > 0 for bias in (config.logit_bias or {}).values())
    # What is not a candidate may be as large as the smallest candidate: the row is needed as soon
    # as one of the k best does not stand above that, and if it may be raised, always.
    ranked = np.sort(values[output.candidate_ids[at]])[::-1]
    return bool(raises or len(ranked) < k or ranked[k - 1] <= candidates[-1])


def check(
    logits: np.ndarray,
    row_configs: Sequence[GenerationConfig],
    row_histories: Sequence[tuple[list[int], list[int]]],
    draws: Sequence[float],
    candidates: int,
    ties_order: int,
    eos: tuple[int, ...],
    row_allowed: Sequence[list[int] | None] | None = None,
) -> None:
    """Assert that every row of a step gets the reference's token, from any number of candidates."""
    row_allowed = row_allowed or [None] * len(logits)
    vocab = logits.shape[1]
    # Greedy rows draw nothing: see `sampling.context`.
    draws = [
        0.0 if config.decode_strategy == "greedy_search" else draw
        for config, draw in zip(row_configs, draws, strict=True)
    ]
    contexts = [
        context(config, vocab, eos, prompt_ids, new, draw)._replace(
            allowed=None if allowed is None else np.array(allowed)
        )
        for config, (prompt_ids, new), draw, allowed in zip(
            row_configs, row_histories, draws, row_allowed, strict=True
        )
    ]
    values = [
        processed(config, one, *history, eos, allowed)
        for config, one, history, allowed in zip(
            row_configs, logits, row_histories, row_allowed, strict=True
        )
    ]
    output = step_output(logits, candidates, ties_order)
    found = tokens(choose(output, contexts))
    for config, one, draw, token in zip(row_configs, values, draws, found, strict=True):
        assert token in acceptable(config, one, draw)
    every = [
        row_allowed[at] is not None or surely_fetches(config, output, at, values[at])
        for at, config in enumerate(row_configs)
    ]
    assert output.logits.fetched in (0, 1)
    if True in every:
        assert output.logits.fetched == 1
    elif None not in every:
        assert output.logits.fetched == 0


@st.composite
def small_steps(draw: st.DrawFn) -> tuple[Any, ...]:
    """The arguments of `check`, of small vocabularies: [rows, vocab] of any numbers."""
    rows, vocab = draw(st.integers(1, 4)), draw(st.integers(EOS + 1, 30))
    element = draw(st.sampled_from([ties, numbers, st.one_of(ties, st.just(-np.inf))]))
    logits = draw(
        st.lists(st.lists(element, min_size=vocab, max_size=vocab), min_size=rows, max_size=rows)
    )
    array = np.array(logits, np.float32)
    array[:, 2] = np.maximum(array[:, 2], -8)  # no option forbids this token: one is left
    return (
        array,
        draw(st.lists(configs, min_size=rows, max_size=rows)),
        draw(st.lists(histories(vocab), min_size=rows, max_size=rows)),
        draw(st.lists(draws_, min_size=rows, max_size=rows)),
        draw(st.integers(2, vocab)),
        draw(st.integers(0, 99)),
        draw(ends),
    )


@settings(max_examples=600, deadline=None)
@given(small_steps())
def test_every_row_gets_the_token_of_its_own_options(arguments: tuple[Any, ...]):
    check(*arguments)


@settings(max_examples=150, deadline=None)
@given(small_steps(), st.data())
def test_of_some_tokens_a_row_gets_the_one_that_its_options_would_choose_among_them(
    arguments: tuple[Any, ...], data: st.DataObject
):
    logits, row_configs = arguments[:2]
    some = st.sets(st.integers(0, logits.shape[1] - 1))
    allowed = [
        data.draw(st.one_of(st.none(), some.map(lambda ids: sorted({*ids, 2}))))
        for _ in row_configs
    ]
    # As a prompt's end is spelled: suppressed tokens are not among those that may come.
    allowed = [
        one and [token for token in one if token not in config.suppress_tokens]
        for one, config in zip(allowed, row_configs, strict=True)
    ]
    check(*arguments, allowed)


def large_rows(kind: str, rows: int, seed: int) -> np.ndarray:
    """[rows, LARGE] logits of some shape, the likely ones in no particular order."""
    rng = np.random.default_rng(seed)
    shape = rows, LARGE
    if kind == "flat":
        found = rng.normal(0, 0.01, shape)
    elif kind == "peaked":
        found = rng.permuted(np.tile(-np.minimum(np.arange(LARGE) * 0.4, 40), (rows, 1)), axis=1)
    elif kind == "ties":
        found = rng.integers(-3, 4, shape) * 1.5
    else:
        found = rng.normal(0, 3, shape)
    # Some of the few tokens that options speak of are likely ones.
    found[:, rng.integers(0, 30, 4)] = found.max(axis=1, keepdims=True) - rng.integers(0, 3, 4)
    return found.astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["flat", "peaked", "ties", "normal"]),
    st.integers(0, 2**31),
    st.lists(st.tuples(configs, histories(LARGE), draws_), min_size=1, max_size=4),
    st.sampled_from([2, 16, 64, 500]),
    ends,
)
def test_every_row_of_a_large_vocabulary_gets_the_token_of_its_own_options(
    kind: str, seed: int, each: list[tuple[Any, ...]], candidates: int, eos: tuple[int, ...]
):
    row_configs, row_histories, draws = zip(*each, strict=True)
    check(large_rows(kind, len(each), seed), row_configs, row_histories, draws, candidates, 0, eos)


@pytest.mark.parametrize("temperature", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("top_p", [0.5, 0.87, 0.99])
@pytest.mark.parametrize("top_k", [0, 5, 40])
def test_a_nucleus_within_the_candidates_takes_no_whole_rows(
    temperature: float, top_p: float, top_k: int
):
    config = GenerationConfig(
        temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=1.0
    )
    rows = 200
    logits = large_rows("peaked", 1, seed=4).repeat(rows, axis=0)
    draws = [*np.linspace(0, 1, rows - 1, endpoint=False).tolist(), ALMOST_1]
    output, one = step_output(logits), context(config, LARGE, EOS, [1], [2])
    found = tokens(choose(output, [one._replace(draw=draw) for draw in draws]))
    assert output.logits.fetched == 0
    order, weights = likelihoods(config, logits[0])
    nucleus = order[weights > 0].tolist()
    assert len(nucleus) < 64
    assert set(found) <= set(nucleus)
    assert {nucleus[0], nucleus[-1]} <= set(found)  # the ends of it, that of the last draw too
    for draw, token in zip(draws, found, strict=True):
        assert token in acceptable(config, logits[0], draw)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1.0, 1.3, 5.0]),
    st.sampled_from([1, 3, 9, 0]),
    st.sampled_from([1.0, 0.5, 0.9]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([0.4, 1.0, 1.7]),
)
def test_rows_that_need_no_fetch_hold_against_any_hidden_logits(
    seed: int, penalty: float, top_k: int, top_p: float, min_p: float, temperature: float
):
    """Where the candidates sufficed, no row with these as its largest changes the token."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, VOCAB).astype(np.float32)
    prompt_ids = rng.choice(VOCAB, 40, replace=False).tolist()
    config = GenerationConfig(
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        temperature=temperature,
    )
    one = context(config, VOCAB, EOS, prompt_ids, draw=rng.random())
    output = step_output(logits[None], 16)
    [token] = tokens(choose(output, [one]))
    assume(not output.logits.fetched)
    hidden = np.ones(VOCAB, bool)
    hidden[output.candidate_ids[0]] = False
    floor, mass = float(output.candidates.min()), float(np.exp(logits[hidden]).sum())
    flat = logits.copy()
    flat[hidden] = np.log(mass / hidden.sum())
    steep = logits.copy()  # as few as can have this mass, as high as they may be
    count = int(mass / np.exp(floor))
    steep[hidden] = -50
    some = rng.permutation(np.flatnonzero(hidden))
    steep[some[:count]] = floor
    steep[some[count : count + 1]] = np.log(max(mass - count * np.exp(floor), 1e-20))
    others = [logits, flat, steep]
    if top_p == 1:  # then the sum of the hidden ones does not matter either
        highest = logits.copy()
        highest[hidden] = floor
        others.append(highest)
    for other in others:
        assert token in acceptable(config, processed(config, other, prompt_ids, []), one.draw)


def test_a_candidate_that_a_penalty_has_lowered_hides_no_likelier_token():
    """The smallest candidate does not tell what others weigh once a penalty has lowered it."""
    logits = np.array([10, 9.95, 9.9, 9.85, 9.8, 0, 0, 0], np.float32)
    config = GenerationConfig(min_p=0.3, top_k=0, temperature=1.0, repetition_penalty=2.0)
    few, every = (distribution(config, logits, EOS, [1, 2], candidates=n) for n in (2, 8))
    np.testing.assert_allclose(few, every, atol=2 / 4000)
    assert np.flatnonzero(few).tolist() == [0, 3, 4]


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


GREEDY = GenerationConfig(decode_strategy="greedy_search", repetition_penalty=1.0)


def test_greedy_takes_the_smallest_id_of_equal_logits_wherever_it_hides():
    logits = np.zeros(VOCAB, np.float32)
    for seed in range(5):
        output = step_output(logits[None], 8, seed)
        assert tokens(choose(output, [context(GREEDY, VOCAB, EOS, [3])])) == [0]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(0, 2),
    st.sampled_from([1, 2, 5]),
)
def test_greedy_takes_the_likeliest_that_may_come(
    logits: list[list[int]], eos: int, min_length: int, candidates: int
):
    """Ties, end-of-text tokens that may not come yet, and rows that are settled at a glance."""
    config = replace(GREEDY, min_length=min_length)
    values = np.array(logits, np.float32)
    contexts = [context(config, 5, eos, [0], [1]) for _ in values]
    found = tokens(choose(step_output(values, candidates), contexts))
    if min_length > 1:
        values[:, eos] = -np.inf
    assert found == values.argmax(axis=1).tolist()


@pytest.mark.parametrize(
    "raising",
    [
        {"repetition_penalty": 0.1},
        {"presence_penalty": -2.0},
        {"frequency_penalty": -1.5},
        {"logit_bias": {290: 3.5}},
    ],
    ids=str,
)
def test_a_token_that_is_no_candidate_can_be_raised_above_all(raising: dict[str, Any]):
    logits = np.linspace(4, 1, VOCAB, dtype=np.float32)
    if "presence_penalty" in raising:
        logits *= 0.5  # so little may be added
    output = step_output(logits[None])
    assert 290 not in output.candidate_ids
    one = context(replace(GREEDY, **raising), VOCAB, EOS, [290], [290, 290])
    assert tokens(choose(output, [one])) == [290]


def test_penalties_and_biases_follow_their_definitions():
    """What each makes of probabilities, worked out by hand."""
    logits = np.full(64, -50, np.float32)
    logits[20:26] = 0  # nothing else counts
    # 20 is in the prompt alone; 21 came once, 22 three times; 23 and 24 have biases.
    prompt_ids, new = [20], [21, 22, 22, 22]
    plain = GenerationConfig(top_k=6, temperature=1.0, repetition_penalty=1.0)

    def ratios(**options: Any) -> list[float]:
        found = distribution(replace(plain, **options), logits, EOS, prompt_ids, new)
        assert found[20:26].sum() == pytest.approx(1)
        return (found[20:26] / found[25]).tolist()

    e = np.exp
    near = {"abs": 0.03}
    assert ratios() == pytest.approx([1, 1, 1, 1, 1, 1], **near)
    one_each = [1, e(-1.5), e(-1.5), 1, 1, 1]
    assert ratios(presence_penalty=1.5) == pytest.approx(one_each, **near)
    raised = [1, e(1.5), e(1.5), 1, 1, 1]
    assert ratios(presence_penalty=-1.5) == pytest.approx(raised, **near)
    by_count = [1, e(-0.5), e(-1.5), 1, 1, 1]
    assert ratios(frequency_penalty=0.5) == pytest.approx(by_count, **near)
    both = [1, e(1 - 0.5), e(1 - 1.5), 1, 1, 1]
    assert ratios(frequency_penalty=0.5, presence_penalty=-1.0) == pytest.approx(both, **near)
    biased = [1, 1, 1, e(1.25), e(-2.0), 1]
    assert ratios(logit_bias={23: 1.25, 24: -2.0}) == pytest.approx(biased, **near)
    without = [1, 0, 1, 1, 0, 1]
    assert ratios(suppress_tokens=[21, 24, 24]) == pytest.approx(without, **near)
    # Not even a bias brings back what is suppressed.
    suppressed = ratios(suppress_tokens=[24], logit_bias={24: 50.0})
    assert suppressed == pytest.approx([1, 1, 1, 1, 0, 1], **near)
    # The temperature divides what penalties and biases have made.
    cooler = [1, e(-0.75), e(-0.75), e(0.5), 1, 1]
    found = ratios(presence_penalty=1.5, logit_bias={23: 1.0}, temperature=2.0)
    assert found == pytest.approx(cooler, **near)


@pytest.mark.parametrize("temperature", [0.6, 2.0**64, 1e39, 1e47, 1e300])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (5, 1.0), (5, 0.9)])
@pytest.mark.parametrize("candidates", [4, 64, VOCAB])
def test_a_suppressed_token_never_comes(
    temperature: float, top_k: int, top_p: float, candidates: int
):
    """However little a temperature leaves of likelihood."""
    logits = np.random.default_rng(0).normal(0, 0.5, VOCAB).astype(np.float32)
    forbidden = [*np.argsort(-logits)[:3].tolist(), VOCAB - 1]
    logits[forbidden] += 5
    config = GenerationConfig(
        temperature=temperature, top_k=top_k, top_p=top_p, suppress_tokens=forbidden
    )
    found = distribution(config, logits, EOS, [1], candidates=candidates, resolution=500)
    assert not found[forbidden].any()
    values = processed(config, logits, [1], [])
    for draw in (0.0, ALMOST_1):
        one = context(config, VOCAB, EOS, [1], draw=draw)
        [token] = tokens(choose(step_output(logits[None], candidates), [one]))
        assert token in acceptable(config, values, draw)


@pytest.mark.parametrize("candidates", [4, VOCAB])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("strategy", ["greedy_search", "sampling"])
@pytest.mark.parametrize("options", [{"logit_bias": {9: 1e300}}, {"repetition_penalty": 1e-300}])
def test_numbers_beyond_float32_do_not_stop_a_step(
    options: dict[str, Any], strategy: str, top_p: float, candidates: int
):
    """A request with them would take all that run beside it along."""
    logits = np.random.default_rng(0).normal(3, 1, VOCAB).astype(np.float32)
    logits[30] = 0
    config = GenerationConfig(decode_strategy=strategy, top_p=top_p, top_k=0, **options)
    one = context(config, VOCAB, EOS, [9, 30], draw=0.5)
    with np.errstate(all="raise"):
        found = tokens(choose(step_output(logits[None], candidates), [one]))
    assert found == [9]  # raised above all that is finite


@pytest.mark.parametrize("eos", [0, EOS, VOCAB - 1])
@pytest.mark.parametrize("top_k", [0, 5, VOCAB, 10 * VOCAB])
@pytest.mark.parametrize("top_p", [1.0, 0.999])
def test_end_of_text_never_comes_before_min_length(eos: int, top_k: int, top_p: float):
    logits = np.random.default_rng(0).normal(0, 0.1, VOCAB).astype(np.float32)
    logits[eos] = 20
    config = GenerationConfig(min_length=3, top_k=top_k, top_p=top_p)

    def chosen(new: int, draw: float) -> int:
        one = context(config, VOCAB, eos, [1], [2] * new, draw)
        [token] = tokens(choose(step_output(logits[None]), [one]))
        return token

    for draw in (0.0, 0.5, ALMOST_1):
        assert chosen(0, draw) != eos
        assert chosen(2, draw) != eos
    assert chosen(3, 0.5) == eos


def test_one_draw_a_token_for_each_row():
    """Draws are a row's own, so that its tokens do not depend on what else is in the batch."""
    logits = np.random.default_rng(1).normal(0, 1, (3, VOCAB)).astype(np.float32)
    config = GenerationConfig(top_k=50, temperature=2.0)

    def rows() -> list[Any]:
        made = [row(VOCAB, [n], config=config) for n in range(3)]
        for n, one in enumerate(made):
            one.draws = Draws(n, 0)
        return made

    together, alone = rows(), rows()
    for _ in range(20):
        chosen = tokens(choose(step_output(logits), [sampling.context(one) for one in together]))
        for n, one in enumerate(alone):
            output = step_output(logits[n : n + 1])
            assert tokens(choose(output, [sampling.context(one)])) == [chosen[n]]
    for n, one in enumerate(together):
        assert one.draws.next() == np.random.default_rng([n, 0]).random(21)[20]


def test_greedy_draws_nothing():
    one = row(VOCAB, [0], config=GenerationConfig(decode_strategy="greedy_search"))
    one.draws = Draws(5, 0)
    sampling.context(one)
    sampling.contexts_after(one, [1, 2, 3])
    assert one.draws.next() == np.random.default_rng([5, 0]).random()


def test_a_draft_has_the_contexts_that_its_tokens_would_have_had():
    """And looking at them takes no draw, and leaves the row as it is."""
    config = GenerationConfig(frequency_penalty=0.5)
    one = row(VOCAB, [3], [4], config=config)
    one.draws = Draws(8, 0)
    found = sampling.contexts_after(one, [5, 4, 5])
    assert np.flatnonzero(one.seen).tolist() == [3, 4]
    assert one.counts is not None
    assert one.counts.sum() == 1
    for n, ahead in enumerate(found):
        here = sampling.context(one)
        assert ahead.draw == here.draw
        assert ahead.length == here.length == 1 + n
        assert ahead.parameters is here.parameters
        np.testing.assert_array_equal(ahead.seen, here.seen)
        np.testing.assert_array_equal(ahead.counts, here.counts)
        if n < 3:
            token = [5, 4, 5][n]
            one.token_ids.append(token)
            one.seen[token] = True
            one.counts[token] += 1
    assert len(found) == 4


@pytest.mark.parametrize("candidates", [64, VOCAB])
@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-300, 5e-324])
def test_low_temperatures_come_down_to_greedy(temperature: float, candidates: int):
    logits = np.random.default_rng(5).normal(20, 3, VOCAB).astype(np.float32)
    for top_p in (1.0, 0.7):
        for top_k in (0, 5):
            config = GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
            found = distribution(config, logits, EOS, [EOS], candidates=candidates, resolution=200)
            assert found[logits.argmax()] == 1


def test_high_temperatures_come_up_to_chance():
    logits = np.random.default_rng(5).normal(20, 3, VOCAB).astype(np.float32)
    for temperature in (2.0**64, 1e300):
        options = {"temperature": temperature, "repetition_penalty": 1.0}
        found = distribution(GenerationConfig(top_k=0, **options), logits, EOS, [0])
        np.testing.assert_allclose(found, 1 / VOCAB, atol=2 / 4000)
        found = distribution(GenerationConfig(top_k=0, top_p=0.5, **options), logits, EOS, [0])
        kept = np.flatnonzero(found)
        assert abs(len(kept) - VOCAB / 2) <= 1
        assert set(kept) == set(np.argsort(-logits)[: len(kept)])
        found = distribution(GenerationConfig(top_k=5, **options), logits, EOS, [0])
        assert set(np.flatnonzero(found)) == set(np.argsort(-logits)[:5])


EXTREMES: list[dict[str, Any]] = [
    {},
    {"temperature": 1e-300, "top_p": 0.9},
    {"temperature": 1e-5, "top_k": 0},
    {"temperature": 1e-5, "top_k": 0, "min_p": 0.1},
    {"temperature": 2.0**64, "top_k": 0},
    {"temperature": 2.0**64, "top_k": 0, "top_p": 0.5, "ignore_eos": True},
    {"temperature": 1e300, "top_k": 40, "suppress_tokens": [3], "repetition_penalty": 0.5},
    {"presence_penalty": -2.0, "logit_bias": {2: -1e38}, "top_p": 0.9, "logprobs": 3},
    {"decode_strategy": "greedy_search", "output_scores": True, "suppress_tokens": [1, 2]},
]


@pytest.mark.parametrize("candidates", [16, VOCAB])
@pytest.mark.parametrize("scale", [1e-3, 1, 40, 1e4])
def test_the_caller_s_error_states_change_nothing(scale: float, candidates: int):
    """An application may have told numpy to raise; where floats overflow here they are meant to."""
    logits = np.random.default_rng(6).normal(0, scale, (len(EXTREMES), VOCAB)).astype(np.float32)
    output = step_output(logits, candidates)
    for draw in (0.0, 0.3, ALMOST_1):
        contexts = [
            context(GenerationConfig(**options), VOCAB, EOS, [1, 2], [2, 5], draw)
            for options in EXTREMES
        ]
        plain = choose(output, contexts)
        with np.errstate(all="raise"):
            assert choose(output, contexts) == plain
        assert None not in plain.tokens


@pytest.mark.parametrize("candidates", [16, VOCAB])
def test_one_row_s_logits_that_are_no_numbers_are_that_row_s_alone(candidates: int):
    config = GenerationConfig(logprobs=2, output_scores=True, top_k=0, top_p=0.8, seed=1)
    logits = np.random.default_rng(2).normal(0, 2, (4, VOCAB)).astype(np.float32)
    kinds = [config, replace(config, top_k=5, top_p=1.0), replace(config, min_p=0.1), GREEDY]
    contexts = [context(one, VOCAB, EOS, [4], [5], 0.4) for one in kinds]
    whole = choose(step_output(logits, candidates), contexts)
    for broken in range(4):
        for part in (slice(None), slice(7, 8)):  # all of them, or a single one
            some = logits.copy()
            some[broken, part] = np.nan
            output = step_output(np.nan_to_num(some, nan=-9.0), candidates)
            # Where a NaN comes among the candidates is the graph's affair: here it comes first.
            output.candidates[broken, : 1 + (part == slice(None)) * VOCAB] = np.nan
            output.logsumexp[broken] = np.nan
            output.logits.logits[broken, part] = np.nan
            for states in ({}, {"all": "raise"}):
                with np.errstate(**states):
                    found = choose(output, contexts)
                assert found.tokens[broken] is None
                assert found.notes[broken] == (None, None)
                for n in {0, 1, 2, 3} - {broken}:
                    assert found.tokens[n] == whole.tokens[n]
                    assert found.notes[n] == whole.notes[n]


def arrays(output: StepOutput, contexts: Sequence[Context]) -> list[np.ndarray]:
    """Everything that a choice is made from."""
    found = [output.candidates, output.candidate_ids, output.logsumexp, output.logits.logits]
    for one in contexts:
        found += [one.seen, one.parameters.columns]
        maybe = (one.counts, one.parameters.bias, one.parameters.held_from, one.allowed)
        found += [part for part in maybe if part is not None]
    return found


@settings(max_examples=150, deadline=None)
@given(small_steps())
def test_a_choice_changes_none_of_what_it_is_made_from(arguments: tuple[Any, ...]):
    logits, row_configs, row_histories, draws, candidates, ties_order, eos = arguments
    contexts = [
        context(replace(config, output_scores=True), logits.shape[1], eos, *history, draw)
        for config, history, draw in zip(row_configs, row_histories, draws, strict=True)
    ]
    output = step_output(logits, candidates, ties_order)
    # The logits themselves, as a runtime hands them out, and none of it may be written to.
    output = replace(output, logits=Unwritable(output.logits.logits))
    before = copy.deepcopy(arrays(output, contexts))
    for array in arrays(output, contexts):
        array.flags.writeable = False
    first = choose(output, contexts)
    for now, then in zip(arrays(output, contexts), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert choose(output, contexts) == first


class Unwritable:
    """Hands out the rows of a step, not a copy."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits

    def __call__(self) -> np.ndarray:
        return self.logits


def test_log_probabilities_are_the_model_s_own():
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, (2, VOCAB)).astype(np.float32)
    expected = np.log(softmax(logits.astype(np.float64), axis=1))
    for count in (0, 3, 200):  # 64 are candidates
        config = GenerationConfig(
            logprobs=count, temperature=3.0, top_k=0, repetition_penalty=2.0, presence_penalty=1.0
        )
        contexts = [context(config, VOCAB, EOS, [4], [5], draw) for draw in rng.random(2)]
        found = choose(step_output(logits), contexts)
        for n, (token, note) in enumerate(zip(tokens(found), found.notes, strict=True)):
            assert note.log_probs is not None
            own, top = note.log_probs
            assert own == pytest.approx(expected[n, token])
            assert list(top) == np.argsort(-logits[n])[:count].tolist()
            assert list(top.values()) == pytest.approx(np.sort(expected[n])[::-1][:count])
            assert note.score is None


def test_scores_are_paddlenlp_s():
    """After min_length, penalties and biases, before temperature, top_k and top_p."""
    logits = np.random.default_rng(2).normal(0, 2, (1, VOCAB)).astype(np.float32)
    plain = GenerationConfig(output_scores=True, temperature=0.1, min_length=5, top_k=2)
    more = {"frequency_penalty": 0.5, "logit_bias": {9: 1.0}, "suppress_tokens": [2]}
    for config in (plain, replace(plain, **more)):
        one = context(config, VOCAB, EOS, [4, 20], [30, 30], 0.3)
        found = choose(step_output(logits), [one])
        values = processed(config, logits[0], [4, 20], [30, 30])
        [token] = tokens(found)
        assert found.notes[0].score == pytest.approx(np.log(softmax(values)[token]), abs=1e-6)
        assert found.notes[0].log_probs is None


def test_nothing_is_noted_or_fetched_unless_asked_for():
    output = step_output(np.random.default_rng(2).normal(0, 2, (1, VOCAB)).astype(np.float32))
    config = GenerationConfig(top_k=3, min_p=0.1)
    assert choose(output, [context(config, VOCAB, EOS, [4], draw=0.5)]).notes == []
    assert output.logits.fetched == 0
    assert len(output.candidates) == 1
