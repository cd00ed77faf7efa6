"""Completes one prompt with the best model that is here."""

import paddlenlp_codegen_task  # noqa: F401  (registers the task; first, for Paddle 2.6's sake)
from paddlenlp import Taskflow

codegen = Taskflow("code_generation")
print(codegen("def hello_world():"))
