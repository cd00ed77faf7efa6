"""What options make of completions: ranking, reports, stops, beams; and what wrong ones come to."""

from __future__ import annotations

import contextlib
import itertools
import re
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from hypothesis import given, settings

from paddlenlp_codegen_task import (
    CodeGenerator,
    Completion,
    GenerationConfig,
    generation_config,
    memory,
)
from paddlenlp_codegen_task.decoding.request import new_row
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.loading import LoadOptions
from paddlenlp_codegen_task.memory import completion_bytes
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.options import LoadingOptions, Settings
from paddlenlp_codegen_task.requests import Call

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


@pytest.mark.parametrize("count", [0, 4])
@pytest.mark.parametrize("max_length", [0, 5])
def test_prompt_logprobs_are_those_of_the_reference(
    builtin: CodeGenerator, weights: FusedWeights, count: int, max_length: int
):
    options = {**OPTIONS, "max_length": max_length, "logprobs": 0, "num_return_sequences": 2}
    [found] = builtin.generate(PROMPT, prompt_logprobs=count, **options)
    ids = builtin.tokenizer.encode(PROMPT)
    logits = reference.forward(weights, ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for completion in found:
        assert len(completion.token_ids) <= max_length
        assert completion.prompt_logprobs is not None
        first, *others = completion.prompt_logprobs
        assert first is None
        for token_id, one, of in zip(ids[1:], others, expected, strict=False):
            assert one is not None
            assert next(iter(one)) == token_id
            assert set(one) == {token_id, *np.argsort(-of)[:count].tolist()}
            assert one == pytest.approx({n: of[n] for n in one}, abs=1e-3)
    if max_length:
        [plain] = builtin.generate(PROMPT, **options)
        assert [one.text for one in plain] == [one.text for one in found]
        assert all(one.prompt_logprobs is None for one in plain)


@pytest.mark.parametrize(
    "options",
    [{"decode_strategy": "beam_search"}, {"best_of": 3, "decode_strategy": "sampling"}, {}],
    ids=str,
)
def test_a_text_that_fills_the_context_is_scored(builtin: CodeGenerator, options: Any):
    """Nothing is generated, whatever the strategy."""
    ids = builtin.tokenizer.encode("x = 1\n" * 4000)[: builtin.config.n_positions]
    call = builtin.call(max_length=0, prompt_logprobs=0, **options)
    assert len(call.request_of_ids(ids, 0).prompt_ids) == len(ids)
    with pytest.raises(ValueError, match=r"^prompt 0 has .* tokens, and with max_length 0 only"):
        call.request_of_ids([*ids, 1], 0)
    [[completion]] = builtin.generate(PROMPT, max_length=0, prompt_logprobs=0, **options)
    assert (completion.text, completion.token_ids) == ("", ())
    assert completion.finish_reason == "length"
    with pytest.raises(ValueError, match=r"^max_length must be at least 1"):
        builtin.generate(PROMPT, max_length=0, **options)


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


@pytest.mark.parametrize("strategy", ["greedy_search", "sampling", "beam_search"])
def test_stop_token_ids(builtin: CodeGenerator, strategy: str):
    """What comes before the token, as it came; the token is neither in the text nor counted."""
    options: dict[str, Any] = {
        "decode_strategy": strategy,
        "max_length": 24,
        "truncation": None,
        "seed": 3 if strategy == "sampling" else None,
    }
    if strategy == "beam_search":
        options["num_beams"] = 1
    [[plain]] = builtin.generate(PROMPT, **options)
    stop = plain.token_ids[5]
    at = plain.token_ids.index(stop)
    # As NumPy's array too, and a set; with ignore_eos, which is of the end of text alone.
    for ids in ([stop], np.array([stop]), {stop}, [stop, builtin.tokenizer.eos_token_id]):
        for more in ({}, {"ignore_eos": True}):
            [[found]] = builtin.generate(PROMPT, stop_token_ids=ids, **options, **more)
            assert found.token_ids == plain.token_ids[:at]
            assert found.finish_reason == "stop"
            assert found.text == builtin.tokenizer.decode(found.token_ids)
    [[later]] = builtin.generate(PROMPT, stop_token_ids=[stop], min_length=at + 3, **options)
    assert len(later.token_ids) >= at + 3
    assert stop not in later.token_ids
    assert builtin.generate(PROMPT, stop_token_ids=None, **options) == [[plain]]


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
        ({"stop_token_ids": [9000]}, "stop_token_ids: the vocabulary has 8192 tokens, there is no"),
        (
            {"stop_token_ids": range(8192), "min_length": 1},
            "stop_token_ids: with min_length they leave no token to choose",
        ),
        (
            {"stop_token_ids": range(1, 8192), "min_length": 1, "suppress_tokens": [0]},
            "suppress_tokens: leaves no token to choose",
        ),
        ({"min_p": 1.0}, r"min_p must be in \[0, 1\)"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"early_stopping": "sometimes"}, "early_stopping must be True, False or 'never'"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"decode_strategy": "beam_search", "num_beams": 5000}, "at most half of the vocabulary"),
        (
            {"decode_strategy": "beam_search", "stop_token_ids": range(1, 3000)},  # and an end
            "num_beams must be at most 1/3001 of the vocabulary, without suppressed tokens, got 4",
        ),
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


