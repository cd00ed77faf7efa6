"""The KV cache: what it holds stays what it was, in buffers that the budget allows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import random_tensors, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlenlp_codegen_task.export import onnx_files, onnx_graph
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import onnx_memory
from paddlenlp_codegen_task.runtime.kv_cache import (
    MIN_CAPACITY,
    STEP,
    Block,
    HostMemory,
    KVCache,
    KVCacheFull,
    Memory,
    Place,
)
from paddlenlp_codegen_task.runtime.onnx_memory import DeviceMemory
from paddlenlp_codegen_task.runtime.paddle_inference import PaddleMemory

CONFIG = CodeGenConfig(
    vocab_size=32, n_positions=300, n_embd=64, n_layer=1, n_head=4, rotary_dim=16, n_inner=64
)
BUFFERS = 2 * CONFIG.n_layer
SLOTS = 5
TOKEN_BYTES = 4 * CONFIG.n_embd  # of one buffer, in float32


def config_of(context: int) -> CodeGenConfig:
    return CodeGenConfig(
        vocab_size=32, n_positions=context, n_embd=8, n_layer=1, n_head=4, rotary_dim=2, n_inner=8
    )


def new_cache(context: int = CONFIG.n_positions, max_bytes: int | None = None) -> KVCache:
    config = CONFIG if context == CONFIG.n_positions else config_of(context)
    cache = KVCache(config, HostMemory(config, np.float32))
    cache.max_bytes = max_bytes
    return cache


def block(tokens: int, start: int = 1) -> Block:
    """Keys and values no two of which are near each other, and which float16 has as well."""
    shape = BUFFERS, CONFIG.n_head, tokens, CONFIG.head_dim
    values = (start + np.arange(np.prod(shape))) % 2039 + 1
    return list(values.reshape(shape).astype(np.float32))


# Shapes


def test_capacity_doubles_up_to_the_context():
    cache = new_cache(1000)
    seen = []
    for length in range(1, 1001):
        version = cache.version
        cache.reserve(1, length)
        assert (cache.version != version) == (cache.capacity not in seen)
        assert length <= cache.capacity
        if cache.version != version:
            seen.append(cache.capacity)
    assert seen == [MIN_CAPACITY, 2 * MIN_CAPACITY, 4 * MIN_CAPACITY, 1000]


def test_a_small_context_is_the_first_capacity():
    cache = new_cache(48)
    cache.reserve(1, 1)
    assert (cache.slots, cache.capacity) == (1, 48)
    version = cache.version
    cache.reserve(1, 48)
    assert (cache.slots, cache.capacity, cache.version) == (1, 48, version)


def test_slots_at_least_double():
    cache = new_cache()
    slots = []
    for n in range(1, 12):
        version = cache.version
        cache.reserve(n, 1)
        if cache.version != version:
            slots.append(cache.slots)
    assert slots == [1, 2, 4, 8, 16]


def test_beyond_the_context_nothing_changes():
    cache = new_cache(200)
    cache.reserve(2, 150)
    version = cache.version
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^201 tokens do not fit the context of 200$"):
            cache.reserve(5, 201)
    assert (cache.slots, cache.capacity, cache.version) == (2, 200, version)


@given(
    st.integers(1, 3000), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3000)), max_size=20)
)
def test_there_is_always_room_and_never_less_than_before(
    context: int, steps: list[tuple[int, int]]
):
    cache = new_cache(context)
    for slots, tokens in steps:
        before = cache.slots, cache.capacity
        version = cache.version
        if tokens > context:
            continue
        cache.reserve(slots, tokens)
        assert cache.slots >= max(slots, before[0])
        assert max(tokens, before[1]) <= cache.capacity <= context
        assert (cache.version != version) == ((cache.slots, cache.capacity) != before)


def test_an_unused_slot_is_empty():
    assert new_cache().length(3) == 0


# The budget


def test_bytes_are_those_of_the_buffers_and_one_more():
    cache = new_cache()
    cache.reserve(3, 100)
    taken = sum(buffer.nbytes for buffer in cache.buffers)
    assert cache.bytes(cache.slots, cache.capacity) == taken * (BUFFERS + 1) // BUFFERS
    assert taken == BUFFERS * 3 * MIN_CAPACITY * TOKEN_BYTES


def test_where_doubling_is_too_much_shapes_are_tight():
    cache = new_cache()
    cache.max_bytes = cache.bytes(3, 160)
    cache.reserve(2, 100)
    assert (cache.slots, cache.capacity) == (2, MIN_CAPACITY)
    cache.reserve(3, 100)  # four do not fit, three do
    assert (cache.slots, cache.capacity) == (3, MIN_CAPACITY)
    kept = block(120)
    cache.write(2, kept)
    cache.reserve(3, 129)
    assert (cache.slots, cache.capacity) == (3, 160)
    with pytest.raises(KVCacheFull) as raised:
        cache.reserve(3, 161)
    # 3 slots of 192 tokens, with a third buffer beside keys and values.
    assert str(raised.value) == (
        f"3 sequences of 161 tokens need {3 * 192 * 3 * TOKEN_BYTES:,} bytes of keys and values, "
        f"and kv_cache_bytes allows {3 * 160 * 3 * TOKEN_BYTES:,}"
    )
    assert (cache.slots, cache.capacity) == (3, 160)
    np.testing.assert_array_equal(cache.read(2, 0, 120), kept)
    cache.reset()
    cache.reserve(1, 300)  # of another shape it is within the budget
    assert (cache.slots, cache.capacity) == (1, 300)


def test_a_shape_is_tight_but_not_for_what_is_held():
    """Neither a longer sequence nor one in a later slot loses its room."""
    cache = new_cache()
    cache.max_bytes = cache.bytes(3, 224)
    long, behind = block(200), block(90, 7)
    cache.write(0, long)
    cache.write(2, behind)
    assert (cache.slots, cache.capacity) == (3, 224)
    with pytest.raises(KVCacheFull):
        cache.reserve(4, 100)
    with pytest.raises(KVCacheFull):
        cache.reserve(1, 250)
    np.testing.assert_array_equal(cache.read(0, 0, 200), long)
    np.testing.assert_array_equal(cache.read(2, 0, 90), behind)


@given(
    st.integers(0, 400_000), st.lists(st.tuples(st.integers(1, 9), st.integers(1, 320)), max_size=9)
)
def test_what_fits_is_what_can_be_reserved(max_bytes: int, shapes: list[tuple[int, int]]):
    cache = new_cache(max_bytes=max_bytes)
    for slots, tokens in shapes:
        cache.reset()
        if cache.fits(slots, tokens):
            cache.reserve(slots, tokens)
            assert cache.bytes(cache.slots, cache.capacity) <= max_bytes
        else:
            too_long = tokens > CONFIG.n_positions
            with pytest.raises(ValueError if too_long else KVCacheFull, match=r"^[^\n]+$"):
                cache.reserve(slots, tokens)
    assert new_cache().fits(10**6, CONFIG.n_positions)
    assert not new_cache().fits(1, CONFIG.n_positions + 1)


# Lengths


def test_truncating_never_lengthens():
    cache = new_cache()
    cache.write(1, block(10))
    cache.truncate(1, 7)
    for slot, length, said in ((1, 8, "slot 1 holds 7 tokens, not 8"), (0, 1, "slot 0 holds 0")):
        with pytest.raises(ValueError, match=rf"^{said}"):
            cache.truncate(slot, length)
    assert [cache.length(slot) for slot in range(3)] == [0, 7, 0]


def test_erasing_leaves_zeros_behind_the_length():
    cache = new_cache()
    kept = block(10)
    cache.write(1, kept)
    beside = block(100, 5)
    cache.write(0, beside)
    cache.write(2, beside)
    cache.truncate(1, 4)
    cache.erase(1)
    found = np.stack(cache.read(1, 0, cache.capacity))
    np.testing.assert_array_equal(found[:, :, :4], np.stack(kept)[:, :, :4])
    assert not found[:, :, 4:].any()
    for slot in (0, 2):
        np.testing.assert_array_equal(cache.read(slot, 0, 100), beside)


# Buffers


def test_a_reset_keeps_the_memory():
    cache = new_cache()
    cache.write(1, block(200))
    buffers, allocation, version = list(cache.buffers), cache.allocation, cache.version
    cache.reset()
    assert [cache.length(slot) for slot in range(2)] == [0, 0]
    assert (cache.slots, cache.capacity) == (0, 0)
    cache.reserve(4, MIN_CAPACITY)  # of another shape, and no more than two of 256
    assert (cache.slots, cache.capacity) == (4, MIN_CAPACITY)
    assert all(a is b for a, b in zip(buffers, cache.buffers, strict=True))
    assert cache.allocation == allocation
    assert cache.version != version
    cache.reserve(5, MIN_CAPACITY)  # which is more
    assert cache.allocation != allocation
    assert all(a is not b for a, b in zip(buffers, cache.buffers, strict=True))


def test_rows_that_join_take_memory_that_is_there():
    """As a batch starts, after another one: nothing is copied where slots stay where they are."""
    memory = Recorded()
    cache = KVCache(CONFIG, memory)
    cache.reserve(8, 100)
    allocation = cache.allocation
    cache.reset()
    kept = block(90)
    cache.write(0, kept)
    memory.copied.clear()
    for slots, there in ((5, 5), (6, 8)):
        cache.reserve(slots, 100)
        assert cache.slots == there
        assert cache.allocation == allocation
        assert memory.copied == []
    np.testing.assert_array_equal(cache.read(0, 0, 90), kept)
    cache.reserve(8, 200)
    assert cache.allocation != allocation
    np.testing.assert_array_equal(cache.read(0, 0, 90), kept)


def test_clearing_frees_the_memory():
    cache = new_cache()
    cache.write(0, block(20))
    allocation = cache.allocation
    freed = [weakref.ref(buffer) for buffer in cache.buffers]
    cache.clear()
    assert cache.buffers == []
    assert [reference() for reference in freed] == [None] * BUFFERS
    assert cache.length(0) == 0
    kept = block(20, 3)
    cache.write(0, kept)
    assert cache.allocation != allocation
    np.testing.assert_array_equal(cache.read(0, 0, 20), kept)


def test_shrinking_gives_back_what_is_not_needed():
    cache = new_cache()
    short, long = block(40), block(260, 9)
    cache.write(0, short)
    cache.write(3, long)
    assert (cache.slots, cache.capacity) == (4, 300)
    before = cache.bytes(cache.slots, cache.capacity)
    cache.shrink(4)  # the long one needs it all
    assert cache.bytes(cache.slots, cache.capacity) == before
    cache.shrink(1)
    assert (cache.slots, cache.capacity) == (1, MIN_CAPACITY)
    assert sum(buffer.nbytes for buffer in cache.buffers) == BUFFERS * MIN_CAPACITY * TOKEN_BYTES
    assert cache.length(3) == 0
    np.testing.assert_array_equal(cache.read(0, 0, 40), short)
    cache.reserve(4, 1)
    np.testing.assert_array_equal(cache.read(0, 0, 40), short)
    assert cache.length(3) == 0


@pytest.mark.parametrize(
    ("length", "capacity"),
    [(127, 128), (128, 256), (255, 256), (256, 512), (300, 512), (511, 512), (512, 1024)],
)
def test_shrinking_leaves_room_for_a_token_more(length: int, capacity: int):
    cache = new_cache(1024)
    cache.reserve(2, 1024)
    cache.write(0, [np.ones((4, length, 2), np.float32)] * BUFFERS)
    cache.shrink(1)
    assert cache.capacity == capacity
    version = cache.version
    cache.reserve(1, length + 1)
    assert cache.version == version


class Recorded(HostMemory):
    """Notes how many tokens are copied, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(CONFIG, np.float32)
        self.copied: list[int] = []
        self.fail_in: int | None = None  # allocations

    def zeros(self, tokens: int) -> Any:
        if self.fail_in is not None:
            self.fail_in -= 1
            if self.fail_in < 0:
                raise MemoryError("no more")
        return super().zeros(tokens)

    def copy(self, source: Any, at: Place, target: Any, to: Place, tokens: int) -> None:
        self.copied.append(tokens)
        super().copy(source, at, target, to, tokens)


