"""CodeGen code completion for PaddleNLP's Taskflow.

`import paddlenlp_codegen_task` makes `Taskflow("code_generation")` run this package's task.
"""

# Paddle 2.6 exports zlib symbols of its own; Python's zlib has to be loaded before it.
import zlib  # noqa: F401

from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.registry import register, register_on_import
from paddlenlp_codegen_task.requests import Completion

__version__ = "0.1.0"

__all__ = ["CodeGenerator", "Completion", "GenerationConfig", "register"]

register_on_import()
