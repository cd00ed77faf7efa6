"""Runs the ONNX graph by ONNX Runtime."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from paddlenlp_codegen_task import interrupts
from paddlenlp_codegen_task.export import onnx_files
from paddlenlp_codegen_task.export.candidates import NUM_CANDIDATES
from paddlenlp_codegen_task.model.checkpoint import expected_shapes
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import cuda_graph as cuda_graphs
from paddlenlp_codegen_task.runtime import device as devices
from paddlenlp_codegen_task.runtime import huge_pages
from paddlenlp_codegen_task.runtime.base import Interrupted, Runtime, StepOutput, pack
from paddlenlp_codegen_task.runtime.cuda_graph import FixedMemory, FixedStep
from paddlenlp_codegen_task.runtime.kv_cache import HostMemory, KVCache
from paddlenlp_codegen_task.runtime.onnx_memory import DeviceMemory
from paddlenlp_codegen_task.runtime.two_products import TwoProducts

PRECISIONS = tuple(onnx_files.BYTES_PER_VALUE)
_CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    "use_tf32": "0",  # by default fp32 is multiplied with 10 bits of fraction
    "arena_extend_strategy": "kSameAsRequested",  # by default it takes up to twice what is needed
}
# Microseconds that threads wait actively for their next work: more than lies between two steps.
_SHORT_SPIN = "1000"
_SMALL_OUTPUTS = ("candidates", "candidate_ids", "logsumexp")  # wanted on the host, every step
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
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
    if _CUDA not in onnxruntime.get_available_providers():
        missing = "needs ONNX Runtime's CUDA provider: pip install onnxruntime-gpu, or use 'cpu'"
        return devices.parse(device, 0, missing)
    gpus = 0 if device == "cpu" else devices.cuda_devices()
    return devices.parse(device, gpus, f"is no GPU here: NVIDIA's driver shows {gpus}; use 'cpu'")


def versions(device_id: int | None) -> dict[str, str]:
    """What an exported graph for a device depends on beside the weights."""
    return {
        "graph": str(onnx_files.GRAPH_VERSION),
        "onnxruntime": onnxruntime.__version__,
        "device": "cpu" if device_id is None else "gpu",
    }


def export_bytes(config: CodeGenConfig, precision: str) -> int:
    """Size of an export on disk, about."""
    values = sum(math.prod(shape) for shape in expected_shapes(config).values())
    return int(values * onnx_files.BYTES_PER_VALUE[precision]) + 10_000_000


def export(
    weights: FusedWeights,
    folder: Path,
    precision: str,
    device_id: int | None,
    calibration: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write the graph and its weights, for a GPU or the CPU, into `folder`.

    With `calibration`, token ids of texts, keys and values are kept in 8 bits: on the CPU.
    """
    try:  # onnx is needed for this only, not to run what it wrote
        with interrupts.not_taken_for_errors():
            from paddlenlp_codegen_task.export import onnx_graph
    except ImportError as error:
        raise ValueError(f"exporting for ONNX Runtime needs: pip install onnx ({error})") from error
    onnx_graph.save_graph(
        weights, folder, precision, on_gpu=device_id is not None, calibration=calibration
    )


def load(
    folder: Path,
    config: CodeGenConfig,
    device_id: int | None,
    num_threads: int,
    precision: str,
    cuda_graph: bool,
) -> Runtime:
    """Load what `export` wrote, on a GPU or, if `device_id` is None, on the CPU."""
    if precision not in onnx_files.PHASES:
        return OnnxRuntime(folder, config, device_id, num_threads, cuda_graph)
    prompts, generated = (
        OnnxRuntime(folder, config, None, num_threads, graph=graph, alternates=True)
        for graph in (onnx_files.PREFILL_FILE, onnx_files.GRAPH_FILE)
    )
    return TwoProducts(prompts, generated)


