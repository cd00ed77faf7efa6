"""Keys and values of earlier texts, so that a prompt that begins like one prefills only the rest.

A text is kept in blocks of BLOCK tokens. A block is found by a hash of its tokens and of all before
them, so it serves whatever prompt begins with the same tokens, and what texts share is kept once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as TokenIds
from itertools import takewhile

import numpy as np

from paddlenlp_codegen_task.runtime.kv_cache import Block, KVCache

BLOCK = 32  # tokens


class PrefixCache:
    """Blocks of keys and values in host memory; the least recently used go first.

    Attributes:
        max_bytes: most memory that the blocks take.
        bytes: what they take now.
        asked: tokens of all texts that were to be restored.
        found: how many of them were.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = self.asked = self.found = 0
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()

    def holds(self, token_ids: TokenIds[int]) -> bool:
        """Whether a text that begins so could be restored in part."""
        return next(_hashes(token_ids[: len(token_ids) - 1]), None) in self._blocks

    def count(self, asked: int, found: int) -> None:
        """Count tokens of a text that was to be restored, and those of them that are held."""
        self.asked += asked
        self.found += found

    def longest(self, token_ids: TokenIds[int]) -> int:
        """How many tokens of a text `restore` would find."""
        return len(self._find(token_ids)) * BLOCK

    def restore(self, cache: KVCache, slot: int, token_ids: TokenIds[int]) -> int:
        """Fill a slot with the longest beginning of a text that is here.

        Returns:
            How many tokens that is: 0 to len(token_ids) - 1, as the last one is to be run.
        """
        keys = self._find(token_ids)
        for key in keys:
            self._blocks.move_to_end(key)
        if keys:
            buffers = zip(*(self._blocks[key] for key in keys), strict=True)
            cache.write(slot, [np.concatenate(parts, axis=1) for parts in buffers])
        self.count(len(token_ids), len(keys) * BLOCK)
        return len(keys) * BLOCK

    def _find(self, token_ids: TokenIds[int]) -> list[bytes]:
        """The keys of the blocks that a text begins with, but for its last token."""
        keys = _hashes(token_ids[: len(token_ids) - 1])
        return list(takewhile(self._blocks.__contains__, keys))

    def save(self, cache: KVCache, slot: int, token_ids: TokenIds[int]) -> None:
        """Keep the tokens that a slot holds, as far as they fill blocks."""
        keys = list(_hashes(token_ids))
        for n, key in enumerate(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)
                continue
            block = cache.read(slot, n * BLOCK, (n + 1) * BLOCK)
            size = sum(part.nbytes for part in block)
            if (n + 1) * size > self.max_bytes:
                break  # the end of a text is of no use without its beginning
            while self.bytes + size > self.max_bytes:
                _, oldest = self._blocks.popitem(last=False)
                self.bytes -= sum(part.nbytes for part in oldest)
            self._blocks[key] = block
            self.bytes += size
        # A text's end goes before its beginning, without which it could not be found.
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self.bytes = 0


def common(one: TokenIds[int], other: TokenIds[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for n, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return n
    return min(len(one), len(other))


def _hashes(token_ids: TokenIds[int]) -> Iterator[bytes]:
    """A hash for each whole block of a text, of everything up to its end."""
    digest = hashlib.blake2b(digest_size=16)
    ids = np.asarray(token_ids, np.int32)
    for end in range(BLOCK, len(ids) + 1, BLOCK):
        digest.update(ids[end - BLOCK : end].tobytes())
        yield digest.digest()
