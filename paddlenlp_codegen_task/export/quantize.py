"""Weights in 8 and 4 bits, as the operators of ONNX Runtime take them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.model.weights import Array

Bytes = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]

# Values of one column that share a scale. Larger blocks are faster and less exact.
BLOCK = {8: 128, 4: 32}


def per_channel(weight: Array) -> tuple[Int8, Array]:
    """Quantize a weight [in, out] to signed 8 bits, symmetric, with one scale a column.

    Returns:
        values [in, out] int8, and scales [out] float32: weight is about values * scales.
    """
    scales = np.abs(weight).max(axis=0) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales


def per_row(table: Array) -> tuple[Int8, Array]:
    """Quantize an embedding table [rows, width] to signed 8 bits with one scale a row [rows, 1]."""
    values, scales = per_channel(table.T)
    return np.ascontiguousarray(values.T), scales[:, None]


def blockwise(weight: Array, bits: int) -> tuple[Bytes, Array]:
    """Quantize a weight [in, out] in blocks of BLOCK[bits] inputs, as MatMulNBits takes it.

    The zero point is the middle of the range, which is that operator's default. The scale is
    signed, so that the value of largest magnitude in a block is met exactly.

    Returns:
        values [out, blocks, BLOCK * bits / 8] uint8, the lower half of a byte first, and scales
        [out * blocks] float32.
    """
    block, middle = BLOCK[bits], 1 << (bits - 1)
    inputs, outputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.float32)
    padded[:, :inputs] = weight.T
    groups = padded.reshape(outputs, blocks, block)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2, keepdims=True), axis=2)
    scales = largest / np.float32(-middle)
    scales[scales == 0] = 1
    values: Bytes = np.clip(np.rint(groups / scales) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        values = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return values, scales.reshape(-1)
