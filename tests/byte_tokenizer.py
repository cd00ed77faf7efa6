"""A tokenizer folder with a token a byte, for models of small vocabularies."""

import json
from collections.abc import Iterable
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"


def write_byte_tokenizer(folder: Path, alphabet: Iterable[int] = range(256)) -> Path:
    """Write vocab.json and the rest to `folder`; return it.

    Args:
        folder: where to; made if it is missing.
        alphabet: the bytes that have a token. Their ids are 0, 1, ... in this order, and
            <|endoftext|> follows them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {_character(byte): number for number, byte in enumerate(alphabet)}
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    contents = {
        "vocab.json": {**vocabulary, END_OF_TEXT: len(vocabulary)},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {**special, "tokenizer_class": "CodeGenTokenizer"},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def _character(byte: int) -> str:
    """What GPT-2's vocabulary writes for a byte: itself if it can be seen, else U+0100 onwards."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in seen:
        return chr(byte)
    return chr(0x100 + [other for other in range(0x100) if other not in seen].index(byte))
