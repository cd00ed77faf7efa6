"""CodeGenerator.stream, and calls that run beside one another."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task import CodeGenerator, Completion

PROMPTS = ["def hello_world():", "import os\n\n\ndef walk(path):\n", "# 你好", "class Stack:"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"decode_strategy": "greedy_search", "truncation": None},
    {"truncation": None, "temperature": 2.0, "top_k": 0},  # bytes that are no UTF-8, too
    {"truncation": "\n\n", "repetition_penalty": 1.0},
    {"stop": ["return", "self"], "truncation": None},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_pieces_joined_are_the_text(
    builtin: CodeGenerator, prompt: str, options: dict[str, Any]
):
    options = {**options, "seed": 4, "max_length": 40}
    found: list[Completion] = []

    def collect() -> Iterator[str]:
        found.append((yield from builtin.stream(prompt, **options)))

    pieces = list(collect())
    [[completion]] = builtin.generate(prompt, **options)
    assert found == [completion]
    assert "".join(pieces) == completion.text
    assert all(pieces)
    if len(completion.text) > 40:
        assert len(pieces) > 3


def running(generator: CodeGenerator) -> int:
    return len(generator._scheduler._running)


@pytest.mark.parametrize("how", ["close", "forget"])
def test_closing_frees_the_slot_at_once(builtin: CodeGenerator, how: str):
    pieces = builtin.stream("x = 1\n", truncation=None, ignore_eos=True)
    next(pieces)
    assert running(builtin) == 1
    if how == "close":
        pieces.close()
    del pieces
    gc.collect()
    assert running(builtin) == 0


def test_a_stream_that_is_never_asked_runs_nothing(builtin: CodeGenerator):
    pieces = builtin.stream("x = 1\n")
    assert running(builtin) == 0
    del pieces


def test_other_calls_go_on_beside_a_stream(builtin: CodeGenerator):
    options: dict[str, Any] = {"seed": 1, "max_length": 30, "truncation": None}
    [[expected]] = builtin.generate("def add(a, b):", **options)
    [[other]] = builtin.generate("x = [", seed=2, max_length=20)
    pieces = builtin.stream("def add(a, b):", **options)
    text = next(pieces)
    assert builtin.generate("x = [", seed=2, max_length=20) == [[other]]  # in the same thread
    beside = builtin.stream("x = [", seed=2, max_length=20)
    assert "".join(beside) == other.text
    assert text + "".join(pieces) == expected.text


def test_streams_of_many_threads(builtin: CodeGenerator):
    options: dict[str, Any] = {"max_length": 24, "truncation": None}
    expected = [
        builtin.generate(prompt, seed=n, **options)[0][0].text for n, prompt in enumerate(PROMPTS)
    ]
    found: dict[int, str] = {}

    def run(number: int) -> None:
        found[number] = "".join(builtin.stream(PROMPTS[number], seed=number, **options))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(PROMPTS))] == expected
    assert running(builtin) == 0


@pytest.fixture
def own(home_path: Path) -> Iterator[CodeGenerator]:
    with CodeGenerator.from_pretrained(
        "builtin", home_path=home_path, device="cpu", num_threads=1, prefix_cache_bytes=10_000_000
    ) as generator:
        yield generator


LONG: dict[str, Any] = {"max_length": 40, "truncation": None, "ignore_eos": True}


def test_a_step_of_another_call_that_fails_ends_this_one_with_its_error(
    own: CodeGenerator, monkeypatch: pytest.MonkeyPatch
):
    pieces, other = own.stream("x = 1\n", **LONG), own.stream("y = 2\n", **LONG)
    next(pieces)
    next(other)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(own._model.runtime, "forward", fail)
        with pytest.raises(MemoryError):
            list(other)
    with pytest.raises(MemoryError, match="no room"):
        list(pieces)
    assert own.generate("x = 1\n", **LONG)  # and the next call runs


def test_closing_ends_what_runs(own: CodeGenerator):
    streams = [own.stream("x = 1\n", seed=n, **LONG) for n in range(3)]
    for pieces in streams:
        next(pieces)
    own.close()
    streams[0].close()
    for pieces in streams[1:]:
        with pytest.raises(RuntimeError, match="this generator is closed"):
            next(pieces)
    with pytest.raises(RuntimeError, match="this generator is closed"):
        own.generate("x = 1\n")
    with pytest.raises(RuntimeError, match="this generator is closed"):
        own.session().turn("x = 1\n")
    assert own._scheduler.prefix_cache is not None
    assert own._scheduler.prefix_cache.bytes == 0


def test_streams_of_threads_share_steps(own: CodeGenerator, monkeypatch: pytest.MonkeyPatch):
    rows: list[int] = []
    forward = own._model.runtime.forward

    def spy(slot: int, token_ids: Any, every: bool = False) -> Any:
        rows.append(len(token_ids))
        return forward(slot, token_ids, every)

    monkeypatch.setattr(own._model.runtime, "forward", spy)
    started = threading.Barrier(4)

    def run(number: int) -> None:
        pieces = own.stream("x = 1\n", seed=number, **LONG)
        next(pieces)
        started.wait()
        list(pieces)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows.count(4) > 25  # of about 40 steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences must be 1 to stream, got 2"),
        ({"best_of": 3}, "best_of must be 1 to stream, got 3"),
        ({"batch_size": 2}, "unknown option 'batch_size'"),
        ({"max_length": 5000}, "max_length must be below the model's context"),
    ],
)
def test_bad_options_are_refused_when_called(
    builtin: CodeGenerator, options: dict[str, Any], message: str
):
    with pytest.raises((TypeError, ValueError), match=message):
        builtin.stream("x", **options)
    with pytest.raises(TypeError, match="prompt must be a str, got list"):
        builtin.stream(["x"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be empty"):
        builtin.stream("")
