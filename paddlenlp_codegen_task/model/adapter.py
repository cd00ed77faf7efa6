"""LoRA adapters of peft and of PaddleNLP, added to a checkpoint's weights as they are read.

LoRA (https://arxiv.org/abs/2106.09685) trains, for some of the weights W, two small matrices, and
the model computes with W + scale * B @ A (`lora_scaling`). So a merged model costs nothing more to
run. An adapter may also hold weights in full, which replace the model's.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from paddlenlp_codegen_task.files import read_json
from paddlenlp_codegen_task.model.checkpoint import (
    Checkpoint,
    expected_shapes,
    full_name,
    is_linear,
    naming,
    open_tensors,
)
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.lora_scaling import Scaling
from paddlenlp_codegen_task.model.names import LORA_CONFIG, PEFT_CONFIG
from paddlenlp_codegen_task.model.paddle_file import read_paddle_file
from paddlenlp_codegen_task.model.safetensors_file import read_safetensors_file
from paddlenlp_codegen_task.model.stored_tensor import CheckpointError, StoredTensor
from paddlenlp_codegen_task.model.torch_file import read_torch_file
from paddlenlp_codegen_task.model.weights import Array

_PEFT_READERS = {
    "adapter_model.safetensors": read_safetensors_file,
    "adapter_model.bin": read_torch_file,
}
_LORA_READERS = {"lora_model_state.pdparams": read_paddle_file}

_PEFT_PREFIX = "base_model.model."
# What peft puts into the names of weights that it saves in full.
_WRAPPED = re.compile(r"\.(modules_to_save|base_layer|original_module)(?=\.)")
_FACTOR = re.compile(r"\.lora_(embedding_)?([AB])(\.weight)?$")


@dataclass
class _Change:
    """What becomes of one weight: tensors by their names in the file."""

    module: str
    full: str | None = None
    factors: dict[str, str] = field(default_factory=dict)  # "A" and "B"
    is_embedding: bool = False


class Adapter:
    """The adapter of one folder, as `open_adapter` found it.

    Attributes:
        identity: hex digest of its files: a copy is the same adapter.
    """

    def __init__(
        self,
        files: list[BinaryIO],
        tensors: dict[str, tuple[str, StoredTensor]],
        scaling: Scaling,
        is_in_out: bool,
        identity: str,
    ) -> None:
        """Take over open files; `is_in_out` says that matrices are stored as Paddle does."""
        self.identity = identity
        self._files = files
        self._tensors = tensors
        self._scaling = scaling
        self._is_in_out = is_in_out
        self._changes: dict[str, _Change] = {}
        for name in tensors:
            self._sort(name)

    def _sort(self, name: str) -> None:
        """Find out which weight a tensor changes."""
        plain = full_name(_WRAPPED.sub("", name.removeprefix(_PEFT_PREFIX)))
        factor = _FACTOR.search(plain)
        module = plain[: factor.start()] if factor else plain.rpartition(".")[0]
        weight = module + ".weight" if factor else plain
        change = self._changes.setdefault(weight, _Change(module))
        if factor is None:
            taken, change.full = change.full, name
        else:
            taken, change.factors[factor[2]] = change.factors.get(factor[2]), name
            change.is_embedding = factor[1] is not None
        if taken is not None:
            raise CheckpointError(f"{self._file(name)}: {name} and {taken} are the same tensor")

    def check(self, config: CodeGenConfig) -> None:
        """Raise CheckpointError unless all of it belongs to a model of these sizes."""
        shapes = expected_shapes(config)
        for weight, change in self._changes.items():
            names = [*change.factors.values(), *([change.full] if change.full else [])]
            with naming(f"{self._file(names[0])}: {names[0]}"):
                if weight not in shapes:
                    raise CheckpointError("is not of a weight of this model, or no LoRA of it")
                self._check_change(change, shapes[weight])

    def _check_change(self, change: _Change, expected: tuple[int, ...]) -> None:
        for name in (*change.factors.values(), *([change.full] if change.full else [])):
            self._tensors[name][1].validate()
        if change.full is not None:
            found = self._shape(change.full, is_linear(change.module + ".weight"))
            if found != expected:
                raise CheckpointError(f"expected shape {expected}, found {found}")
        if not change.factors:
            return
        if missing := {"A", "B"} - change.factors.keys():
            raise CheckpointError(f"has no lora_{missing.pop()} beside it")
        a, b = (self._shape(change.factors[one], True) for one in "AB")
        rows, columns = expected[::-1] if change.is_embedding else expected
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != (rows, columns):
            raise CheckpointError(
                f"lora_A {a} and lora_B {b} are no factors of a weight of shape {expected}"
            )
        self._scaling.check(change.module, a[0])

    def apply(self, name: str, values: Array) -> Array:
        """A weight with what the adapter makes of it.

        Args:
            name: as in `Checkpoint.names`.
            values: the checkpoint's, [out, in] if it is a linear layer's; may be changed.

        Raises:
            CheckpointError: the adapter's file is damaged, or the sum is beyond float32.
        """
        change = self._changes.get(name)
        if change is None:
            return values
        if change.full is not None:
            values = self._read(change.full, is_linear(name))
        if change.factors:
            a, b = (self._read(change.factors[one], True) for one in "AB")
            b = b * np.float32(self._scaling.of(change.module))
            with np.errstate(over="ignore", invalid="ignore"):
                values = values + ((b @ a).T if change.is_embedding else b @ a)
            if not np.isfinite(values).all():
                factor = change.factors["B"]
                raise CheckpointError(f"{self._file(factor)}: {factor}: {name} is then infinite")
        return values

    def close(self) -> None:
        """Close the files; `apply` then no longer works."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _file(self, name: str) -> str:
        return self._tensors[name][0]

    def _shape(self, name: str, is_matrix: bool) -> tuple[int, ...]:
        shape = self._tensors[name][1].shape
        return shape[::-1] if is_matrix and self._is_in_out else shape

    def _read(self, name: str, is_matrix: bool) -> Array:
        with naming(f"{self._file(name)}: {name}"):
            values = self._tensors[name][1].read()
        return values.T if is_matrix and self._is_in_out else values


