"""From a name or a folder to a model that runs, and the one line that says why not."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from checkpoints import TINY, write_paddle, write_safetensors, write_torch
from random_models import spread_tensors, write_model

from paddlenlp_codegen_task import CodeGenerator, building
from paddlenlp_codegen_task.export.store import ExportError
from paddlenlp_codegen_task.loading import LoadOptions, load_model
from paddlenlp_codegen_task.model.checkpoint import CheckpointError

CONFIG = dataclasses.replace(TINY, vocab_size=257)
SMALLER = dataclasses.replace(CONFIG, n_layer=1)
LARGER = dataclasses.replace(CONFIG, n_layer=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("source"), CONFIG, spread_tensors(CONFIG))


@pytest.fixture
def checkpoint(source: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return shutil.copytree(source, tmp_path / "small")


def load(folder: object, home_path: Path, **options: object) -> CodeGenerator:
    options = {"home_path": home_path, "device": "cpu", "num_threads": 1, **options}
    return CodeGenerator.from_pretrained(folder, **options)


def greedy(generator: CodeGenerator) -> str:
    (completion,) = generator.generate(
        "def f(x):", decode_strategy="greedy_search", max_length=12, truncation=None
    )[0]
    return completion.text


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8") and None


def configure(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, **values}), encoding="utf-8")

    return change


def truncate(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / "model.safetensors", size)


def reweigh(folder: Path, **arrays: np.ndarray | None) -> None:
    tensors = spread_tensors(CONFIG)
    for name, array in arrays.items():
        if array is None:
            del tensors[name]
        else:
            tensors[name] = array
    write_safetensors(folder, tensors, CONFIG)


def tokens(count: int) -> Callable[[Path], None]:
    """A tokenizer of so many tokens, <|endoftext|> being the last."""
    vocabulary = {chr(0x4E00 + number): number for number in range(count - 1)}
    vocabulary["<|endoftext|>"] = count - 1
    return write("vocab.json", json.dumps(vocabulary))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        (remove("config.json"), FileNotFoundError, ["config.json"]),
        (write("config.json", "{"), ValueError, ["config.json", "not valid JSON"]),
        (write("config.json", "[]"), ValueError, ["config.json", "JSON object"]),
        (configure(model_type="gpt2"), ValueError, ["config.json", "model_type", "gpt2"]),
        (configure(n_head=6), ValueError, ["config.json", "n_head"]),
        (configure(n_layer="two"), ValueError, ["config.json", "n_layer", "'two'"]),
        (remove("model.safetensors"), FileNotFoundError, ["no weights", "model.safetensors"]),
        (remove("vocab.json"), FileNotFoundError, ["vocab.json"]),
        (remove("merges.txt"), FileNotFoundError, ["merges.txt"]),
        (remove("vocab.json", "merges.txt"), FileNotFoundError, ["vocab.json", "merges.txt"]),
        (write("vocab.json", "{"), ValueError, ["vocab.json"]),
        (tokens(258), ValueError, ["tokenizer has 258 tokens", "model only 257"]),
        (truncate(0), CheckpointError, ["model.safetensors"]),
        (truncate(100), CheckpointError, ["model.safetensors"]),
        (truncate(50_000), CheckpointError, ["model.safetensors"]),
        (configure(n_layer=3), CheckpointError, ["model.safetensors", "transformer.h.2."]),
        (configure(vocab_size=300), CheckpointError, ["model.safetensors", "wte", "(300, 32)"]),
        (configure(n_embd=64), CheckpointError, ["model.safetensors", "wte", "(257, 64)"]),
        (
            lambda folder: reweigh(folder, **{"lm_head.bias": None}),
            CheckpointError,
            ["model.safetensors", "lm_head.bias is missing"],
        ),
        (
            lambda folder: reweigh(
                folder, **{"transformer.ln_f.bias": np.full(32, np.nan, np.float32)}
            ),
            CheckpointError,
            ["model.safetensors", "transformer.ln_f.bias"],
        ),
    ],
)
def test_broken_folder(
    checkpoint: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    error: type[Exception],
    named: list[str],
) -> None:
    change(checkpoint)
    with pytest.raises(error) as raised:
        load(checkpoint, tmp_path / "home")
    message = str(raised.value)
    assert "\n" not in message
    for part in named:
        assert part in message
    exports = tmp_path / "home" / "taskflow" / "code_generation" / "small"
    assert [path for path in exports.glob("*") if not path.name.endswith(".lock")] == []


def test_message_names_the_folder(checkpoint: Path, tmp_path: Path) -> None:
    tokens(258)(checkpoint)
    with pytest.raises(ValueError, match="do not belong together") as raised:
        load(checkpoint, tmp_path)
    assert str(checkpoint) in str(raised.value)


def test_a_smaller_tokenizer_is_no_mistake(checkpoint: Path, tmp_path: Path) -> None:
    write_byte_tokenizer(checkpoint, range(128))
    with load(checkpoint, tmp_path) as generator:
        assert generator.tokenizer.vocab_size == 129
        assert len(greedy(generator)) <= 12  # tokens beyond the tokenizer's have no text
        with pytest.raises(ValueError, match="prompt 0: the tokenizer knows none"):
            generator.generate("é", max_length=5)


# Where a model is looked for


@pytest.mark.parametrize("name", ["./not/there", "/not/there", "~/not-there", "a/b/c"])
def test_no_such_folder(name: str, tmp_path: Path) -> None:
    for path in (name, Path(name)):
        with pytest.raises(FileNotFoundError, match="there is no folder") as raised:
            load(path, tmp_path)
        assert "task_path" in str(raised.value)
        assert str(Path(name).expanduser()) in str(raised.value)
        assert not list(tmp_path.iterdir())


def test_a_folder_is_no_repository(source: Path, tmp_path: Path) -> None:
    for path in (source, str(source)):
        with pytest.raises(
            ValueError, match="from_hf_hub=True needs a repository's name"
        ) as raised:
            load(path, tmp_path, from_hf_hub=True)
        assert str(source) in str(raised.value)


def test_no_such_export(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        CodeGenerator.from_export(tmp_path / "missing")


def test_a_file_is_no_folder(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(source / "model.safetensors", tmp_path)


def test_paths_of_any_kind(
    source: Path, home_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(source.parent)
    monkeypatch.setenv("HOME", str(source.parent))
    folders = set()
    for path in (source, str(source), source.name, f"~/{source.name}", tmp_path / "link"):
        with load(path, home_path) as generator:
            folders.add(generator.folder)
            assert generator.name == source.name
    assert len(folders) == 1


def test_a_folder_comes_before_a_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "Salesforce" / "codegen-2B-mono")
    shutil.copytree(checkpoint, tmp_path / "builtin")
    with load("Salesforce/codegen-2B-mono", tmp_path / "home") as generator:
        assert generator.name == "codegen-2B-mono"
        assert generator.config == CONFIG
    with load("builtin", tmp_path / "home") as generator:  # this name is the package's own
        assert generator.config.vocab_size > CONFIG.vocab_size
    with load("./builtin", tmp_path / "home") as generator:
        assert generator.config == CONFIG


def test_safetensors_come_before_paddle_before_torch(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", CONFIG, spread_tensors(CONFIG, 1))
    write_paddle(folder, spread_tensors(CONFIG, 2), CONFIG)
    write_torch(folder, spread_tensors(CONFIG, 3), CONFIG)
    found = []
    for file in ("model.safetensors", "model_state.pdparams", "pytorch_model.bin"):
        with load(folder, tmp_path) as generator:
            found.append(greedy(generator))
        (folder / file).unlink()
    alone = []
    for seed in (1, 2, 3):
        only = write_model(tmp_path / f"only{seed}", CONFIG, spread_tensors(CONFIG, seed))
        with load(only, tmp_path) as generator:
            alone.append(greedy(generator))
    assert len(set(alone)) == 3
    assert found == alone


# Where exports are kept


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPNLP_HOME", str(tmp_path / "environment"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert LoadOptions(home_path=tmp_path / "option").home == tmp_path / "option"
    assert LoadOptions(home_path="~/option").home == tmp_path / "user" / "option"
    assert LoadOptions().home == tmp_path / "environment"
    monkeypatch.delenv("PPNLP_HOME")
    assert LoadOptions().home == tmp_path / "user" / ".paddlenlp"


def test_an_export_lies_in_home_and_is_reused(source: Path, tmp_path: Path) -> None:
    with load(source, tmp_path) as generator:
        folder = generator.folder
    assert folder.parent == tmp_path / "taskflow" / "code_generation" / source.name
    made = (folder / "model.pdiparams").stat().st_mtime_ns
    with load(source, tmp_path) as generator:
        assert generator.folder == folder
    assert (folder / "model.pdiparams").stat().st_mtime_ns == made


def test_new_weights_are_exported_anew(checkpoint: Path, tmp_path: Path) -> None:
    texts, folders = set(), set()
    for seed in (1, 2):
        write_safetensors(checkpoint, spread_tensors(CONFIG, seed), CONFIG)
        with load(checkpoint, tmp_path) as generator:
            texts.add(greedy(generator))
            folders.add(generator.folder)
    assert len(texts) == len(folders) == 2


def test_an_export_does_not_outlive_the_files_it_copied(checkpoint: Path, tmp_path: Path) -> None:
    texts = []
    for change in (configure(), configure(rotary_dim=8), configure(n_positions=128)):
        change(checkpoint)
        with load(checkpoint, tmp_path) as generator:
            texts.append(greedy(generator))
    assert texts[0] != texts[1]
    write_byte_tokenizer(checkpoint, range(128))
    with load(checkpoint, tmp_path) as generator:
        folder = generator.folder
    assert len(list(folder.parent.glob("[!.]*"))) == 4
    with CodeGenerator.from_export(folder, device="cpu", num_threads=1) as generator:
        assert generator.tokenizer.vocab_size == 129
        assert generator.config.n_positions == 128


# Options of loading


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"engine": "tensorrt"}, ValueError, "engine must be one of"),
        ({"precision": "fp8"}, ValueError, "precision must be one of"),
        ({"precision": "fp16"}, ValueError, "precision 'fp16' needs a GPU"),
        ({"device": "gpu"}, ValueError, "device: 'gpu' is no GPU here: this Paddle is built"),
        ({"device": "gpu:3"}, ValueError, "device: 'gpu:3' is no GPU here: this Paddle is built"),
        ({"device": "tpu"}, ValueError, "device must be 'auto', 'cpu', 'gpu' or 'gpu:N'"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
        ({"num_threads": "2"}, TypeError, "num_threads must be an integer, got '2'"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer, got 2.5"),
        ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
        ({"home": "x"}, TypeError, "unknown option 'home'; did you mean 'home_path'?"),
    ],
)
def test_impossible_options(
    source: Path, home_path: Path, options: dict[str, object], error: type, named: str
) -> None:
    with pytest.raises(error) as raised:
        load(source, home_path, **options)
    message = str(raised.value)
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize(("name", "value"), [("static_mode", False), ("from_hf_hub", True)])
def test_options_that_an_export_cannot_follow(
    source: Path, home_path: Path, name: str, value: bool
) -> None:
    with load(source, home_path) as generator:
        folder = generator.folder
    with pytest.raises(ValueError, match=name):
        CodeGenerator.from_export(folder, **{name: value})


def test_eager_and_static_agree(source: Path, home_path: Path) -> None:
    texts = set()
    for static_mode in (True, False):
        with load(source, home_path, static_mode=static_mode) as generator:
            texts.add(greedy(generator))
            assert (generator.folder == source) is not static_mode
    assert len(texts) == 1


# How query, key and value are stored, and adapters


def eight_groups(folder: Path, **values: object) -> Path:
    """A model of 8 groups whose configuration does not tell it."""
    config = dataclasses.replace(CONFIG, n_head=8, qkv_groups=8)
    write_model(folder, config, spread_tensors(config))
    configure(**{"auto_map": {}, "head_dim": None, "qkv_groups": None, **values})(folder)
    return folder


@pytest.mark.parametrize("static_mode", [True, False])
def test_groups_can_be_said(static_mode: bool, tmp_path: Path) -> None:
    folder = eight_groups(tmp_path / "model")
    with pytest.raises(ValueError, match="pass qkv_groups=4 or qkv_groups=8"):
        load(folder, tmp_path, static_mode=static_mode)
    with load(folder, tmp_path, qkv_groups=8, static_mode=static_mode) as generator:
        said = greedy(generator)
        assert generator.config.qkv_groups == 8
    with load(folder, tmp_path, qkv_groups=4, static_mode=static_mode) as generator:
        assert greedy(generator) != said
    configure(qkv_groups=8)(folder)
    with load(folder, tmp_path, static_mode=static_mode) as generator:
        assert greedy(generator) == said


def test_groups_are_part_of_an_export(tmp_path: Path) -> None:
    folder, exports = eight_groups(tmp_path / "model"), {}
    for groups in (8, 4, 8):
        with load(folder, tmp_path, qkv_groups=groups) as generator:
            exports.setdefault(groups, set()).add(generator.folder)
            text = greedy(generator)
    assert all(len(one) == 1 for one in exports.values())
    assert exports[4] != exports[8]
    [export] = exports[8]
    for options in ({}, {"qkv_groups": 8}):
        with CodeGenerator.from_export(export, device="cpu", num_threads=1, **options) as generator:
            assert greedy(generator) == text
            assert generator.config.qkv_groups == 8
    with pytest.raises(
        ValueError, match=r"qkv_groups: .* was exported with 8, not 4: leave it out"
    ):
        CodeGenerator.from_export(export, qkv_groups=4)


@pytest.mark.parametrize("value", [3, 5, 4096])
def test_groups_that_do_not_divide_the_heads(value: int, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"n_head must be divisible by {value}"):
        load(source, tmp_path, qkv_groups=value)


def write_adapter(folder: Path, scale: float = 1.0, width: int = CONFIG.n_embd) -> Path:
    """A peft adapter of the second layer's qkv_proj."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    name = "base_model.model.transformer.h.1.attn.qkv_proj.lora_"
    shapes = {"A": (2, width), "B": (3 * width, 2)}
    folder.mkdir(exist_ok=True)
    save_file(
        {
            f"{name}{one}.weight": np.float32(scale) * rng.standard_normal(shape, np.float32)
            for one, shape in shapes.items()
        },
        folder / "adapter_model.safetensors",
    )
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.mark.parametrize("engine", ["paddle", "onnxruntime"])
def test_an_adapter_is_merged_and_part_of_an_export(
    engine: str, tmp_path: Path, home_path: Path
) -> None:
    from paddlenlp_codegen_task.model.adapter import Merged, open_adapter
    from paddlenlp_codegen_task.model.checkpoint import expected_shapes, open_checkpoint

    config = dataclasses.replace(CONFIG, n_embd=64, rotary_dim=16, n_inner=64)
    folder = write_model(tmp_path / "model", config, spread_tensors(config))
    adapter = write_adapter(tmp_path / "adapter", width=64)
    with open_checkpoint(folder) as checkpoint, open_adapter(adapter) as lora:
        both = Merged(checkpoint, lora)
        tensors = {one: both.read(one) for one in expected_shapes(config)}
    whole = write_model(tmp_path / "whole", config, tensors)
    texts = {}
    for key, path, options in (
        ("plain", folder, {}),
        ("adapter", folder, {"adapter": adapter}),
        ("merged", whole, {}),
    ):
        with load(path, tmp_path, engine=engine, **options) as generator:
            texts[key] = greedy(generator), generator.folder
    assert texts["adapter"][0] == texts["merged"][0] != texts["plain"][0]
    with load(folder, tmp_path, engine=engine, adapter=str(adapter)) as generator:
        assert generator.folder == texts["adapter"][1] != texts["plain"][1]
    copy = shutil.copytree(adapter, tmp_path / "copy")
    for options in ({}, {"adapter": copy}):
        with CodeGenerator.from_export(texts["adapter"][1], device="cpu", **options) as generator:
            assert greedy(generator) == texts["adapter"][0]
    with pytest.raises(ValueError, match=r"adapter: .* was exported without") as raised:
        CodeGenerator.from_export(texts["plain"][1], adapter=adapter)
    assert "\n" not in str(raised.value)
    write_adapter(copy, 2.0, width=64)
    with pytest.raises(ValueError, match="or with another state of it: export again"):
        CodeGenerator.from_export(texts["adapter"][1], adapter=copy)


