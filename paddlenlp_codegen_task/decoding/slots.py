"""Which row is in which slot of the KV cache: moving, keeping and giving back what slots hold."""

from __future__ import annotations

from collections.abc import Sequence

from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.request import Row
from paddlenlp_codegen_task.runtime.kv_cache import KVCache


class Slots:
    """Running rows, packed in the slots 0, 1, ..., and behind them a prompt being prefilled.

    Attributes:
        rows: the running ones; the place is the slot.
        prefilling: slots behind them that are in use.
        prefix_cache: where keys and values of what leaves are kept; None for nowhere.
    """

    def __init__(
        self, cache: KVCache, prefix_cache: PrefixCache | None = None, prompts_only: bool = False
    ) -> None:
        """Keep nothing of what is generated with `prompts_only`: see Runtime.same_products."""
        self.rows: list[Row] = []
        self.prefilling = 0
        self.prefix_cache = prefix_cache
        self._cache = cache
        self._prompts_only = prompts_only

    @property
    def used(self) -> int:
        """Slots in use."""
        return len(self.rows) + self.prefilling

    @property
    def longest(self) -> int:
        """Tokens of the slot that holds most."""
        return max(map(self._cache.length, range(self.used)), default=0)

    @property
    def usage(self) -> float:
        """Share of the byte budget that what runs takes, 0 to 1; without a budget, of one row."""
        most = self._cache.max_bytes or self._cache.bytes(1, self._cache.max_capacity)
        return min(self._cache.bytes(self.used, self.longest) / most, 1.0)

    def room_for(self, rows: int, tokens: int) -> bool:
        """Whether so many rows more, all as long as `tokens` at most, fit the byte budget."""
        return self._cache.fits(self.used + rows, max(self.longest + 1, tokens))

    def reserve(self, rows: int, tokens: int, expected: int) -> None:
        """Make room for rows beside those that are there; `expected` ones may come in all."""
        if not self.used:
            self._cache.reset()
            if self._cache.fits(expected, tokens):
                self._cache.reserve(expected, tokens)
        self._cache.reserve(self.used + rows, tokens)

    def restore(self, slot: int, token_ids: Sequence[int]) -> int:
        """Start a sequence with what the prefix cache has of it; return how many tokens it is."""
        self._cache.truncate(slot, 0)
        if self.prefix_cache is None or not token_ids:
            return 0
        return self.prefix_cache.restore(self._cache, slot, token_ids)

    def restore_row(self, slot: int, row: Row) -> int:
        """The same for a row that was set back, by all of its tokens that may come from there."""
        if self._prompts_only:  # what it has generated another may have had in its prompt
            return self.restore(slot, row.history[: len(row.request.prompt_ids) + 1])
        return self.restore(slot, row.history)

    def cached(self, token_ids: Sequence[int]) -> bool:
        """Whether the prefix cache has the beginning of a sequence."""
        return self.prefix_cache is not None and self.prefix_cache.holds(token_ids)

    def append(self, row: Row, source: int | None = None) -> None:
        """Have a row run in the next slot, which holds its tokens or gets those of its prompt.

        Args:
            row: the new one.
            source: the slot of a row with the same prompt, to copy the prompt from.
        """
        if source is not None:
            self._cache.copy(source, len(self.rows), len(row.request.prompt_ids))
        self.rows.append(row)

    def copy(self, source: Row, target: Row) -> None:
        """Have a row's slot hold what another row's does."""
        self._cache.copy(self.rows.index(source), self.rows.index(target))

    def replace(self, row: Row, successor: Row) -> None:
        """Have another row of the same request go on in a row's slot from the end of the prompt."""
        slot = self.rows.index(row)
        self._keep(slot)
        self._cache.truncate(slot, len(row.request.prompt_ids))
        self.rows[slot] = successor

    def remove(self, row: Row) -> None:
        """Take a row out and close the gap that it leaves."""
        slot = self.rows.index(row)
        self._keep(slot)
        last = self.rows.pop()
        if slot < len(self.rows):
            self._cache.copy(len(self.rows), slot)
            self.rows[slot] = last
        if self.prefilling:  # one at most, between steps, and right behind the others
            self._cache.copy(len(self.rows) + 1, len(self.rows))
        self._cache.truncate(self.used, 0)
        self._cache.shrink(self.used)

    def discard(self, row: Row) -> None:
        """Take a row out whose keys and values are not numbers, and leave no trace of it."""
        slot = self.rows.index(row)
        self._cache.truncate(slot, 0)
        self._cache.erase(slot)
        self.remove(row)
        # What has moved up may have been another such row: where it was is no better.
        for left in {len(self.rows), self.used}:
            if left < self._cache.slots:
                self._cache.erase(left)

    def drop_prefill(self, broken: bool = False) -> None:
        """Forget prompts that were being prefilled: what they held must not count as memory.

        With `broken` it is not numbers, and no trace of it is left.
        """
        for slot in range(len(self.rows), self.used):
            self._cache.truncate(slot, 0)
            if broken:
                self._cache.erase(slot)
        self.prefilling = 0

    def clear(self) -> None:
        """Free the buffers: what is in them may be anything."""
        self.rows.clear()
        self.prefilling = 0
        self._cache.clear()

    def _keep(self, slot: int) -> None:
        """Keep what a slot holds, if there is a cache."""
        if self.prefix_cache is not None:
            row = self.rows[slot]
            # A beam's slot holds the prompt, and then not what the search has found.
            prompt = row.request.beams or self._prompts_only
            held = row.request.prompt_ids if prompt else row.history
            self.prefix_cache.save(self._cache, slot, held[: self._cache.length(slot)])