# Whatever is passed


def check_configuration(options: dict[str, Any]) -> None:
    """Options become plain values, or an error of one line that names one of them."""
    try:
        config = GenerationConfig(**options)
    except (TypeError, ValueError) as error:
        hostile.check_line(error, options)
    else:
        assert all(hostile.is_plain(value) for value in vars(config).values()), config
        assert GenerationConfig(**vars(config)) == config


@pytest.mark.parametrize("name", GenerationConfig.field_names())
def test_any_value_of_a_configuration(name: str):
    for value in hostile.VALUES:
        check_configuration({name: value})


@settings(max_examples=1000, deadline=None)
@given(options=hostile.sets(GenerationConfig.field_names()))
def test_any_values_of_a_configuration(options: dict[str, Any]):
    check_configuration(options)


LOADING = [*(LoadingOptions.__annotations__.keys() - vars(GenerationConfig())), "name_or_path"]


def check_loading(options: dict[str, Any]) -> None:
    """The same, before anything is loaded; what is right is told that there is no such folder."""
    keywords = {"name_or_path": "/there/is/no/folder", **options}
    if keywords["name_or_path"] is None:  # that means whatever there is
        return
    names = [*options, "unknown model", "no folder", "downloaded", "repository"]
    with pytest.raises((TypeError, ValueError, OSError)) as raised:
        CodeGenerator.from_pretrained(**keywords)
    hostile.check_line(raised.value, names)
    load = {name: options[name] for name in options if name in LoadOptions.__annotations__}
    with contextlib.suppress(TypeError, ValueError):
        for value in vars(LoadOptions(**load)).values():
            assert hostile.is_plain(value) or type(value) is type(Path())


@pytest.mark.parametrize("name", sorted(LOADING))
def test_any_value_of_loading(name: str):
    for value in hostile.VALUES:
        check_loading({name: value})


@settings(max_examples=500, deadline=None)
@given(options=hostile.sets([*LoadingOptions.__annotations__, "name_or_path"]))
def test_any_values_of_loading(options: dict[str, Any]):
    check_loading(options)


@pytest.mark.parametrize("value", hostile.VALUES, ids=lambda value: type(value).__name__[:9])
def test_any_value_of_a_call(builtin: CodeGenerator, value: Any):
    for name in ("batch_size", "progress"):
        try:
            builtin.generate("x", max_length=1, **{name: value})
        except (TypeError, ValueError) as error:
            hostile.check_line(error, [name])
    for ask in (builtin.generate, builtin.stream, builtin.generate_as_completed):
        try:
            list(ask(value, max_length=1))
        except (TypeError, ValueError) as error:
            hostile.check_line(error, ["prompt", "prompts"])


@pytest.mark.parametrize("name", ["a\nb", "x" * 10**6, "\ud800", "", "\0", "日本"])
def test_any_name_of_an_option(builtin: CodeGenerator, name: str):
    config = GenerationConfig()
    for ask in (
        lambda: builtin.generate("x", **{name: 1}),  # type: ignore[arg-type]
        lambda: CodeGenerator.from_pretrained("x", **{name: 1}),  # type: ignore[arg-type]
        lambda: config.with_options({name: 1}),
    ):
        with pytest.raises(TypeError, match=r"^unknown option ") as raised:
            ask()
        message = str(raised.value)
        assert message.isprintable()
        assert len(message) < 700  # it lists all that there are
    with pytest.raises(TypeError, match=r"^unknown option 3; known: max_length"):
        GenerationConfig().with_options({3: 1})  # type: ignore[dict-item]


