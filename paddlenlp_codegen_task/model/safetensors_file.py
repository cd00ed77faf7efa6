"""Reads .safetensors files; the format: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

from typing import BinaryIO

from safetensors import SafetensorError, safe_open

from paddlenlp_codegen_task.checks import line
from paddlenlp_codegen_task.files import MOST_BYTES, parse_json
from paddlenlp_codegen_task.model.stored_tensor import CheckpointError, FileBytes, StoredTensor

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "U16": "bfloat16",  # PaddleNLP, since numpy has no bfloat16
}


def read_safetensors_file(file: BinaryIO) -> dict[str, StoredTensor]:
    """List the tensors of an open .safetensors file by the names it gives them.

    Raises:
        CheckpointError: the file is truncated or damaged.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > MOST_BYTES:
        raise CheckpointError(f"damaged: its header has {size:,} bytes")
    try:
        # The library checks the header against the file, but hands out no bfloat16 as numpy.
        with safe_open(file.name, framework="np"):
            pass
        header = parse_json(file.read(size))
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"truncated or damaged: {line(str(error))}") from error
    data = file.tell()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        storage = FileBytes(file, data + begin, end - begin)
        dtype = _DTYPES.get(entry["dtype"], entry["dtype"])
        tensors[name] = StoredTensor.contiguous(storage, dtype, tuple(entry["shape"]))
    return tensors
