"""Completes one prompt with the best model that is here."""

# The order matters: Paddle 2.6 needs this package imported before paddlenlp.
# isort: off
import paddlenlp_codegen_task  # noqa: F401  (registers the task)
from paddlenlp import Taskflow

codegen = Taskflow("code_generation")
print(codegen("def hello_world():"))