def test_numpy_s_scalars_are_values_like_any_other():
    of_numpy: dict[str, Any] = {
        "num_threads": np.int64(2),
        "static_mode": np.bool_(False),
        "from_hf_hub": np.bool_(True),
        "device": np.str_("cpu"),
        "engine": np.str_("paddle"),
        "home_path": np.str_("/x"),
    }
    settings = Settings.of({**of_numpy, "batch_size": np.uint8(3), "kv_cache_bytes": np.int32(9)})
    plain = Settings.of(
        {
            **{name: value.item() for name, value in of_numpy.items()},
            "batch_size": 3,
            "kv_cache_bytes": 9,
        }
    )
    assert repr(settings) == repr(plain)
    config = GenerationConfig(
        early_stopping=np.bool_(True),
        decode_strategy=np.str_("beam_search"),  # type: ignore[arg-type]
        seed=np.uint64(5),
        stop=[np.str_("a")],
        output_scores=np.bool_(True),
    )
    plain_config = GenerationConfig(
        early_stopping=True,
        decode_strategy="beam_search",
        seed=5,
        stop=["a"],
        output_scores=True,
    )
    assert repr(config) == repr(plain_config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_threads": True}, "num_threads must be an integer, got True"),
        ({"num_threads": 10**6}, "num_threads must be at most [0-9]+ on a machine with [0-9]+ cor"),
        ({"static_mode": "no"}, "static_mode must be True or False, got 'no'"),
        ({"static_mode": 0}, "static_mode must be True or False, got 0"),
        ({"from_hf_hub": 1}, "from_hf_hub must be True or False, got 1"),
        ({"cuda_graph": "x"}, "cuda_graph must be True or False, got 'x'"),
        ({"device": 3}, "device must be 'auto', 'cpu', 'gpu' or 'gpu:N', got 3"),
        ({"device": "cuda:0"}, "device must be 'auto', 'cpu', 'gpu' or 'gpu:N', got 'cuda:0'"),
        ({"home_path": 0}, "home_path must be a folder's path, got 0"),
        ({"home_path": b"x"}, "home_path must be a folder's path, got b'x'"),
        ({"home_path": ""}, "home_path must not be empty"),
        ({"home_path": "~nosuchuser/x"}, "home_path: '~nosuchuser/x': there is no such home"),
        ({"home_path": "a\0b"}, "home_path: a path cannot hold a null character"),
        ({"home_path": "x" * 256}, "home_path: a path may have 4095 bytes, each name in it 255"),
        ({"home_path": "x/" * 2500}, "home_path: a path may have 4095 bytes"),
        ({"home_path": "\ud800"}, r"home_path: '\\ud800': not valid Unicode"),
        ({"draft_model": 3}, "draft_model must be a model's name or a folder's path, got 3"),
        ({"draft_model": ""}, "draft_model must not be empty"),
        (
            {"draft_model": Path("no folder")},
            "draft_model: task_path: there is no folder no folder$",
        ),
        ({"draft_model": "gpt2"}, "draft_model: unknown model 'gpt2': There is no folder of this"),
        ({"name_or_path": 3}, "name_or_path must be a model's name or a folder's path, got 3"),
        ({"name_or_path": ""}, "name_or_path must not be empty"),
        ({"name_or_path": "~nosuchuser/x"}, "name_or_path: '~nosuchuser/x': there is no such"),
        ({"name_or_path": "a\0"}, "name_or_path: a path cannot hold a null character"),
        ({"name_or_path": "./a\nb"}, "task_path: there is no folder a b$"),
        ({"name_or_path": "a b", "from_hf_hub": True}, "from_hf_hub=True needs a repository's nam"),
        ({"prefix_cache_bytes": True}, "prefix_cache_bytes must be an integer, got True"),
        ({"kv_cache_bytes": 2.0}, "kv_cache_bytes must be an integer, got 2.0"),
        ({"batch_size": 2**64}, f"batch_size must be at most {2**63 - 1}, got {2**64}"),
        ({"seed": 10**5000}, "seed must be at most [0-9]+, got an integer of 16610 bits"),
        ({"max_length": np.timedelta64(5, "s")}, "max_length must be an integer"),
        ({"suppress_tokens": range(10**9)}, "suppress_tokens may list 262144 tokens, and lists m"),
        ({"suppress_tokens": itertools.count()}, "suppress_tokens may list 262144 tokens"),
        ({"stop_token_ids": itertools.count()}, "stop_token_ids may list 262144 tokens"),
        ({"stop_token_ids": 3}, "stop_token_ids must be a list of token ids, got 3"),
        ({"stop_token_ids": [1.0]}, "stop_token_ids: a token id must be an integer, got 1.0"),
        ({"stop_token_ids": [-1]}, "stop_token_ids: a token id must be at least 0, got -1"),
        ({"stop": "\ud800"}, r"stop: '\\ud800' holds a lone surrogate, not valid Unicode"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_each_value_has_one_rule(options: dict[str, Any], message: str):
    with pytest.raises((TypeError, ValueError, OSError), match=f"^{message}") as raised:
        CodeGenerator.from_pretrained(**{"name_or_path": "/there/is/no/folder", **options})
    hostile.check_line(raised.value)


def test_a_home_in_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PPNLP_HOME", "~nosuchuser")
    with pytest.raises(ValueError, match=r"^PPNLP_HOME: '~nosuchuser': there is no such home$"):
        CodeGenerator.from_pretrained("builtin")
    with pytest.raises(ValueError, match=r"^PPNLP_HOME: "):
        CodeGenerator.from_pretrained("Salesforce/codegen-2B-mono")


# What would take more memory than there is


def test_batch_sizes_beyond_memory(builtin: CodeGenerator, home_path: Path):
    """Refused before anything is allocated, with the number."""
    message = r"^batch_size \(1000000000\): .* at least [0-9,]{15,} bytes.* allows [0-9,]+$"
    with pytest.raises(ValueError, match=message):
        builtin.generate("x", batch_size=10**9)
    with pytest.raises(ValueError, match=message):
        CodeGenerator.from_pretrained(
            "builtin", home_path=home_path, device="cpu", num_threads=1, batch_size=10**9
        )
    assert builtin.generate("x", max_length=1, batch_size=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_bytes": 1000}, r"kv_cache_bytes \(1,000\) must be at least 557,056, which key"),
        ({"prefix_cache_bytes": 1}, "prefix_cache_bytes must be 0, or at least 524,288, which key"),
        ({"batch_size": 999, "kv_cache_bytes": 10**6}, r"batch_size \(999\): .* allows 1,000,000"),
    ],
)
def test_memory_that_holds_nothing(home_path: Path, options: dict[str, Any], message: str):
    where: dict[str, Any] = {"home_path": home_path, "device": "cpu", "num_threads": 1}
    with pytest.raises(ValueError, match=f"^{message}"):
        CodeGenerator.from_pretrained("builtin", **where, **options)


@pytest.mark.parametrize("name", ["num_return_sequences", "best_of"])
def test_more_completions_than_memory_holds(builtin: CodeGenerator, name: str):
    with pytest.raises(ValueError, match=rf"^{name} \(1000000000\): .* [0-9,]+ are free$"):
        builtin.generate("x", **{name: 10**9})
    with pytest.raises(ValueError, match=rf"^{name} \(100000\): .* the logprobs"):
        builtin.generate("x", logprobs=8192, max_length=500, **{name: 100_000})


def test_more_of_a_prompt_is_reported_than_memory_holds(
    builtin: CodeGenerator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory.device, "free_bytes", lambda _: 10**8)
    with pytest.raises(ValueError, match=r"^prompt_logprobs \(8000\): .* 400 tokens .* are free$"):
        builtin.generate(" x" * 400, prompt_logprobs=8000)


@pytest.mark.parametrize("logprobs", [None, 0, 50])
def test_what_a_completion_is_reckoned_to_take(builtin: CodeGenerator, logprobs: int | None):
    """No less than it does, and not many times as much."""
    config = GenerationConfig(
        num_return_sequences=100, max_length=200, logprobs=logprobs, truncation=None
    )
    call = Call(builtin._model, config, 8, list)
    request = call.request(PROMPT, 0)
    tracemalloc.start()
    rows = []
    for index in range(100):
        row = new_row(request, index, index)
        for token in range(300, 500):
            row.token_ids.append(int(str(token)))  # each its own, as those of arrays are
            row.stops.feed(token)
            if logprobs is not None:
                best = {int(str(n)): float(n) for n in range(300, 300 + logprobs)}
                row.log_probs.append((float(token), best))
        row.finish_reason = "length"
        row.release()
        rows.append(row)
    found = call.completions(request, rows)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 100
    reckoned = completion_bytes(config, 100, logprobs, 8192)
    assert taken < reckoned < 4 * taken


# What has no effect


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_beams": 6},
            "num_beams has no effect with decode_strategy='sampling': leave it out,",
        ),
        ({"num_beams": 6, "decode_strategy": "greedy_search"}, "num_beams has no effect"),
        ({"length_penalty": 2.0}, "length_penalty has no effect with decode_strategy='sampling'"),
        ({"early_stopping": True}, ".* pass decode_strategy='beam_search'$"),
        (
            {"prompt_lookup": True, "decode_strategy": "beam_search"},
            ".* pass decode_strategy='sampling' or 'greedy_search'$",
        ),
    ],
)
def test_what_has_no_effect_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=f"^{message}"):
        GenerationConfig(**options)
    with pytest.raises(ValueError, match=f"^{message}"):
        GenerationConfig().with_options(options)
    with pytest.raises(ValueError, match=f"^{message}"):
        CodeGenerator.from_pretrained("/there/is/no/folder", **options)


