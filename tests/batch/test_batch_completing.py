"""Rows in, completions out: in any order, with few rows held, and what fails is told apart."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_probe import at_work, until
from fake_generator import LETTERS, fake_generator

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.batch.completing import Completed, Completing, Outcome
from paddlenlp_codegen_task.batch.rows import Refused, Row, row_seed
from paddlenlp_codegen_task.decoding.events import Event
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.runtime.base import StepOutput


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[CodeGenerator]:
    with fake_generator(tmp_path / "fake") as generator:
        yield generator


def outcomes(generator: CodeGenerator, rows: Any, **options: Any) -> dict[Any, Outcome]:
    """By the rows' ids."""
    found = list(Completing(generator, rows, **options))
    by_id = {one.row.id if isinstance(one, Completed) else one.id: one for one in found}
    assert len(by_id) == len(found)
    return by_id


def texts(found: dict[Any, Outcome]) -> dict[Any, list[str]]:
    return {
        row_id: [completion.text for completion in one.completions]
        for row_id, one in found.items()
        if isinstance(one, Completed)
    }


def prompt(n: int) -> str:
    return LETTERS[n % 49] + LETTERS[n // 49 % 49] + LETTERS[: n % 7]


def test_each_row_completes_as_it_would_alone(fake: CodeGenerator):
    rows = [Row(n, prompt(n), {"max_length": 1 + n % 9}) for n in range(100)]
    found = texts(outcomes(fake, rows))
    assert found == {row.id: [fake.generate(row.prompt, **row.options)[0][0].text] for row in rows}
    assert outcomes(fake, []) == {}


@pytest.mark.parametrize(
    ("prompt_", "options", "reason"),
    [
        ("", {}, "the prompt must not be empty"),
        ("A" * 3000, {}, "the prompt has 3000 tokens, and with max_length 8 only 2040 fit the"),
        ("A" * 100, {"max_length": 2000}, "the prompt has 100 tokens, and with max_length 2000"),
        ("\ud800", {}, "the prompt: the text holds a lone surrogate, not valid Unicode"),
        ("A", {"max_length": 2048}, "max_length must be below the model's context of 2048"),
        ("A", {"max_length": "8"}, "max_length must be an integer, got '8'"),
        ("A", {"max_length": True}, "max_length must be an integer, got True"),
        ("A", {"max_tokens": 8}, "unknown option 'max_tokens'; use max_length"),
        ("A", {"streamed": True}, "unknown option 'streamed'; "),
        ("A", {"config": None}, "unknown option 'config'; "),
        ("A", {"self": 1}, "unknown option 'self'; "),
        ("A", {"": 1}, "unknown option ''; "),
        ("A", {"batch_size": 8}, "unknown option 'batch_size'; "),
        ("A", {"temperature": None}, "temperature must be a number, got None"),
        ("A", {"decode_strategy": "greedy_search", "best_of": 2}, "best_of ranks samples"),
        ("A", {"truncation": "("}, "truncation"),
        ("A", {"stop": "\ud800"}, "stop: "),
        ("A", {"logit_bias": {"x": 1}}, "logit_bias: a token id must be an integer, got 'x'"),
        ("A", {"logit_bias": {99: 1}}, "logit_bias: the vocabulary has 50 tokens, there is no 99"),
        ("A", {"seed": -1}, "seed must be at least 0, got -1"),
        ("A", {"num_return_sequences": 10**9}, "num_return_sequences "),
        ("A", {"decode_strategy": "beam_search", "num_beams": 99}, "num_beams must be at most"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_row_that_cannot_be_is_refused(
    fake: CodeGenerator, prompt_: str, options: dict[str, Any], reason: str
):
    rows = [Row("a", "A"), Row("bad", prompt_, options, 7), Row("b", "B")]
    found = outcomes(fake, rows)
    bad = found["bad"]
    assert isinstance(bad, Refused)
    assert bad.reason.startswith(reason)
    assert bad.line == 7
    assert bad.reason.isprintable()
    assert set(texts(found)) == {"a", "b"}
    assert at_work(fake) == 0


def test_rows_that_are_refused_already_pass_through(fake: CodeGenerator):
    bad = Refused("why", None, 3)
    assert list(Completing(fake, [bad] * 50)) == [bad] * 50


def test_options_of_a_row_come_before_those_of_all(builtin: CodeGenerator):
    rows = [
        Row("all", "def f(x):"),
        Row("seed", "def f(x):", {"seed": 5}),
        Row("none", "def f(x):", {"seed": None}),
        Row("greedy", "def f(x):", {"decode_strategy": "greedy_search"}),
    ]
    options: dict[str, Any] = {"max_length": 12, "truncation": None, "best_of": 2}
    found = texts(outcomes(builtin, rows, seed=9, **options))
    for row_id, asked in (
        ("all", {"seed": row_seed(9, "all"), "best_of": 2}),
        ("seed", {"seed": 5, "best_of": 2}),
        ("none", {"seed": row_seed(9, "none"), "best_of": 2}),
        ("greedy", {"decode_strategy": "greedy_search"}),
    ):
        alone = builtin.generate("def f(x):", max_length=12, truncation=None, **asked)
        assert found[row_id] == [alone[0][0].text], row_id
    assert found["all"] != found["none"]


def test_a_seed_gives_the_same_texts_in_any_order_and_company(builtin: CodeGenerator):
    rows = [
        Row(n, f"def f_{n}(x):\n", {"max_length": 4 + n % 5, "num_return_sequences": 1 + n % 2})
        for n in range(20)
    ]
    options: dict[str, Any] = {"seed": 3, "truncation": None, "temperature": 1.5, "top_k": 0}
    found = texts(outcomes(builtin, rows, **options))
    assert len({text for several in found.values() for text in several}) > 20
    assert texts(outcomes(builtin, rows[::-1], **options)) == found
    halves = [texts(outcomes(builtin, rows[first::2], **options)) for first in (0, 1)]
    assert {**halves[0], **halves[1]} == found
    assert texts(outcomes(builtin, rows, **{**options, "seed": 4})) != found


def test_few_rows_are_held(fake: CodeGenerator):
    """However many there are, and whether they can be completed or not."""
    alive: set[int] = set()
    most = 0

    def rows() -> Iterator[Row | Refused]:
        nonlocal most
        for n in range(3000):
            row = Row(n, prompt(n) if n % 3 else "", {"max_length": 1 + n % 3})
            alive.add(n)
            weakref.finalize(row, alive.discard, n)
            most = max(most, len(alive))
            yield row
            del row

    count = 0
    for one in Completing(fake, rows()):
        count += 1
        del one
    assert count == 3000
    assert most <= 2 * fake.batch_size + 4


def test_all_places_are_taken(fake: CodeGenerator):
    """A long row keeps none of the others waiting: no step runs fewer rows than there are."""
    rows = [Row(n, prompt(n), {"max_length": 300 if n % 10 == 0 else 3}) for n in range(200)]
    fake.add_step_hook(lambda _: time.sleep(0.001))  # a model's steps leave rows the time to come
    order = [one.row.id for one in Completing(fake, rows) if isinstance(one, Completed)]
    assert order.index(1) < order.index(0)
    calls = fake.runtime.calls  # type: ignore[attr-defined]
    decoding = [len(tokens) for _, tokens in calls if set(tokens) == {1}]
    assert sum(decoding) / len(decoding) > 0.85 * fake.batch_size


def test_what_comes_slowly_holds_nothing_back(fake: CodeGenerator):
    """What is finished is given while the next row is yet to come."""
    coming = threading.Semaphore(0)

    def rows() -> Iterator[Row]:
        for n in range(5):
            assert coming.acquire(timeout=60)
            yield Row(n, prompt(n))

    found = iter(Completing(fake, rows()))
    for n in range(5):
        coming.release()
        one = next(found)
        assert isinstance(one, Completed)
        assert one.row.id == n
    assert next(found, None) is None


def test_an_error_of_the_rows_is_an_error(fake: CodeGenerator):
    def rows() -> Iterator[Row]:
        yield Row(0, "A", {"max_length": 1000})
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match=r"^the disk is gone$"):
        list(Completing(fake, rows()))
    assert at_work(fake) == 0


def test_a_row_that_is_no_number_is_its_own_fault(fake: CodeGenerator):
    def spoil(slot: int, token_ids: Any, output: StepOutput) -> StepOutput:
        for row in range(len(output.logsumexp)):
            if len(token_ids) > row and 48 in fake.runtime.held(slot + row):  # type: ignore[attr-defined]
                output.logsumexp[row] = np.nan
        return output

    fake.runtime.on_forward = spoil  # type: ignore[attr-defined]
    rows = [Row(n, "A" if n != 3 else LETTERS[48], {"max_length": 5}) for n in range(6)]
    found = outcomes(fake, rows)
    assert isinstance(found[3], Refused)


def test_a_runtime_that_fails_ends_it(fake: CodeGenerator):
    """It is no fault of a row's: with the next start it may go well."""

    def fail(*_: Any) -> StepOutput:
        raise RuntimeError("out of\nmemory")

    fake.runtime.on_forward = fail  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"^id 'first': RuntimeError: out of memory$"):
        list(Completing(fake, [Row("first", "A"), Row("second", "B")]))
    fake.runtime.on_forward = None  # type: ignore[attr-defined]
    assert len(outcomes(fake, [Row("first", "A")])) == 1


def test_a_closed_generator_is_an_error(fake: CodeGenerator):
    found = iter(Completing(fake, (Row(n, prompt(n)) for n in range(1000))))
    next(found)
    fake.close()
    with pytest.raises(RuntimeError, match="this generator is closed"):
        list(found)


def test_stopping_gives_what_has_finished(fake: CodeGenerator):
    taken: list[int] = []

    def rows() -> Iterator[Row]:
        for n in range(10_000):
            taken.append(n)
            yield Row(n, prompt(n), {"max_length": 2})

    class Counting(Completing):
        """Counts what finishes."""

        finished = 0

        def put(self, request: Request, events: list[Event]) -> bool:
            self.finished += len(events)
            return super().put(request, events)

    work = Counting(fake, rows())
    found = iter(work)
    first = [next(found) for _ in range(10)]
    until(lambda: at_work(fake) == 0)  # what runs ends, and nobody takes it
    work.stop()
    rest = []
    for one in found:
        rest.append(one)
        time.sleep(0.01)  # time to take another row, if one were asked for
    assert work.stopped
    assert len(first) + len(rest) == work.finished
    # Those that are given, what keeps all places taken twice over, and one that waits for room.
    assert work.finished <= len(taken) <= 10 + 2 * fake.batch_size + 1
    until(lambda: all(one.name != "codegen-batch" for one in threading.enumerate()))


def test_stopping_before_the_last_row_begins_is_told(fake: CodeGenerator):
    """Rows are left to do, though all of them have come."""
    work = Completing(fake, [Refused("why", "bad", 1), Row("last", "ABC", {})])
    found = iter(work)
    assert isinstance(next(found), Refused)
    until(lambda: all(one.name != "codegen-batch" for one in threading.enumerate()))
    work.stop()
    assert list(found) == []
    assert work.stopped


def test_an_iteration_that_is_dropped_gives_up_what_runs(fake: CodeGenerator):
    found = iter(Completing(fake, (Row(n, prompt(n), {"max_length": 500}) for n in range(50))))
    next(found)
    found.close()  # type: ignore[attr-defined]
    until(lambda: at_work(fake) == 0)


def test_options_are_checked_at_once(fake: CodeGenerator):
    with pytest.raises(TypeError, match="unknown option 'max_tokens'; use max_length"):
        Completing(fake, [], max_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="max_length must be below the model's context"):
        Completing(fake, [], max_length=5000)
