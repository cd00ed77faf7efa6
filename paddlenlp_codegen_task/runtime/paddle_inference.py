"""Runs the Paddle graph: by Paddle Inference, or eagerly for debugging."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import paddle

from paddlenlp_codegen_task.export import paddle_graph
from paddlenlp_codegen_task.export.paddle_graph import Tensor
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.base import Block, Ids, StepOutput, pack
from paddlenlp_codegen_task.runtime.kv_cache import KVCache

DTYPES = {"fp32": "float32", "fp16": "float16"}
PRECISIONS = tuple(DTYPES)


def unsupported(config: CodeGenConfig) -> str | None:
    """Why a model of these sizes cannot run, or None: this engine runs them all."""
    return None


def find_device(device: str) -> int | None:
    """Resolve "auto", "cpu", "gpu" or "gpu:N" to a GPU's number, or None for the CPU.

    Raises:
        ValueError: it is none of these, or there is no such GPU.
    """
    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if device == "cpu" or (device == "auto" and not gpus):
        return None
    match = re.fullmatch(r"auto|gpu(?::(\d+))?", device)
    if match is None:
        raise ValueError(f"device must be 'auto', 'cpu', 'gpu' or 'gpu:N', got {device!r}")
    device_id = int(match[1] or 0)
    if device_id >= gpus:
        seen = f"sees {gpus}" if paddle.is_compiled_with_cuda() else "is built for CPUs only"
        raise ValueError(f"device: there is no {device!r}: this Paddle {seen}; use 'cpu'")
    return device_id


def versions() -> dict[str, str]:
    """What an exported graph depends on beside the weights."""
    return {"graph": str(paddle_graph.GRAPH_VERSION), "paddle": paddle.__version__}


def export_bytes(config: CodeGenConfig, precision: str) -> int:
    """Size of an export on disk, about."""
    values = sum(math.prod(shape) for shape in paddle_graph.parameter_shapes(config).values())
    return values * int(np.dtype(DTYPES[precision]).itemsize) + 10_000_000


def export(weights: FusedWeights, folder: Path, precision: str) -> None:
    """Write the graph and its weights into `folder`."""
    paddle_graph.save_graph(weights, folder, DTYPES[precision])


def load(
    folder: Path, config: CodeGenConfig, device_id: int | None, num_threads: int, precision: str
) -> PaddleRuntime:
    """Load what `export` wrote, on a GPU or, if `device_id` is None, on the CPU."""
    graph = StaticGraph(folder, config, device_id, num_threads)
    return PaddleRuntime(graph, config, device_id, DTYPES[precision])


def load_eager(
    weights: FusedWeights, device_id: int | None, num_threads: int, precision: str
) -> PaddleRuntime:
    """Run the same step op by op, without an export; the threads are all eager Paddle's."""
    paddle.base.core.set_num_threads(num_threads)
    graph = EagerGraph(weights, device_id, DTYPES[precision])
    return PaddleRuntime(graph, weights.config, device_id, DTYPES[precision])


class Graph(Protocol):
    """Something that runs `paddle_graph.step`."""

    def bind(self, caches: Sequence[Tensor]) -> None:
        """Use these key and value buffers, in place, from the next run on."""

    def run(self, token_ids: Ids, past_lengths: Ids, output_rows: Ids) -> StepOutput:
        """Run one step; shapes as in `paddle_graph.step`."""


class StaticGraph:
    """An exported graph in Paddle Inference."""

    def __init__(
        self, folder: Path, config: CodeGenConfig, device_id: int | None, num_threads: int
    ) -> None:
        """Load the graph in `folder` on a GPU, or on the CPU if `device_id` is None."""
        self._predictor = paddle.inference.create_predictor(
            _inference_config(folder, device_id, num_threads)
        )
        names = [name for name, _, _ in paddle_graph.inputs(config, "")]
        handles = [self._predictor.get_input_handle(name) for name in names]
        self._inputs, self._caches = handles[:3], handles[3:]

    def bind(self, caches: Sequence[Tensor]) -> None:
        """Use these key and value buffers, in place, from the next run on."""
        for handle, cache in zip(self._caches, caches, strict=True):
            handle.share_external_data(cache)

    def run(self, token_ids: Ids, past_lengths: Ids, output_rows: Ids) -> StepOutput:
        """Run one step; shapes as in `paddle_graph.step`."""
        for handle, value in zip(self._inputs, (token_ids, past_lengths, output_rows), strict=True):
            handle.copy_from_cpu(value)
        self._predictor.run()
        candidates, candidate_ids, logits = (
            self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()
        )
        return StepOutput(candidates.copy_to_cpu(), candidate_ids.copy_to_cpu(), logits.copy_to_cpu)


