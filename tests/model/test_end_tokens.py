"""Which tokens end a text: the union of what a checkpoint's files say, but for what cannot be."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import pytest
from byte_tokenizer import write_byte_tokenizer
from checkpoints import TINY
from codegen_tokenizer import write_codegen_tokenizer

from paddlenlp_codegen_task.model import end_tokens
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

VOCABULARY = 51200
END = 50256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """CodeGen2's: CodeGen's with <sep>, <eom> and masks, none of them called special."""
    folder = write_codegen_tokenizer(tmp_path_factory.mktemp("tokenizer"), codegen2=True)
    return Tokenizer.from_folder(folder)


def config(eos_token_id: int | tuple[int, ...]) -> CodeGenConfig:
    return dataclasses.replace(TINY, vocab_size=VOCABULARY, eos_token_id=eos_token_id)


def generation(folder: Path, content: object) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("of_config", "of_generation", "expected"),
    [
        (END, None, [END]),
        (END, {}, [END]),
        (END, {"eos_token_id": None}, [END]),
        (END, {"eos_token_id": END}, [END]),
        ((), {"eos_token_id": []}, [END]),
        (50300, None, [END, 50300]),  # <eom>, which nobody calls special
        ((50300, END, 50299), None, [END, 50299, 50300]),
        (END, {"eos_token_id": 50300}, [END, 50300]),
        (END, {"eos_token_id": [50300, 51199, 50300]}, [END, 50300, 51199]),
        (50299, {"eos_token_id": [50300]}, [END, 50299, 50300]),
        (VOCABULARY, {"eos_token_id": [60000, 2**24]}, [END]),  # beyond the vocabulary
    ],
)
def test_union(
    of_config: int | tuple[int, ...],
    of_generation: object,
    expected: list[int],
    tokenizer: Tokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    if of_generation is not None:
        generation(tmp_path, of_generation)
    found = end_tokens.of(tmp_path, config(of_config), tokenizer)
    assert found[0] == tokenizer.eos_token_id
    assert sorted(found) == expected
    assert not caplog.records


@pytest.mark.parametrize("where", ["config", "generation_config"])
@pytest.mark.parametrize(("token_id", "text"), [(2, "#"), (198, "\n"), (4299, "def")])
def test_ordinary_text_is_no_end(
    where: str,
    token_id: int,
    text: str,
    tokenizer: Tokenizer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """CodeGen2's 1B and 3.7B name 2, which is "#"."""
    if where == "generation_config":
        generation(tmp_path, {"eos_token_id": [50300, token_id]})
    of_config = token_id if where == "config" else END
    with caplog.at_level(logging.WARNING):
        found = end_tokens.of(tmp_path, config(of_config), tokenizer)
    assert token_id not in found
    assert (50300 in found) is (where == "generation_config")
    [line] = caplog.messages
    assert f"{where}.json names {token_id} as the end of a text" in line
    assert f"the ordinary text {text!r}:" in line
    assert len(line.splitlines()) == 1


def test_an_id_that_only_the_model_has_may_end_a_text(tmp_path: Path):
    """Of a vocabulary that is padded past the tokenizer's: it stands for no text."""
    tokenizer = Tokenizer.from_folder(write_byte_tokenizer(tmp_path, range(128)))
    padded = dataclasses.replace(TINY, vocab_size=160, eos_token_id=(129, 159, 160))
    assert end_tokens.of(tmp_path, padded, tokenizer) == (128, 129, 159)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"eos_token_id": "2"}, "generation_config.json: eos_token_id must be an integer from 0"),
        ({"eos_token_id": [1, True]}, "eos_token_id must be an integer from 0 to"),
        ({"eos_token_id": -1}, "eos_token_id must be an integer from 0 to"),
        ({"eos_token_id": {"a": [1] * 999}}, "eos_token_id must be an integer from 0 to"),
        ([], "generation_config.json must hold a JSON object"),
    ],
    ids=str,
)
def test_a_damaged_file(content: object, message: str, tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(ValueError, match=message) as raised:
        end_tokens.of(generation(tmp_path, content), config(END), tokenizer)
    assert str(raised.value).startswith(str(tmp_path))
    assert len(str(raised.value).splitlines()) == 1
