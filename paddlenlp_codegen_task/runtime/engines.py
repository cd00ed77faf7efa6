"""The two engines: what each offers, and which one runs a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, cast, get_args

from paddlenlp_codegen_task import interrupts
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.base import Runtime

# Modules that export a graph and run it; each has the functions of `Engine`.
MODULES = {
    "paddle": "paddlenlp_codegen_task.runtime.paddle_inference",
    "onnxruntime": "paddlenlp_codegen_task.runtime.onnx_inference",
}
EngineName = Literal["auto", "paddle", "onnxruntime"]
Precision = Literal["auto", "fp32", "fp16", "int8", "int8_weight_only", "int4", "int4_int8"]
KVPrecision = Literal["auto", "int8"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
KV_PRECISIONS: tuple[KVPrecision, ...] = get_args(KVPrecision)


class Engine(Protocol):
    """What a module of MODULES offers."""

    PRECISIONS: tuple[str, ...]

    def unsupported(self, config: CodeGenConfig) -> str | None:
        """Why a model of these sizes cannot run, or None if it can."""

    def find_device(self, device: str) -> int | None:
        """Number of the GPU that `device` means, or None for the CPU; ValueError if none."""

    def versions(self, device_id: int | None) -> dict[str, str]:
        """What an export for a device depends on beside the weights and the precision."""

    def export_bytes(self, config: CodeGenConfig, precision: str) -> int:
        """Size of an export on disk, about."""

    def export(
        self,
        weights: FusedWeights,
        folder: Path,
        precision: str,
        device_id: int | None,
        calibration: Sequence[Sequence[int]] | None,
    ) -> None:
        """Write the graph and its weights, for a GPU or the CPU, into `folder`.

        With `calibration`, token ids of texts, keys and values are kept in 8 bits, with the scales
        that these texts ask for; ValueError if the engine cannot.
        """

    def load(
        self,
        folder: Path,
        config: CodeGenConfig,
        device_id: int | None,
        num_threads: int,
        precision: str,
        cuda_graph: bool,
    ) -> Runtime:
        """Load what `export` wrote; ValueError if it cannot capture CUDA graphs and should."""


def choose(
    name: str,
    precision: str,
    kv_precision: str,
    device: str,
    static_mode: bool,
    config: CodeGenConfig,
) -> tuple[str, Engine]:
    """The engine asked for by name, or for "auto" the best one, with its name.

    Raises:
        ValueError: it is not installed, or cannot run a model of these sizes.
    """
    if not static_mode:
        if name == "onnxruntime":
            raise ValueError("static_mode=False runs Paddle eagerly: with it use engine='paddle'")
        name = "paddle"
    if name == "auto":
        name = "onnxruntime" if kv_precision == "int8" else _best(precision, device, config)
    engine = load_engine(name)
    reason = engine.unsupported(config)
    if reason is not None:
        raise ValueError(f"engine {name!r} cannot run this model: {reason}; use engine='paddle'")
    return name, engine


def _best(precision: str, device: str, config: CodeGenConfig) -> str:
    """Paddle on a GPU that it sees, else ONNX Runtime where it is installed and runs the model."""
    if precision in ("auto", "fp32", "fp16"):  # which both engines have
        if device != "cpu" and _paddle_has_gpu():
            return "paddle"
        if not all(importlib.util.find_spec(module) for module in ("onnx", "onnxruntime")):
            return "paddle"
        if load_engine("onnxruntime").unsupported(config) is not None:
            return "paddle"
    return "onnxruntime"


def _paddle_has_gpu() -> bool:
    """Whether Paddle sees a GPU; asked without importing it, for seconds, where it cannot."""
    from importlib import metadata  # takes a good part of a start where the engine is named

    try:
        metadata.distribution("paddlepaddle-gpu")
    except metadata.PackageNotFoundError:
        return False
    return load_engine("paddle").find_device("auto") is not None


def load_engine(name: str) -> Engine:
    """Import an engine; ValueError says what to install if that fails."""
    try:
        with interrupts.not_taken_for_errors():
            return cast(Engine, importlib.import_module(MODULES[name]))
    except ImportError as error:
        package = {"paddle": "paddlepaddle", "onnxruntime": "onnxruntime onnx"}[name]
        raise ValueError(f"engine {name!r} needs: pip install {package} ({error})") from error


def resolve_precision(
    precision: str, device_id: int | None, engine_name: str, engine: Engine
) -> str:
    """The precision asked for, or the one "auto" means; ValueError if it cannot run."""
    if precision == "auto":
        return "fp32" if device_id is None else "fp16"
    if precision not in engine.PRECISIONS:
        raise ValueError(
            f"precision {precision!r} is not one of engine {engine_name!r}: "
            f"{', '.join(engine.PRECISIONS)}"
        )
    if precision == "fp16" and device_id is None:
        raise ValueError("precision 'fp16' needs a GPU; on a CPU use 'fp32'")
    if precision in ("int8", "int4_int8") and device_id is not None:
        raise ValueError(  # no CUDA kernel multiplies their integers
            f"precision {precision!r} needs a CPU; on a GPU use 'int8_weight_only' or 'int4', or "
            "'fp16'"
        )
    return precision


def resolve_kv_precision(
    kv_precision: str, precision: str, device_id: int | None, engine_name: str
) -> str:
    """What keys and values are kept in: "int8" if asked for, else as the graph has them.

    Raises:
        ValueError: they cannot be kept so there.
    """
    if kv_precision == "int8":
        if engine_name != "onnxruntime" or device_id is not None:
            raise ValueError("kv_precision 'int8' needs engine='onnxruntime' on a CPU")
        return kv_precision
    return "fp32" if precision == "fp32" or device_id is None else "fp16"
