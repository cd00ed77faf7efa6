"""Cutting a completion where a programmer would stop: pure text, without a model or tokens."""

from paddlenlp_codegen_task.truncation.presets import PRESETS
from paddlenlp_codegen_task.truncation.truncator import DEFAULT_TRUNCATION, Scanner, Truncator

__all__ = ["DEFAULT_TRUNCATION", "PRESETS", "Scanner", "Truncator"]
