"""Runs the Paddle graph: by Paddle Inference, or eagerly for debugging."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import paddle

from paddlenlp_codegen_task.export import paddle_graph
from paddlenlp_codegen_task.export.paddle_graph import Tensor
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import device as devices
from paddlenlp_codegen_task.runtime.base import Ids, StepOutput, pack
from paddlenlp_codegen_task.runtime.kv_cache import KVCache, Place, SlotBySlot

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
    seen = f"sees {gpus}" if paddle.is_compiled_with_cuda() else "is built for CPUs only"
    return devices.parse(device, gpus, f"is no GPU here: this Paddle {seen}; use 'cpu'")


def versions(device_id: int | None) -> dict[str, str]:
    """What an exported graph depends on beside the weights; not on the device."""
    return {"graph": str(paddle_graph.GRAPH_VERSION), "paddle": paddle.__version__}


def export_bytes(config: CodeGenConfig, precision: str) -> int:
    """Size of an export on disk, about."""
    values = sum(math.prod(shape) for shape in paddle_graph.parameter_shapes(config).values())
    return values * int(np.dtype(DTYPES[precision]).itemsize) + 10_000_000


def export(
    weights: FusedWeights,
    folder: Path,
    precision: str,
    device_id: int | None,
    calibration: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write the graph and its weights, the same for every device, into `folder`.

    Raises:
        ValueError: `calibration`, for keys and values in 8 bits, which only ONNX Runtime has.
    """
    if calibration is not None:
        raise ValueError("kv_precision='int8' needs engine='onnxruntime'")
    paddle_graph.save_graph(weights, folder, DTYPES[precision])


def load(
    folder: Path,
    config: CodeGenConfig,
    device_id: int | None,
    num_threads: int,
    precision: str,
    cuda_graph: bool,
) -> PaddleRuntime:
    """Load what `export` wrote, on a GPU or, if `device_id` is None, on the CPU.

    Raises:
        ValueError: `cuda_graph`, which only ONNX Runtime has.
    """
    if cuda_graph:
        raise ValueError("cuda_graph=True needs engine='onnxruntime'")
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
        candidates, candidate_ids, logsumexp, logits = (
            self._predictor.get_output_handle(name) for name in self._predictor.get_output_names()
        )
        small = [one.copy_to_cpu() for one in (candidates, candidate_ids, logsumexp)]
        return StepOutput(small[0], small[1], small[2], logits.copy_to_cpu)


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
            candidates, candidate_ids, logsumexp, logits = paddle_graph.step(
                self._config,
                self._parameters.__getitem__,
                paddle.to_tensor(token_ids, place=self._place),
                paddle.to_tensor(past_lengths, place=self._place),
                paddle.to_tensor(output_rows, place=self._place),
                self._caches,
            )
            small = [one.numpy() for one in (candidates, candidate_ids, logsumexp)]
            return StepOutput(small[0], small[1], small[2], logits.numpy)


def _place(device_id: int | None) -> str:
    return "cpu" if device_id is None else f"gpu:{device_id}"


class PaddleMemory(SlotBySlot):
    """Buffers in Paddle's tensors, [slots * n_head * capacity, head_dim]: see kv_cache.Memory."""

    def __init__(self, config: CodeGenConfig, dtype: str, place: str) -> None:
        self._dtype, self._place = np.dtype(dtype), place
        self._heads, self._head_dim = config.n_head, config.head_dim
        self._rows: dict[tuple[Place, int, int], Tensor] = {}  # the last ones, for every buffer
        self.itemsize = self._dtype.itemsize

    def zeros(self, tokens: int) -> Tensor:
        """See Memory."""
        with paddle_graph.paddle_mode(static=False):
            values = np.zeros((tokens * self._heads, self._head_dim), self._dtype)
            return paddle.to_tensor(values, place=self._place)

    def copy(self, source: Tensor, at: Place, target: Tensor, to: Place, tokens: int) -> None:
        """See Memory."""
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            read, write = self._where(at, 0, tokens), self._where(to, 0, tokens)
            target.scatter_(write, paddle.gather(source, read))

    def read(self, buffer: Tensor, at: Place, first: int, last: int) -> npt.NDArray[Any]:
        """See Memory."""
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            values = paddle.gather(buffer, self._where(at, first, last)).numpy()
        found: npt.NDArray[Any] = values.reshape(self._heads, last - first, self._head_dim)
        return found

    def write(self, buffer: Tensor, at: Place, first: int, values: npt.NDArray[Any]) -> None:
        """See Memory."""
        flat = values.reshape(-1, self._head_dim).astype(self._dtype, copy=False)
        with paddle_graph.paddle_mode(static=False), paddle.no_grad():
            rows = self._where(at, first, first + values.shape[1])
            buffer.scatter_(rows, paddle.to_tensor(flat, place=self._place))

    def _where(self, at: Place, first: int, last: int) -> Tensor:
        """Where tokens of a slot are in a buffer, its rows."""
        key = at, first, last
        if key not in self._rows:
            if len(self._rows) > 1:
                self._rows.clear()
            heads = np.arange(at.slot * self._heads, (at.slot + 1) * self._heads)[:, None]
            rows = heads * at.capacity + np.arange(first, last)
            self._rows[key] = paddle.to_tensor(rows.reshape(-1), place=self._place)
        return self._rows[key]


class PaddleRuntime:
    """A Paddle graph and the KV buffers it writes to, which stay on the device.

    Attributes:
        cache: the keys and values of each slot.
        inputs: name, shape (None where it varies) and dtype of the graph's inputs.
        device_id: the GPU it runs on, None for the CPU.
    """

    same_products = True  # one graph runs everything

    def __init__(
        self, graph: Graph, config: CodeGenConfig, device_id: int | None, dtype: str
    ) -> None:
        self.config = config
        self.device_id = device_id
        self.cache = KVCache(config, PaddleMemory(config, dtype, _place(device_id)))
        self.inputs = paddle_graph.inputs(config, dtype)
        self._graph: Graph | None = graph
        self._bound: tuple[int, int, int] | None = None  # version of the buffers, slot and rows

    def forward(
        self,
        slot: int,
        token_ids: Sequence[Sequence[int]],
        every: bool = False,
        generated: bool = False,
    ) -> StepOutput:
        """Append tokens to consecutive slots and return the last token's logits of each."""
        if self._graph is None:
            raise RuntimeError("this runtime is closed")
        rows = len(token_ids)
        padded, lengths, last = pack(self.cache, slot, token_ids, every)
        wanted = self.cache.version, slot, rows
        if self._bound != wanted:
            size = self.config.n_head * self.cache.capacity
            with paddle_graph.paddle_mode(static=False):
                self._graph.bind(
                    [
                        buffer._slice(slot * size, (slot + rows) * size)
                        for buffer in self.cache.buffers
                    ]
                )
            self._bound = wanted
        output = self._graph.run(padded, lengths, last)
        for row, tokens in enumerate(token_ids):
            self.cache.extended(slot + row, len(tokens))
        return output

    def interrupt(self) -> None:
        """Nothing: Paddle runs a graph to its end."""

    def close(self) -> None:
        """Free the model and its buffers."""
        self._graph = None
        self.cache.clear()
