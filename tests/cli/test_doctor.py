"""`doctor`: what it says of machines, good and bad."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, invoke

from paddlenlp_codegen_task.cli import findings
from paddlenlp_codegen_task.cli.findings import Finding
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.runtime import cpu as processors
from paddlenlp_codegen_task.runtime import device

EPYC = "model name\t: AMD EPYC 7B13\nflags\t\t: fpu sse4_2 avx fma avx2 sha_ni\n"
XEON = "model name\t: Intel Xeon\nflags\t\t: fma avx2 avx512f avx512_vnni amx_int8\n"


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Finding]]:
    def look(about: str, quota: str = "max 100000\n") -> list[Finding]:
        monkeypatch.setattr(processors, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(findings, "CPU_QUOTA", tmp_path / "cpu.max")
        (tmp_path / "cpuinfo").write_text(about, encoding="utf-8")
        (tmp_path / "cpu.max").write_text(quota, encoding="utf-8")
        return findings.processor()

    return look


def test_processors(cpu: Callable[..., list[Finding]]):
    name, instructions = cpu(XEON)
    assert name.found.startswith("Intel Xeon; ")
    assert (instructions.state, instructions.advice) == ("ok", "")
    assert "AVX2, FMA, AVX-512, VNNI, AMX" in instructions.found
    assert instructions.found.endswith(": all precisions run at their speed")  # not measured
    _, instructions = cpu(XEON.replace(" amx_int8", ""))
    faster = "; int4 is about 4 times as fast as fp32 for one prompt at a time"
    assert instructions.found.endswith(faster)
    _, instructions = cpu(EPYC)
    assert instructions.state == "note"
    assert instructions.found == "AVX2, FMA; no VNNI"
    assert instructions.advice == f"int8's products are slower without it{faster}"
    _, instructions = cpu("model name : old\nflags : sse2\n")
    assert instructions.state == "note"
    assert "several times slower" in instructions.advice
    _, instructions = cpu("CPU implementer : 0x41\nFeatures : asimd\n")
    assert "not an x86 processor" in instructions.found


def test_a_share_of_the_processor(
    cpu: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)})
    assert len(cpu(XEON)) == 2
    _, quota, _ = cpu(XEON, "250000 100000\n")
    assert (quota.state, quota.found.split(",")[0]) == (
        "note",
        "the control group allows 2.5 cores' time",
    )
    assert "--num-threads 2" in quota.advice
    for text in ("", "max", "x y", "1 0", "800000 100000"):
        assert len(cpu(XEON, text)) == 2


@pytest.mark.parametrize(
    ("free", "state", "found"),
    [
        (None, "note", "cannot be known"),
        (100 << 20, "problem", "105 MB free: no published fp32"),
        (2 << 30, "ok", "2.1 GB free: fp32 up to 350M, int8 up to 350M, int4 up to 350M"),
        (1 << 30, "note", "1.1 GB free: no published fp32, int8 up to 350M"),
        (16 << 30, "ok", "17.2 GB free: fp32 up to 2B, int8 up to 6B, int4 up to 6B"),
        (1 << 40, "ok", "fp32 up to 16B"),
    ],
)
def test_memory(free: int | None, state: str, found: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device, "free_bytes", lambda _: free)
    [finding] = findings.memory()
    assert finding.state == state
    assert found in finding.found
    assert (state == "problem") <= bool(finding.advice)


@pytest.mark.parametrize(
    ("script", "state", "found"),
    [
        (None, "ok", "no NVIDIA driver"),
        ("echo 'NVIDIA H100 80GB HBM3, 81000 MiB'", "ok", "NVIDIA H100 80GB HBM3, 81000 MiB free"),
        ("true", "ok", "none"),
        ("echo 'no devices'; exit 9", "note", "nvidia-smi has failed"),
    ],
    ids=["none", "one", "empty", "failing"],
)
def test_gpus(
    script: str | None, state: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if script is not None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))
    finding, *more = findings.gpus()
    assert finding.state == state
    assert found in finding.found
    if script and "H100" in script and not any(map(findings._version, ("paddlepaddle-gpu",))):
        assert "onnxruntime-gpu" in more[0].advice or not more


@pytest.mark.parametrize("installed", [True, False])
def test_a_gpu_of_onnx_runtime(installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81000 MiB'\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    names = {"onnxruntime-gpu"} if installed else set()
    monkeypatch.setattr(findings, "_version", lambda name: "1.31.1" if name in names else None)
    finding, *more = findings.gpus()
    assert finding.state == "ok"
    assert ("--cuda-graph" in finding.found) is installed
    assert bool(more) is not installed


@pytest.mark.parametrize(
    ("version", "gpus", "said"),
    [(None, 0, False), ("2.6.2", 0, True), ("2.6.2", 1, False), (None, 1, False)],
)
def test_taskflow_where_paddle_is_built_for_gpus(
    version: str | None, gpus: int, said: bool, elsewhere: pytest.MonkeyPatch, tmp_path: Path
):
    """Taskflow would end the process there: PaddleNLP sets Paddle's device by itself."""
    there = findings._version
    elsewhere.setattr(
        findings, "_version", lambda name: version if name == "paddlepaddle-gpu" else there(name)
    )
    elsewhere.setattr(device, "cuda_devices", lambda: gpus)
    result = invoke(["doctor", f"--home-path={tmp_path}"])
    assert result.exit_code == 0
    line = "note     Taskflow: paddlepaddle-gpu 2.6.2 and no GPU: Taskflow goes to GPU 0 before"
    assert (line in result.stdout) is said
    assert ("-> pass device_id=-1 to Taskflow;" in result.stdout) is said


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home, model = findings.places(tmp_path / "not" / "yet")
    assert home.state == "ok"
    assert f"{tmp_path / 'not' / 'yet'} can be written" in home.found
    assert not (tmp_path / "not").exists()
    assert model.state == "note"
    folder = tmp_path / "models" / "Salesforce" / "codegen-350M-mono"
    shutil.copytree(BUILTIN_FOLDER, folder)
    _, model = findings.places(tmp_path)
    assert (model.state, model.found) == (
        "ok",
        f"Salesforce/codegen-350M-mono is in {folder}",
    )
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(findings.shutil, "disk_usage", lambda _: usage)
    [home] = findings.places(tmp_path)
    assert home.state == "problem"
    assert "1.0 kB free" in home.found


