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
      for value in (-1, 2**40, "1", 1.0, True)),
    ("bos_token_id", [1, 2], "bos_token_id must be an integer from 0 to"),
    *(("eos_token_id", value, "eos_token_id must be an integer from 0 to .*, or a list of such")
      for value in ([1, "2"], [True], [[1]], [-1], [2**40], {"a": 1}, [1] * 9 + [None])),
    ("model_type", "llama", "model_type must be 'codegen' or 'gptj', got 'llama'"),
    ("model_type", "codegen\n", "model_type must be 'codegen' or 'gptj', got"),
    ("model_type", ["codegen"], "model_type must be 'codegen' or 'gptj', got"),
    ("model_type", None, "model_type must be 'codegen' or 'gptj', got None"),
    ("activation_function", "relu", "activation_function must be 'gelu_new', got 'relu'"),
    ("activation_function", {"a": "\n" * 999}, "activation_function must be 'gelu_new', got"),
    *(("head_dim", value, "head_dim must be n_embd / n_head .32 / 4., got")
      for value in (0, 7, 128, -8, 8.5, 10**400, "8", True, [8], {})),
    ("head_dim", 8, "does not tell whether .* .n_embd 32, n_layer 2, n_head 4, head_dim 8.: pass"),
    ("auto_map", {"AutoConfig": "configuration_codegen.CodeGenConfig"},
     "does not tell whether .* no head_dim, code of its own.: pass qkv_groups=4 or qkv_groups=8"),
    ("auto_map", {}, "does not tell whether"),
    *(("qkv_groups", value, "qkv_groups must be an integer from 1 to 4,096, got")
      for value in (0, -4, 2**13, 10**400, "8", 4.0, True, [4], {})),
    ("qkv_groups", 3, "n_head must be divisible by 3, the number of groups of qkv_proj, got 4"),
    ("qkv_groups", 8, "n_head must be divisible by 8, the number of groups of qkv_proj, got 4"),
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


# How many groups of rows qkv_proj has

HEAD_128 = {"n_embd": 1024, "n_head": 8}
HEAD_256 = {"n_embd": 2048, "n_head": 8}
CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"}}
PUBLISHED = {  # n_embd, n_layer, n_head, whether there is a head_dim, groups
    "Salesforce/codegen-350M-mono": (1024, 20, 16, False, 4),
    "Salesforce/codegen-2B-mono": (2560, 32, 32, False, 4),
    "Salesforce/codegen-6B-mono": (4096, 33, 16, False, 4),
    "Salesforce/codegen-16B-mono": (6144, 34, 24, False, 4),
    "Salesforce/codegen2-1B_P": (2048, 16, 16, True, 8),
    "Salesforce/codegen2-3_7B_P": (4096, 16, 16, True, 8),
    "Salesforce/codegen2-7B_P": (4096, 32, 16, False, 4),
    "Salesforce/codegen2-16B_P": (6144, 34, 24, False, 4),
}


def sized(n_embd: int, n_layer: int, n_head: int) -> dict[str, Any]:
    return {"n_embd": n_embd, "n_layer": n_layer, "n_head": n_head}


@pytest.mark.parametrize("name", PUBLISHED)
def test_groups_of_the_published_models(name: str, tmp_path: Path):
    n_embd, n_layer, n_head, has_head_dim, groups = PUBLISHED[name]
    values: dict[str, Any] = {**sized(n_embd, n_layer, n_head), "n_inner": None, "rotary_dim": 64}
    if "codegen2" in name:
        values |= {**CODE, "eos_token_id": 2 if has_head_dim else 50256}
    if has_head_dim:
        values["head_dim"] = n_embd // n_head
    assert CodeGenConfig.from_folder(write(tmp_path, values)).qkv_groups == groups


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ({}, 4),
        (HEAD_128, 4),
        ({**HEAD_128, "head_dim": 128}, 8),
        ({**HEAD_256, "head_dim": 256}, 8),
        ({**HEAD_256, "head_dim": 256, **CODE}, 8),
        ({"qkv_groups": 2}, 2),
        ({**HEAD_128, "head_dim": 128, "qkv_groups": 4}, 4),
        ({**CODE, "qkv_groups": 4}, 4),
        ({"head_dim": 8, "qkv_groups": 1}, 1),
        ({**sized(2048, 16, 16), "qkv_groups": 8}, 8),
        ({**sized(4096, 16, 16), **CODE}, 8),  # codegen2-3_7B's, and code as CodeGen2 has
        ({"model_type": "gptj", "n_head": 2}, None),
        ({"model_type": "gptj", **CODE, "n_head": 1}, None),
    ],
    ids=str,
)
def test_groups_that_the_file_tells(values: dict[str, Any], groups: int | None, tmp_path: Path):
    assert CodeGenConfig.from_folder(write(tmp_path, values)).qkv_groups == groups


AMBIGUOUS = [
    {**sized(2048, 16, 16)},  # codegen2-1B's sizes, but no head_dim
    {**sized(4096, 16, 16)},
    {**sized(4096, 32, 16), "head_dim": 256},  # codegen2-7B's, but a head_dim
    {**sized(6144, 34, 24), "head_dim": 256, **CODE},
    {"head_dim": 8},
    {**sized(1024, 2, 16), "head_dim": 64},
    {**sized(1024, 20, 16), "head_dim": 64},  # codegen-350M's, but a head_dim
    {**HEAD_128, **CODE},
]


@pytest.mark.parametrize("values", AMBIGUOUS, ids=str)
def test_groups_that_it_does_not_tell_are_to_be_said(values: dict[str, Any], tmp_path: Path):
    message = refused(write(tmp_path, values))
    assert "pass qkv_groups=4 or qkv_groups=8, or write one into config.json" in message
    for groups in (4, 8):
        if values.get("n_head", 4) % groups == 0:
            assert CodeGenConfig.from_folder(tmp_path, groups).qkv_groups == groups
            write(tmp_path, {**values, "qkv_groups": groups})
            assert CodeGenConfig.from_folder(tmp_path).qkv_groups == groups
            write(tmp_path, values)


def test_what_is_said_goes_before_what_the_file_says(tmp_path: Path):
    write(tmp_path, {**HEAD_128, "head_dim": 128, "qkv_groups": 2})
    assert CodeGenConfig.from_folder(tmp_path, 4).qkv_groups == 4
    with pytest.raises(ValueError, match="n_head must be divisible by 5, the number of groups"):
        CodeGenConfig.from_folder(tmp_path, 5)


def test_gpt_j_has_no_groups_and_says_how_much_of_a_head_turns(tmp_path: Path):
    write(tmp_path, {"model_type": "gptj"})
    with pytest.raises(ValueError, match=r"qkv_groups .4. has no effect on GPT-J's layout"):
        CodeGenConfig.from_folder(tmp_path, 4)
    values = {key: value for key, value in config_json(TINY).items() if key != "rotary_dim"}
    text = json.dumps({**values, "model_type": "gptj"})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert "missing rotary_dim" in refused(tmp_path)


def test_several_ends_of_text(tmp_path: Path):
    found = CodeGenConfig.from_folder(write(tmp_path, {"eos_token_id": [7, 9]}))
    assert found.eos_token_id == (7, 9)
    assert CodeGenConfig.from_folder(write(tmp_path, {"eos_token_id": []})).eos_token_id == ()
