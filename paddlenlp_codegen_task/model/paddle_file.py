"""Reads Paddle's .pdparams files.

They are pickles of a dictionary of numpy arrays (paddle/framework/io.py, save), with the arrays'
bytes inside. Before protocol 4 an array of more than 2^30 - 1 bytes is cut into flat slices
(io_utils.py, _unpack_saved_dict), and in protocol 2 bytes are a text of code points below 256.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import BinaryIO

from paddlenlp_codegen_task.model.stored_tensor import (
    CheckpointError,
    FileBytes,
    Storage,
    StoredTensor,
    as_sizes,
    row_major,
)
from paddlenlp_codegen_task.model.unpickle import Span, StandIn, unpickle

_SLICED = "UnpackBigParamInfor@@"  # spelled so by Paddle
# Paddle hands bfloat16, which numpy lacks, to numpy as uint16.
_DTYPES = {
    "f2": "float16",
    "u2": "bfloat16",
    "f4": "float32",
    "f8": "float64",
    "b1": "bool",
    "i1": "int8",
    "u1": "uint8",
    "i2": "int16",
    "i4": "int32",
    "u4": "uint32",
    "i8": "int64",
    "u8": "uint64",
}


@dataclass(frozen=True)
class _TextBytes:
    """Bytes stored as UTF-8 text, one code point a byte."""

    text: FileBytes
    nbytes: int

    def read(self, start: int, count: int) -> memoryview:
        utf8 = self.text.read(0, self.text.nbytes).tobytes()
        try:
            content = bytearray(utf8.decode("utf-8").encode("latin-1"))
        except ValueError as error:
            raise CheckpointError("damaged: its data is not bytes as text") from error
        if len(content) != self.nbytes:
            raise CheckpointError("damaged: its data is of the wrong length")
        return memoryview(content)[start : start + count]


@dataclass(frozen=True)
class _Joined:
    """Several runs of bytes, one behind the other."""

    parts: tuple[Storage, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def read(self, start: int, count: int) -> memoryview:
        whole = bytearray().join(part.read(0, part.nbytes) for part in self.parts)
        return memoryview(whole)[start : start + count]


@dataclass(frozen=True)
class _Dtype(StandIn):
    code: str

    def build(self, state: object) -> None:
        """(version, byte order, ...): "<" is little-endian, "|" for single bytes."""
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|"):
            raise CheckpointError("holds numbers that are not little-endian")

    @property
    def itemsize(self) -> int:
        return int(self.code[1])


class _Array(StandIn):
    """Stands in for numpy.ndarray."""

    def __init__(self) -> None:
        self.dtype = _Dtype("f4")
        self.shape: tuple[int, ...] = (0,)
        self.data: Span | str = Span(0, 0)
        self.is_fortran = False

    def build(self, state: object) -> None:
        """(version, shape, dtype, is_fortran, bytes), as ndarray.__reduce__ says."""
        match state:
            case (1, shape, _Dtype() as dtype, bool(is_fortran), Span() | str() as data):
                self.shape, self.dtype = as_sizes(shape), dtype
                self.is_fortran, self.data = is_fortran, data
            case _:
                raise CheckpointError("damaged: not the state of an array of numbers")

    def stored(self, file: BinaryIO, name: str) -> StoredTensor:
        nbytes = math.prod(self.shape) * self.dtype.itemsize
        data = self.data
        if isinstance(data, str):  # a short text, which was not left in the file
            utf8 = data.encode()
            file, data = io.BytesIO(utf8), Span(0, len(utf8), is_text=True)
        raw = FileBytes(file, data.offset, data.nbytes)
        storage: Storage = raw
        # UTF-8 takes one or two bytes for a code point below 256.
        if data.is_text and nbytes <= data.nbytes <= 2 * nbytes:
            storage = _TextBytes(raw, nbytes)
        if storage.nbytes != nbytes:
            raise CheckpointError(f"damaged: {name!r} has {storage.nbytes} bytes, not {nbytes}")
        strides = row_major(self.shape)
        if self.is_fortran:
            strides = row_major(self.shape[::-1])[::-1]
        return StoredTensor(storage, _DTYPES[self.dtype.code], self.shape, strides)


def read_paddle_file(file: BinaryIO) -> dict[str, StoredTensor]:
    """List the tensors of an open .pdparams file by the names it gives them.

    Raises:
        CheckpointError: the file is truncated or damaged, or holds more than arrays.
    """
    state = unpickle(file, _ALLOWED)
    if not isinstance(state, dict):
        raise CheckpointError("holds no dictionary of arrays")
    tensors = {}
    for name, value in state.items():
        match value:
            # The second is what paddle.save makes of a tensor in a nested dictionary.
            case _Array() | (str(), _Array()):
                array = value[1] if isinstance(value, tuple) else value
                tensors[name] = array.stored(file, name)
    _join_slices(tensors, state.get(_SLICED, {}))
    return tensors


def _join_slices(tensors: dict[str, StoredTensor], info: object) -> None:
    """Replace slices by what they were cut from: {name: {"OriginShape":, "slices": [names]}}."""
    if not isinstance(info, dict):
        raise CheckpointError(f"damaged: {_SLICED} is not a dictionary")
    for name, entry in info.items():
        match entry:
            case {"OriginShape": shape, "slices": list(names)}:
                # Taken out, so that a name given twice is missing the second time.
                parts = [tensors.pop(part, None) for part in names if isinstance(part, str)]
            case _:
                raise CheckpointError(f"damaged: {name!r} is not described as slices")
        found = [part for part in parts if part is not None]
        if len(found) != len(names) or len({part.dtype for part in found}) != 1:
            raise CheckpointError(f"damaged: {name!r} lacks slices")
        joined = _Joined(tuple(part.storage for part in found))
        tensors[name] = StoredTensor.contiguous(joined, found[0].dtype, as_sizes(shape))


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(data: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.build((1, shape, dtype, order == "F", data))
    return array


def _dtype(code: object, *_: object) -> _Dtype:
    if not isinstance(code, str):
        raise CheckpointError("damaged: the type of an array has no name")
    if code not in _DTYPES:
        raise CheckpointError(f"refused to load an array of type {code!r}: not numbers")
    return _Dtype(code)


def _encode(text: object, encoding: object) -> object:
    """Stands in for _codecs.encode; the text is taken for bytes where an array needs them."""
    if encoding != "latin1" or not isinstance(text, str | Span):
        raise CheckpointError("damaged: bytes in an unknown encoding")
    return text


def _ordered_dict() -> dict[str, object]:
    return {}


def _tuple(items: object) -> object:
    return items


def _nothing(*_: object) -> None:
    """Stands in for a numpy scalar, which is no weight."""


_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("builtins", "tuple"): _tuple,
    ("__builtin__", "tuple"): _tuple,
    ("collections", "OrderedDict"): _ordered_dict,
}
for _numpy in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _ALLOWED[_numpy + ".multiarray", "_reconstruct"] = _reconstruct
    _ALLOWED[_numpy + ".multiarray", "scalar"] = _nothing
    _ALLOWED[_numpy + ".numeric", "_frombuffer"] = _frombuffer
