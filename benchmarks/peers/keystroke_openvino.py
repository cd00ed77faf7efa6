"""OpenVINO through optimum-intel at each keystroke. It keeps nothing of the prompt before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keystroke_worker
import optimum_openvino
import torch
from transformers import AutoTokenizer, StoppingCriteria, StoppingCriteriaList


class Enough(StoppingCriteria):
    """Called after every step."""

    def __init__(self, enough: Callable[[], bool]) -> None:
        self._enough = enough

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self._enough(), dtype=torch.bool)


class Generates:
    def __init__(self, model: Any, folder: Path) -> None:
        self._model = model
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def complete(self, prompt: str, new_tokens: int, enough: Callable[[], bool]) -> int:
        input_ids = torch.tensor([self._tokenizer(prompt)["input_ids"]])
        with torch.inference_mode():
            self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Enough(enough)]),
            )
        return input_ids.shape[1]


def load(folder: Path, precision: str, threads: int) -> Generates:
    return Generates(optimum_openvino.model(folder, precision, threads), folder)


if __name__ == "__main__":
    keystroke_worker.main(load)
