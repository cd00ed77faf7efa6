"""Puts this package's task and its models into PaddleNLP's Taskflow."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from paddlenlp_codegen_task.model.names import BUILTIN, KNOWN_MODELS, UNNAMED

TASK = "code_generation"
_TASKFLOW = "paddlenlp.taskflow.taskflow"


def register(taskflow: Any = None) -> None:
    """Make `Taskflow("code_generation")` run this package's task, with all of its models.

    Done by `import paddlenlp_codegen_task`; calling it again changes nothing.

    Args:
        taskflow: the module paddlenlp.taskflow.taskflow; imported if it is not given.
    """
    if taskflow is None:
        taskflow = importlib.import_module(_TASKFLOW)
    from paddlenlp_codegen_task.task import CodeGenerationTask

    taskflow.TASKS[TASK] = {
        "models": {
            name: {
                "task_class": CodeGenerationTask,
                "task_flag": f"{TASK}-{name}",
            }
            for name in (*KNOWN_MODELS, BUILTIN, UNNAMED)
        },
        "default": {"model": UNNAMED},
    }


def register_on_import() -> None:
    """Call `register` now if PaddleNLP's Taskflow is loaded, else as soon as it is.

    Importing it takes seconds, which CodeGenerator alone does not need. (The package wrapt offers
    such hooks, but importing that takes a tenth of a fast start.)
    """
    if _TASKFLOW in sys.modules:
        register(sys.modules[_TASKFLOW])
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Finds Taskflow's module as the other finders do, and calls `register` once it is loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _TASKFLOW:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
