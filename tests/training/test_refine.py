"""Refinement: what is rewarded, how much each completion counts, and where its tokens lie."""

from __future__ import annotations

import random

import pytest
import torch
from completions import headers_in
from holes import Hole, without_line
from model import CodeGen, Shape
from refine import (
    LENGTHS,
    MAX_PROMPT,
    ROW_TOKENS,
    Sample,
    batches,
    holes_of,
    near,
    reward_of,
    reward_of_line,
    surrogate,
    weighted,
    without_docstring,
)

from paddlenlp_codegen_task.model.infilling import Infilling
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

PROMPT = 'def f(x):\n    """Double."""'


@pytest.mark.parametrize(
    ("completion", "ended", "reward"),
    [
        ("\n    return 2 * x\n", True, 1.0),
        ("\n    return 2 * x\n", False, 0.0),
        ("\n    return (2 * x\n", True, 0.0),
        ("\n    pass\n", True, 0.0),
        ("\n    raise NotImplementedError\n", True, 0.0),
        ("  \n", True, 0.0),
    ],
)
def test_a_function_that_does_something_and_parses_is_rewarded(
    completion: str, ended: bool, reward: float
):
    assert reward_of(PROMPT, completion, ended) == reward


def test_a_docstring_alone_is_no_function():
    assert reward_of("def f(x):", '\n    """Double."""\n', True) == 0
    assert reward_of("def f(x):", '\n    """Double."""\n    return 2 * x\n', True) == 1


def test_a_header_without_its_docstring():
    text = 'def f(\n    x,\n):\n    """Double.\n\n    More.\n    """\n    return 2 * x\n'
    [(_, header)] = headers_in(text)
    assert without_docstring(header).prompt == "def f(\n    x,\n):"


@pytest.mark.parametrize(
    ("text", "ended", "reward"),
    [
        ("    y = 2 * x", True, 1.0),
        ("    y = 2 * x", False, 0.0),
        ("    y = (2 * x", True, 0.0),
        ("    if x:", True, 0.0),
        ("    ", True, 0.0),
        ("    pass", True, 0.0),  # which parses wherever it stands
        ("    # about y", True, 0.0),
        ('    "y"', True, 0.0),
    ],
)
def test_a_line_of_code_with_which_the_file_parses_is_rewarded(
    text: str, ended: bool, reward: float
):
    hole = Hole("def f(x):\n", "    y = x", "\n    return y\n")
    assert reward_of_line(hole, text, ended) == reward


def test_lines_are_of_all_files_and_prompts_are_what_is_next_to_them(tokenizer: Tokenizer):
    text = "def f(x):\n" + "    x += 1\n" * 400 + "    return x\n"
    found = list(holes_of([text, "X = 1\n", text], random.Random(0)))
    assert [hole.filled(hole.line) for hole in found] == [text, text]
    infilling = Infilling.of(tokenizer)
    assert infilling is not None
    hole = without_line(text, 200)
    asked = near(hole, tokenizer, infilling)
    assert hole.prefix.endswith(asked.prefix)
    assert hole.suffix.startswith(asked.suffix)
    parts = (tokenizer.encode(text, allow_special=False) for text in (asked.prefix, asked.suffix))
    prompt = infilling.prompt(*parts, MAX_PROMPT)
    assert prompt is not None
    assert len(prompt) > MAX_PROMPT - 20


def samples(good: int, bad: int) -> list[Sample]:
    return [Sample([1, 2, 3, n], 2, float(n < good)) for n in range(good + bad)]


def test_weights_are_advantages_whoever_was_left_out():
    pairs = weighted(samples(90, 10), random.Random(0))
    assert len(pairs) == 20
    assert sum(weight for _, weight in pairs) == pytest.approx(0)
    assert {weight for one, weight in pairs if not one.reward} == {-0.9}
    assert sum(weight for one, weight in pairs if one.reward) == pytest.approx(90 * 0.1)
    assert weighted(samples(5, 0), random.Random(0)) == []


def test_batches_weigh_the_tokens_of_completions():
    short = Sample([5, 6, 7, 8], 2, 1.0)
    long = Sample(list(range(300)), 290, 0.0)
    found = list(batches([(short, 0.5), (long, -0.5)], random.Random(0)))
    assert sorted(ids.shape[1] for ids, _ in found) == [n + 1 for n in LENGTHS]
    for ids, weights in found:
        assert ids.shape == (ROW_TOKENS // weights.shape[1], weights.shape[1] + 1)
        one = short if ids.shape[1] == LENGTHS[0] + 1 else long
        assert ids[0, : len(one.ids)].tolist() == one.ids
        rows, columns = weights.nonzero(as_tuple=True)
        assert set(rows.tolist()) == {0}
        assert ids[0, 1:][columns].tolist() == one.ids[one.prompt :]
    longest = [(Sample([1] * (LENGTHS[-1] + 1), 250, 0.0), -1.0)] * 20
    assert sum(
        int((weights != 0).any(1).sum()) for _, weights in batches(longest, random.Random(0))
    )


def test_the_policys_gradient_makes_what_was_rewarded_likelier():
    torch.manual_seed(0)
    model = CodeGen(Shape(vocab_size=32, n_embd=32, n_layer=1, n_head=2, rotary_dim=8))
    pairs = [(Sample([1, 2, 3], 2, 1.0), 1.0), (Sample([1, 2, 4], 2, 0.0), -1.0)]
    [(ids, weights)] = batches(pairs, random.Random(0))

    def preference() -> float:
        logits = model(torch.tensor([[1, 2]]))[0, -1]
        return float(logits[3] - logits[4])

    before = preference()
    surrogate(model, ids, weights).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 10 * parameter.grad
    assert preference() > before
