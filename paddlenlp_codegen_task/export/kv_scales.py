"""Scales of keys and values in 8 bits, as GroupQueryAttention takes them: fixed in the graph.

What lies beyond a scale's reach is cut off without a word, and reach that is not used costs
precision. So scales come from what texts have, with some room above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.reference import run_layer
from paddlenlp_codegen_task.model.weights import Array, Block, rotary_tables

# A scale's reach over the largest value of the texts; docs/quantization.md has what others lose.
ROOM = 2.0


class KVScales:
    """Runs texts through the layers in their order, and has the scales of each."""

    def __init__(self, config: CodeGenConfig, wte: Array, texts: Sequence[Sequence[int]]) -> None:
        """Begin with the embedding.

        Args:
            config: the model's sizes.
            wte: token embedding [vocab_size, H] float32.
            texts: token ids, each from the beginning of a context; none is empty.
        """
        self._config = config
        self._tables = rotary_tables(config)
        self._hidden = [wte[np.asarray(ids)] for ids in texts]

    def of(self, block: Block) -> tuple[Array, Array]:
        """Scales of the next layer's keys and of its values, [n_head, 1, head_dim] float32."""
        keys, values = [], []
        for n, hidden in enumerate(self._hidden):
            cos, sin = (table[: len(hidden)] for table in self._tables)
            self._hidden[n], key, value = run_layer(self._config, block, hidden, cos, sin)
            keys.append(_at_any_position(key, self._config.rotary_dim).max(axis=1))
            values.append(np.abs(value).max(axis=1))
        return _scales(keys), _scales(values)


def _at_any_position(keys: Array, rotary_dim: int) -> Array:
    """Keys' magnitudes, or of what is turned the largest that turning may make of them."""
    largest: Array = np.abs(keys)
    pairs = np.hypot(keys[..., 0:rotary_dim:2], keys[..., 1:rotary_dim:2])
    largest[..., 0:rotary_dim:2] = largest[..., 1:rotary_dim:2] = pairs
    return largest


def _scales(largest: list[Array]) -> Array:
    """Scales [n_head, 1, head_dim] from the largest values of each text, [n_head, head_dim]."""
    scales: Array = np.max(largest, axis=0)[:, None] * np.float32(ROOM / 127)
    scales[scales == 0] = 1
    return scales
