"""The scripts of training/ import one another by name, as they are run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "training"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The built-in model's vocabulary, with the tokens that training adds to it."""
    from tokenizer import INFILLING, WHITESPACE, write_json
    from windows import END_OF_TEXT_ID

    folder = tmp_path_factory.mktemp("tokenizer")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(ROOT / "paddlenlp_codegen_task" / "builtin" / name, folder)
    added = {token: END_OF_TEXT_ID + 1 + n for n, token in enumerate(WHITESPACE + INFILLING)}
    write_json(added, folder / "added_tokens.json")
    return Tokenizer.from_folder(folder)
