"""Beam search against transformers': the same tokens, scores and number of steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from copy import copy
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampler_probe import context
from transformers import CodeGenConfig, CodeGenForCausalLM
from transformers.generation import GenerationConfig as TheirConfig
from transformers.generation import GenerationMode

from paddlenlp_codegen_task.decoding.beam_search import (
    BeamSearch,
    Hypothesis,
    _in_place,
    processed,
)
from paddlenlp_codegen_task.decoding.healing import Healing
from paddlenlp_codegen_task.decoding.request import Context
from paddlenlp_codegen_task.generation_config import EarlyStopping, GenerationConfig
from paddlenlp_codegen_task.model.spelling import Spelling

VOCAB = 24
EOS = 5
MAX_LENGTH = 10
LENGTH_PENALTIES = (-1.0, 0.0, 0.5, 1.0, 2.0)
EARLY_STOPPING: tuple[EarlyStopping, ...] = (True, False, "never")


@pytest.fixture(autouse=True)
def _one_beam_is_a_beam_search_too(monkeypatch: pytest.MonkeyPatch):
    """Else `generate` runs greedy search for one beam."""
    monkeypatch.setattr(TheirConfig, "get_generation_mode", lambda *_: GenerationMode.BEAM_SEARCH)


def random_model(seed: int) -> CodeGenForCausalLM:
    """Logits that differ clearly, and an end of text that is often among the likelier tokens."""
    torch.manual_seed(seed)
    config = CodeGenConfig(
        vocab_size=VOCAB,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=4,
        rotary_dim=4,
        initializer_range=0.5,
    )
    model = CodeGenForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight *= 0.7
        model.lm_head.bias[EOS] += 0.6 * (seed % 4)
    return model


@dataclass(frozen=True)
class Case:
    """A prompt and how it is completed."""

    prompt: list[int]
    num_beams: int
    num_return_sequences: int
    length_penalty: float
    early_stopping: EarlyStopping
    repetition_penalty: float = 1.0
    min_length: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    eos: tuple[int, ...] = (EOS,)
    stop: tuple[int, ...] = ()  # for transformers they are ends of text, too
    healing: Healing | None = None

    def contexts(self, slots: Rows[Rows[int]]) -> list[Context]:
        """What the next tokens of slots, which hold the prompt and more, are chosen by."""
        config = GenerationConfig(
            decode_strategy="beam_search",
            repetition_penalty=self.repetition_penalty,
            min_length=self.min_length,
            logit_bias=dict(self.logit_bias),
            suppress_tokens=self.suppress_tokens,
            stop_token_ids=self.stop,
        )
        new = len(self.prompt)
        found = [context(config, VOCAB, self.eos, self.prompt, slot[new:]) for slot in slots]
        if self.healing is None:
            return found
        allowed = [self.healing.allowed(slot[new:]) for slot in slots]
        return [one._replace(allowed=ids) for one, ids in zip(found, allowed, strict=True)]

    def search(self) -> BeamSearch:
        return BeamSearch(
            num_beams=self.num_beams,
            num_return_sequences=self.num_return_sequences,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            ends={**dict.fromkeys(self.stop, "stop"), **dict.fromkeys(self.eos, "eos")},
            max_length=MAX_LENGTH,
        )

    def theirs(self, model: CodeGenForCausalLM) -> Any:
        ids = torch.tensor([self.prompt])
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=self.num_beams,
            num_return_sequences=self.num_return_sequences,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            repetition_penalty=self.repetition_penalty,
            min_new_tokens=self.min_length,
            sequence_bias={(token,): bias for token, bias in self.logit_bias} or None,
            suppress_tokens=list(self.suppress_tokens) or None,
            max_new_tokens=MAX_LENGTH,
            eos_token_id=[*self.eos, *self.stop],
            pad_token_id=EOS,
            use_cache=False,
            return_dict_in_generate=True,
            output_scores=True,
            prefix_allowed_tokens_fn=None if self.healing is None else self.allowed_by_trial,
        )

    def allowed_by_trial(self, _: int, ids: torch.Tensor) -> list[int]:
        """The tokens that may follow, found without an index."""
        assert self.healing is not None
        text, spelled = self.healing.text, "".join(LETTERS[n] for n in ids[len(self.prompt) :])
        rest = text.decode()[len(spelled) :]
        if not rest:
            return list(range(VOCAB))
        return [n for n, one in enumerate(LETTERS) if one and one.startswith(rest[: len(one)])]

    def run(
        self,
        search: BeamSearch,
        model: CodeGenForCausalLM,
        rng: np.random.Generator,
        *,
        noted: bool = False,
    ) -> int:
        """Run the search to its end over slots that are copied in place; return its steps.

        If `noted`, the note of a token is its log-probability.
        """
        slots, steps = [list(self.prompt)], 0
        while not search.done:
            with torch.no_grad():
                last = model(torch.tensor(slots)).logits[:, -1]
            contexts = self.contexts(slots)
            scores = processed(last.numpy(), contexts)
            assert scores.dtype == np.float32
            log_probs = last.double().log_softmax(-1)
            note = (lambda row, token: float(log_probs[row, token])) if noted else None  # noqa: B023
            spelling = [n for n, one in enumerate(contexts) if one.allowed is not None]
            parents, tokens = search.step(scores, note, spelling)
            slots = copied(slots, parents, rng.permutation(len(parents)))
            for slot, token in zip(slots, tokens, strict=True):
                slot.append(token)
            steps += 1
        return steps


def copied(slots: list[Any], parents: list[int], order: Rows[int]) -> list[Any]:
    """Copy in place, in the given order, what does not stay where it is."""
    slots = [*slots, *[None] * (len(parents) - len(slots))][: len(parents)]
    for slot in order:
        if parents[slot] != slot:
            slots[slot] = copy(slots[parents[slot]])
    return slots


def replay(search: BeamSearch, their_scores: Rows[np.ndarray]) -> int:
    """Feed their scores of every step; return how many it took.

    Their beams are in order of their totals, while ours stay in their rows.
    """
    steps, totals, order = 0, np.zeros(1, np.float32), np.array([0])
    while not search.done:
        scores = np.empty((len(order), VOCAB), np.float32)
        scores[order] = their_scores[steps][: len(order)]
        parents, tokens = search.step(scores)
        totals = (totals[:, None] + scores)[parents, tokens]
        order = np.argsort(-totals)
        steps += 1
    return steps


def check(search: BeamSearch, theirs: Any, case: Case, tolerance: float) -> None:
    found = search.hypotheses
    assert len(found) == len(theirs.sequences)
    for ours, row in zip(found, theirs.sequences[:, len(case.prompt) :].tolist(), strict=True):
        at = next((n for n, one in enumerate(row) if one in case.eos + case.stop), None)
        assert list(ours.token_ids) == row[:at]
        reason = "length" if at is None else "eos" if row[at] in case.eos else "stop"
        assert ours.finish_reason == reason
    scores = [hypothesis.score for hypothesis in found]
    np.testing.assert_allclose(scores, theirs.sequences_scores, rtol=tolerance, atol=0)


@pytest.mark.parametrize("num_beams", [1, 2, 3, 4, 5])
def test_equals_transformers(num_beams: int):
    rng = np.random.default_rng(num_beams)
    lengths, reasons, steps = set(), set(), set()
    grid = product(LENGTH_PENALTIES, EARLY_STOPPING, range(2))
    for seed, (length_penalty, early_stopping, half) in enumerate(grid):
        # Two of the four kinds, others with another number of beams.
        kind = (seed // 2 + num_beams + 2 * half) % 4
        model = random_model(seed)
        case = Case(
            prompt=rng.integers(VOCAB, size=rng.integers(1, 5)).tolist(),
            num_beams=num_beams,
            num_return_sequences=int(rng.integers(1, num_beams + 1)),
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            repetition_penalty=[1.0, 1.3, 0.8, 1.0][kind],
            min_length=[0, 0, 3, 2][kind],
            # They apply a bias before the repetition penalty, so that the two are not compared.
            logit_bias=((3, 1.5), (EOS, -1.0), (9, -4.0)) if kind == 3 else (),
            suppress_tokens=(2, 11, 23) if kind == 3 else (),
        )
        theirs = case.theirs(model)
        run, replayed = case.search(), case.search()
        assert case.run(run, model, rng) == len(theirs.scores)
        check(run, theirs, case, 1e-5)
        # From the same log-probabilities on, every bit is the same.
        assert replay(replayed, [one.numpy() for one in theirs.scores]) == len(theirs.scores)
        check(replayed, theirs, case, 0)
        lengths |= {len(one.token_ids) for one in run.hypotheses}
        reasons |= {one.finish_reason for one in run.hypotheses}
        steps.add(len(theirs.scores))
    assert len(lengths) >= 7  # else the models would prove little
    assert reasons == {"eos", "length"}
    assert len(steps) >= 5


@pytest.mark.parametrize("num_beams", [1, 3, 5])
def test_several_ends_equal_transformers(num_beams: int):
    rng = np.random.default_rng(num_beams)
    reasons = Counter[str]()
    for seed, (length_penalty, early_stopping) in enumerate(product((0.0, 1.0), EARLY_STOPPING)):
        model = random_model(seed)
        for eos, stop, min_length in (((EOS, 2), (), 2), ((EOS,), (11, 9), 0), ((), (7, EOS), 3)):
            case = Case(
                prompt=rng.integers(VOCAB, size=3).tolist(),
                num_beams=num_beams,
                num_return_sequences=num_beams,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                min_length=min_length,
                eos=eos,
                stop=stop,
            )
            theirs, run, replayed = case.theirs(model), case.search(), case.search()
            assert case.run(run, model, rng) == len(theirs.scores)
            check(run, theirs, case, 1e-5)
            assert replay(replayed, [one.numpy() for one in theirs.scores]) == len(theirs.scores)
            check(replayed, theirs, case, 0)
            reasons.update(one.finish_reason for one in run.hypotheses)
    assert min(reasons["eos"], reasons["stop"]) >= 3


# Texts of tokens, each a beginning of another: whatever was taken back has many spellings.
LETTERS = [*"abcdef", "", *("a" * n for n in range(2, 9)), "ab", "abc", "abcd", "ba", "bab", "aab"]
LETTERS += ["aba", "abb", "abab", "cab"]
assert len(LETTERS) == VOCAB


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("text", ["a", "ab", "aaa"])
def test_healing_equals_transformers_with_those_tokens_allowed(num_beams: int, text: str):
    token_bytes = [one.encode() for one in LETTERS]
    spelling = Spelling(token_bytes)
    rng = np.random.default_rng(num_beams)
    ways = set()
    for seed in range(6):
        model = random_model(seed)
        case = Case(
            prompt=rng.integers(VOCAB, size=3).tolist(),
            num_beams=num_beams,
            num_return_sequences=num_beams,
            length_penalty=1.0,
            early_stopping=False,
            min_length=3 * (seed % 2),
            eos=(6,),  # the token without a text
            healing=Healing(1, text.encode(), spelling, token_bytes.__getitem__),
        )
        theirs, search = case.theirs(model), case.search()
        assert case.run(search, model, rng) == len(theirs.scores)
        check(search, theirs, case, 1e-5)
        for one in search.hypotheses:
            whole = "".join(LETTERS[token] for token in one.token_ids)
            assert whole.startswith(text)
            ways.add(LETTERS[one.token_ids[0]])
    assert len(ways) > 1


@st.composite
def continued(draw: st.DrawFn) -> tuple[int, list[int]]:
    """How many rows there are, and the parents of at least as many new ones."""
    rows = draw(st.integers(1, 8))
    parents = st.lists(st.integers(0, rows - 1), min_size=rows, max_size=10)
    return rows, draw(parents)


@given(continued(), st.randoms(use_true_random=False))
def test_only_rows_that_do_not_go_on_in_place_are_copied(
    rows_and_parents: tuple[int, list[int]], random: Random
):
    rows, parents = rows_and_parents
    order = _in_place(parents)
    assert sorted(order) == list(range(len(parents)))
    placed = [parents[row] for row in order]
    copies = list(range(len(parents)))
    random.shuffle(copies)
    assert copied(list(range(rows)), placed, copies) == placed
    moved = [row for row, parent in enumerate(placed) if parent != row]
    assert len(moved) == len(parents) - len(set(parents))


def test_equal_scores_go_to_the_first_beam_and_its_smallest_token():
    search = Case([0], 2, 2, 1.0, False).search()
    scores = np.full((1, VOCAB), -3, np.float32)
    assert search.step(scores) == ([0, 0], [0, 1])
    assert search.step(np.repeat(scores, 2, axis=0)) == ([0, 0], [0, 1])


def test_a_search_ends_when_the_best_beam_could_only_draw_level():
    search = BeamSearch(
        num_beams=1,
        num_return_sequences=1,
        length_penalty=1.0,
        early_stopping="never",
        ends={EOS: "eos"},
        max_length=2,
    )
    scores = np.full((1, VOCAB), -9, np.float32)
    scores[0, [EOS, 0]] = [-1, -2]
    search.step(scores)
    assert search.done
    assert search.hypotheses == [Hypothesis((), -1.0, "eos")]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_every_hypothesis_has_the_notes_of_its_own_tokens(num_beams: int):
    """Log-probabilities that the model gives the hypothesis, whichever beams it came from."""
    rng, reasons = np.random.default_rng(num_beams), Counter[str]()
    for seed in range(20):
        model = random_model(seed)
        prompt = rng.integers(VOCAB, size=3).tolist()
        case = Case(prompt, num_beams, num_beams, 1.0, False, repetition_penalty=1.3)
        plain, search = case.search(), case.search()
        assert case.run(search, model, rng, noted=True) == case.run(plain, model, rng)
        assert [replace(one, notes=()) for one in search.hypotheses] == plain.hypotheses
        for one in search.hypotheses:
            ends = [EOS] if one.finish_reason == "eos" else []
            token_ids = [*one.token_ids, *ends]
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *token_ids]])).logits[0].double()
            ahead = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            expected = [float(of[token]) for of, token in zip(ahead, token_ids, strict=True)]
            np.testing.assert_allclose(one.notes, expected, atol=1e-5)
            reasons[one.finish_reason] += 1
    assert min(reasons["eos"], reasons["length"]) >= 3


def test_rows_of_logits_may_lie_far_apart():
    logits = np.random.default_rng(0).normal(0, 30, (4, 5000)).astype(np.float32)
    logits += np.array([[0], [500], [-500], [1e5]], np.float32)
    plain = GenerationConfig(decode_strategy="beam_search", repetition_penalty=1.0)
    with np.errstate(all="raise"):  # whatever the caller has set
        found = processed(logits, [context(plain, 5000, EOS, [0])] * 4)
    np.testing.assert_allclose(found, torch.tensor(logits).log_softmax(-1), rtol=1e-6, atol=1e-6)


def test_penalties_and_biases_are_on_log_probabilities():
    """Each row has its own, in the documented order, and nothing that it is given is changed."""
    logits = np.random.default_rng(1).normal(0, 2, (3, VOCAB)).astype(np.float32)
    common = {"decode_strategy": "beam_search"}
    configs = [
        GenerationConfig(
            repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=0.25, **common
        ),
        GenerationConfig(
            repetition_penalty=1.0,
            presence_penalty=-1.0,
            logit_bias={4: 2.0, 6: -3.0, 7: 50.0},
            suppress_tokens=[7, 8],
            **common,
        ),
        GenerationConfig(repetition_penalty=1.0, min_length=3, logit_bias={EOS: 9.0}, **common),
    ]
    contexts = [context(one, VOCAB, EOS, [1, 2], [2, 3, 3][:n]) for n, one in enumerate(configs, 1)]
    before = [
        (one.seen.copy(), None if one.counts is None else one.counts.copy()) for one in contexts
    ]
    given_logits = logits.copy()
    found = processed(logits, contexts)

    expected = np.array(torch.tensor(logits).double().log_softmax(-1))
    expected[0, [1, 2]] *= 1.5  # all that came, the prompt included
    expected[0, 2] -= 0.5 + 0.25  # what came in the completion, once
    expected[1, [2, 3]] += 1.0
    expected[1, 4] += 2.0
    expected[1, 6] -= 3.0
    expected[1, [7, 8]] = -np.inf
    expected[2, EOS] += 9.0  # three tokens came: the end may, too
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    early = processed(logits[2:], [contexts[2]._replace(length=2)])
    assert early[0, EOS] == -np.inf

    np.testing.assert_array_equal(logits, given_logits)
    for one, (seen, counts) in zip(contexts, before, strict=True):
        np.testing.assert_array_equal(one.seen, seen)
        assert (one.counts is None) == (counts is None)
        if counts is not None:
            np.testing.assert_array_equal(one.counts, counts)


def test_frequencies_count_every_occurrence():
    logits = np.zeros((1, VOCAB), np.float32)
    config = GenerationConfig(
        decode_strategy="beam_search", repetition_penalty=1.0, frequency_penalty=-0.5
    )
    found = processed(logits, [context(config, VOCAB, EOS, [9, 9], [3, 4, 3, 3])])[0]
    np.testing.assert_allclose(found[[3, 4, 9]] - found[0], [1.5, 0.5, 0], atol=1e-6)
