import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlenlp_codegen_task.runtime.kv_cache import MIN_CAPACITY, KVCache


def test_capacity_doubles_up_to_the_context():
    cache = KVCache(1000)
    seen = []
    for length in range(1, 1001):
        changes = cache.grow(1, length)
        assert changes == (cache.capacity not in seen)
        assert length <= cache.capacity
        if changes:
            seen.append(cache.capacity)
    assert seen == [MIN_CAPACITY, 2 * MIN_CAPACITY, 4 * MIN_CAPACITY, 1000]


def test_a_small_context_is_the_first_capacity():
    cache = KVCache(48)
    assert cache.grow(1, 1)
    assert (cache.slots, cache.capacity) == (1, 48)
    assert not cache.grow(1, 48)


def test_slots_at_least_double():
    cache = KVCache(256)
    slots = []
    for n in range(1, 12):
        if cache.grow(n, 1):
            slots.append(cache.slots)
    assert slots == [1, 2, 4, 8, 16]


def test_beyond_the_context_nothing_changes():
    cache = KVCache(200)
    cache.grow(2, 150)
    with pytest.raises(ValueError, match=r"^201 tokens do not fit the context of 200$"):
        cache.grow(5, 201)
    assert (cache.slots, cache.capacity) == (2, 200)


@given(
    st.integers(1, 3000), st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3000)), max_size=20)
)
def test_there_is_always_room_and_never_less_than_before(
    context: int, steps: list[tuple[int, int]]
):
    cache = KVCache(context)
    for slots, capacity in steps:
        before = cache.slots, cache.capacity
        if capacity > context:
            continue
        changed = cache.grow(slots, capacity)
        assert cache.slots >= max(slots, before[0])
        assert max(capacity, before[1]) <= cache.capacity <= context
        assert changed == ((cache.slots, cache.capacity) != before)


def test_an_unused_slot_is_empty():
    assert KVCache(10).lengths[3] == 0