def test_what_asks_for_nothing_is_accepted():
    """PaddleNLP's default, and what transformers' users pass for no beams."""
    for num_beams in (1, 4):
        assert GenerationConfig(num_beams=num_beams).num_beams == num_beams
    GenerationConfig(decode_strategy="beam_search", prompt_lookup=False)


def test_sampling_s_options_are_said_once_to_have_no_effect(caplog: pytest.LogCaptureFixture):
    generation_config._say_once.cache_clear()
    for temperature in (0.2, 0.3):
        GenerationConfig(temperature=temperature, top_k=9, decode_strategy="greedy_search")
        GenerationConfig(temperature=temperature)
    assert caplog.messages == [
        "temperature has no effect with decode_strategy='greedy_search'",
        "top_k has no effect with decode_strategy='greedy_search'",
    ]


def test_another_strategy_leaves_the_options_of_the_first(caplog: pytest.LogCaptureFixture):
    generation_config._say_once.cache_clear()
    beams = GenerationConfig(decode_strategy="beam_search", num_beams=7, length_penalty=2.0)
    assert beams.with_options({"decode_strategy": "sampling"}) == GenerationConfig()
    assert beams.with_options({"decode_strategy": "beam_search"}) == beams
    assert beams.with_options({"max_length": 3}).num_beams == 7
    with pytest.raises(ValueError, match=r"^num_beams has no effect"):
        beams.with_options({"decode_strategy": "sampling", "num_beams": 7})
    ranked = GenerationConfig(best_of=4, temperature=0.2, prompt_lookup=True)
    searched = ranked.with_options({"decode_strategy": "beam_search", "num_beams": 2})
    assert searched == GenerationConfig(decode_strategy="beam_search", num_beams=2)
    assert not caplog.messages


