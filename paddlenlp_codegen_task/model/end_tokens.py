"""Which tokens end a text: what a checkpoint's files say of it, put together."""

from __future__ import annotations

import logging
from pathlib import Path

from paddlenlp_codegen_task.checks import shown
from paddlenlp_codegen_task.files import read_json
from paddlenlp_codegen_task.model.config import CodeGenConfig, token_ids
from paddlenlp_codegen_task.model.names import GENERATION_FILE
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def named(folder: Path, config: CodeGenConfig) -> dict[int, str]:
    """The ids that config.json and generation_config.json call eos_token_id, and which does first.

    Raises:
        OSError, ValueError: generation_config.json cannot be read, or has something else there.
    """
    found = dict.fromkeys(token_ids("config.json", "eos_token_id", config.eos_token_id), "config")
    path = folder / GENERATION_FILE
    if path.is_file() and (value := read_json(path).get("eos_token_id")) is not None:
        try:
            ids = token_ids(GENERATION_FILE, "eos_token_id", value)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
        found = {**dict.fromkeys(ids, "generation_config"), **found}
    return found


def of(folder: Path, config: CodeGenConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a text, the tokenizer's own first: a union, as each library reads another.

    transformers ends at those of generation_config.json, or else of config.json; PaddleNLP at
    those of config.json.

    Left out are ids beyond the model's vocabulary, which it cannot choose, and ids of ordinary
    text: a token of BPE's own vocabulary that was not added to it and is not special stands for
    characters, and whoever ends there cuts every text that holds them. Two of the CodeGen2 models
    name such a one: 2, which is "#". A warning tells of it, as the file may mean what it says.

    Raises:
        OSError, ValueError: as `named`.
    """
    found = [tokenizer.eos_token_id]
    for token_id, file in named(folder, config).items():
        if token_id in found or token_id >= config.vocab_size:
            continue
        if tokenizer.is_ordinary(token_id):
            logger.warning(
                "%s: %s.json names %d as the end of a text, which is the ordinary text %s: not "
                "taken for an end; to end there pass it as stop_token_ids",
                folder,
                file,
                token_id,
                shown(tokenizer.decode([token_id])),
            )
            continue
        found.append(token_id)
    return tuple(found)
