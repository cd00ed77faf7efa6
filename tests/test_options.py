"""What options beside the plain ones make of completions: ranking, reports, stops, beams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from paddlenlp_codegen_task import CodeGenerator, Completion
from paddlenlp_codegen_task.loading import BUILTIN_FOLDER
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights

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


@pytest.fixture(scope="module")
def weights() -> Iterator[FusedWeights]:
    """Those of the built-in model, for the forward pass that exports are checked against."""
    with open_checkpoint(BUILTIN_FOLDER) as checkpoint:
        yield FusedWeights(checkpoint, CodeGenConfig.from_folder(BUILTIN_FOLDER))


def check_log_probs(
    generator: CodeGenerator, weights: FusedWeights, completion: Completion, count: int
) -> None:
    """Assert that a completion of PROMPT reports what the reference gives, of each token."""
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    prompt = generator.tokenizer.encode(PROMPT)
    ids = [*prompt, *completion.token_ids]
    logits = reference.forward(weights, ids[:-1]).astype(np.float64)[len(prompt) - 1 :]
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for token_id, found, of in zip(
        completion.token_ids, completion.logprobs, expected, strict=True
    ):
        assert next(iter(found)) == token_id
        assert set(found) == {token_id, *np.argsort(-of)[:count].tolist()}
        for one, value in found.items():
            assert value == pytest.approx(of[one], abs=1e-3)


def test_logprobs_are_those_of_the_reference(builtin: CodeGenerator, weights: FusedWeights):
    [[completion]] = builtin.generate(PROMPT, logprobs=4, **OPTIONS)
    check_log_probs(builtin, weights, completion, 4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"ignore_eos": True, "frequency_penalty": 0.5, "logit_bias": {65: 3.0}},
        {"max_length": 60, "length_penalty": -1.0},  # ends at the end of text
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [0, 3])
def test_logprobs_of_beams_are_those_of_the_reference(
    builtin: CodeGenerator, weights: FusedWeights, options: dict[str, Any], count: int
):
    """The model's own, whatever penalties the search goes by; each hypothesis has its own."""
    options = {
        "decode_strategy": "beam_search",
        "max_length": 24,
        "truncation": None,
        "num_return_sequences": 3,
        **options,
    }
    [found] = builtin.generate(PROMPT, logprobs=count, **options)
    for completion in found:
        check_log_probs(builtin, weights, completion, count)
    [plain] = builtin.generate(PROMPT, **options)
    assert [one.token_ids for one in plain] == [one.token_ids for one in found]
    assert all(one.logprobs is None for one in plain)


def test_scores_of_beams_are_the_search_s_own(builtin: CodeGenerator):
    """Without penalties, the mean log-probability of the tokens."""
    options: dict[str, Any] = {
        "decode_strategy": "beam_search",
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "truncation": None,
        "max_length": 9,
        "num_return_sequences": 4,
        "output_scores": True,
    }
    [found] = builtin.generate(PROMPT, logprobs=0, **options)
    scores = [one.score for one in found]
    assert scores == pytest.approx([mean_log_prob(one) for one in found], abs=1e-4)
    assert scores == sorted(scores, reverse=True)
    assert len({one.token_ids for one in found}) == 4


@pytest.mark.parametrize("strategy", ["sampling", "greedy_search", "beam_search"])
def test_penalties_and_biases_apply(builtin: CodeGenerator, strategy: str):
    options: dict[str, Any] = {
        "decode_strategy": strategy,
        "repetition_penalty": 1.0,
        "temperature": 0.3,
        "ignore_eos": True,
        "max_length": 40,
        "seed": 3,
        "truncation": None,
        "num_return_sequences": 2 if strategy != "greedy_search" else 1,
    }

    def tokens(**more: Any) -> list[tuple[int, ...]]:
        [found] = builtin.generate(PROMPT, **{**options, **more})
        return [one.token_ids for one in found]

    def repeated(of: list[tuple[int, ...]]) -> int:
        return sum(len(one) - len(set(one)) for one in of)

    plain = tokens()
    assert repeated(plain) > 5
    assert repeated(tokens(presence_penalty=2.0, frequency_penalty=2.0)) < repeated(plain)
    if strategy != "beam_search":  # beams are not to repeat a token that comes next by itself
        assert repeated(tokens(presence_penalty=-2.0, frequency_penalty=-2.0)) > repeated(plain)
    forbidden = sorted({token for one in plain for token in one})
    for banning in ({"suppress_tokens": forbidden}, {"logit_bias": dict.fromkeys(forbidden, -1e9)}):
        found = tokens(**banning)
        assert all(len(one) == 40 for one in found)
        assert not {token for one in found for token in one} & set(forbidden)
    assert tokens(logit_bias={4711: 1e6})[0] == (4711,) * 40
    assert tokens(logit_bias={}, suppress_tokens=[]) == plain


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
        ({"presence_penalty": 2.5}, r"presence_penalty must be in \[-2, 2\]"),
        ({"frequency_penalty": -3}, r"frequency_penalty must be in \[-2, 2\]"),
        ({"logit_bias": {"x": 1}}, "logit_bias: a token id must be an integer"),
        ({"suppress_tokens": [9000]}, "suppress_tokens: the vocabulary has 8192 tokens"),
        ({"suppress_tokens": range(8192)}, "suppress_tokens: leaves no token to choose"),
        ({"min_p": 1.0}, r"min_p must be in \[0, 1\)"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"early_stopping": "sometimes"}, "early_stopping must be True, False or 'never'"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"decode_strategy": "beam_search", "num_beams": 5000}, "at most half of the vocabulary"),
        (
            {"decode_strategy": "beam_search", "suppress_tokens": range(7, 8192)},  # seven for four
            "num_beams must be at most half of the vocabulary, without suppressed tokens, got 4",
        ),
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
