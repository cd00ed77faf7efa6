"""Puts this package's task and its models into PaddleNLP's Taskflow."""

from __future__ import annotations

import importlib
from typing import Any

from paddlenlp_codegen_task.loading import BUILTIN
from paddlenlp_codegen_task.model.names import SALESFORCE_MODELS, UNNAMED

TASK = "code_generation"


def register(taskflow: Any = None) -> None:
    """Make `Taskflow("code_generation")` run this package's task, with all of its models.

    Done by `import paddlenlp_codegen_task`; calling it again changes nothing.

    Args:
        taskflow: the module paddlenlp.taskflow.taskflow; imported if it is not given.
    """
    if taskflow is None:
        taskflow = importlib.import_module("paddlenlp.taskflow.taskflow")
    from paddlenlp_codegen_task.task import CodeGenerationTask

    taskflow.TASKS[TASK] = {
        "models": {
            name: {
                "task_class": CodeGenerationTask,
                "task_flag": f"{TASK}-{name}",
            }
            for name in (*SALESFORCE_MODELS, BUILTIN, UNNAMED)
        },
        "default": {"model": UNNAMED},
    }