def test_only_tokens_that_are_held_are_copied():
    memory = Recorded()
    cache = KVCache(CONFIG, memory)
    cache.write(0, block(100))
    cache.write(1, block(60, 3))
    cache.truncate(1, 50)
    memory.copied.clear()
    cache.copy(1, 0)
    assert memory.copied == [50] * BUFFERS
    # What was behind them is still there, and is not held.
    np.testing.assert_array_equal(cache.read(0, 50, 100), np.stack(block(100))[:, :, 50:])
    assert cache.length(0) == 50
    memory.copied.clear()
    cache.copy(0, 1, 8)
    assert memory.copied == [8] * BUFFERS
    assert cache.length(1) == 8
    memory.copied.clear()
    cache.reserve(4, 200)  # growing copies what is held
    assert memory.copied == [50, 8] * BUFFERS


@pytest.mark.parametrize("start_over", [KVCache.clear, KVCache.reset])
@pytest.mark.parametrize("fail_in", range(BUFFERS))
@pytest.mark.parametrize("held", [0, 30])
def test_after_an_allocation_that_fails_it_can_start_over(
    start_over: Callable[[KVCache], None], fail_in: int, held: int
):
    memory = Recorded()
    cache = KVCache(CONFIG, memory)
    cache.reserve(2, 100)
    if held:
        cache.write(1, block(held))
    memory.fail_in = fail_in
    with pytest.raises(MemoryError, match="no more"):
        cache.reserve(2, 200)
    assert not cache.holds(1, 1)  # buffers of two shapes are not to be used
    memory.fail_in = None
    start_over(cache)
    kept = block(200)
    cache.write(1, kept)
    np.testing.assert_array_equal(cache.read(1, 0, 200), kept)


