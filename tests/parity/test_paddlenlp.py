"""Generation against PaddleNLP's own: the same greedy tokens, the same sampling distribution."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddlenlp.transformers import CodeGenForCausalLM
from random_models import generator_of, open_model, spread_tensors, write_model
from sampler_probe import distribution

from paddlenlp_codegen_task import CodeGenerator, GenerationConfig
from paddlenlp_codegen_task.model.config import CodeGenConfig

EOS = 256
CONFIG = CodeGenConfig(
    vocab_size=300,
    n_positions=192,
    n_embd=128,
    n_layer=2,
    n_head=4,
    rotary_dim=16,
    n_inner=384,
    eos_token_id=EOS,
    bos_token_id=EOS,
)
PROMPTS = ["alpha", "def hello_world(name):\n    '''你好'''\n", "beta ateb", "x"]


@dataclass(frozen=True)
class Pair:
    """The same weights on both sides."""

    generator: CodeGenerator
    theirs: CodeGenForCausalLM

    def their_tokens(self, token_ids: list[int], **options: Any) -> list[int]:
        found, _ = self.theirs.generate(
            paddle.to_tensor([token_ids]),
            decode_strategy="greedy_search",
            max_new_tokens=64,
            eos_token_id=EOS,
            pad_token_id=EOS,
            **options,
        )
        return found[0].tolist()


@pytest.fixture(scope="module", params=["never ends", "likes to end"])
def pair(
    request: pytest.FixtureRequest, home_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    tensors = spread_tensors(CONFIG, seed=2)
    tensors["lm_head.bias"][EOS] += -20 if request.param == "never ends" else 9
    folder = write_model(tmp_path_factory.mktemp("model"), CONFIG, tensors, paddle_format=True)
    theirs = CodeGenForCausalLM.from_pretrained(str(folder))
    theirs.eval()
    with generator_of(open_model(folder, home_path)) as generator:
        yield Pair(generator, theirs)


@pytest.mark.parametrize("min_length", [0, 20])
@pytest.mark.parametrize("penalty", [1.0, 1.3, 0.8])
def test_greedy_tokens(request: pytest.FixtureRequest, pair: Pair, penalty: float, min_length: int):
    found = pair.generator.generate(
        PROMPTS,
        decode_strategy="greedy_search",
        max_length=64,
        min_length=min_length,
        repetition_penalty=penalty,
    )
    lengths, distinct = [], set()
    for prompt, [completion] in zip(PROMPTS, found, strict=True):
        expected = pair.their_tokens(
            pair.generator.tokenizer.encode(prompt),
            repetition_penalty=penalty,
            min_new_tokens=min_length,
        )
        ended = expected[-1] == EOS
        assert list(completion.token_ids) == (expected[:-1] if ended else expected)
        assert completion.finish_reason == ("eos" if ended else "length")
        lengths.append(len(completion.token_ids))
        distinct |= set(expected)
    if "never" in request.node.callspec.id:
        assert set(lengths) == {64}
        assert len(distinct) >= (20 if penalty >= 1 else 4)
    elif penalty >= 1:
        assert any(min_length <= length < 64 for length in lengths)


@pytest.mark.parametrize("pair", ["never ends"], indirect=True)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_scores(pair: Pair, penalty: float):
    """The same while sampling; by greedy search PaddleNLP averages logits, we log-probabilities."""
    prompt = "def f(x):"
    token_ids = pair.generator.tokenizer.encode(prompt)
    found = {}
    for way in ("sampling", "greedy_search"):
        options = {"decode_strategy": way, "top_k": 1, "repetition_penalty": penalty}
        [[ours]] = pair.generator.generate(prompt, max_length=8, output_scores=True, **options)
        tokens, score = pair.theirs.generate(
            paddle.to_tensor([token_ids]),
            max_new_tokens=8,
            temperature=0.6,
            eos_token_id=EOS,
            pad_token_id=EOS,
            **options,
        )
        assert tokens[0].tolist() == list(ours.token_ids)
        found[way] = ours.score, float(score[0, 0])
    assert found["sampling"][0] == pytest.approx(found["sampling"][1], abs=1e-4)
    assert found["greedy_search"][0] == pytest.approx(found["sampling"][0], abs=1e-4)

    # Theirs of greedy search, from the logits of one pass over prompt and completion.
    whole = pair.theirs(paddle.to_tensor([token_ids + list(ours.token_ids)]))
    logits = (whole[0] if isinstance(whole, tuple) else whole)[0].numpy()[len(token_ids) - 1 : -1]
    chosen = []
    for step, (row, token) in enumerate(zip(logits, ours.token_ids, strict=True)):
        value = row[token]
        if token in token_ids or token in ours.token_ids[:step]:
            value = value * penalty if value < 0 else value / penalty
        chosen.append(value)
    assert found["greedy_search"][1] == pytest.approx(np.mean(chosen), abs=1e-3)
    assert abs(found["greedy_search"][1] - found["greedy_search"][0]) > 1


# Steps of the generation below, each with logits and a next token of its own.
STEPS = 4
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 0},
    {"temperature": 0.6, "top_k": 5, "repetition_penalty": 1.1},  # the defaults
    {"temperature": 1.7, "top_k": 5, "repetition_penalty": 3.0},
    {"temperature": 0.6, "top_k": 1},
    {"temperature": 0.9, "top_k": 100, "repetition_penalty": 1.5},
    {"temperature": 2.5, "top_k": 300},
    {"temperature": 2.5, "top_k": 1000, "repetition_penalty": 0.7},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 0, "top_p": 0.6, "repetition_penalty": 1.3},
    {"temperature": 0.7, "top_k": 8, "top_p": 0.5},
    {"temperature": 2.0, "top_k": 12, "top_p": 0.4, "repetition_penalty": 1.3},
    {"temperature": 2.0, "top_k": 80, "top_p": 0.7, "repetition_penalty": 0.6},
    {"temperature": 1.0, "top_k": 5, "top_p": 0.01},
]


@pytest.mark.parametrize("pair", ["never ends"], indirect=True)
@pytest.mark.parametrize("min_length", [0, 3])
@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_sampling_distribution(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], min_length: int
):
    """The probabilities that PaddleNLP's `sample` draws by, taken where it draws."""
    options = {"top_p": 1.0, "repetition_penalty": 1.0, **options}
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 2.5, (STEPS, CONFIG.vocab_size)).astype(np.float32)
    logits[1::2] -= 12  # penalties do another thing below 0
    logits[:, EOS] = logits.max(axis=1) + 0.5
    likely = np.argsort(-logits, axis=1)
    prompt_ids = [int(token_id) for token_id in likely[:, 2:40:2].reshape(-1)]  # penalties bite
    tokens = [int(token_id) for token_id in likely[:, 1]]
    probabilities = []

    def draw(given: paddle.Tensor, *_: Any, **__: Any) -> paddle.Tensor:
        probabilities.append(given[0].numpy())
        return paddle.to_tensor([[tokens[len(probabilities) - 1]]])

    monkeypatch.setattr(paddle, "multinomial", draw)
    monkeypatch.setattr(
        pair.theirs,
        "adjust_logits_during_generation",
        lambda _: paddle.to_tensor(logits[len(probabilities)][None]),
    )
    pair.theirs.generate(
        paddle.to_tensor([prompt_ids]),
        decode_strategy="sampling",
        max_new_tokens=STEPS,
        min_new_tokens=min_length,
        eos_token_id=EOS,
        pad_token_id=EOS,
        **options,
    )
    assert len(probabilities) == STEPS
    config = GenerationConfig(max_length=STEPS, min_length=min_length, **options)
    resolution = 4000
    for step, given in enumerate(probabilities):
        expected = given / given.sum(dtype=np.float64)
        expected[expected < 1e-20] = 0  # Paddle's softmax on a CPU gives at least exp(-64)
        assert (expected[EOS] == 0) == (step < min_length)
        found = distribution(
            config, logits[step], EOS, prompt_ids, tokens[:step], resolution=resolution
        )
        assert np.abs(found - expected).max() < 1.01 / resolution
        assert not found[expected == 0].any()
