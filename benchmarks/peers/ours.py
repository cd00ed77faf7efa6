"""This package, by ONNX Runtime; `fp32-paddle` by Paddle Inference.

`int4+kv_int8` is int4 with keys and values in 8 bits; `fp32+lookup` guesses ahead by prompt lookup.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import worker

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Forward

LOOKUP = "+lookup"


def generator(folder: Path, precision: str, threads: int, **options: Any) -> CodeGenerator:
    """Load what `prepare` wrote."""
    precision, _, engine = precision.removesuffix(LOOKUP).partition("-")
    precision, _, kept = precision.partition("+kv_")
    return CodeGenerator.from_pretrained(
        folder / "checkpoint",
        engine=engine or "onnxruntime",
        precision=precision,
        kv_precision=kept or "auto",
        num_threads=threads,
        home_path=folder,
        **options,
    )


def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
    (folder / "checkpoint").symlink_to(checkpoint)
    generator(folder, precision, 2).close()


class Ours:
    def __init__(self, generator: CodeGenerator, lookup: bool) -> None:
        self._generator = generator
        self._lookup = lookup
        self._run: worker.Run | None = None
        # A step of the graph stands for its tokens: choosing them takes a fraction of a percent.
        generator.add_step_hook(self._stamp)

    def _stamp(self, step: Forward) -> None:
        assert self._run is not None
        if self._lookup and step.kind == "prefill":  # the last of them gives the first token
            self._run.stamps.clear()
            self._run.rows.clear()
        self._run.stamp(len(step.tokens))

    def generate(self, run: worker.Run) -> list[list[int]]:
        self._run = run
        encode = self._generator.tokenizer.encode
        run.prompt_tokens = [len(encode(prompt)) for prompt in run.prompts]
        completions = self._generator.generate(
            run.prompts,
            batch_size=len(run.prompts),
            max_length=run.new_tokens,
            min_length=run.new_tokens,
            decode_strategy="greedy_search",
            repetition_penalty=1.0,
            truncation=None,
            prompt_lookup=self._lookup,  # without, a token a step, as the others
        )
        # A step that verifies a guess gives several: what is missing has come by the last one.
        missing = max(run.new_tokens - len(run.stamps), 0) if self._lookup else 0
        run.stamps += run.stamps[-1:] * missing
        run.rows += [1] * missing
        # Prompts may take several steps, and those that are done decode meanwhile: the last
        # `new_tokens` steps begin with the one after which every prompt has its first token.
        del run.stamps[: -run.new_tokens], run.rows[: -run.new_tokens]
        return [list(one.token_ids) for (one,) in completions]


def load(folder: Path, precision: str, threads: int) -> Ours:
    return Ours(generator(folder, precision, threads), precision.endswith(LOOKUP))


if __name__ == "__main__":
    worker.main(prepare, load)
