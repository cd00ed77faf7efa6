"""`models`: what has a name, what is here, and what was exported."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import done, refused

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.model.checkpoint import expected_shapes
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.names import BUILTIN, PARAMETERS, SALESFORCE_MODELS, parameters

ARCHITECTURES = {"350M": (20, 1024, 16), "2B": (32, 2560, 32), "6B": (33, 4096, 16)}
ARCHITECTURES["16B"] = (34, 6144, 24)
CODEGEN2 = {"1B": (16, 2048, 16), "3_7B": (16, 4096, 16), "7B": (32, 4096, 16)}
CODEGEN2["16B"] = (34, 6144, 24)


def listed(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(["models", f"--home-path={home}", "--json"]))
    return found


def test_parameters_are_those_of_the_architectures():
    assert {*PARAMETERS} == {*ARCHITECTURES}
    published = {f"Salesforce/codegen-{size}-nl": ARCHITECTURES[size] for size in ARCHITECTURES}
    published |= {f"Salesforce/codegen2-{size}_P": CODEGEN2[size] for size in CODEGEN2}
    assert {*published} == {one for one in SALESFORCE_MODELS if not one.endswith(("multi", "mono"))}
    for name, (layers, width, heads) in published.items():
        config = CodeGenConfig(51200, 2048, width, layers, heads, 32, 4 * width)
        count = sum(map(math.prod, expected_shapes(config).values()))
        assert parameters(name) == round(count / 1e6) * 10**6


def test_of_an_empty_home(tmp_path: Path):
    found = listed(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert found["home"] == str(tmp_path / "none")
    assert [one["name"] for one in found["models"]] == [*SALESFORCE_MODELS, BUILTIN]
    assert [one["name"] for one in found["models"] if one["folder"]] == [BUILTIN]
    size = sum(path.stat().st_size for path in BUILTIN_FOLDER.rglob("*") if path.is_file())
    assert found["models"][-1]["bytes"] == size
    assert found["exports"] == []
    written = done(["models", f"--home-path={tmp_path / 'none'}"])
    assert f"Nothing is exported in {tmp_path / 'none'}." in written
    for name in SALESFORCE_MODELS:
        assert name in written


def test_a_checkpoint_that_is_here(tmp_path: Path):
    folder = tmp_path / "models" / "Salesforce" / "codegen-2B-mono"
    folder.mkdir(parents=True)
    for name in ("config.json", "vocab.json", "merges.txt"):
        shutil.copyfile(BUILTIN_FOLDER / name, folder / name)
    by_name = {one["name"]: one for one in listed(tmp_path)["models"]}
    assert by_name["Salesforce/codegen-2B-mono"]["folder"] is None  # its weights are not
    (folder / "model.safetensors").write_bytes(bytes(1000))
    os.link(folder / "model.safetensors", folder / "again")  # no bytes of its own
    by_name = {one["name"]: one for one in listed(tmp_path)["models"]}
    size = 1000 + sum((folder / name).stat().st_size for name in ("config.json", "vocab.json"))
    size += (folder / "merges.txt").stat().st_size
    here = by_name["Salesforce/codegen-2B-mono"]
    assert (here["folder"], here["bytes"]) == (str(folder), size)
    assert here["parameters"] == 2_779_000_000


def test_exports(tmp_path: Path, builtin: CodeGenerator):
    root = tmp_path / "taskflow" / "code_generation"
    shutil.copytree(builtin.folder, root / "builtin" / "whole")
    shutil.copytree(builtin.folder, root / "owner" / "model" / "damaged")
    shutil.copytree(builtin.folder, root / "builtin" / ".building-1-2")
    (root / "owner" / "model" / "damaged" / "config.json").write_text("{}", encoding="utf-8")
    (root / "builtin" / "nothing").mkdir()
    whole, damaged = listed(tmp_path)["exports"]
    size = sum(path.stat().st_size for path in builtin.folder.iterdir())
    assert whole == {
        "name": "builtin",
        "engine": "onnxruntime",
        "precision": "fp32",
        "kv_precision": "fp32",
        "folder": str(root / "builtin" / "whole"),
        "bytes": size,
        "problem": None,
    }
    assert damaged["name"] == "owner/model"
    assert "is damaged" in damaged["problem"]
    written = done(["models", f"--home-path={tmp_path}"])
    assert str(root / "builtin" / "whole") in written
    assert "is damaged" in written


@pytest.mark.parametrize("command", ["models", "complete"])
@pytest.mark.parametrize("path", ["", "a\0b", "x" * 300])
def test_a_home_that_cannot_be(command: str, path: str):
    arguments = [command, f"--home-path={path}"] + (["x ="] if command == "complete" else [])
    assert refused(arguments).startswith("--home-path")
