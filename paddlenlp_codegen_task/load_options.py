"""Where and how a model is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.model.qkv_groups import MOST_GROUPS
from paddlenlp_codegen_task.runtime import device, engines


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a model runs; see `CodeGenerator.from_pretrained`."""

    engine: engines.EngineName = "auto"
    precision: engines.Precision = "auto"
    kv_precision: engines.KVPrecision = "auto"
    device: str = "auto"
    num_threads: int | None = None
    home_path: str | os.PathLike[str] | None = None
    from_hf_hub: bool = False
    static_mode: bool = True
    cuda_graph: bool = False
    qkv_groups: int | None = None
    adapter: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Make each option a plain value of Python's, or say why that cannot be."""
        found: dict[str, Any] = {
            "engine": checks.choice("engine", self.engine, engines.ENGINES),
            "precision": checks.choice("precision", self.precision, engines.PRECISIONS),
            "kv_precision": checks.choice("kv_precision", self.kv_precision, engines.KV_PRECISIONS),
            "device": device.checked(self.device),
        }
        for name in ("from_hf_hub", "static_mode", "cuda_graph"):
            found[name] = checks.boolean(name, getattr(self, name))
        if self.num_threads is not None:
            cores = os.cpu_count() or 1
            most, why = max(256, 4 * cores), f" on a machine with {cores} cores"
            found["num_threads"] = checks.integer("num_threads", self.num_threads, 1, most, why)
        if self.qkv_groups is not None:
            found["qkv_groups"] = checks.integer("qkv_groups", self.qkv_groups, 1, MOST_GROUPS)
        if self.adapter is not None:
            expected = "a folder's path or a repository's name"
            found["adapter"] = checked_model("adapter", self.adapter, expected)
        if self.home_path is not None:
            found["home_path"] = checks.path("home_path", self.home_path)
        for name, value in found.items():
            object.__setattr__(self, name, value)

    @property
    def home(self) -> Path:
        """PaddleNLP's home, where models and exports are kept."""
        if self.home_path is not None:
            return Path(self.home_path)
        if home := os.environ.get("PPNLP_HOME"):
            return checks.path("PPNLP_HOME", home)
        return checks.path("home_path", "~/.paddlenlp")

    @property
    def threads(self) -> int:
        """CPU threads to run on: all that this process may use, unless told."""
        return self.num_threads or len(os.sched_getaffinity(0))


def checked_model(
    name: str, value: Any, expected: str = "a model's name or a folder's path"
) -> str | Path:
    """Return a name, or a folder's path, or raise an error that calls it `name`."""
    path = checks.path(name, value, expected)
    return checks.text(value) or path
