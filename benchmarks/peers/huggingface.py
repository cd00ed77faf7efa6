"""Hugging Face transformers on PyTorch: the model as it is, in float32 or bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import worker
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Stamps(StoppingCriteria):
    """Called after every step; stops nothing."""

    def __init__(self, run: worker.Run) -> None:
        self._run = run

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        self._run.stamp()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Generates:
    """Any model with transformers' `generate`."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model = model
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def generate(self, run: worker.Run) -> list[list[int]]:
        input_ids = torch.tensor(self._tokenizer(run.prompts)["input_ids"])
        run.prompt_tokens = [input_ids.shape[1]] * len(input_ids)
        with torch.inference_mode():
            tokens = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=run.new_tokens,
                min_new_tokens=run.new_tokens,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Stamps(run)]),
            )
        return tokens[:, input_ids.shape[1] :].tolist()


def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
    """Keep the weights in the type they run in, so that loading them converts nothing."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=DTYPES[precision])
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)


def load(folder: Path, precision: str, threads: int) -> Generates:
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=DTYPES[precision])
    return Generates(model.eval(), folder)


if __name__ == "__main__":
    worker.main(prepare, load)