def test_none_means_none(builtin: CodeGenerator):
    options = {**OPTIONS, "max_length": 5}
    plain = builtin.generate(PROMPT, **options)
    assert builtin.generate(PROMPT, stop=None, suppress_tokens=None, **options) == plain
    assert GenerationConfig(stop=None, suppress_tokens=None) == GenerationConfig()


@pytest.mark.parametrize(
    "name", ["num_return_sequences", "best_of", "logprobs", "prompt_logprobs", "output_scores"]
)
def test_what_a_session_s_turn_has_no_place_for(builtin: CodeGenerator, name: str):
    session = builtin.session()
    with pytest.raises(TypeError, match=f"^{name}: a turn is one text"):
        session.turn(PROMPT, max_length=3, **{name: 1})
    assert session.turns == []


# What is meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("n", "use num_return_sequences"),
        ("max_tokens", "use max_length"),
        ("max_new_tokens", "use max_length"),
        ("min_new_tokens", "use min_length"),
        ("stop_sequences", "use stop"),
        ("stop_strings", "use stop"),
        ("truncate_before_pattern", "use truncation"),
        ("do_sample", "use decode_strategy"),
        ("bad_words_ids", "use suppress_tokens"),
        ("eos_token_id", "use stop_token_ids"),
        ("random_seed", "use seed"),
        ("max_lenght", r"did you mean 'max_length'\?"),
    ],
)
def test_names_that_others_have(builtin: CodeGenerator, name: str, meant: str):
    for ask in (builtin.generate, builtin.stream, CodeGenerator.from_pretrained):
        with pytest.raises(TypeError, match=f"^unknown option '{name}'; {meant}$"):
            ask("x", **{name: 1})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("torch_dtype", "use precision"),
        ("device_map", "use device"),
        ("cache_dir", "use home_path"),
        ("assistant_model", "use draft_model"),
        ("model", "the model is the first argument of from_pretrained"),
        ("task_path", "the folder is the first argument of from_pretrained"),
        ("is_static_model", "call CodeGenerator.from_export"),
        ("device_id", "pass device='gpu:N', or 'cpu'"),
    ],
)
def test_names_that_others_have_of_loading(name: str, meant: str):
    with pytest.raises(TypeError, match=f"^unknown option '{name}'; {meant}$"):
        CodeGenerator.from_pretrained("builtin", **{name: 1})


