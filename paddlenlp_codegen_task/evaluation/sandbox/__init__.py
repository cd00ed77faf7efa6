"""Untrusted programs run where they can do no harm: `Sandbox` starts them, within `Limits`."""

from paddlenlp_codegen_task.evaluation.sandbox.jail import Running, Sandbox, SandboxUnavailable
from paddlenlp_codegen_task.evaluation.sandbox.limits import Limits

__all__ = ["Limits", "Running", "Sandbox", "SandboxUnavailable"]
