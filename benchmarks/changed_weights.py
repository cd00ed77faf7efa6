"""A model's weights with a change to all of them, for graphs built as of any others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import Array, Block, FusedWeights


@dataclass(frozen=True)
class Changed:
    """Weights with a change to them; it has what `save_graph` asks of FusedWeights."""

    weights: FusedWeights
    norm: Callable[[Array], Array]  # of a LayerNorm's weight or bias
    matrix: Callable[[str, Array], Array]  # of "w_in", "w_out" and "lm_head"

    @property
    def config(self) -> CodeGenConfig:
        return self.weights.config

    def wte(self) -> Array:
        return self.weights.wte()

    def block(self, layer: int) -> Block:
        block = self.weights.block(layer)
        return replace(
            block,
            ln_weight=self.norm(block.ln_weight),
            ln_bias=self.norm(block.ln_bias),
            w_in=self.matrix("w_in", block.w_in),
            w_out=self.matrix("w_out", block.w_out),
        )

    def ln_f(self) -> tuple[Array, Array]:
        weight, bias = self.weights.ln_f()
        return self.norm(weight), self.norm(bias)

    def lm_head(self) -> tuple[Array, Array]:
        weight, bias = self.weights.lm_head()
        return self.matrix("lm_head", weight), bias


def with_outliers(weights: FusedWeights, dimensions: list[int], factor: float) -> Changed:
    """The same function in fp32; the outputs of its LayerNorms have outliers."""
    scale = np.ones(weights.config.n_embd, np.float32)
    scale[dimensions] = factor
    return Changed(
        weights,
        lambda values: values * scale,
        lambda name, weight: weight if name == "w_out" else weight / scale[:, None],
    )


def in_few_bits(weights: Any, bits: int, size: int, head_bits: int) -> Changed:
    """Weights of the products rounded and back: in an fp32 graph, activations stay floats."""
    return Changed(
        weights,
        lambda values: values,
        lambda name, weight: rounded(weight, head_bits if name == "lm_head" else bits, size),
    )


def rounded(weight: Array, bits: int, size: int) -> Array:
    """What `quantize.blockwise` makes of a weight [in, out] in blocks of `size` inputs."""
    inputs, middle = len(weight), 1 << (bits - 1)
    blocks = np.pad(weight, ((0, -inputs % size), (0, 0))).reshape(-1, size, weight.shape[1])
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scales = np.where(largest == 0, np.float32(1), largest / np.float32(-middle))
    values = np.clip(np.rint(blocks / scales), -middle, middle - 1) * scales
    return cast(Array, values.reshape(-1, weight.shape[1])[:inputs])


def rounded_per_group(values: Array, size: int) -> Array:
    """Values [rows, width] in signed 8 bits and back, with a scale for `size` values of a row."""
    groups = values.reshape(len(values), -1, size)
    scales = np.maximum(np.abs(groups).max(axis=2, keepdims=True), np.float32(1e-30)) / 127
    return cast(Array, (np.rint(groups / scales) * scales).reshape(values.shape))
