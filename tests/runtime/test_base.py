"""What all runtimes share: laying out a step, prefill and decode over it, and its output."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runtime import FakeRuntime, next_token

from paddlenlp_codegen_task.runtime.base import (
    GPU_PREFILL_CHUNK,
    PREFILL_CHUNK,
    StepOutput,
    decode,
    extend,
    pack,
    prefill,
)


def test_packing_pads_on_the_right_and_makes_room():
    runtime = FakeRuntime()
    prefill(runtime, 0, [[1] * 5, [2] * 130, [3]])
    token_ids, lengths, last = pack(runtime.cache, 1, [[4, 5, 6], [7]], False)
    assert token_ids.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert lengths.tolist() == [130, 1]
    assert last.tolist() == [2, 3]
    assert {array.dtype for array in (token_ids, lengths, last)} == {np.dtype(np.int64)}
    _, _, last = pack(runtime.cache, 0, [[8], [9], [10]], False)
    assert last.tolist() == [0, 1, 2]
    _, _, last = pack(runtime.cache, 1, [[4, 5, 6]], True)
    assert last.tolist() == [0, 1, 2]
    _, _, last = pack(runtime.cache, 2, [[1] * 300], False)
    assert last.tolist() == [299]
    assert runtime.cache.capacity >= 301
    assert [runtime.cache.length(slot) for slot in range(3)] == [5, 130, 1]  # by a step only


def test_every_token_s_logits_are_there_for_one_row():
    runtime = FakeRuntime()
    with pytest.raises(ValueError, match=r"^every token's logits .* one row only, not 2$"):
        pack(runtime.cache, 0, [[1], [2]], True)
    assert (runtime.cache.slots, runtime.cache.capacity) == (0, 0)


def test_chunks_are_longer_on_a_gpu():
    runtime = FakeRuntime()
    runtime.device_id = 0
    tokens = [n % 40 for n in range(GPU_PREFILL_CHUNK + 3)]
    output = prefill(runtime, 0, [tokens])
    assert output.candidate_ids.tolist() == [[next_token(tokens)]]
    assert [count for _, (count,) in runtime.calls] == [GPU_PREFILL_CHUNK, 3]


@pytest.mark.parametrize("longer", [0, 1, 5, PREFILL_CHUNK, PREFILL_CHUNK + 1])
def test_a_long_prompt_runs_in_chunks(longer: int):
    runtime = FakeRuntime()
    prefill(runtime, 0, [[7] * 9])
    tokens = [n % 40 for n in range(PREFILL_CHUNK + longer)]
    runtime.calls.clear()
    output = prefill(runtime, 0, [tokens])  # what was there is forgotten
    assert output.candidate_ids.tolist() == [[next_token(tokens)]]
    chunks = [count for _, (count,) in runtime.calls]
    assert sum(chunks) == len(tokens)
    assert max(chunks) == PREFILL_CHUNK
    assert all(count == PREFILL_CHUNK for count in chunks[:-1])
    output = extend(runtime, 0, [[1, 2]])
    assert output.candidate_ids.tolist() == [[next_token([*tokens, 1, 2])]]
    output = decode(runtime, [3])
    assert output.candidate_ids.tolist() == [[next_token([*tokens, 1, 2, 3])]]


def output_of(logits: np.ndarray, fetched: list[int]) -> StepOutput:
    order = np.argsort(-logits, axis=1)[:, :2]

    def fetch() -> np.ndarray:
        fetched.append(1)
        return logits

    best = np.take_along_axis(logits, order, axis=1)
    return StepOutput(best, order, np.log(np.exp(logits).sum(axis=1)), fetch)


def test_some_rows_of_an_output_and_in_another_order():
    logits = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    fetched: list[int] = []
    output = output_of(logits, fetched)
    part = output.take([3, 1]).take([1])
    assert not fetched  # all logits are fetched for whoever wants them
    for name in ("candidates", "candidate_ids", "logsumexp"):
        np.testing.assert_array_equal(getattr(part, name), getattr(output, name)[[1]])
    np.testing.assert_array_equal(part.logits(), logits[[1]])


def test_an_output_that_is_kept_outlives_the_next_step():
    logits = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    before, fetched = logits.copy(), []
    kept = output_of(logits, fetched).take([1]).keep()
    logits[:] = 0  # an engine's buffer, as the next step leaves it
    np.testing.assert_array_equal(kept.logits(), before[[1]])
    np.testing.assert_array_equal(kept.logits(), before[[1]])
    assert len(fetched) == 1