def _let_mkl_use_avx2() -> None:
    """Make the MKL of Paddle's wheels (2019) use its AVX2 code on an AMD CPU.

    By itself it takes a slower path there (docs/static_graph.md has figures). MKL reads this
    variable, which that version has and later ones ignore, when it computes its first product.
    """
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        about = cpuinfo.read_text(encoding="utf-8", errors="replace")
        if "AuthenticAMD" in about and " avx2 " in about:
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def _inference_config(folder: Path, device_id: int | None, num_threads: int) -> Any:
    program = next(
        path for path in map(folder.joinpath, paddle_graph.PROGRAM_FILES) if path.is_file()
    )
    config = paddle.inference.Config(str(program), str(folder / paddle_graph.PARAMETERS_FILE))
    if device_id is None:
        _let_mkl_use_avx2()
        config.disable_gpu()
        # Off: in float32 it is slower than the plain kernels at batch 1, and its bfloat16 does not
        # give float32's tokens (docs/static_graph.md has the figures).
        if hasattr(config, "disable_mkldnn"):
            config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(num_threads)
    else:
        config.enable_use_gpu(100, device_id)  # MB of memory to begin with; it grows
    config.disable_glog_info()
    config.switch_ir_optim(True)
    if program.suffix == ".json":
        config.enable_new_ir(True)
        config.enable_new_executor()
    config.enable_memory_optim()
    return config


class EagerGraph:
    """The same step, run op by op from weights: slower, and open to a debugger."""

    def __init__(self, weights: FusedWeights, device_id: int | None, dtype: str) -> None:
        self._config = weights.config
        self._place = _place(device_id)
        with paddle_graph.paddle_mode(static=False):
            self._parameters = {
                name: paddle.to_tensor(
                    np.ascontiguousarray(value, paddle_graph.parameter_dtype(name, dtype)),
                    place=self._place,
                )
                for name, value in paddle_graph.parameters(weights)
            }
        self._caches: list[Tensor] = []

    def bind(self, caches: Sequence[Tensor]) -> None:
        """Use these key and value buffers, in place, from the next run on."""
        self._caches = list(caches)

    def run(self, token_ids: Ids, past_lengths: Ids, output_rows: Ids) -> StepOutput:
        """Run one step; shapes as in `paddle_graph.step`."""
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            candidates, candidate_ids, logits = paddle_graph.step(
                self._config,
                self._parameters.__getitem__,
                paddle.to_tensor(token_ids, place=self._place),
                paddle.to_tensor(past_lengths, place=self._place),
                paddle.to_tensor(output_rows, place=self._place),
                self._caches,
            )
            return StepOutput(candidates.numpy(), candidate_ids.numpy(), logits.numpy)


def _place(device_id: int | None) -> str:
    return "cpu" if device_id is None else f"gpu:{device_id}"


