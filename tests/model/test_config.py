"""config.json: what is no CodeGen model of possible sizes is refused at once, in one line."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY, config_json

from paddlenlp_codegen_task.model.config import CodeGenConfig

INF, NAN = float("inf"), float("nan")
SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
NO_SIZE = (0, -1, 10**9, 10**12, 2**63, 10**400, 1.0, 1e300, True, "4", "4\n", [4], {"a": 4}, "")
WRONG: list[tuple[str, Any, str]] = [
    *((name, value, f"{name} must be an integer from 1 to") for name in SIZES for value in NO_SIZE),
    *((name, None, f"{name} must be an integer") for name in ("n_embd", "n_layer", "vocab_size")),
    ("n_head", 7, "n_embd .32. must be divisible by n_head .7."),
    ("n_head", 64, "n_embd .32. must be divisible by n_head"),
    ("n_head", 2, "n_head must be divisible by 4"),
    *(("rotary_dim", value, "rotary_dim must be even and at most head_dim .8., got")
      for value in (0, -2, 3, 10, 10**12, 10**400, 4.0, "4", True, [4], {})),
    *(("layer_norm_epsilon", value, "layer_norm_epsilon must be a number above 0 and at most 1")
      for value in (0, 0.0, -1, -1e-5, 2, 1.5, 1e300, 10**400, True, False, "1e-5", "x\ny", [1])),
    *((name, value, f"{name} must be an integer from 0 to")
      for name in ("bos_token_id", "eos_token_id")
      for value in (-1, 2**40, "1", [1, 2], 1.0, True)),
    ("model_type", "llama", "model_type must be 'codegen', got 'llama'"),
    ("model_type", "codegen\n", "model_type must be 'codegen', got"),
    ("model_type", ["codegen"], "model_type must be 'codegen', got"),
    ("model_type", None, "model_type must be 'codegen', got None"),
    ("activation_function", "relu", "activation_function must be 'gelu_new', got 'relu'"),
    ("activation_function", {"a": "\n" * 999}, "activation_function must be 'gelu_new', got"),
    ("head_dim", 8, "config.json has head_dim, as CodeGen2's does: CodeGen2 is not supported yet"),
    ("auto_map", {"AutoConfig": "configuration_codegen.CodeGenConfig"}, "CodeGen2 is not supp"),
    ("auto_map", {}, "CodeGen2 is not supported yet"),
]  # fmt: skip


def write(folder: Path, changes: dict[str, Any]) -> Path:
    text = json.dumps({**config_json(TINY), **changes})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def refused(folder: Path) -> str:
    began = time.process_time()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the caller looks at the message
        CodeGenConfig.from_folder(folder)
    assert time.process_time() - began < 5
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert message.splitlines() == [message]
    assert len(message) < 500
    return message


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_an_impossible_value_is_one_line_that_names_it(
    name: str, value: Any, message: str, tmp_path: Path
):
    write(tmp_path, {name: value})
    with pytest.raises(ValueError, match=message):
        CodeGenConfig.from_folder(tmp_path)
    refused(tmp_path)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["layer_norm_epsilon", "n_layer", "initializer_range"])
def test_numbers_that_json_does_not_have(name: str, value: float, tmp_path: Path):
    assert "config.json is not valid JSON" in refused(write(tmp_path, {name: value}))
    with pytest.raises(ValueError, match="layer_norm_epsilon must be"):
        dataclasses.replace(TINY, layer_norm_epsilon=value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"a":' * 99_999, b'{"n_layer": 1e999}', b"\xff", b"\0"],
)
def test_a_damaged_file(content: bytes, tmp_path: Path):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in refused(tmp_path)


@pytest.mark.parametrize("name", ["vocab_size", "n_embd", "n_layer", "n_head"])
def test_a_missing_size(name: str, tmp_path: Path):
    values = {key: value for key, value in config_json(TINY).items() if key != name}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    assert f"missing {name}" in refused(tmp_path)


def test_null_stands_for_what_transformers_takes_it_for(tmp_path: Path):
    names = ("n_positions", "n_inner", "rotary_dim", "layer_norm_epsilon", "eos_token_id")
    found = CodeGenConfig.from_folder(write(tmp_path, {**dict.fromkeys(names), "head_dim": None}))
    assert found == dataclasses.replace(TINY, n_positions=2048, rotary_dim=8)
    assert CodeGenConfig.from_folder(write(tmp_path, {"layer_norm_epsilon": 1})).n_layer == 2
    assert CodeGenConfig.from_folder(write(tmp_path, {"bos_token_id": 0})).bos_token_id == 0


@pytest.mark.parametrize(
    "arguments", [None, 5, "text", {"n_layer": 9}, [], [None, 5, "text", []], [{"n_layer": 9}]]
)
def test_arguments_of_paddlenlps_older_file(arguments: object, tmp_path: Path):
    # What is at the top goes before what an argument says.
    assert CodeGenConfig.from_folder(write(tmp_path, {"init_args": arguments})) == TINY


def test_arguments_within_arguments_take_no_time(tmp_path: Path):
    inner: dict[str, Any] = {f"key {n}": n for n in range(10_000)}
    for _ in range(200):
        inner = {"init_args": [inner]}
    (tmp_path / "model_config.json").write_text(json.dumps(inner), encoding="utf-8")
    assert "missing vocab_size" in refused(tmp_path)
