"""CodeGenerator.stream, and calls that run beside one another."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_probe import at_work, gather, look, steps_of, until

from paddlenlp_codegen_task import CodeGenerator, Completion, GenerationConfig
from paddlenlp_codegen_task.generator import DEFAULT_BATCH_SIZE
from paddlenlp_codegen_task.loading import LoadOptions, load_model
from paddlenlp_codegen_task.running import UNREAD_PIECES
from paddlenlp_codegen_task.runtime.base import StepOutput

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


def value_of(pieces: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    """All that a stream yields, and its own value."""
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_several_completions_stream_side_by_side(builtin: CodeGenerator, options: dict[str, Any]):
    options = {**options, "seed": 4, "max_length": 40, "num_return_sequences": 3}
    for prompt in PROMPTS[:2]:
        pieces, value = value_of(builtin.stream(prompt, **options))
        [completions] = builtin.generate(prompt, **options)
        assert value == completions
        for index, completion in enumerate(completions):
            own = [piece for of, piece in pieces if of == index]
            assert all(own)
            assert "".join(own) == completion.text
        order = [of for of, _ in pieces]
        assert set(order) <= {0, 1, 2}
        if min(order.count(index) for index in range(3)) > 3:
            assert order != sorted(order)  # none waits for another to end


@pytest.mark.parametrize("returned", [1, 3])
@pytest.mark.parametrize("truncation", [None, "\n\n"])
def test_a_beam_search_streams_at_its_end(
    builtin: CodeGenerator, returned: int, truncation: str | None
):
    """Any text before might be of a beam that does not win; then there are all that were asked."""
    options: dict[str, Any] = {
        "decode_strategy": "beam_search",
        "num_beams": 4,
        "num_return_sequences": returned,
        "max_length": 20,
        "truncation": truncation,
    }
    for prompt in PROMPTS:
        pieces, value = value_of(builtin.stream(prompt, **options))
        [completions] = builtin.generate(prompt, **options)
        if returned == 1:
            assert value == completions[0]
            assert pieces == [completions[0].text] * bool(completions[0].text)
        else:
            assert value == completions
            assert pieces == [(n, one.text) for n, one in enumerate(completions) if one.text]


# More than a stream runs ahead of its reader: it cannot have ended when one piece was read.
ENDLESS: dict[str, Any] = {"max_length": 900, "truncation": None, "ignore_eos": True}


@pytest.mark.parametrize("how", ["close", "forget"])
def test_closing_frees_the_slot(builtin: CodeGenerator, how: str):
    pieces = builtin.stream("x = 1\n", **ENDLESS)
    next(pieces)
    assert at_work(builtin) > 0
    if how == "close":
        pieces.close()
    del pieces
    gc.collect()
    assert at_work(builtin) == 0


def test_a_stream_that_is_never_asked_runs_nothing(builtin: CodeGenerator):
    pieces = builtin.stream("x = 1\n", **ENDLESS)
    assert at_work(builtin) == 0
    del pieces


@pytest.mark.parametrize("returned", [1, 2])
def test_a_stream_that_is_not_read_waits_and_nobody_else(builtin: CodeGenerator, returned: int):
    options = {**ENDLESS, "seed": 1, "num_return_sequences": returned, "prompt_lookup": False}
    [expected] = builtin.generate("def add(a, b):", **options)
    [[other]] = builtin.generate("x = [", seed=2, max_length=20)
    with steps_of(builtin) as made:
        pieces = builtin.stream("def add(a, b):", **options)
        first = next(pieces)
        # It runs ahead, up to some number of pieces, and then it rests.
        until(lambda: look(builtin, lambda scheduler: not scheduler.has_work))
        assert at_work(builtin) == 1  # it has not ended, and takes no slot
        ahead = len(made)
        assert ahead <= 2 * UNREAD_PIECES
        assert builtin.generate("x = [", seed=2, max_length=20) == [[other]]
        made.clear()
        rest, value = value_of(pieces)
    assert len(made) > 900 - ahead
    if returned == 1:
        assert "".join([first, *rest]) == expected[0].text
        assert value == expected[0]
    else:
        for index, completion in enumerate(expected):
            own = "".join(piece for of, piece in [first, *rest] if of == index)
            assert own == completion.text
        assert value == expected
    assert at_work(builtin) == 0


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
    assert at_work(builtin) == 0


@pytest.fixture
def own(home_path: Path) -> Iterator[CodeGenerator]:
    with CodeGenerator.from_pretrained(
        "builtin", home_path=home_path, device="cpu", num_threads=1, prefix_cache_bytes=10_000_000
    ) as generator:
        yield generator


class Failing:
    """A runtime that fails while it is told to."""

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.fails = runtime, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def forward(self, *arguments: Any) -> StepOutput:
        if self.fails:
            raise MemoryError("no room")
        return self.runtime.forward(*arguments)


def test_a_step_that_fails_ends_all_that_run_with_its_error(home_path: Path):
    """Each with an error of its own: one object would gather the tracebacks of all."""
    where = LoadOptions(home_path=home_path, device="cpu", num_threads=1)
    model = load_model("builtin", where)
    failing = Failing(model.runtime)
    model = replace(model, runtime=failing)  # type: ignore[arg-type]
    with CodeGenerator(model, GenerationConfig(), DEFAULT_BATCH_SIZE) as own:
        short: dict[str, Any] = {"max_length": 20, "seed": 1}
        expected = own.generate("x = 1\n", **short)
        streams = [own.stream(prompt, **ENDLESS) for prompt in ("x = 1\n", "y = 2\n")]
        for pieces in streams:
            next(pieces)
        failing.fails = True
        caught = []
        for pieces in streams:
            with pytest.raises(MemoryError, match=r"^no room$") as one:
                list(pieces)
            caught.append(one.value)
        assert caught[0] is not caught[1]
        with pytest.raises(MemoryError):
            own.generate("x = 1\n", **short)
        failing.fails = False
        assert own.generate("x = 1\n", **short) == expected  # and the next call runs
        assert at_work(own) == 0


def test_closing_ends_what_runs(own: CodeGenerator):
    streams = [own.stream("x = 1\n", seed=n, **ENDLESS) for n in range(3)]
    for pieces in streams:
        next(pieces)
    unasked = own.stream("x = 1\n")
    own.close()
    streams[0].close()
    for pieces in streams[1:]:
        with pytest.raises(RuntimeError, match="this generator is closed"):
            list(pieces)  # what was there unread, and then that
    with pytest.raises(RuntimeError, match="this generator is closed"):
        next(unasked)
    with pytest.raises(RuntimeError, match="this generator is closed"):
        own.generate("x = 1\n")
    with pytest.raises(RuntimeError, match="this generator is closed"):
        next(own.generate_as_completed(["x = 1\n"]))
    with pytest.raises(RuntimeError, match="this generator is closed"):
        own.session().turn("x = 1\n")
    cache = own.engine._loop.scheduler.slots.prefix_cache
    assert cache is not None
    assert cache.bytes == 0


def test_closing_leaves_no_prefix_behind(own: CodeGenerator):
    own.generate("x = 1\n" * 40, max_length=2)
    cache = own.engine._loop.scheduler.slots.prefix_cache
    assert cache is not None
    assert cache.bytes > 0
    own.close()
    assert cache.bytes == 0


def test_streams_of_threads_share_steps(own: CodeGenerator):
    options: dict[str, Any] = {"max_length": 40, "truncation": None, "ignore_eos": True}
    expected = [own.generate("x = 1\n", seed=n, **options)[0][0].text for n in range(4)]
    found: dict[int, str] = {}

    def run(number: int) -> None:
        found[number] = "".join(own.stream("x = 1\n", seed=number, **options))

    with steps_of(own) as made:
        gather(own, 4)
        threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[n] for n in range(4)] == expected
    decodes = [len(step.tokens) for step in made if step.kind == "decode"]
    assert decodes == [4] * 39  # the first tokens come with the prompts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best_of": 3}, "best_of must be 1 to stream, got 3"),
        ({"batch_size": 2}, "unknown option 'batch_size'"),
        ({"max_length": 5000}, "max_length must be below the model's context"),
        ({"logit_bias": {8192: 1.0}}, "logit_bias: the vocabulary has 8192 tokens"),
        ({"decode_strategy": "beam_search", "num_return_sequences": 9}, "must not be above num_be"),
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