@pytest.mark.parametrize("name", ["engine", "num_threads", "draft_model", "kv_cache_bytes"])
def test_options_of_loading_in_a_call(builtin: CodeGenerator, name: str):
    with pytest.raises(TypeError, match=f"'{name}'; {name} is an option of loading: pass it to f"):
        builtin.generate("x", **{name: 1})


def test_batch_size_is_no_option_of_a_stream(builtin: CodeGenerator):
    with pytest.raises(TypeError, match=r"^unknown option 'batch_size'"):
        builtin.stream("x", batch_size=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("strategy", ["sampling", "greedy_search"])
def test_temperature_0_names_greedy_search(strategy: str):
    with pytest.raises(ValueError, match=r"in place of 0 pass decode_strategy='greedy_search'"):
        GenerationConfig(temperature=0, decode_strategy=strategy)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["builtin", None, 3, Path("x")])
def test_a_generator_of_a_name_names_from_pretrained(wrong: Any):
    with pytest.raises(TypeError, match=r"call CodeGenerator.from_pretrained, which loads one"):
        CodeGenerator(wrong)


def test_advice_can_be_followed():
    """from_pretrained names no option that it does not have."""
    with pytest.raises(OSError, match=r"^unknown model 'gpt2': .*from_hf_hub=True$") as raised:
        CodeGenerator.from_pretrained("gpt2")
    named = set(re.findall(r"(\w+)=", str(raised.value)))
    assert named <= LoadingOptions.__annotations__.keys()


# Numbers at their bounds


@pytest.mark.parametrize("strategy", ["sampling", "greedy_search", "beam_search"])
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1.7e308},
        {"repetition_penalty": 1.7e308, "presence_penalty": -2.0, "frequency_penalty": -2.0},
        {"logit_bias": {65: 1.7e308, 66: -1.7e308}},
        {"logit_bias": dict.fromkeys(range(8192), 1.7e308), "repetition_penalty": 1e-300},
        {"logit_bias": dict.fromkeys(range(8192), -1.7e308), "suppress_tokens": range(99)},
        {"temperature": 5e-324, "top_p": 5e-324},
        {"temperature": 1.7e308, "min_p": 0.999, "top_k": 0},
        {"length_penalty": -10, "logit_bias": dict.fromkeys(range(8192), 1e38)},
        {"length_penalty": 10, "logit_bias": dict.fromkeys(range(8192), 1e38)},
    ],
    ids=lambda options: ",".join(options),
)
def test_extreme_penalties_warn_of_nothing(
    builtin: CodeGenerator, strategy: str, options: dict[str, Any]
):
    options = {"max_length": 40, "ignore_eos": True, "truncation": None, "seed": 1, **options}
    if strategy != "beam_search" and "length_penalty" in options:
        del options["length_penalty"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # in all threads
        for reports in ({}, {"logprobs": 2, "output_scores": True}):
            [[found]] = builtin.generate("x = x =", decode_strategy=strategy, **options, **reports)
            assert len(found.token_ids) == 40
            assert not set(found.token_ids) & set(options.get("suppress_tokens", ()))
