"""OpenVINO through optimum-intel: computing in bfloat16, or 8-bit weights and its own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import worker
from huggingface import Generates
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
from transformers import AutoTokenizer


def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
    options: dict[str, Any] = {"load_in_8bit": False}
    if precision == "int8":
        options = {"quantization_config": OVWeightQuantizationConfig(bits=8)}
    made = OVModelForCausalLM.from_pretrained(checkpoint, export=True, compile=False, **options)
    made.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)


def model(folder: Path, precision: str, threads: int) -> Any:
    config = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    if precision == "bf16":
        config["INFERENCE_PRECISION_HINT"] = "bf16"
    return OVModelForCausalLM.from_pretrained(folder, ov_config=config)


def load(folder: Path, precision: str, threads: int) -> Generates:
    return Generates(model(folder, precision, threads), folder)


if __name__ == "__main__":
    worker.main(prepare, load)
