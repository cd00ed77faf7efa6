"""A CodeGen checkpoint folder, whichever library wrote it, read tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from paddlenlp_codegen_task.checks import line, shown
from paddlenlp_codegen_task.files import MOST_BYTES, is_file_name, parse_json
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.paddle_file import read_paddle_file
from paddlenlp_codegen_task.model.safetensors_file import read_safetensors_file
from paddlenlp_codegen_task.model.stored_tensor import CheckpointError, StoredTensor
from paddlenlp_codegen_task.model.torch_file import read_torch_file

Reader: TypeAlias = Callable[[BinaryIO], dict[str, StoredTensor]]

# In the order they are looked for; each may also be <name>.index.json, which names its shards.
_READERS: dict[str, Reader] = {
    "model.safetensors": read_safetensors_file,
    "model_state.pdparams": read_paddle_file,
    "pytorch_model.bin": read_torch_file,
}
_INDEX = ".index.json"

# What older modeling code saves along with the weights; all of it follows from the configuration.
_BUFFER = re.compile(r"\battn\.(bias|masked_bias|causal_mask|scale_attn)$|\binv_freq$")
_LINEAR = re.compile(r"\b(qkv_proj|[qkv]_proj|out_proj|fc_in|fc_out|lm_head)\.weight$")
# These have more outputs than inputs; GPT-J's layout has the second only.
_WIDER = re.compile(r"\b(qkv_proj|fc_in)\.weight$")

_LONGEST_NAME = 200
_MIB = 2**20


class Checkpoint:
    """The weights of one folder, as `open_checkpoint` found them.

    Attributes:
        names: as in Hugging Face's CodeGenForCausalLM, "transformer.h.0.ln_1.weight", or in its
            GPTJForCausalLM, which calls all but q_proj, k_proj and v_proj the same.

    Linear weights are [out, in], whatever the files have. The files stay open until `close`, or
    the end of a `with`; they are read when a tensor is. One thread at a time.
    """

    def __init__(self, files: list[BinaryIO], tensors: dict[str, tuple[str, StoredTensor]]) -> None:
        """Take over open files, the index first if there is one; `tensors` say which is theirs."""
        self.names = tuple(tensors)
        self._files = files
        self._tensors = tensors
        # Paddle has [in, out], also in .safetensors, whose metadata does not tell: PaddleNLP
        # writes "np" there as anyone with numpy does. But qkv_proj always has more outputs.
        wider = sorted(filter(_WIDER.search, tensors), key=lambda name: "qkv_proj" not in name)
        shape = tensors[wider[0]][1].shape if wider else ()
        self._is_in_out = len(shape) == 2 and shape[0] < shape[1]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of what `read` returns; KeyError if there is no tensor of that name."""
        shape = self._tensors[name][1].shape
        return shape[::-1] if self._is_in_out and is_linear(name) else shape

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """Read one tensor: float16, bfloat16, float32 or float64, as C-contiguous float32.

        Raises:
            KeyError: there is no tensor of that name.
            CheckpointError: the file is truncated or damaged, or the tensor holds NaN or infinity.
        """
        file, tensor = self._tensors[name]
        with naming(f"{file}: {name}"):
            values = tensor.read()
        if self._is_in_out and is_linear(name):
            values = np.ascontiguousarray(values.T)
        return values

    def check(self, config: CodeGenConfig) -> None:
        """Raise CheckpointError unless every weight that `config` asks for is here, in its shape.

        Whatever else the files hold does not matter.
        """
        for name, expected in expected_shapes(config).items():
            if name not in self._tensors:
                raise CheckpointError(f"{Path(self._files[0].name).name}: {name} is missing")
            file, tensor = self._tensors[name]
            with naming(f"{file}: {name}"):
                if self.shape(name) != expected:
                    raise CheckpointError(f"expected shape {expected}, found {self.shape(name)}")
                tensor.validate()

    def identity(self) -> str:
        """Hex digest that tells these weights from others, without reading all of them.

        A SHA-256 over each file's name, size, time of modification, and first and last MiB. A
        copy that does not keep the times thus counts as another checkpoint.
        """
        digest = hashlib.sha256()
        for file in self._files:
            status = os.fstat(file.fileno())
            about = [Path(file.name).name, status.st_size, status.st_mtime_ns]
            digest.update(json.dumps(about).encode())
            for start in (0, max(0, status.st_size - _MIB)):
                file.seek(start)
                digest.update(file.read(_MIB))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files; `read` and `identity` then no longer work."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the weights in `folder`: .safetensors, .pdparams or .bin, whole or in shards.

    Only what describes the tensors is read, and a pickle can do nothing but describe tensors.

    Raises:
        FileNotFoundError: there is no weight file of a known name.
        CheckpointError: a file is truncated, damaged or holds other things than tensors, or the
            index and the shards do not match.
    """
    return Checkpoint(*open_tensors(folder, _READERS))


def open_tensors(
    folder: Path, readers: Mapping[str, Reader]
) -> tuple[list[BinaryIO], dict[str, tuple[str, StoredTensor]]]:
    """Open the first file of `readers` that `folder` has, or the shards that its index names.

    Returns:
        the open files, the index first if there is one, and each tensor with its file's name, but
        for what modeling code saves along with the weights.

    Raises:
        FileNotFoundError, CheckpointError: as `open_checkpoint`.
    """
    names = [name + ending for name in readers for ending in ("", _INDEX)]
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} has no weights: looked for {', '.join(names)}")
    read = readers[found.removesuffix(_INDEX)]
    with ExitStack() as on_error:
        files: list[BinaryIO] = []

        def open_file(name: str) -> BinaryIO:
            files.append(on_error.enter_context((folder / name).open("rb")))
            return files[-1]

        if not found.endswith(_INDEX):
            shards: dict[str, list[str] | None] = {found: None}
        else:
            with naming(found):
                shards = {**_read_index(open_file(found), folder)}
        tensors: dict[str, tuple[str, StoredTensor]] = {}
        for shard, listed in shards.items():
            with naming(shard):
                for name, tensor in _weights(read(open_file(shard)), listed):
                    if name in tensors:
                        raise CheckpointError(f"{name} is there twice")
                    tensors[name] = shard, tensor
        on_error.pop_all()
    return files, tensors


def expected_shapes(config: CodeGenConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight of a model; linear weights are [out, in]."""
    hidden, inner, vocab = config.n_embd, config.n_inner, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, hidden)}
    qkv = {"attn.qkv_proj.weight": (3 * hidden, hidden)}
    if config.qkv_groups is None:
        qkv = {f"attn.{one}_proj.weight": (hidden, hidden) for one in "qkv"}
    for layer in range(config.n_layer):
        block: dict[str, tuple[int, ...]] = {
            "ln_1.weight": (hidden,),
            "ln_1.bias": (hidden,),
            **qkv,
            "attn.out_proj.weight": (hidden, hidden),
            "mlp.fc_in.weight": (inner, hidden),
            "mlp.fc_in.bias": (inner,),
            "mlp.fc_out.weight": (hidden, inner),
            "mlp.fc_out.bias": (hidden,),
        }
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {
        "transformer.ln_f.weight": (hidden,),
        "transformer.ln_f.bias": (hidden,),
        "lm_head.weight": (vocab, hidden),
        "lm_head.bias": (vocab,),
    }


