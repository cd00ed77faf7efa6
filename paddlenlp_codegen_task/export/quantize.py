"""Weights in 8 and 4 bits, as the operators of ONNX Runtime take them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.model.weights import Array

Bytes = npt.NDArray[np.uint8]
Int8 = npt.NDArray[np.int8]

# Values of one column that share a scale. Larger blocks are faster and less exact.
BLOCK = {8: 128, 4: 128}

_PART = 1 << 20  # values quantized at a time


def per_channel(weight: Array) -> tuple[Int8, Array]:
    """Quantize a weight [in, out] to signed 8 bits, symmetric, with one scale a column.

    Returns:
        values [in, out] int8, and scales [out] float32: weight is about values * scales.
    """
    values = np.empty(weight.shape, np.int8)
    scales = np.empty(weight.shape[1], np.float32)
    for part in _columns(weight):
        scale = np.abs(weight[:, part]).max(axis=0) / np.float32(127)
        scale[scale == 0] = 1
        values[:, part] = np.rint(weight[:, part] / scale)
        scales[part] = scale
    return values, scales


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
    values = np.empty((outputs, blocks, block * bits // 8), np.uint8)
    scales = np.empty((outputs, blocks, 1), np.float32)
    for part in _columns(weight):
        padded = np.zeros((part.stop - part.start, blocks * block), np.float32)
        padded[:, :inputs] = weight[:, part].T
        groups = padded.reshape(-1, blocks, block)
        largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2, keepdims=True), axis=2)
        scale = largest / np.float32(-middle)
        scale[scale == 0] = 1
        rounded = np.clip(np.rint(groups / scale) + middle, 0, 2 * middle - 1).astype(np.uint8)
        if bits == 4:
            rounded = rounded[..., 0::2] | (rounded[..., 1::2] << np.uint8(4))
        values[part], scales[part] = rounded, scale
    return values, scales.reshape(-1)


def _columns(weight: Array) -> Iterator[slice]:
    """Columns of a weight [in, out] to quantize at a time, as that takes several copies of them."""
    inputs, outputs = weight.shape
    step = max(1, _PART // inputs)
    for start in range(0, outputs, step):
        yield slice(start, min(start + step, outputs))
