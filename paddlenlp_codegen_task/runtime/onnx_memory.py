"""KV buffers on a GPU, for ONNX Runtime: copies are runs of a small graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.kv_cache import Buffer, Place

_MOST_VALUES = 1 << 30  # of one run: the CUDA kernel counts them in 32 bits

_NO_MEMORY = "Failed to allocate memory"  # ONNX Runtime's arena says so, in a RuntimeError


class DeviceMemory:
    """Buffers in device memory: see kv_cache.Memory.

    The graph pads or cuts a slot [1, n_head, capacity, head_dim] along its tokens, so what is
    copied is a whole slot, whatever it holds.
    """

    def __init__(
        self,
        config: CodeGenConfig,
        dtype: npt.DTypeLike,
        graph: Path,
        providers: list[Any],
        device: tuple[str, int],
    ) -> None:
        """Load the graph that copies; `device` is a name and a number."""
        self._dtype = np.dtype(dtype)
        self._heads, self._head_dim = config.n_head, config.head_dim
        self._device = device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._copier = onnxruntime.InferenceSession(str(graph), options, providers)
        self.itemsize = self._dtype.itemsize

    def zeros(self, tokens: int) -> Buffer:
        """See Memory."""
        width = self._heads * self._head_dim  # of a token
        try:
            buffer = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                [tokens * width], self._dtype, *self._device
            )
        except (RuntimeError, MemoryError) as error:
            if _NO_MEMORY not in str(error) and not isinstance(error, MemoryError):
                raise
            raise MemoryError(
                f"the device has no {tokens * width * self.itemsize:,} bytes left for a buffer of "
                "keys and values: a smaller kv_cache_bytes keeps what there are within its memory"
            ) from error
        # Padding of one token, written by the device: from the host, gigabytes would take seconds.
        # Along tokens alone, for which CUDA has a kernel 20 times as fast as Pad's general one.
        part = max(1, _MOST_VALUES // width)
        for first in range(0, tokens, part):
            count = min(part, tokens - first)
            binding = self._binding(0, count - 1)
            zeros = np.zeros((1, self._heads, 1, self._head_dim), self._dtype)
            binding.bind_cpu_input("x", zeros)
            binding.bind_output("y", *self._part(buffer, first, 1, count))
            self._copier.run_with_iobinding(binding)
        return buffer

    def address(self, buffer: Buffer) -> int:
        """Where a buffer begins."""
        return int(buffer.data_ptr())

    def copy(self, source: Buffer, at: Place, target: Buffer, to: Place, tokens: int) -> None:
        """See Memory."""
        binding = self._binding(0, to.capacity - at.capacity)
        binding.bind_input("x", *self._slot(source, at))
        binding.bind_output("y", *self._slot(target, to))
        self._copier.run_with_iobinding(binding)

    def carry_over(
        self, source: Buffer, before: int, target: Buffer, after: int, lengths: dict[int, int]
    ) -> None:
        """See Memory. Many slots in one run, those that hold nothing as well: runs cost more."""
        slots = max(lengths) + 1
        most = max(1, _MOST_VALUES // (self._heads * max(before, after) * self._head_dim))
        for slot in range(0, slots, most):
            count = min(most, slots - slot)
            binding = self._binding(0, after - before)
            binding.bind_input("x", *self._part(source, slot * before, count, before))
            binding.bind_output("y", *self._part(target, slot * after, count, after))
            self._copier.run_with_iobinding(binding)

    def read(self, buffer: Buffer, at: Place, first: int, last: int) -> npt.NDArray[Any]:
        """See Memory."""
        binding = self._binding(-first, last - at.capacity)
        binding.bind_input("x", *self._slot(buffer, at))
        binding.bind_output("y", "cpu")
        self._copier.run_with_iobinding(binding)
        values: npt.NDArray[Any] = binding.get_outputs()[0].numpy()[0]
        return values

    def write(self, buffer: Buffer, at: Place, first: int, values: npt.NDArray[Any]) -> None:
        """See Memory."""
        values = values.astype(self._dtype, copy=False)
        if first:  # what is before stays, and a slot can be written as a whole only
            before = self.read(buffer, at, 0, first)
            values = np.concatenate([before, values], axis=1)
        binding = self._binding(0, at.capacity - values.shape[1])
        binding.bind_cpu_input("x", np.ascontiguousarray(values[None]))
        binding.bind_output("y", *self._slot(buffer, at))
        self._copier.run_with_iobinding(binding)

    def _binding(self, before: int, after: int) -> Any:
        """A binding with so many tokens added, or taken away, at a slot's ends."""
        binding = self._copier.io_binding()
        pads = np.array([0, 0, before, 0, 0, 0, after, 0], np.int64)
        binding.bind_cpu_input("pads", pads)
        return binding

    def _slot(self, buffer: Buffer, at: Place) -> tuple[Any, ...]:
        """A slot as a binding takes it: device, dtype, shape and address."""
        return self._part(buffer, at.slot * at.capacity, 1, at.capacity)

    def _part(self, buffer: Buffer, first: int, slots: int, capacity: int) -> tuple[Any, ...]:
        """Consecutive slots, from token `first` of all slots on."""
        shape = slots, self._heads, capacity, self._head_dim
        offset = first * self._heads * self._head_dim * self.itemsize
        return (*self._device, self._dtype, shape, self.address(buffer) + offset)
