"""The fused form of CodeGen's weights, as numpy: what both graphs are built from.

CodeGen's block is parallel: one LayerNorm feeds attention and MLP, and both outputs are added to
the residual. So a block needs two matrix products:

    x = x + concat(attention(q, k, v), gelu(fc_in + b_in)) @ w_out + b_out
    with [q | k | v | fc_in] = layer_norm(x) @ w_in
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.model.config import CodeGenConfig

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Block:
    """One layer, float32. H is n_embd, I is n_inner; heads are contiguous within q, k and v."""

    ln_weight: Array  # [H]
    ln_bias: Array  # [H]
    w_in: Array  # [H, 3H + I]: q | k | v | fc_in
    b_in: Array  # [I]; q, k and v have no bias
    w_out: Array  # [H + I, H]: out_proj over fc_out
    b_out: Array  # [H]


class Source(Protocol):
    """Where weights come from: a `Checkpoint`, or one with an adapter."""

    def check(self, config: CodeGenConfig) -> None:
        """Raise CheckpointError unless every weight that `config` asks for is there."""

    def read(self, name: str) -> Array:
        """A weight by its name in the checkpoint; linear ones are [out, in]."""

    def identity(self) -> str:
        """Hex digest that tells these weights from others."""


class FusedWeights:
    """Reads a checkpoint and hands out fused weights, one layer in memory at a time."""

    def __init__(self, checkpoint: Source, config: CodeGenConfig) -> None:
        checkpoint.check(config)
        self._checkpoint = checkpoint
        self.config = config

    def identity(self) -> str:
        """Hex digest that tells these weights from others; part of an export's key."""
        return self._checkpoint.identity()

    def wte(self) -> Array:
        """Token embedding, [vocab_size, H]."""
        return self._checkpoint.read("transformer.wte.weight")

    def block(self, layer: int) -> Block:
        """Fused weights of one layer."""
        prefix = f"transformer.h.{layer}."

        def read(name: str) -> Array:
            return self._checkpoint.read(prefix + name)

        groups = self.config.qkv_groups
        # One after the other: each takes twice its size while it is put together.
        if groups is None:
            qkv = tuple(read(f"attn.{one}_proj.weight") for one in "qkv")
        else:
            qkv = split_qkv(read("attn.qkv_proj.weight"), groups)
        w_in = np.concatenate([*qkv, read("mlp.fc_in.weight")])
        del qkv
        return Block(
            ln_weight=read("ln_1.weight"),
            ln_bias=read("ln_1.bias"),
            w_in=w_in.T,
            b_in=read("mlp.fc_in.bias"),
            w_out=np.concatenate([read("attn.out_proj.weight").T, read("mlp.fc_out.weight").T]),
            b_out=read("mlp.fc_out.bias"),
        )

    def ln_f(self) -> tuple[Array, Array]:
        """Weight and bias of the last LayerNorm, [H] each."""
        return self._checkpoint.read("transformer.ln_f.weight"), self._checkpoint.read(
            "transformer.ln_f.bias"
        )

    def lm_head(self) -> tuple[Array, Array]:
        """Weight [H, vocab_size] and bias [vocab_size]; not tied to wte."""
        return self._checkpoint.read("lm_head.weight").T, self._checkpoint.read("lm_head.bias")


def split_qkv(qkv: Array, groups: int) -> tuple[Array, ...]:
    """Undo the order qkv_proj is stored in.

    Args:
        qkv: [3H, H], groups of rows, each ordered query, value, key.
        groups: how many.

    Returns:
        query, key, value weights, [H, H] each, heads in order.
    """
    width = qkv.shape[1]
    q, v, k = qkv.reshape(groups, 3, -1, width).transpose(1, 0, 2, 3).reshape(3, -1, width)
    return q, k, v


def rotary_tables(config: CodeGenConfig) -> tuple[Array, Array]:
    """Cosine and sine of every position's rotation angles, [n_positions, rotary_dim / 2] each.

    Pair i turns by position / 10000^(2i / rotary_dim) (RoFormer, https://arxiv.org/abs/2104.09864).
    """
    exponent = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
    inverse_frequency = (1.0 / np.power(np.float32(10000.0), exponent)).astype(np.float32)
    positions = np.arange(config.n_positions, dtype=np.float32)
    angles = np.outer(positions, inverse_frequency)
    return np.cos(angles), np.sin(angles)
