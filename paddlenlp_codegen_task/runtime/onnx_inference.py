"""Runs the ONNX graph by ONNX Runtime."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from paddlenlp_codegen_task.export import onnx_files
from paddlenlp_codegen_task.export.candidates import NUM_CANDIDATES
from paddlenlp_codegen_task.model.checkpoint import expected_shapes
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import cuda_graph as cuda_graphs
from paddlenlp_codegen_task.runtime import huge_pages
from paddlenlp_codegen_task.runtime.base import Block, StepOutput, pack
from paddlenlp_codegen_task.runtime.cuda_graph import FixedStep
from paddlenlp_codegen_task.runtime.kv_cache import KVCache

PRECISIONS = tuple(onnx_files.BYTES_PER_VALUE)
_CUDA = "CUDAExecutionProvider"
_OUTPUTS = ("candidates", "candidate_ids", "logits")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def unsupported(config: CodeGenConfig) -> str | None:
    """Why a model of these sizes cannot run, or None: GroupQueryAttention wants multiples of 16."""
    if config.head_dim % 16 or config.rotary_dim % 16:
        return (
            f"head_dim ({config.head_dim}) and rotary_dim ({config.rotary_dim}) must be "
            "divisible by 16"
        )
    return None


def find_device(device: str) -> int | None:
    """Resolve "auto", "cpu", "gpu" or "gpu:N" to a GPU's number, or None for the CPU.

    Raises:
        ValueError: it is none of these, or this ONNX Runtime has no CUDA provider.
    """
    has_cuda = _CUDA in onnxruntime.get_available_providers()
    if device == "cpu" or (device == "auto" and not has_cuda):
        return None
    match = re.fullmatch(r"auto|gpu(?::(\d+))?", device)
    if match is None:
        raise ValueError(f"device must be 'auto', 'cpu', 'gpu' or 'gpu:N', got {device!r}")
    if not has_cuda:
        raise ValueError(
            f"device: {device!r} needs ONNX Runtime's CUDA provider: pip install onnxruntime-gpu, "
            "or use 'cpu'"
        )
    return int(match[1] or 0)


def versions() -> dict[str, str]:
    """What an exported graph depends on beside the weights."""
    return {"graph": str(onnx_files.GRAPH_VERSION), "onnxruntime": onnxruntime.__version__}


def export_bytes(config: CodeGenConfig, precision: str) -> int:
    """Size of an export on disk, about."""
    values = sum(math.prod(shape) for shape in expected_shapes(config).values())
    return int(values * onnx_files.BYTES_PER_VALUE[precision]) + 10_000_000


def export(weights: FusedWeights, folder: Path, precision: str) -> None:
    """Write the graph and its weights into `folder`."""
    try:  # onnx is needed for this only, not to run what it wrote
        from paddlenlp_codegen_task.export import onnx_graph
    except ImportError as error:
        raise ValueError(f"exporting for ONNX Runtime needs: pip install onnx ({error})") from error
    onnx_graph.save_graph(weights, folder, precision)


def load(
    folder: Path,
    config: CodeGenConfig,
    device_id: int | None,
    num_threads: int,
    precision: str,
    *,
    cuda_graph: bool = False,
) -> OnnxRuntime:
    """Load what `export` wrote, on a GPU or, if `device_id` is None, on the CPU."""
    return OnnxRuntime(folder, config, device_id, num_threads, cuda_graph)


class OnnxRuntime:
    """An ONNX graph and the KV buffers it writes to, which stay on the device.

    Attributes:
        inputs: name, shape (None where it varies) and dtype of the graph's inputs.
    """

    def __init__(
        self,
        folder: Path,
        config: CodeGenConfig,
        device_id: int | None,
        num_threads: int,
        cuda_graph: bool = False,
    ) -> None:
        """Load the graph in `folder` on a GPU, or on the CPU if `device_id` is None.

        With `cuda_graph`, decode steps are captured as CUDA graphs and replayed.
        """
        self.config = config
        self.cache = KVCache(config.n_positions)
        self._device = ("cpu", 0) if device_id is None else ("cuda", device_id)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Without VNNI, 8-bit products of unsigned by signed saturate at 16 bits: take slower, exact
        # ones. On processors that have it this changes nothing.
        options.add_session_config_entry("session.x64quantprecision", "1")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device_id is not None:
            providers.insert(0, (_CUDA, {"device_id": device_id}))
        path = str(folder / onnx_files.GRAPH_FILE)
        with huge_pages.advised():
            self._session = onnxruntime.InferenceSession(
                path, options, _capturing(providers) if cuda_graph else providers
            )
        _check_provider(self._session, device_id)
        self.inputs = _inputs(self._session)
        (dtype,) = (dtype for name, _, dtype in self.inputs if name == "key_cache_0")
        self._dtype = np.dtype(dtype)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(folder / onnx_files.COPY_FILE)
        self._copier = onnxruntime.InferenceSession(path, options, providers)
        self._names = [
            (f"{kind}_cache_{layer}", f"{kind}_present_{layer}")
            for layer in range(config.n_layer)
            for kind in ("key", "value")
        ]
        self._buffers: list[Any] = []
        self._binding = self._session.io_binding()
        self._bound: tuple[int, int] | None = None
        self._outputs: dict[int, dict[str, Any]] = {}  # by their rows
        self._bound_rows = 0  # of outputs
        # With CUDA graphs: a step for each number of rows and capacity, until the buffers change.
        self._steps: dict[tuple[int, int], FixedStep] | None = {} if cuda_graph else None
        self._steps_made = 0
        self._run_options = cuda_graphs.run_options(cuda_graphs.NO_CAPTURE)

    def reset(self, slots: int) -> None:
        """Forget all sequences; `slots` new ones are expected. The buffers stay allocated."""
        self.cache.reset(slots)
        self._bound = None

    def forward(
        self, slot: int, token_ids: Sequence[Sequence[int]], every: bool = False
    ) -> StepOutput:
        """Append tokens to consecutive slots and return the last token's logits of each."""
        if self._session is None:
            raise RuntimeError("this runtime is closed")
        rows = len(token_ids)
        padded, lengths, last = pack(self.cache, slot, token_ids, every)
        self._reserve(slot + rows, int(lengths.max()) + padded.shape[1])
        totals = lengths + [len(tokens) for tokens in token_ids]
        inputs: dict[str, np.ndarray[Any, Any]] = {
            "token_ids": padded,
            "last_positions": (totals - 1).astype(np.int32),
            "output_rows": last,
        }
        if self._steps is not None and slot == 0 and padded.shape[1] == 1:
            outputs = self._fixed_step(rows).run(self._session, **inputs)
        else:
            self._bind(slot, rows, len(last))
            inputs["total_length"] = np.asarray(totals.max(), np.int32)
            for name, value in inputs.items():
                self._binding.bind_cpu_input(name, value)
            self._session.run_with_iobinding(self._binding, self._run_options)
            # Kept by us: get_outputs() would wrap every KV buffer anew, at each step.
            outputs = self._outputs[len(last)]
        candidates, candidate_ids, logits = (outputs[name] for name in _OUTPUTS)
        for row, tokens in enumerate(token_ids):
            self.cache.lengths[slot + row] += len(tokens)
        # numpy() shows memory that the next step writes to.
        return StepOutput(candidates.numpy().copy(), candidate_ids.numpy().copy(), logits.numpy)

    def copy(self, source: int, target: int) -> None:
        """Copy the sequence in slot `source` to slot `target`, replacing what is there."""
        self._reserve(target + 1, self.cache.lengths[source])
        shape = self._slots_shape(1)
        size = math.prod(shape) * self._dtype.itemsize
        for buffer in self._buffers:
            start = buffer.data_ptr()
            self._copy(start + source * size, shape, start + target * size, shape)
        self.cache.lengths[target] = self.cache.lengths[source]

    def read(self, slot: int, first: int, last: int) -> Block:
        """Copy the keys and values of tokens `first` to `last` - 1 of a slot to the host."""
        shape = self._slots_shape(1)
        offset = slot * math.prod(shape) * self._dtype.itemsize
        pads = np.array([0, 0, -first, 0, 0, 0, last - self.cache.capacity, 0])
        block = []
        for buffer in self._buffers:
            binding = self._copier.io_binding()
            binding.bind_cpu_input("pads", pads)
            memory = (*self._device, self._dtype, shape, buffer.data_ptr() + offset)
            binding.bind_input("x", *memory)
            binding.bind_output("y", "cpu")
            self._copier.run_with_iobinding(binding)
            block.append(binding.get_outputs()[0].numpy()[0])
        return block

    def write(self, slot: int, block: Block) -> None:
        """Start a sequence in a slot with keys and values that `read` has given from token 0 on."""
        tokens = block[0].shape[1]
        self._reserve(slot + 1, tokens)
        shape = self._slots_shape(1)
        offset = slot * math.prod(shape) * self._dtype.itemsize
        pads = np.array([0, 0, 0, 0, 0, 0, self.cache.capacity - tokens, 0])
        for buffer, part in zip(self._buffers, block, strict=True):
            binding = self._copier.io_binding()
            binding.bind_cpu_input("pads", pads)
            binding.bind_cpu_input("x", part[None])
            memory = (*self._device, self._dtype, shape, buffer.data_ptr() + offset)
            binding.bind_output("y", *memory)
            self._copier.run_with_iobinding(binding)
        self.cache.lengths[slot] = tokens

    def close(self) -> None:
        """Free the model and its buffers."""
        self._session = self._copier = self._binding = None
        self.clear()

    def clear(self) -> None:
        """Free the buffers; new ones are allocated when they are needed."""
        self._buffers.clear()
        self._outputs.clear()
        self.cache.reset(0)
        self._unbind()

    def _unbind(self) -> None:
        """What was bound to buffers that are gone is not to be run any more."""
        self._bound = None
        if self._steps is not None:
            self._steps.clear()

    def _bind(self, slot: int, rows: int, outputs: int) -> None:
        """Prepare steps of consecutive slots with so many rows of outputs."""
        if self._bound != (slot, rows):
            self._binding = self._bound_caches(slot, rows)
            self._bound = slot, rows
        elif self._bound_rows == outputs:
            return
        if outputs not in self._outputs:
            # Those of one row are kept, as drafts come between; of 64 rows, logits are megabytes.
            self._outputs = {n: one for n, one in self._outputs.items() if n == 1}
            devices = (("cpu", 0), ("cpu", 0), self._device)
            self._outputs[outputs] = {
                name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, *device)
                for (name, (shape, dtype)), device in zip(
                    self._output_shapes(outputs).items(), devices, strict=True
                )
            }
        for name, value in self._outputs[outputs].items():
            self._binding.bind_ortvalue_output(name, value)
        self._bound_rows = outputs

    def _output_shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of the graph's outputs but the caches, as _OUTPUTS orders them."""
        vocab_size = self.config.vocab_size
        count = min(NUM_CANDIDATES, vocab_size)
        return {
            "candidates": ((rows, count), np.float32),
            "candidate_ids": ((rows, count), np.int64),
            "logits": ((rows, vocab_size), np.float32),
        }

    def _fixed_step(self, rows: int) -> FixedStep:
        """The decode step of the first slots that is captured as a CUDA graph."""
        assert self._steps is not None
        key = rows, self.cache.capacity
        if key not in self._steps:
            self._steps_made += 1
            self._steps[key] = FixedStep(
                self._bound_caches(0, rows),
                self._device,
                rows,
                self.cache.capacity,
                self._output_shapes(rows),
                str(self._steps_made),
            )
        return self._steps[key]

    def _bound_caches(self, slot: int, rows: int) -> Any:
        """A binding of the graph's caches to consecutive slots, as input and as output."""
        shape = self._slots_shape(rows)
        offset = slot * math.prod(shape[1:]) * self._dtype.itemsize
        binding = self._session.io_binding()
        for (cache, present), buffer in zip(self._names, self._buffers, strict=True):
            memory = (*self._device, self._dtype, shape, buffer.data_ptr() + offset)
            binding.bind_input(cache, *memory)
            binding.bind_output(present, *memory)
        return binding

    def _reserve(self, slots: int, capacity: int) -> None:
        """Grow the buffers if they must hold more, keeping what they hold."""
        old_shape = self._slots_shape(self.cache.slots)
        if not self.cache.grow(slots, capacity):
            return
        self._bound = None
        shape = self._slots_shape(self.cache.slots)
        size = math.prod(shape)
        if not math.prod(old_shape):  # nothing to keep: what was allocated before may be enough
            fit = [buffer.shape()[0] >= size for buffer in self._buffers]
            if len(fit) < len(self._names) or not all(fit):  # growing may have failed midway
                self._unbind()
                self._buffers.clear()
                self._buffers = [self._zeros(size) for _ in self._names]
            return
        self._unbind()
        for i, old in enumerate(self._buffers):
            new = self._zeros(size)
            self._copy(old.data_ptr(), old_shape, new.data_ptr(), shape)
            self._buffers[i] = new

    def _slots_shape(self, slots: int) -> tuple[int, int, int, int]:
        """Shape of so many slots of a buffer."""
        return slots, self.config.n_head, self.cache.capacity, self.config.head_dim

    def _copy(
        self, source: int, source_shape: Sequence[int], target: int, target_shape: Sequence[int]
    ) -> None:
        """Copy between addresses on the device, into the front corner of a larger shape."""
        binding = self._copier.io_binding()
        added = np.subtract(target_shape, source_shape)
        binding.bind_cpu_input("pads", np.concatenate([np.zeros_like(added), added]))
        binding.bind_input("x", *self._device, self._dtype, source_shape, source)
        binding.bind_output("y", *self._device, self._dtype, target_shape, target)
        self._copier.run_with_iobinding(binding)

    def _zeros(self, size: int) -> Any:
        """A flat buffer of zeros: 0 weights times NaN left in fresh memory would still be NaN."""
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(size, self._dtype), *self._device)


def _capturing(providers: list[Any]) -> list[Any]:
    """The same providers, with CUDA graphs where there is CUDA."""
    return [
        (one[0], {**one[1], "enable_cuda_graph": "1"}) if one[0] == _CUDA else one
        for one in providers
    ]


def _check_provider(session: Any, device_id: int | None) -> None:
    """ONNX Runtime goes on without a GPU that it cannot use; say so instead."""
    if device_id is not None and session.get_providers()[0] != _CUDA:
        raise RuntimeError(f"ONNX Runtime cannot use GPU {device_id}; use device='cpu'")


def _inputs(session: Any) -> list[tuple[str, list[int | None], str]]:
    """Name, shape (None where it varies) and dtype of a graph's inputs."""
    found = []
    for one in session.get_inputs():
        shape = [size if isinstance(size, int) else None for size in one.shape]
        found.append((one.name, shape, _DTYPES[one.type]))
    return found
