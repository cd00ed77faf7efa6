"""KV buffers written in place: every step's logits are the reference's for each slot's history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from random_models import open_model, spread_tensors, weights_of, write_model
from scipy.special import logsumexp

from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import paddle_inference
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, Runtime, StepOutput, decode, prefill
from paddlenlp_codegen_task.runtime.kv_cache import MIN_CAPACITY, KVCacheFull

CONFIG = CodeGenConfig(
    vocab_size=300,
    n_positions=600,
    n_embd=64,
    n_layer=2,
    n_head=4,
    rotary_dim=8,
    n_inner=128,
    eos_token_id=256,
)
TOLERANCE = 1e-4  # of a row's largest absolute logit

Expected = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), CONFIG, spread_tensors(CONFIG))


@pytest.fixture(scope="module")
def expected(folder: Path) -> Iterator[Expected]:
    """All logits of a history, by the numpy reference."""
    with open_checkpoint(folder) as checkpoint:
        weights = FusedWeights(checkpoint, CONFIG)
        yield lambda token_ids: reference.forward(weights, token_ids)


@pytest.fixture(scope="module", params=["static", "eager"])
def loaded(request: pytest.FixtureRequest, folder: Path, home_path: Path) -> Iterator[Runtime]:
    runtime = open_model(folder, home_path, static_mode=request.param == "static").runtime
    yield runtime
    runtime.close()


@pytest.fixture
def runtime(loaded: Runtime) -> Runtime:
    """A runtime that other sequences, as long as can be, have used before."""
    loaded.cache.reset()
    prefill(loaded, 0, [ids(CONFIG.n_positions, 91)])
    prefill(loaded, 1, [ids(CONFIG.n_positions, 92)])
    loaded.cache.reset()
    return loaded


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(CONFIG.vocab_size, size=count).tolist()


def check(output: StepOutput, rows: list[np.ndarray]) -> None:
    found, wanted = output.logits(), np.stack(rows)
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
    assert error.max() < TOLERANCE
    exact = logsumexp(found.astype(np.float64), axis=1)
    np.testing.assert_allclose(output.logsumexp, exact, rtol=1e-6)
    assert (output.candidate_ids[:, 0] == found.argmax(axis=1)).all()


def test_capacity_grows_up_to_the_context_limit(runtime: Runtime, expected: Expected):
    token_ids = ids(CONFIG.n_positions)
    wanted = expected(token_ids)
    begun = MIN_CAPACITY - 4
    check(prefill(runtime, 0, [token_ids[:begun]]), [wanted[begun - 1]])
    capacities = [runtime.cache.capacity]
    for n in range(begun, len(token_ids)):
        check(decode(runtime, [token_ids[n]]), [wanted[n]])
        if runtime.cache.capacity != capacities[-1]:
            assert n == capacities[-1]  # not before it has to
            capacities.append(runtime.cache.capacity)
    assert capacities == [128, 256, 512, 600]
    with pytest.raises(ValueError, match=r"^601 tokens do not fit the context of 600$"):
        decode(runtime, [1])
    assert runtime.cache.length(0) == 600
    check(prefill(runtime, 0, [token_ids[:9]]), [wanted[8]])  # and it still works


@pytest.mark.parametrize("length", [127, 128, 129, 255, 256, 257, 511, 512, 513, 600])
def test_prompts_around_the_capacities(runtime: Runtime, expected: Expected, length: int):
    token_ids = ids(length)
    check(prefill(runtime, 0, [token_ids]), [expected(token_ids)[-1]])


def test_slots_and_capacity_grow_beside_running_sequences(runtime: Runtime, expected: Expected):
    rows = [ids(length + 6, seed) for seed, length in enumerate((20, 125, 3, 254, 60, 1))]
    wanted = [expected(row) for row in rows]
    done = [0] * len(rows)

    for slot, row in enumerate(rows):
        done[slot] = len(row) - 6
        check(prefill(runtime, slot, [row[:-6]]), [wanted[slot][done[slot] - 1]])
        step = decode(runtime, [row[n] for row, n in zip(rows, done[: slot + 1], strict=False)])
        check(step, [one[n] for one, n in zip(wanted, done[: slot + 1], strict=False)])
        done = [n + 1 if at <= slot else n for at, n in enumerate(done)]
    assert runtime.cache.slots >= len(rows)
    assert runtime.cache.capacity == 512
    assert [runtime.cache.length(slot) for slot in range(len(rows))] == done


def test_right_padded_prompts_equal_those_alone(runtime: Runtime, expected: Expected):
    rows = [ids(length + 3, seed) for seed, length in enumerate((40, 1, 7, 130))]
    wanted = [expected(row) for row in rows]
    check(prefill(runtime, 0, [rows[0][:-3]]), [wanted[0][-4]])
    # Behind a running one, and each at a length of its own.
    check(prefill(runtime, 1, [row[:-3] for row in rows[1:]]), [one[-4] for one in wanted[1:]])
    for n in (-3, -2, -1):
        check(decode(runtime, [row[n] for row in rows]), [one[n] for one in wanted])


@pytest.mark.parametrize("pieces", [[300], [1] * 40, [256, 44], [100, 1, 27, 129], [255, 2, 255]])
def test_a_prompt_in_pieces_equals_the_whole(
    runtime: Runtime, expected: Expected, pieces: list[int]
):
    token_ids = ids(sum(pieces))
    wanted, begin = expected(token_ids), 0
    for piece in pieces:
        output = runtime.forward(0, [token_ids[begin : begin + piece]])
        begin += piece
        check(output, [wanted[begin - 1]])


def test_prefill_runs_a_long_prompt_in_chunks(
    runtime: Runtime, expected: Expected, monkeypatch: pytest.MonkeyPatch
):
    lengths, forward = [], runtime.forward

    def spy(slot: int, token_ids: list[list[int]], *more: bool) -> StepOutput:
        lengths.append([len(row) for row in token_ids])
        return forward(slot, token_ids, *more)

    monkeypatch.setattr(runtime, "forward", spy)
    token_ids = ids(2 * PREFILL_CHUNK + 10)
    check(prefill(runtime, 0, [token_ids]), [expected(token_ids)[-1]])
    assert lengths == [[PREFILL_CHUNK], [PREFILL_CHUNK], [10]]


@pytest.mark.parametrize("lengths", [(5, 50, 130), (130, 50, 5)], ids=["longer", "shorter"])
def test_a_moved_sequence_goes_on(runtime: Runtime, expected: Expected, lengths: tuple[int, ...]):
    rows = [ids(length + 2, seed) for seed, length in enumerate(lengths)]
    wanted = [expected(row) for row in rows]
    for slot, row in enumerate(rows):
        prefill(runtime, slot, [row[:-2]])
    runtime.cache.copy(2, 0)
    assert [runtime.cache.length(n) for n in range(3)] == [lengths[2], lengths[1], lengths[2]]
    for n in (-2, -1):
        check(decode(runtime, [rows[2][n], rows[1][n]]), [wanted[2][n], wanted[1][n]])
    check(prefill(runtime, 2, [rows[0]]), [wanted[0][-1]])  # the slot left can be used again
    assert runtime.cache.length(0) == lengths[2] + 2


def test_two_runtimes_of_one_export_do_not_share_buffers(
    folder: Path, home_path: Path, expected: Expected
):
    pair = [open_model(folder, home_path) for _ in range(2)]
    assert pair[0].folder == pair[1].folder
    rows = [ids(30, seed) for seed in range(2)]
    wanted = [expected(row) for row in rows]
    for one, row in zip(pair, rows, strict=True):
        prefill(one.runtime, 0, [row[:20]])
    for n in range(20, 30):
        for one, row, logits in zip(pair, rows, wanted, strict=True):
            check(decode(one.runtime, [row[n]]), [logits[n]])
    pair[0].runtime.close()
    check(prefill(pair[1].runtime, 0, [rows[0]]), [wanted[0][-1]])
    pair[1].runtime.close()


def test_logits_of_every_token(runtime: Runtime, expected: Expected):
    token_ids = ids(139)
    wanted = expected(token_ids)
    prefill(runtime, 0, [ids(5, 1), token_ids[:120]])
    check(runtime.forward(1, [token_ids[120:]], every=True), list(wanted[120:]))
    assert [runtime.cache.length(slot) for slot in range(2)] == [5, 139]
    runtime.cache.truncate(1, 125)  # as if only five had been right
    check(runtime.forward(1, [token_ids[125:127]]), [wanted[126]])


def runtimes_of(tensors: dict[str, np.ndarray], folder: Path) -> list[Runtime]:
    """A static and an eager one."""
    weights = weights_of(CONFIG, tensors)
    paddle_inference.export(weights, folder, "fp32", None)
    static = paddle_inference.load(folder, CONFIG, None, 1, "fp32", False)
    return [static, paddle_inference.load_eager(weights, None, 1, "fp32")]


@pytest.mark.parametrize("factor", [0, 0.01, 30, 1000])
def test_logsumexp_of_logits_near_and_far(tmp_path: Path, factor: float):
    """Where all are alike, and where exponentials would overflow by far."""
    tensors = spread_tensors(CONFIG)
    for name in ("lm_head.weight", "lm_head.bias"):
        tensors[name] *= np.float32(factor)
    for runtime in runtimes_of(tensors, tmp_path):
        output = prefill(runtime, 0, [ids(3), ids(9, 1)])
        logits = output.logits().astype(np.float64)
        assert np.ptp(logits) == pytest.approx(20 * factor, rel=0.5)
        np.testing.assert_allclose(output.logsumexp, logsumexp(logits, axis=1), rtol=1e-6)
        runtime.close()


def test_logits_that_are_no_numbers_show_in_logsumexp(tmp_path: Path):
    for name in ("one logit", "one token's row"):
        tensors = spread_tensors(CONFIG)
        if name == "one logit":  # an unlikely one, and of every row
            tensors["lm_head.bias"][123] = np.nan
        else:
            tensors["transformer.wte.weight"][7] = np.nan
        affected = [True] * 3 if name == "one logit" else [False, True, False]
        for runtime in runtimes_of(tensors, tmp_path):
            output = prefill(runtime, 0, [[1, 2, 3], [5, 7], [4]])
            assert np.isnan(output.logsumexp).tolist() == affected
            assert np.isnan(output.logits()).any(axis=1).tolist() == affected
            assert np.isnan(decode(runtime, [1, 1, 1]).logsumexp).tolist() == affected
            runtime.close()


def test_a_step_beyond_the_budget_changes_nothing(runtime: Runtime, expected: Expected):
    cache = runtime.cache
    cache.clear()  # whose memory is larger
    cache.max_bytes = cache.bytes(2, 128)
    rows = [ids(103), ids(129, 1)]
    wanted = [expected(row) for row in rows]
    try:
        prefill(runtime, 0, [rows[0][:100], rows[1][:128]])
        for _ in range(2):
            with pytest.raises(KVCacheFull, match=r"^2 sequences of 129 tokens need [\d,]+ bytes"):
                decode(runtime, [rows[0][100], rows[1][128]])
            with pytest.raises(KVCacheFull, match=r"^3 sequences of 128 tokens need"):
                prefill(runtime, 2, [[1]])
        assert [cache.length(slot) for slot in range(3)] == [100, 128, 0]
        check(decode(runtime, [rows[0][100]]), [wanted[0][100]])  # the first has room left
        cache.max_bytes = cache.bytes(2, 160)
        step = decode(runtime, [rows[0][101], rows[1][128]])
        check(step, [wanted[0][101], wanted[1][128]])
    finally:
        cache.max_bytes = None


def test_only_onnx_runtime_captures_cuda_graphs(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^cuda_graph=True needs engine='onnxruntime'$"):
        paddle_inference.load(tmp_path, CONFIG, None, 1, "fp32", True)


@pytest.mark.parametrize("static_mode", [True, False])
def test_closed(folder: Path, home_path: Path, static_mode: bool):
    runtime = open_model(folder, home_path, static_mode=static_mode).runtime
    prefill(runtime, 0, [[1, 2, 3]])
    runtime.close()
    with pytest.raises(RuntimeError, match=r"^this runtime is closed$"):
        decode(runtime, [1])
    with pytest.raises(RuntimeError, match=r"^this runtime is closed$"):
        prefill(runtime, 0, [[1, 2, 3]])
    runtime.close()


def test_whole_logits_are_a_copy_of_their_step(runtime: Runtime):
    output = prefill(runtime, 0, [ids(5)])
    first = output.logits()
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(output.logits(), kept)
    candidates = output.candidates.copy()
    decode(runtime, [1])
    np.testing.assert_array_equal(output.candidates, candidates)
