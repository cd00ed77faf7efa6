"""The small models that are attacked."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .outcomes import Failure, check

if TYPE_CHECKING:
    import numpy as np

    from paddlenlp_codegen_task import CodeGenerator
    from paddlenlp_codegen_task.model.config import CodeGenConfig

PROMPT = "def f(x):"
# ONNX Runtime wants heads of 16, and a byte tokenizer has 257 tokens.
SIZES = {"vocab_size": 257, "n_positions": 128, "n_embd": 64, "rotary_dim": 16, "n_inner": 256}
PATIENCE = 60.0  # seconds that a forked process may take on a busy machine


def config() -> CodeGenConfig:
    """Sizes that both engines run."""
    from checkpoints import TINY

    return dataclasses.replace(TINY, **SIZES)


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of these sizes."""
    from random_models import spread_tensors

    return spread_tensors(config(), seed)


def write_model(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint in safetensors' format, once; return its folder."""
    from random_models import write_model as write

    if not (folder / "written").exists():
        write(folder, config(), tensors(seed))
        (folder / "written").touch()
    return folder


def load(checkpoint: Path, home: Path, engine: str, precision: str = "fp32") -> CodeGenerator:
    """Load a checkpoint, or export it first, on one thread of the CPU."""
    from paddlenlp_codegen_task import CodeGenerator

    return CodeGenerator.from_pretrained(
        checkpoint, engine=engine, precision=precision, device="cpu", num_threads=1, home_path=home
    )


def output(generator: CodeGenerator) -> list[Any]:
    """What a model makes of a prompt, to the last bit; in values that JSON has."""
    (completion,) = generator.generate(
        PROMPT, max_length=6, decode_strategy="greedy_search", truncation=None, logprobs=1
    )[0]
    assert completion.logprobs is not None
    numbers = [sorted(one.items()) for one in completion.logprobs]
    found: list[Any] = json.loads(
        json.dumps([completion.text, completion.token_ids, completion.prompt_tokens, numbers])
    )
    return found


class Child:
    """A forked process that computes something, and may be killed."""

    def __init__(self, compute: Callable[[], Any], result: Path) -> None:
        """Start it; what it finds, or the error that it meets, goes by way of the file `result`."""
        self._result = result
        result.unlink(missing_ok=True)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                try:
                    found = {"value": compute()}
                except Exception as error:
                    name = f"{type(error).__module__}.{type(error).__qualname__}"
                    found = {"error": str(error), "type": name}
                draft = result.with_name(result.name + ".draft")
                draft.write_text(json.dumps(found), encoding="utf-8")
                draft.rename(result)
            finally:
                os._exit(0)

    def kill(self) -> bool:
        """End it where it is; return whether it still ran."""
        os.kill(self._pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(self._pid, 0)[1])

    def wait(self) -> dict[str, Any]:
        """{"value":} or {"error":, "type":} of it; a Failure if it hangs or crashes."""
        deadline = time.monotonic() + PATIENCE
        while not (ended := os.waitpid(self._pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.kill()
                raise Failure(f"a process has not ended in {PATIENCE:.0f} s")
            time.sleep(0.002)
        check(self._result.exists(), f"a process has crashed, with status {ended[1]}")
        found: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
        return found
