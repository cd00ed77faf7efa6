"""Attention over the KV buffers from plain operators, for ONNX graphs in float32 on a GPU.

ONNX Runtime's GroupQueryAttention, which all other graphs use, has float16 and bfloat16 on CUDA
only: in float32 it would run on the CPU, and every buffer would travel there and back each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from paddlenlp_codegen_task.model.config import CodeGenConfig

PLAIN_OPSET = 24  # that of TensorScatter
_LOWEST = np.float32(-3e38)  # a score that softmax makes 0

# Adds a node: (operator, inputs, outputs or None, domain, **attributes) -> its first output's name.
Node = Callable[..., str]
Constant = Callable[[str, Any], None]


class PlainAttention:
    """What GroupQueryAttention computes, and writes, from the same inputs.

    Tokens of a row follow those it holds. A row that is padded on the right, as several begin
    together, writes its padding as well, and its next token goes over that.
    """

    def __init__(self, node: Node, constant: Constant, config: CodeGenConfig, domain: str) -> None:
        """Add what all layers share: positions, and what a token may see.

        Numbers are counted on the device, as those of shapes are on the host: one copied from
        there would keep a step out of a CUDA graph.
        """
        self._node, self._config, self._domain = node, config, domain
        constant("zero", [0])
        constant("one", [1])
        constant("last", np.int64(-1))
        constant("second_and_fourth", [1, 3])
        constant("split_heads", [0, 0, config.n_head, config.head_dim])
        constant("join_heads", [0, 0, config.n_embd])
        constant("scale", np.float32(1 / math.sqrt(config.head_dim)))
        constant("lowest", _LOWEST)

        counts = self._counts(["token_ids"], "one")  # [B, T], 1 to T
        length = node("Gather", [counts, "last"], axis=1)
        totals = node("Add", [node("Cast", ["last_positions"], to=TensorProto.INT64), "one"])
        self._past = node("Max", [node("Sub", [totals, length]), "zero"])  # [B]
        behind = node("Add", [node("Unsqueeze", [self._past, "one"]), counts])
        self._positions = node("Sub", [behind, "one"])  # [B, T]
        columns = self._counts(["key_cache_0"], "zero", start=2, end=3)  # [capacity], from 1
        self._visible = node(  # [B, 1, T, capacity]
            "LessOrEqual", [columns, node("Unsqueeze", [behind, "second_and_fourth"])]
        )

    def layer(self, qkv: str, layer: int) -> str:
        """Attention of qkv [B, T, 3 * n_embd]; writes key_present and value_present of a layer."""
        node = self._node
        query, key, value = names = [f"h{layer}_{part}" for part in ("query", "key", "value")]
        node("Split", [qkv], names, axis=-1, num_outputs=3)
        keys, values = (
            node(
                "TensorScatter",
                [f"{kind}_cache_{layer}", self._heads(x), self._past],
                [f"{kind}_present_{layer}"],
                axis=-2,
            )
            for kind, x in (("key", self._rotated(key)), ("value", value))
        )
        scaled = node("Mul", [self._heads(self._rotated(query)), "scale"])
        scores = node("MatMul", [scaled, node("Transpose", [keys], perm=[0, 1, 3, 2])])
        weights = node("Softmax", [node("Where", [self._visible, scores, "lowest"])], axis=-1)
        mixed = node("Transpose", [node("MatMul", [weights, values])], perm=[0, 2, 1, 3])
        return node("Reshape", [mixed, "join_heads"])

    def _counts(self, shaped: list[str], axis: str, **part: int) -> str:
        """The numbers from 1 on along an axis of the (part of the) shape of something."""
        one = numpy_helper.from_array(np.ones(1, np.int64))
        ones = self._node("ConstantOfShape", [self._node("Shape", shaped, **part)], value=one)
        return self._node("CumSum", [ones, axis])

    def _rotated(self, x: str) -> str:
        return self._node(
            "RotaryEmbedding",
            [x, self._positions, "rotary_cos", "rotary_sin"],
            domain=self._domain,
            interleaved=1,
            num_heads=self._config.n_head,
            rotary_embedding_dim=self._config.rotary_dim,
        )

    def _heads(self, x: str) -> str:
        """[B, T, n_embd] as [B, heads, T, head_dim]."""
        split = self._node("Reshape", [x, "split_heads"])
        return self._node("Transpose", [split], perm=[0, 2, 1, 3])