# Any operations, in every kind of memory


class Player:
    """Does the same to a cache and to a dictionary of what its slots should hold."""

    def __init__(self, cache: KVCache, memory: Memory, watched: bool = True) -> None:
        self.cache, self.memory = cache, memory
        self.watched = watched  # which keeps buffers alive longer than the cache does
        self.held: dict[int, np.ndarray] = {}  # slot -> [buffers, heads, tokens, head_dim]
        self._start = 0

    def play(self, operation: str, *arguments: Any) -> None:
        cache = self.cache
        before = list(cache.buffers) if self.watched else []
        shape, allocation, version = (cache.slots, cache.capacity), cache.allocation, cache.version
        getattr(self, operation)(*arguments)
        if self.watched:
            same = [a is b for a, b in zip(before, cache.buffers, strict=False)]
            if cache.allocation == allocation:
                assert all(same)
                assert operation == "clear" or len(before) == len(cache.buffers)
            else:
                assert not any(same)
            if (cache.slots, cache.capacity) != shape or cache.allocation != allocation:
                assert cache.version != version
        self.check()

    def check(self) -> None:
        cache = self.cache
        for slot in range(SLOTS):
            expected = self.held.get(slot)
            length = 0 if expected is None else expected.shape[2]
            assert cache.length(slot) == length
            if length:
                assert slot < cache.slots
                assert length <= cache.capacity
                np.testing.assert_array_equal(cache.read(slot, 0, length), expected)
        assert cache.holds(cache.slots, cache.capacity)
        assert not cache.holds(cache.slots + 1, cache.capacity)
        assert not cache.holds(cache.slots, cache.capacity + 1)
        assert cache.capacity <= CONFIG.n_positions
        if cache.max_bytes is not None:
            assert cache.bytes(cache.slots, cache.capacity) <= cache.max_bytes

    def allowed(self, slots: int, tokens: int, change: Callable[[], None]) -> bool:
        """Make a change that needs so much room; whether that is to be had is known before."""
        cache = self.cache
        needed = [1 + slot for slot, values in self.held.items() if values.shape[2]]
        longest = [values.shape[2] for values in self.held.values()]
        fits = cache.fits(max([slots, *needed]), max([tokens, *longest]))
        if fits or cache.holds(slots, tokens):
            change()
            return True
        error = ValueError if tokens > CONFIG.n_positions else KVCacheFull
        with pytest.raises(error) as raised:
            change()
        assert "\n" not in str(raised.value)
        return False

    def new(self, tokens: int) -> np.ndarray:
        self._start += 37
        return np.stack(block(tokens, self._start))

    def write(self, slot: int, tokens: int) -> None:
        values = self.new(tokens)
        if self.allowed(slot + 1, tokens, lambda: self.cache.write(slot, list(values))):
            self.held[slot] = values

    def append(self, slot: int, tokens: int) -> None:
        """As a step does it."""
        length, values = self.cache.length(slot), self.new(tokens)
        total = length + tokens
        if self.allowed(slot + 1, total, lambda: self.cache.reserve(slot + 1, total)):
            at = Place(slot, self.cache.capacity)
            for buffer, new in zip(self.cache.buffers, values, strict=True):
                self.memory.write(buffer, at, length, new)
            self.cache.extended(slot, tokens)
            before = self.held.get(slot, values[:, :, :0])
            self.held[slot] = np.concatenate([before, values], axis=2)

    def reserve(self, slots: int, tokens: int) -> None:
        if self.allowed(slots, tokens, lambda: self.cache.reserve(slots, tokens)):
            assert self.cache.holds(slots, tokens)

    def truncate(self, slot: int, tokens: int) -> None:
        length = self.cache.length(slot)
        if tokens > length:
            with pytest.raises(ValueError, match=f"^slot {slot} holds {length} tokens"):
                self.cache.truncate(slot, tokens)
        else:
            self.cache.truncate(slot, tokens)
            if slot in self.held:
                self.held[slot] = self.held[slot][:, :, :tokens]

    def copy(self, source: int, target: int, tokens: int, whole: bool) -> None:
        if source >= self.cache.slots:
            return  # there is no such slot
        values = self.held.get(source, self.new(0))
        count = values.shape[2] if whole else min(tokens, values.shape[2])
        chosen = None if whole else count
        if self.allowed(target + 1, count, lambda: self.cache.copy(source, target, chosen)):
            self.held[target] = values[:, :, :count]

    def shrink(self, slots: int) -> None:
        before = self.cache.slots, self.cache.capacity
        self.cache.shrink(slots)
        shrunk = (self.cache.slots, self.cache.capacity) != before
        if shrunk:
            self.held = {slot: values for slot, values in self.held.items() if slot < slots}
            assert 2 * self.cache.capacity <= before[1]
            assert self.cache.slots == max(min(slots, before[0]), 1)

    def erase(self, slot: int) -> None:
        if slot < self.cache.slots:
            self.cache.erase(slot)
            length, capacity = self.cache.length(slot), self.cache.capacity
            if length < capacity:
                assert not np.stack(self.cache.read(slot, length, capacity)).any()

    def read(self, slot: int, first: int, count: int) -> None:
        length = self.cache.length(slot)
        if first < length:
            last = min(first + count, length)
            found = self.cache.read(slot, first, last)
            np.testing.assert_array_equal(found, self.held[slot][:, :, first:last])

    def reset(self) -> None:
        self.cache.reset()
        self.held.clear()

    def clear(self) -> None:
        self.cache.clear()
        self.held.clear()
        assert self.cache.buffers == []


