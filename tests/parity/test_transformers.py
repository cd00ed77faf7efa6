"""The static graph, the eager step and the numpy reference against transformers' CodeGen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_safetensors
from codegen_tokenizer import write_codegen_tokenizer
from random_models import generator_of, open_model, spread_tensors, write_model
from transformers import CodeGenForCausalLM

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export.paddle_graph import NUM_CANDIDATES
from paddlenlp_codegen_task.loading import LoadedModel
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, StepOutput, decode, prefill
from paddlenlp_codegen_task.runtime.onnx_inference import unsupported

# Largest difference of two rows of logits, over the largest absolute value in the row.
TOLERANCE = 1e-4
EOS = 256  # of a tokenizer of all 256 bytes


def shape(vocab_size: int, n_positions: int, head_dim: int, **sizes: int) -> CodeGenConfig:
    values = {"n_head": 4, "n_layer": 2, "eos_token_id": EOS} | sizes
    n_embd = head_dim * values["n_head"]
    values = {"n_embd": n_embd, "n_inner": 4 * n_embd, "bos_token_id": 1} | values
    return CodeGenConfig(vocab_size=vocab_size, n_positions=n_positions, **values)


LETTERS = range(ord("a"), ord("z") + 1)
SHAPES = {
    "head 64": shape(300, 400, 64, rotary_dim=32, n_layer=3),
    "head 80": shape(2000, 320, 80, rotary_dim=64),
    "head 256": shape(1024, 320, 256, rotary_dim=64, n_inner=1024),
    "8 heads, fewer tokens than candidates": shape(
        40, 300, 16, rotary_dim=8, n_head=8, eos_token_id=len(LETTERS)
    ),
    "CodeGen's vocabulary": shape(50304, 288, 16, rotary_dim=16, eos_token_id=50256),
}
PROMPTS = {
    "8 heads, fewer tokens than candidates": ["q", "loremipsum", "thequickbrownfoxjumps"],
    "CodeGen's vocabulary": ["def", "def f(x):\n        return 你好\n"],
}


@dataclass(frozen=True)
class Pair:
    """The same weights on both sides."""

    config: CodeGenConfig
    folder: Path
    prompts: list[str]
    paddle: LoadedModel
    onnxruntime: LoadedModel | None  # where it takes the shape
    eager: LoadedModel
    theirs: CodeGenForCausalLM
    generators: list[CodeGenerator] = field(default_factory=list)

    def generator_of(self, model: LoadedModel) -> CodeGenerator:
        """One for all tests of a model, since what a generator runs on is freed with it."""
        for generator in self.generators:
            if generator._model is model:
                return generator
        self.generators.append(generator_of(model))
        return self.generators[-1]

    def their_logits(self, token_ids: list[int]) -> np.ndarray:
        """Logits [T, vocab_size] of T tokens in one pass."""
        with torch.no_grad():
            return self.theirs(torch.tensor([token_ids])).logits[0].numpy()

    def random_ids(self, count: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(self.config.vocab_size, size=count).tolist()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All shapes, and with `model` each by all engines that take it."""
    if "model" in metafunc.fixturenames:
        cases = [
            pytest.param(name, engine, id=f"{name}-{engine}")
            for name, config in SHAPES.items()
            for engine in ("paddle", "onnxruntime", "eager")
            if engine != "onnxruntime" or unsupported(config) is None
        ]
        metafunc.parametrize(("pair", "model"), cases, indirect=True, scope="module")
    elif "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", list(SHAPES), indirect=True, scope="module")


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest, home_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    config, folder = SHAPES[request.param], tmp_path_factory.mktemp("model")
    tensors = spread_tensors(config)
    tensors["lm_head.bias"][config.eos_token_id] -= 20  # ends are compared further down
    if request.param == "CodeGen's vocabulary":
        write_codegen_tokenizer(write_safetensors(folder, tensors, config))
    else:
        write_model(
            folder, config, tensors, alphabet=range(256) if config.vocab_size > EOS else LETTERS
        )
    static = open_model(folder, home_path)
    supported = unsupported(config) is None
    onnx = open_model(folder, home_path, engine="onnxruntime") if supported else None
    eager = open_model(folder, home_path, static_mode=False)
    theirs = CodeGenForCausalLM.from_pretrained(folder).eval()
    assert theirs.config.rotary_dim == config.rotary_dim
    prompts = PROMPTS.get(request.param, ["x = ", "def hello_world(name):\n    '''你好'''\n"])
    yield Pair(config, folder, prompts, static, onnx, eager, theirs)
    for model in (static, onnx, eager):
        if model is not None:
            model.runtime.close()


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, pair: Pair) -> LoadedModel:
    found: LoadedModel = getattr(pair, request.param)
    return found


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    error = np.abs(found - expected).max(axis=-1) / np.abs(expected).max(axis=-1)
    assert error.max() < TOLERANCE


