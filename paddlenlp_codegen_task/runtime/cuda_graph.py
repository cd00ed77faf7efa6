"""A decode step at fixed addresses, which ONNX Runtime can capture as a CUDA graph.

Its CUDA provider records the kernels of a run under `gpu_graph_id`, and launches them all at once
in later runs of that id: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
A run is repeated until it has been captured: a step may be, as it writes where its inputs say.
On a CPU the id means nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

NO_CAPTURE = "-1"
MOST_GRAPHS = 256  # of a session, which keeps each until it ends; further steps are not captured


def run_options(graph_id: str) -> Any:
    """Options for a run that is captured, or replayed, under this id."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph_id)
    return options


class FixedMemory:
    """What a step reads and writes beside the KV buffers, and where that stays.

    Attributes:
        outputs: by name.
    """

    def __init__(
        self,
        device: tuple[str, int],
        rows: int,
        outputs: dict[str, tuple[tuple[int, ...], Any]],
    ) -> None:
        """Allocate it.

        Args:
            device: name and number.
            rows: sequences.
            outputs: shape and dtype of each output but the buffers.
        """
        allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._inputs = {
            "token_ids": allocate((rows, 1), np.int64, *device),
            "last_positions": allocate((rows,), np.int32, *device),
            "output_rows": allocate((rows,), np.int64, *device),
        }
        self._written: dict[str, bytes] = {}
        self.outputs = {
            name: allocate(shape, dtype, *device) for name, (shape, dtype) in outputs.items()
        }

    def bind(self, binding: Any) -> None:
        """Add it to a binding."""
        for name, value in self._inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in self.outputs.items():
            binding.bind_ortvalue_output(name, value)

    def write(self, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
        """Put the inputs there, but those that are there: a write waits for the device."""
        for name, value in inputs.items():
            if self._written.get(name) != (content := value.tobytes()):
                self._inputs[name].update_inplace(np.ascontiguousarray(value))
                self._written[name] = content


class FixedStep:
    """One token for each of some rows, from and to memory that stays where it is.

    It serves as long as the KV buffers it was bound to are there and do not grow.
    """

    def __init__(self, binding: Any, memory: FixedMemory, capacity: int, graph_id: str) -> None:
        """Add to a binding, which has the KV buffers, all else that the step reads and writes.

        Args:
            binding: of the session that will run it.
            memory: may be that of other steps too; one of them runs at a time.
            capacity: tokens that a slot of the buffers has room for.
            graph_id: no other step of the session may have it, unless it is NO_CAPTURE.
        """
        self._binding, self._memory = binding, memory
        self._options = run_options(graph_id)
        memory.bind(binding)
        # Read on the host, so a captured graph keeps what it was: an upper bound for all steps.
        self._total_length = np.array(capacity, np.int32)
        binding.bind_cpu_input("total_length", self._total_length)

    def run(self, session: Any, **inputs: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Run with these inputs; return the outputs, on the device until the next run."""
        self._memory.write(inputs)
        session.run_with_iobinding(self._binding, self._options)
        return self._memory.outputs