def test_no_such_adapter(source: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", "./missing", "missing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="adapter: there is no folder"):
            load(source, tmp_path, adapter=path)
    with pytest.raises(OSError, match="adapter: some/body cannot be downloaded"):
        load(source, tmp_path, adapter="some/body")
    with pytest.raises(FileNotFoundError, match=r"adapter: .* has no adapter_config\.json"):
        load(source, tmp_path, adapter=source)
    assert not (tmp_path / "taskflow").exists()


def test_a_draft_model_has_neither(source: Path, tmp_path: Path) -> None:
    """What is said of the model's weights is not said of the draft model's."""
    model = eight_groups(tmp_path / "model")
    adapter = write_adapter(tmp_path / "adapter")
    options = {"qkv_groups": 8, "adapter": adapter}
    with load(model, tmp_path, **options) as alone:
        expected = greedy(alone)
    drafts = tmp_path / "taskflow" / "code_generation" / source.name
    with load(model, tmp_path, draft_model=source, **options) as generator:
        assert greedy(generator) == expected
    [draft] = drafts.glob("[!.]*")
    made_from = json.loads((draft / "manifest.json").read_text())["made_from"]
    assert (made_from["adapter"], made_from["qkv_groups"]) == ("none", "4")


# Ends of text


@pytest.mark.parametrize("static_mode", [True, False])
def test_ends_of_text_are_those_of_all_files(
    static_mode: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = dataclasses.replace(CONFIG, vocab_size=300)
    folder = write_model(tmp_path / "model", config, spread_tensors(config))
    options = LoadOptions(device="cpu", home_path=tmp_path, num_threads=1, static_mode=static_mode)

    def ends() -> tuple[int, ...]:
        model = load_model(folder, options)
        model.runtime.close()
        return model.eos_token_ids

    configure(eos_token_id=[256, 280])(folder)
    assert ends() == (256, 280)
    write("generation_config.json", '{"eos_token_id": [290, 300, 256]}')(folder)
    assert sorted(ends()) == [256, 280, 290]
    assert ends()[0] == 256
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    configure(eos_token_id=2)(folder)
    assert ends() == (256, 290)
    assert any("names 2 as the end of a text" in one for one in caplog.messages)
    write("generation_config.json", '{"eos_token_id": "x"}')(folder)
    with pytest.raises(ValueError, match=r"generation_config\.json: eos_token_id must be"):
        ends()


def test_number_of_threads() -> None:
    assert LoadOptions(num_threads=3).threads == 3
    assert LoadOptions().threads == len(os.sched_getaffinity(0))


def test_an_engine_that_loses_its_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import paddle

    from paddlenlp_codegen_task.export import paddle_graph

    def write_to_a_copy(cache: Any, index: Any, new: Any, cache_shape: Any) -> Any:
        rows = new.reshape([-1, new.shape[-1]])
        return paddle.scatter(cache, index, rows).reshape(cache_shape)

    # A single prefill would not notice: it reads the copy.
    monkeypatch.setattr(paddle_graph, "_write", write_to_a_copy)
    checks = []
    check = building.check_export

    def counted(*arguments: Any) -> None:
        checks.append(arguments)
        check(*arguments)

    monkeypatch.setattr(building, "check_export", counted)
    with pytest.raises(ExportError, match="is not the model"):
        load_model("builtin", LoadOptions(engine="paddle", device="cpu", home_path=tmp_path))
    assert len(checks) == 1  # and not built again


def test_builtin_is_not_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from_hf_hub=True: the built-in model"):
        load_model("builtin", LoadOptions(from_hf_hub=True, home_path=tmp_path))
