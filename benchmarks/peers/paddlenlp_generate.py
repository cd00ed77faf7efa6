"""PaddleNLP: `generate` of its CodeGenForCausalLM, which is what its own Taskflow task calls."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import paddle
import worker
from paddlenlp.transformers import CodeGenConfig, CodeGenForCausalLM
from safetensors.numpy import load_file

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

LINEAR = ("qkv_proj", "out_proj", "fc_in", "fc_out", "lm_head")


class PaddleNLP:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._run: worker.Run | None = None
        self._steps = 0
        model.register_forward_pre_hook(self._step)

    def _step(self, layer: Any, inputs: Any) -> None:
        """The token of a step is there when the next one begins."""
        assert self._run is not None
        if self._steps:
            self._run.stamp()
        self._steps += 1

    def generate(self, run: worker.Run) -> list[list[int]]:
        self._run, self._steps = run, 0
        token_ids = [self._tokenizer.encode(prompt) for prompt in run.prompts]
        run.prompt_tokens = [len(ids) for ids in token_ids]
        tokens, _ = self._model.generate(
            paddle.to_tensor(token_ids),
            max_length=run.new_tokens,
            min_length=run.new_tokens,
            decode_strategy="greedy_search",
            repetition_penalty=1.0,
        )
        result: list[list[int]] = tokens.numpy().tolist()
        run.stamp()
        return result


def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
    """Save as Paddle has it: in float32, the weights of linear layers transposed."""
    values = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    model = CodeGenForCausalLM(CodeGenConfig(**values))
    state = {}
    for path in checkpoint.glob("*.safetensors"):
        for name, value in load_file(path).items():
            is_linear = name.endswith(".weight") and name.split(".")[-2] in LINEAR
            value = value.astype("float32")
            state[name] = paddle.to_tensor(value.T if is_linear else value)
    missing, unexpected = model.set_state_dict(state)
    unexpected = [name for name in unexpected if "attn.masked_bias" not in name]
    if unexpected or any("weight" in name for name in missing):
        raise SystemExit(f"PaddleNLP does not take {checkpoint}: {missing} {unexpected}")
    model.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder)


def load(folder: Path, precision: str, threads: int) -> PaddleNLP:
    paddle.set_device("cpu")
    model = CodeGenForCausalLM.from_pretrained(str(folder))
    model.eval()
    # PaddleNLP's own tokenizer gives more tokens for blanks: then it would read longer prompts.
    return PaddleNLP(model, Tokenizer.from_folder(folder))


if __name__ == "__main__":
    worker.main(prepare, load)
