"""A CodeGenerator over a fake runtime: texts depend on prompts, and cost next to nothing."""

from __future__ import annotations

from pathlib import Path

from byte_tokenizer import write_byte_tokenizer
from fake_runtime import VOCAB, FakeRuntime

from paddlenlp_codegen_task import CodeGenerator, GenerationConfig
from paddlenlp_codegen_task.loading import LoadedModel
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

LETTERS = bytes(range(65, 65 + VOCAB - 1)).decode()  # those that a prompt may have


def fake_generator(folder: Path, batch_size: int = 4, precision: str = "fp32") -> CodeGenerator:
    """A generator whose `runtime` attribute is its FakeRuntime.

    Args:
        folder: where its tokenizer is written.
        batch_size: most sequences that run at once.
        precision: what it says that it runs in.
    """
    write_byte_tokenizer(folder, LETTERS.encode())
    tokenizer = Tokenizer.from_folder(folder)
    ends = (tokenizer.eos_token_id,)
    model = LoadedModel("fake", folder, precision, FakeRuntime(), tokenizer, ends)
    defaults = GenerationConfig(truncation=None, max_length=8, prompt_lookup=False)
    generator = CodeGenerator(model, defaults, batch_size)
    generator.runtime = model.runtime  # type: ignore[attr-defined]  # for tests to look at
    return generator
