"""CTranslate2, float32 or int8."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import tokenizers
import worker

TYPES = {"fp32": "float32", "int8": "int8"}


class CTranslate:
    def __init__(self, folder: Path, threads: int) -> None:
        self._generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=threads)
        # It takes tokens by name; transformers would add its own start and memory only for that.
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def generate(self, run: worker.Run) -> list[list[int]]:
        tokens = [one.tokens for one in self._tokenizer.encode_batch(run.prompts)]
        run.prompt_tokens = [len(names) for names in tokens]
        steps = 0

        def callback(result: ctranslate2.GenerationStepResult) -> bool:
            # One call a token of a prompt; a step is over with the last prompt's.
            nonlocal steps
            steps += 1
            if steps % len(run.prompts) == 0:
                run.stamp()
            return False

        results = self._generator.generate_batch(
            tokens,
            max_batch_size=0,
            beam_size=1,
            max_length=run.new_tokens,
            min_length=run.new_tokens,
            include_prompt_in_result=False,
            callback=callback,
        )
        return [result.sequences_ids[0] for result in results]


def prepare(checkpoint: Path, folder: Path, precision: str) -> None:
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    TransformersConverter(str(checkpoint)).convert(
        str(folder), quantization=TYPES[precision], force=True
    )
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)


def load(folder: Path, precision: str, threads: int) -> CTranslate:
    return CTranslate(folder, threads)


if __name__ == "__main__":
    worker.main(prepare, load)
