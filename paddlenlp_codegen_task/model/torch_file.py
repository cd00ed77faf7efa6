"""Reads PyTorch's .bin files: the zip form of torch >= 1.6 and the plain one before it.

Both hold a pickle in which each tensor is a call of _rebuild_tensor_v2 on a storage outside of
it (torch/serialization.py, _save and _legacy_save).
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from paddlenlp_codegen_task.model.stored_tensor import (
    LIMIT,
    CheckpointError,
    FileBytes,
    StoredTensor,
    as_sizes,
)
from paddlenlp_codegen_task.model.unpickle import unpickle

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
_ZIP_SIGNATURE = b"PK\x03\x04"
# What a checkpoint's pickle, and the directory of its archive, may have; a model of 34 layers with
# its buffers has 200 kB and 50 kB.
_MOST_PICKLE = 32 << 20
_MOST_DIRECTORY = 4 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field


@dataclass(frozen=True)
class _Dtype:
    name: str
    itemsize: int


@dataclass(frozen=True)
class _Storage:
    """A storage as the pickle refers to it."""

    dtype: _Dtype
    key: str
    elements: int

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(file: BinaryIO) -> dict[str, StoredTensor]:
    """List the tensors of an open .bin file by the names it gives them.

    Raises:
        CheckpointError: the file is truncated or damaged, or holds more than tensors.
    """
    is_zip = file.read(4) == _ZIP_SIGNATURE
    file.seek(0)
    state, storages = _open_zip(file) if is_zip else _open_legacy(file)
    if not isinstance(state, dict):
        raise CheckpointError("holds no dictionary of tensors")
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, _Tensor):
            continue
        storage = storages.get(value.storage.key)
        if storage is None or storage.nbytes != value.storage.nbytes:
            raise CheckpointError(f"damaged: the data of {name!r} is missing or of the wrong size")
        dtype = value.storage.dtype.name
        tensors[name] = StoredTensor(storage, dtype, value.shape, value.strides, value.start)
    return tensors


def _open_zip(file: BinaryIO) -> tuple[object, Mapping[str, FileBytes]]:
    records = dict(_zip_records(file))
    root = next((n.removesuffix("data.pkl") for n in records if n.endswith("/data.pkl")), None)
    if root is None:
        raise CheckpointError("damaged: the archive has no data.pkl")
    order = records.get(root + "byteorder")  # absent before torch 2.0
    _require_little_endian(order is None or bytes(_content(order, 6)) == b"little")
    state = _unpickle(io.BytesIO(_content(records[root + "data.pkl"], _MOST_PICKLE)), {})
    data = root + "data/"
    return state, {n.removeprefix(data): r for n, r in records.items() if n.startswith(data)}


class _SmallReads:
    """A file for zipfile, which reads an archive's directory at once and makes objects of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, count: int = -1) -> bytes:
        rest = os.fstat(self._file.fileno()).st_size - self._file.tell()
        if (rest if count < 0 else min(count, rest)) > _MOST_DIRECTORY:
            raise CheckpointError("damaged: its archive lists more than tensors")
        return self._file.read(count)


def _zip_records(file: BinaryIO) -> Iterator[tuple[str, FileBytes]]:
    """Where the archive's records lie; torch stores them uncompressed."""
    try:
        with zipfile.ZipFile(_SmallReads(file)) as archive:
            entries = archive.infolist()
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise CheckpointError("truncated or damaged: not a readable zip archive") from error
    end = file.seek(0, 2)
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError("not written by torch.save: its records are compressed")
        header = entry.header_offset
        if not 0 <= header <= end - _LOCAL_HEADER.size:
            raise CheckpointError("damaged: a record lies outside of the file")
        file.seek(header)
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        offset = header + _LOCAL_HEADER.size + name + extra
        if signature != _ZIP_SIGNATURE or offset + entry.file_size > end:
            raise CheckpointError("damaged: a record lies outside of the file")
        yield entry.filename, FileBytes(file, offset, entry.file_size, entry.CRC)


def _content(record: FileBytes, most: int) -> memoryview:
    if record.nbytes > most:
        raise CheckpointError("damaged: a record other than tensors is too large")
    return record.read(0, record.nbytes)


def _open_legacy(file: BinaryIO) -> tuple[object, Mapping[str, FileBytes]]:
    if _unpickle(file, {}) != _MAGIC_NUMBER or _unpickle(file, {}) != _PROTOCOL_VERSION:
        raise CheckpointError("damaged: not a PyTorch file")
    system = _unpickle(file, {})
    _require_little_endian(isinstance(system, dict) and system.get("little_endian") is True)
    storages: dict[str, _Storage] = {}
    state = _unpickle(file, storages)
    keys = _unpickle(file, {})
    if not isinstance(keys, list):
        raise CheckpointError("damaged: no list of storages")
    offset, end = file.tell(), file.seek(0, 2)
    found = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        file.seek(offset)
        count = file.read(8)  # in elements
        if storage is None or int.from_bytes(count, "little", signed=True) != storage.elements:
            raise CheckpointError("truncated or damaged: a storage is not of its own length")
        found[storage.key] = FileBytes(file, offset + 8, storage.nbytes)
        offset += 8 + storage.nbytes
        if offset > end:
            raise CheckpointError("truncated: the file ends before its data does")
    return state, found


def _require_little_endian(holds: bool) -> None:
    if not holds:
        raise CheckpointError("damaged, or written on a big-endian machine")


def _unpickle(file: BinaryIO, storages: dict[str, _Storage]) -> object:
    """Read one pickle, and note in `storages` those it refers to."""

    def load(reference: object) -> _Storage:
        # ("storage", type, key, location, elements), and None in the legacy form
        match reference:
            case ("storage", _Dtype() as dtype, str(key), _, int(elements), *rest):
                if 0 <= elements < LIMIT and rest in ([], [None]):
                    return storages.setdefault(key, _Storage(dtype, key, elements))
        raise CheckpointError("damaged: refers to something that is not a storage")

    return unpickle(file, _ALLOWED, load)


def _rebuild_tensor(
    storage: object, start: object, shape: object, strides: object, *_: object
) -> _Tensor:
    """Stands in for torch._utils._rebuild_tensor_v2; gradients and hooks follow."""
    if not isinstance(storage, _Storage) or type(start) is not int or not 0 <= start < LIMIT:
        raise CheckpointError("damaged: a tensor without storage")
    return _Tensor(storage, start, as_sizes(shape), as_sizes(strides))


def _rebuild_parameter(tensor: object, *_: object) -> object:
    return tensor


def _ordered_dict() -> dict[str, object]:
    return {}


_ALLOWED: dict[tuple[str, str], object] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "DoubleStorage"): _Dtype("float64", 8),
    ("torch", "FloatStorage"): _Dtype("float32", 4),
    ("torch", "HalfStorage"): _Dtype("float16", 2),
    ("torch", "BFloat16Storage"): _Dtype("bfloat16", 2),
    ("torch", "LongStorage"): _Dtype("int64", 8),
    ("torch", "IntStorage"): _Dtype("int32", 4),
    ("torch", "ShortStorage"): _Dtype("int16", 2),
    ("torch", "CharStorage"): _Dtype("int8", 1),
    ("torch", "ByteStorage"): _Dtype("uint8", 1),
    ("torch", "BoolStorage"): _Dtype("bool", 1),
}