def test_a_home_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    [home] = findings.places(tmp_path / "file" / "home")
    assert home.state == "problem"
    assert home.found == f"cannot write to {tmp_path / 'file' / 'home'}: Not a directory"
    assert "--home-path" in home.advice


def test_no_home_at_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PPNLP_HOME")
    monkeypatch.delenv("HOME")

    def nobody(*_: Any) -> Any:
        raise KeyError("uid not found")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    [home] = findings.places(None)
    assert home.state == "problem"
    assert "--home-path" in home.advice
    assert findings.hubs(None)


def test_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    server, hub = findings.hubs(tmp_path)
    assert server.state == hub.state == "note"
    assert "127.0.0.1) is out of reach: Connection refused" in server.found
    assert "HF_HUB_OFFLINE" in hub.found
    assert "copy a model's folder" in server.advice
    with socket.create_server(("127.0.0.1", 0)) as there:
        monkeypatch.setenv("PPNLP_ENDPOINT", f"http://127.0.0.1:{there.getsockname()[1]}/x")
        server, _ = findings.hubs(tmp_path)
    assert (server.state, server.found) == ("ok", "PaddleNLP's server can be reached")


def test_an_engine_that_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(findings, "MODULES", {"onnxruntime": ""})
    [finding] = findings.engines()
    assert finding.state == "ok"
    assert finding.found.endswith(" runs the built-in model on the CPU")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("import os; os.kill(os.getpid(), 11)", "exit code -11: it said nothing"),
        ("import os; os._exit(0)", "exit code 0: it said nothing"),
        ("import time; time.sleep(60)", "it did not run the built-in model within 3 seconds"),
    ],
    ids=["import", "crash", "exit", "hang"],
)
def test_an_engine_that_does_not_run(
    content: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "onnxruntime.py").write_text(content, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(findings, "MODULES", {"onnxruntime": ""})
    if "sleep" in content:  # the others end by themselves, however slow the machine
        monkeypatch.setattr(findings, "TRIAL_SECONDS", 3.0)
    first, nothing = findings.engines()
    assert first.state == nothing.state == "problem"
    assert found in first.found, first.found
    assert "pip install onnxruntime onnx" in first.advice
    assert nothing.found == "no model runs: no engine does"


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(findings, "MODULES", {"paddle": ""})
    monkeypatch.setattr(findings, "_version", lambda _: None)
    first, _ = findings.engines()
    assert (first.state, first.advice) == ("note", "pip install paddlepaddle")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """What takes long, or is the machine's, is as it should be."""
    monkeypatch.setattr(findings, "engines", lambda: [Finding("engine x", "ok", "runs")])
    monkeypatch.setattr(device, "free_bytes", lambda _: 1 << 40)
    return monkeypatch


def test_a_machine_on_which_all_works(elsewhere: pytest.MonkeyPatch, tmp_path: Path):
    result = invoke(["doctor", f"--home-path={tmp_path}"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ok       paddlenlp_codegen_task: ")
    assert "ok       engine x: runs" in lines
    assert not [line for line in lines if not line.startswith(("ok   ", "note ", "         -> "))]


def test_a_machine_on_which_something_does_not(elsewhere: pytest.MonkeyPatch, tmp_path: Path):
    broken = Finding("engine x", "problem", "it\nbroke", "mend it")
    elsewhere.setattr(findings, "engines", lambda: [broken])
    result = invoke(["doctor", f"--home-path={tmp_path}"])
    assert result.exit_code == 1
    assert "PROBLEM  engine x: it broke\n         -> mend it\n" in result.stdout
    result = invoke(["doctor", f"--home-path={tmp_path}", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["works"] is False
    assert found["findings"][-1] == {
        "subject": "engine x",
        "state": "problem",
        "found": "it\nbroke",
        "advice": "mend it",
    }


def test_ctrl_c_ends_the_trial_too(tmp_path: Path):
    noted = tmp_path / "pid"
    slow = f"""
import os, time
with open({str(noted)!r} + "-", "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, {str(noted)!r})
time.sleep(100)
"""
    (tmp_path / "paddle.py").write_text(slow, encoding="utf-8")
    process = subprocess.Popen(
        [*COMMAND, "doctor", f"--home-path={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not noted.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "")
    status = Path("/proc", noted.read_text(encoding="ascii"), "status")
    while status.exists() and "State:\tZ" not in status.read_text(encoding="ascii"):
        assert time.monotonic() < deadline + 30
        time.sleep(0.05)


def test_the_trial_keeps_to_a_folder_of_its_own(tmp_path: Path):
    """Nothing is exported into anybody's home."""
    environment = {**os.environ, "PPNLP_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    code = "from paddlenlp_codegen_task.cli.findings import _tried; print(_tried('onnxruntime'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.startswith("runs "), done.stderr
    assert not (tmp_path / "home").exists()
    assert not list(tmp_path.glob("paddlenlp-codegen-*"))
