"""A tensor that still lies in its file: where its bytes are, and how to read them."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

# bfloat16, which numpy lacks, is the upper half of a float32.
_READABLE = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}
_MOST_AXES = 8
LIMIT = 2**60  # no number of elements or bytes in a file is so large
_BLOCK = 16 << 20  # bytes read at once for a checksum


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, unsafe or not CodeGen's. The message is one line."""


class Storage(Protocol):
    """A run of bytes that a tensor, or several, are views of."""

    @property
    def nbytes(self) -> int:
        """Its length."""

    def read(self, start: int, count: int) -> memoryview:
        """Return `count` bytes from `start`, writable.

        Raises:
            CheckpointError: the file ends too early or fails its checksum.
        """


@dataclass
class FileBytes:
    """Bytes of an open file, with the CRC-32 they must have, if the format says one."""

    file: BinaryIO
    offset: int
    nbytes: int
    crc: int | None = None  # or it has been checked

    def read(self, start: int, count: int) -> memoryview:
        """See Storage. The first time, the whole run is read if its checksum is to be checked."""
        found = self._read(self.offset + start, count)
        if self.crc is not None:
            if self.crc != (zlib.crc32(found) if count == self.nbytes else self._checksum()):
                raise CheckpointError("damaged: its checksum does not match")
            self.crc = None  # else each of many tensors in one storage would read all of it
        return found

    def _checksum(self) -> int:
        crc = 0
        for start in range(0, self.nbytes, _BLOCK):
            crc = zlib.crc32(self._read(self.offset + start, min(_BLOCK, self.nbytes - start)), crc)
        return crc

    def _read(self, offset: int, count: int) -> memoryview:
        # Asked before the bytes are, so that a false length cannot take all memory.
        if offset + count > self.file.seek(0, 2):
            raise CheckpointError("truncated: the file ends before its data does")
        self.file.seek(offset)
        out, done = memoryview(bytearray(count)), 0
        while done < count:  # one call reads at most 2 GiB on Linux
            got = self.file.readinto(out[done:])  # type: ignore[attr-defined]
            if not got:
                raise CheckpointError("truncated: the file ends before its data does")
            done += got
        return out


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint file, not read yet.

    `strides` and `start` count elements of the storage; `dtype` is numpy's name of the type, or
    "bfloat16".
    """

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0

    @classmethod
    def contiguous(cls, storage: Storage, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
        """A tensor that is all of its storage, last axis fastest."""
        return cls(storage, dtype, shape, row_major(shape))

    def validate(self) -> None:
        """Raise CheckpointError unless this is a floating point tensor within its storage."""
        if self.dtype not in _READABLE:
            raise CheckpointError(f"stored as {self.dtype}, weights must be floating point")
        if len(self.shape) != len(self.strides) or 0 in self.shape or self.start < 0:
            raise CheckpointError(f"damaged: not a view of anything, with shape {self.shape}")
        elements = self.storage.nbytes // self._itemsize
        # The second rules out what strides of 0 could make of a few bytes.
        if self.start + self._extent() > elements or math.prod(self.shape) > elements:
            raise CheckpointError(f"damaged: {self.shape} does not fit its {elements} elements")

    def read(self) -> npt.NDArray[np.float32]:
        """Read the tensor as it is stored, widened or narrowed to float32, C-contiguous.

        Raises:
            CheckpointError: it does not lie within its storage, the file is truncated or
                damaged, or the tensor holds NaN or infinity.
        """
        self.validate()
        size = self._itemsize
        raw = self.storage.read(self.start * size, self._extent() * size)
        values: npt.NDArray[Any] = np.lib.stride_tricks.as_strided(
            np.frombuffer(raw, _READABLE[self.dtype]),
            self.shape,
            # An axis of one element may have any stride, also one too large for numpy.
            [step * size * (n > 1) for n, step in zip(self.shape, self.strides, strict=True)],
        )
        if self.dtype == "bfloat16":
            bits = np.ascontiguousarray(values, "<u4")
            bits <<= 16
            values = bits.view("<f4")
        with np.errstate(over="ignore"):  # a float64 out of range is reported below
            result = np.ascontiguousarray(values.astype(np.float32, copy=False))
        if not np.isfinite(result).all():
            raise CheckpointError("holds NaN or infinity: the file is damaged")
        return result.reshape(self.shape)

    @property
    def _itemsize(self) -> int:
        return int(_READABLE[self.dtype][-1])

    def _extent(self) -> int:
        """Elements of the storage from the tensor's first to its last."""
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((n - 1) * step for n, step in steps)


def as_sizes(value: object) -> tuple[int, ...]:
    """Return `value` if it can be a shape or strides, else raise CheckpointError."""
    if not isinstance(value, tuple) or len(value) > _MOST_AXES:
        raise CheckpointError("damaged: a tensor's shape must be a short tuple")
    if any(type(n) is not int or n < 0 for n in value):
        raise CheckpointError("damaged: a tensor's shape must be whole numbers")
    if any(n >= LIMIT for n in value):
        raise CheckpointError("damaged: a tensor's shape is beyond any file")
    return value


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a tensor whose last axis is fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
