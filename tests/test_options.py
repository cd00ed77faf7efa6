"""What options beside the plain ones make of completions: ranking, reports, stops, beams."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paddlenlp_codegen_task import CodeGenerator, Completion

PROMPT = "def add(a, b):"
OPTIONS: dict[str, Any] = {"max_length": 24, "seed": 3, "truncation": None, "temperature": 1.5}


def mean_log_prob(completion: Completion) -> float:
    """Of the model's own probabilities, without that of the end-of-text token."""
    assert completion.logprobs is not None
    own = [next(iter(one.values())) for one in completion.logprobs]
    return float(np.mean(own))


def test_best_of_ranks_by_the_mean_log_probability(builtin: CodeGenerator):
    options = {**OPTIONS, "logprobs": 0, "ignore_eos": True}
    [every] = builtin.generate(PROMPT, num_return_sequences=6, **options)
    [best] = builtin.generate(PROMPT, num_return_sequences=2, best_of=6, batch_size=4, **options)
    ranked = sorted(every, key=mean_log_prob, reverse=True)
    assert len({mean_log_prob(one) for one in every}) == 6
    assert [one.token_ids for one in best] == [one.token_ids for one in ranked[:2]]


def test_logprobs_are_those_of_the_reference(builtin: CodeGenerator):
    [[completion]] = builtin.generate(PROMPT, logprobs=4, **OPTIONS)
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    runtime = builtin._model.runtime
    runtime.reset(1)
    tokens = builtin.tokenizer.encode(PROMPT)
    for token_id, found in zip(completion.token_ids, completion.logprobs, strict=True):
        runtime.cache.lengths[0] = 0
        logits = runtime.forward(0, [tokens]).logits()[0].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert next(iter(found)) == token_id
        best = np.argsort(-logits)[:4].tolist()
        assert set(found) == {token_id, *best}
        for one, value in found.items():
            assert value == pytest.approx(expected[one], abs=1e-3)
        tokens = [*tokens, token_id]


def test_scores_without_penalties_are_the_mean_log_probability(builtin: CodeGenerator):
    # So few tokens that none is the end of text, whose log-probability is in the score alone.
    plainly = {"repetition_penalty": 1.0, "ignore_eos": False, "max_length": 4}
    options = {**OPTIONS, **plainly, "logprobs": 0}
    [[completion]] = builtin.generate(PROMPT, output_scores=True, **options)
    assert completion.finish_reason == "length"
    assert completion.score == pytest.approx(mean_log_prob(completion), abs=1e-5)
    [[plain]] = builtin.generate(PROMPT, **{**options, "logprobs": None})
    assert plain.score is None
    assert plain.logprobs is None
    assert plain.text == completion.text


def test_ignore_eos(builtin: CodeGenerator):
    options = {**OPTIONS, "max_length": 200, "num_return_sequences": 4}
    [found] = builtin.generate(PROMPT, **options)
    assert any(one.finish_reason == "eos" for one in found)
    [found] = builtin.generate(PROMPT, ignore_eos=True, **options)
    assert [len(one.token_ids) for one in found] == [200] * 4


def test_stop_strings(builtin: CodeGenerator):
    [[whole]] = builtin.generate(PROMPT, **OPTIONS)
    word = whole.text[10:14]
    [[stopped]] = builtin.generate(PROMPT, stop=["no such text", word], **OPTIONS)
    assert stopped.text == whole.text[: whole.text.index(word)]
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < len(whole.token_ids)


def test_beams_beside_other_calls(builtin: CodeGenerator):
    """Beams change their slots while other sequences come and go."""
    beams: dict[str, Any] = {"decode_strategy": "beam_search", "num_beams": 3, "max_length": 20}
    prompts = [PROMPT, "import os\n", "class A:"]
    alone = [builtin.generate(prompt, **beams)[0] for prompt in prompts]
    pieces = [builtin.stream(prompt, seed=1, max_length=2 + n) for n, prompt in enumerate(prompts)]
    started = [next(one, "") for one in pieces]
    assert builtin.generate(prompts, batch_size=6, **beams) == alone
    rest = ["".join(one) for one in pieces]
    for n, prompt in enumerate(prompts):
        [[expected]] = builtin.generate(prompt, seed=1, max_length=2 + n)
        assert started[n] + rest[n] == expected.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decode_strategy": "beam_search", "num_beams": 2, "num_return_sequences": 3},
            r"num_return_sequences \(3\) must not be above num_beams \(2\)",
        ),
        (
            {"best_of": 2, "num_return_sequences": 3},
            r"best_of \(2\) must not be below num_return_sequences \(3\)",
        ),
        ({"best_of": 2, "decode_strategy": "greedy_search"}, "best_of ranks samples"),
        ({"best_of": 0}, "best_of must be at least 1"),
        ({"logprobs": -1}, "logprobs must be at least 0"),
        ({"logprobs": 1, "decode_strategy": "beam_search"}, "logprobs needs decode_strategy"),
        ({"min_p": 1.0}, r"min_p must be in \[0, 1\)"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"early_stopping": "sometimes"}, "early_stopping must be True, False or 'never'"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"decode_strategy": "beam_search", "num_beams": 5000}, "at most half of the vocabulary"),
    ],
)
def test_bad_options(builtin: CodeGenerator, options: dict[str, Any], message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        builtin.generate(PROMPT, **options)
    assert builtin.generate(PROMPT, max_length=3)


def test_a_progress_bar(builtin: CodeGenerator, capsys: pytest.CaptureFixture[str]):
    options = {"max_length": 4, "batch_size": 2}
    builtin.generate([PROMPT] * 5, **options)  # standard error is no terminal
    assert capsys.readouterr().err == ""
    builtin.generate([PROMPT] * 5, progress=True, **options)
    shown = capsys.readouterr().err
    assert "5/5" in shown
    assert "tokens/s" in shown
    with pytest.raises(TypeError, match="progress must be True, False or None, got 'yes'"):
        builtin.generate(PROMPT, progress="yes")
