"""CTranslate2 at each keystroke. It keeps nothing of the prompt before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ctranslate2
import keystroke_worker
import tokenizers


class CTranslate:
    def __init__(self, folder: Path, threads: int) -> None:
        self._generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=threads)
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def complete(self, prompt: str, new_tokens: int, enough: Callable[[], bool]) -> int:
        tokens = self._tokenizer.encode(prompt).tokens
        self._generator.generate_batch(
            [tokens],
            beam_size=1,
            max_length=new_tokens,
            min_length=new_tokens,
            include_prompt_in_result=False,
            callback=lambda result: enough(),
        )
        return len(tokens)


def load(folder: Path, precision: str, threads: int) -> CTranslate:
    return CTranslate(folder, threads)


if __name__ == "__main__":
    keystroke_worker.main(load)
