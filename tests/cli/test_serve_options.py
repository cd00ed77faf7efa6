"""`serve` on the command line: its help, and what it says of what cannot be."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from commands import RUNNER, in_process, refused

import paddlenlp_codegen_task
from paddlenlp_codegen_task import cli
from paddlenlp_codegen_task.cli import base, loading


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["--nothing"], "No such option: --nothing"),
        (["serve", "--nothing"], "No such option: --nothing"),
        (["serve", "builtin"], "unexpected extra argument"),
        (["serve", "--port"], "'--port' requires an argument"),
        (["serve", "--port=abc"], "'--port': .*integer"),
        (["serve", "--port=65536"], "'--port': .*65535"),
        (["serve", "--port=-1"], "'--port': .*0"),
        (["serve", "--batch-size=0"], "'--batch-size': .*1"),
        (["serve", "--batch-size=1.5"], "'--batch-size': "),
        (["serve", "--max-waiting=-1"], "'--max-waiting': "),
        (["serve", "--max-n=0"], "'--max-n': "),
        (["serve", "--kv-cache-bytes=3X"], "'--kv-cache-bytes': '3X' is no size, such as "),
        (["serve", "--kv-cache-bytes=-1"], "'--kv-cache-bytes': '-1' is no size"),
        (["serve", "--prefix-cache-bytes=1.5G"], "'--prefix-cache-bytes': '1.5G' is no size"),
        (["serve", "--max-body-bytes=many"], "'--max-body-bytes': 'many' is no size"),
        (["serve", "--drain-seconds=nan"], "'--drain-seconds': 'nan' is no number of seconds"),
        (["serve", "--request-timeout=soon"], "'--request-timeout': 'soon' is no number of sec"),
        (["serve", "--cors-origin=page"], "'--cors-origin': 'page' is no origin, such as https"),
        (["serve", "--engine=steam"], "--engine must be one of 'auto', 'paddle', 'onnxruntime'"),
        (["serve", "--precision=fp1"], "--precision must be one of 'auto', 'fp32'"),
        (["serve", "--device=tpu"], "--device must be 'auto', 'cpu', 'gpu' or 'gpu:N', got 'tpu'"),
        (["serve", "--num-threads=100000"], "--num-threads must be at most "),
        (["serve", "--overflow=drop"], "--overflow must be one of 'error', 'truncate_left'"),
        (["serve", "--truncation=^x"], r"--truncation must be one of 'python', .*, got '\^x'"),
        (["serve", "--log-level=loud"], "--log-level must be one of 'debug', 'info'"),
        (["serve", "--model=gpt2"], "unknown model 'gpt2'.* pass --from-hf-hub$"),
        (["serve", "--model=./no/model"], "--model: there is no folder no/model$"),
        (["serve", "--model="], "--model must not be empty"),
        (["serve", "--model=builtin", "--draft-model=./x"], "--draft-model: there is no folder x$"),
        (["serve", "--model=builtin", "--kv-cache-bytes=1k"], r"--kv-cache-bytes \(1,024\) must b"),
        (["serve", "--model=builtin", "--prefix-cache-bytes=1"], "--prefix-cache-bytes must be 0,"),
        (["serve", "--host=no-such-host.invalid"], "cannot listen at http://no-such-host.invalid:"),
        (["serve", "--host=192.0.2.1", "--no-api-key"], "cannot listen at http://192.0.2.1:"),
        (["serve", "--host=0.0.0.0"], "--host 0.0.0.0: other machines can reach it, and there is "),
        (["serve", "--replicas=2"], "--replicas: goes with --ray alone"),
        (["serve", "--ray=there", "--port=1"], "--ray must be auto or HOST:PORT, got 'there'"),
        (
            ["serve", "--ray=127.0.0.1:9", "--port=1"],
            "--ray: nothing answers at 127.0.0.1:9 ",
        ),
        (["serve", "--ray=127.0.0.1:9"], "--port must be given with --ray: every node"),
        (
            ["serve", "--ray=127.0.0.1:9", "--host=0.0.0.0", "--port=1"],
            "--host 0.0.0.0: other machines can re",
        ),
        (["serve", "--api-key="], "--api-key: a key has 1 to 512 visible ASCII characters"),
        (["serve", "--api-key=with space"], "--api-key: a key has 1 to 512 visible ASCII charac"),
        (["serve", "--api-key-file=/no/file"], "--api-key-file: cannot read '/no/file': No such"),
        (["serve", "--api-key-file=/"], "--api-key-file: cannot read '/': Is a directory"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str):
    if arguments[0] == "serve" and not any("--port" in one for one in arguments):
        arguments = [*arguments, "--port=0"]
    # What is asked for may be, and is not here; or it cannot be.
    code = (
        1
        if re.search(
            "unknown model|there is no folder no/|cannot listen|cannot read|nothing answers",
            message,
        )
        else 2
    )
    assert re.search(message, refused(arguments, code=code))


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(["serve", "--model=builtin", f"--port={port}"], code=1)
    assert line == f"cannot listen at http://127.0.0.1:{port}: Address already in use"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "--api-key-file: there is no key in "),
        ("# only this\n\n", "--api-key-file: there is no key in "),
        ("good\nwith space\n", "--api-key-file: a key has"),
        ("bad-é\n", "--api-key-file: a key has"),
        ("x" * 513, "--api-key-file: a key has"),
        ("x\n" * 600_000, "--api-key-file may have 1,048,576 bytes, and has more"),
    ],
    ids=["empty", "comment", "space", "accent", "long", "large"],
)
def test_files_of_keys(tmp_path: Path, content: str, message: str):
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    line = refused(["serve", "--host=0.0.0.0", "--port=0", "--api-key-file", str(file)])
    assert line.startswith(message)
    assert "with space" not in line  # it may be a key that is nearly right


def test_an_empty_variable_is_no_key():
    environment = {"PADDLENLP_CODEGEN_API_KEY": " , "}
    assert "there is no key" in refused(["serve", "--host=::", "--port=0"], environment)


def test_help_lists_every_option():
    done = RUNNER.invoke(cli.app, ["serve", "--help"], env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert done.exit_code == 0
    named = set(re.findall(r"^│ (--[a-z-]+)", done.stdout, re.M))
    assert named == {
        *("--model", "--engine", "--precision", "--device", "--from-hf-hub", "--draft-model"),
        *("--home-path", "--batch-size", "--num-threads", "--kv-cache-bytes", "--help"),
        *("--prefix-cache-bytes", "--host", "--port", "--api-key", "--api-key-file"),
        *("--no-api-key", "--cors-origin", "--max-waiting", "--request-timeout", "--log-level"),
        *(
            "--ray",
            "--replicas",
            "--drain-seconds",
            "--overflow",
            "--truncation",
            "--max-body-bytes",
            "--max-prompts",
        ),
        *("--max-n", "--cuda-graph", "--no-token-healing", "--qkv-groups", "--adapter"),
        "--kv-precision",
    }
    for panel in ("Model", "Speed and memory", "Where to listen, and who may ask", "Limits"):
        assert f"─ {panel} ─" in done.stdout


def test_without_a_command_there_is_help():
    done = RUNNER.invoke(cli.app, [])
    assert done.exit_code == 0
    assert "serve" in done.stdout
    assert "Serve completions over HTTP." in done.stdout


def test_version():
    done = RUNNER.invoke(cli.app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"{paddlenlp_codegen_task.__version__}\n")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("123", 123), ("2k", 2048), ("3M", 3 << 20), ("4 GiB", 4 << 30), ("1TB", 1 << 40)],
)
def test_sizes(text: str, size: int):
    assert base.bytes_of(text) == size


def test_what_the_server_needs_is_named():
    """As where the extra `serve` is not installed."""
    code = """