class PaddleRuntime:
    """A Paddle graph and the KV buffers it writes to, which stay on the device.

    Attributes:
        inputs: name, shape (None where it varies) and dtype of the graph's inputs.
    """

    def __init__(
        self, graph: Graph, config: CodeGenConfig, device_id: int | None, dtype: str
    ) -> None:
        self.config = config
        self.cache = KVCache(config.n_positions)
        self._graph: Graph | None = graph
        self._place = _place(device_id)
        self._dtype = dtype
        self.inputs = paddle_graph.inputs(config, dtype)
        self._buffers: list[Tensor] = []
        self._bound: tuple[int, int] | None = None

    def reset(self, slots: int) -> None:
        """Forget all sequences; `slots` new ones are expected. The buffers stay allocated."""
        self.cache.reset(slots)
        self._bound = None

    def forward(
        self, slot: int, token_ids: Sequence[Sequence[int]], every: bool = False
    ) -> StepOutput:
        """Append tokens to consecutive slots and return the last token's logits of each."""
        if self._graph is None:
            raise RuntimeError("this runtime is closed")
        rows = len(token_ids)
        padded, lengths, last = pack(self.cache, slot, token_ids, every)
        self._reserve(slot + rows, int(lengths.max()) + padded.shape[1])
        if self._bound != (slot, rows):
            size = self.config.n_head * self.cache.capacity
            with paddle_graph.paddle_mode(static=False):
                self._graph.bind(
                    [buffer._slice(slot * size, (slot + rows) * size) for buffer in self._buffers]
                )
            self._bound = slot, rows
        output = self._graph.run(padded, lengths, last)
        for row, tokens in enumerate(token_ids):
            self.cache.lengths[slot + row] += len(tokens)
        return output

    def copy(self, source: int, target: int) -> None:
        """Copy the sequence in slot `source` to slot `target`, replacing what is there."""
        self._reserve(target + 1, self.cache.lengths[source])
        length = self.cache.lengths[source]
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            read, write = self._rows(source, 0, length), self._rows(target, 0, length)
            for buffer in self._buffers:
                buffer.scatter_(write, paddle.gather(buffer, read))
        self.cache.lengths[target] = length

    def read(self, slot: int, first: int, last: int) -> Block:
        """Copy the keys and values of tokens `first` to `last` - 1 of a slot to the host."""
        shape = (self.config.n_head, last - first, self.config.head_dim)
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            rows = self._rows(slot, first, last)
            return [paddle.gather(one, rows).numpy().reshape(shape) for one in self._buffers]

    def write(self, slot: int, block: Block) -> None:
        """Start a sequence in a slot with keys and values that `read` has given from token 0 on."""
        tokens = block[0].shape[1]
        self._reserve(slot + 1, tokens)
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            rows = self._rows(slot, 0, tokens)
            for buffer, part in zip(self._buffers, block, strict=True):
                flat = part.reshape(-1, self.config.head_dim)
                buffer.scatter_(rows, paddle.to_tensor(flat, place=self._place))
        self.cache.lengths[slot] = tokens

    def _rows(self, slot: int, first: int, last: int) -> Tensor:
        """Where tokens of a slot are in a buffer [slots * n_head * capacity, head_dim]."""
        heads, capacity = self.config.n_head, self.cache.capacity
        rows = (slot * heads + np.arange(heads)[:, None]) * capacity + np.arange(first, last)
        return paddle.to_tensor(rows.reshape(-1), place=self._place)

    def close(self) -> None:
        """Free the model and its buffers."""
        self._graph = None
        self.clear()

    def clear(self) -> None:
        """Free the buffers; new ones are allocated when they are needed."""
        self._buffers.clear()
        self.cache.reset(0)
        self._bound = None

    def _reserve(self, slots: int, capacity: int) -> None:
        """Grow the buffers if they must hold more, keeping what they hold."""
        old_slots, old_capacity = self.cache.slots, self.cache.capacity
        if not self.cache.grow(slots, capacity):
            return
        self._bound = None
        heads, width = self.config.n_head, self.config.head_dim
        shape = [self.cache.slots, heads, self.cache.capacity, width]
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            if (
                not old_capacity
            ):  # nothing to keep: what was allocated before serves if it is enough
                if not self._fit(math.prod(shape[:3])):
                    self._buffers.clear()
                    self._buffers = [self._zeros(shape) for _ in range(2 * self.config.n_layer)]
                return
            old_shape = [old_slots, heads, old_capacity, width]
            for i, buffer in enumerate(self._buffers):
                self._buffers[i] = self._grown(buffer, old_shape, shape)

    def _fit(self, rows: int) -> bool:
        """Whether all buffers are there with so many rows: growing them may have failed midway."""
        if len(self._buffers) < 2 * self.config.n_layer:
            return False
        return all(buffer.shape[0] >= rows for buffer in self._buffers)

    def _grown(self, buffer: Tensor, old_shape: list[int], shape: list[int]) -> Tensor:
        """A larger buffer [slots, heads, capacity, head_dim], flat, with the old one's content."""
        grown = buffer._slice(0, math.prod(old_shape[:3])).reshape(old_shape)
        for axis in (2, 0):
            extra = [*grown.shape]
            extra[axis] = shape[axis] - extra[axis]
            if extra[axis]:
                grown = paddle.concat([grown, self._zeros(extra).reshape(extra)], axis=axis)
        return grown.reshape([-1, shape[3]])

    def _zeros(self, shape: list[int]) -> Tensor:
        """A flat buffer of zeros: 0 weights times NaN left in fresh memory would still be NaN."""
        flat = [math.prod(shape[:3]), shape[3]]
        return paddle.to_tensor(np.zeros(flat, self._dtype), place=self._place)
