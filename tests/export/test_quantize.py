"""Weights in few bits: what is stored means what was given."""

from __future__ import annotations

import numpy as np
import pytest

from paddlenlp_codegen_task.export.quantize import BLOCK, blockwise, per_channel, per_row


def random_weight(inputs: int, outputs: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((inputs, outputs)).astype(np.float32)


def dequantized(values: np.ndarray, scales: np.ndarray, bits: int, inputs: int) -> np.ndarray:
    """Undo `blockwise`, as the description of MatMulNBits has it."""
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1).reshape(*values.shape[:2], -1)
    centred = values.astype(np.float32) - (1 << (bits - 1))
    outputs = len(values)
    weight = centred * scales.reshape(outputs, -1, 1)
    return weight.reshape(outputs, -1)[:, :inputs].T


def test_per_channel() -> None:
    weight = random_weight(50, 7)
    weight[:, 3] = 0
    values, scales = per_channel(weight)
    assert values.dtype == np.int8
    assert np.abs(values[:, [0, 1, 2, 4, 5, 6]]).max(axis=0).tolist() == [127] * 6
    assert np.abs(values * scales - weight).max() <= scales.max() / 2 * 1.001
    assert not values[:, 3].any()


def test_per_row() -> None:
    table = random_weight(9, 40)
    values, scales = per_row(table)
    assert values.shape == table.shape
    assert scales.shape == (9, 1)
    assert np.all(np.abs(values * scales - table) <= scales / 2 * 1.001)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [64, 128, 200])
def test_blockwise(bits: int, inputs: int) -> None:
    weight = random_weight(inputs, 6)
    weight[:, 2] = 0
    values, scales = blockwise(weight, bits)
    blocks = -(-inputs // BLOCK[bits])
    assert values.shape == (6, blocks, BLOCK[bits] * bits // 8)
    assert scales.shape == (6 * blocks,)
    found = dequantized(values, scales, bits, inputs)
    step = np.abs(scales.reshape(6, blocks)).repeat(BLOCK[bits], axis=1)[:, :inputs].T
    # At the far end of the range, which has one value less, the error may be a whole step.
    assert np.all(np.abs(found - weight) <= step * 1.001)
    assert np.mean(np.abs(found - weight) <= step / 2 * 1.001) > 0.98
    largest = np.abs(weight).argmax(axis=0)
    of_largest = weight[largest, range(6)]
    np.testing.assert_allclose(found[largest, range(6)], of_largest, rtol=1e-6)