import sys
sys.modules["prometheus_client"] = None
from paddlenlp_codegen_task.cli import app
app(["serve", "--port=0"])
"""
    done = in_process(code)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "prometheus_client" in line
    assert "pip install 'paddlenlp_codegen_task[serve]'" in line


def test_serving_imports_no_paddle(home_path: Path, tmp_path: Path):
    """Where ONNX Runtime runs the model: it would take seconds."""
    code = f"""
import os, signal, sys, threading, urllib.request
from paddlenlp_codegen_task.cli import app
from paddlenlp_codegen_task.serving import run

def ask():
    request = urllib.request.Request(
        url + "/v1/completions", b'{{"prompt": "x =", "max_tokens": 2}}'
    )
    with urllib.request.urlopen(request) as answer:
        print(answer.status, {{"paddle", "paddlenlp", "torch"}} & set(sys.modules))
    os.kill(os.getpid(), signal.SIGTERM)

class Asked(run.Server):
    async def startup(self, sockets):
        global url
        url = run.url(sockets[0])
        await super().startup(sockets)
        threading.Thread(target=ask).start()

run.Server = Asked
app(["serve", "--model=builtin", "--home-path", {str(home_path)!r}, "--port=0",
     "--engine=onnxruntime", "--num-threads=1"])
"""
    done = in_process(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == ["200 set()"]


def test_the_prefix_cache_is_sized(home_path: Path, monkeypatch: pytest.MonkeyPatch):
    from paddlenlp_codegen_task.decoding.scheduler import Scheduler
    from paddlenlp_codegen_task.runtime import device
    from paddlenlp_codegen_task.serving import run

    monkeypatch.setattr(device, "free_bytes", lambda _: 100 << 20)

    def most(**options: int) -> int | None:
        found: list[int | None] = []

        def look(scheduler: Scheduler) -> None:
            cache = scheduler.slots.prefix_cache
            found.append(cache.max_bytes if cache else None)

        given = {"model": "builtin", "home_path": home_path, "num_threads": 1, "device": "cpu"}
        with loading.load({**given, **options}) as one:
            if not options:
                run.keep_prefixes(one)
            one.engine.run(look)
            one.generate("x", max_length=1)  # comes after it
        return found[0]

    assert most() == 25 << 20
    assert most(prefix_cache_bytes=0) is None
    assert most(prefix_cache_bytes=7 << 20) == 7 << 20
