"""CodeGen code completion for PaddleNLP's Taskflow.

`import paddlenlp_codegen_task` makes `Taskflow("code_generation")` run this package's task.
"""

from __future__ import annotations

import importlib

# Paddle 2.6 exports zlib symbols of its own; Python's zlib has to be loaded before it.
import zlib  # noqa: F401
from typing import TYPE_CHECKING, Any

from paddlenlp_codegen_task.registry import register, register_on_import

if TYPE_CHECKING:
    from paddlenlp_codegen_task.generation_config import GenerationConfig
    from paddlenlp_codegen_task.generator import CodeGenerator
    from paddlenlp_codegen_task.requests import Completion, Infill

__version__ = "0.1.0"

__all__ = ["CodeGenerator", "Completion", "GenerationConfig", "Infill", "register"]

# Imported when they are asked for: the command line's help need not wait for NumPy.
_MODULES = {
    "CodeGenerator": "generator",
    "Completion": "requests",
    "GenerationConfig": "generation_config",
    "Infill": "requests",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_on_import()