class OnnxRuntime:
    """An ONNX graph and the KV buffers it writes to, which stay on the device.

    Attributes:
        cache: the keys and values of each slot.
        inputs: name, shape (None where it varies) and dtype of the graph's inputs.
        device_id: the GPU it runs on, None for the CPU.
    """

    same_products = True  # one graph runs everything

    def __init__(
        self,
        folder: Path,
        config: CodeGenConfig,
        device_id: int | None,
        num_threads: int,
        cuda_graph: bool = False,
        graph: str = onnx_files.GRAPH_FILE,
        alternates: bool = False,
    ) -> None:
        """Load a graph of `folder` on a GPU, or on the CPU if `device_id` is None.

        With `cuda_graph`, decode steps are captured as CUDA graphs and replayed. With `alternates`
        another session runs between steps: threads of this one are not to be in its way.
        """
        self.config = config
        self.device_id = device_id
        self._device = ("cpu", 0) if device_id is None else ("cuda", device_id)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Without VNNI, 8-bit products of unsigned by signed saturate at 16 bits: take slower, exact
        # ones. On processors that have it this changes nothing.
        options.add_session_config_entry("session.x64quantprecision", "1")
        if alternates:
            options.add_session_config_entry("session.intra_op.spin_duration_us", _SHORT_SPIN)
        providers: list[Any] = ["CPUExecutionProvider"]
        if device_id is not None:
            _load_cuda()
            providers.insert(0, (_CUDA, {"device_id": device_id, **_CUDA_OPTIONS}))
        path = str(folder / graph)
        with huge_pages.advised():
            self._session = onnxruntime.InferenceSession(
                path, options, _capturing(providers) if cuda_graph else providers
            )
        _check_provider(self._session, device_id)
        self.inputs = _inputs(self._session)
        (dtype,) = (dtype for name, _, dtype in self.inputs if name == "key_cache_0")
        self._dtype = np.dtype(dtype)
        if device_id is None:
            memory: HostMemory | DeviceMemory = HostMemory(config, self._dtype)
        else:
            copier = folder / onnx_files.COPY_FILE
            memory = DeviceMemory(config, self._dtype, copier, providers, self._device)
        self.cache = KVCache(config, memory)
        self._address = memory.address
        self._names = [
            (f"{kind}_cache_{layer}", f"{kind}_present_{layer}")
            for layer in range(config.n_layer)
            for kind in ("key", "value")
        ]
        self._binding = self._session.io_binding()
        self._bound: tuple[int, int, int] | None = None  # version of the buffers, slot and rows
        self._outputs: dict[int, dict[str, Any]] = {}  # by their rows
        self._bound_rows = 0  # of outputs
        # With CUDA graphs: a step for each number of rows, capacity and allocation of the buffers.
        self._steps: dict[tuple[int, int, int], FixedStep] | None = {} if cuda_graph else None
        self._steps_made = 0
        self._fixed: dict[int, FixedMemory] = {}  # what they read and write, by rows
        self._run_options = cuda_graphs.run_options(cuda_graphs.NO_CAPTURE)

    def forward(
        self,
        slot: int,
        token_ids: Sequence[Sequence[int]],
        every: bool = False,
        generated: bool = False,
    ) -> StepOutput:
        """Append tokens to consecutive slots and return the last token's logits of each."""
        if self._session is None:
            raise RuntimeError("this runtime is closed")
        rows = len(token_ids)
        padded, lengths, last = pack(self.cache, slot, token_ids, every)
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
            self._run(self._binding)
            # Kept by us: get_outputs() would wrap every KV buffer anew, at each step.
            outputs = self._outputs[len(last)]
        for row, tokens in enumerate(token_ids):
            self.cache.extended(slot + row, len(tokens))
        # numpy() shows memory that the next step writes to.
        small = [outputs[name].numpy().copy() for name in _SMALL_OUTPUTS]
        return StepOutput(small[0], small[1], small[2], outputs["logits"].numpy)

    def interrupt(self) -> None:
        """See Runtime. ONNX Runtime looks between two nodes; not in a graph that CUDA replays."""
        self._run_options.terminate = True

    def _run(self, binding: Any) -> None:
        """Run the graph; what it may have written behind what slots hold does not count."""
        # New ones for each run: whoever ends one that is over must not end a later one.
        options = self._run_options = cuda_graphs.run_options(cuda_graphs.NO_CAPTURE)
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            if options.terminate:
                raise Interrupted from error
            raise

    def close(self) -> None:
        """Free the model and its buffers."""
        self._session = self._binding = None
        self._outputs.clear()
        self._fixed.clear()
        if self._steps is not None:
            self._steps.clear()
        self.cache.clear()

    def _bind(self, slot: int, rows: int, outputs: int) -> None:
        """Prepare steps of consecutive slots with so many rows of outputs."""
        wanted = self.cache.version, slot, rows
        if self._bound != wanted:
            self._binding = self._bound_caches(slot, rows)
            self._bound = wanted
        elif self._bound_rows == outputs:
            return
        if outputs not in self._outputs:
            # Those of one row are kept, as drafts come between; of 64 rows, logits are megabytes.
            self._outputs = {n: one for n, one in self._outputs.items() if n == 1}
            host = ("cpu", 0)
            self._outputs[outputs] = {
                name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    shape, dtype, *(host if name in _SMALL_OUTPUTS else self._device)
                )
                for name, (shape, dtype) in self._output_shapes(outputs).items()
            }
        for name, value in self._outputs[outputs].items():
            self._binding.bind_ortvalue_output(name, value)
        self._bound_rows = outputs

    def _output_shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of the graph's outputs but the caches."""
        vocab_size = self.config.vocab_size
        count = min(NUM_CANDIDATES, vocab_size)
        return {
            "candidates": ((rows, count), np.float32),
            "candidate_ids": ((rows, count), np.int64),
            "logsumexp": ((rows,), np.float32),
            "logits": ((rows, vocab_size), np.float32),
        }

    def _fixed_step(self, rows: int) -> FixedStep:
        """The decode step of the first slots that is captured as a CUDA graph."""
        assert self._steps is not None
        key = rows, self.cache.capacity, self.cache.allocation
        if key not in self._steps:
            # Of buffers that are gone, nothing is to be run any more.
            self._steps = {k: one for k, one in self._steps.items() if k[2] == key[2]}
            self._steps_made += 1
            few = self._steps_made <= cuda_graphs.MOST_GRAPHS
            graph_id = str(self._steps_made) if few else cuda_graphs.NO_CAPTURE
            if rows not in self._fixed:
                self._fixed[rows] = FixedMemory(self._device, rows, self._output_shapes(rows))
            binding = self._bound_caches(0, rows)
            self._steps[key] = FixedStep(binding, self._fixed[rows], self.cache.capacity, graph_id)
        return self._steps[key]

    def _bound_caches(self, slot: int, rows: int) -> Any:
        """A binding of the graph's caches to consecutive slots, as input and as output."""
        shape = rows, self.config.n_head, self.cache.capacity, self.config.head_dim
        offset = slot * math.prod(shape[1:]) * self._dtype.itemsize
        binding = self._session.io_binding()
        for (cache, present), buffer in zip(self._names, self.cache.buffers, strict=True):
            memory = (*self._device, self._dtype, shape, self._address(buffer) + offset)
            binding.bind_input(cache, *memory)
            binding.bind_output(present, *memory)
        return binding


def _capturing(providers: list[Any]) -> list[Any]:
    """The same providers, with CUDA graphs where there is CUDA."""
    return [
        (one[0], {**one[1], "enable_cuda_graph": "1"}) if one[0] == _CUDA else one
        for one in providers
    ]


def _load_cuda() -> None:
    """Load CUDA's libraries from where pip installs them, which the system's loader does not know.

    What is missing is printed: to standard error, as results may go to standard output.
    """
    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()


def _check_provider(session: Any, device_id: int | None) -> None:
    """ONNX Runtime goes on without a GPU that it cannot use; say so instead."""
    if device_id is not None and session.get_providers()[0] != _CUDA:
        raise RuntimeError(
            f"ONNX Runtime cannot use GPU {device_id}: see what it has said, and whether CUDA's "
            "libraries are there (pip install 'onnxruntime-gpu[cuda]'); or use device='cpu'"
        )


def _inputs(session: Any) -> list[tuple[str, list[int | None], str]]:
    """Name, shape (None where it varies) and dtype of a graph's inputs."""
    found = []
    for one in session.get_inputs():
        shape = [size if isinstance(size, int) else None for size in one.shape]
        found.append((one.name, shape, _DTYPES[one.type]))
    return found