def check(output: StepOutput, expected: np.ndarray) -> None:
    """Compare a step's rows with the expected logits [rows, vocab_size]."""
    logits = output.logits()
    assert_close(logits, expected)
    count = min(NUM_CANDIDATES, expected.shape[1])
    assert output.candidates.shape == output.candidate_ids.shape == (len(expected), count)
    np.testing.assert_array_equal(output.candidates, -np.sort(-logits, axis=1)[:, :count])
    taken = np.take_along_axis(logits, output.candidate_ids, axis=1)
    np.testing.assert_array_equal(output.candidates, taken)
    assert all(len(set(row)) == count for row in output.candidate_ids.tolist())


def test_logits_of_a_prompt_in_chunks_and_of_every_token_up_to_the_context_limit(
    pair: Pair, model: LoadedModel
):
    token_ids = pair.random_ids(pair.config.n_positions)
    expected = pair.their_logits(token_ids)
    begun = pair.config.n_positions - 6
    assert begun > PREFILL_CHUNK
    check(prefill(model.runtime, 0, [token_ids[:begun]]), expected[begun - 1 : begun])
    for n in range(begun, len(token_ids)):
        check(decode(model.runtime, [token_ids[n]]), expected[n : n + 1])


def test_logits_of_prompts_of_unequal_lengths(pair: Pair, model: LoadedModel):
    lengths = (1, 33, 5, 18)
    rows = [pair.random_ids(length + 4, seed) for seed, length in enumerate(lengths)]
    expected = [pair.their_logits(row) for row in rows]
    prompts = [row[:-4] for row in rows]
    check(prefill(model.runtime, 0, prompts), np.stack([one[-5] for one in expected]))
    for n in range(-4, 0):
        output = decode(model.runtime, [row[n] for row in rows])
        check(output, np.stack([one[n] for one in expected]))


def test_reference_logits(pair: Pair):
    token_ids = pair.random_ids(40)
    with open_checkpoint(pair.folder) as checkpoint:
        found = reference.forward(FusedWeights(checkpoint, pair.config), token_ids)
    assert_close(found, pair.their_logits(token_ids))


def their_tokens(
    theirs: CodeGenForCausalLM, token_ids: list[int], eos: int | list[int], **options: float
) -> list[int]:
    ids = torch.tensor([token_ids])
    with torch.no_grad():
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=64,
            eos_token_id=eos,
            pad_token_id=eos if isinstance(eos, int) else eos[0],
            **options,
        )
    return found[0, len(token_ids) :].tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_tokens(pair: Pair, model: LoadedModel, penalty: float):
    generator = pair.generator_of(model)
    found = generator.generate(
        pair.prompts,
        decode_strategy="greedy_search",
        max_length=64,
        repetition_penalty=penalty,
        batch_size=1,
    )
    distinct = set()
    for prompt, [completion] in zip(pair.prompts, found, strict=True):
        expected = their_tokens(
            pair.theirs,
            generator.tokenizer.encode(prompt),
            pair.config.eos_token_id,
            repetition_penalty=penalty,
        )
        ended = expected[-1] == pair.config.eos_token_id
        assert list(completion.token_ids) == (expected[:-1] if ended else expected)
        assert completion.finish_reason == ("eos" if ended else "length")
        assert completion.text == generator.tokenizer.decode(expected)
        distinct |= set(expected)
    assert len(distinct) >= min(
        20, pair.config.vocab_size // 4
    )  # a loop over two tokens would prove little


