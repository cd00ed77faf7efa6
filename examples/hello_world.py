"""Completes one prompt with the best model that is here."""

# isort: off  (on Paddle 2.6 this import has to come before paddlenlp's)
import paddlenlp_codegen_task  # noqa: F401  (registers the task)
from paddlenlp import Taskflow

codegen = Taskflow("code_generation")
print(codegen("def hello_world():"))
