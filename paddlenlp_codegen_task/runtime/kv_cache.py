"""The KV cache: buffers of keys and values, how long each slot is, when they grow and shrink.

Its buffers are [slots, n_head, capacity, head_dim], two a layer. How they are allocated and copied
is an engine's matter (`Memory`); all the rest is here, once for both engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.model.config import CodeGenConfig

# Attention runs over the whole capacity, so a short sequence should not pay for a long one's room.
MIN_CAPACITY = 128
STEP = 32  # tokens; what capacities are rounded to where doubling would go past the budget

# Keys and values of some tokens of one slot: [n_head, tokens, head_dim] for each buffer.
Block = list[npt.NDArray[Any]]
Buffer = Any  # whatever an engine keeps values in


class KVCacheFull(MemoryError):
    """The buffers would take more than `max_bytes`."""


class Place(NamedTuple):
    """A slot of a buffer in which slots have room for `capacity` tokens."""

    slot: int
    capacity: int


class Memory(Protocol):
    """An engine's way with one buffer, [slots, n_head, capacity, head_dim], kept flat."""

    itemsize: int

    def zeros(self, tokens: int) -> Buffer:
        """Allocate room for so many tokens, slots times capacity.

        Zeros, as 0 weights times NaN left in fresh memory would still be NaN.
        """

    def copy(self, source: Buffer, at: Place, target: Buffer, to: Place, tokens: int) -> None:
        """Copy the first tokens of a slot to another one, of the same buffer or of another."""

    def carry_over(
        self, source: Buffer, before: int, target: Buffer, after: int, lengths: dict[int, int]
    ) -> None:
        """Copy what slots hold, `lengths` tokens each, to the same slots of a buffer of zeros.

        `before` and `after` are the capacities of the two.
        """

    def read(self, buffer: Buffer, at: Place, first: int, last: int) -> npt.NDArray[Any]:
        """Copy tokens `first` to `last` - 1 of a slot to the host, [n_head, tokens, head_dim]."""

    def write(self, buffer: Buffer, at: Place, first: int, values: npt.NDArray[Any]) -> None:
        """Write [n_head, tokens, head_dim] to a slot, from token `first` on."""