@pytest.fixture(scope="module", params=["paddle", "onnxruntime"])
def ending(
    request: pytest.FixtureRequest, home_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[CodeGenerator, CodeGenForCausalLM]]:
    """A model that likes to end its text."""
    config = replace(SHAPES["head 64"], n_layer=2, n_positions=160)
    tensors = spread_tensors(config, seed=1)
    tensors["lm_head.bias"][EOS] += 8
    folder = write_model(tmp_path_factory.mktemp("ending"), config, tensors)
    with generator_of(open_model(folder, home_path, engine=request.param)) as generator:
        yield generator, CodeGenForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_end_of_text_and_min_length(
    ending: tuple[CodeGenerator, CodeGenForCausalLM], penalty: float
):
    generator, theirs = ending
    prompts = [f"{word} {word[::-1]}" for word in ("alpha", "beta", "gamma", "delta", "eta", "rho")]
    lengths = {}
    for min_length in (0, 24):
        found = generator.generate(
            prompts,
            decode_strategy="greedy_search",
            max_length=64,
            min_length=min_length,
            repetition_penalty=penalty,
        )
        for prompt, [completion] in zip(prompts, found, strict=True):
            expected = their_tokens(
                theirs,
                generator.tokenizer.encode(prompt),
                EOS,
                repetition_penalty=penalty,
                min_new_tokens=min_length,
            )
            ended = expected[-1] == EOS
            assert list(completion.token_ids) == (expected[:-1] if ended else expected)
            assert completion.finish_reason == ("eos" if ended else "length")
        lengths[min_length] = [len(completion.token_ids) for [completion] in found]
    assert sum(0 < length < 24 for length in lengths[0]) >= 3
    assert len(set(lengths[0])) >= 3
    assert min(lengths[24]) >= 24
    assert any(24 <= length < 64 for length in lengths[24])


@pytest.mark.parametrize("options", [{}, {"min_length": 20}, {"ignore_eos": True}], ids=str)
def test_stop_token_ids(ending: tuple[CodeGenerator, CodeGenForCausalLM], options: dict[str, Any]):
    """Ends of text by greedy search and by a search of one beam more; the tokens are left out."""
    generator, theirs = ending
    prompts = [f"{word} {word[::-1]}" for word in ("alpha", "beta", "gamma", "delta", "eta", "rho")]
    stop = [token for token in range(0, 256, 3) if token != EOS]
    reasons = set()
    for strategy in ({}, {"decode_strategy": "beam_search", "num_beams": 2}):
        found = generator.generate(
            prompts,
            stop_token_ids=stop,
            max_length=64,
            repetition_penalty=1.0,
            **{"decode_strategy": "greedy_search", **strategy, **options},
        )
        for prompt, [completion] in zip(prompts, found, strict=True):
            expected = their_tokens(
                theirs,
                generator.tokenizer.encode(prompt),
                [EOS, *stop],
                num_beams=2 if strategy else 1,
                min_new_tokens=options.get("min_length", 0),
                **({"suppress_tokens": [EOS]} if "ignore_eos" in options else {}),
            )
            ends = [n for n, token in enumerate(expected) if token in (EOS, *stop)]
            ends = (n for n, token in enumerate(expected) if token in (EOS, *stop))
            at = next(ends, None)
            assert list(completion.token_ids) == expected[:at]
            assert completion.text == generator.tokenizer.decode(expected[:at])
            reason = "length" if at is None else "eos" if expected[at] == EOS else "stop"
            assert completion.finish_reason == reason
            reasons.add(reason)
    assert "stop" in reasons


BEAMS: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 2, "num_return_sequences": 2},
    {"num_beams": 4, "early_stopping": True, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": -0.5, "early_stopping": "never"},
    {"num_beams": 5, "length_penalty": 2.0, "num_return_sequences": 5, "repetition_penalty": 1.3},
    {"num_beams": 4, "min_length": 12},
]


@pytest.mark.parametrize("options", BEAMS, ids=str)
def test_beam_search(ending: tuple[CodeGenerator, CodeGenForCausalLM], options: dict[str, Any]):
    """Several prompts at once, which come to their ends at different steps."""
    generator, theirs = ending
    prompts = [f"{word} {word[::-1]}" * n for n, word in enumerate(("alpha", "be", "gamma"), 1)]
    options = {"repetition_penalty": 1.0, **options}
    their_options = dict(options)
    their_options["min_new_tokens"] = their_options.pop("min_length", 0)
    found = generator.generate(
        prompts,
        decode_strategy="beam_search",
        max_length=30,
        output_scores=True,
        batch_size=7,
        **options,
    )
    lengths = set()
    for prompt, completions in zip(prompts, found, strict=True):
        ids = torch.tensor([generator.tokenizer.encode(prompt)])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=EOS,
            pad_token_id=EOS,
            return_dict_in_generate=True,
            output_scores=True,
            **their_options,
        )
        assert len(completions) == len(expected.sequences)
        for n, completion in enumerate(completions):
            tokens = expected.sequences[n, ids.shape[1] :].tolist()
            ended = EOS in tokens
            assert list(completion.token_ids) == (tokens[: tokens.index(EOS)] if ended else tokens)
            assert completion.finish_reason == ("eos" if ended else "length")
            if options["num_beams"] > 1:
                assert completion.score == pytest.approx(
                    expected.sequences_scores[n].item(), rel=1e-4
                )
            lengths.add(len(completion.token_ids))
    assert len(lengths) >= 2