slots = st.integers(0, SLOTS - 1)
counts = st.integers(1, 20) | st.integers(1, CONFIG.n_positions + 5)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), slots, counts),
        st.tuples(st.just("append"), slots, counts),
        st.tuples(st.just("append"), slots, st.just(1)),
        st.tuples(st.just("reserve"), slots.map(lambda slot: slot + 1), counts),
        st.tuples(st.just("truncate"), slots, st.integers(0, CONFIG.n_positions)),
        st.tuples(st.just("copy"), slots, slots, counts, st.booleans()),
        st.tuples(st.just("shrink"), st.integers(0, SLOTS)),
        st.tuples(st.just("erase"), slots),
        st.tuples(st.just("read"), slots, counts, counts),
        st.tuples(st.just("reset")),
        st.tuples(st.just("clear")),
    ),
    min_size=5,
    max_size=40,
)
# Bytes, in steps of what one slot of STEP tokens takes.
budgets = st.integers(0, 50).map(lambda n: n * STEP * (BUFFERS + 1) * TOKEN_BYTES + 7)


@pytest.fixture(scope="module")
def copier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph that copies, as an export holds it."""
    folder = tmp_path_factory.mktemp("model")
    write_safetensors(folder, random_tensors(CONFIG), CONFIG)
    with open_checkpoint(folder) as checkpoint:
        onnx_graph.save_graph(FusedWeights(checkpoint, CONFIG), folder, "fp32")
    return folder / onnx_files.COPY_FILE


@pytest.fixture(scope="module", params=["host", "float16", "device", "paddle"])
def memory(request: pytest.FixtureRequest, copier: Path) -> Memory:
    """Every kind; what ONNX Runtime has on a GPU is here on its "device" that is the CPU."""
    if request.param == "device":
        return DeviceMemory(CONFIG, np.float32, copier, ["CPUExecutionProvider"], ("cpu", 0))
    if request.param == "paddle":
        return PaddleMemory(CONFIG, "float32", "cpu")
    return HostMemory(CONFIG, np.float16 if request.param == "float16" else np.float32)


def test_new_buffers_are_zeros(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(onnx_memory, "_MOST_VALUES", 7 * CONFIG.n_embd)  # tokens at a time
    cache = KVCache(CONFIG, memory)
    cache.write(0, block(30))
    cache.clear()  # as what comes next may lie where this was
    cache.reserve(2, 30)
    for slot in range(2):
        found = np.stack(cache.read(slot, 0, cache.capacity))
        assert found.shape == (BUFFERS, CONFIG.n_head, cache.capacity, CONFIG.head_dim)
        assert not found.any()


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (RuntimeError("bfc_arena.cc:360 Failed to allocate memory for requested"), MemoryError),
        (MemoryError("std::bad_alloc"), MemoryError),
        (RuntimeError("CUDA failure 700"), RuntimeError),
    ],
)
def test_a_device_without_memory(
    error: Exception, found: type[Exception], copier: Path, monkeypatch: pytest.MonkeyPatch
):
    memory = DeviceMemory(CONFIG, np.float32, copier, ["CPUExecutionProvider"], ("cpu", 0))
    cache = KVCache(CONFIG, memory)

    def refuse(*_: Any) -> Any:
        raise error

    name = "ortvalue_from_shape_and_type"
    monkeypatch.setattr(onnx_memory.onnxruntime.OrtValue, name, refuse)
    message = r"^the device has no [\d,]+ bytes left .* smaller kv_cache_bytes"
    with pytest.raises(found, match="700" if found is RuntimeError else message):
        cache.write(0, block(30))
    monkeypatch.undo()
    cache.clear()
    cache.write(0, block(30))
    np.testing.assert_array_equal(cache.read(0, 0, 30), np.stack(block(30)))


def test_growing_keeps_every_slot(memory: Memory, monkeypatch: pytest.MonkeyPatch):
    """Slots between others that hold nothing too, and in parts where a device counts in 32 bits."""
    monkeypatch.setattr(onnx_memory, "_MOST_VALUES", 600 * CONFIG.n_embd)  # two slots at a time
    cache = KVCache(CONFIG, memory)
    cache.reserve(5, 100)
    lengths = [30, 0, 100, 7, 0]
    for slot, length in enumerate(lengths):
        if length:
            cache.write(slot, block(length, 100 * slot))
    cache.reserve(7, 200)
    assert (cache.slots, cache.capacity) == (10, 256)
    for slot, length in enumerate(lengths):
        expected = np.stack(block(length, 100 * slot))
        np.testing.assert_array_equal(np.stack(cache.read(slot, 0, length)), expected)
    for slot in (7, 9):
        assert not np.stack(cache.read(slot, 0, cache.capacity)).any()


def test_what_was_read_is_a_copy(memory: Memory):
    cache = KVCache(CONFIG, memory)
    kept = block(30)
    cache.write(0, kept)
    found = cache.read(0, 10, 20)
    cache.write(0, block(30, 1000))
    np.testing.assert_array_equal(found, np.stack(kept)[:, :, 10:20])


@settings(deadline=None, max_examples=100)
@given(operations=operations, max_bytes=st.none() | budgets)
def test_what_slots_hold_is_kept(
    memory: Memory, operations: list[tuple[Any, ...]], max_bytes: int | None
):
    cache = KVCache(CONFIG, memory)
    cache.max_bytes = max_bytes
    player = Player(cache, memory)
    for operation in operations:
        player.play(*operation)


@settings(deadline=None, max_examples=200)
@given(operations=operations, max_bytes=budgets)
def test_the_budget_is_never_exceeded(operations: list[tuple[Any, ...]], max_bytes: int):
    """Not even while buffers grow: by what is alive in fact, not by the cache's own account."""

    class Counted(HostMemory):
        alive: list[weakref.ref[Any]] = []  # noqa: RUF012  (of this example)

        def zeros(self, tokens: int) -> Any:
            new = super().zeros(tokens)
            self.alive = [one for one in self.alive if one() is not None] + [weakref.ref(new)]
            taken = sum(buffer.nbytes for one in self.alive if (buffer := one()) is not None)
            assert taken <= max_bytes
            return new

    memory = Counted(CONFIG, np.float32)
    cache = KVCache(CONFIG, memory)
    cache.max_bytes = max_bytes
    player = Player(cache, memory, watched=False)
    for operation in operations:
        player.play(*operation)
