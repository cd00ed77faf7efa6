"""The book-keeping of a KV cache: how many slots, how long each is, when the buffers grow."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

# Attention runs over the whole capacity, so a short sequence should not pay for a long one's room.
MIN_CAPACITY = 128


@dataclass
class KVCache:
    """Sizes of the key and value buffers [slots, n_head, capacity, head_dim] of every layer.

    Attributes:
        max_capacity: most tokens a slot can hold: the model's context length.
        slots: sequences the buffers have room for.
        capacity: tokens a slot has room for.
        lengths: tokens each slot holds, 0 for one that has not been used.
    """

    max_capacity: int
    slots: int = 0
    capacity: int = 0
    lengths: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def reset(self, slots: int) -> None:
        """Forget all sequences; make room for `slots` new ones, each as short as it turns out."""
        self.slots, self.capacity = slots, 0
        self.lengths.clear()

    def grow(self, slots: int, capacity: int) -> bool:
        """Make room for `slots` sequences of `capacity` tokens; say whether the buffers change.

        Both grow by doubling, so that a growing sequence copies its buffers a few times only.

        Raises:
            ValueError: `capacity` is above the context length.
        """
        if capacity > self.max_capacity:
            raise ValueError(f"{capacity} tokens do not fit the context of {self.max_capacity}")
        before = self.slots, self.capacity
        if slots > self.slots:
            self.slots = max(slots, 2 * self.slots)
        if capacity > self.capacity:
            room = max(self.capacity, MIN_CAPACITY)
            while room < capacity:
                room *= 2
            self.capacity = min(room, self.max_capacity)
        return (self.slots, self.capacity) != before