def _read_index(file: BinaryIO, folder: Path) -> dict[str, list[str]]:
    """The shards that an index names, each with the tensors it should hold."""
    try:
        index = parse_json(file.read(MOST_BYTES + 1))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no weight_map")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        # The file may be a link to anywhere, as in Hugging Face's cache; its name may not.
        if not is_file_name(shard) or not (folder / shard).is_file():
            raise CheckpointError(f"{shown(shard)}, for {line(name)}, is not a file of this folder")
        shards.setdefault(shard, []).append(name)
    return shards


def _weights(
    stored: dict[str, StoredTensor], listed: list[str] | None
) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a file that are weights, under the names CodeGenForCausalLM gives them.

    `listed` are those that an index says are there; None stands for all.
    """
    for name in stored if listed is None else listed:
        if len(name) > _LONGEST_NAME:
            raise CheckpointError(f"damaged: a tensor's name has {len(name):,} characters")
        if name not in stored:
            raise CheckpointError(f"{name} is missing, which the index names")
        if not _BUFFER.search(name):
            # A bare CodeGenModel saves them without the prefix.
            yield full_name(name), stored[name]


def full_name(name: str) -> str:
    """The name of a weight of a bare model in one with a head."""
    return "transformer." + name if name.startswith(("wte.", "h.", "ln_f.")) else name


def is_linear(name: str) -> bool:
    """Whether a weight is a linear layer's, which Paddle stores as [in, out]."""
    return _LINEAR.search(name) is not None


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put `where` before the message of a CheckpointError, and keep it to one line."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(" ".join(f"{where}: {error}".split())) from error
