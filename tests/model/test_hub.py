"""Fetching models, against a server on this machine that speaks both hubs' layouts."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants, file_download
from safetensors.numpy import save

from paddlenlp_codegen_task.model import hub
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.hub import DownloadError, cached, fetch, fetch_adapter
from paddlenlp_codegen_task.model.names import KNOWN_MODELS, SALESFORCE_MODELS

sys.path.insert(0, str(Path(__file__).parents[1]))
from file_server import COMMIT, FileServer, serving

NAME = "Salesforce/codegen-350M-mono"
CHUNK = 4096
SIZES = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 4, "rotary_dim": 4}
CONFIG = json.dumps({"model_type": "codegen", **SIZES}).encode()
SMALL = {
    "config.json": CONFIG,
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version: 0.2\n",
    "added_tokens.json": b"{}",
}
WEIGHTS = save({"w": np.random.default_rng(0).standard_normal((200, 100)).astype(np.float32)})
INDEX = json.dumps({"weight_map": {"a": "part-1.bin", "b": "part-2.bin", "c": "part-1.bin"}})
SHARDED = {
    **SMALL,
    "pytorch_model.bin.index.json": INDEX.encode(),
    "part-1.bin": WEIGHTS,
    "part-2.bin": WEIGHTS[::-1],
}


@pytest.fixture(autouse=True, scope="module")
def _paddlenlp_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # Importing paddlenlp makes folders in its home.
    with pytest.MonkeyPatch.context() as patch:
        if "paddlenlp" not in sys.modules:
            patch.setenv("PPNLP_HOME", str(tmp_path_factory.mktemp("paddlenlp")))
        from paddlenlp.utils.download import common

        # The clients write, and so resume, by chunks of 10 MB.
        patch.setattr(common, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        yield


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with serving() as running:
        monkeypatch.setenv("PPNLP_ENDPOINT", running.url + "/paddlenlp")
        use_hub(monkeypatch, running.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does; huggingface_hub reads that when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def assert_holds(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        assert (folder / name).read_bytes() == content, name


def publish(server: FileServer, from_hf_hub: bool, files: dict[str, bytes]) -> None:
    (server.hub if from_hf_hub else server.paddle)[NAME] = dict(files)


both = pytest.mark.parametrize("from_hf_hub", [False, True], ids=["paddle", "hub"])


def test_names() -> None:
    assert len(set(SALESFORCE_MODELS)) == 16
    assert NAME in SALESFORCE_MODELS
    assert {"Salesforce/codegen2-3_7B_P", "Salesforce/codegen2-16B"} <= set(KNOWN_MODELS)
    assert len(set(KNOWN_MODELS)) == 20


@both
@pytest.mark.parametrize("weights", ["model.safetensors", "model_state.pdparams"])
def test_fetch_then_cached(server: FileServer, home: Path, from_hf_hub: bool, weights: str) -> None:
    files = {**SMALL, weights: WEIGHTS}
    publish(server, from_hf_hub, files)
    assert cached(NAME, from_hf_hub=from_hf_hub, home=home) is None
    folder = fetch(NAME, from_hf_hub=from_hf_hub, home=home)
    assert_holds(folder, files)
    if not from_hf_hub:
        assert folder == home / "models" / NAME
    assert len(server.gets(weights)) == 1
    server.requests.clear()
    assert cached(NAME, from_hf_hub=from_hf_hub, home=home) == folder
    assert fetch(NAME, from_hf_hub=from_hf_hub, home=home) == folder
    assert server.requests == []


@both
def test_sharded(server: FileServer, home: Path, from_hf_hub: bool) -> None:
    publish(server, from_hf_hub, SHARDED)
    server.break_after["part-2.bin"] = 10 * CHUNK
    with pytest.raises(DownloadError, match=r"part-2\.bin broke off"):
        fetch(NAME, from_hf_hub=from_hf_hub, home=home)
    assert cached(NAME, from_hf_hub=from_hf_hub, home=home) is None
    folder = fetch(NAME, from_hf_hub=from_hf_hub, home=home)
    assert_holds(folder, SHARDED)
    assert len(server.gets("part-1.bin")) == 1
    assert cached(NAME, from_hf_hub=from_hf_hub, home=home) == folder


@both
def test_one_weight_format(server: FileServer, home: Path, from_hf_hub: bool) -> None:
    files = {**SHARDED, "model.safetensors": WEIGHTS, "pytorch_model.bin": WEIGHTS}
    publish(server, from_hf_hub, {**files, "flax_model.msgpack": WEIGHTS, "README.md": b"x"})
    fetch(NAME, from_hf_hub=from_hf_hub, home=home)
    assert {request.file for request in server.gets()} == {*SMALL, "model.safetensors"}


# Other checkpoints that are published

CODEGEN2 = {
    **SIZES,
    "n_head": 8,
    "n_embd": 1024,
    "head_dim": 128,
    "rotary_dim": 64,
    "eos_token_id": 2,
    "model_type": "codegen",
    "auto_map": {"AutoModelForCausalLM": "modeling_codegen.CodeGenForCausalLM"},
}
GENERATION = b'{"eos_token_id": [50256, 50300]}'


@pytest.mark.parametrize("name", [name for name in KNOWN_MODELS if "codegen2" in name])
@both
def test_codegen2_by_its_names(
    server: FileServer, home: Path, from_hf_hub: bool, name: str
) -> None:
    files = {
        **SMALL,
        "config.json": json.dumps(CODEGEN2).encode(),
        "generation_config.json": GENERATION,
        "pytorch_model.bin": WEIGHTS,
    }
    code = {"modeling_codegen.py": b"raise SystemExit", "configuration_codegen.py": b"1 / 0"}
    (server.hub if from_hf_hub else server.paddle)[name] = {**files, **code}
    folder = fetch(name, from_hf_hub=from_hf_hub, home=home)
    assert_holds(folder, files)
    assert CodeGenConfig.from_folder(folder).qkv_groups == 8
    assert {request.file for request in server.gets()} == files.keys()


@both
def test_codegen2_cached_by_its_other_name(
    server: FileServer, home: Path, from_hf_hub: bool
) -> None:
    """The hub has renamed the models: gigabytes are not fetched again for that."""
    files = {**SMALL, "config.json": json.dumps(CODEGEN2).encode(), "pytorch_model.bin": WEIGHTS}
    for asked, other in (("codegen2-1B", "codegen2-1B_P"), ("codegen2-7B_P", "codegen2-7B")):
        of_hub = server.hub if from_hf_hub else server.paddle
        of_hub[f"Salesforce/{other}"] = files
        folder = fetch(f"Salesforce/{other}", from_hf_hub=from_hf_hub, home=home)
        server.requests.clear()
        assert fetch(f"Salesforce/{asked}", from_hf_hub=from_hf_hub, home=home) == folder
        assert server.requests == []


def test_a_configuration_that_does_not_tell_its_groups(server: FileServer, home: Path) -> None:
    name, config = "somebody/codegen2-tuned", {**CODEGEN2, "head_dim": None}
    files = {**SMALL, "config.json": json.dumps(config).encode(), "pytorch_model.bin": WEIGHTS}
    server.hub[name] = files
    with pytest.raises(ValueError, match="pass qkv_groups=4 or qkv_groups=8"):
        fetch(name, from_hf_hub=True, home=home)
    assert not server.gets("pytorch_model.bin")
    assert_holds(fetch(name, from_hf_hub=True, home=home, qkv_groups=8), files)


@pytest.mark.parametrize(
    ("name", "files", "others"),
    [
        (
            "moyix/codegen-2B-mono-gptj",
            {"config.json": json.dumps({**SIZES, "model_type": "gptj"}).encode()}
            | {"pytorch_model.bin": WEIGHTS},
            ["README.md", "rng_state.pth"],
        ),
        (
            "EleutherAI/gpt-j-6b",
            {"config.json": json.dumps({**SIZES, "model_type": "gptj"}).encode()}
            | {"tokenizer.json": b"{}", "pytorch_model.bin": WEIGHTS},
            ["flax_model.msgpack", "tf_model.h5"],
        ),
        (
            "shailja/fine-tuned-codegen-16B-Verilog",
            {**SHARDED, "config.json": CONFIG},
            ["codegen-16B.zip", "fine-tuned.tar.gz", "training_args.bin", "optimizer.pt"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repositories_of_others(
    server: FileServer, home: Path, name: str, files: dict[str, bytes], others: list[str]
) -> None:
    """Nothing is asked for but what a checkpoint consists of."""
    whole = {**SMALL, **files}
    server.hub[name] = {**whole, **dict.fromkeys(others, WEIGHTS)}
    folder = fetch(name, from_hf_hub=True, home=home)
    assert_holds(folder, whole)
    assert not {request.file for request in server.requests} & {*others}
    server.requests.clear()
    assert fetch(name, from_hf_hub=True, home=home) == folder
    assert server.requests == []


ADAPTERS = {
    "peft": {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": WEIGHTS},
    "peft, a pickle": {"adapter_config.json": b"{}", "adapter_model.bin": WEIGHTS},
    "PaddleNLP": {"lora_config.json": b"{}", "lora_model_state.pdparams": WEIGHTS},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(server: FileServer, kind: str) -> None:
    server.hub["somebody/lora"] = {**ADAPTERS[kind], "README.md": b"x", "optimizer.pt": WEIGHTS}
    weights = [*ADAPTERS[kind]][1]
    server.break_after[weights] = 10 * CHUNK
    with pytest.raises(DownloadError, match="broke off after 40,960 of 80,"):
        fetch_adapter("somebody/lora")
    folder = fetch_adapter("somebody/lora")
    assert_holds(folder, ADAPTERS[kind])
    assert {request.file for request in server.gets()} == {*ADAPTERS[kind]}
    server.requests.clear()
    assert fetch_adapter("somebody/lora") == folder
    assert server.requests == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not have it, or no adapter by this name"),
        ({"config.json": CONFIG, "model.safetensors": WEIGHTS}, "or no adapter by this name"),
        ({"adapter_config.json": b"{}"}, "lacks its weights"),
    ],
)
def test_no_adapter(server: FileServer, files: dict[str, bytes] | None, message: str) -> None:
    if files is not None:
        server.hub["somebody/lora"] = files
    with pytest.raises(DownloadError, match=message) as raised:
        fetch_adapter("somebody/lora")
    line = str(raised.value)
    assert line.startswith("adapter: somebody/lora cannot be downloaded: the Hugging Face hub ")
    assert "\n" not in line


@both
def test_broken_off_resumes(server: FileServer, home: Path, from_hf_hub: bool) -> None:
    files = {**SMALL, "pytorch_model.bin": WEIGHTS}
    publish(server, from_hf_hub, files)
    server.break_after["pytorch_model.bin"] = 10 * CHUNK + 100
    with pytest.raises(DownloadError) as caught:
        fetch(NAME, from_hf_hub=from_hf_hub, home=home)
    message = str(caught.value)
    assert message.startswith(f"{NAME}: pytorch_model.bin broke off after 40,960 of 80,")
    assert message.endswith("Try again: it resumes there")
    assert "\n" not in message
    assert cached(NAME, from_hf_hub=from_hf_hub, home=home) is None
    assert_holds(fetch(NAME, from_hf_hub=from_hf_hub, home=home), files)
    assert [r.range for r in server.gets("pytorch_model.bin")] == [None, "bytes=40960-"]


def test_killed_before_the_rename(server: FileServer, home: Path) -> None:
    publish(server, False, {**SMALL, "model_state.pdparams": WEIGHTS})
    folder = home / "models" / NAME
    folder.mkdir(parents=True)
    (folder / "model_state.pdparams.incomplete").write_bytes(WEIGHTS)
    assert_holds(fetch(NAME, home=home), {"model_state.pdparams": WEIGHTS})


@both
def test_one_copy_among_many_threads(server: FileServer, home: Path, from_hf_hub: bool) -> None:
    publish(server, from_hf_hub, {**SMALL, "pytorch_model.bin": WEIGHTS})
    server.delay = 0.01
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(fetch, NAME, from_hf_hub=from_hf_hub, home=home) for _ in range(4)]
        assert len({call.result() for call in calls}) == 1
    assert len(server.gets("pytorch_model.bin")) == 1


def test_a_server_without_ranges(server: FileServer, home: Path) -> None:
    publish(server, False, {**SMALL, "model_state.pdparams": WEIGHTS})
    server.ignore_range = True
    server.break_after["model_state.pdparams"] = 10 * CHUNK
    with pytest.raises(DownloadError, match="broke off"):
        fetch(NAME, home=home)
    with pytest.raises(DownloadError, match="bytes instead of"):
        fetch(NAME, home=home)
    assert cached(NAME, home=home) is None
    assert_holds(fetch(NAME, home=home), {"model_state.pdparams": WEIGHTS})


def test_files_of_paddlenlp_are_found(home: Path, server: FileServer) -> None:
    folder = home / "models" / NAME
    folder.mkdir(parents=True)
    arguments = {**SIZES, "init_class": "CodeGenModel"}
    legacy = {"init_args": [arguments], "init_class": "CodeGenForCausalLM"}
    (folder / "model_config.json").write_text(json.dumps(legacy))
    for file in ("vocab.json", "merges.txt"):
        (folder / file).write_bytes(SMALL[file])
    assert cached(NAME, home=home) is None
    (folder / "model_state.pdparams").write_bytes(WEIGHTS)
    assert fetch(NAME, home=home) == folder
    assert CodeGenConfig.from_folder(folder).n_layer == SIZES["n_layer"]
    assert server.requests == []


def test_files_of_the_hub_are_found(server: FileServer, home: Path, tmp_path: Path) -> None:
    publish(server, True, {**SMALL, "pytorch_model.bin": WEIGHTS})
    folder = fetch(NAME, from_hf_hub=True, home=home)
    assert folder.is_relative_to(tmp_path / "hf")
    assert folder.name == COMMIT
    assert cached(NAME, home=home) == folder
    # PaddleNLP's from_hf_hub=True keeps the hub's layout in its own home.
    (tmp_path / "hf").rename(tmp_path / "moved")
    home.mkdir()
    (tmp_path / "moved").rename(home / "models")
    assert cached(NAME, home=home) == home / "models" / folder.relative_to(tmp_path / "hf")


def test_falls_back_to_the_hub(
    server: FileServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {**SMALL, "pytorch_model.bin": WEIGHTS}
    publish(server, True, files)
    with caplog.at_level(logging.WARNING, hub.__name__):
        folder = fetch(NAME, home=home)
    assert_holds(folder, files)
    lines = [record.getMessage() for record in caplog.records if record.name == hub.__name__]
    assert lines == [f"{NAME}: PaddleNLP's server does not have it; trying the Hugging Face hub"]
    assert cached(NAME, home=home) == folder


def test_without_paddle_the_hub_serves(
    server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, True, {**SMALL, "pytorch_model.bin": WEIGHTS})
    monkeypatch.setitem(sys.modules, "paddlenlp.utils.download.bos_download", None)
    assert_holds(fetch(NAME, home=home), {"pytorch_model.bin": WEIGHTS})


@both
def test_not_found(server: FileServer, home: Path, from_hf_hub: bool) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(NAME, from_hf_hub=from_hf_hub, home=home)
    message = str(caught.value)
    assert f"{NAME} cannot be downloaded" in message
    assert "the Hugging Face hub does not have it" in message
    assert ("PaddleNLP's server does not have it" in message) is not from_hf_hub
    assert 'or "builtin"' in message


@both
def test_server_error(server: FileServer, home: Path, from_hf_hub: bool) -> None:
    server.status = 403
    with pytest.raises(DownloadError, match=r"cannot be asked for config.json .403 "):
        fetch(NAME, from_hf_hub=from_hf_hub, home=home)


@both
def test_lacks_a_shard(server: FileServer, home: Path, from_hf_hub: bool) -> None:
    publish(server, from_hf_hub, {k: v for k, v in SHARDED.items() if k != "part-2.bin"})
    with pytest.raises(DownloadError, match="lacks its weights, or some"):
        fetch(NAME, from_hf_hub=from_hf_hub, home=home)


@pytest.mark.parametrize(
    "shard", ["../../x.bin", "", "..", "a/b", "a\\b", "a\0b", "a\nb", "b" * 300, 7, None, [[]], {}]
)
def test_an_index_cannot_leave_its_folder(server: FileServer, home: Path, shard: object) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    publish(server, False, {**SMALL, "model.safetensors.index.json": index})
    with pytest.raises(DownloadError, match="must name files in its own folder") as caught:
        fetch(NAME, home=home)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors.index.json", b"[" * 100_000, "nested too deeply; delete it and try"),
        ("model.safetensors.index.json", b'{"weight_map": 1e999}', "beyond any float; delete it"),
        ("model.safetensors.index.json", b"[]", "must hold a JSON object; delete it"),
        ("model.safetensors.index.json", b"\xff", "not valid JSON: .*; delete it"),
        ("config.json", b"[" * 100_000, "nested too deeply"),
        ("config.json", json.dumps({**SIZES, "n_layer": 10**9}).encode(), "n_layer must be"),
        ("config.json", json.dumps({**SIZES, "head_dim": 4}).encode(), "pass qkv_groups=4 or"),
        ("config.json", json.dumps({**SIZES, "auto_map": {}}).encode(), "pass qkv_groups=4 or"),
    ],
)
def test_a_damaged_file_is_one_line_before_weights_are_asked_for(
    server: FileServer, home: Path, file: str, content: bytes, message: str
) -> None:
    publish(server, False, {**SMALL, file: content, "model_state.pdparams": WEIGHTS})
    with pytest.raises((DownloadError, ValueError), match=message) as caught:
        fetch(NAME, home=home)
    assert str(caught.value).splitlines() == [str(caught.value)]
    assert not any(request.file == "model_state.pdparams" for request in server.requests)


def test_a_home_that_is_a_loop_of_links(server: FileServer, home: Path) -> None:
    home.symlink_to(home)
    publish(server, False, {**SMALL, "model_state.pdparams": WEIGHTS})
    with pytest.raises(DownloadError, match="cannot write to") as caught:
        fetch(NAME, home=home)
    assert "\n" not in str(caught.value)


@both
def test_disk_too_small(
    server: FileServer, home: Path, from_hf_hub: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, from_hf_hub, {**SMALL, "pytorch_model.bin": WEIGHTS})
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 70_000}))
    with pytest.raises(DownloadError, match=r"pytorch_model.bin has 80,\d+ bytes, .* only 70,000"):
        fetch(NAME, from_hf_hub=from_hf_hub, home=home)


def test_home_that_cannot_be_written(server: FileServer, home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(DownloadError, match="cannot write to"):
        fetch(NAME, home=home)


@both
def test_server_down(
    server: FileServer,
    home: Path,
    from_hf_hub: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("PPNLP_ENDPOINT", "http://127.0.0.1:9/paddlenlp")
    use_hub(monkeypatch, "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"127.0.0.1.*out of reach: Connection refused"):
        fetch(NAME, from_hf_hub=from_hf_hub, home=home)
    assert time.monotonic() - started < 2
    assert not caplog.records  # the caller warns, with what it runs instead
    assert not home.exists()


def test_name_server_that_never_answers(
    server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "REACH_SECONDS", 0.2)
    monkeypatch.setattr(hub.socket, "create_connection", lambda *args: time.sleep(30))
    started = time.monotonic()
    with pytest.raises(DownloadError, match="out of reach: no answer in"):
        fetch(NAME, home=home)
    assert time.monotonic() - started < 2


def test_a_proxy_decides_for_itself(
    server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hub._PaddleServer(NAME, home, "http://127.0.0.1:9")
    with pytest.raises(DownloadError):
        hub._reach(source)
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "")
    hub._reach(source)


def test_offline_switch(server: FileServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, True, {**SMALL, "pytorch_model.bin": WEIGHTS})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        fetch(NAME, from_hf_hub=True, home=home)
    assert server.requests == []


def test_unknown_name(server: FileServer, home: Path) -> None:
    with pytest.raises(DownloadError, match="did you mean 'Salesforce/codegen-2B-multi'"):
        fetch("Salesforce/codegen-2b-multi", home=home)
    with pytest.raises(DownloadError, match="did you mean 'Salesforce/codegen2-3_7B_P'"):
        fetch("Salesforce/codegen2-3.7B_P", home=home)
    for name in ("Salesforce/codegen25-7b-mono", "Salesforce/CodeGen2.5-7B-multi"):
        with pytest.raises(DownloadError, match=r"CodeGen2\.5 is no CodeGen model, but a Llama"):
            fetch(name, home=home)
    assert cached("../../etc", home=home) is None
    with pytest.raises(ValueError, match="Repo id"):
        fetch("../../etc", from_hf_hub=True, home=home)
    assert server.requests == []


@both
def test_two_processes_download_once(
    server: FileServer, home: Path, tmp_path: Path, from_hf_hub: bool
) -> None:
    files = {**SMALL, "pytorch_model.bin": WEIGHTS}
    publish(server, from_hf_hub, files)
    server.delay = 0.05
    script = (
        "from pathlib import Path\n"
        "from paddlenlp_codegen_task.model.hub import fetch\n"
        f"print(fetch({NAME!r}, from_hf_hub={from_hf_hub}, home=Path({str(home)!r})))"
    )
    environment = {
        **os.environ,
        "PPNLP_HOME": str(home),
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    folders = {Path(process.communicate()[0].splitlines()[-1]) for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(folders) == 1
    assert_holds(folders.pop(), files)
    assert len(server.gets("pytorch_model.bin")) == 1
