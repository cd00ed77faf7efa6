"""OpenVINO GenAI at each keystroke: continuous batching, which keeps blocks of earlier prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keystroke_worker
import numpy as np
import openvino
import openvino_genai
import tokenizers

CACHE_GB = 1
MOST_TOKENS = 2048  # of a step: the context, so that a prompt is read in one


class GenAI:
    def __init__(self, folder: Path, threads: int) -> None:
        _write_tokenizer(folder)
        config = openvino_genai.SchedulerConfig()
        config.enable_prefix_caching = True
        config.cache_size = CACHE_GB
        config.max_num_batched_tokens = MOST_TOKENS
        properties = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            folder, config, "CPU", properties
        )
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._requests = 0

    def complete(self, prompt: str, new_tokens: int, enough: Callable[[], bool]) -> int:
        ids = self._tokenizer.encode(prompt).ids
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos, config.do_sample = True, False
        self._requests += 1
        handle = self._pipeline.add_request(
            self._requests, openvino.Tensor(np.array([ids], np.int64)), config
        )
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            # A step that runs when the next key comes would hold that up; here none does.
            if handle.can_read() and handle.read() and enough():
                handle.cancel()
                break
        return len(ids)


def _write_tokenizer(folder: Path) -> None:
    """The pipeline wants one of its own kind there; it is given tokens all the same."""
    path = folder / "openvino_tokenizer.xml"
    if not path.exists():
        from openvino_tokenizers import convert_tokenizer
        from transformers import PreTrainedTokenizerFast

        whole = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        made = convert_tokenizer(whole, with_detokenizer=True)
        for model, name in zip(made, ("tokenizer", "detokenizer"), strict=True):
            openvino.save_model(model, folder / f"openvino_{name}.xml")


def load(folder: Path, precision: str, threads: int) -> GenAI:
    return GenAI(folder, threads)


if __name__ == "__main__":
    keystroke_worker.main(load)
