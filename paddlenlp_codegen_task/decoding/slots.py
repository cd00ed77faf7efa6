"""Which row is in which slot of the KV cache: moving, keeping and giving back what slots hold."""

from __future__ import annotations

from collections.abc import Sequence

from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache, common
from paddlenlp_codegen_task.decoding.request import Row
from paddlenlp_codegen_task.runtime.kv_cache import KVCache


class Slots:
    """Running rows, packed in the slots 0, 1, ..., and behind them a prompt being prefilled.

    What ran last stays in its slot as long as nothing else runs: whoever types on goes on from
    there, token by token, and nothing is copied.

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
        self._left: list[int] = []  # what slot 0 holds although nothing runs

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

    def reserve(self, rows: int, tokens: int, expected: int, token_ids: Sequence[int] = ()) -> int:
        """Make room for rows beside those that are there, and take what is kept for the first.

        Args:
            rows: that start.
            tokens: of the longest of them.
            expected: rows that may come in all.
            token_ids: the first one's tokens, the last of which is to be run in any case; none if
                nothing is to be taken.

        Returns:
            How many of these its slot holds now.
        """
        slot, kept, prefixes = self.used, 0, self.prefix_cache
        left, self._left = self._left, []
        if left and prefixes is not None and token_ids:
            kept = common(left, token_ids[: len(token_ids) - 1])
            if kept < prefixes.longest(token_ids):
                kept = 0
        if kept:
            self._cache.truncate(0, kept)
        elif not slot:
            self._cache.reset()
            if self._cache.fits(expected, tokens):
                self._cache.reserve(expected, tokens)
        self._cache.reserve(slot + rows, tokens)
        for other in range(slot + bool(kept), slot + rows):
            self._cache.truncate(other, 0)
        if prefixes is None or not token_ids:
            return 0
        if not kept:
            return prefixes.restore(self._cache, slot, token_ids)
        prefixes.count(len(token_ids), kept)
        return kept

    def resume(self, token_ids: Sequence[int]) -> bool:
        """Have the next row start with what ran last, if that begins with all of these tokens."""
        if not self._left or self._left[: len(token_ids)] != list(token_ids):
            return False
        assert self.prefix_cache is not None, "without it nothing is left"
        self.prefix_cache.count(len(token_ids), len(token_ids))
        self._cache.truncate(0, len(token_ids))
        self._left = []
        return True

    def restorable(self, row: Row) -> Sequence[int]:
        """What of a row that was set back may be taken from what is kept, and the token after."""
        if self._prompts_only:  # what it has generated another may have had in its prompt
            return row.history[: len(row.request.prompt_ids) + 1]
        return row.history

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
        held = self._keep(slot)
        last = self.rows.pop()
        if slot < len(self.rows):
            self._cache.copy(len(self.rows), slot)
            self.rows[slot] = last
        if self.prefilling:  # one at most, between steps, and right behind the others
            self._cache.copy(len(self.rows) + 1, len(self.rows))
        if held and not self.used:
            self._left = held
            self._cache.truncate(0, len(held))
            return
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

    def drop_prefill(self, held: Sequence[int] = (), broken: bool = False) -> None:
        """Forget prompts that were being prefilled: what they held must not count as memory.

        Args:
            held: what the slot of the only one holds and is to be kept.
            broken: whether what they held is not numbers, and no trace of it may be left.
        """
        first, used = len(self.rows), self.used
        self.prefilling = 0
        if held and self.prefix_cache is not None:
            self.prefix_cache.save(self._cache, first, held)
            if not first:
                self._left = list(held)
                return
        for slot in range(first, used):
            self._cache.truncate(slot, 0)
            if broken:
                self._cache.erase(slot)

    def clear(self) -> None:
        """Free the buffers: what is in them may be anything."""
        self.rows.clear()
        self.prefilling = 0
        self._left = []
        self._cache.clear()

    def _keep(self, slot: int) -> list[int]:
        """Keep what a slot holds, if there is a cache; return what that is."""
        if self.prefix_cache is None:
            return []
        row = self.rows[slot]
        # A beam's slot holds the prompt, and then not what the search has found.
        prompt = row.request.beams or self._prompts_only
        tokens = list(row.request.prompt_ids) if prompt else row.history
        held = tokens[: self._cache.length(slot)]
        self.prefix_cache.save(self._cache, slot, held)
        return held
