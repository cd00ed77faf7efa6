"""Prompts through one graph, what is generated through another, over the same keys and values.

Products of many rows and of one want different weights: 8-bit ones with 8-bit activations are
computed fastest, 4-bit ones are read fastest.
"""

from __future__ import annotations

from collections.abc import Sequence

from paddlenlp_codegen_task.runtime.base import Runtime, StepOutput


class TwoProducts:
    """Two runtimes of a model on the CPU, as one. See Runtime for its attributes."""

    same_products = False

    def __init__(self, prompts: Runtime, generated: Runtime) -> None:
        """Run prompts on one, all else on the other; the buffers of the other serve both."""
        prompts.cache = generated.cache
        self.config = generated.config
        self.cache = generated.cache
        self.inputs = generated.inputs
        self.device_id = generated.device_id
        self._prompts, self._generated = prompts, generated

    def forward(
        self,
        slot: int,
        token_ids: Sequence[Sequence[int]],
        every: bool = False,
        generated: bool = False,
    ) -> StepOutput:
        """Append tokens to consecutive slots and return the last token's logits of each."""
        runtime = self._generated if generated else self._prompts
        return runtime.forward(slot, token_ids, every, generated)

    def interrupt(self) -> None:
        """Have the step that runs raise Interrupted as soon as it can; from any thread."""
        self._prompts.interrupt()
        self._generated.interrupt()

    def close(self) -> None:
        """Free the model and its buffers."""
        self._prompts.close()
        self._generated.close()
