from __future__ import annotations

import math
from typing import Any

import pytest

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.evaluation.conversations import AFTER, PREFIX, Conversation
from paddlenlp_codegen_task.evaluation.problems import TurnsProblem
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.evaluation.turns import Turns, perplexity, perplexity_by_turn, same

PROBLEM = TurnsProblem(
    "1",
    ("Assign {A} to a.", "Print a."),
    ({"A": 3}, {"A": "x"}),
    (3, "x"),
    max_length=24,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (3.0, 3),
        ("3", 3),
        (0.1 + 0.2, 0.3),
        (3, 3.0000001),
        (True, True),
        ("True", True),
        (1, "1"),
        ((1, 2), [1, 2]),
        ([(1, 2), (3, 4)], [[1, 2], [3, 4]]),
        ([0.1 + 0.2], [0.3]),
        ({1, 2}, [1, 2]),
        ("ab", ["a", "b"]),
        (None, None),
        ("None", None),
        ({5: ["a"]}, {"5": ["a"]}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (math.inf, math.inf),
    ],
)
def test_values_that_are_the_same(value: Any, expected: Any):
    assert same(value, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 4),
        ("x", 3),
        (None, 3),
        (0.30001, 0.3),
        (math.nan, 0.3),
        (1, True),
        ("true", True),
        ([1, 2, 3], [1, 2]),
        ([1, [2, 4]], [1, [2, 3]]),
        (5, [5]),
        (0, None),
        ({}, {"a": 1}),
        ({"a": 2}, {"a": 1}),
        ([], {"a": 1}),
        ({"a": 1}, {"a": {"b": 1}}),
        (math.inf, 3),
        (10**400, 1.5),
        ([10**400], [1.5]),
        (10**5000, "1"),
        ({10**5000: 1}, {"a": 1}),
        ("9" * 5000, 9),
        ([(((1 << 61) - 1) * n, 0) for n in range(200_000)], {"a": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_not(value: Any, expected: Any):
    assert not same(value, expected)


def test_single_turn_has_all_comments_first():
    many = Conversation.of(PROBLEM, ("1", 0, "multi-turn", 0.2, 0))
    assert many.prompt == PREFIX + "# Assign 3 to a.\n"
    one = Conversation.of(PROBLEM, ("1", 1, "single-turn", 0.2, 0))
    assert one.prompt == PREFIX + "# Assign x to a.\n# Print a.\n"
    assert one.max_length == 2 * PROBLEM.max_length


def test_programs_are_what_sessions_come_to(builtin: CodeGenerator):
    """Turn by turn, each is completed with all before it, by greedy search."""
    turns = Turns([PROBLEM])
    sampling = Sampling(1, (0.0,))
    lines = [line for found in turns.complete(builtin, sampling, set()) for line in found]
    assert {turns.key_of(line) for line in lines} == set(turns.keys(sampling))
    for line in lines:
        assert line["completion"].startswith(PREFIX)
        if line["mode"] == "single-turn":
            continue
        session = builtin.session()
        options: Any = {
            "decode_strategy": "greedy_search",
            "repetition_penalty": 1.0,
            "truncation": "salesforce",
            "max_length": PROBLEM.max_length,
        }
        value = PROBLEM.inputs[line["input"]]["A"]
        programs = [session.turn(PREFIX + f"# Assign {value} to a.\n", **options)]
        # A session begins a turn on a new line; the benchmark leaves an empty one.
        session.turns[-1] = type(session.turns[-1])(
            session.turns[-1].specification, programs[0] + AFTER
        )
        programs.append(session.turn("# Print a.\n", **options))
        assert line["turns"] == programs
        assert line["completion"] == session.text + AFTER


def test_what_is_done_is_not_done_again(builtin: CodeGenerator):
    turns = Turns([PROBLEM])
    sampling = Sampling(2, (0.8,), seed=5)
    everything = {
        turns.key_of(line): line
        for found in turns.complete(builtin, sampling, set())
        for line in found
    }
    keys = turns.keys(sampling)
    assert sorted(everything, key=keys.index) == keys
    left = keys[3:5]
    again = [
        line for found in turns.complete(builtin, sampling, set(keys) - set(left)) for line in found
    ]
    assert {turns.key_of(line) for line in again} == set(left)
    assert all(everything[turns.key_of(line)] == line for line in again)
    assert len({line["completion"] for line in everything.values()}) > 2


def test_perplexity_is_of_the_comments_alone(builtin: CodeGenerator):
    line, *_ = [
        line
        for found in Turns([PROBLEM]).complete(builtin, Sampling(1, (0.0,)), set())
        for line in found
    ]
    assign, show = f"# Assign {PROBLEM.inputs[line['input']]['A']} to a.\n", "# Print a.\n"
    first = "" if line["mode"] == "single-turn" else line["turns"][0] + AFTER
    text = PREFIX + assign + first + show
    options: Any = {"max_length": 0, "prompt_logprobs": 0}
    [[scored]] = builtin.generate(text, **options)
    assert scored.prompt_logprobs is not None
    spans = [
        *range(len(PREFIX), len(PREFIX + assign)),
        *range(len(PREFIX + assign + first), len(text)),
    ]
    at, counted = 0, []
    for token_id, one in zip(builtin.tokenizer.encode(text), scored.prompt_logprobs, strict=True):
        if at in spans:
            assert one is not None
            counted.append(one[token_id])
        at += len(builtin.tokenizer.token_bytes(token_id))
    assert sum(line["prompt_tokens"]) == len(counted) > 8
    assert sum(line["prompt_log_probs"]) == pytest.approx(sum(counted), rel=1e-4)
    assert perplexity([line]) == pytest.approx(math.exp(-sum(counted) / len(counted)), rel=1e-4)
    assert len(perplexity_by_turn([line])) == len(line["prompt_tokens"])
    assert perplexity([]) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"task_id": "2", "input": 0}, "task_id"),
        ({"task_id": ["1"], "input": 0}, "task_id"),
        ({"task_id": "1"}, "input from 0 to 1"),
        ({"task_id": "1", "input": 2}, "input from 0 to 1"),
        ({"task_id": "1", "input": 0, "mode": "x"}, "multi-turn or single-turn"),
        ({"task_id": "1", "input": 0, "temperature": "hot"}, "temperature"),
    ],
)
def test_samples_of_others_are_checked(line: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Turns([PROBLEM]).checked(line)