class KVCache:
    """The key and value buffers of every layer, and how much of them is used.

    Attributes:
        max_capacity: most tokens a slot can hold: the model's context length.
        max_bytes: most memory the buffers may take; None for no limit. One buffer more than there
            are counts, as growing holds an old one beside its successor.
        count: buffers that there are.
        slots: sequences the buffers have room for.
        capacity: tokens a slot has room for.
        buffers: key and value of the first layer, and so on.
        version: changes whenever the buffers, or their shapes, do.
        allocation: changes whenever the buffers are others.
    """

    def __init__(self, config: CodeGenConfig, memory: Memory) -> None:
        self.max_capacity = config.n_positions
        self.max_bytes: int | None = None
        self.slots = self.capacity = self.version = self.allocation = 0
        self.buffers: list[Buffer] = []
        self._memory = memory
        self.count = 2 * config.n_layer
        self._token_bytes = config.n_embd * memory.itemsize  # of one buffer
        self._shape = config.n_head, config.head_dim
        self._lengths: dict[int, int] = {}
        self._allocated = 0  # tokens each buffer has room for, in whatever shape

    def length(self, slot: int) -> int:
        """Tokens that a slot holds, 0 if it has not been used."""
        return self._lengths.get(slot, 0)

    def bytes(self, slots: int, capacity: int) -> int:
        """What buffers of this size take, as `max_bytes` counts it."""
        return slots * capacity * self._token_bytes * (self.count + 1)

    def holds(self, slots: int, tokens: int) -> bool:
        """Whether the buffers, as they are, have room for so many slots of so many tokens."""
        return slots <= self.slots and tokens <= self.capacity

    def fits(self, slots: int, tokens: int) -> bool:
        """Whether so many slots of so many tokens fit the budget and the context."""
        if tokens > self.max_capacity:
            return False
        capacity = min(-(-tokens // STEP) * STEP, self.max_capacity)
        return self.max_bytes is None or self.bytes(slots, capacity) <= self.max_bytes

    def reserve(self, slots: int, tokens: int) -> None:
        """Make room for `slots` sequences of `tokens` tokens, keeping what is held.

        Both grow by doubling while the budget allows it, so that a growing sequence copies its
        buffers a few times only.

        Raises:
            ValueError: the context is not as long.
            KVCacheFull: the budget does not allow it.
        """
        if self.holds(slots, tokens):
            return
        if tokens > self.max_capacity:
            raise ValueError(f"{tokens} tokens do not fit the context of {self.max_capacity}")
        for slot, length in self._lengths.items():  # what is held keeps its room in any case
            slots, tokens = max(slots, slot + 1 if length else 0), max(tokens, length)
        capacity = max(self.capacity, MIN_CAPACITY)
        while capacity < tokens:
            capacity *= 2
        capacity = min(capacity, self.max_capacity)
        roomy = max(slots, 2 * self.slots) if slots > self.slots else self.slots
        if capacity == self.capacity and slots * capacity <= self._allocated:
            roomy = min(roomy, self._allocated // capacity)  # what is there costs nothing
        tight = min(-(-tokens // STEP) * STEP, self.max_capacity)
        shapes = ((roomy, capacity), (slots, capacity), (slots, tight))
        for shape in shapes:
            if self.max_bytes is None or self.bytes(*shape) <= self.max_bytes:
                self._resize(*shape)
                return
        raise KVCacheFull(
            f"{slots} sequences of {tokens} tokens need {self.bytes(slots, tight):,} bytes of keys "
            f"and values, and kv_cache_bytes allows {self.max_bytes:,}"
        )

    def shrink(self, slots: int) -> None:
        """Give back capacity that none of the first `slots` needs, if that is half or more."""
        longest = max((self.length(slot) for slot in range(slots)), default=0)
        capacity = MIN_CAPACITY
        while capacity < longest + 1:
            capacity *= 2
        if 2 * capacity <= self.capacity:
            self._lengths = {slot: self.length(slot) for slot in range(slots)}
            self._resize(max(min(slots, self.slots), 1), capacity)

    def truncate(self, slot: int, length: int) -> None:
        """Forget what a slot holds beyond its first `length` tokens."""
        if length > self.length(slot):
            raise ValueError(f"slot {slot} holds {self.length(slot)} tokens, not {length}")
        self._lengths[slot] = length

    def extended(self, slot: int, tokens: int) -> None:
        """A step has appended tokens to a slot; only a runtime calls this."""
        self._lengths[slot] = self.length(slot) + tokens

    def copy(self, source: int, target: int, tokens: int | None = None) -> None:
        """Copy the first tokens of a slot, all by default, to another, replacing what is there."""
        tokens = self.length(source) if tokens is None else tokens
        self.reserve(target + 1, tokens)
        at, to = Place(source, self.capacity), Place(target, self.capacity)
        for buffer in self.buffers:
            self._memory.copy(buffer, at, buffer, to, tokens)
        self._lengths[target] = tokens

    def read(self, slot: int, first: int, last: int) -> Block:
        """Copy the keys and values of tokens `first` to `last` - 1 of a slot to the host."""
        at = Place(slot, self.capacity)
        return [self._memory.read(buffer, at, first, last) for buffer in self.buffers]

    def write(self, slot: int, block: Block) -> None:
        """Start a sequence in a slot with keys and values that `read` has given from token 0 on."""
        tokens = block[0].shape[1]
        self.reserve(slot + 1, tokens)
        self._write(slot, 0, block)
        self._lengths[slot] = tokens

    def erase(self, slot: int) -> None:
        """Write zeros behind what a slot holds: NaN there would spread to whatever comes after."""
        length, (heads, head_dim) = self.length(slot), self._shape
        zeros = np.zeros((heads, self.capacity - length, head_dim), np.float32)
        self._write(slot, length, [zeros] * self.count)

    def _write(self, slot: int, first: int, block: Sequence[npt.NDArray[Any]]) -> None:
        at = Place(slot, self.capacity)
        for buffer, values in zip(self.buffers, block, strict=True):
            self._memory.write(buffer, at, first, values)

    def reset(self) -> None:
        """Forget all sequences. The buffers stay allocated, for whatever shape comes next."""
        self._lengths.clear()
        self.slots = self.capacity = 0
        self.version += 1

    def clear(self) -> None:
        """Free the buffers; new ones are allocated when they are needed."""
        self.buffers.clear()
        self._allocated = 0
        self.reset()

    def _resize(self, slots: int, capacity: int) -> None:
        """Have buffers of this shape, with all that is held."""
        before, self.slots, self.capacity = self.capacity, slots, capacity
        self.version += 1
        held = {slot: length for slot, length in self._lengths.items() if length}
        # With the same capacity, slots are where they were.
        if slots * capacity <= self._allocated and (not held or capacity == before):
            return
        if not held:  # nothing to keep: free all first
            self.buffers.clear()
        self.allocation += 1
        try:
            for n in range(self.count):
                new = self._memory.zeros(slots * capacity)
                if held:
                    self._memory.carry_over(self.buffers[n], before, new, capacity, held)
                self.buffers[n : n + 1] = [new]
        except BaseException:
            self.clear()  # some buffers have the old shape, and some the new one
            raise
        self._allocated = slots * capacity


class SlotBySlot:
    """A memory's `carry_over` by its `copy`, for where a copy costs little beside its bytes."""

    def carry_over(
        self: Memory,
        source: Buffer,
        before: int,
        target: Buffer,
        after: int,
        lengths: dict[int, int],
    ) -> None:
        """See Memory."""
        for slot, length in lengths.items():
            self.copy(source, Place(slot, before), target, Place(slot, after), length)


class HostMemory(SlotBySlot):
    """Buffers in numpy arrays, for an engine that runs on the CPU and takes addresses."""

    def __init__(self, config: CodeGenConfig, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)
        self._heads, self._head_dim = config.n_head, config.head_dim
        self.itemsize = self._dtype.itemsize

    def zeros(self, tokens: int) -> Buffer:
        """See Memory."""
        return np.zeros(tokens * self._heads * self._head_dim, self._dtype)

    def copy(self, source: Buffer, at: Place, target: Buffer, to: Place, tokens: int) -> None:
        """See Memory."""
        self._slot(target, to)[:, :tokens] = self._slot(source, at)[:, :tokens]

    def read(self, buffer: Buffer, at: Place, first: int, last: int) -> npt.NDArray[Any]:
        """See Memory."""
        return self._slot(buffer, at)[:, first:last].copy()

    def write(self, buffer: Buffer, at: Place, first: int, values: npt.NDArray[Any]) -> None:
        """See Memory."""
        self._slot(buffer, at)[:, first : first + values.shape[1]] = values

    def address(self, buffer: Buffer) -> int:
        """Where a buffer begins."""
        return int(buffer.ctypes.data)

    def _slot(self, buffer: Buffer, at: Place) -> npt.NDArray[Any]:
        """A view of a slot, [n_head, capacity, head_dim]."""
        size = self._heads * at.capacity * self._head_dim
        part = buffer[at.slot * size : (at.slot + 1) * size]
        view: npt.NDArray[Any] = part.reshape(self._heads, at.capacity, self._head_dim)
        return view