class Merged:
    """A checkpoint with an adapter, a tensor at a time: what `FusedWeights` reads."""

    def __init__(self, checkpoint: Checkpoint, adapter: Adapter) -> None:
        self._checkpoint = checkpoint
        self._adapter = adapter

    def check(self, config: CodeGenConfig) -> None:
        """As `Checkpoint.check`, and the same of the adapter."""
        self._checkpoint.check(config)
        self._adapter.check(config)

    def read(self, name: str) -> Array:
        """As `Checkpoint.read`."""
        return self._adapter.apply(name, self._checkpoint.read(name))

    def identity(self) -> str:
        """That of the checkpoint: the adapter has its own."""
        return self._checkpoint.identity()


def open_adapter(folder: Path) -> Adapter:
    """Open the adapter in `folder`, as peft or PaddleNLP saves one.

    Raises:
        FileNotFoundError: the folder has no adapter.
        ValueError: its configuration is damaged, or asks for what is not supported; CheckpointError
            where that is of its tensors.
    """
    is_peft = (folder / PEFT_CONFIG).is_file()
    config = folder / (PEFT_CONFIG if is_peft else LORA_CONFIG)
    if not config.is_file():
        raise FileNotFoundError(
            f"adapter: {folder} has no {PEFT_CONFIG}, as peft writes it, and no {LORA_CONFIG}, as "
            "PaddleNLP does"
        )
    values = read_json(config)
    try:
        scaling = Scaling.of_peft(values) if is_peft else Scaling.of_paddlenlp(values)
    except ValueError as error:
        raise ValueError(f"adapter: {config} {error}") from None
    files, tensors = open_tensors(folder, _PEFT_READERS if is_peft else _LORA_READERS)
    try:
        identity = _digest(config, files)
        return Adapter(files, tensors, scaling, not is_peft, identity)
    except BaseException:
        for file in files:
            file.close()
        raise


def _digest(config: Path, files: list[BinaryIO]) -> str:
    digest = hashlib.sha256(config.read_bytes())
    for file in files:
        file.seek(0)
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
