"""CodeGen models with random weights whose greedy completions are worth comparing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from byte_tokenizer import write_byte_tokenizer
from checkpoints import random_tensors, write_paddle, write_safetensors

from paddlenlp_codegen_task import CodeGenerator, GenerationConfig
from paddlenlp_codegen_task.generator import DEFAULT_BATCH_SIZE
from paddlenlp_codegen_task.loading import LoadedModel, LoadOptions, load_model
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights

HEAD_SPREAD = 4.0


def spread_tensors(config: CodeGenConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights whose logits differ by much more than float32 rounds.

    Near-ties would let two correct implementations part ways, and logits that hardly differ would
    let a wrong one pass.
    """
    tensors = random_tensors(config, seed)
    tensors["lm_head.weight"] *= np.float32(HEAD_SPREAD)
    return tensors


class _Tensors:
    """What FusedWeights asks of a checkpoint."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.read = tensors.__getitem__

    def check(self, config: CodeGenConfig) -> None:
        pass


def weights_of(config: CodeGenConfig, tensors: dict[str, np.ndarray]) -> FusedWeights:
    """Weights that are in no file: as such they may be NaN, which reading a checkpoint refuses."""
    return FusedWeights(_Tensors(tensors), config)  # type: ignore[arg-type]


def write_model(
    folder: Path,
    config: CodeGenConfig,
    tensors: dict[str, np.ndarray],
    *,
    paddle_format: bool = False,
    alphabet: range = range(256),
) -> Path:
    """Write a checkpoint with a byte tokenizer; return its folder."""
    (write_paddle if paddle_format else write_safetensors)(folder, tensors, config)
    return write_byte_tokenizer(folder, alphabet)


def open_model(
    folder: Path, home_path: Path, *, engine: str = "paddle", static_mode: bool = True
) -> LoadedModel:
    """Load a checkpoint in float32 on the CPU."""
    options = LoadOptions(
        engine=engine,
        precision="fp32",
        device="cpu",
        num_threads=1,
        home_path=home_path,
        static_mode=static_mode,
    )
    return load_model(folder, options)


def generator_of(model: LoadedModel) -> CodeGenerator:
    """A generator that keeps all text."""
    return CodeGenerator(model, GenerationConfig(truncation=None), DEFAULT_BATCH_SIZE)
